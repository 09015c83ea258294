"""Disentanglement, completeness and informativeness of codes, given the factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import entr
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Bunch, check_array, check_consistent_length
from sklearn.utils.multiclass import type_of_target

from ..utils._labels import complete_column
from ..utils._random import own_random_state

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def dci_scores(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    classifier: Any = None,
    regressor: Any = None,
    discrete_factors: ArrayLike | bool | str = "auto",
    test_size: float | int = 0.25,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    r"""Disentanglement, completeness and informativeness (DCI) of codes.

    For rows whose factors of variation are known (the colour, the place and the size
    of what is seen, say), DCI asks how the codes of an encoder hold them. Codes are
    disentangled if each code tells of one factor at most, complete if each factor is
    told by one code, and informative if the factors can be predicted from the codes.

    Parameters
    ----------
    codes : array-like of shape (n_samples, n_codes)
        The codes: what an encoder makes of the rows. They are standardised first.
    factors : array-like of shape (n_samples, n_factors)
        The factors that the rows were made from, in numbers or strings; in a DataFrame,
        if their types differ.
    classifier : estimator instance, default=None
        Predicts the discrete factors. A clone of it is fitted to each one, after which
        it has to have `feature_importances_` or `coef_`; a search, such as
        :class:`~sklearn.model_selection.GridSearchCV`, has them in its
        `best_estimator_`. With None, it is a random forest of 30 trees that looks at
        all codes for each split, and stops at leaves of 5 rows.
    regressor : estimator instance, default=None
        Predicts the continuous factors, as `classifier` does the discrete ones. It is
        given standardised factors. With None, it is a forest of the same kind.
    discrete_factors : "auto", bool or array-like of shape (n_factors,), default="auto"
        Whether factors are discrete: each, all or none of them. With "auto", factors
        are continuous if they hold floats that are not all whole numbers.
    test_size : float or int, default=0.25
        Share or number of the rows on which informativeness is measured, and which the
        predictors are not fitted to.
    random_state : int, RandomState instance or None, default=None
        Draws the rows to test on, and the default predictors. Pass an int for the same
        result each time. Predictors that are given keep their own.

    Returns
    -------
    Bunch
        All values but `importances` are higher where codes are better, and at most 1.

        `disentanglement` : float
            In [0, 1]: the mean of `code_disentanglement`, weighted by `code_weights`.
        `completeness` : float
            In [0, 1]: the mean of `factor_completeness`.
        `informativeness` : float
            The mean of `factor_informativeness`.
        `code_disentanglement` : ndarray of shape (n_codes,)
            :math:`D_i`; 0 for a code that is of no importance.
        `code_weights` : ndarray of shape (n_codes,)
            :math:`\rho_i`, which sum to 1, unless all importances are 0.
        `factor_completeness` : ndarray of shape (n_factors,)
            :math:`C_j`; 0 for a factor to which no code is of importance.
        `factor_informativeness` : ndarray of shape (n_factors,)
            What `score` of the predictor says of the rows held out: the accuracy of a
            classifier, R² of a regressor.
        `importances` : ndarray of shape (n_codes, n_factors)
            :math:`R`, the absolute importance of each code to each predictor.

    Raises
    ------
    ValueError
        If there are less than two codes or factors, values are missing or infinite,
        lengths differ, all codes or one of the factors are constant in the rows to
        train on, strings are said to be continuous, `discrete_factors` is unknown or
        of another length, or a predictor has no importances.

    See Also
    --------
    sklearn.metrics.homogeneity_completeness_v_measure : The like for clusters.

    Notes
    -----
    Let :math:`R_{ij}` be the importance of code :math:`i`, of :math:`D`, to the
    predictor of factor :math:`j`, of :math:`K`. With the shares of the factors in a
    code, and of the codes in a factor,

    .. math::
        P_{ij} = R_{ij} / \sum_k R_{ik} , \qquad
        \tilde P_{ij} = R_{ij} / \sum_d R_{dj} ,

    the scores are one minus entropies to the base of the number of shares,

    .. math::
        D_i = 1 + \sum_j P_{ij} \log_K P_{ij} , \qquad
        C_j = 1 + \sum_i \tilde P_{ij} \log_D \tilde P_{ij} ,

    and the disentanglement of all codes is
    :math:`\sum_i \rho_i D_i` with :math:`\rho_i = \sum_j R_{ij} / \sum_{dk} R_{dk}`.

    A code that is of no importance has no weight, but it counts in :math:`D`, and so
    brings the completeness of the others nearer to 1.

    Values depend on the predictor: compare those of one kind alone. A forest that looks
    at a few codes for each split gives importance to codes that merely correlate with
    the right one, and scores lower. Published values are often those of
    :class:`~sklearn.ensemble.GradientBoostingClassifier` with its defaults [2]_, which
    takes many times longer where there are hundreds of codes.

    The paper has the error of the predictors in the place of informativeness. That of a
    regressor is :math:`\sqrt{1 - R^2}` in units of the factor's standard deviation.
    The accuracy of guessing is not 0, but the share of the most frequent value.

    References
    ----------
    .. [1] C. Eastwood and C. K. I. Williams, "A framework for the quantitative
       evaluation of disentangled representations", ICLR 2018.
    .. [2] F. Locatello et al., "Challenging common assumptions in the unsupervised
       learning of disentangled representations", ICML 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly.metrics import dci_scores
    >>> rng = np.random.default_rng(0)
    >>> factors = rng.integers(4, size=(500, 2))
    >>> codes = factors @ [[0, 2], [-1, 0]] + rng.uniform(-0.3, 0.3, size=(500, 2))
    >>> scores = dci_scores(codes, factors, random_state=0)
    >>> round(scores.disentanglement, 2), round(scores.completeness, 2)
    (1.0, 1.0)
    >>> turned = codes @ [[1, 1], [1, -1]]
    >>> scores = dci_scores(turned, factors, random_state=0)
    >>> scores.disentanglement < 0.5
    True
    """
    Z = check_array(codes, dtype=np.float64, input_name="codes")
    columns = _factor_columns(factors)
    check_consistent_length(Z, columns[0])
    for name, n_columns in (("codes", Z.shape[1]), ("factors", len(columns))):
        if n_columns < 2:
            raise ValueError(
                f"{name} must have two columns or more, got one: the entropy has the "
                "number of columns for its base."
            )
    discrete = _are_discrete(columns, discrete_factors)

    rng = own_random_state(random_state)
    train, test = train_test_split(
        np.arange(len(Z)), test_size=test_size, random_state=rng
    )
    if not np.ptp(Z[train], axis=0).any():
        raise ValueError("All codes are constant, and tell of no factor.")
    Z = StandardScaler().fit(Z[train]).transform(Z)
    # One seed for all factors, so that their order does not matter.
    forest = {"n_estimators": 30, "max_features": None, "min_samples_leaf": 5}
    forest["random_state"] = rng.randint(np.iinfo(np.int32).max)
    predictors = {
        True: RandomForestClassifier(**forest) if classifier is None else classifier,
        False: RandomForestRegressor(**forest) if regressor is None else regressor,
    }

    importances = np.empty((Z.shape[1], len(columns)))
    scores = np.empty(len(columns))
    for j, (column, kind) in enumerate(zip(columns, discrete, strict=True)):
        if (column[train] == column[train[0]]).all():
            raise ValueError(f"The factor in column {j} is constant: leave it out.")
        if not kind:
            column = (column - column[train].mean()) / column[train].std()
        predictor = clone(predictors[kind]).fit(Z[train], column[train])
        importances[:, j] = _importances(predictor)
        scores[j] = predictor.score(Z[test], column[test])
    return Bunch(
        **disentanglement_and_completeness(importances),
        informativeness=float(scores.mean()),
        factor_informativeness=scores,
        importances=importances,
    )


def disentanglement_and_completeness(
    importances: NDArray[np.float64],
) -> dict[str, Any]:
    """Return what `dci_scores` says of importances (n_codes, n_factors), all >= 0."""
    R = np.asarray(importances, dtype=np.float64)
    of_codes, of_factors = R.sum(axis=1), R.sum(axis=0)
    weights = _shares(of_codes, of_codes.sum())
    D = _concentration(_shares(R, of_codes[:, None]), axis=1)
    C = _concentration(_shares(R, of_factors), axis=0)
    return {
        "disentanglement": float(weights @ D),
        "completeness": float(C.mean()),
        "code_disentanglement": D,
        "code_weights": weights,
        "factor_completeness": C,
    }


def _shares(parts: NDArray, whole: NDArray) -> NDArray:
    """Divide, and return 0 where there is nothing to share."""
    return np.divide(parts, whole, out=np.zeros_like(parts), where=whole > 0)


def _concentration(shares: NDArray, axis: int) -> NDArray:
    """Return 1 for a single share, 0 for equal ones, and 0 where there is none."""
    entropy = entr(shares).sum(axis=axis) / np.log(shares.shape[axis])
    # Equal shares may add up to an entropy of slightly more than 1.
    return np.where(shares.any(axis=axis), np.clip(1 - entropy, 0, 1), 0.0)


def _factor_columns(factors: Any) -> list[NDArray]:
    """Return the factors one by one, each of its own type."""
    if hasattr(factors, "iloc") and factors.ndim > 1:
        found = [factors.iloc[:, j] for j in range(factors.shape[1])]
    else:
        # As objects: NumPy would make the string "nan" of a NaN beside strings.
        options = {"dtype": object, "ensure_all_finite": False}
        found = list(check_array(factors, **options, input_name="factors").T)
    columns = []
    for j, given in enumerate(found):
        column = complete_column(given, f"The factor in column {j}")
        if column.dtype.kind == "O":
            column = np.asarray(column.tolist())
        if column.dtype.kind not in "biufUS":
            raise ValueError(f"The factor in column {j} must be numbers or strings.")
        columns.append(check_array(column, ensure_2d=False, dtype=None))
    return columns


def _are_discrete(columns: list[NDArray], discrete_factors: Any) -> list[bool]:
    if isinstance(discrete_factors, str) and discrete_factors == "auto":
        return [type_of_target(column) != "continuous" for column in columns]
    given = np.asarray(discrete_factors)
    if given.dtype.kind != "b" or given.shape not in ((), (len(columns),)):
        raise ValueError(
            'discrete_factors must be "auto", True, False, or one of these two for '
            f"each of {len(columns)} factors, got {discrete_factors!r}."
        )
    discrete = np.broadcast_to(given, len(columns)).tolist()
    for j, column in enumerate(columns):
        if not discrete[j] and column.dtype.kind in "US":
            raise ValueError(f"The factor in column {j} holds strings: it is discrete.")
    return discrete


def _importances(predictor: Any) -> NDArray:
    """Return the importance of each code, the mean over classes if there are many."""
    predictor = getattr(predictor, "best_estimator_", predictor)
    for name in ("feature_importances_", "coef_"):
        if hasattr(predictor, name):
            # Boosted trees may give an importance of a little less than 0.
            found = np.abs(getattr(predictor, name))
            return found if found.ndim == 1 else found.mean(axis=0)
    raise ValueError(
        f"{type(predictor).__name__} has neither feature_importances_ nor coef_ after "
        "fit, from which the importance of the codes is read."
    )
