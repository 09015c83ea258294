"""The protocols of anomaly detection benchmarks, as pure functions of arrays.

`one_vs_rest` and `hold_one_out` split labelled data; `contaminate` and
`labelled_anomalies` move anomalies of such a split into its training set. All four
return ``X_train, X_test, y_train, y_test``, followed by the kinds if they are known, so
that a split is passed on as ``f(*split)``. The samples of a corpus come last:
``*split, corpus = one_vs_rest(...)``. `across_domains` does all of this at once for two
data sets, and returns the domains after the four.
"""

from functools import partial
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from ..utils._random import own_random_state
from ._splits import (
    append,
    check_alike,
    checked_split,
    classes_of,
    corpus_classes,
    given_kinds,
    kinds_of,
    move,
    n_moved,
    sign_of,
    split_by_sign,
    take,
    thinned,
)
from ._types import (
    ClassLabels,
    Kinds,
    Labels,
    RandomState,
    Samples,
    Split,
    SplitWithKinds,
)


@overload
def one_vs_rest(
    X: Samples,
    y: ArrayLike,
    normal_class: ClassLabels,
    *,
    test_size: float = ...,
    corpus_class: None = ...,
    X_test: Samples | None = ...,
    y_test: ArrayLike | None = ...,
    return_kinds: Literal[False] = ...,
    random_state: RandomState = ...,
) -> Split[Samples]: ...
@overload
def one_vs_rest(
    X: Samples,
    y: ArrayLike,
    normal_class: ClassLabels,
    *,
    test_size: float = ...,
    corpus_class: None = ...,
    X_test: Samples | None = ...,
    y_test: ArrayLike | None = ...,
    return_kinds: Literal[True],
    random_state: RandomState = ...,
) -> SplitWithKinds[Samples]: ...
@overload
def one_vs_rest(
    X: Samples,
    y: ArrayLike,
    normal_class: ClassLabels,
    *,
    test_size: float = ...,
    corpus_class: ClassLabels,
    X_test: Samples | None = ...,
    y_test: ArrayLike | None = ...,
    return_kinds: Literal[False] = ...,
    random_state: RandomState = ...,
) -> tuple[Samples, Samples, Labels, Labels, Samples]: ...
@overload
def one_vs_rest(
    X: Samples,
    y: ArrayLike,
    normal_class: ClassLabels,
    *,
    test_size: float = ...,
    corpus_class: ClassLabels,
    X_test: Samples | None = ...,
    y_test: ArrayLike | None = ...,
    return_kinds: Literal[True],
    random_state: RandomState = ...,
) -> tuple[Samples, Samples, Labels, Labels, Kinds, Kinds, Samples, Kinds]: ...
def one_vs_rest(
    X: Any,
    y: ArrayLike,
    normal_class: ClassLabels,
    *,
    test_size: float = 0.4,
    corpus_class: ClassLabels | None = None,
    X_test: Any = None,
    y_test: ArrayLike | None = None,
    return_kinds: bool = False,
    random_state: RandomState = None,
) -> tuple[Any, ...]:
    """Take some classes as normal and all others as anomalies.

    The training set holds only normal samples. The test set holds the rest: the normal
    samples held out, drawn class by class, and every anomaly. Samples keep their order.
    With an official test set (`X_test` and `y_test`) nothing is drawn: the training set
    is all normal samples of `X`, the test set is `X_test` as it is.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        Samples of any shape: an array, a memory map or a DataFrame of pandas or polars.
    y : array-like of shape (n_samples,)
        Class labels, numbers or strings.
    normal_class : label, sequence or set of labels
        The normal class or classes.
    test_size : float, default=0.4
        Fraction in [0, 1) of the samples of each normal class to hold out. With 0, the
        test set is only the anomalies: a pool for `contaminate` and
        `labelled_anomalies`. Ignored with an official test set.
    corpus_class : label, sequence or set of labels, default=None
        Classes that are neither normal nor anomalous: their samples in `X` are a corpus
        for outlier exposure, from the same source as the normal samples, and those in
        `X_test` are left out. A detector that learns from this corpus learns nothing of
        the anomalies.
    X_test, y_test : array-likes of shape (n_test, ...) and (n_test,), default=None
        The official test set and its class labels.
    return_kinds : bool, default=False
        Whether to return also the class labels of both sets.
    random_state : int, RandomState instance or None, default=None
        Draws the samples held out. An int makes the split reproducible.

    Returns
    -------
    X_train, X_test : of shape (n_train, ...) and (n_test, ...)
        Samples of the type of `X`.
    y_train, y_test : ndarrays of shape (n_train,) and (n_test,)
        +1 for normal samples and -1 for anomalies, int64; `y_train` is +1 throughout.
    kinds_train, kinds_test : ndarrays of shape (n_train,) and (n_test,)
        Class labels, with `return_kinds` only.
    X_corpus : of shape (n_corpus, ...)
        Samples of the corpus, with `corpus_class` only.
    kinds_corpus : ndarray of shape (n_corpus,)
        Their class labels, with `corpus_class` and `return_kinds` only.

    Raises
    ------
    ValueError
        If a label is missing, a class is in neither `y` nor `y_test`, a class of the
        corpus is not in `y` or is also a normal one, `test_size` is out of range, only
        one of `X_test` and `y_test` is given, the training set or an official test set
        has no normal sample, or the test set no anomaly.

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
    kinds, kinds_test = given_kinds(X, y, X_test, y_test)
    classes = classes_of("normal_class", normal_class, kinds, kinds_test)
    corpus = corpus_classes(corpus_class, kinds, "normal_class", classes)
    sign = partial(sign_of, classes, 1, -1, corpus)
    drawn = test_size, random_state
    return split_by_sign(
        X, kinds, X_test, kinds_test, sign, drawn, return_kinds, bool(corpus)
    )


@overload
def hold_one_out(
    X: Samples,
    y: ArrayLike,
    anomalous_class: ClassLabels,
    *,
    test_size: float = ...,
    corpus_class: None = ...,
    X_test: Samples | None = ...,
    y_test: ArrayLike | None = ...,
    return_kinds: Literal[False] = ...,
    random_state: RandomState = ...,
) -> Split[Samples]: ...
@overload
def hold_one_out(
    X: Samples,
    y: ArrayLike,
    anomalous_class: ClassLabels,
    *,
    test_size: float = ...,
    corpus_class: None = ...,
    X_test: Samples | None = ...,
    y_test: ArrayLike | None = ...,
    return_kinds: Literal[True],
    random_state: RandomState = ...,
) -> SplitWithKinds[Samples]: ...
@overload
def hold_one_out(
    X: Samples,
    y: ArrayLike,
    anomalous_class: ClassLabels,
    *,
    test_size: float = ...,
    corpus_class: ClassLabels,
    X_test: Samples | None = ...,
    y_test: ArrayLike | None = ...,
    return_kinds: Literal[False] = ...,
    random_state: RandomState = ...,
) -> tuple[Samples, Samples, Labels, Labels, Samples]: ...
@overload
def hold_one_out(
    X: Samples,
    y: ArrayLike,
    anomalous_class: ClassLabels,
    *,
    test_size: float = ...,
    corpus_class: ClassLabels,
    X_test: Samples | None = ...,
    y_test: ArrayLike | None = ...,
    return_kinds: Literal[True],
    random_state: RandomState = ...,
) -> tuple[Samples, Samples, Labels, Labels, Kinds, Kinds, Samples, Kinds]: ...
def hold_one_out(
    X: Any,
    y: ArrayLike,
    anomalous_class: ClassLabels,
    *,
    test_size: float = 0.4,
    corpus_class: ClassLabels | None = None,
    X_test: Any = None,
    y_test: ArrayLike | None = None,
    return_kinds: bool = False,
    random_state: RandomState = None,
) -> tuple[Any, ...]:
    """Take some classes as anomalies and all others as normal.

    Otherwise like `one_vs_rest`: the training set holds only normal samples, the test
    set holds the rest.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        Samples of any shape: an array, a memory map or a DataFrame of pandas or polars.
    y : array-like of shape (n_samples,)
        Class labels, numbers or strings.
    anomalous_class : label, sequence or set of labels
        The anomalous class or classes.
    test_size : float, default=0.4
        Fraction in [0, 1) of the samples of each normal class to hold out. Ignored with
        an official test set.
    corpus_class : label, sequence or set of labels, default=None
        Classes of a corpus, neither normal nor anomalous.
    X_test, y_test : array-likes of shape (n_test, ...) and (n_test,), default=None
        The official test set and its class labels.
    return_kinds : bool, default=False
        Whether to return also the class labels of both sets.
    random_state : int, RandomState instance or None, default=None
        Draws the samples held out. An int makes the split reproducible.

    Returns
    -------
    X_train, X_test : of shape (n_train, ...) and (n_test, ...)
        Samples of the type of `X`.
    y_train, y_test : ndarrays of shape (n_train,) and (n_test,)
        +1 for normal samples and -1 for anomalies, int64; `y_train` is +1 throughout.
    kinds_train, kinds_test : ndarrays of shape (n_train,) and (n_test,)
        Class labels, with `return_kinds` only.
    X_corpus : of shape (n_corpus, ...)
        Samples of the corpus, with `corpus_class` only.
    kinds_corpus : ndarray of shape (n_corpus,)
        Their class labels, with `corpus_class` and `return_kinds` only.

    Raises
    ------
    ValueError
        For the same reasons as in `one_vs_rest`.

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
    kinds, kinds_test = given_kinds(X, y, X_test, y_test)
    classes = classes_of("anomalous_class", anomalous_class, kinds, kinds_test)
    corpus = corpus_classes(corpus_class, kinds, "anomalous_class", classes)
    sign = partial(sign_of, classes, -1, 1, corpus)
    drawn = test_size, random_state
    return split_by_sign(
        X, kinds, X_test, kinds_test, sign, drawn, return_kinds, bool(corpus)
    )


@overload
def contaminate(
    X_train: Samples,
    X_test: Samples,
    y_train: ArrayLike,
    y_test: ArrayLike,
    kinds_train: None = ...,
    kinds_test: None = ...,
    *,
    contamination: float = ...,
    random_state: RandomState = ...,
) -> Split[Samples]: ...
@overload
def contaminate(
    X_train: Samples,
    X_test: Samples,
    y_train: ArrayLike,
    y_test: ArrayLike,
    kinds_train: ArrayLike,
    kinds_test: ArrayLike,
    *,
    contamination: float = ...,
    random_state: RandomState = ...,
) -> SplitWithKinds[Samples]: ...
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

    They become the given fraction of the **resulting** training set: n g / (1 - g)
    anomalies, rounded, for n normal samples and a contamination g. They are drawn at
    random from all kinds, and appended to the training samples.

    Parameters
    ----------
    X_train, X_test : array-likes of shape (n_train, ...) and (n_test, ...)
        A split. The second set may be any pool of samples to draw from.
    y_train, y_test : array-likes of shape (n_train,) and (n_test,)
        +1 for normal samples and -1 for anomalies; `y_train` is +1 throughout.
    kinds_train, kinds_test : array-likes of shape (n_train,) and (n_test,), optional
        Class labels of the samples, which are moved with them.
    contamination : float, default=0.1
        Fraction in [0, 1) of anomalies in the resulting training set.
    random_state : int, RandomState instance or None, default=None
        Draws the anomalies. An int makes the draw reproducible.

    Returns
    -------
    X_train, X_test : of shape (n_train + n_moved, ...) and (n_test - n_moved, ...)
        Samples of the types given.
    y_train, y_test : ndarrays of shape (n_train + n_moved,) and (n_test - n_moved,)
        The true labels. A detector that uses labels would take the -1 in `y_train` as
        known: fit it on `X_train` alone, or on the result of `labelled_anomalies`.
    kinds_train, kinds_test : ndarrays, shaped as `y_train` and `y_test`
        Class labels, if they were given.

    Raises
    ------
    ValueError
        If `contamination` is out of range or less than one sample, there are too few
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
    split = checked_split(X_train, X_test, y_train, y_test, kinds_train, kinds_test)
    sign_train, sign_test = split[2:4]
    if (sign_train == -1).any():
        raise ValueError(
            "y_train already holds anomalies (-1): contaminate once, and before "
            "labelled_anomalies."
        )
    n_wanted = n_moved("contamination", contamination, len(sign_train))
    return move(split, sign_test == -1, n_wanted, random_state)


@overload
def labelled_anomalies(
    X_train: Samples,
    X_test: Samples,
    y_train: ArrayLike,
    y_test: ArrayLike,
    kinds_train: None = ...,
    kinds_test: None = ...,
    *,
    ratio: float = ...,
    kinds: ClassLabels | None = ...,
    random_state: RandomState = ...,
) -> Split[Samples]: ...
@overload
def labelled_anomalies(
    X_train: Samples,
    X_test: Samples,
    y_train: ArrayLike,
    y_test: ArrayLike,
    kinds_train: ArrayLike,
    kinds_test: ArrayLike,
    *,
    ratio: float = ...,
    kinds: ClassLabels | None = ...,
    random_state: RandomState = ...,
) -> SplitWithKinds[Samples]: ...
def labelled_anomalies(
    X_train: Any,
    X_test: Any,
    y_train: ArrayLike,
    y_test: ArrayLike,
    kinds_train: ArrayLike | None = None,
    kinds_test: ArrayLike | None = None,
    *,
    ratio: float = 0.05,
    kinds: ClassLabels | None = None,
    random_state: RandomState = None,
) -> tuple[Any, ...]:
    """Move anomalies of the test set, labelled, into the training set.

    They become the given fraction of the **whole** resulting training set, as in Deep
    SAD: n g / (1 - g) anomalies, rounded, for n training samples, contamination
    included, and a ratio g. They are drawn at random from the anomalies of known kinds,
    and appended to the training samples. The other kinds stay unknown until the test.

    Parameters
    ----------
    X_train, X_test : array-likes of shape (n_train, ...) and (n_test, ...)
        A split. The second set may be any pool of samples to draw from.
    y_train, y_test : array-likes of shape (n_train,) and (n_test,)
        +1 for normal samples and -1 for anomalies. All training samples count as
        unlabelled, those with -1 too: a second call would forget the first one's.
    kinds_train, kinds_test : array-likes of shape (n_train,) and (n_test,), optional
        Class labels of the samples, which are moved with them. Needed for `kinds`.
    ratio : float, default=0.05
        Fraction in [0, 1) of labelled anomalies in the resulting training set.
    kinds : label, sequence or set of labels, default=None
        Class labels of the known kinds of anomalies. With None, all are known.
    random_state : int, RandomState instance or None, default=None
        Draws the anomalies. An int makes the draw reproducible.

    Returns
    -------
    X_train, X_test : of shape (n_train + n_moved, ...) and (n_test - n_moved, ...)
        Samples of the types given.
    y_train, y_test : ndarrays of shape (n_train + n_moved,) and (n_test - n_moved,)
        `y_train` has the labels for a detector: -1 for the labelled anomalies, +1 for
        all other samples. `y_test` has the true labels.
    kinds_train, kinds_test : ndarrays, shaped as `y_train` and `y_test`
        Class labels, if they were given, to score known and unknown kinds separately.

    Raises
    ------
    ValueError
        If `ratio` is out of range or less than one sample, there are too few anomalies
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

    The normal samples and the anomalies of unknown kinds, to score them separately:

    >>> unknown = ~np.isin(kinds_test, 2)
    >>> len(X_test), len(X_test[unknown])
    (22, 14)
    """
    split = checked_split(X_train, X_test, y_train, y_test, kinds_train, kinds_test)
    sign_train, sign_test, *labels = split[2:]
    eligible = sign_test == -1
    if kinds is not None:
        if not labels:
            raise ValueError(
                "kinds needs kinds_train and kinds_test: split with return_kinds=True."
            )
        known = classes_of("kinds", kinds, labels[1][eligible])
        eligible &= np.isin(labels[1], known)
    n_wanted = n_moved("ratio", ratio, len(sign_train))
    unlabelled = np.ones_like(sign_train)
    split = (X_train, X_test, unlabelled, sign_test, *labels)
    return move(split, eligible, n_wanted, random_state)


def across_domains(
    X_source: Samples,
    y_source: ArrayLike,
    X_target: Samples,
    y_target: ArrayLike,
    normal_class: ClassLabels,
    *,
    contamination: float = 0.1,
    test_contamination: float | Literal["same"] | None = "same",
    test_size: float = 0.4,
    X_test: Samples | None = None,
    y_test: ArrayLike | None = None,
    random_state: RandomState = None,
) -> tuple[Samples, Samples, Labels, Labels, Labels]:
    """Take a source of normal samples and a contaminated target from two data sets.

    The training set holds all normal samples of the source, then a mixture of the
    target: its normal samples, and as many anomalies as make up the fraction
    `contamination` of the mixture. The test set holds only target samples that are not
    in the training set. This is the protocol of Fan et al. [1]_ for digits.

    Parameters
    ----------
    X_source, y_source : array-likes of shape (n_source, ...) and (n_source,)
        Samples of the source and their class labels, numbers or strings.
    X_target, y_target : array-likes of shape (n_target, ...) and (n_target,)
        Samples of the target, of the same shape as those of the source (resize images
        of another size first), and their class labels.
    normal_class : label, sequence or set of labels
        The normal class or classes.
    contamination : float, default=0.1
        Fraction in [0, 1) of anomalies among the target samples of the training set.
    test_contamination : float, "same" or None, default="same"
        Fraction in [0, 1) of anomalies in the test set, more than 0. With "same", it is
        `contamination`; with None, the test set has all remaining anomalies.
    test_size : float, default=0.4
        Fraction in [0, 1) of the target samples of each normal class to hold out.
        Ignored with an official test set.
    X_test, y_test : array-likes of shape (n_test, ...) and (n_test,), default=None
        The official test set of the target and its class labels. The training set then
        has all normal samples of `X_target`, and the test set is drawn from `X_test`.
    random_state : int, RandomState instance or None, default=None
        Draws the samples held out and the anomalies. An int makes the split
        reproducible.

    Returns
    -------
    X_train, X_test : of shape (n_train, ...) and (n_test, ...)
        Samples of the types given, the source before the target.
    y_train, y_test : ndarrays of shape (n_train,) and (n_test,)
        The true labels: +1 for normal samples and -1 for anomalies, int64. Labels of
        target samples are for evaluation: a detector that uses labels would take a -1
        in `y_train` as known.
    sample_domain : ndarray of shape (n_train,)
        +1 for source samples and -1 for target samples of `X_train`, int64.

    Raises
    ------
    ValueError
        If samples differ in shape or columns, or only one data set has bytes; if a
        label is missing, or a normal class in the source or the target; if a fraction
        is out of range or less than one sample, there are too few anomalies for it, or
        the test set would have no anomaly or no normal sample; or if only one of
        `X_test` and `y_test` is given.

    See Also
    --------
    contaminate : Contaminates a split of one data set.
    skanomaly.model_selection.TargetKFold : Cross-validates on the target samples.

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
    for name, samples in (("X_target", X_target), ("X_test", X_test)):
        if samples is not None:
            check_alike("X_source", X_source, name, samples)
    kinds = kinds_of("y_source", X_source, y_source)
    source = np.isin(kinds, classes_of("normal_class in y_source", normal_class, kinds))
    y_target = kinds_of("y_target", X_target, y_target)
    rng = own_random_state(random_state)
    official = {"test_size": test_size, "X_test": X_test, "y_test": y_test}
    X_target, X_test, sign_target, sign_test = _mixture(
        X_target, y_target, normal_class, contamination, official, rng
    )
    share = contamination if test_contamination == "same" else test_contamination
    tested = thinned(sign_test, share, rng)
    X_train = append(take(X_source, source), X_target)
    of_source = np.ones(np.count_nonzero(source), dtype=np.int64)
    y_train = np.concatenate([of_source, sign_target])
    sample_domain = np.concatenate([of_source, -np.ones_like(sign_target)])
    return X_train, take(X_test, tested), y_train, sign_test[tested], sample_domain


def _mixture(
    X: Any,
    y: ArrayLike,
    normal_class: ClassLabels,
    contamination: float,
    official: dict[str, Any],
    rng: np.random.RandomState,
) -> tuple[Any, ...]:
    """Return a contaminated training set and the remaining samples."""
    split = one_vs_rest(X, y, normal_class, **official, random_state=rng)
    if official["X_test"] is None:
        return contaminate(*split, contamination=contamination, random_state=rng)
    # The anomalies for training are drawn from the training part: split by itself, it
    # has them as its test set.
    pool = one_vs_rest(X, y, normal_class, test_size=0)
    mixture = contaminate(*pool, contamination=contamination, random_state=rng)
    return mixture[0], split[1], mixture[2], split[3]
