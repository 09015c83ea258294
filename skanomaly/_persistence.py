"""Detectors as files of numbers and names, without code.

The format is safetensors: the tensors, with one JSON text in the header. A reader
builds the networks from the parameters and loads the tensors, so that a file cannot
execute code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted

from ._base import BaseDeepDetector
from ._version import __version__
from .engine import AlternatingNet
from .exceptions import InvalidFileError
from .utils._device import resolve_device
from .utils._files import check_path, pack, read_packed, replace_file
from .utils._scaling import ImageScaler
from .utils._warnings import warn

__all__ = ["load", "save"]

#: Format 1 had no digest, and no versions of scikit-learn and numpy.
_FORMAT = 2
_VERSIONS = {
    "skanomaly": __version__,
    "scikit-learn": sklearn.__version__,
    "torch": torch.__version__,
    "numpy": np.__version__,
}
#: Errors that a file may cause if it does not describe a detector.
_FILE_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
)
_PLAIN = (bool, int, float, str, type(None))
#: Attributes of scikit-learn that are not fitted.
_LEFT_OUT = {"_metadata_request", "_skl_callbacks", "_parent_callback_ctx"}

Json = dict[str, Any]
Params = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def save(
    detector: BaseDeepDetector,
    path: str | PathLike[str],
    *,
    include_backbone: bool = True,
) -> None:
    """Write a fitted detector to a file.

    An existing file is replaced in one step: at any time there is either the old or the
    new file. The new file has the permissions of the old one, or those of the umask. Of
    a link, the target is replaced.

    The file holds the parameters, the scaling, the thresholds and the weights, but not
    the state of the optimisers: a ``warm_start`` begins with fresh ones.
    Parameters other than numbers and names (networks of your own, callbacks, a
    joblib.Memory, a RandomState) are left out, and have to be given to :func:`load`.
    Data in a parameter, such as ``corpus``, are left out and become None.

    Parameters
    ----------
    detector : BaseDeepDetector
        A fitted detector.
    path : str or path-like
        The file to write.
    include_backbone : bool, default=True
        Whether to write the weights of the frozen backbone of :class:`ADRA`. Without
        them the file holds the adapters alone, and :func:`load` needs the network as
        ``backbone``, with the same weights, which is checked.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the detector is not fitted.
    TypeError
        If it is not a detector of this package, but, for example, of a subclass.
    ValueError
        If `include_backbone` is false and the detector has no frozen backbone, or if
        parameters of the networks were changed after ``fit``.
    OSError
        If the file cannot be written.

    See Also
    --------
    load : Reads the file.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly import HistoryAD, load, save
    >>> X = np.random.default_rng(0).normal(size=(50, 3))
    >>> detector = HistoryAD(max_epochs=1, detector_epochs=1).fit(X)
    >>> save(detector, "detector.safetensors")
    >>> bool((load("detector.safetensors").predict(X) == detector.predict(X)).all())
    True
    """
    if not isinstance(detector, BaseDeepDetector):
        raise TypeError(
            f"{type(detector).__name__} is no detector of skanomaly. For a pipeline, "
            "save its detector, pipeline[-1], or use joblib.dump."
        )
    if _public(type(detector).__name__) is not type(detector):
        raise TypeError(
            f"{type(detector).__name__} is a class of your own, which load cannot "
            "find: use joblib.dump."
        )
    check_path(path)
    check_is_fitted(detector)
    tensors: dict[str, torch.Tensor] = {}
    known = _known_classes(type(detector))
    left_out = () if include_backbone else detector._frozen_modules
    if not (include_backbone or left_out):
        raise ValueError(
            f"include_backbone=False, but {type(detector).__name__} has no frozen "
            "backbone."
        )
    given, params = _given_params(detector)
    missing = set(given) - set(params)
    if not include_backbone:
        missing.discard("architecture")  # load is given its result, the backbone
    _check_unchanged(detector)
    fitted = {
        k: _Weights.of(v, left_out) if isinstance(v, AlternatingNet) else v
        for k, v in vars(detector).items()
        if k not in given and k not in _LEFT_OUT
    }
    header = {
        "format": _FORMAT,
        **_VERSIONS,
        "class": type(detector).__name__,
        "params": _encode(params, "params", tensors, known),
        "left_out": sorted(missing),
        "fitted": _encode(fitted, "fitted", tensors, known),
    }
    replace_file(path, pack(header, tensors))


def _given_params(detector: BaseDeepDetector) -> tuple[Params, Params]:
    """Return all parameters of a detector, and those for the file."""
    given = {
        name: fspath(value) if isinstance(value, PathLike) else value
        for name, value in detector.get_params(deep=False).items()
    }
    only_to_fit = detector._only_to_fit
    return given, dict.fromkeys(only_to_fit) | {
        name: value
        for name, value in given.items()
        if (isinstance(value, str) if name in only_to_fit else _is_plain(value))
    }


def _check_unchanged(detector: BaseDeepDetector) -> None:
    """Raise an error if the parameters describe other networks than the fitted ones."""
    whole = {
        name: _Weights.of(net, ())
        for name, net in vars(detector).items()
        if isinstance(net, AlternatingNet)
    }
    try:
        _filled(detector, "cpu", whole)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "Parameters of the networks were changed after fit, and describe other "
            f"networks. Fit again. {error}"
        ) from error


def load(path: str | PathLike[str], **params: Any) -> BaseDeepDetector:
    """Read a detector that :func:`save` wrote.

    Parameters
    ----------
    path : str or path-like
        The file.
    **params
        Parameters to set: those that the file leaves out, and others to change, such as
        ``device``.

    Returns
    -------
    BaseDeepDetector
        The fitted detector, on the device of its parameter ``device``.

    Raises
    ------
    InvalidFileError
        If :func:`save` did not write the file, or it was changed since; also a
        ValueError.
    ValueError
        If the file has a newer format, if a parameter that the file leaves out is
        missing, or if a parameter is unknown, invalid, or contradicts the fitted state,
        as ``width`` or ``contamination`` may.
    OSError
        If there is no such file, or it cannot be read.

    Warns
    -----
    UserWarning
        If a newer version of the package wrote the file, or an older one without a
        digest, so that changes of the file cannot be detected.

    See Also
    --------
    save : Writes the file.
    """
    check_path(path)
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder.")
    try:
        header, tensors = read_packed(path)
    except ValueError as error:
        raise InvalidFileError(f"{path} {error}") from error
    _check_writer(header, path)
    try:
        detector, held, saved = _described(header, tensors)
        left_out = set(header["left_out"])
    except _FILE_ERRORS as error:
        raise _unusable(path, header, error) from error
    if missing := sorted(left_out - set(params)):
        given = ", ".join(f"{name}=..." for name in missing)
        raise ValueError(f"The file leaves out {missing}: load(path, {given}).")
    _check_given(detector, held, params)
    detector.set_params(**params)._validate_params()
    device = resolve_device(detector.device)
    try:
        nets = _filled(detector, device, saved)
    except _FILE_ERRORS as error:
        makers = {*detector._fixed_by_fit, *detector._frozen_modules} & set(params)
        if not makers:
            raise _unusable(path, header, error) from error
        if isinstance(error, ValueError):
            raise
        raise ValueError(
            f"The weights in {path} do not fit the networks of "
            f"{' and '.join(sorted(makers))}, given to load: {error}"
        ) from error
    vars(detector).update(nets)
    return detector


def _check_writer(header: Json, path: str | PathLike[str]) -> None:
    """Check the format; warn of a newer version, or of one without a digest."""
    number, version = header.get("format"), header.get("skanomaly")
    if not isinstance(number, int) or ("sha256" not in header and number == _FORMAT):
        raise InvalidFileError(
            f"{path} has a header that skanomaly.save did not write."
        )
    if number > _FORMAT:
        raise ValueError(
            f"{path} was written in format {number} by skanomaly {version}; this is "
            f"{__version__}, which knows formats up to {_FORMAT}. Please update."
        )
    if "sha256" not in header:
        warn(
            f"{path} was written by an older version, without a digest: changes of it "
            "cannot be detected. Save the detector again."
        )
    if _release(version) > _release(__version__):
        warn(
            f"{path} was written by skanomaly {version}, which is newer than this, "
            f"{__version__}: the detector may work differently. An update is safer."
        )


def _release(version: object) -> tuple[int, ...]:
    """Return the release segment of a version: (1, 2) of "1.2.dev0"."""
    found = re.match(r"\d+(\.\d+)*", str(version))
    return tuple(map(int, found[0].split("."))) if found else ()


def _unusable(
    path: str | PathLike[str], header: Json, error: Exception
) -> InvalidFileError:
    written, here = (
        ", ".join(f"{name} {there[name]}" for name in _VERSIONS if name in there)
        for there in (header, _VERSIONS)
    )
    return InvalidFileError(
        f"{path} does not describe a detector of skanomaly {__version__}: {error} "
        f"(It was written with {written}; here are {here}.)"
    )


def _described(
    header: Json, tensors: Tensors
) -> tuple[BaseDeepDetector, Params, dict[str, _Weights]]:
    """Return a detector without nets, its parameters in the file, and the weights."""
    cls = _find_class(header["class"])
    known = _known_classes(cls)
    held = _decode(header["params"], tensors, known)
    detector = cls(**held)
    detector._validate_params()
    fitted = _decode(header["fitted"], tensors, known)
    if tensors:
        raise ValueError(f"It holds more than the detector: {sorted(tensors)}.")
    saved = {k: value for k, value in fitted.items() if isinstance(value, _Weights)}
    vars(detector).update((k, v) for k, v in fitted.items() if k not in saved)
    _try_out(detector.scaler_)
    return detector, held, saved


def _try_out(scaler: Any) -> None:
    """Check that a scaler works: attributes differ between versions of scikit-learn."""
    if isinstance(scaler, MinMaxScaler | StandardScaler):
        row = np.zeros((1, scaler.n_features_in_))
        try:
            scaler.inverse_transform(scaler.transform(row))
        except _FILE_ERRORS as error:
            raise ValueError(
                f"its {type(scaler).__name__} cannot be used: {error}"
            ) from error


def _check_given(detector: BaseDeepDetector, held: Params, params: Params) -> None:
    """Raise an error if parameters contradict the fitted state."""
    for name in detector._fixed_by_fit:
        if name in params and name in held and not _alike(params[name], held[name]):
            other = ", or set `offset_` of the loaded detector"
            raise ValueError(
                f"{name}={params[name]!r} was given to load, but the detector was "
                f"fitted with {name}={held[name]!r}, which only `fit` reads: fit "
                f"again{other if name == 'contamination' else ''}."
            )


def _alike(one: Any, other: Any) -> bool:
    """Return whether two parameters have equal values, in containers of any type."""
    return bool(_as_lists(one) == _as_lists(other))


def _as_lists(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return [_as_lists(v) for v in value] if isinstance(value, list | tuple) else value


def _filled(
    detector: BaseDeepDetector, device: str, saved: dict[str, _Weights]
) -> dict[str, AlternatingNet]:
    """Return nets of a detector with saved weights, by the name of their attribute."""
    nets = detector._nets_for_weights(device, saved)
    return {name: weights.load_into(nets[name]) for name, weights in saved.items()}


def _public(name: str) -> Any:
    public = import_module(__package__)
    return getattr(public, name) if name in public.__all__ else None


def _find_class(name: str) -> type[BaseDeepDetector]:
    cls = _public(name)
    if not (isinstance(cls, type) and issubclass(cls, BaseDeepDetector)):
        raise ValueError(f"There is no detector {name!r} in skanomaly {__version__}.")
    return cls


def _known_classes(cls: type[BaseDeepDetector]) -> dict[str, type]:
    known = (ImageScaler, MinMaxScaler, StandardScaler, *cls._kept_classes)
    return {known_class.__name__: known_class for known_class in known}


class _Weights(NamedTuple):
    """Step and weights of a net, with a checksum for modules that are left out."""

    step: int
    modules: dict[str, dict[str, torch.Tensor] | str]

    @classmethod
    def of(cls, net: AlternatingNet, left_out: tuple[str, ...]) -> _Weights:
        states = {name: getattr(net, f"{name}_").state_dict() for name in net.modules}
        short = {name: _checksum(states[name]) for name in left_out}
        return cls(net.step_, states | short)

    def load_into(self, net: AlternatingNet) -> AlternatingNet:
        net.initialize()
        net.step_ = self.step
        for name, state in self.modules.items():
            module = getattr(net, f"{name}_")
            if not isinstance(state, str):
                _check_dtypes(module.state_dict(), state)
                module.load_state_dict(state)
            elif state != _checksum(module.state_dict()):
                raise ValueError(
                    f"The weights of {name} differ from those in the training of the "
                    f"detector. Give that network: load(path, {name}=network)."
                )
        return net


def _check_dtypes(own: Tensors, state: Tensors) -> None:
    """Raise an error if dtypes differ, since torch would convert without a warning."""
    for name in own.keys() & state.keys():
        given, wanted = (getattr(s[name], "dtype", None) for s in (state, own))
        if given != wanted:
            raise RuntimeError(f"{name} is of {given}, and has to be of {wanted}.")


def _checksum(state: Tensors) -> str:
    digest = sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].numpy(force=True).tobytes())
    return digest.hexdigest()


# A plain value is itself in JSON; any other value is an object with a single key, its
# type.


def _encode(value: Any, path: str, tensors: Tensors, known: dict[str, type]) -> Any:
    """Return `value` as JSON, and put its tensors into `tensors` under their path."""

    def inner(part: Any, name: object) -> Any:
        return _encode(part, f"{path}.{name}", tensors, known)

    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, _Weights):
        return {"net": [value.step, inner(value.modules, "modules")]}
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return {"names": value.tolist()}
    if isinstance(value, np.ndarray | torch.Tensor):
        tensors[path] = torch.as_tensor(value).clone().contiguous()
        return {"array" if isinstance(value, np.ndarray) else "tensor": path}
    if isinstance(value, list | tuple):
        parts = [inner(part, k) for k, part in enumerate(value)]
        return {type(value).__name__: parts}
    if isinstance(value, dict):
        return {"dict": {k: inner(part, k) for k, part in value.items()}}
    if type(value).__name__ in known:
        return {type(value).__name__: inner(vars(value), type(value).__name__)}
    raise TypeError(f"{path} is a {type(value).__name__}, which cannot be saved.")


def _decode(value: Any, tensors: Tensors, known: dict[str, type]) -> Any:
    """Return the value that :func:`_encode` encoded, and remove its tensors."""

    def inner(part: Any) -> Any:
        return _decode(part, tensors, known)

    if isinstance(value, _PLAIN):
        return value
    ((kind, content),) = value.items()
    if kind in known:
        instance: Any = object.__new__(known[kind])
        vars(instance).update(inner(content))
        return instance
    readers: dict[str, Callable[[], Any]] = {
        "net": lambda: _Weights(content[0], inner(content[1])),
        "names": lambda: np.array(content, dtype=object),
        "array": lambda: tensors.pop(content).numpy(),
        "tensor": lambda: tensors.pop(content),
        "list": lambda: [inner(part) for part in content],
        "tuple": lambda: tuple(inner(part) for part in content),
        "dict": lambda: {k: inner(part) for k, part in content.items()},
    }
    return readers[kind]()


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (*_PLAIN, np.generic))
