"""Disentanglement, completeness and informativeness of latent codes."""

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

    Values = NDArray[np.float64]


class DCIScores(Bunch):
    """Result of :func:`dci_scores`, a Bunch whose attributes have types."""

    disentanglement: float
    completeness: float
    informativeness: float
    code_disentanglement: Values
    code_weights: Values
    factor_completeness: Values
    factor_informativeness: Values
    importances: Values


def dci_scores(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    classifier: Any = None,
    regressor: Any = None,
    discrete_factors: ArrayLike | bool | str = "auto",
    test_size: float | int = 0.25,
    random_state: int | np.random.RandomState | None = None,
) -> DCIScores:
    r"""Disentanglement, completeness and informativeness (DCI) of latent codes.

    For samples with known factors of variation (colour, place and size of an object,
    say), DCI measures how the latent codes of an encoder represent them. Codes are
    disentangled if each code depends on one factor at most, complete if each factor is
    in one code, and informative if the factors can be predicted from the codes.

    Parameters
    ----------
    codes : array-like of shape (n_samples, n_codes)
        Latent codes of the samples, which are standardised first.
    factors : array-like of shape (n_samples, n_factors)
        Factors of the samples, as numbers or strings; as a DataFrame, if their types
        differ.
    classifier : estimator instance, default=None
        Predicts the discrete factors. A clone is fitted to each, and needs
        `feature_importances_` or `coef_` afterwards, or a `best_estimator_` with them,
        as of :class:`~sklearn.model_selection.GridSearchCV`. None stands for a random
        forest of 30 trees with all codes at each split and leaves of 5 samples or more.
    regressor : estimator instance, default=None
        Predicts the continuous factors, which are standardised; requirements are those
        of `classifier`. None stands for a forest of the same kind.
    discrete_factors : "auto", bool or array-like of shape (n_factors,), default="auto"
        Whether factors are discrete: all of them, or each. With "auto", factors are
        continuous if they hold floats that are not all whole numbers.
    test_size : float or int, default=0.25
        Share or number of samples held out from the predictors, to measure
        informativeness.
    random_state : int, RandomState instance or None, default=None
        Draws the samples to hold out, and the default predictors. Pass an int for the
        same result each time. Given predictors keep their own.

    Returns
    -------
    Bunch
        Values are at most 1, and higher for better codes, except for `importances`.

        `disentanglement` : float
            In [0, 1]: the mean of `code_disentanglement`, weighted by `code_weights`.
        `completeness` : float
            In [0, 1]: the mean of `factor_completeness`.
        `informativeness` : float
            The mean of `factor_informativeness`.
        `code_disentanglement` : ndarray of shape (n_codes,)
            :math:`D_i`; 0 for a code without importance.
        `code_weights` : ndarray of shape (n_codes,)
            :math:`\rho_i`, which sum to 1, unless all importances are 0.
        `factor_completeness` : ndarray of shape (n_factors,)
            :math:`C_j`; 0 for a factor for which no code has importance.
        `factor_informativeness` : ndarray of shape (n_factors,)
            `score` of the predictor on the samples held out: the accuracy of a
            classifier, R² of a regressor.
        `importances` : ndarray of shape (n_codes, n_factors)
            :math:`R`, the absolute importance of each code for each predictor.

    Raises
    ------
    ValueError
        If there are less than two codes or factors, values are missing or infinite,
        lengths differ, all codes or one of the factors are constant in the samples to
        train on, a factor of strings is to be continuous, `discrete_factors` is unknown
        or of another length, or a predictor has no importances.

    See Also
    --------
    sklearn.metrics.homogeneity_completeness_v_measure : Similar scores of clusters.

    Notes
    -----
    Let :math:`R_{ij}` be the importance of code :math:`i`, of :math:`D`, to the
    predictor of factor :math:`j`, of :math:`K`. With the shares of the factors in a
    code, and of the codes in a factor,

    .. math::
        P_{ij} = R_{ij} / \sum_k R_{ik} , \qquad
        \tilde P_{ij} = R_{ij} / \sum_d R_{dj} ,

    the scores are 1 minus entropies to the base of the number of shares,

    .. math::
        D_i = 1 + \sum_j P_{ij} \log_K P_{ij} , \qquad
        C_j = 1 + \sum_i \tilde P_{ij} \log_D \tilde P_{ij} ,

    and the disentanglement of all codes is
    :math:`\sum_i \rho_i D_i` with :math:`\rho_i = \sum_j R_{ij} / \sum_{dk} R_{dk}`.

    A code without importance has no weight, but counts in :math:`D`, and so raises the
    completeness.

    Values depend on the predictor, and are only comparable for the same kind. A forest
    with a few codes at each split gives importance to codes that only correlate with
    the right one, and scores lower. Published values are often those of
    :class:`~sklearn.ensemble.GradientBoostingClassifier` with its defaults [2]_, which
    takes many times longer for hundreds of codes.

    The paper reports the error of the predictors instead of informativeness. The error
    of a regressor is :math:`\sqrt{1 - R^2}` in units of the factor's standard
    deviation. The accuracy of guessing is not 0, but the share of the most frequent
    value.

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
                f"{name} must have two columns or more, got one: the number of columns "
                "is the base of the entropy."
            )
    discrete = _are_discrete(columns, discrete_factors)

    rng = own_random_state(random_state)
    train, test = train_test_split(
        np.arange(len(Z)), test_size=test_size, random_state=rng
    )
    if not np.ptp(Z[train], axis=0).any():
        raise ValueError("All codes are constant, and hold no factor.")
    Z = StandardScaler().fit(Z[train]).transform(Z)
    seed = rng.randint(np.iinfo(np.int32).max)
    predictors = _default_predictors(seed)
    for kind, given in ((True, classifier), (False, regressor)):
        if given is not None:
            predictors[kind] = given

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
    return DCIScores(
        **disentanglement_and_completeness(importances),
        informativeness=float(scores.mean()),
        factor_informativeness=scores,
        importances=importances,
    )


def _default_predictors(seed: int) -> dict[bool, Any]:
    """Return the predictors of discrete (True) and of continuous factors (False)."""
    # One seed for all factors, so that their order does not matter.
    forest: dict[str, Any] = {"max_features": None, "min_samples_leaf": 5}
    forest |= {"n_estimators": 30, "random_state": seed}
    return {
        True: RandomForestClassifier(**forest),
        False: RandomForestRegressor(**forest),
    }


def disentanglement_and_completeness(
    importances: NDArray[np.float64],
) -> dict[str, Any]:
    """Return scores and weights from importances (n_codes, n_factors), all >= 0."""
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


def _shares(parts: Values, whole: Values) -> Values:
    """Return parts over the whole, and 0 where the whole is 0."""
    return np.divide(parts, whole, out=np.zeros_like(parts), where=whole > 0)


def _concentration(shares: Values, axis: int) -> Values:
    """Return 1 for a single share, 0 for equal shares and for none."""
    entropy = entr(shares).sum(axis=axis) / np.log(shares.shape[axis])
    # Rounding may raise the entropy of equal shares above 1.
    return np.where(shares.any(axis=axis), np.clip(1 - entropy, 0, 1), 0.0)


def _factor_columns(factors: Any) -> list[NDArray[Any]]:
    """Return the columns of the factors, each with its own type."""
    if hasattr(factors, "iloc") and factors.ndim > 1:
        found = [factors.iloc[:, j] for j in range(factors.shape[1])]
    else:
        # As objects: NumPy would turn a NaN among strings into the string "nan".
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


def _are_discrete(columns: list[NDArray[Any]], discrete_factors: Any) -> list[bool]:
    if isinstance(discrete_factors, str) and discrete_factors == "auto":
        return [type_of_target(column) != "continuous" for column in columns]
    given = np.asarray(discrete_factors)
    if given.dtype.kind != "b" or given.shape not in ((), (len(columns),)):
        raise ValueError(
            'discrete_factors must be "auto", True, False, or one of these two for '
            f"each of {len(columns)} factors, got {discrete_factors!r}."
        )
    discrete: list[bool] = np.broadcast_to(given, len(columns)).tolist()
    for j, column in enumerate(columns):
        if not discrete[j] and column.dtype.kind in "US":
            raise ValueError(f"The factor in column {j} holds strings: it is discrete.")
    return discrete


def _importances(predictor: Any) -> Values:
    """Return the importance of each code, as a mean over classes."""
    predictor = getattr(predictor, "best_estimator_", predictor)
    for name in ("feature_importances_", "coef_"):
        if hasattr(predictor, name):
            # Importances of boosted trees may be slightly negative.
            found: Values = np.abs(getattr(predictor, name))
            return found if found.ndim == 1 else found.mean(axis=0)
    raise ValueError(
        f"{type(predictor).__name__} has neither feature_importances_ nor coef_ after "
        "fit, which are the importances of the codes."
    )
