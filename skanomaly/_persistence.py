"""Detectors as files that hold numbers and names, never code.

The format is safetensors: the tensors, and one JSON text in the header. A reader
builds the networks anew from the parameters and fills in the tensors, so a file
cannot make it run anything.
"""

from __future__ import annotations

import re
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
from .utils._files import pack, read_packed, replace_file
from .utils._scaling import ImageScaler
from .utils._warnings import warn

__all__ = ["load", "save"]

#: 1 had no digest, and of the versions only those of skanomaly and torch.
_FORMAT = 2
_VERSIONS = {
    "skanomaly": __version__,
    "scikit-learn": sklearn.__version__,
    "torch": torch.__version__,
    "numpy": np.__version__,
}
#: What a file that describes something else may lead to.
_WRONG = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
)
_PLAIN = (bool, int, float, str, type(None))


def save(
    detector: BaseDeepDetector, path: str | PathLike, *, include_backbone: bool = True
) -> None:
    """Write a fitted detector to a file.

    An existing file is replaced in one step: whatever happens, there is either the old
    one or the new one, and nothing besides. Permissions are those that the old one had,
    or what the umask leaves. Of a link, the target is replaced.

    The file holds the parameters, the scaling, the thresholds and the weights;
    not the state of the optimisers: a detector with ``warm_start`` goes on with
    fresh ones. Parameters that are no numbers or names (networks of your own,
    callbacks, a joblib.Memory, a RandomState) are left out and have to be given to
    :func:`load` again. Rows that a parameter holds, such as ``corpus``, are left out
    too, and are None then.

    Parameters
    ----------
    detector : BaseDeepDetector
        A fitted detector.
    path : str or path-like
        Where to write.
    include_backbone : bool, default=True
        Whether to write the weights of a frozen network too, if the detector has one,
        as :class:`ADRA` has. Without them the file holds the adapters alone, and
        :func:`load` has to be given the network as ``backbone``: one with the same
        weights, which is checked.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the detector is not fitted.
    TypeError
        If it is no detector of this package; a subclass is none.
    ValueError
        If `include_backbone` is false, and the detector has no frozen network; if
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
            f"{type(detector).__name__} is no detector of skanomaly. Of a pipeline, "
            "save takes the detector, pipeline[-1]; joblib.dump keeps it as a whole."
        )
    if _public(type(detector).__name__) is not type(detector):
        raise TypeError(
            f"{type(detector).__name__} is a class of your own, which load could not "
            "find; joblib.dump keeps such a detector."
        )
    _check_path(path)
    check_is_fitted(detector)
    tensors: dict[str, torch.Tensor] = {}
    known = _known_classes(type(detector))
    left_out = () if include_backbone else detector._frozen_modules
    if not (include_backbone or left_out):
        raise ValueError(
            f"include_backbone=False, but {type(detector).__name__} has no network "
            "that stays as it was."
        )
    given, params = _given_params(detector)
    unsaid = set(given) - set(params)
    if not include_backbone:
        unsaid.discard("architecture")  # what it made comes as the backbone
    _check_unchanged(detector)
    fitted = {
        k: _Weights.of(v, left_out) if isinstance(v, AlternatingNet) else v
        for k, v in vars(detector).items()
        if k not in given and k != "_metadata_request"
    }
    header = {
        "format": _FORMAT,
        **_VERSIONS,
        "class": type(detector).__name__,
        "params": _encode(params, "params", tensors, known),
        "left_out": sorted(unsaid),
        "fitted": _encode(fitted, "fitted", tensors, known),
    }
    try:
        replace_file(path, pack(header, tensors))
    except OSError as error:
        reason = error.strerror or error
        raise OSError(error.errno, f"{path} cannot be written: {reason}") from error


def _given_params(detector):
    """Return all parameters of a detector, and those that a file holds."""
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


def _check_unchanged(detector):
    """Refuse a detector whose parameters are those of other networks than it has."""
    whole = {
        name: _Weights.of(net, ())
        for name, net in vars(detector).items()
        if isinstance(net, AlternatingNet)
    }
    try:
        _filled(detector, "cpu", whole)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "The networks are not those that the parameters describe: these were "
            f"changed after fit. Fit again. {error}"
        ) from error


def load(path: str | PathLike, **params: Any) -> BaseDeepDetector:
    """Read a detector that :func:`save` wrote.

    Parameters
    ----------
    path : str or path-like
        The file.
    **params
        Parameters to set: those that are code and could not be saved, and those
        that are to be different, such as ``device``.

    Returns
    -------
    BaseDeepDetector
        The fitted detector, on the device that its ``device`` parameter names.

    Raises
    ------
    InvalidFileError
        If the file is not one of ours, was changed, or holds anything that it should
        not: a ValueError too.
    ValueError
        If the file is of a newer format; if a parameter that was left out is missing,
        or one is given that the detector does not have, that cannot be what it is, or
        that contradicts what was fitted, such as ``width`` or ``contamination``.
    OSError
        If there is no such file, or it may not be read.

    Warns
    -----
    UserWarning
        If the file is of a newer version of the package, or of an older one that did
        not write a digest, so that changes would not be noticed.

    See Also
    --------
    save : Writes the file.
    """
    _check_path(path)
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
    except _WRONG as error:
        raise _unusable(path, header, error) from error
    if missing := sorted(left_out - set(params)):
        given = ", ".join(f"{name}=..." for name in missing)
        raise ValueError(f"The file could not hold {missing}: load(path, {given}).")
    _check_given(detector, held, params)
    detector.set_params(**params)._validate_params()
    device = resolve_device(detector.device)
    try:
        nets = _filled(detector, device, saved)
    except _WRONG as error:
        makers = {*detector._fixed_by_fit, *detector._frozen_modules} & set(params)
        if not makers:
            raise _unusable(path, header, error) from error
        if isinstance(error, ValueError):
            raise
        raise ValueError(
            f"The weights in {path} are for other networks than those that "
            f"{' and '.join(sorted(makers))}, given to load, makes: {error}"
        ) from error
    vars(detector).update(nets)
    return detector


def _check_path(path):
    if not isinstance(path, str | PathLike):
        raise TypeError(
            f"path is of type {type(path).__name__}, and has to be the name of a file, "
            "as a string or a pathlib.Path."
        )


def _check_writer(header, path):
    """Refuse a newer format, and warn of a newer version, or one without a digest."""
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
            f"{path} is of an older version, which did not write a digest: changes of "
            "it cannot be noticed. Save the detector again."
        )
    if _release(version) > _release(__version__):
        warn(
            f"{path} was written by skanomaly {version}, which is newer than this, "
            f"{__version__}: the detector may work differently. An update is safer."
        )


def _release(version):
    """Return the numbers of a version, without what may follow them."""
    found = re.match(r"\d+(\.\d+)*", str(version))
    return tuple(map(int, found[0].split("."))) if found else ()


def _unusable(path, header, error):
    written, here = (
        ", ".join(f"{name} {there[name]}" for name in _VERSIONS if name in there)
        for there in (header, _VERSIONS)
    )
    return InvalidFileError(
        f"{path} does not describe a detector of skanomaly {__version__}: {error} "
        f"(It was written with {written}; here are {here}.)"
    )


def _described(header, tensors):
    """Return a detector without its nets, its parameters in the file, and the nets."""
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


def _try_out(scaler):
    """Use a scaler of scikit-learn, whose insides may differ between versions."""
    if isinstance(scaler, MinMaxScaler | StandardScaler):
        row = np.zeros((1, scaler.n_features_in_))
        try:
            scaler.inverse_transform(scaler.transform(row))
        except _WRONG as error:
            raise ValueError(
                f"its {type(scaler).__name__} cannot be used: {error}"
            ) from error


def _check_given(detector, held, params):
    """Refuse parameters that contradict what was fitted."""
    for name in detector._fixed_by_fit:
        if name in params and name in held and not _alike(params[name], held[name]):
            other = "; `offset_` of what load returns may be set"
            raise ValueError(
                f"{name}={params[name]!r} was given to load, but the detector was "
                f"fitted with {name}={held[name]!r}, and `fit` alone reads it: fit "
                f"again{other if name == 'contamination' else ''}."
            )


def _alike(one, other):
    """Return whether two parameters say the same, in whatever they are kept."""
    return _bare(one) == _bare(other)


def _bare(value):
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return [_bare(v) for v in value] if isinstance(value, list | tuple) else value


def _filled(detector, device, saved):
    """Return nets of a detector with weights, by the name of their attribute."""
    made = detector._nets_to_fill(device, saved)
    return {name: weights.poured_into(made[name]) for name, weights in saved.items()}


def _public(name):
    public = import_module(__package__)
    return getattr(public, name) if name in public.__all__ else None


def _find_class(name):
    cls = _public(name)
    if not (isinstance(cls, type) and issubclass(cls, BaseDeepDetector)):
        raise ValueError(f"There is no detector {name!r} in skanomaly {__version__}.")
    return cls


def _known_classes(cls):
    known = (ImageScaler, MinMaxScaler, StandardScaler, *cls._kept_classes)
    return {known_class.__name__: known_class for known_class in known}


class _Weights(NamedTuple):
    """What a file holds of a net: of modules that are left out a checksum."""

    step: int
    modules: dict[str, dict[str, torch.Tensor] | str]

    @classmethod
    def of(cls, net: AlternatingNet, left_out: tuple[str, ...]):
        states = {name: getattr(net, f"{name}_").state_dict() for name in net.modules}
        short = {name: _checksum(states[name]) for name in left_out}
        return cls(net.step_, states | short)

    def poured_into(self, net: AlternatingNet):
        net.initialize()
        net.step_ = self.step
        for name, state in self.modules.items():
            module = getattr(net, f"{name}_")
            if not isinstance(state, str):
                _refuse_other_types(module.state_dict(), state)
                module.load_state_dict(state)
            elif state != _checksum(module.state_dict()):
                raise ValueError(
                    f"The weights of {name} are not those that the detector was "
                    f"trained with: give the network, load(path, {name}=network)."
                )
        return net


def _refuse_other_types(own, state):
    """Refuse numbers of another type, which torch would convert."""
    for name in own.keys() & state.keys():
        given, wanted = (getattr(s[name], "dtype", None) for s in (state, own))
        if given != wanted:
            raise RuntimeError(f"{name} is of {given}, and has to be of {wanted}.")


def _checksum(state):
    digest = sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].numpy(force=True).tobytes())
    return digest.hexdigest()


# One JSON value per Python value: plain ones are themselves, every other one is an
# object with a single key that says what it is.


def _encode(value, path, tensors, known):
    """Return `value` as JSON; tensors go to `tensors` under their path."""

    def inner(part, name):
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
    raise TypeError(f"{path} is a {type(value).__name__}, which no file can hold.")


def _decode(value, tensors, known):
    """Return the Python value that :func:`_encode` was given; takes its tensors."""

    def inner(part):
        return _decode(part, tensors, known)

    if isinstance(value, _PLAIN):
        return value
    ((kind, content),) = value.items()
    if kind in known:
        made = known[kind].__new__(known[kind])
        vars(made).update(inner(content))
        return made
    readers = {
        "net": lambda: _Weights(content[0], inner(content[1])),
        "names": lambda: np.array(content, dtype=object),
        "array": lambda: tensors.pop(content).numpy(),
        "tensor": lambda: tensors.pop(content),
        "list": lambda: [inner(part) for part in content],
        "tuple": lambda: tuple(inner(part) for part in content),
        "dict": lambda: {k: inner(part) for k, part in content.items()},
    }
    return readers[kind]()


def _is_plain(value):
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (*_PLAIN, np.generic))
