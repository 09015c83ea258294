"""Searches whose candidates are trained together, as members of one ensemble."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from joblib import effective_n_jobs
from sklearn import clone, get_config
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils import indexable
from sklearn.utils.metadata_routing import process_routing
from sklearn.utils.parallel import Parallel, delayed

from ..utils import _sklearn_compat as sk
from ..utils._docstring import fill_in
from ..utils._random import own_random_state
from ..utils._state import shallow_copy

if TYPE_CHECKING:
    Split = tuple[Any, Any]
    Candidates = Sequence[Mapping[str, Any]]

__all__ = ["SideBySideGridSearchCV", "SideBySideRandomizedSearchCV"]

#: Fits side by side at most, since more save no time; and numbers in all their data.
_MOST, _NUMBERS = 128, 2**27
_MEMBERS: dict[str, Any] = {
    "members_per_candidate": [sk.Interval(sk.Integral, 1, None, closed="left"), None]
}


class _SideBySideMixin:
    """For searches of scikit-learn, whose candidates it trains before they are scored.

    In a fit, ``estimator`` is replaced by one whose clones take their fitted state from
    here instead of training; all else is done by scikit-learn.
    """

    estimator: Any
    members_per_candidate: int | None
    n_jobs: int | None
    _checked_cv_orig: Any
    _training: _Training | None = None

    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Train and score all candidates, and train the best one on all samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training samples. Images are searched one by one.
        y : array-like of shape (n_samples,), default=None
            Labels, for scorers, splitters and detectors that read them.
        **params : dict
            As in scikit-learn's search: arguments of ``fit`` of the estimator, such as
            `sample_domain`, and `groups` for the splitter; with metadata routing, also
            of the scorer. Arrays of the length of `X` are divided with the samples.

        Returns
        -------
        self
            The fitted search.

        Raises
        ------
        ValueError
            If a parameter is invalid, or if all fits failed. With
            ``error_score="raise"``, the error of the first fit that failed.
        """
        new = shallow_copy(self)
        path, detector = _detector_of(self.estimator)
        if hasattr(detector, "_joins") and detector._joins(X):
            rows, labels = indexable(X, y)
            new._training = _Training(self, path, rows, labels, params)
            new.estimator, new.n_jobs = _recalling(self.estimator, new._training), 1
        super(_SideBySideMixin, new).fit(X, y, **params)  # type: ignore[misc]
        new.estimator, new.n_jobs = self.estimator, self.n_jobs
        vars(new).pop("_training", None)
        self.__dict__ = vars(new)
        return self

    def _run_search(
        self, evaluate_candidates: Callable[..., Any], *, callback_ctx: Any = None
    ) -> None:
        evaluate = partial(self._evaluate, evaluate_candidates)
        # Before scikit-learn 1.9, searches have no callbacks.
        context = {} if callback_ctx is None else {"callback_ctx": callback_ctx}
        super()._run_search(evaluate, **context)  # type: ignore[misc]

    def _evaluate(
        self,
        evaluate_candidates: Callable[..., Any],
        candidate_params: Any,
        cv: Any = None,
        more_results: Any = None,
        **options: Any,
    ) -> Any:
        """Train candidates, let scikit-learn score them, and return its results."""
        candidates, training = list(candidate_params), self._training
        together, seconds = [False] * len(candidates), 0.0
        if training is not None:
            cv = training.splits(cv or self._checked_cv_orig)
            together, seconds = training.train(candidates, cv.pairs)
        more = {**(more_results or {}), "side_by_side": together}
        results = evaluate_candidates(candidates, cv=cv, more_results=more, **options)
        # Otherwise it is the time of taking the results over.
        results["mean_fit_time"][len(results["params"]) - len(candidates) :] += seconds
        return results


class _Training:
    """The training of the candidates of a search, and the fits that wait to be scored.

    Parameters
    ----------
    search : GridSearchCV or RandomizedSearchCV
        The search.
    path : str
        Prefix of the parameters of the detector in the estimator.
    X, y : array-like
        Samples and labels.
    params : dict
        Arguments of ``fit`` of the search.
    """

    def __init__(self, search: Any, path: str, X: Any, y: Any, params: Any):
        self.X, self.y, self.n_jobs = X, y, search.n_jobs
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(search, "fit", **params)
            self.fit_params = routed.estimator.fit
            self.split_params = routed.splitter.split
        else:
            groups = params.get("groups")
            self.split_params = {} if groups is None else {"groups": groups}
            self.fit_params = {k: v for k, v in params.items() if k != "groups"}
        self.estimator = clone(search.estimator)
        self.fixed: dict[str, Any] = {}
        members = search.members_per_candidate
        most = self.estimator.get_params()[f"{path}n_estimators"]
        if members is not None:
            known = isinstance(members, int) and isinstance(most, int)
            self.fixed[f"{path}n_estimators"] = min(members, most) if known else members
        if self.estimator.get_params()[f"{path}random_state"] is None:
            seed = own_random_state(None).randint(2**31 - 1)
            self.fixed[f"{path}random_state"] = seed
        self.fitted: deque[Any] = deque()

    def splits(self, cv: Any) -> _Splits:
        """Draw the splits, once for all that follows."""
        return _Splits(list(cv.split(self.X, self.y, **self.split_params)))

    def train(
        self, candidates: Candidates, splits: Sequence[Split]
    ) -> tuple[list[bool], float]:
        """Train all candidates on all training parts.

        Returns
        -------
        list of bool
            Whether all fits of a candidate were trained together with others.
        float
            Seconds, divided by the number of fits.
        """
        start = perf_counter()
        fits = [
            partial(_fitted, self.estimator, {**self.fixed, **candidate}, *part)
            for part in (self._part(train) for train, _ in splits)
            for candidate in candidates
        ]
        _, detector = _detector_of(self.estimator)
        n_parts = min(effective_n_jobs(self.n_jobs), len(fits))
        bounds = np.linspace(0, len(fits), n_parts + 1).astype(int)
        parts = Parallel(n_jobs=self.n_jobs)(
            delayed(detector._fit_side_by_side)(fits[begin:end], self._most())
            for begin, end in pairwise(bounds)
        )
        outcomes = [outcome for part in parts for outcome in part]
        # scikit-learn takes all splits of a candidate in turn.
        by_candidate = [outcomes[k :: len(candidates)] for k in range(len(candidates))]
        self.fitted.extend(one.result for rows in by_candidate for one in rows)
        together = [all(one.n_together != 1 for one in rows) for rows in by_candidate]
        return together, (perf_counter() - start) / max(len(fits), 1)

    def _most(self) -> int:
        """Return the number of fits side by side, each with its copy of the data."""
        return int(np.clip(_NUMBERS // max(np.size(self.X), 1), 1, _MOST))

    def _part(self, train: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Return samples, labels and arguments of ``fit`` of a training part."""
        X = sk.safe_indexing(self.X, train)
        y = None if self.y is None else sk.safe_indexing(self.y, train)
        return X, y, sk.sliced_params(self.X, self.fit_params, indices=train)


class _Splits:
    """Splits that were drawn before, as a splitter.

    Parameters
    ----------
    pairs : list of (train, test)
        The indices of the parts.
    """

    def __init__(self, pairs: list[Split]):
        self.pairs = pairs

    def split(self, *arguments: Any, **params: Any) -> Iterator[Split]:
        """Return the splits."""
        return iter(self.pairs)


def _detector_of(estimator: Any) -> tuple[str, Any]:
    """Return the last step of pipelines, and the prefix of its parameters."""
    path = ""
    while isinstance(estimator, Pipeline):
        name, estimator = estimator.steps[-1]
        path += f"{name}__"
    return path, estimator


def _fitted(
    estimator: Any, params: Mapping[str, Any], X: Any, y: Any, fit_params: Any
) -> Any:
    """Return a fitted clone."""
    one = clone(estimator).set_params(**clone(dict(params), safe=False))
    # A y of None would be an argument that some pipelines refuse.
    return one.fit(X, **fit_params) if y is None else one.fit(X, y, **fit_params)


def _recalling(estimator: Any, training: _Training) -> Any:
    """Return a clone that, and whose clones, take the next fitted state in ``fit``."""
    one = clone(estimator)
    one.__sklearn_clone__ = partial(_recalling, estimator, training)
    one.fit = partial(_recall, one, training)
    return one


def _recall(
    estimator: Any, training: _Training, X: Any, y: Any = None, **params: Any
) -> Any:
    """Take the next fitted state; train when all are taken: it is the refit."""
    del estimator.fit, estimator.__sklearn_clone__
    if not training.fitted:
        return estimator.fit(X, y, **params)
    fitted = training.fitted.popleft()
    if isinstance(fitted, Exception):
        raise fitted
    vars(estimator).update(vars(fitted))
    return estimator


_COMMON = """\
members_per_candidate : int or None, default=2
    Ensemble members of each candidate, at most `n_estimators`, which the search trains
    and scores; `best_estimator_` has those of `estimator`. All candidates have the
    same seeds, so that two members show which of them is better; a single one may
    mislead, and costs little more than half. None trains whole
    ensembles, and gives the scores of scikit-learn's search up to rounding. A
    candidate that sets `n_estimators` has its own number.
scoring : str, callable, list, tuple or dict, default=None
    Score, or several, of the candidates, such as
    :func:`~skanomaly.metrics.detector_roc_auc`; required, since detectors have no
    method ``score``.
n_jobs : int, default=None
    Number of processes, which divide the fits; those of one process are side by
    side. Scores are computed in this process.
refit : bool, str or callable, default=True
    Whether the best candidate is trained on all samples, as an ordinary fit; with
    several scores, the name of the score that decides, or a function that maps
    ``cv_results_`` to an index.
cv : int, cross-validator or iterable, default=None
    Splits, such as :class:`TargetKFold`; None makes 5 folds.
verbose : int, default=0
    Messages of scikit-learn, more of them for higher numbers.
pre_dispatch : int or str, default="2*n_jobs"
    Fits that are handed to processes in advance, where they are not side by side.
{more}error_score : "raise" or float, default=nan
    Score of a fit that fails; "raise" raises its error.
return_train_score : bool, default=False
    Whether to score on the training parts as well."""
_ATTRIBUTES = """\
cv_results_ : dict of str to ndarray
    As of scikit-learn, with ``"side_by_side"``, of bools: whether all fits of a
    candidate were trained together with others. If so, ``"mean_fit_time"`` is the
    time of all fits divided by their number. Scores are of detectors with
    `members_per_candidate` members.
best_estimator_ : estimator
    The best candidate, with all its members, trained on all samples.
best_score_, best_params_, best_index_ : float, dict and int
    Mean score, parameters and index of the best candidate.
scorer_, n_splits_, refit_time_, multimetric_ : object
    As of scikit-learn."""
_EXPLAINED = """\
Small networks cost as much as their calls. In this search candidates on all folds are
members of one ensemble, each with its own samples, scaling and numbers, and the seeds
of a fit of its own: a member equals, up to rounding, the one that its own fit would
train. Stages that candidates share are trained once per fold, as with ``memory``."""
_NOTES = """\
Detectors of this package are trained side by side on tables, alone or as the last step
of a pipeline, whose other steps are fitted for each candidate and fold. Candidates of
other sizes, learning rates, weight decays or numbers of steps are side by side among
themselves.
Images, other estimators, and detectors with callbacks, ``verbose`` or networks of the
user are searched one by one, as whole fits, by scikit-learn.

A fit that fails, such as one that diverges, does not harm the others. At most 128 fits
are side by side, and fewer on large tables, since each has a copy of its samples.
Horizontally fused training [1]_ is the same idea for GPUs."""
_REFERENCES = """\
.. [1] S. Wang et al., "Horizontally fused training array: an effective hardware
   utilization squeezer for training novel deep learning models", MLSys 2021."""
_RANDOM = """\
random_state : int, RandomState instance or None, default=None
    Draws the candidates.
"""
_describe_search = partial(
    fill_in,
    explained=_EXPLAINED,
    attributes=_ATTRIBUTES,
    notes=_NOTES,
    references=_REFERENCES,
)


@_describe_search(common=_COMMON.format(more=""))
class SideBySideGridSearchCV(_SideBySideMixin, GridSearchCV):
    """Grid search of scikit-learn, with candidates that are trained side by side.

    %(explained)s

    Parameters
    ----------
    estimator : estimator
        A detector, or a pipeline that ends with one.
    param_grid : dict or list of dict
        Values of each parameter, by name.
    %(common)s

    Attributes
    ----------
    %(attributes)s

    See Also
    --------
    sklearn.model_selection.GridSearchCV : Trains each candidate by itself.
    SideBySideRandomizedSearchCV : Draws candidates at random.

    Notes
    -----
    %(notes)s

    References
    ----------
    %(references)s

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly import HistoryAD
    >>> from skanomaly.metrics import detector_roc_auc
    >>> from skanomaly.model_selection import SideBySideGridSearchCV
    >>> from sklearn.model_selection import StratifiedKFold
    >>> rng = np.random.default_rng(0)
    >>> X = np.r_[rng.normal(size=(300, 2)), rng.normal(size=(30, 2)) + 6]
    >>> y = np.repeat([1, -1], [300, 30])
    >>> search = SideBySideGridSearchCV(
    ...     HistoryAD(max_epochs=20, random_state=0),
    ...     {"beta": [0, 1, 10], "alpha": [0, 0.5]},
    ...     scoring=detector_roc_auc,
    ...     cv=StratifiedKFold(3),
    ... ).fit(X, y)
    >>> bool(search.best_score_ > 0.9), bool(search.cv_results_["side_by_side"].all())
    (True, True)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **GridSearchCV._parameter_constraints,
        **_MEMBERS,
    }

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        members_per_candidate: int | None = 2,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: Any = "2*n_jobs",
        error_score: Any = np.nan,
        return_train_score: bool = False,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.members_per_candidate = members_per_candidate


@_describe_search(common=_COMMON.format(more=_RANDOM))
class SideBySideRandomizedSearchCV(_SideBySideMixin, RandomizedSearchCV):
    """Randomized search of scikit-learn, with candidates trained side by side.

    %(explained)s

    Parameters
    ----------
    estimator : estimator
        A detector, or a pipeline that ends with one.
    param_distributions : dict or list of dict
        Distributions of each parameter, or lists of values, by name.
    n_iter : int, default=10
        Number of candidates.
    %(common)s

    Attributes
    ----------
    %(attributes)s

    See Also
    --------
    sklearn.model_selection.RandomizedSearchCV : Trains each candidate by itself.
    SideBySideGridSearchCV : Searches a grid, with an example.

    Notes
    -----
    %(notes)s

    References
    ----------
    %(references)s
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **RandomizedSearchCV._parameter_constraints,
        **_MEMBERS,
    }

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_iter: int = 10,
        members_per_candidate: int | None = 2,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: Any = "2*n_jobs",
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
    ) -> None:
        super().__init__(
            estimator,
            param_distributions,
            n_iter=n_iter,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            random_state=random_state,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.members_per_candidate = members_per_candidate
