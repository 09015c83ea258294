"""The splitters: training parts, test parts, errors."""

import subprocess
import sys
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    PredefinedSplit,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
)
from sklearn.svm import OneClassSVM

from skanomaly.datasets import (
    across_domains,
    contaminate,
    labelled_anomalies,
    one_vs_rest,
)
from skanomaly.metrics import detector_roc_auc
from skanomaly.model_selection import LeaveAnomalyKindOut, TargetKFold

KINDS = np.array(["dos", "probe", "r2l"])


@pytest.fixture
def rows():
    """Return X, y and kinds: 23 normal, 9 unlabelled, 3 + 5 + 2 anomalies, mixed."""
    rng = np.random.default_rng(0)
    kinds = np.repeat(["", "?", *KINDS], [23, 9, 3, 5, 2])
    y = np.repeat([1, 0, -1], [23, 9, 10])
    order = rng.permutation(len(y))
    X = rng.normal(size=(len(y), 2)) + 5 * (y == -1)[:, None]
    return X[order], y[order], kinds[order]


@pytest.fixture
def labelled(rows):
    """Return the samples without the unlabelled ones, as scorers want them."""
    X, y, kinds = rows
    return X[y != 0], y[y != 0], kinds[y != 0]


def splits(cv, X, y, groups=None):
    return [(train.tolist(), test.tolist()) for train, test in cv.split(X, y, groups)]


# ---------------------------------------------------------------- the parts


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_split_leaves_one_kind_out(rows, shuffle):
    X, y, kinds = rows
    cv = LeaveAnomalyKindOut(kinds, shuffle=shuffle, random_state=shuffle or None)
    found = list(cv.split(X, y))
    assert len(found) == cv.get_n_splits(X, y) == 3
    for kept_out, (train, test) in zip(KINDS, found, strict=True):
        assert set(kinds[test][y[test] == -1]) == {kept_out}
        assert set(kinds[train][y[train] == -1]) == set(KINDS) - {kept_out}


def test_parts_are_disjoint_and_complete(rows):
    X, y, kinds = rows
    found = splits(LeaveAnomalyKindOut(kinds, random_state=0), X, y)
    for train, test in found:
        assert not set(train) & set(test)
        assert sorted(train + test) == list(range(len(y)))
        assert train == sorted(train)
        assert test == sorted(test)
    tested = [row for _, test in found for row in test]
    assert sorted(tested) == np.flatnonzero(y).tolist()


@pytest.mark.parametrize("n_others", [3, 4, 5, 6, 31, 32])
@pytest.mark.parametrize("shuffle", [True, False])
def test_folds_of_the_other_rows_are_of_one_size(n_others, shuffle):
    y = np.repeat([1, -1], [n_others, 7])
    kinds = np.r_[np.zeros(n_others, int), [1, 1, 1, 1, 1, 2, 3]]
    cv = LeaveAnomalyKindOut(kinds, shuffle=shuffle)
    sizes = [np.sum(y[test] == 1) for _, test in cv.split(y, y)]
    assert sum(sizes) == n_others
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0


def test_normal_rows_are_mixed_by_shuffling(rows):
    _, y, kinds = rows
    order = np.argsort(-y, kind="stable")
    y, kinds = y[order], kinds[order]
    cv = LeaveAnomalyKindOut(kinds, random_state=0)
    normal = [test[y[test] == 1] for _, test in cv.split(y, y)]
    assert all(np.ptp(rows) >= len(rows) for rows in normal)


@pytest.mark.parametrize("scoring", ["roc_auc", detector_roc_auc])
def test_unlabelled_rows_are_trained_on_alone(rows, scoring):
    """Unlabelled samples were in the test parts, and every score was NaN."""
    X, y, kinds = rows
    cv = LeaveAnomalyKindOut(kinds, random_state=0)
    for train, test in cv.split(X, y):
        assert set(np.flatnonzero(y == 0)) <= set(train)
        assert set(y[test]) == {1, -1}
    forest = IsolationForest(random_state=0)
    scores = cross_val_score(forest, X, y, cv=cv, scoring=scoring)
    assert (scores > 0.8).all()


def test_labels_without_a_normal_row_are_refused(rows):
    _, y, kinds = rows
    y[y == 1] = 0
    with pytest.raises(ValueError, match=r"0 samples are normal \(1 in y\).*mark them"):
        LeaveAnomalyKindOut(kinds).split(y, y)


def test_missing_labels_are_refused(rows):
    _, y, kinds = rows
    for nothing in (None, np.nan, pd.NA):
        known = y.astype(object)
        known[0] = nothing
        with pytest.raises(
            ValueError, match="y, where 0 marks an unlabelled sample, has"
        ):
            LeaveAnomalyKindOut(kinds).split(y, known)


def test_without_shuffling_the_folds_follow_the_rows():
    y = [1, -1, 1, 1, -1, 1, 1]
    cv = LeaveAnomalyKindOut([0, 8, 0, 0, 9, 0, 0], shuffle=False)
    assert splits(cv, y, y) == [
        ([4, 5, 6], [0, 1, 2, 3]),
        ([0, 1, 2, 3], [4, 5, 6]),
    ]


def test_kinds_of_other_rows_are_not_read(rows):
    X, y, kinds = rows
    expected = splits(LeaveAnomalyKindOut(kinds, random_state=0), X, y)
    for nothing in (None, np.nan, pd.NA, "dos"):
        other = np.where(y == -1, kinds.astype(object), nothing)
        for given in (other, other.tolist(), pd.Series(other, dtype="string")):
            assert splits(LeaveAnomalyKindOut(given, random_state=0), X, y) == expected


def test_kinds_that_are_numbers_need_not_be_neighbours():
    y, kinds = [1, 1, 1, -1, -1, -1], [7, 7, 7, -20, 100, 7]
    found = LeaveAnomalyKindOut(kinds).split(y, y)
    assert [test[-1] for _, test in found] == [3, 5, 4]


# ---------------------------------------------------------------- random state


def test_one_seed_gives_one_division(rows):
    X, y, kinds = rows
    cv = LeaveAnomalyKindOut(kinds, random_state=3)
    first = splits(cv, X, y)
    assert splits(cv, X, y) == first
    assert splits(LeaveAnomalyKindOut(kinds, random_state=3), X, y) == first
    assert splits(LeaveAnomalyKindOut(kinds, random_state=4), X, y) != first


def test_without_a_seed_the_global_state_is_left_alone(rows):
    X, y, kinds = rows
    cv = LeaveAnomalyKindOut(kinds)
    before = np.random.get_state()
    assert splits(cv, X, y) != splits(cv, X, y)
    # The position too: a few draws leave the words of the state as they are.
    for old, new in zip(before, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_generator_continues(rows):
    X, y, kinds = rows
    cv = LeaveAnomalyKindOut(kinds, random_state=np.random.RandomState(0))
    again = LeaveAnomalyKindOut(kinds, random_state=np.random.RandomState(0))
    first = splits(cv, X, y)
    assert splits(cv, X, y) != first
    assert splits(again, X, y) == first


# ---------------------------------------------------------------- in scikit-learn


def test_grid_search_scores_kinds_that_were_left_out(labelled):
    X, y, kinds = labelled
    search = GridSearchCV(
        IsolationForest(random_state=0),
        {"n_estimators": [5, 20]},
        cv=LeaveAnomalyKindOut(kinds, random_state=0),
        scoring="roc_auc",
    ).fit(X, y)
    assert search.n_splits_ == 3
    assert search.best_score_ > 0.8
    for k in range(3):
        assert np.isfinite(search.cv_results_[f"split{k}_test_score"]).all()


@pytest.mark.parametrize("scoring", ["roc_auc", detector_roc_auc])
def test_cross_val_score_runs(labelled, scoring):
    X, y, kinds = labelled
    cv = LeaveAnomalyKindOut(kinds, random_state=0)
    forest = IsolationForest(random_state=0)
    scores = cross_val_score(forest, X, y, cv=cv, scoring=scoring)
    assert scores.shape == (3,)
    assert (scores > 0.8).all()


def test_a_detector_never_trains_on_its_test_part(labelled):
    X, y, kinds = labelled

    class Spy(IsolationForest):
        def fit(self, X, y):
            self.seen_ = {tuple(row) for row in X}
            return super().fit(X)

    cv = LeaveAnomalyKindOut(kinds, random_state=0)
    found = cross_validate(
        Spy(n_estimators=5), X, y, cv=cv, return_estimator=True, scoring="roc_auc"
    )
    for kind, spy in zip(KINDS, found["estimator"], strict=True):
        assert not spy.seen_ & {tuple(row) for row in X[kinds == kind]}


def test_metadata_routing_has_nothing_to_route(labelled):
    X, y, kinds = labelled
    cv = LeaveAnomalyKindOut(kinds, random_state=0)
    with config_context(enable_metadata_routing=True):
        scores = cross_val_score(
            IsolationForest(n_estimators=5), X, y, cv=cv, scoring="roc_auc"
        )
    assert np.isfinite(scores).all()


def test_pandas(rows):
    X, y, kinds = rows
    index = np.arange(len(y))[::-1] + 100
    frame = pd.DataFrame(X, index=index)
    labels, series = pd.Series(y, index=index), pd.Series(kinds, index=index)
    expected = splits(LeaveAnomalyKindOut(kinds, random_state=0), X, y)
    for given in (series, series.astype("category"), series.astype("string")):
        cv = LeaveAnomalyKindOut(given, random_state=0)
        assert splits(cv, frame, labels) == expected
        assert cv.get_n_splits(frame, labels) == 3


def test_kinds_of_the_protocols():
    X, classes = np.arange(200).reshape(-1, 1), np.repeat([0, 1, 2, 3], 50)
    split = one_vs_rest(X, classes, 0, return_kinds=True, random_state=0)
    split = contaminate(*split, contamination=0.1, random_state=0)
    split = labelled_anomalies(*split, ratio=0.3, kinds=[1, 3], random_state=0)
    X, _, y, _, kinds, _ = split
    found = list(LeaveAnomalyKindOut(kinds, random_state=0).split(X, y))
    # The unlabelled anomalies count as other samples, those of the second class too.
    assert 2 in kinds
    for kept_out, (train, test) in zip((1, 3), found, strict=True):
        np.testing.assert_equal(kinds[test][y[test] == -1], kept_out)
        np.testing.assert_equal(kinds[train][y[train] == -1], 4 - kept_out)


# ---------------------------------------------------------------- kinds as groups


@pytest.mark.parametrize("hold", [np.array, list, pd.Series])
def test_kinds_can_be_given_as_groups(rows, hold):
    X, y, kinds = rows
    expected = splits(LeaveAnomalyKindOut(kinds, random_state=0), X, y)
    cv = LeaveAnomalyKindOut(random_state=0)
    assert splits(cv, X, y, hold(kinds)) == expected
    assert cv.get_n_splits(X, y, hold(kinds)) == 3
    # A cross-validation passes the same groups to a splitter with kinds of its own.
    given = LeaveAnomalyKindOut(kinds, random_state=0)
    assert splits(given, X, y, hold(kinds)) == expected
    assert "kinds=None" in repr(cv)


def cross_validated(estimator, X, y, groups, cv, *, routing):
    """Cross-validate with groups, with or without metadata routing."""
    how = {"params": {"groups": groups}}
    if not routing:
        # For the splitter, and for a search that is cross-validated.
        nested = how["params"] if isinstance(estimator, GridSearchCV) else {}
        how = {"groups": groups, "params": nested}
    with config_context(enable_metadata_routing=routing):
        return cross_validate(
            estimator, X, y, cv=cv, scoring="roc_auc", return_estimator=True, **how
        )


@pytest.mark.parametrize("routing", [True, False])
def test_groups_of_searches_and_cross_validations(labelled, routing):
    X, y, kinds = labelled
    forest = IsolationForest(random_state=0, n_estimators=5)
    cv, by_kinds = (
        LeaveAnomalyKindOut(given, random_state=0) for given in (None, kinds)
    )
    expected = cross_val_score(forest, X, y, cv=by_kinds, scoring="roc_auc")
    found = cross_validated(forest, X, y, kinds, cv, routing=routing)
    np.testing.assert_array_equal(found["test_score"], expected)
    with config_context(enable_metadata_routing=routing):
        search = GridSearchCV(forest, {"n_estimators": [5]}, cv=cv, scoring="roc_auc")
        search.fit(X, y, groups=kinds)
    assert search.cv_results_["split2_test_score"][0] == expected[2]


@pytest.mark.parametrize("outer_has_kinds", [True, False])
@pytest.mark.parametrize("routing", [True, False])
def test_a_search_is_nested(labelled, routing, outer_has_kinds):
    """The inner splitter got the kinds of all samples, and raised an error."""
    X, y, kinds = labelled
    inner = LeaveAnomalyKindOut(random_state=0)
    outer = LeaveAnomalyKindOut(kinds if outer_has_kinds else None, random_state=0)
    forest = IsolationForest(random_state=0)
    search = GridSearchCV(
        forest, {"n_estimators": [9, 20]}, cv=inner, scoring="roc_auc"
    )
    found = cross_validated(search, X, y, kinds, outer, routing=routing)
    assert (found["test_score"] > 0.8).all()
    for (train, _), fitted in zip(
        outer.split(X, y, kinds), found["estimator"], strict=True
    ):
        by_hand = clone(search).fit(X[train], y[train], groups=kinds[train])
        assert fitted.n_splits_ == 2
        for name, scores in by_hand.cv_results_.items():
            if name.endswith("test_score"):
                np.testing.assert_array_equal(fitted.cv_results_[name], scores)


def test_splits_have_names(rows):
    """The kind that a split leaves out was unknown."""
    X, y, kinds = rows
    cv = LeaveAnomalyKindOut(kinds, random_state=0)
    by_groups = LeaveAnomalyKindOut(random_state=0)
    for names in (
        cv.get_split_names(X, y),
        cv.get_split_names(y=y),
        by_groups.get_split_names(y=y, groups=kinds),
    ):
        assert names.tolist() == KINDS.tolist()
        for name, (_, test) in zip(names, cv.split(X, y), strict=True):
            assert set(kinds[test][y[test] == -1]) == {name}
    numbers = LeaveAnomalyKindOut([7, 7, 100, -20]).get_split_names(y=[1, 1, -1, -1])
    assert numbers.tolist() == [-20, 100]


# ---------------------------------------------------------------- the object


def test_repr_has_the_parameters():
    cv = LeaveAnomalyKindOut(["a", "b"], random_state=0)
    text = " ".join(repr(cv).split())
    assert text.startswith("LeaveAnomalyKindOut(kinds=array(['a', 'b']")
    assert "random_state=0, shuffle=True)" in text
    assert len(repr(LeaveAnomalyKindOut(np.arange(10_000)))) < 600


def test_copies_split_alike(rows):
    X, y, kinds = rows
    cv = LeaveAnomalyKindOut(kinds, random_state=0)
    expected = splits(cv, X, y)
    search = clone(GridSearchCV(IsolationForest(), {}, cv=cv))
    for copy in (clone(cv, safe=False), deepcopy(cv), search.cv):
        assert copy is not cv
        assert splits(copy, X, y) == expected


def test_parameters_after_kinds_are_keywords():
    with pytest.raises(TypeError):
        LeaveAnomalyKindOut([0, 1], True)


def test_import_needs_no_torch():
    code = (
        "import sys, skanomaly.model_selection as m; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_splits_as_predefined_split_does(rows):
    X, y, kinds = rows
    cv = LeaveAnomalyKindOut(kinds, random_state=0)
    tested_in = np.full(len(y), -1)  # which PredefinedSplit never tests
    for k, (_, test) in enumerate(cv.split(X, y)):
        tested_in[test] = k
    assert splits(PredefinedSplit(tested_in), None, None) == splits(cv, X, y)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("method", ["split", "get_n_splits"])
@pytest.mark.parametrize(
    ("kinds", "y", "message"),
    [
        ([0, 1, 2], None, "y is needed"),
        ([0, 1, 2], [1, 1, 1], r"np\.where\(y == 1, -1, 1\)"),
        ([0, 1, 2], [0, 1, 1], r"np\.where\(y == 1, -1, 1\)"),
        ([0, 1, 2], [False, True, True], r"np\.where\(y == 1, -1, 1\)"),
        ([0, 1, 2, 3], [1, -1, -1], "for 4 samples, but y has 3"),
        ([0, 1, 1], [1, -1, -1], "two kinds .* of the kind 1"),
        (["", "a", "a"], [1, -1, -1], "two kinds .* of the kind 'a'"),
        ([0, 1, np.nan], [1, -1, -1], "missing"),
        (["", "a", np.nan], [1, -1, -1], "kinds, where y is -1, has missing"),
        (np.array(["", "a", None], object), [1, -1, -1], "missing"),
        (pd.Series(["", "a", None], dtype="string"), [1, -1, -1], "missing"),
        (pd.Series(["", "a", None], dtype="category"), [1, -1, -1], "missing"),
        (pd.Series([0, 1, None], dtype="Int64"), [1, -1, -1], "missing"),
        ([0, 1, 2], np.array(["1", "-1", "-1"]), "y has no known anomaly"),
    ],
)
def test_refusals(method, kinds, y, message):
    cv = LeaveAnomalyKindOut(kinds)
    # At once, and not at the first split.
    with pytest.raises(ValueError, match=message):
        getattr(cv, method)(np.zeros((3, 1)), y)


@pytest.mark.parametrize("method", ["split", "get_n_splits", "get_split_names"])
@pytest.mark.parametrize(
    ("kinds", "groups", "message"),
    [
        (None, None, r"as groups=kinds, .* or as LeaveAnomalyKindOut\(kinds\)"),
        (None, [0, 1], "groups was given for 2 samples, but y has 3"),
        (None, [0, 1, 1], "two kinds .* of the kind 1"),
        (None, ["", "a", None], "groups, where y is -1, has missing"),
        (None, np.zeros((3, 2)), "1d array"),
        ([0, 1, 2], [0, 2, 1], "groups differ from the kinds"),
        ([0, 1, 2], [0, 1], "groups was given for 2 samples, but y has 3"),
        ([0, 1], [0, 1, 2], "kinds was given for 2 samples.*give them as groups"),
    ],
)
def test_groups_that_are_refused(method, kinds, groups, message):
    cv = LeaveAnomalyKindOut(kinds)
    with pytest.raises(ValueError, match=message):
        getattr(cv, method)(np.zeros((3, 1)), [1, -1, -1], groups)


def test_too_few_other_rows_are_refused():
    y = [1, -1, -1]
    with pytest.raises(ValueError, match="1 samples are normal"):
        LeaveAnomalyKindOut([0, 1, 2]).split(y, y)


def test_rows_of_another_number_are_refused(rows):
    X, y, kinds = rows
    with pytest.raises(ValueError, match="inconsistent"):
        LeaveAnomalyKindOut(kinds).split(X[:-1], y)


def test_kinds_in_columns_are_refused():
    with pytest.raises(ValueError, match="1d array"):
        LeaveAnomalyKindOut(np.zeros((3, 2)))


def test_kinds_of_other_rows_than_those_searched_are_refused(labelled):
    X, y, kinds = labelled
    cv = LeaveAnomalyKindOut(kinds[1:])
    search = GridSearchCV(IsolationForest(), {}, cv=cv, scoring="roc_auc")
    with pytest.raises(ValueError, match="samples, but y has"):
        search.fit(X, y)


# ------------------------------------------------------------ TargetKFold: the parts


@pytest.fixture
def domains():
    """Return X, y and domains: 15 source samples, 20 normal and 6 anomalous targets."""
    rng = np.random.default_rng(0)
    domain = np.repeat([1, 3, -2], [10, 5, 26])
    y = np.repeat([1, -1], [35, 6])
    order = rng.permutation(len(y))
    X = rng.normal(size=(len(y), 2)) + 5 * (y == -1)[:, None]
    return X[order], y[order], domain[order]


@pytest.mark.parametrize("n_splits", [2, 5, 6])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("labelled", [True, False])
def test_each_target_row_is_tested_once(domains, n_splits, shuffle, labelled):
    X, y, domain = domains
    cv = TargetKFold(domain, n_splits, shuffle=shuffle)
    found = splits(cv, X, y if labelled else None)
    assert len(found) == cv.get_n_splits() == n_splits
    source, target = np.flatnonzero(domain > 0), np.flatnonzero(domain < 0)
    for train, test in found:
        assert set(source) <= set(train)
        assert not set(train) & set(test)
        assert sorted(train + test) == list(range(len(y)))
        assert train == sorted(train)
        assert test == sorted(test)
        if labelled:
            assert set(y[test]) == {1, -1}
    tested = [row for _, test in found for row in test]
    np.testing.assert_array_equal(np.sort(tested), target)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_folds_are_those_of_scikit_learn(domains, labelled):
    X, y, domain = domains
    target = np.flatnonzero(domain < 0)
    folds = StratifiedKFold if labelled else KFold
    expected = folds(4, shuffle=True, random_state=3).split(X[target], y[target])
    found = TargetKFold(domain, 4, random_state=3).split(X, y if labelled else None)
    for (_, test), (_, expected_test) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(test, target[expected_test])


@pytest.mark.parametrize("labels", [(1, 1), (0, 1), (0, -1), (2, 3), ("a", "b")])
def test_other_labels_do_not_stratify(domains, labels):
    X, y, domain = domains
    others = np.where(y == 1, *labels)
    cv = TargetKFold(domain, random_state=0)
    assert splits(cv, X, others) == splits(cv, X, None) != splits(cv, X, y)


def test_labels_of_the_source_are_not_read(domains):
    X, y, domain = domains
    cv = TargetKFold(domain, random_state=0)
    assert splits(cv, X, np.where(domain > 0, -1, y)) == splits(cv, X, y)
    labels = np.where(domain > 0, -1, 1)
    assert splits(cv, X, labels) == splits(cv, X, None)


def test_too_few_anomalies_for_the_folds_are_warned_of(domains):
    X, y, domain = domains
    with pytest.warns(UserWarning, match="least populated class"):
        TargetKFold(domain, 7).split(X, y)


@pytest.mark.parametrize("n_splits", [4, 5])
def test_classes_smaller_than_the_folds_are_warned_of(n_splits):
    y, domain = [1, 1, 1, 1, 1, -1, -1], [1, 1, -1, -1, -1, -1, -1]
    cv = TargetKFold(domain, n_splits, random_state=0)
    with pytest.warns(UserWarning, match=rf"fewer than n_splits={n_splits}") as record:
        found = splits(cv, y, y)
    assert record[0].filename == __file__
    assert sorted(row for _, test in found for row in test) == [2, 3, 4, 5, 6]


def test_target_rows_without_a_label_are_trained_on_alone(domains):
    X, y, domain = domains
    unlabelled = np.flatnonzero((domain < 0) & (y == 1))[::2]
    known = y.copy()
    known[unlabelled] = 0
    tested = np.setdiff1d(np.flatnonzero(domain < 0), unlabelled)
    cv = TargetKFold(domain, 3, random_state=0)
    found = splits(cv, X, known)
    assert sorted(row for _, test in found for row in test) == tested.tolist()
    for train, test in found:
        assert set(unlabelled) <= set(train)
        assert set(known[test]) == {1, -1}
        assert sorted(train + test) == list(range(len(y)))
    scores = cross_val_score(
        IsolationForest(random_state=0), X, known, cv=cv, scoring=detector_roc_auc
    )
    assert (scores > 0.8).all()


def test_a_target_with_too_few_labels_is_refused(domains):
    X, y, domain = domains
    known = np.where(np.cumsum(domain < 0) > 4, 0, y)
    known[np.flatnonzero(domain < 0)[:2]] = 1, -1
    with (
        pytest.warns(UserWarning, match="not stratified"),
        pytest.raises(ValueError, match="n_splits=5 greater"),
    ):
        TargetKFold(domain).split(X, known)


def test_missing_labels_of_the_target_are_refused(domains):
    X, y, domain = domains
    for nothing in (None, np.nan, pd.NA):
        known = y.astype(object)
        known[np.flatnonzero((domain < 0) & (y == 1))[0]] = nothing
        with pytest.raises(ValueError, match="y, of the target samples, has missing"):
            TargetKFold(domain).split(X, known)


def test_numbers_in_object_arrays_are_accepted(domains):
    X, y, domain = domains
    expected = splits(TargetKFold(domain, random_state=0), X, y)
    cv = TargetKFold(domain.astype(object), random_state=0)
    assert splits(cv, X, y.astype(object)) == expected


def test_target_folds_and_the_random_state(domains):
    X, y, domain = domains
    cv = TargetKFold(domain, random_state=3)
    assert splits(cv, X, y) == splits(cv, X, y)
    assert splits(TargetKFold(domain, random_state=4), X, y) != splits(cv, X, y)
    cv = TargetKFold(domain)
    before = np.random.get_state()
    assert splits(cv, X, y) != splits(cv, X, y)
    for old, new in zip(before, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(old, new)
    cv = TargetKFold(domain, shuffle=False, random_state=3)
    assert splits(cv, X, y) == splits(TargetKFold(domain, shuffle=False), X, y)


# ------------------------------------------------- TargetKFold: domains as groups


@pytest.mark.parametrize("hold", [np.array, list, pd.Series])
def test_domains_can_be_given_as_groups(domains, hold):
    X, y, domain = domains
    expected = splits(TargetKFold(domain, 3, random_state=0), X, y)
    cv = TargetKFold(n_splits=3, random_state=0)
    assert splits(cv, X, y, hold(domain)) == expected
    assert cv.get_n_splits(X, y, hold(domain)) == 3
    given = TargetKFold(domain, 3, random_state=0)
    assert splits(given, X, y, hold(np.sign(domain))) == expected


@pytest.mark.parametrize("routing", [True, False])
def test_a_search_on_the_target_is_nested(domains, routing):
    """The inner splitter got the domains of all samples."""
    X, y, domain = domains
    cv = TargetKFold(n_splits=2, random_state=0)
    forest = IsolationForest(random_state=0)
    search = GridSearchCV(forest, {"n_estimators": [9, 20]}, cv=cv, scoring="roc_auc")
    found = cross_validated(search, X, y, domain, cv, routing=routing)
    assert (found["test_score"] > 0.8).all()
    for (train, test), fitted in zip(
        cv.split(X, y, domain), found["estimator"], strict=True
    ):
        assert (domain[test] < 0).all()
        by_hand = clone(search).fit(X[train], y[train], groups=domain[train])
        for name, scores in by_hand.cv_results_.items():
            if name.endswith("test_score"):
                np.testing.assert_array_equal(fitted.cv_results_[name], scores)


def test_the_domains_of_fit_can_be_those_of_the_splitter(domains):
    X, y, domain = domains

    class Detector(OneClassSVM):
        def fit(self, X, y=None, sample_domain=None):
            self.n_target_ = np.sum(sample_domain < 0)
            return super().fit(X)

    with config_context(enable_metadata_routing=True):
        cv = TargetKFold(n_splits=2, random_state=0)
        found = cross_validate(
            Detector().set_fit_request(sample_domain=True),
            X,
            y,
            cv=cv.set_split_request(groups="sample_domain"),
            scoring="roc_auc",
            params={"sample_domain": domain},
            return_estimator=True,
        )
    assert (found["test_score"] > 0.8).all()
    assert [one.n_target_ for one in found["estimator"]] == [13, 13]


# ------------------------------------------------- TargetKFold: in scikit-learn


@pytest.mark.parametrize("scoring", ["roc_auc", detector_roc_auc])
@pytest.mark.parametrize("routing", [True, False])
def test_grid_search_scores_the_target(domains, scoring, routing):
    X, y, domain = domains
    with config_context(enable_metadata_routing=routing):
        search = GridSearchCV(
            IsolationForest(random_state=0),
            {"n_estimators": [5, 20]},
            cv=TargetKFold(domain, 3, random_state=0),
            scoring=scoring,
        ).fit(X, y)
    assert search.n_splits_ == 3
    assert search.best_score_ > 0.8


def test_two_data_sets_are_cross_validated():
    X, classes = np.arange(200).reshape(-1, 1), np.repeat([0, 1, 2, 3], 50)
    X, _, y, _, domain = across_domains(
        X, classes, X + 500, classes, 0, contamination=0.3, random_state=0
    )
    for train, test in TargetKFold(domain, 4, random_state=0).split(X, y):
        assert (X[test] >= 500).all()
        assert np.sum(X[train] < 500) == 50
        assert set(y[test]) == {1, -1}


def test_target_folds_of_pandas_and_of_copies(domains):
    X, y, domain = domains
    expected = splits(TargetKFold(domain, random_state=0), X, y)
    index = np.arange(len(y))[::-1] + 100
    cv = TargetKFold(pd.Series(domain, index=index), random_state=0)
    assert splits(cv, pd.DataFrame(X, index=index), pd.Series(y, index)) == expected
    for copy in (clone(cv, safe=False), deepcopy(cv)):
        assert splits(copy, X, y) == expected
    text = " ".join(repr(TargetKFold(np.array([1, -1, -1]), 2)).split())
    assert text == (
        "TargetKFold(n_splits=2, random_state=None, "
        "sample_domain=array([ 1, -1, -1]), shuffle=True)"
    )


# ---------------------------------------------------- TargetKFold: refusals


@pytest.mark.parametrize(
    ("domain", "options", "message"),
    [
        ([0, 0, 1, 1], {}, r"np\.where\(is_target, -1, 1\)"),
        ([False, False, True], {}, r"np\.where\(is_target, -1, 1\)"),
        ([1, 1, -1, -1, 0], {}, "positive for the source, negative for the target"),
        ([1.0, -1.0, np.nan], {}, "a number for each sample"),
        (["source", "target"], {}, "a number for each sample"),
        (np.array([1, -1, None], object), {}, "a number for each sample"),
        ([-1, -1, -2], {}, "no source sample"),
        ([1, 1, 2], {"n_splits": 2}, "0 target samples .*too few for n_splits=2"),
        ([1, -1, -1], {}, "2 target samples .*too few for n_splits=5"),
        ([1, -1, -1], {"n_splits": 1}, "n_splits=2 or more"),
        ([1, -1, -1], {"n_splits": 2.0}, "must be of Integral type"),
        ([[1, -1], [-1, 1]], {}, r"got shape \(2, 2\)"),
    ],
)
def test_domains_that_are_refused(domain, options, message):
    with pytest.raises(ValueError, match=message):
        TargetKFold(domain, **options)


def test_domains_of_other_rows_are_refused(domains):
    X, y, domain = domains
    cv = TargetKFold(domain)
    with pytest.raises(ValueError, match="for 41 samples, but X has 40: give"):
        cv.split(X[1:], y)
    with pytest.raises(ValueError, match="for 41 samples, but y has 40: give"):
        cv.split(X, y.tolist()[1:])


@pytest.mark.parametrize(
    ("given", "groups", "message"),
    [
        (None, None, r"as groups=sample_domain, .* or as TargetKFold\(sample_domain\)"),
        (None, [0, 0, 1, 1], r"groups has to be .*np\.where\(is_target, -1, 1\)"),
        (None, [1, -1, -1], "domains were given for 3 samples, but X has 4"),
        (None, [-1, -1, -1, -1], "groups has no source sample"),
        (None, [1, 1, 1, -1], "groups has 1 target samples .*too few for n_splits=2"),
        ([1, 1, -1, -1], [1, -1, 1, -1], "groups differ from the sample_domain"),
        ([1, 1, -1, -1], [1, -1, -1], "groups differ from the sample_domain"),
    ],
)
def test_groups_that_are_no_domains_are_refused(given, groups, message):
    cv = TargetKFold(given, 2)
    with pytest.raises(ValueError, match=message):
        cv.split(np.zeros((4, 1)), None, groups)
