"""The protocols of anomaly detection benchmarks, as pure functions of arrays.

`one_vs_rest` and `hold_one_out` split labelled data; `contaminate` and
`labelled_anomalies` move anomalies of such a split into its training set. All four
return ``X_train, X_test, y_train, y_test``, followed by the kinds where they are known,
so that a split can be handed on as ``f(*split)``. Rows of classes that are kept apart
for a corpus come last: ``*split, corpus = one_vs_rest(...)``. `across_domains` does all
of this at once for two data sets, and returns the domains after the four.
"""

from collections.abc import Sequence, Set
from functools import partial
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.utils import check_consistent_length

from ..utils._bytes import holds_bytes
from ..utils._labels import complete_column
from ..utils._random import own_random_state

RandomState = int | np.random.RandomState | None


def one_vs_rest(
    X: Any,
    y: ArrayLike,
    normal_class: Any,
    *,
    test_size: float = 0.4,
    corpus_class: Any = None,
    X_test: Any = None,
    y_test: ArrayLike | None = None,
    return_kinds: bool = False,
    random_state: RandomState = None,
) -> tuple[Any, ...]:
    """Take some classes as normal and all others as anomalies.

    The training set holds normal rows only. The test set holds the rest: the normal
    rows held out, drawn from each class apart, and every anomaly. Rows keep their
    order. With an official test set (`X_test` and `y_test`) nothing is drawn: the
    training set is all normal rows of `X`, the test set is `X_test` as it is.

    Parameters
    ----------
    X : array-like of shape (n, ...)
        Rows of any shape: an array, a memory map or a DataFrame of pandas or polars.
    y : array-like of shape (n,)
        Class labels, numbers or strings.
    normal_class : label, sequence or set of labels
        The normal class or classes.
    test_size : float, default=0.4
        Fraction in [0, 1) of the rows of each normal class that is held out. With 0,
        the test set is the anomalies alone: a pool for `contaminate` and
        `labelled_anomalies`. Ignored with an official test set.
    corpus_class : label, sequence or set of labels, default=None
        Classes that are kept apart, neither normal nor anomalous: their rows in `X` are
        a corpus for outlier exposure, from the same source as the normal rows, and
        those in `X_test` are left out. A detector that was told of these classes has
        not been told of the anomalies.
    X_test, y_test : array-likes of shape (n_test, ...) and (n_test,), default=None
        The official test set and its class labels.
    return_kinds : bool, default=False
        Whether to return the class labels of both sets too.
    random_state : int, RandomState instance or None, default=None
        Draws the rows held out. An int makes the split reproducible.

    Returns
    -------
    X_train, X_test : of shape (n_train, ...) and (n_test, ...)
        Rows of the type of `X`.
    y_train, y_test : ndarrays of shape (n_train,) and (n_test,)
        +1 for normal rows and -1 for anomalies, int64; `y_train` is +1 throughout.
    kinds_train, kinds_test : ndarrays of shape (n_train,) and (n_test,)
        Class labels, with `return_kinds` only.
    X_corpus : of shape (n_corpus, ...)
        Rows of the classes kept apart, with `corpus_class` only.
    kinds_corpus : ndarray of shape (n_corpus,)
        Their class labels, with `corpus_class` and `return_kinds` only.

    Raises
    ------
    ValueError
        If a label is missing, a class is in neither `y` nor `y_test`, one of the
        corpus is not in `y` or is asked for twice, `test_size` is out of range, only
        one of `X_test` and `y_test` is given, or one of the two sets would have no
        normal or no anomalous rows to work with.

    See Also
    --------
    hold_one_out : The reverse: some classes are anomalous, all others normal.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.datasets import one_vs_rest
    >>> X, y = np.arange(10), np.repeat([0, 1], 5)
    >>> X_train, X_test, y_train, y_test = one_vs_rest(X, y, 0, random_state=0)
    >>> len(X_train), y_test
    (3, array([ 1,  1, -1, -1, -1, -1, -1]))

    With an official test set, the anomalies of the training part are a pool to draw
    from, and the test set stays whole:

    >>> *_, kinds_pool = pool = one_vs_rest(X, y, 0, test_size=0, return_kinds=True)
    >>> len(pool[0]), kinds_pool
    (5, array([1, 1, 1, 1, 1]))

    Of three classes, one is normal, one is a corpus, and one is unknown until the test:

    >>> X, y = np.arange(6), np.repeat(["cat", "dog", "owl"], 2)
    >>> *split, X_corpus = one_vs_rest(
    ...     X, y, "cat", corpus_class="dog", test_size=0.5, random_state=0
    ... )
    >>> X_corpus, split[3]
    (array([2, 3]), array([ 1, -1, -1]))
    """
    kinds, kinds_test = _given_kinds(X, y, X_test, y_test)
    classes = _classes("normal_class", normal_class, kinds, kinds_test)
    apart = _apart(corpus_class, kinds, "normal_class", classes)
    sign = partial(_sign, classes, 1, -1, apart)
    drawn = test_size, random_state
    return _split(X, kinds, X_test, kinds_test, sign, drawn, return_kinds, apart)


def hold_one_out(
    X: Any,
    y: ArrayLike,
    anomalous_class: Any,
    *,
    test_size: float = 0.4,
    corpus_class: Any = None,
    X_test: Any = None,
    y_test: ArrayLike | None = None,
    return_kinds: bool = False,
    random_state: RandomState = None,
) -> tuple[Any, ...]:
    """Take some classes as anomalies and all others as normal.

    Apart from that it is `one_vs_rest`: the training set holds normal rows only, the
    test set holds the rest.

    Parameters
    ----------
    X : array-like of shape (n, ...)
        Rows of any shape: an array, a memory map or a DataFrame of pandas or polars.
    y : array-like of shape (n,)
        Class labels, numbers or strings.
    anomalous_class : label, sequence or set of labels
        The anomalous class or classes.
    test_size : float, default=0.4
        Fraction in [0, 1) of the rows of each normal class that is held out. Ignored
        with an official test set.
    corpus_class : label, sequence or set of labels, default=None
        Classes that are kept apart as a corpus, neither normal nor anomalous.
    X_test, y_test : array-likes of shape (n_test, ...) and (n_test,), default=None
        The official test set and its class labels.
    return_kinds : bool, default=False
        Whether to return the class labels of both sets too.
    random_state : int, RandomState instance or None, default=None
        Draws the rows held out. An int makes the split reproducible.

    Returns
    -------
    X_train, X_test : of shape (n_train, ...) and (n_test, ...)
        Rows of the type of `X`.
    y_train, y_test : ndarrays of shape (n_train,) and (n_test,)
        +1 for normal rows and -1 for anomalies, int64; `y_train` is +1 throughout.
    kinds_train, kinds_test : ndarrays of shape (n_train,) and (n_test,)
        Class labels, with `return_kinds` only.
    X_corpus : of shape (n_corpus, ...)
        Rows of the classes kept apart, with `corpus_class` only.
    kinds_corpus : ndarray of shape (n_corpus,)
        Their class labels, with `corpus_class` and `return_kinds` only.

    Raises
    ------
    ValueError
        As `one_vs_rest` does.

    See Also
    --------
    one_vs_rest : The reverse: some classes are normal, all others anomalous.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.datasets import hold_one_out
    >>> X, y = np.arange(9), np.repeat(["cat", "dog", "owl"], 3)
    >>> X_train, X_test, y_train, y_test = hold_one_out(X, y, "owl", random_state=0)
    >>> X_train.shape, y_test
    ((4,), array([ 1,  1, -1, -1, -1]))
    """
    kinds, kinds_test = _given_kinds(X, y, X_test, y_test)
    classes = _classes("anomalous_class", anomalous_class, kinds, kinds_test)
    apart = _apart(corpus_class, kinds, "anomalous_class", classes)
    sign = partial(_sign, classes, -1, 1, apart)
    drawn = test_size, random_state
    return _split(X, kinds, X_test, kinds_test, sign, drawn, return_kinds, apart)


def contaminate(
    X_train: Any,
    X_test: Any,
    y_train: ArrayLike,
    y_test: ArrayLike,
    kinds_train: ArrayLike | None = None,
    kinds_test: ArrayLike | None = None,
    *,
    contamination: float = 0.1,
    random_state: RandomState = None,
) -> tuple[Any, ...]:
    """Move anomalies of the test set, unlabelled, into the training set.

    They become the given fraction of the **resulting** training set: of n normal rows
    and a contamination g, n g / (1 - g) anomalies, rounded. They are drawn at
    random, whatever their kinds, and appended to the training rows.

    Parameters
    ----------
    X_train, X_test : array-likes of shape (n_train, ...) and (n_test, ...)
        A split. The second set may be any pool of rows to draw from.
    y_train, y_test : array-likes of shape (n_train,) and (n_test,)
        +1 for normal rows and -1 for anomalies; `y_train` is +1 throughout.
    kinds_train, kinds_test : array-likes of shape (n_train,) and (n_test,), optional
        Class labels of the rows, to be split alike.
    contamination : float, default=0.1
        Fraction in [0, 1) of anomalies in the resulting training set.
    random_state : int, RandomState instance or None, default=None
        Draws the anomalies. An int makes the draw reproducible.

    Returns
    -------
    X_train, X_test : of shape (n_train + n_moved, ...) and (n_test - n_moved, ...)
        Rows of the types given.
    y_train, y_test : ndarrays of shape (n_train + n_moved,) and (n_test - n_moved,)
        The true labels. A detector that uses labels would take the -1 in `y_train` as
        known: fit it on `X_train` alone, or on what `labelled_anomalies` returns.
    kinds_train, kinds_test : ndarrays, shaped as `y_train` and `y_test`
        Class labels, if they were given.

    Raises
    ------
    ValueError
        If `contamination` is out of range or less than one row, there are too few
        anomalies, labels are not +1 and -1, a kind is missing, `y_train` already holds
        anomalies, or the columns of two DataFrames differ.

    See Also
    --------
    labelled_anomalies : Moves anomalies with their labels; it comes after this.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.datasets import contaminate, one_vs_rest
    >>> X, y = np.arange(20), np.repeat([0, 1], 10)
    >>> split = one_vs_rest(X, y, 0, test_size=0.1, random_state=0)
    >>> split = contaminate(*split, contamination=0.25, random_state=0)
    >>> X_train, X_test, y_train, y_test = split
    >>> y_train
    array([ 1,  1,  1,  1,  1,  1,  1,  1,  1, -1, -1, -1])
    """
    split = _checked(X_train, X_test, y_train, y_test, kinds_train, kinds_test)
    sign_train, sign_test = split[2:4]
    if (sign_train == -1).any():
        raise ValueError(
            "y_train already holds anomalies (-1): contaminate once, and before "
            "labelled_anomalies."
        )
    n_moved = _n_moved("contamination", contamination, len(sign_train))
    return _move(split, sign_test == -1, n_moved, random_state)


def labelled_anomalies(
    X_train: Any,
    X_test: Any,
    y_train: ArrayLike,
    y_test: ArrayLike,
    kinds_train: ArrayLike | None = None,
    kinds_test: ArrayLike | None = None,
    *,
    ratio: float = 0.05,
    kinds: Any = None,
    random_state: RandomState = None,
) -> tuple[Any, ...]:
    """Move anomalies of the test set, labelled, into the training set.

    They become the given fraction of the **whole** resulting training set, as in Deep
    SAD: of n training rows, contamination included, and a ratio g, n g / (1 - g)
    anomalies, rounded. They are drawn at random from those of the known kinds, and
    appended to the training rows. The other kinds stay unknown until the test.

    Parameters
    ----------
    X_train, X_test : array-likes of shape (n_train, ...) and (n_test, ...)
        A split. The second set may be any pool of rows to draw from.
    y_train, y_test : array-likes of shape (n_train,) and (n_test,)
        +1 for normal rows and -1 for anomalies. All training rows count as
        unlabelled, those with -1 too: a second call would forget the first one's.
    kinds_train, kinds_test : array-likes of shape (n_train,) and (n_test,), optional
        Class labels of the rows, to be split alike. Needed for `kinds`.
    ratio : float, default=0.05
        Fraction in [0, 1) of labelled anomalies in the resulting training set.
    kinds : label, sequence or set of labels, default=None
        Class labels of the known kinds of anomalies. With None, all are known.
    random_state : int, RandomState instance or None, default=None
        Draws the anomalies. An int makes the draw reproducible.

    Returns
    -------
    X_train, X_test : of shape (n_train + n_moved, ...) and (n_test - n_moved, ...)
        Rows of the types given.
    y_train, y_test : ndarrays of shape (n_train + n_moved,) and (n_test - n_moved,)
        `y_train` is what a detector may know: -1 for the labelled anomalies, +1 for
        all other rows. `y_test` is the truth.
    kinds_train, kinds_test : ndarrays, shaped as `y_train` and `y_test`
        Class labels, if they were given: with them, known and unknown kinds can be
        scored apart.

    Raises
    ------
    ValueError
        If `ratio` is out of range or less than one row, there are too few anomalies
        of the known kinds, labels are not +1 and -1, a kind is missing or not among
        the anomalies of the test set, or the columns of two DataFrames differ.

    See Also
    --------
    contaminate : Moves anomalies without their labels; it comes before this.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.datasets import labelled_anomalies, one_vs_rest
    >>> X, y = np.arange(30), np.repeat([0, 1, 2], 10)
    >>> split = one_vs_rest(X, y, 0, return_kinds=True, random_state=0)
    >>> split = labelled_anomalies(*split, ratio=0.25, kinds=2, random_state=0)
    >>> X_train, X_test, y_train, y_test, kinds_train, kinds_test = split
    >>> y_train
    array([ 1,  1,  1,  1,  1,  1, -1, -1])

    The normal rows and the anomalies of unknown kinds, to be scored by themselves:

    >>> unknown = ~np.isin(kinds_test, 2)
    >>> len(X_test), len(X_test[unknown])
    (22, 14)
    """
    split = _checked(X_train, X_test, y_train, y_test, kinds_train, kinds_test)
    sign_train, sign_test, *labels = split[2:]
    eligible = sign_test == -1
    if kinds is not None:
        if not labels:
            raise ValueError(
                "kinds needs kinds_train and kinds_test: split with return_kinds=True."
            )
        known = _classes("kinds", kinds, labels[1][eligible])
        eligible &= np.isin(labels[1], known)
    n_moved = _n_moved("ratio", ratio, len(sign_train))
    unlabelled = np.ones_like(sign_train)
    split = (X_train, X_test, unlabelled, sign_test, *labels)
    return _move(split, eligible, n_moved, random_state)


def across_domains(
    X_source: Any,
    y_source: ArrayLike,
    X_target: Any,
    y_target: ArrayLike,
    normal_class: Any,
    *,
    contamination: float = 0.1,
    test_contamination: float | Literal["same"] | None = "same",
    test_size: float = 0.4,
    X_test: Any = None,
    y_test: ArrayLike | None = None,
    random_state: RandomState = None,
) -> tuple[Any, ...]:
    """Take a source of normal rows and a contaminated target from two data sets.

    The training set holds the normal rows of the source, all of them, then a mixture of
    the target: its normal rows, and as many anomalies as make up the fraction
    `contamination` of them all. The test set holds target rows only, none of which is
    in the training set. This is the protocol of Fan et al. [1]_ for digits.

    Parameters
    ----------
    X_source, y_source : array-likes of shape (n_source, ...) and (n_source,)
        Rows of the source and their class labels, numbers or strings.
    X_target, y_target : array-likes of shape (n_target, ...) and (n_target,)
        Rows of the target, of the same shape as those of the source (images of another
        size are to be resized), and their class labels.
    normal_class : label, sequence or set of labels
        The normal class or classes.
    contamination : float, default=0.1
        Fraction in [0, 1) of anomalies among the target rows of the training set.
    test_contamination : float, "same" or None, default="same"
        Fraction in [0, 1) of anomalies in the test set, more than 0. With "same", it is
        `contamination`; with None, all anomalies that are left are tested on.
    test_size : float, default=0.4
        Fraction in [0, 1) of the target rows of each normal class that is held out.
        Ignored with an official test set.
    X_test, y_test : array-likes of shape (n_test, ...) and (n_test,), default=None
        The official test set of the target and its class labels. All normal rows of
        `X_target` are then trained on, and the test set is drawn from `X_test`.
    random_state : int, RandomState instance or None, default=None
        Draws the rows held out and the anomalies. An int makes the split reproducible.

    Returns
    -------
    X_train, X_test : of shape (n_train, ...) and (n_test, ...)
        Rows of the types given, the source before the target.
    y_train, y_test : ndarrays of shape (n_train,) and (n_test,)
        The true labels: +1 for normal rows and -1 for anomalies, int64. Those of the
        target rows are for evaluation: a detector that uses labels would take a -1 in
        `y_train` as known.
    sample_domain : ndarray of shape (n_train,)
        +1 for source rows and -1 for target rows of `X_train`, int64.

    Raises
    ------
    ValueError
        If rows differ in shape or columns, or one data set is of bytes and another is
        not; if a label is missing, or a normal class in the source or the target; if a
        fraction is out of range or less than one row, there are too few anomalies for
        it, or the test set would have none or no normal row; or if only one of
        `X_test` and `y_test` is given.

    See Also
    --------
    contaminate : Does it within one data set.
    skanomaly.model_selection.TargetKFold : Cross-validates on the target rows.

    References
    ----------
    .. [1] C. Fan, F. Zhang, P. Liu, X. Sun, H. Li, T. Xiao, W. Zhao and X. Tang,
       "Importance weighted adversarial discriminative transfer for anomaly detection",
       2021.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.datasets import across_domains
    >>> X_source, y_source = np.arange(6), np.repeat([0, 1], 3)
    >>> X_target, y_target = np.arange(100, 120), np.repeat([0, 1], 10)
    >>> X_train, X_test, y_train, y_test, domain = across_domains(
    ...     *(X_source, y_source, X_target, y_target),
    ...     normal_class=0,
    ...     contamination=0.25,
    ...     random_state=0,
    ... )
    >>> y_train
    array([ 1,  1,  1,  1,  1,  1,  1,  1,  1, -1, -1])
    >>> domain
    array([ 1,  1,  1, -1, -1, -1, -1, -1, -1, -1, -1])
    >>> y_test
    array([ 1,  1,  1,  1, -1])
    """
    for name, rows in (("X_target", X_target), ("X_test", X_test)):
        if rows is not None:
            _check_alike("X_source", X_source, name, rows)
    kinds = _kinds("y_source", X_source, y_source)
    source = np.isin(kinds, _classes("normal_class in y_source", normal_class, kinds))
    y_target = _kinds("y_target", X_target, y_target)
    rng = own_random_state(random_state)
    official = {"test_size": test_size, "X_test": X_test, "y_test": y_test}
    X_target, X_test, sign_target, sign_test = _mixture(
        X_target, y_target, normal_class, contamination, official, rng
    )
    share = contamination if test_contamination == "same" else test_contamination
    tested = _thinned(sign_test, share, rng)
    X_train = _append(_take(X_source, source), X_target)
    of_source = np.ones(np.count_nonzero(source), dtype=np.int64)
    y_train = np.concatenate([of_source, sign_target])
    sample_domain = np.concatenate([of_source, -np.ones_like(sign_target)])
    return X_train, _take(X_test, tested), y_train, sign_test[tested], sample_domain


def _sign(classes, inside, outside, apart, kinds):
    """Give each row one sign where its kind is in the classes, the other elsewhere.

    Rows of the classes kept apart have neither, but 0.
    """
    sign = np.where(np.isin(kinds, classes), inside, outside).astype(np.int64)
    sign[np.isin(kinds, apart)] = 0
    return sign


def _apart(corpus_class, kinds, name, classes):
    """Return the classes of the corpus, which are none of those that `name` has."""
    if corpus_class is None:
        return []
    apart = _classes("corpus_class", corpus_class, kinds)
    if both := [kind for kind in apart if kind in classes]:
        raise ValueError(
            f"corpus_class and {name} both have {both}: rows of a corpus are kept "
            "apart from the normal and from the anomalous ones."
        )
    return apart


def _given_kinds(X, y, X_test, y_test):
    """Return the labels of the rows, and those of the official test set or None."""
    kinds = _kinds("y", X, y)
    if (X_test is None) != (y_test is None):
        raise ValueError("X_test and y_test must be given together.")
    if X_test is not None:
        _check_alike("X", X, "X_test", X_test)
    return kinds, None if y_test is None else _kinds("y_test", X_test, y_test)


def _split(X, kinds, X_test, kinds_test, sign, drawn, return_kinds, apart):
    """Split into normal rows to train on, the rest, and a corpus, by signs of kinds."""
    signs = sign(kinds)
    if X_test is None:
        train = _drawn_for_training(kinds, signs == 1, *drawn)
        tested = ~train & (signs != 0)
        X_test, kinds_test = _take(X, tested), kinds[tested]
    else:
        train, tested = signs == 1, sign(kinds_test) != 0
        if not (sign(kinds_test) == 1).any():
            raise ValueError("y_test has no normal row: check its type and classes.")
        if not tested.all():
            X_test, kinds_test = _take(X_test, tested), kinds_test[tested]

    y_train, y_test = signs[train], sign(kinds_test)
    if not len(y_train):
        raise ValueError("No normal row is left to train on: take fewer away.")
    if not (y_test == -1).any():
        raise ValueError("No row is anomalous: take fewer classes as normal.")
    split = [_take(X, train), X_test, y_train, y_test]
    split += [kinds[train], kinds_test] if return_kinds else []
    if apart:
        split += [_take(X, signs == 0), *([kinds[signs == 0]] if return_kinds else [])]
    return tuple(split)


def _drawn_for_training(kinds, is_normal, test_size, random_state):
    """Mask the normal rows, less a fraction `test_size` of each of their kinds."""
    _check_fraction("test_size", test_size)
    rng = own_random_state(random_state)
    train = is_normal.copy()
    for kind in np.unique(kinds[is_normal]):
        rows = rng.permutation(np.flatnonzero(kinds == kind))
        train[rows[: round(test_size * len(rows))]] = False
    return train


def _move(split, eligible, n_moved, random_state):
    """Append `n_moved` eligible rows of each test array to its training array."""
    rows = np.flatnonzero(eligible)
    if n_moved > len(rows):
        raise ValueError(
            f"{n_moved} anomalies are needed, but there are {len(rows)} to draw from: "
            "lower the fraction, take more kinds or fewer training rows, or pass a "
            "larger pool in the place of the test set."
        )
    rng = own_random_state(random_state)
    moved = np.zeros(len(eligible), dtype=bool)
    moved[rng.choice(rows, n_moved, replace=False)] = True
    arrays = []
    for train, test in zip(split[::2], split[1::2], strict=True):
        arrays += [_append(train, _take(test, moved)), _take(test, ~moved)]
    return tuple(arrays)


def _mixture(X, y, normal_class, contamination, official, rng):
    """Split into a contaminated training set and all that may be tested on."""
    split = one_vs_rest(X, y, normal_class, **official, random_state=rng)
    if official["X_test"] is None:
        return contaminate(*split, contamination=contamination, random_state=rng)
    # The anomalies to train on are drawn from the training part, which as a split of
    # its own has them for a test set.
    pool = one_vs_rest(X, y, normal_class, test_size=0)
    mixture = contaminate(*pool, contamination=contamination, random_state=rng)
    return mixture[0], split[1], mixture[2], split[3]


def _thinned(sign, share, rng):
    """Mask the normal rows, and so many anomalies that these have the given share."""
    tested = sign == 1
    if not tested.any():
        raise ValueError("No normal row is left to test on: raise test_size.")
    rows = np.flatnonzero(~tested)
    if share is None:
        n_tested = len(rows)
    else:
        n_tested = _n_moved("test_contamination", share, np.count_nonzero(tested))
    if not n_tested:
        raise ValueError(
            "The test set would have no anomaly: give a test_contamination above 0, or "
            "None to test on all anomalies that are left."
        )
    if n_tested > len(rows):
        raise ValueError(
            f"{n_tested} anomalies are needed to test on, but {len(rows)} are left: "
            "lower test_contamination, or give None to test on all of them."
        )
    tested[rng.choice(rows, n_tested, replace=False)] = True
    return tested


def _check_alike(name, X, other_name, other):
    """Check that rows of two data sets can be stacked and mean the same."""
    shapes = np.shape(X)[1:], np.shape(other)[1:]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Rows of {name} have the shape {shapes[0]}, rows of {other_name} the "
            f"shape {shapes[1]}: bring them to one shape, images by resizing."
        )
    _check_columns(name, X, other_name, other)
    # Bytes are values up to 255, floats mostly up to 1: together they would be neither.
    if (of_bytes := holds_bytes(X)) != holds_bytes(other):
        names = (name, other_name) if of_bytes else (other_name, name)
        raise ValueError(
            "{} holds bytes (uint8), and {} does not: bring both to one type and one "
            "range of values.".format(*names)
        )


def _check_columns(name, X, other_name, other):
    """Check that two DataFrames can be stacked, which pandas does with any."""
    if list(getattr(X, "columns", ())) != list(getattr(other, "columns", ())):
        raise ValueError(f"{name} and {other_name} must have the same columns.")


def _n_moved(name, fraction, n):
    """Count the rows that make up a fraction of themselves and n others."""
    _check_fraction(name, fraction)
    n_moved = round(n * fraction / (1 - fraction))
    if fraction > 0 and n_moved == 0:
        raise ValueError(
            f"{name}={fraction} beside {n} rows is less than one row: give 0, or "
            f"more than {1 / (2 * n + 1):.2g}."
        )
    return n_moved


def _check_fraction(name, fraction):
    if not isinstance(fraction, Real) or not 0 <= fraction < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {fraction!r}.")


def _checked(X_train, X_test, y_train, y_test, kinds_train, kinds_test):
    """Return a valid split of as many arrays as were given: four or six."""
    _check_columns("X_train", X_train, "X_test", X_test)
    signs = _kinds("y_train", X_train, y_train), _kinds("y_test", X_test, y_test)
    if not all(np.isin(sign, (1, -1)).all() for sign in signs):
        raise ValueError(
            "y_train and y_test must be +1 for normal rows and -1 for anomalies; for "
            "labels with 1 = anomaly: np.where(y == 1, -1, 1)."
        )
    if (kinds_train is None) != (kinds_test is None):
        raise ValueError("kinds_train and kinds_test must be given together.")
    split = X_train, X_test, *(sign.astype(np.int64) for sign in signs)
    if kinds_train is None:
        return split
    kinds_train = _kinds("kinds_train", X_train, kinds_train)
    return (*split, kinds_train, _kinds("kinds_test", X_test, kinds_test))


def _kinds(name, X, y):
    """Return y as an array of one label per row of X."""
    y = complete_column(y, name)
    check_consistent_length(X, y)
    return y


def _classes(name: str, wanted: Any, *labels: ArrayLike | None) -> Sequence[Any]:
    """Return the wanted classes as a list, each of which is among the labels."""
    if isinstance(wanted, Set):
        wanted = list(wanted)
    wanted = np.atleast_1d(wanted).tolist()
    present = {kind for y in labels if y is not None for kind in np.unique(y).tolist()}
    missing = [kind for kind in wanted if kind not in present]
    if missing or not wanted:
        raise ValueError(
            f"{name} must be among the classes {sorted(present)}, got {wanted}."
        )
    return wanted


def _take(X, mask):
    """Return the rows of X under the mask."""
    if issparse(X):
        raise TypeError("X is sparse, which no detector takes: give X.toarray().")
    rows = np.flatnonzero(mask)
    if hasattr(X, "iloc"):
        return X.iloc[rows]
    return (X if _is_table(X) else np.asarray(X))[rows]


def _is_table(X):
    """Return whether X is a DataFrame, of pandas or of polars."""
    return hasattr(X, "iloc") or hasattr(X, "vstack")


def _append(X, rows):
    """Append rows of the type of X."""
    if not _is_table(X):
        return np.concatenate([X, rows])
    if hasattr(X, "vstack"):
        return X.vstack(rows)
    import pandas as pd

    return pd.concat([X, rows])
