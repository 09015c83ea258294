"""The contract that every detector keeps, written once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager, nullcontext
from functools import partial
from math import ceil, prod
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ._input import FEWEST, InputMixin
from ._parameters import CommonParameters
from ._version import __version__
from .engine import AlternatingNet, Bar, DeviceDataset, ProgressBar
from .exceptions import (
    ConstantScoresWarning,
    FitInterruptedWarning,
    TrainingDivergedError,
)
from .networks import Ensemble, Role, built_for
from .utils._advice import advice
from .utils._device import resolve_device
from .utils._kinds import TABLE, ByKind
from .utils._memory import run_or_recall
from .utils._process import one_thread, single_precision, without_modes
from .utils._random import own_random_state
from .utils._scaling import fit_by_parts, make_scaler
from .utils._sklearn_compat import fit_context
from .utils._sklearn_types import BaseEstimator, OutlierMixin
from .utils._state import of_one_state, twin
from .utils._warnings import warn

__all__ = ["BaseDeepDetector"]

_CLIP = 10.0  # where scaled columns are cut


class FittedAttributes:
    """Attributes that ``fit`` sets, apart from the parameters, which are fields."""

    net_: AlternatingNet


class BaseDeepDetector(
    CommonParameters, FittedAttributes, InputMixin, OutlierMixin, BaseEstimator, ABC
):
    """Base of all detectors: validation, scaling, scoring, thresholds.

    A child declares its own parameters, and writes :meth:`_make_nets`, :meth:`_train`
    and :meth:`_score_batch`; it says in ``_auto_values`` what "auto" stands for.
    """

    # What a child writes ------------------------------------------------------------

    #: Meanings of "auto" by kind of data and parameter; a number of steps for epochs.
    #: The detector takes the kinds that are named here.
    _auto_values: ClassVar[ByKind]
    #: Settings that no parameter changes, by kind of data.
    _settings: ClassVar[ByKind] = {}
    #: Whether ``fit`` reads which rows are known to be anomalous.
    _reads_labels = False
    #: Classes of fitted attributes, besides nets and scalers, that a file may hold.
    _kept_classes: ClassVar[tuple[type, ...]] = ()

    #: Modules of the nets that training does not change, and others may share.
    _frozen_modules: ClassVar[tuple[str, ...]] = ()
    #: Parameters that ``fit`` alone reads, and a file need not have.
    _only_to_fit: ClassVar[tuple[str, ...]] = ()
    #: Parameters that scaler, networks and threshold were made by: after ``fit`` they
    #: are facts. Others take effect when rows are scored, or trained on again.
    _fixed_by_fit: ClassVar[tuple[str, ...]] = (
        *("contamination", "scaling", "image_shape"),
        *("architecture", "latent_dim", "width", "n_estimators"),
    )

    #: Networks that a user may give as ``architecture``, by role.
    _roles: ClassVar[dict[str, Role]] = {}

    @abstractmethod
    def _make_nets(self, device: str, seed: int) -> dict[str, AlternatingNet]:
        """Return the untrained nets, by the name of the attribute they become."""

    @abstractmethod
    def _train(self, rows: DeviceDataset, others: DeviceDataset, seed: int) -> None:
        """Set ``net_``, and call ``_record`` after each stage.

        `others` are what the method tells apart from `rows`, on the same device:
        rows that are known to be anomalous, or those of another domain.
        """

    @abstractmethod
    def _score_batch(self, batch: Tensor) -> Tensor:
        """Return one score per row of `batch`, higher for the more normal."""

    def _nets_to_fill(self, device: str, saved: dict) -> dict[str, AlternatingNet]:
        """Return nets for the weights of a file; `saved` is what it holds of each."""
        return self._make_nets(device, seed=0)

    def _auto_offset(self, scores) -> float:
        """Return the threshold that ``contamination="auto"`` stands for."""
        low, middle = np.percentile(scores, [25, 50])
        return float(middle - 5 * (middle - low))

    # What a user calls --------------------------------------------------------------

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Train the detector.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, c, h, w)
            At least two rows of finite numbers.
        y : array-like of shape (n,), default=None
            -1 marks a row that is known to be anomalous, +1 a normal one, 0 one of
            which nothing is known. Detectors whose description does not speak of
            known anomalies ignore it, and take all rows as normal.

        Returns
        -------
        self
            The fitted detector.

        Raises
        ------
        ValueError
            If `X`, `y` or a parameter is not what it has to be. Nothing has changed
            then.
        TrainingDivergedError
            If a loss or score became infinite or NaN. Nothing has changed then.
        KeyboardInterrupt
            If the training is interrupted from the keyboard, unless ``on_interrupt``
            is "keep". Nothing has changed then.

        Warns
        -----
        ConstantScoresWarning
            If all training rows have the same score.
        PixelRangeWarning
            If a few float images have pixels far beyond those of all others.
        """
        with self._built_aside() as new:
            X = new._check_rows(X, reset=not new._goes_on(), fewest=FEWEST)
            new._fit(X, new._check_labels(y, len(X)))
        return self

    def _fit(self, X, apart, X_apart=None):
        """Train on the rows of X, told apart from others: X[apart], or X_apart."""
        device = resolve_device(self.device)
        seed = own_random_state(self.random_state).randint(2**31 - 1)
        self._row_shape = X.shape[1:]
        if self._goes_on():
            self._check_pixels(X)
        else:
            self.scaler_ = make_scaler(self.scaling, self._kind)
            rows = self._rows_to_scale_by(X, apart, X_apart)
            self._report_pixels(fit_by_parts(self.scaler_, *rows))
        with self._computing(device), self._advising():
            rows = DeviceDataset(X, self.scaler_, device)
            rows, others = (
                rows.subset(torch.from_numpy(np.flatnonzero(part)).to(device))
                for part in (~apart, apart)
            )
            if X_apart is not None:
                others = DeviceDataset(X_apart, self.scaler_, device)
            self._check_scaled(rows, others)
            self.history_ = self.history_ if self._goes_on() else []
            self.interrupted_ = False
            self._train(rows, others, seed)
            scores = self._score_rows(rows)
            self._check_finite(scores)
            self._set_threshold(self._learn_range(X, apart, X_apart, scores))
            self._reach_threshold()

    @contextmanager
    def _advising(self):
        """Add to an error of divergence what would help, by the settings in force."""
        try:
            yield
        except TrainingDivergedError as error:
            given, defaults = self.get_params(deep=False), type(self)().get_params()
            rates = {name: self._value(name) for name in given if name.endswith("lr")}
            hint = advice(given, defaults, rates)
            raise TrainingDivergedError(f"{error} {hint}") from error

    def _rows_to_scale_by(self, X, apart, X_apart):
        """Return rows, and which of them the scaling is learned from."""
        return X, ~apart

    @of_one_state
    def score_samples(self, X):
        """Return how normal each row is.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, c, h, w)
            Rows like those of ``fit``.

        Returns
        -------
        ndarray of shape (n,), float64
            Higher is more normal. A row's score does not depend on the other rows.
            Rows beyond the range of the training rows are not more normal for it.
            Rows so far out that nothing finite comes of them have the lowest number
            of float32.
        """
        X = self._checked_rows(X)
        return self._kept_in_range(self._scores_of(X), X)

    @of_one_state
    def decision_function(self, X):
        """Return ``score_samples(X) - offset_``: negative for outliers.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, c, h, w)
            Rows like those of ``fit``.

        Returns
        -------
        ndarray of shape (n,), float64
            Negative for outliers, positive for inliers.
        """
        scores = self.score_samples(X)
        self._check_contamination()
        return scores - self.offset_

    @of_one_state
    def predict(self, X):
        """Return -1 for outliers and +1 for inliers.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, c, h, w)
            Rows like those of ``fit``.

        Returns
        -------
        ndarray of shape (n,), int
            -1 where ``decision_function(X)`` is negative, else +1.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def fit_predict(self, X, y=None, **fit_params):
        """Train the detector, and tell the outliers among the rows it was trained on.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, c, h, w)
            Rows to train on.
        y : array-like of shape (n,), default=None
            As in ``fit``: -1 marks a row that is known to be anomalous.
        **fit_params : dict
            What else ``fit`` takes.

        Returns
        -------
        ndarray of shape (n,), int
            -1 for outliers, +1 for inliers.
        """
        # That of OutlierMixin leaves y out: known anomalies would count as normal.
        return self.fit(X, y, **fit_params).predict(X)

    # Training -----------------------------------------------------------------------

    def _goes_on(self):
        return self.warm_start and hasattr(self, "offset_")

    def _given(self, name):
        """Return a parameter; NumPy's numbers as Python's own, which torch wants."""
        value = getattr(self, name)
        return value.item() if isinstance(value, np.generic) else value

    def _value(self, name):
        """Return a parameter, or the meaning of "auto" for this kind of data."""
        value = self._given(name)
        is_auto = isinstance(value, str) and value == "auto"
        return self._setting(name) if is_auto else value

    def _setting(self, name):
        """Return the meaning of "auto", or a setting that no parameter changes."""
        return self._kind.setting(name, self._auto_values, self._settings)

    def _plan(self, name, n_rows, length=None, *, batch_size=None, steps=None):
        """Return the epochs, and the steps in each, of one stage.

        "auto" stands for a number of steps, since rows may be few or many, in epochs
        of `length` steps; by default in passes over the rows, or one part of a pass.
        """
        epoch_steps = max(n_rows // (batch_size or self._value("batch_size")), 1)
        epochs = self._given(name)
        if epochs == "auto":
            steps = self._value(name) if steps is None else steps
            epoch_steps = length or min(epoch_steps, steps)
            epochs = ceil(steps / epoch_steps)
        return {"max_epochs": epochs, "epoch_steps": epoch_steps}

    @contextmanager
    def _built_aside(self):
        """Give a twin to train, which in the end takes the place of this detector.

        All in one step: after an error nothing has changed, and who scores in another
        thread sees the detector as it was, or as it is then.
        """
        new = twin(self)
        yield new
        self.__dict__ = vars(new)

    def _nets_to_train(self, device, seed):
        """Return new nets, which for a warm start go on from those that there are."""
        nets = self._make_nets(device, seed)
        if self._goes_on():
            for name, net in nets.items():
                net.resume(getattr(self, name))
        return nets

    def _engine(self, device, seed):
        """Return the settings that every net takes."""
        return {
            "batch_size": self._value("batch_size"),
            "seed": seed,
            "device": device,
            "precision": self.precision,
            "on_interrupt": self.on_interrupt,
        }

    def _cached(self, stage, *arguments, callbacks):
        """Return ``stage(*arguments)``, from `memory` where it is there already.

        The first thing that a stage returns is its net.
        """
        # What callbacks of the user do to a stage is in no key.
        memory = None if self.callbacks else self.memory
        result = run_or_recall(memory, __version__, stage, arguments, callbacks)
        # What is recalled comes without; later stages of this fit go by it.
        result[0].on_interrupt = self.on_interrupt
        return result

    @staticmethod
    def _hold_out(rows, seed, most=None):
        """Return nine tenths of the rows to train, and one, or `most`, to validate."""
        order = np.random.default_rng(seed).permutation(len(rows))
        index = torch.from_numpy(order).to(rows.device)
        n_held_out = min(max(len(rows) // 10, 1), most or len(rows))
        return rows.subset(index[n_held_out:]), rows.subset(index[:n_held_out])

    @contextmanager
    def _progress(self, *plans):
        """Give a function that returns the callbacks of the stage it is told."""
        n_steps = sum(plan["max_epochs"] * plan["epoch_steps"] for plan in plans)
        own = list(self.callbacks or [])
        if not self.verbose:
            yield lambda stage: own
            return
        with Bar(type(self).__name__, n_steps) as bar:
            yield lambda stage: [*own, ProgressBar(bar, stage)]

    def _family(self):
        """Return "mlp" or "conv", after checks of `architecture` and image size."""
        shape, wanted = self._row_shape, self.architecture
        own = self._own_networks()
        if unknown := sorted(set(own) - set(self._roles)):
            raise ValueError(
                f"architecture has {unknown}; it may have {list(self._roles)}."
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
                f"architecture={wanted!r} does not fit rows of shape {shape}: "
                f"'conv' takes images (see `image_shape`), 'mlp' takes tables."
            )
        if min(shape[1:], default=kind.least_side) < kind.least_side:
            sides = " x ".join(map(str, shape[1:]))
            raise ValueError(
                f"{kind.name.capitalize()} of {sides} {kind.units}: each number has to "
                f"be at least {kind.least_side}. Smaller ones make a good table: "
                "X.reshape(len(X), -1)."
            )
        return kind.family

    def _side_by_side(self, n_columns=2048):
        """Return `n_estimators`; "auto" is fewer where samples are large."""
        if self.n_estimators != "auto":
            return self._given("n_estimators")
        return min(max(n_columns // prod(self._row_shape), 1), self._kind.n_estimators)

    def _bounded(self):
        """Return whether scaled data have the range [-1, 1]."""
        used = self._kind.scaling if self.scaling == "auto" else self.scaling
        return used == "minmax"

    def _clipping(self):
        """Return what cuts scaled columns, lest one wild value make a row's error."""
        bound = _CLIP if self.scaling is not None else torch.inf
        return partial(torch.clamp, min=-bound, max=bound)

    def _builders(self, n_estimators):
        """Return the builders of the networks by role, each for a whole ensemble."""
        if self._family() == "mlp":
            builders = self._table_builders(n_estimators)
        else:
            builders = _ensembles(n_estimators, self._conv_builders())
        sizes = self._network_shape(), self._latent_dim()
        own = {
            name: partial(built_for, name, build, self._roles[name], *sizes)
            for name, build in self._own_networks().items()
        }
        return builders | _ensembles(n_estimators, own)

    def _table_builders(self, n_estimators):
        """Return the builders of the networks for tables, each for a whole ensemble."""
        raise NotImplementedError

    def _conv_builders(self):
        """Return the builders of the convolutional networks, each for one member."""
        raise NotImplementedError

    def _network_shape(self):
        """Return the shape of a sample as the networks take it."""
        return self._row_shape

    def _latent_dim(self):
        """Return the length of a latent code."""
        return self._value("latent_dim")

    def _own_networks(self):
        """Return the networks that the user gives, by role."""
        return self.architecture if isinstance(self.architecture, dict) else {}

    def _record(self, **nets):
        """Add to ``history_`` what the last run of each net, given by stage, left."""
        if any(net.interrupted_ for net in nets.values()):
            self.interrupted_ = True
            warn(
                "Training was interrupted; the detector is what it was at that time.",
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

    def _compute(self, function, X):
        """Return what `function` makes of each row of X, batch by batch."""
        return self._computed(function, self._checked_rows(X))

    def _checked_rows(self, X):
        check_is_fitted(self)
        self._validate_params()  # some may be changed after ``fit``
        X = self._check_rows(X, reset=False)
        self._check_pixels(X)
        return X

    def _computed(self, function, X):
        with self._computing(self.net_.device), self._at_rest():
            rows = DeviceDataset(X, self.scaler_, self.net_.device, max_bytes=0)
            return self._map_rows(function, rows, self._given_shape())

    @contextmanager
    def _computing(self, device):
        """Have torch compute as detectors expect it."""
        # Small networks are faster with one thread.
        threads = one_thread() if self._kind.family == "mlp" else nullcontext()
        with single_precision(), threads, without_modes(torch.device(device).type):
            yield

    def _scores_of(self, X):
        """Return the scores that the networks give rows, wherever these are."""
        scores = self._computed(self._score_batch, X).astype(np.float64)
        scores[~np.isfinite(scores)] = np.finfo(np.float32).min
        return scores

    def _score_rows(self, rows):
        with self._at_rest():
            scores = self._map_rows(self._score_batch, rows, self._given_shape())
        return scores.astype(np.float64)

    def _given_shape(self):
        """Return the shape of a row as the networks are given it."""
        return self._row_shape

    def _at_rest(self):
        """Return a context in which nets may keep what all rows have in common."""
        return nullcontext()

    @staticmethod
    def _map_rows(function, rows, shape=None):
        n = len(rows)
        # Batches of one size make a row's score the same to the bit in all of them.
        size = int(np.clip(2**20 // prod(shape or rows.row_shape), 1, 256))
        parts = []
        with torch.inference_mode():
            for start in range(0, n, size):
                index = torch.arange(start, start + size).clamp_(max=n - 1)
                batch = function(rows[index.to(rows.device)])
                parts.append(batch[: n - start].numpy(force=True))
        return np.concatenate(parts)

    def _unscaled(self, rows):
        """Return scaled rows in the units and the shape of the training data."""
        if self.scaler_ is not None:
            rows = self.scaler_.inverse_transform(rows)
        is_flat = self._fitted_ndim == TABLE.ndim
        return rows.reshape(len(rows), -1) if is_flat else rows

    @staticmethod
    def _check_finite(scores):
        if not np.isfinite(scores).all():
            raise TrainingDivergedError(
                "The scores of some training rows are not finite."
            )

    def _set_threshold(self, scores):
        """Set ``offset_`` by the scores of the training rows."""
        if np.ptp(scores) == 0:
            warn(
                f"All {len(scores)} training rows have the same score: this detector "
                "tells nothing apart. Do the rows of X differ, and by more than "
                "rounding leaves of it once they are scaled?",
                ConstantScoresWarning,
            )
        if self.contamination == "auto":
            self.offset_ = self._auto_offset(scores)
        else:
            self.offset_ = float(np.quantile(scores, self.contamination))
        self._set_by = self.contamination, self.offset_

    def _check_contamination(self):
        """Warn if the threshold is that of another `contamination`."""
        given, offset = getattr(self, "_set_by", (self.contamination, None))
        if self.contamination != given and self.offset_ == offset:
            warn(
                f"contamination was changed to {self.contamination!r} after fit, which "
                f"alone reads it: offset_ is still that of {given!r}. Fit again, or "
                "set offset_."
            )


def _ensembles(n_estimators, builders):
    """Return builders of ensembles, from builders of members."""
    return {k: partial(Ensemble.of, n_estimators, b) for k, b in builders.items()}
