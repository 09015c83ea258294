"""Cross-validation for known kinds of anomalies, and for two domains.

`LeaveAnomalyKindOut` is for detectors that learn from a few known anomalies. Random
folds put each kind of anomaly on both sides of a split, and measure the detection of
known kinds; it measures that of unknown ones. `TargetKFold` is for detectors that learn
from two domains. Random folds test on the source too, whose samples are all normal; it
tests on the target alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.model_selection import BaseCrossValidator, KFold, StratifiedKFold
from sklearn.utils import check_consistent_length, column_or_1d

from ..utils._domains import checked_domains
from ..utils._labels import complete_column
from ..utils._random import own_random_state
from ..utils._warnings import warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    RandomState = int | np.random.RandomState | None

__all__ = ["LeaveAnomalyKindOut", "TargetKFold"]


class LeaveAnomalyKindOut(BaseCrossValidator):
    """Cross-validator that tests on a kind of anomaly left out of the training.

    A detector that learns from a few known anomalies will meet kinds that nobody has
    collected, which this splitter tests. There is one split per kind of known anomaly.
    Its test part holds all anomalies of that kind and one fold of the normal samples;
    its training part holds the other kinds and the other folds. Each of these samples
    is tested once. Unlabelled samples, with 0 in `y`, are in every training part, and
    are never tested, since scorers refuse them.

    The kinds are given to the constructor, as to
    :class:`~sklearn.model_selection.PredefinedSplit`, for ``cv=`` of a search or
    cross-validation over those very samples; or to `split` as `groups`, as to
    :class:`~sklearn.model_selection.LeaveOneGroupOut`. Searches and cross-validations
    slice `groups` with the samples, so that they can be nested.

    Parameters
    ----------
    kinds : array-like of shape (n_samples,), default=None
        The kind of each anomaly, numbers or strings, read where `y` is -1. The
        protocols of :mod:`skanomaly.datasets` return it: begin with
        ``one_vs_rest(..., return_kinds=True)`` or ``hold_one_out``, and take the
        `kinds_train` that ``labelled_anomalies`` returns for them. None requires
        `groups` at each split.
    shuffle : bool, default=True
        Whether the folds of normal samples are drawn at random. Otherwise they follow
        the order of the samples.
    random_state : int, RandomState instance or None, default=None
        Draws the folds. With an int, each call of `split` draws the same folds; with
        None, other ones, without use of NumPy's global state. Ignored without
        `shuffle`.

    Raises
    ------
    ValueError
        By the constructor, if `kinds` is not one-dimensional. By the methods, if `y` is
        missing or has missing values, if there are neither `kinds` nor `groups`, or
        both and they differ, if they have another length than `y`, and if `y` has no
        -1, or has -1 for fewer than two kinds or for a sample without a kind. By
        `split`, if there are fewer normal samples than splits.

    See Also
    --------
    skanomaly.datasets.labelled_anomalies : Makes a training set with known anomalies.
    sklearn.model_selection.StratifiedKFold : Tests on kinds in the training part.
    sklearn.model_selection.LeaveOneGroupOut : Needs a group for normal samples too.

    Notes
    -----
    With a `y` of 0 and -1, anomalies are known and normal samples are not, so that a
    test has nothing to compare. If most of the others are normal, mark them by 1, as
    `labelled_anomalies` does.

    A nested search needs at least three kinds: the outer split leaves out one, and each
    inner split another.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.model_selection import LeaveAnomalyKindOut
    >>> y = np.array([1, 1, 1, 1, -1, -1, -1])
    >>> kinds = ["", "", "", "", "scan", "flood", "scan"]
    >>> cv = LeaveAnomalyKindOut(kinds, random_state=0)
    >>> for train, test in cv.split(y, y):
    ...     print(train, test)
    [0 1 4 6] [2 3 5]
    [2 3 5] [0 1 4 6]
    >>> cv.get_split_names(y=y)
    array(['flood', 'scan'], dtype='<U5')

    With the digit 0 as normal and a few known anomalies of four of the other digits:

    >>> from sklearn.datasets import load_digits
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn.model_selection import cross_val_score
    >>> from skanomaly.datasets import labelled_anomalies, one_vs_rest
    >>> split = one_vs_rest(
    ...     *load_digits(return_X_y=True), 0, return_kinds=True, random_state=0
    ... )
    >>> X, _, y, _, kinds, _ = labelled_anomalies(
    ...     *split, ratio=0.2, kinds=[3, 4, 5, 6], random_state=0
    ... )
    >>> cv = LeaveAnomalyKindOut(kinds, random_state=0)
    >>> forest = IsolationForest(random_state=0)
    >>> scores = cross_val_score(forest, X, y, cv=cv, scoring="roc_auc")
    >>> for kind, score in zip(cv.get_split_names(y=y), scores):
    ...     print(kind, bool(score > 0.9))
    3 True
    4 True
    5 True
    6 True

    A nested search, which slices the kinds with the samples. Without metadata routing
    it is ``groups=kinds, params={"groups": kinds}``, for the outer splitter and
    for the inner one:

    >>> import sklearn
    >>> from sklearn.model_selection import GridSearchCV, cross_validate
    >>> cv = LeaveAnomalyKindOut(random_state=0)
    >>> search = GridSearchCV(
    ...     forest, {"n_estimators": [5, 20]}, cv=cv, scoring="roc_auc"
    ... )
    >>> with sklearn.config_context(enable_metadata_routing=True):
    ...     found = cross_validate(
    ...         search, X, y, cv=cv, scoring="roc_auc", params={"groups": kinds}
    ...     )
    >>> len(found["test_score"])
    4
    """

    # As scikit-learn's splitters by groups ask for them.
    __metadata_request__split = {"groups": True}  # noqa: RUF012

    def __init__(
        self,
        kinds: ArrayLike | None = None,
        *,
        shuffle: bool = True,
        random_state: RandomState = None,
    ) -> None:
        self.kinds = None if kinds is None else _column_of_kinds(kinds)
        self.shuffle = shuffle
        self.random_state = random_state

    def split(
        self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Return the indices of the training and the test part of each split.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples; only their number is read.
        y : array-like of shape (n_samples,)
            Labels: -1 for a known anomaly, 0 for an unlabelled sample, any other value
            for a normal one.
        groups : array-like of shape (n_samples,), default=None
            The kinds, for a splitter without them.

        Returns
        -------
        iterator of (train, test)
            Indices in ascending order, with the kinds in ascending order.
        """
        tested_in, n_splits = self._assign(X, y, groups)
        rows = np.arange(len(tested_in))
        return ((rows[tested_in != k], rows[tested_in == k]) for k in range(n_splits))

    def get_n_splits(
        self,
        X: Any = None,
        y: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> int:
        """Return the number of splits, which is that of the kinds of anomalies.

        Parameters
        ----------
        X : object, default=None
            Ignored.
        y : array-like of shape (n_samples,)
            Labels, as for `split`.
        groups : array-like of shape (n_samples,), default=None
            The kinds, for a splitter without them.

        Returns
        -------
        int
            At least 2.
        """
        return len(self.get_split_names(X, y, groups))

    def get_split_names(
        self,
        X: Any = None,
        y: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> NDArray[Any]:
        """Return the kind that each split leaves out of the training.

        They name ``split0_test_score``, ``split1_test_score`` and so on in
        ``cv_results_``, and the scores of ``cross_val_score``.

        Parameters
        ----------
        X : object, default=None
            Ignored.
        y : array-like of shape (n_samples,)
            Labels, as for `split`.
        groups : array-like of shape (n_samples,), default=None
            The kinds, for a splitter without them.

        Returns
        -------
        ndarray of shape (n_splits,)
            Kinds in the order of the splits, which is ascending.
        """
        _, names, _ = self._kinds(y, groups)
        return names

    def _assign(
        self, X: Any, y: ArrayLike | None, groups: ArrayLike | None
    ) -> tuple[NDArray[np.intp], int]:
        """Return the split that tests each sample, by index, and the number of splits.

        With one index per sample, the parts are disjoint. -1 is for samples that are
        never tested.
        """
        y, names, kind_indices = self._kinds(y, groups)
        check_consistent_length(X, y)
        n_splits = len(names)
        normal = (y != -1) & (y != 0)
        n_normal = np.count_nonzero(normal)
        if n_normal < n_splits:
            raise ValueError(
                f"{n_normal} samples are normal (1 in y), fewer than the {n_splits} "
                "splits, one per kind, which each need some to test on. Samples with 0 "
                "in y are unlabelled, and not tested: if most are normal, mark them "
                "by 1."
            )
        folds = np.sort(np.arange(n_normal) % n_splits)
        if self.shuffle:
            folds = own_random_state(self.random_state).permutation(folds)
        tested_in = np.full(len(y), -1)
        tested_in[y == -1], tested_in[normal] = kind_indices, folds
        return tested_in, n_splits

    def _kinds(
        self, y: ArrayLike | None, groups: ArrayLike | None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.intp]]:
        """Return the labels, the kinds, and the index of the kind of each anomaly."""
        if y is None:
            raise ValueError(
                "y is needed: -1 for the known anomalies, whose kinds are left out in "
                "turn."
            )
        y = complete_column(y, "y, where 0 marks an unlabelled sample,")
        found = [
            self._kinds_of_anomalies(y, kinds, name)
            for name, kinds in (("groups", groups), ("kinds", self.kinds))
            if kinds is not None
        ]
        if not found:
            raise ValueError(
                "The kinds of the anomalies are needed: as groups=kinds, which "
                "searches pass on, or as LeaveAnomalyKindOut(kinds)."
            )
        if found[0].tolist() != found[-1].tolist():
            raise ValueError(
                "groups differ from the kinds of the splitter where y is -1: "
                "give the kinds in one of the two ways."
            )
        names, indices = np.unique(found[0], return_inverse=True)
        if len(names) < 2:
            raise ValueError(
                "At least two kinds of known anomalies are needed, one to test on and "
                f"one to train on; all of them are of the kind {names.tolist()[0]!r}. "
                "Nested splits leave one more out, and need three."
            )
        return y, names, indices

    @staticmethod
    def _kinds_of_anomalies(
        y: NDArray[Any], kinds: ArrayLike, name: str
    ) -> NDArray[Any]:
        """Return the kinds of the known anomalies."""
        kinds = _column_of_kinds(kinds)
        if len(y) != len(kinds):
            raise ValueError(
                f"{name} was given for {len(kinds)} samples, but y has {len(y)}: give "
                "the splitter the kinds of the samples to split, or give them as "
                "groups, which a search slices with the samples."
            )
        anomalous = y == -1
        if not anomalous.any():
            raise ValueError(
                "y has no known anomaly (-1). If 0 stands for normal and 1 for "
                "anomaly, convert it: `y = np.where(y == 1, -1, 1)`."
            )
        # NaN would become one kind, of anomalies of any kinds.
        return complete_column(kinds[anomalous].tolist(), f"{name}, where y is -1,")


class TargetKFold(BaseCrossValidator):
    """Cross-validator over folds of the target domain, with the source for training.

    A detector that learns from a source domain is tested on the target domain. The test
    parts are folds of the target samples; the training parts are the other folds and
    all source samples. Each target sample is tested once, a source sample never.

    The folds are those of scikit-learn. Where `y` has both +1 and -1 among the target
    samples, they are stratified, since the area under the ROC curve needs both in every
    test part. Target samples with 0, whose labels are unknown, are then in every
    training part, and are never tested, since scorers refuse them.

    The domains are given to the constructor, as to
    :class:`~sklearn.model_selection.PredefinedSplit`, for ``cv=`` of a search or
    cross-validation over those very samples; or to `split` as `groups`. Searches and
    cross-validations slice `groups` with the samples, so that they can be nested.

    Parameters
    ----------
    sample_domain : array-like of shape (n_samples,), default=None
        The domain of each sample: any positive number for the source, any negative one
        for the target, as in `sample_domain` of ``fit`` and in the result of
        :func:`skanomaly.datasets.across_domains`. None requires `groups` at each split.
    n_splits : int, default=5
        Number of folds, at least 2.
    shuffle : bool, default=True
        Whether the folds of target samples are drawn at random. Otherwise they follow
        the order of the samples.
    random_state : int, RandomState instance or None, default=None
        Draws the folds. With an int, each call of `split` draws the same folds; with
        None, other ones, without use of NumPy's global state. Ignored without
        `shuffle`.

    Raises
    ------
    ValueError
        By the constructor, if `sample_domain` is not one-dimensional, has another value
        than positive and negative numbers, has no source sample, or has fewer target
        samples than folds, or if `n_splits` is less than 2. By `split`, for such
        `groups`; if there are neither `sample_domain` nor `groups`, or both and they
        differ; if `X` or `y` has another length; or if `y` has both +1 and -1 among the
        target samples, but missing values too, or fewer labels than there are folds.
    TypeError
        By the constructor, if `shuffle` is not a bool.

    Warns
    -----
    UserWarning
        By `split`, if `y` has fewer +1 or fewer -1 among the target samples than there
        are folds: some test parts then lack them.

    See Also
    --------
    skanomaly.datasets.across_domains : Makes a training set of two domains.
    LeaveAnomalyKindOut : Leaves one kind of known anomalies out of the training.

    Notes
    -----
    The convention is that of skada, except for zeros: there they stand for source
    samples, and here they are refused, since labels 0 and 1 would be misread.

    With metadata routing, ``TargetKFold().set_split_request(groups="sample_domain")``
    takes the domains that a search has for ``fit`` of the detector.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.model_selection import TargetKFold
    >>> domain = np.array([1, 1, 1, -2, -2, -2, -2])
    >>> cv = TargetKFold(domain, n_splits=2, random_state=0)
    >>> for train, test in cv.split(domain):
    ...     print(train, test)
    [0 1 2 3 4] [5 6]
    [0 1 2 5 6] [3 4]

    A search that scores on the target, with labels for the scorer alone:

    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn.model_selection import GridSearchCV
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(60, 2)), np.repeat([1, -1], [50, 10])
    >>> X[y == -1] += 6
    >>> domain = np.repeat([1, -1], [20, 40])
    >>> search = GridSearchCV(
    ...     IsolationForest(random_state=0),
    ...     {"n_estimators": [10, 20]},
    ...     cv=TargetKFold(domain, random_state=0),
    ...     scoring="roc_auc",
    ... ).fit(X, y)
    >>> search.n_splits_, bool(search.best_score_ > 0.9)
    (5, True)
    """

    # As scikit-learn's splitters by groups ask for them.
    __metadata_request__split = {"groups": True}  # noqa: RUF012

    def __init__(
        self,
        sample_domain: ArrayLike | None = None,
        n_splits: int = 5,
        *,
        shuffle: bool = True,
        random_state: RandomState = None,
    ) -> None:
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state
        KFold(n_splits, shuffle=shuffle)  # checks the parameters
        self.sample_domain: NDArray[Any] | None = None
        if sample_domain is not None:
            self.sample_domain = self._checked(sample_domain, "sample_domain")

    def split(
        self,
        X: Any = None,
        y: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Return the indices of the training and the test part of each split.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), default=None
            Samples of both domains; only their number is read.
        y : array-like of shape (n_samples,), default=None
            Labels, read at target samples, if both +1 (normal) and -1 (anomalous) are
            among these; 0 then stands for no label.
        groups : array-like of shape (n_samples,), default=None
            The domains, for a splitter without them.

        Returns
        -------
        iterator of (train, test)
            Indices in ascending order.
        """
        domain = self._domains(groups)
        if X is not None:
            self._check_rows(domain, X, "X")
        tested = np.flatnonzero(domain < 0)
        anomalous = None
        if y is not None:
            self._check_rows(domain, y, "y")
            tested, anomalous = _labelled(tested, column_or_1d(y)[tested])
        # Drawn here, so that errors are raised before the first split.
        folds = self._folds(anomalous).split(tested, anomalous)
        tests = [tested[test] for _, test in folds]
        rows = np.arange(len(domain))
        return ((np.setdiff1d(rows, test), test) for test in tests)

    def get_n_splits(
        self, X: Any = None, y: ArrayLike | None = None, groups: Any = None
    ) -> int:
        """Return the number of splits.

        Parameters
        ----------
        X : object, default=None
            Ignored.
        y : object, default=None
            Ignored.
        groups : object, default=None
            Ignored.

        Returns
        -------
        int
            The parameter `n_splits`.
        """
        return self.n_splits

    def _folds(self, anomalous: NDArray[np.bool_] | None) -> KFold | StratifiedKFold:
        """Return the splitter of the target samples, stratified if labels are known."""
        seed = own_random_state(self.random_state) if self.shuffle else None
        folds = KFold(self.n_splits, shuffle=self.shuffle, random_state=seed)
        if anomalous is None:
            return folds
        if max(np.bincount(anomalous)) < self.n_splits:
            # StratifiedKFold warns if one class is too small, and refuses two.
            warn(
                f"y has fewer than n_splits={self.n_splits} normal (+1) and fewer than "
                "n_splits anomalous (-1) target samples: the folds are not stratified."
            )
            return folds
        return StratifiedKFold(self.n_splits, shuffle=self.shuffle, random_state=seed)

    def _domains(self, groups: ArrayLike | None) -> NDArray[Any]:
        """Return the domains of `groups`, or else those of the splitter."""
        own = self.sample_domain
        if groups is not None:
            domain = self._checked(groups, "groups")
            if own is not None and not np.array_equal(own > 0, domain > 0):
                raise ValueError(
                    "groups differ from the sample_domain of the splitter: give the "
                    "domains in one of the two ways."
                )
            return domain
        if own is None:
            raise ValueError(
                "The domains of the samples are needed: as groups=sample_domain, which "
                "searches pass on, or as TargetKFold(sample_domain)."
            )
        return own

    def _checked(self, sample_domain: ArrayLike, name: str) -> NDArray[Any]:
        domain = checked_domains(sample_domain, name)
        if not (domain > 0).any():
            raise ValueError(f"{name} has no source sample (above 0).")
        n_target = np.count_nonzero(domain < 0)
        if n_target < self.n_splits:
            raise ValueError(
                f"{name} has {n_target} target samples (below 0): too few for "
                f"n_splits={self.n_splits}."
            )
        return domain

    @staticmethod
    def _check_rows(domain: NDArray[Any], rows: Any, name: str) -> None:
        n = rows.shape[0] if hasattr(rows, "shape") else len(rows)
        if n != len(domain):
            raise ValueError(
                f"The domains were given for {len(domain)} samples, but {name} has "
                f"{n}: give the splitter the domains of the samples to split, or give "
                "them as groups, which a search slices with the samples."
            )


def _column_of_kinds(kinds: ArrayLike) -> NDArray[Any]:
    """Return kinds as an array of one dimension, with missing ones unchanged."""
    # NumPy would turn a NaN among strings into the string "nan".
    given = kinds if hasattr(kinds, "dtype") else np.array(kinds, dtype=object)
    column: NDArray[Any] = column_or_1d(given)
    return column


def _labelled(
    rows: NDArray[np.intp], labels: NDArray[Any]
) -> tuple[NDArray[np.intp], NDArray[np.bool_] | None]:
    """Return the indices to test and a mask of the anomalies, or None without labels.

    A scorer needs labels of both classes. Other labels are not used, and may have any
    values.
    """
    if not {1, -1} <= set(labels.tolist()):
        return rows, None
    labels = complete_column(labels, "y, of the target samples,")
    known = labels != 0
    return rows[known], labels[known] == -1
