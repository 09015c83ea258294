"""Fitted detectors as torch modules, and as ONNX files for other runtimes."""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ._base import BaseDeepDetector
from ._version import __version__
from .calibration import ConformalDetector
from .utils._files import check_path, replace_file
from .utils._kinds import TABLE
from .utils._scaling import ImageScaler
from .utils._state import shallow_copy

__all__ = ["export_onnx", "score_module"]

#: The version of the operators of ONNX.
_OPSET = 20
#: Samples of the batch that the exporter traces; torch takes a single one as constant.
_TRACED = 3
#: The largest file that protobuf reads.
_MOST_BYTES = 2**31 - 1
_LARGEST = float(np.finfo(np.float32).max)

Scaling = Callable[[Tensor], Tensor]


def export_onnx(
    detector: BaseDeepDetector | ConformalDetector, path: str | PathLike[str]
) -> None:
    """Write a fitted detector to an ONNX file, which needs neither Python nor torch.

    The file maps raw samples to decisions: scaling, networks, the range of the training
    data and the threshold are in it. It has the inputs

    - ``X``, samples of the shape that ``fit`` was given, of type float32, or uint8 if
      the detector was fitted on images of that type, in batches of any size;
    - ``offset``, of shape (1,) and type float64: the threshold, ``offset_`` by default,
      so that it can be left out.

    and for each sample the outputs

    - ``score``, float64, ``score_samples(X)``;
    - ``decision``, float64, ``score - offset``, negative for outliers;
    - ``label``, int64, -1 for outliers and +1 for inliers;
    - ``p_value``, float64, if the detector has ``calibration_scores_``.

    Scores differ from those of the detector by less than 1e-5 of their size, or of
    their range if that is larger. In onnxruntime on a CPU they do not depend on the
    batch, not even in their last bits. A sample with NaN, which the detector refuses,
    has the lowest number of float32 as its score, and is an outlier.

    The operators are those of opset 20. Metadata name the versions of skanomaly and
    torch, the class, the columns and the threshold. A file is replaced in one step.

    Parameters
    ----------
    detector : BaseDeepDetector or ConformalDetector
        A fitted detector of this package, or a :class:`ConformalDetector` around one,
        with a single calibration set: ``calibration`` a float or "prefit".
    path : str or path-like
        The file to write.

    Raises
    ------
    ImportError
        If the packages of the extra ``onnx`` are not installed.
    sklearn.exceptions.NotFittedError
        If the detector is not fitted.
    TypeError
        If it is no detector of this package.
    ValueError
        If torch cannot export a network of your own, which the message names, if a
        :class:`ConformalDetector` has several detectors, or the file would be larger
        than 2 GiB.
    OSError
        If the file cannot be written.

    See Also
    --------
    save : Writes a file for this package, with all that a detector can do.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly import HistoryAD, export_onnx
    >>> X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    >>> detector = HistoryAD(max_epochs=1, detector_epochs=1).fit(X)
    >>> export_onnx(detector, "detector.onnx")  # doctest: +SKIP
    >>> import onnxruntime  # doctest: +SKIP
    >>> session = onnxruntime.InferenceSession("detector.onnx")  # doctest: +SKIP
    >>> outputs = session.run(None, {"X": X})  # doctest: +SKIP
    >>> score, decision, label, p_value = outputs  # doctest: +SKIP
    """
    inner = _inner(detector)
    check_path(path)
    _check_place(path)
    onnx = _import_onnx()
    inner._validate_params()
    inner._check_contamination()
    calibration = getattr(detector, "calibration_scores_", None)
    model = _model(onnx, _on_host(inner), calibration)
    offset = np.array([detector.offset_], np.float64)
    model.graph.initializer.append(onnx.numpy_helper.from_array(offset, "offset"))
    names = getattr(detector, "feature_names_in_", None)
    metadata = {
        "skanomaly": __version__,
        "torch": torch.__version__,
        "class": type(inner).__name__,
        "offset": repr(float(detector.offset_)),
        "columns": json.dumps(None if names is None else list(map(str, names))),
    }
    onnx.helper.set_model_props(model, metadata)
    if model.ByteSize() > _MOST_BYTES:
        raise ValueError(
            f"The networks have {model.ByteSize() / 2**30:.1f} GiB, and an ONNX file "
            "in one piece holds at most 2."
        )
    replace_file(path, [model.SerializeToString(deterministic=True)])


def score_module(detector: BaseDeepDetector | ConformalDetector) -> nn.Module:
    """Return a torch module that maps raw samples to scores, with gradients.

    It is made for packages that explain torch modules, such as captum and shap:
    scaling, networks and the range of the training data are in it, so that
    attributions are those of the columns or pixels as they were measured. It takes a
    tensor of samples of the shape that ``fit`` was given, in batches of any size, and
    returns ``score_samples`` of them, of shape (n_samples,) and type float64, up to
    rounding. Images of type uint8 may be given as floats from 0 to 255, which can have
    gradients. The sign is that of ``score_samples``: what raises the module's output
    makes a sample more normal.

    The module is in evaluation mode, a copy of the networks on the device of the
    detector: neither a later ``fit`` nor a use of the module changes the other. Its
    parameters need no gradient.

    Parameters
    ----------
    detector : BaseDeepDetector or ConformalDetector
        A fitted detector of this package, or a :class:`ConformalDetector` around one,
        with a single calibration set: ``calibration`` a float or "prefit".

    Returns
    -------
    torch.nn.Module
        Maps samples, a tensor of shape (n_samples, ...), to scores (n_samples,). A
        sample with NaN, which the detector refuses, has the lowest number of float32.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the detector is not fitted.
    TypeError
        If it is no detector of this package.
    ValueError
        If a :class:`ConformalDetector` has several detectors.

    See Also
    --------
    explain : Contributions of columns, for any detector.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from skanomaly import HistoryAD, score_module
    >>> X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    >>> detector = HistoryAD(max_epochs=1, detector_epochs=1).fit(X)
    >>> module = score_module(detector)
    >>> samples = torch.tensor(X[:2], requires_grad=True)
    >>> module(samples).requires_grad
    True

    Attributions by captum, for the anomaly score:

    >>> from captum.attr import IntegratedGradients  # doctest: +SKIP
    >>> attributor = IntegratedGradients(lambda x: -module(x))  # doctest: +SKIP
    >>> usual = samples.detach().median(0, keepdim=True).values  # doctest: +SKIP
    >>> attributor.attribute(samples, baselines=usual)  # doctest: +SKIP
    """
    inner = _inner(detector)
    inner._validate_params()
    return ScoreModule(_copied(inner, inner.net_.device)).eval().requires_grad_(False)


# Checks -----------------------------------------------------------------------------


def _inner(detector: Any) -> BaseDeepDetector:
    """Return the detector whose networks are to be used, after checks."""
    given = type(detector).__name__
    if isinstance(detector, ConformalDetector):
        check_is_fitted(detector)
        n = len(detector.estimators_)
        if n > 1:
            raise ValueError(
                f"{given} has {n} detectors, one for each fold, and a file holds one: "
                "fit with a share of the samples, such as calibration=0.2."
            )
        (detector,) = detector.estimators_
        given = f"{given} around {type(detector).__name__}"
    if not isinstance(detector, BaseDeepDetector):
        raise TypeError(
            f"{given} is no detector of skanomaly. Of a pipeline, give the detector, "
            "pipeline[-1]: the samples of the file or the module are then those that "
            "the steps before it return."
        )
    check_is_fitted(detector)
    return detector


def _check_place(path: str | PathLike[str]) -> None:
    """Refuse folders, and files in folders that do not exist, before all work."""
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise IsADirectoryError(f"{path} is a folder.")
    if not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(f"{path} is in a folder that does not exist.")


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ImportError(
            f"export_onnx needs {error.name}, which the extra installs: "
            "python -m pip install 'skanomaly[onnx]'."
        ) from error
    return onnx


# The graph --------------------------------------------------------------------------


class _Range(NamedTuple):
    """The range of the training data, and the deduction beyond it, as tensors."""

    low: Tensor
    high: Tensor
    unit: Tensor
    median: float
    spread: float

    @classmethod
    def of(cls, detector: BaseDeepDetector) -> _Range | None:
        """Return that of a detector; None if there is none, as in old files."""
        if not hasattr(detector, "_range"):
            return None
        low, high, unit = map(_double, detector._range)
        return cls(low, high, unit, *map(float, detector._usual_scores))

    def excess(self, rows: Tensor) -> Tensor:
        """Return the distance of each sample beyond, as :class:`ValueRange` does."""
        x = rows.double()
        far = torch.maximum(self.low - x, x - self.high) / self.unit
        return far.flatten(1).amax(1).clamp(min=0)

    def cut(self, rows: Tensor) -> Tensor:
        """Return samples with values clipped at the bounds."""
        return torch.clamp(rows.double(), self.low, self.high).to(rows.dtype)

    def lowered_beyond(self, scores: Tensor, inside: Tensor, excess: Tensor) -> Tensor:
        """Lower the scores of samples beyond, as :func:`lowered_beyond` does."""
        kept = torch.minimum(scores, inside)
        kept = kept - excess.clamp(max=1) * (kept - self.median).clamp(min=0)
        # Rounded, since the last bit of a logarithm depends on the batch: see below.
        deduction = self.spread * torch.log1p(excess).float().double()
        return (kept - deduction).clamp(min=-_LARGEST)


class ScoreModule(nn.Module):
    """Maps raw samples to scores.

    Parameters
    ----------
    detector : BaseDeepDetector
        A fitted detector, whose networks are used on their device.
    """

    def __init__(self, detector: BaseDeepDetector):
        super().__init__()
        self.networks = nn.ModuleDict(_modules(detector))  # so that weights have names
        self.score_batch = detector._score_batch
        self.row_shape = tuple(detector._row_shape)
        self.takes_bytes = _takes_bytes(detector)
        with torch.device(detector.net_.device):
            self.scaled = _scaling(detector.scaler_, self.takes_bytes)
            self.range = None if self.takes_bytes else _Range.of(detector)

    def forward(self, X: Tensor) -> Tensor:
        """Return the score of each sample, (n,)."""
        rows = (X.reshape(-1, *self.row_shape) if X.ndim == 2 else X).float()
        if self.takes_bytes:
            return self._in_range(rows)
        # Not by the scores: a maximum over columns drops NaN in runtimes.
        missing = rows.isnan().flatten(1).any(1)
        return torch.where(missing, -_LARGEST, self._in_range(rows))

    def _in_range(self, rows: Tensor) -> Tensor:
        if self.range is None:
            # Runtimes multiply a single row by another kernel than two or more.
            return self._scores(torch.cat([rows, rows[:1]]))[:-1]
        # One pass for the samples and the clipped samples: each network stands in the
        # file once.
        both = self._scores(torch.cat([rows, self.range.cut(rows)]))
        scores, inside = both.reshape(2, -1)
        return self.range.lowered_beyond(scores, inside, self.range.excess(rows))

    def _scores(self, rows: Tensor) -> Tensor:
        scores = self.score_batch(self.scaled(rows)).double()
        return torch.where(scores.abs() <= _LARGEST, scores, -_LARGEST)


class _Graph(nn.Module):
    """Maps raw samples and a threshold to the outputs of the file.

    Parameters
    ----------
    detector : BaseDeepDetector
        A fitted detector, on the host.
    calibration_scores : ndarray of shape (n_calibration,) or None
        For p-values, in ascending order.
    """

    def __init__(
        self,
        detector: BaseDeepDetector,
        calibration_scores: NDArray[np.float64] | None = None,
    ):
        super().__init__()
        self.score = ScoreModule(detector)
        self.calibration_scores: Tensor | None = None
        if calibration_scores is not None:
            self.calibration_scores = _double(calibration_scores)

    def forward(self, X: Tensor, offset: Tensor) -> dict[str, Tensor]:
        """Return score, decision, label and perhaps p-value of each sample."""
        score = self.score(X)
        decision = torch.where(offset.isneginf(), _ranked(score), score - offset)
        outputs = {
            "score": score,
            "decision": decision,
            "label": torch.where(decision < 0, -1, 1),
        }
        if self.calibration_scores is not None:
            n = len(self.calibration_scores)
            rank = torch.bucketize(score, self.calibration_scores, right=True)
            outputs["p_value"] = (1 + rank).double() / (n + 1)
        return outputs

    def example(self, flat: bool) -> tuple[Tensor, Tensor]:
        """Return inputs of the right shapes and types."""
        dtype = torch.uint8 if self.score.takes_bytes else torch.float32
        rows = torch.zeros(_TRACED, *self.score.row_shape, dtype=dtype)
        return rows.flatten(1) if flat else rows, torch.zeros(1, dtype=torch.float64)


def _ranked(scores: Tensor) -> Tensor:
    """Map scores to positive numbers, as :func:`ranked_above_zero` does."""
    return torch.where(scores > 0, 1 + scores, 1 / (1 - scores.clamp(max=0)))


def _takes_bytes(detector: BaseDeepDetector) -> bool:
    """Return whether a detector was fitted on images of bytes."""
    if isinstance(detector.scaler_, ImageScaler):
        return detector.scaler_.bytes_
    if not (detector._kind.has_channels and hasattr(detector, "_range")):
        return False
    low, high, _ = detector._range  # without scaling, they alone tell
    return bool(np.all(low == 0) and np.all(high == 255))


def _scaling(scaler: Any, takes_bytes: bool) -> Scaling:
    """Return the scaling of raw samples to float32, step by step as detectors do it."""
    if scaler is None:
        return Tensor.float
    if isinstance(scaler, StandardScaler):
        mean, scale = _double(scaler.mean_).float(), _double(scaler.scale_).float()
        return partial(_standardised, mean=mean, scale=scale)
    scale, shift = _double(scaler.scale_), _double(scaler.min_)
    if isinstance(scaler, MinMaxScaler):
        return partial(_to_range_of_columns, scale=scale, shift=shift)
    if takes_bytes:
        return partial(_to_range, scale=scale.float(), shift=shift.float())
    clip = None if scaler.clip_ is None else [_double(bound) for bound in scaler.clip_]
    return partial(_to_range_of_channels, scale=scale, shift=shift, clip=clip)


def _standardised(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (x - mean) / scale


def _to_range_of_columns(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return ((x.double() * scale).float().double() + shift).float()


def _to_range(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * scale + shift


def _to_range_of_channels(
    x: Tensor, scale: Tensor, shift: Tensor, clip: list[Tensor] | None
) -> Tensor:
    x = x.double() if clip is None else torch.clamp(x.double(), *clip)
    return (x * scale + shift).float()


def _double(values: Any) -> Tensor:
    return torch.as_tensor(np.array(values, np.float64))


# The networks -----------------------------------------------------------------------


def _modules(detector: BaseDeepDetector) -> dict[str, nn.Module]:
    return {
        name: value
        for name, value in vars(detector.net_).items()
        if isinstance(value, nn.Module)
    }


def _on_host(detector: BaseDeepDetector) -> BaseDeepDetector:
    """Return a detector whose networks are on the host: a copy if they are not."""
    if torch.device(detector.net_.device).type == "cpu":
        return detector
    return _copied(detector, "cpu")


def _copied(detector: BaseDeepDetector, device: str) -> BaseDeepDetector:
    """Return a detector with a copy of the networks, on a device."""
    other, net = shallow_copy(detector), shallow_copy(detector.net_)
    # In one copy, since networks may refer to each other.
    copies = {
        name: module.to(device) for name, module in deepcopy(_modules(detector)).items()
    }
    net.__dict__.update(copies, device=device)
    other.net_ = net
    return other


def _model(
    onnx: Any, detector: BaseDeepDetector, calibration: NDArray[np.float64] | None
) -> Any:
    """Return the graph of a detector as a model of ONNX, without metadata."""
    graph = _Graph(detector, calibration).eval()
    inputs = graph.example(flat=detector._fitted_ndim == TABLE.ndim)
    # ADRA merges weights in the first pass, and keeps them: constants of the graph.
    with detector._computing("cpu"), torch.no_grad(), detector._caching(), _quiet():
        names = list(graph(*inputs))
        try:
            program = torch.export.export(
                graph,
                inputs,
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC}, None),
                strict=False,
            )
            exported = torch.onnx.export(
                program.run_decompositions(_by_row()),
                input_names=["X", "offset"],
                output_names=names,
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            raise ValueError(_refusal(graph, error)) from error
    assert exported is not None  # as it would be if it were written to a file
    model = exported.model_proto
    _clean(model)
    onnx.checker.check_model(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's notes, on packages that it lacks and its own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _clean(model: Any) -> None:
    """Remove notes of the exporter, such as paths of sources, and name the batch."""
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    graph.name = model.producer_name = "skanomaly"
    model.producer_version = __version__
    for value in (graph.input[0], *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n_samples"


# Errors -----------------------------------------------------------------------------


def _refusal(graph: _Graph, error: BaseException) -> str:
    """Return a message on a network that torch cannot export."""
    names = {module: name for name, module in graph.score.networks.named_modules()}
    active = [module for module in _modules_in(error, graph) if module in names]
    own = [module for module in active if _is_foreign(module)]
    if not active:  # a constant size shows when all of them have been traced
        own = list({type(m): m for m in names if _is_foreign(m)}.values())
    found = (own or active)[-1:] if active else own
    named = " or ".join(f"{type(m).__name__} ({names[m]})" for m in found)
    while error.__cause__ is not None:
        error = error.__cause__
    reason = str(error).strip().partition("\n")[0]
    return (
        f"torch cannot export {named or 'the networks'}. {reason} -- A network can be "
        "exported if it has no branches on the values of tensors, uses neither NumPy "
        "nor .item(), and takes any number of samples: x.shape[0], not len(x)."
    )


def _is_foreign(module: nn.Module) -> bool:
    """Return whether a module is neither of torch nor of this package."""
    return type(module).__module__.partition(".")[0] not in ("torch", __package__)


def _modules_in(error: BaseException | None, graph: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that computed, or were translated, when an error occurred."""
    if error is None:
        return
    yield from _modules_in(error.__cause__ or error.__context__, graph)
    trace = error.__traceback__
    while trace is not None:
        for value in trace.tb_frame.f_locals.copy().values():
            if isinstance(value, torch.fx.Node):
                inside = value.meta.get("nn_module_stack", {}).values()
                for name, _ in inside:
                    yield graph.get_submodule(name)
            elif isinstance(value, nn.Module):
                yield value
        trace = trace.tb_next


# Rows -------------------------------------------------------------------------------

# onnxruntime adds the numbers of a sample in an order that depends on their place in
# memory, and computes the last numbers of an array by another function than those
# before. In other forms the result for a sample does not depend on the other samples:
# a product with ones is a sum, and double precision leaves no difference in single.


def _by_row() -> dict[Any, Callable[..., Any]]:
    """Return other forms of operators, of the same results in any batch."""
    aten = torch.ops.aten
    return {
        aten.sum.dim_IntList: _sum,
        aten.mean.dim: _mean,
        aten.baddbmm.default: _baddbmm,
        aten.log.default: _log,
        aten.softplus.default: _softplus,
    }


def _sum(
    x: Tensor,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """Sum over the last axes by a product; sums over others are done as usual."""
    axes = _axes(x, dim)
    n = x.ndim - len(axes)
    if axes[0] != n or x.dtype != torch.float32 or dtype not in (None, x.dtype):
        return NotImplemented
    flat = x.reshape(-1, math.prod(x.shape[n:]))
    total = flat @ flat.new_ones(flat.shape[1], 1)
    return total.reshape(*x.shape[:n], *[1] * len(axes) * keepdim)


def _mean(x: Tensor, dim: Sequence[int] | None = None, *rest: Any, **kw: Any) -> Any:
    total = _sum(x, dim, *rest, **kw)
    if total is NotImplemented:
        return NotImplemented
    return total / math.prod(x.shape[axis] for axis in _axes(x, dim))


def _axes(x: Tensor, dim: Sequence[int] | None) -> list[int]:
    return sorted(axis % x.ndim for axis in dim or range(x.ndim))


def _baddbmm(
    bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    """Multiply by two columns at least: products with one depend on the batch."""
    if weight.shape[2] > 1 or (beta, alpha) != (1, 1):
        return NotImplemented
    return torch.bmm(x, F.pad(weight, (0, 1)))[..., :1] + bias


def _log(x: Tensor) -> Any:
    return x.double().log().float() if x.dtype == torch.float32 else NotImplemented


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Any:
    if x.dtype != torch.float32:
        return NotImplemented
    z = x * beta
    usual = (_log(1 + (-z.abs()).exp()) + z.clamp(min=0)) / beta
    return torch.where(z > threshold, x, usual)
