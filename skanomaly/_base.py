"""The base of all detectors: fit, scores, threshold."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from inspect import signature
from math import ceil, prod
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import Callback
from torch import Tensor

from ._batches import BatchesMixin
from ._checkpoints import CheckpointMixin
from ._input import MIN_SAMPLES, InputMixin, Split
from ._parameters import CommonParameters
from ._progress import ProgressMixin
from ._thresholds import ThresholdMixin
from ._version import __version__
from .engine import (
    AlternatingNet,
    DeviceDataset,
    begin_together,
    fail_together,
    fit_side_by_side,
    n_processes,
    stage_once,
)
from .exceptions import (
    FitInterruptedWarning,
    TrainingDivergedError,
)
from .networks import Ensemble, Role, build_checked_network
from .utils._advice import advice
from .utils._batch_invariance import map_batches
from .utils._device import resolve_device, resolve_precision
from .utils._documentation import DocumentationMixin
from .utils._kinds import IMAGE, TABLE, ByKind, Kind
from .utils._memory import run_or_recall
from .utils._process import n_threads, one_thread, single_precision, without_modes
from .utils._random import own_random_state
from .utils._scaling import fit_by_parts, make_scaler
from .utils._sklearn_compat import fit_context
from .utils._sklearn_types import BaseEstimator, OutlierMixin
from .utils._state import on_shallow_copy, shallow_copy
from .utils._warnings import warn

__all__ = ["BaseDeepDetector"]

#: Builds a network, or an ensemble of them.
Builder = Callable[..., torch.nn.Module]
#: Maps a batch of scaled samples to one result per sample.
BatchFunction = Callable[[Tensor], Tensor]

#: Common parameters that nets take too. Methods may have several learning rates.
_NET_SETTINGS = sorted(
    (CommonParameters.__annotations__.keys() & signature(AlternatingNet).parameters)
    - {"device", "lr", "precision"}
)
#: Bound of scaled columns.
_CLIP = 10.0


class FittedAttributes:
    """Types of the attributes that ``fit`` sets.

    They are declared here, since annotations in the detectors declare parameters.
    """

    net_: AlternatingNet
    history_: list[dict[str, Any]]
    n_iter_: int
    interrupted_: bool
    n_features_in_: int
    feature_names_in_: NDArray[np.object_]


class BaseDeepDetector(
    ThresholdMixin,
    CommonParameters,
    FittedAttributes,
    BatchesMixin,
    CheckpointMixin,
    ProgressMixin,
    InputMixin,
    DocumentationMixin,
    OutlierMixin,
    BaseEstimator,
):
    """Base of all detectors: validation, scaling, scoring, thresholds.

    A child declares its parameters and ``_auto_values``, and writes
    :meth:`_make_nets`, :meth:`_train` and :meth:`_score_batch`.
    """

    # Hooks of a child ---------------------------------------------------------------

    #: Values of "auto" by kind of data and parameter; for epochs, the number of steps.
    #: The detector takes the kinds of data that are keys.
    _auto_values: ClassVar[ByKind]
    #: Settings that no parameter changes, by kind of data.
    _settings: ClassVar[ByKind] = {}
    #: Kinds of data on which training in half precision is faster, on CPUs with
    #: instructions for it, and as good.
    _faster_halved: ClassVar[tuple[Kind, ...]] = (IMAGE,)
    #: Whether ``fit`` reads known anomalies from `y`.
    _reads_labels = False
    #: Classes of fitted attributes, apart from nets and scalers, that files may
    #: contain.
    _kept_classes: ClassVar[tuple[type, ...]] = ()

    #: Modules of the nets that training does not change, and detectors may share.
    _frozen_modules: ClassVar[tuple[str, ...]] = ()
    #: Parameters that ``fit`` alone reads; files may lack them.
    _only_to_fit: ClassVar[tuple[str, ...]] = ()
    #: Parameters that determine scaler, networks and threshold, and cannot be changed
    #: after ``fit``. Others take effect on scores, or on another ``fit``.
    _fixed_by_fit: ClassVar[tuple[str, ...]] = (
        *("contamination", "calibration", "scaling", "image_shape"),
        *("architecture", "latent_dim", "width", "n_estimators"),
    )

    #: Completes several fits, and trains their nets together where it can.
    _fit_side_by_side = staticmethod(fit_side_by_side)

    #: Networks that a user may give as ``architecture``, by role.
    _roles: ClassVar[dict[str, Role]] = {}

    @abstractmethod
    def _make_nets(self, device: str, seed: int) -> dict[str, AlternatingNet]:
        """Return the untrained nets by attribute name."""

    @abstractmethod
    def _train(
        self,
        rows: DeviceDataset,
        reference: DeviceDataset,
        held_out: DeviceDataset,
        seed: int,
        /,
    ) -> None:
        """Set ``net_``, and call ``_record`` after each stage.

        `reference` are the samples that the method compares `rows` with, on the same
        device: known anomalies, or samples of the source domain. `held_out` may serve
        as validation samples, see :meth:`_validation`.
        """

    @abstractmethod
    def _score_batch(self, batch: Tensor) -> Tensor:
        """Score the samples of a batch; higher is more normal."""

    def _nets_for_weights(
        self, device: str, saved: Mapping[str, Any]
    ) -> dict[str, AlternatingNet]:
        """Return nets for the weights of a file, which `saved` describes."""
        return self._make_nets(device, seed=0)

    # Public methods -----------------------------------------------------------------

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Train the detector.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, channels, height, width)
            At least two samples of finite numbers.
        y : array-like of shape (n_samples,), default=None
            -1 marks a known anomaly, +1 a normal sample, 0 an unlabelled one. Detectors
            whose description does not mention known anomalies ignore it, and take all
            samples as normal.

        Returns
        -------
        self
            The fitted detector.

        Raises
        ------
        ValueError
            If `X`, `y` or a parameter is invalid. This and the other errors leave the
            detector unchanged.
        TrainingDivergedError
            If a loss or score became infinite or NaN.
        KeyboardInterrupt
            If the training is interrupted from the keyboard, unless ``on_interrupt``
            is "keep".

        Warns
        -----
        CalibrationWarning
            If the calibration samples are too few for `contamination`.
        ConstantScoresWarning
            If all training samples have the same score.
        FalseAlarmWarning
            If the natural threshold of the method, ``contamination="auto"``, flags many
            of the calibration samples.
        PixelRangeWarning
            If a few float images have pixels far beyond those of all others.
        """
        with self._replaced_after_success(X, y) as new:
            X = new._check_rows(X, reset=not new._continues(), min_samples=MIN_SAMPLES)
            new._fit(X, new._check_labels(y, len(X)))
        return self

    def _fit(
        self,
        X: NDArray,
        is_reference: NDArray[np.bool_],
        X_reference: NDArray | None = None,
    ) -> None:
        """Train on `X`; reference samples are part of `X`, or a separate array."""
        device = resolve_device(self.device)
        seed = own_random_state(self.random_state).randint(2**31 - 1)
        seed = begin_together(seed, X, self.on_interrupt)
        self._row_shape = X.shape[1:]
        is_calibration = self._calibration_samples(~is_reference, seed)
        split = Split(X, is_reference, is_calibration, X_reference)
        with self._checkpointed(*split, seed):
            self._fit_split(split, device, seed)

    def _fit_split(self, split: Split, device: str, seed: int) -> None:
        """Train on samples, and learn the thresholds."""
        X, is_reference, is_calibration, X_reference = split
        if self._continues():
            self._check_pixels(X)
        else:
            self.scaler_ = make_scaler(self.scaling, self._kind)
            chosen = self._scaler_samples(split)
            self._report_pixels(fit_by_parts(self.scaler_, *chosen))
        with self._computing(device), self._advising():
            samples = DeviceDataset(X, self.scaler_, device)
            masks = split.is_training, is_reference, is_calibration
            rows, reference, held_out = (
                samples.subset(torch.from_numpy(np.flatnonzero(mask)).to(device))
                for mask in masks
            )
            if X_reference is not None:
                reference = DeviceDataset(X_reference, self.scaler_, device)
            self._check_scaled(rows, reference, held_out)
            self.history_ = self.history_ if self._continues() else []
            self.interrupted_ = False
            self._report_scores(lambda detector: detector._finish(rows, split))
            self._train(rows, reference, held_out, seed)
            self._check_alarms(self._finish(rows, split))

    def _finish(self, rows: DeviceDataset, split: Split) -> NDArray[np.float64]:
        """Learn range and thresholds for trained nets; return the training scores."""
        scores = self._score_rows(rows)
        self._check_finite(scores)
        scores = self._learn_range(split, scores)
        self._set_threshold(scores)
        self._widen_deduction()
        vars(self).pop("calibration_scores_", None)  # of an earlier fit
        self._label_by(scores)
        if split.is_calibration.any():
            self._calibrate(split.X[split.is_calibration])
            self._label_by(np.r_[scores, self.calibration_scores_])
        return scores

    @contextmanager
    def _advising(self) -> Iterator[None]:
        """Add advice on the parameters to a TrainingDivergedError."""
        try:
            yield
        except TrainingDivergedError as error:
            given, defaults = self.get_params(deep=False), type(self)().get_params()
            rates = {name: self._value(name) for name in given if name.endswith("lr")}
            hint = advice(given, defaults, rates)
            raise TrainingDivergedError(f"{error} {hint}") from error

    def _scaler_samples(self, split: Split) -> tuple[NDArray, NDArray[np.bool_]]:
        """Return an array, and a mask of the samples that the scaler is fitted on."""
        return split.X, split.is_training

    @on_shallow_copy
    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Score samples; higher is more normal.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, channels, height, width)
            Samples like those of ``fit``.

        Returns
        -------
        ndarray of shape (n_samples,), float64
            The score of a sample does not depend on the other samples. Values beyond
            the range of the training data never raise a score. Scores that are not
            finite become the lowest number of float32.
        """
        return self._bounded_scores(self._checked_rows(X))

    def fit_predict(
        self, X: ArrayLike, y: ArrayLike | None = None, **fit_params: Any
    ) -> NDArray[np.int64]:
        """Train the detector, and label the training samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, channels, height, width)
            Training samples.
        y : array-like of shape (n_samples,), default=None
            As in ``fit``: -1 marks a known anomaly.
        **fit_params : dict
            Further arguments of ``fit``.

        Returns
        -------
        ndarray of shape (n_samples,), int
            -1 for outliers, +1 for inliers. If `contamination` is a number, that share
            of these samples are outliers, known anomalies and source samples aside;
            their scores are often higher than those of new samples, which
            :meth:`predict` is for.
        """
        # OutlierMixin.fit_predict does not pass y: known anomalies would be normal.
        self.fit(X, y, **fit_params)
        if self.contamination == "auto":
            return self.predict(X)
        return np.where(self.score_samples(X) < self._training_offset, -1, 1)

    # Training -----------------------------------------------------------------------

    def _continues(self) -> bool:
        """Return whether ``fit`` continues an earlier one."""
        return self.warm_start and hasattr(self, "offset_")

    def _joins(self, X: ArrayLike) -> bool:
        """Return whether nets on `X` may be trained with those of other detectors.

        Only the small networks for tables gain by it. Callbacks are for one training.
        """
        ndim = len(getattr(X, "shape", np.shape(X)))
        alone = self.callbacks or self.verbose or hasattr(self, "_skl_callbacks")
        alone = alone or self.checkpoint is not None
        is_table = self.image_shape is None and ndim == TABLE.ndim
        return is_table and not (alone or self._own_networks())

    def _given(self, name: str) -> Any:
        """Return a parameter; torch needs numbers of Python instead of NumPy's."""
        value = getattr(self, name)
        return value.item() if isinstance(value, np.generic) else value

    def _value(self, name: str) -> Any:
        """Return a parameter, or the value of "auto" for this kind of data."""
        value = self._given(name)
        is_auto = isinstance(value, str) and value == "auto"
        return self._setting(name) if is_auto else value

    def _setting(self, name: str) -> Any:
        """Return the value of "auto", or a setting that no parameter changes."""
        return self._kind.setting(name, self._auto_values, self._settings)

    def _plan(
        self,
        name: str,
        n_samples: int,
        length: int | None = None,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
    ) -> dict[str, int]:
        """Return the number of epochs of a stage, and of steps per epoch.

        "auto" is a number of steps for any size of the data. They are divided into
        epochs of `length` steps, by default into passes over the samples; a stage
        shorter than a pass is one epoch.
        """
        n_rows = (batch_size or self._value("batch_size")) * n_processes()
        epoch_steps = max(n_samples // n_rows, 1)
        epochs = self._given(name)
        if epochs == "auto":
            steps = int(self._value(name)) if steps is None else steps
            epoch_steps = length or min(epoch_steps, steps)
            epochs = ceil(steps / epoch_steps)
        return {"max_epochs": epochs, "epoch_steps": epoch_steps}

    @contextmanager
    def _replaced_after_success(
        self, X: ArrayLike, y: ArrayLike | None
    ) -> Iterator[Self]:
        """Yield a copy to train, and take over its state after success.

        The detector is unchanged after an error. The state is replaced in one step: a
        thread that scores meanwhile sees either the old state or the new one.
        """
        new = shallow_copy(self)
        with new._reported(X, y), fail_together():
            yield new
        self.__dict__ = vars(new)

    def _nets_to_train(self, device: str, seed: int) -> dict[str, AlternatingNet]:
        """Return new nets; in a warm start, with the state of the fitted ones."""
        nets = self._make_nets(device, seed)
        if self._continues():
            for name, net in nets.items():
                net.resume(getattr(self, name))
        return nets

    def _engine(self, device: str, seed: int) -> dict[str, Any]:
        """Return the settings of all nets, by the names of the parameters."""
        settings = {name: self._value(name) for name in _NET_SETTINGS}
        may_halve = self._kind in self._faster_halved
        precision = resolve_precision(self.precision, device, may_halve)
        return settings | {"seed": seed, "device": device, "precision": precision}

    def _cached(
        self,
        stage: Callable[..., Any],
        *arguments: Any,
        callbacks: list[Callback] | Callable[[str], list[Callback]],
    ) -> Any:
        """Return ``stage(*arguments)``, from `memory` if it is stored there.

        The first result of a stage is its net.
        """
        if self.callbacks:
            # A user's callbacks may change the result, and are not part of the key.
            result = stage(*arguments, callbacks=callbacks)
        else:
            run = partial(run_or_recall, self._given("memory"), __version__)
            result = stage_once(run, stage, arguments, callbacks)
        # Nets from the cache lack this setting, which later stages of this fit need.
        result[0].on_interrupt = self.on_interrupt
        return result

    @staticmethod
    def _validation(
        rows: DeviceDataset, held_out: DeviceDataset, seed: int, most: int | None = None
    ) -> tuple[DeviceDataset, DeviceDataset]:
        """Return samples to train on, and samples for validation.

        These are the samples held out for calibration or, without any, a tenth of
        `rows`, `most` at most.
        """
        if len(held_out):
            return rows, held_out
        order = np.random.default_rng(seed).permutation(len(rows))
        index = torch.from_numpy(order).to(rows.device)
        n_held_out = min(max(len(rows) // 10, 1), most or len(rows))
        return rows.subset(index[n_held_out:]), rows.subset(index[:n_held_out])

    # Networks -----------------------------------------------------------------------

    def _family(self) -> str:
        """Return "mlp" or "conv", after checks of `architecture` and the image size."""
        shape, wanted = self._row_shape, self.architecture
        own = self._own_networks()
        if unknown := sorted(set(own) - set(self._roles)):
            raise ValueError(
                f"architecture has unknown roles {unknown}; it may have "
                f"{list(self._roles)}."
            )
        for role, build in own.items():
            if isinstance(build, torch.nn.Module) or not callable(build):
                raise ValueError(
                    f"architecture[{role!r}] is an instance of {type(build).__name__}, "
                    "and has to be a function that returns a new network."
                )
        kind = self._kind
        if isinstance(wanted, str) and wanted not in ("auto", kind.family):
            raise ValueError(
                f"architecture={wanted!r} does not fit samples of shape {shape}: "
                "'mlp' takes tables, 'conv' takes samples with channels, such as "
                "images (see `image_shape`)."
            )
        if min(shape[1:], default=kind.least_side) < kind.least_side:
            sides = " x ".join(map(str, shape[1:]))
            raise ValueError(
                f"{kind.name.capitalize()} of {sides} {kind.units} are too small: each "
                f"side has to be at least {kind.least_side}. Use them as a table: "
                "X.reshape(len(X), -1)."
            )
        return kind.family

    def _ensemble_size(self, n_columns: int = 2048) -> int:
        """Return `n_estimators`; "auto" is lower if samples are large."""
        given = self._given("n_estimators")
        if given != "auto":
            return int(given)
        return min(max(n_columns // prod(self._row_shape), 1), self._kind.n_estimators)

    def _bounded(self) -> bool:
        """Return whether scaled data have the range [-1, 1]."""
        used = self._kind.scaling if self.scaling == "auto" else self.scaling
        return used == "minmax"

    def _clipping(self) -> Callable[[Tensor], Tensor]:
        """Return the clipping of scaled columns, which limits single large values."""
        bound = _CLIP if self.scaling is not None else torch.inf
        return partial(torch.clamp, min=-bound, max=bound)

    def _builders(self, n_estimators: int) -> dict[str, Builder]:
        """Return the builders of the networks by role, each for a whole ensemble."""
        if self._family() == "mlp":
            builders = self._table_builders(n_estimators)
        else:
            builders = _ensembles(n_estimators, self._conv_builders())
        sizes = self._network_shape(), self._latent_dim()
        own = {
            name: partial(build_checked_network, name, build, self._roles[name], *sizes)
            for name, build in self._own_networks().items()
        }
        return builders | _ensembles(n_estimators, own)

    def _table_builders(self, n_estimators: int) -> dict[str, Builder]:
        """Return the builders of the networks for tables, each for a whole ensemble."""
        raise NotImplementedError

    def _conv_builders(self) -> dict[str, Builder]:
        """Return the builders of the convolutional networks, each for one member."""
        raise NotImplementedError

    def _network_shape(self) -> tuple[int, ...]:
        """Return the shape of an input sample of the networks."""
        return self._row_shape

    def _latent_dim(self) -> int:
        """Return the length of a latent code."""
        latent_dim: int = self._value("latent_dim")
        return latent_dim

    def _own_networks(self) -> dict[str, Builder]:
        """Return the networks of the user by role."""
        return self.architecture if isinstance(self.architecture, dict) else {}

    def _record(self, **nets: AlternatingNet) -> None:
        """Add the last run of each net to ``history_``; keywords name the stages."""
        if any(net.interrupted_ for net in nets.values()):
            self.interrupted_ = True
            warn(
                "Training was interrupted; the detector keeps the state reached so "
                "far.",
                FitInterruptedWarning,
            )
        self.history_ = self.history_ + [
            {
                "stage": row.get("event_stage", stage),
                "epoch": row["epoch"],
                "duration": row["dur"],
            }
            | {k: v for k, v in row.items() if isinstance(v, float) and k != "dur"}
            for stage, net in nets.items()
            for row in net.history[net.run_start_ :]
            if "dur" in row
        ]
        self.n_iter_ = len(self.history_)

    # Scores -------------------------------------------------------------------------

    def _compute(
        self, function: BatchFunction, X: ArrayLike, n_passes: int = 1
    ) -> NDArray[Any]:
        """Check samples, and apply a function of batches to them."""
        return self._computed(function, self._checked_rows(X), n_passes)

    def _checked_rows(self, X: ArrayLike) -> NDArray:
        check_is_fitted(self)
        self._validate_changed_params(self.net_)
        X = self._check_rows(X, reset=False)
        self._check_pixels(X)
        return X

    def _computed(
        self, function: BatchFunction, X: NDArray, n_passes: int = 1
    ) -> NDArray[Any]:
        """Apply a function; batches are smaller if it makes several passes of each."""
        with self._computing(), self._caching():
            rows = DeviceDataset(X, self.scaler_, self.net_.device, max_bytes=0)
            return self._map_rows(function, rows, (n_passes, *self._prepared_shape()))

    @contextmanager
    def _computing(self, device: str | None = None) -> Iterator[None]:
        """Set torch's precision, threads and modes for a device; None is the net's."""
        # Small networks are faster with one thread.
        threads = one_thread() if self._kind.family == "mlp" else nullcontext()
        type_of_device = torch.device(device or self.net_.device).type
        with single_precision(), threads, without_modes(type_of_device):
            yield

    def _scores_of(self, X: NDArray) -> NDArray[np.float64]:
        """Score checked samples without a correction for values out of range."""
        scores = self._computed(self._score_batch, X).astype(np.float64)
        scores[~np.isfinite(scores)] = np.finfo(np.float32).min
        return scores

    def _bounded_scores(self, X: NDArray) -> NDArray[np.float64]:
        """Score checked samples, lower where values are out of range."""
        return self._lower_beyond_range(self._scores_of(X), X)

    def _score_rows(self, rows: DeviceDataset) -> NDArray[np.float64]:
        with self._caching():
            scores = self._map_rows(self._score_batch, rows, self._prepared_shape())
        return scores.astype(np.float64)

    def _prepared_shape(self) -> tuple[int, ...]:
        """Return the shape of a sample once it is prepared for the net."""
        return self._row_shape

    def _caching(self) -> AbstractContextManager[Any]:
        """Return a context in which nets may cache results that all batches share."""
        return nullcontext()

    def _map_rows(
        self,
        function: BatchFunction,
        rows: DeviceDataset,
        shape: tuple[int, ...] | None = None,
    ) -> NDArray[Any]:
        """Apply a function of batches to all samples.

        The result of a sample is the same, to the bit, in any batch.
        """
        largest = 1024 if self._kind is TABLE else 64
        size = int(np.clip(2**20 // prod(shape or rows.row_shape), 1, largest))
        # Large networks use the threads within a batch.
        at_once = n_threads() if self._kind.family == "mlp" else 1
        return map_batches(function, rows, size, at_once)

    def _unscaled(self, rows: NDArray) -> NDArray[Any]:
        """Return scaled samples in the units and the shape of the training data."""
        if self.scaler_ is not None:
            rows = self.scaler_.inverse_transform(rows)
        is_flat = self._fitted_ndim == TABLE.ndim
        return rows.reshape(len(rows), -1) if is_flat else rows

    @staticmethod
    def _check_finite(scores: NDArray) -> None:
        if not np.isfinite(scores).all():
            raise TrainingDivergedError(
                "The scores of some training samples are not finite."
            )


def _ensembles(
    n_estimators: int, builders: Mapping[str, Builder]
) -> dict[str, Builder]:
    """Return builders of ensembles, from builders of members."""
    return {k: partial(Ensemble.of, n_estimators, b) for k, b in builders.items()}
