"""The loaders and the protocols of skanomaly.datasets."""

import lzma
import os
import subprocess
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from functools import partial
from inspect import getdoc
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.sparse import csr_array
from sklearn.utils import Bunch

from skanomaly import datasets
from skanomaly.datasets import (
    _images,
    across_domains,
    contaminate,
    fetch_cifar10,
    fetch_emnist_letters,
    fetch_fashion_mnist,
    fetch_kmnist,
    fetch_mnist,
    fetch_odds,
    fetch_tiny_imagenet,
    fetch_ucsd_ped2,
    fetch_usps,
    hold_one_out,
    labelled_anomalies,
    one_vs_rest,
)

REPOSITORY = Path(__file__).parents[1]
SPLITTERS = [one_vs_rest, hold_one_out]
MOVERS = [contaminate, labelled_anomalies]


# ---------------------------------------------------------------------- protocols


@pytest.fixture
def labelled():
    """Return 20 samples of each of four classes; a sample's value is its own number."""
    return np.arange(80), np.repeat([0, 1, 2, 3], 20)


def assert_partition(split, rows):
    """Check that the two sets share no sample and miss none."""
    together = np.concatenate([split[0], split[1]])
    np.testing.assert_array_equal(np.sort(together), rows)


def assert_same(first, second):
    """Check that two splits hold the same arrays in the same order."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_vs_rest_counts_and_labels(labelled):
    X, y = labelled
    split = one_vs_rest(X, y, 2, test_size=0.25, return_kinds=True, random_state=0)
    X_train, X_test, y_train, y_test, kinds_train, kinds_test = split
    assert len(X_train) == 15
    assert len(X_test) == 5 + 60
    assert y_train.dtype == y_test.dtype == np.int64
    assert set(y_train) == {1}
    np.testing.assert_array_equal(kinds_train, y[X_train])
    np.testing.assert_array_equal(kinds_test, y[X_test])
    np.testing.assert_array_equal(y_test, np.where(kinds_test == 2, 1, -1))
    assert_partition(split, X)


def test_hold_one_out_holds_out_the_same_share_of_each_normal_class(labelled):
    X, y = labelled
    split = hold_one_out(X, y, 1, test_size=0.25, return_kinds=True, random_state=0)
    _, X_test, y_train, y_test, kinds_train, kinds_test = split
    assert np.bincount(kinds_train, minlength=4).tolist() == [15, 0, 15, 15]
    assert np.bincount(kinds_test).tolist() == [5, 20, 5, 5]
    assert set(y_train) == {1}
    np.testing.assert_array_equal(y_test, np.where(kinds_test == 1, -1, 1))
    np.testing.assert_array_equal(kinds_test, y[X_test])
    assert_partition(split, X)


def test_the_two_splitters_mirror_each_other(labelled):
    one = one_vs_rest(*labelled, [0, 3], random_state=1)
    assert_same(one, hold_one_out(*labelled, [1, 2], random_state=1))
    assert_same(one, one_vs_rest(*labelled, np.array([3, 0]), random_state=1))


@pytest.mark.parametrize("split", SPLITTERS)
def test_splitters_keep_the_order_and_are_deterministic(split, labelled):
    first = split(*labelled, 0, random_state=3)
    assert (np.diff(first[0]) > 0).all()
    assert (np.diff(first[1]) > 0).all()
    assert_same(first, split(*labelled, 0, random_state=3))
    assert_same(first, split(*labelled, 0, random_state=np.random.RandomState(3)))
    assert not np.array_equal(first[0], split(*labelled, 0, random_state=4)[0])


@pytest.mark.parametrize("split", SPLITTERS)
def test_the_global_random_state_is_left_alone(split, labelled):
    before = np.random.get_state()
    drawn = split(*labelled, 0)
    contaminate(*drawn)
    labelled_anomalies(*drawn)
    across_domains(*labelled, *labelled, 0)
    # The position too: a few draws leave the words of the state as they are.
    for old, new in zip(before, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_official_test_set_is_used_whole(labelled):
    X, y = labelled
    X_official, y_official = np.array([100, 101, 102]), np.array([1, 0, 2])
    X_train, X_test, y_train, y_test = one_vs_rest(
        X, y, 1, X_test=X_official, y_test=y_official
    )
    np.testing.assert_array_equal(X_train, X[y == 1])
    assert X_test is X_official
    np.testing.assert_array_equal(y_test, [1, -1, -1])
    assert y_train.tolist() == [1] * 20

    X_train, _, _, y_test = hold_one_out(X, y, 1, X_test=X_official, y_test=y_official)
    np.testing.assert_array_equal(X_train, X[y != 1])
    np.testing.assert_array_equal(y_test, [-1, 1, 1])


def test_a_held_out_class_may_be_in_the_official_test_set_alone(labelled):
    X, y = labelled
    X_train, _, _, y_test = hold_one_out(X, y, 9, X_test=X[:2], y_test=[9, 0])
    np.testing.assert_array_equal(X_train, X)
    np.testing.assert_array_equal(y_test, [-1, 1])


# A corpus of the same source.


@pytest.mark.parametrize("split", SPLITTERS)
def test_a_corpus_is_kept_apart_from_normal_and_anomalous_samples(split, labelled):
    X, y = labelled
    wanted = {"corpus_class": [1, 3], "random_state": 0}
    parts = split(X, y, 2, return_kinds=True, **wanted)
    *_, kinds_train, kinds_test, X_corpus, kinds_corpus = parts
    np.testing.assert_array_equal(X_corpus, X[np.isin(y, [1, 3])])
    np.testing.assert_array_equal(kinds_corpus, y[X_corpus])
    assert set(kinds_train) == ({2} if split is one_vs_rest else {0})
    assert set(kinds_test) == {0, 2}
    assert_partition(parts, X[np.isin(y, [0, 2])])
    assert_same(split(X, y, 2, **wanted), [*parts[:4], X_corpus])
    # Normal samples are drawn as they are where the other classes do not exist.
    among = np.isin(y, [0, 2])
    assert_same(parts[:4], split(X[among], y[among], 2, random_state=0))


def test_a_split_with_a_corpus_is_handed_on(labelled):
    *split, X_corpus = one_vs_rest(*labelled, 2, corpus_class=3, random_state=0)
    X_train, *_ = contaminate(*split, contamination=0.25, random_state=0)
    assert len(X_train) == 12 + 4
    assert not np.isin(X_corpus, X_train).any()


@pytest.mark.parametrize("split", SPLITTERS)
def test_classes_of_a_corpus_are_not_tested_on(split, labelled):
    """The detector has seen them, so they would be known anomalies."""
    official = {"X_test": np.arange(100, 104), "y_test": [0, 1, 2, 3]}
    parts = split(*labelled, 0, corpus_class={1, 2}, **official)
    np.testing.assert_array_equal(parts[1], [100, 103])
    expected = [1, -1] if split is one_vs_rest else [-1, 1]
    np.testing.assert_array_equal(parts[3], expected)
    np.testing.assert_array_equal(parts[4], np.arange(20, 60))


@pytest.mark.parametrize("split", SPLITTERS)
@pytest.mark.parametrize(
    ("apart", "message"),
    [
        (7, r"corpus_class must be among the classes \[0, 1, 2, 3\], got \[7\]"),
        ([], r"corpus_class must be .* got \[\]"),
        ([0, 1], r"corpus_class and (normal|anomalous)_class both have \[0\]"),
        ([1, 2, 3], "No (sample is anomalous|normal sample is left)"),
    ],
)
def test_classes_of_a_corpus_that_are_refused(split, apart, message, labelled):
    with pytest.raises(ValueError, match=message):
        split(*labelled, 0, corpus_class=apart, random_state=0)


@pytest.mark.parametrize("kind", ["list", "strings", "frame", "images", "memmap"])
def test_containers_are_kept(kind, labelled, tmp_path):
    X, y = labelled
    images = np.zeros((80, 1, 2, 2), np.uint8) + X[:, None, None, None].astype("u1")
    np.save(tmp_path / "X.npy", images)
    frame = pd.DataFrame({"a": X, "b": X.astype(float)}, index=X + 500)
    X, y, normal = {
        "list": (X.tolist(), y.tolist(), 0),
        "strings": (X, pd.Series(list("abcd")).repeat(20), "a"),
        "frame": (frame, pd.Series(y, index=frame.index), 0),
        "images": (images, y, 0),
        "memmap": (np.load(tmp_path / "X.npy", mmap_mode="r"), y, 0),
    }[kind]
    split = one_vs_rest(X, y, normal, test_size=0.25, return_kinds=True, random_state=0)
    split = contaminate(*split, contamination=0.25, random_state=0)
    X_train, X_test, y_train, y_test, kinds_train, _ = split
    assert [len(part) for part in split] == [20, 60, 20, 60, 20, 60]
    assert (kinds_train[:15] == normal).all()
    assert (kinds_train[15:] != normal).all()
    if kind == "frame":
        assert list(X_train.columns) == ["a", "b"]
        pd.testing.assert_frame_equal(
            pd.concat([X_train, X_test]).sort_index(), frame, check_freq=False
        )
        np.testing.assert_array_equal(y[X_train.index] == 0, y_train == 1)
    if kind in ("images", "memmap"):
        assert X_train.shape == (20, 1, 2, 2)
        assert X_test.dtype == np.uint8
        np.testing.assert_array_equal(X_test[:, 0, 0, 0] < 20, y_test == 1)


@pytest.mark.parametrize(("contamination", "expected"), [(0, 0), (0.1, 2), (0.5, 15)])
def test_contaminate_takes_a_fraction_of_the_result(labelled, contamination, expected):
    X, y = labelled
    split = one_vs_rest(X, y, 0, test_size=0.25, random_state=0)
    moved = contaminate(*split, contamination=contamination, random_state=0)
    X_train, X_test, y_train, y_test = moved
    assert len(X_train) == 15 + expected
    assert len(X_test) == 65 - expected
    np.testing.assert_array_equal(X_train[:15], split[0])
    np.testing.assert_array_equal(y_train, np.where(y[X_train] == 0, 1, -1))
    np.testing.assert_array_equal(y_test, np.where(y[X_test] == 0, 1, -1))
    assert_partition(moved, X)


@pytest.mark.parametrize("move", MOVERS)
def test_movers_are_deterministic_and_leave_their_input_alone(move, labelled):
    split = one_vs_rest(*labelled, 0, return_kinds=True, random_state=0)
    copies = [part.copy() for part in split]
    first = move(*split, random_state=5)
    assert_same(split, copies)
    assert_same(first, move(*split, random_state=5))
    assert not np.array_equal(first[0], move(*split, random_state=6)[0])
    assert_same(first[:4], move(*split[:4], random_state=5))


def test_labelled_anomalies_take_a_fraction_of_the_whole_set(labelled):
    X, y = labelled
    split = one_vs_rest(X, y, 0, test_size=0.2, return_kinds=True, random_state=0)
    moved = labelled_anomalies(*split, ratio=0.2, kinds=[1, 3], random_state=0)
    X_train, X_test, y_train, y_test, kinds_train, kinds_test = moved
    # n g / (1 - g) of 16 samples; the wrong n g would be 3.2.
    assert y_train.tolist() == [1] * 16 + [-1] * 4
    assert set(kinds_train[16:]) <= {1, 3}
    np.testing.assert_array_equal(kinds_train, y[X_train])
    np.testing.assert_array_equal(kinds_test, y[X_test])
    np.testing.assert_array_equal(y_test, np.where(kinds_test == 0, 1, -1))
    # Known kinds and unknown ones can be told apart, and none of the latter is gone.
    assert (kinds_test == 2).sum() == 20
    assert np.isin(kinds_test, [1, 3]).sum() == 40 - 4
    assert_partition(moved, X)


def test_all_kinds_are_known_by_default(labelled):
    X, y = labelled
    split = one_vs_rest(X, y, 0, test_size=0, random_state=0)
    *_, y_test = labelled_anomalies(*split, ratio=0.75, random_state=0)
    assert y_test.size == 0  # 60 anomalies, all of them labelled


def test_contaminate_then_labelled_anomalies(labelled):
    X, y = labelled
    split = one_vs_rest(X, y, 0, test_size=0.1, return_kinds=True, random_state=0)
    split = contaminate(*split, contamination=0.1, random_state=0)
    split = labelled_anomalies(*split, ratio=0.2, kinds=3, random_state=0)
    X_train, _, y_train, _, kinds_train, _ = split
    # 18 normal samples, 2 of contamination, and 5 labelled: a fifth of the 25.
    assert y_train.tolist() == [1] * 20 + [-1] * 5
    assert (kinds_train[:18] == 0).all()
    assert (kinds_train[18:20] != 0).all()
    assert (kinds_train[20:] == 3).all()
    assert len(np.unique(X_train)) == 25
    assert_partition(split, X)


def test_a_pool_spares_the_official_test_set(labelled):
    X, y = labelled
    pool = one_vs_rest(X, y, 0, test_size=0, return_kinds=True)
    np.testing.assert_array_equal(pool[0], X[y == 0])
    assert set(pool[3]) == {-1}
    pool = contaminate(*pool, contamination=0.2, random_state=0)
    pool = labelled_anomalies(*pool, ratio=0.5, kinds=[1, 2], random_state=0)
    assert (pool[2] == -1).sum() == 25
    assert_partition(pool, X)


@pytest.mark.parametrize("split", SPLITTERS)
@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (7, {}, r"_class must be among the classes \[0, 1, 2, 3\], got \[7\]"),
        ("0", {}, r"got \['0'\]"),
        ([], {}, r"got \[\]"),
        ([0, 7], {}, r"got \[0, 7\]"),
        (None, {}, "must be among the classes"),
        ([0, 1, 2, 3], {}, "No (sample is anomalous|normal sample is left)"),
        (0, {"test_size": 1}, r"test_size must be a number in \[0, 1\), got 1"),
        (0, {"test_size": -0.1}, "test_size must be"),
        (0, {"test_size": "half"}, "test_size must be"),
        (0, {"test_size": 0.99}, "No normal sample is left"),
        (0, {"X_test": [1]}, "X_test and y_test must be given together"),
        (0, {"y_test": [1]}, "X_test and y_test must be given together"),
        (0, {"X_test": [1], "y_test": [1, 2]}, "inconsistent numbers of samples"),
    ],
)
def test_splitters_refuse(split, classes, options, message, labelled):
    with pytest.raises(ValueError, match=message):
        split(*labelled, classes, random_state=0, **options)


MISSING = [
    ["a", np.nan, "b", "b"],
    ["a", None, "b", "b"],
    [0, None, 1, 1],
    np.array([0, np.nan, 1, 1]),
    np.array(["a", pd.NA, "b", "b"], object),
    pd.Series(["a", None, "b", "b"]),
    pd.Series(["a", None, "b", "b"], dtype="string"),
    pd.Series(["a", None, "b", "b"], dtype="category"),
    pd.Series([0, None, 1, 1], dtype="Int64"),
]


@pytest.mark.parametrize("y", MISSING)
@pytest.mark.parametrize("split", SPLITTERS)
def test_splitters_refuse_missing_labels(split, y):
    normal = y[0]
    with pytest.raises(ValueError, match=r"^y has missing values"):
        split(np.arange(4), y, normal, random_state=0)
    with pytest.raises(ValueError, match="y_test has missing values"):
        split([1, 2], [normal, y[2]], normal, X_test=np.arange(4), y_test=y)


def test_movers_refuse_missing_kinds():
    rows, kinds = np.arange(4), ["a", np.nan, "b", "b"]
    split = [rows, rows, [1] * 4, [1, 1, -1, -1]]
    for move in MOVERS:
        with pytest.raises(ValueError, match="kinds_test has missing values"):
            move(*split, list("aaaa"), kinds)
        with pytest.raises(ValueError, match="kinds_train has missing values"):
            move(*split, kinds, list("aabb"))
        with pytest.raises(ValueError, match="y_test has missing values"):
            move(*split[:3], [1, None, -1, -1])


@pytest.mark.parametrize("split", SPLITTERS)
def test_classes_may_be_a_set(split, labelled):
    expected = split(*labelled, [0, 1], random_state=0)
    assert_same(split(*labelled, {0, 1}, random_state=0), expected)
    assert_same(split(*labelled, frozenset({1, 0}), random_state=0), expected)


def test_an_official_test_set_needs_anomalies(labelled):
    with pytest.raises(ValueError, match="No sample is anomalous"):
        one_vs_rest(*labelled, 0, X_test=[1], y_test=[0])


@pytest.mark.parametrize("y_test", [[1, 2], ["0", "1"]])
def test_an_official_test_set_needs_normal_samples(y_test, labelled):
    with pytest.raises(ValueError, match="y_test has no normal sample"):
        one_vs_rest(*labelled, 0, X_test=[1, 2], y_test=y_test)


def test_splitters_refuse_lengths_that_differ(labelled):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        one_vs_rest(labelled[0][1:], labelled[1], 0)


@pytest.mark.parametrize(
    ("move", "fraction"),
    [(contaminate, "contamination"), (labelled_anomalies, "ratio")],
)
def test_movers_refuse(move, fraction, labelled):
    split = one_vs_rest(*labelled, 0, test_size=0, return_kinds=True)
    for wrong in (1, -0.1, "auto", None):
        with pytest.raises(ValueError, match=rf"{fraction} must be a number in \[0, 1"):
            move(*split, **{fraction: wrong})
    with pytest.raises(
        ValueError, match=r"less than one sample: give 0, or more than 0\."
    ):
        move(*split, **{fraction: 0.01})
    with pytest.raises(ValueError, match="80 anomalies are needed, but there are 60"):
        move(*split, **{fraction: 0.8})
    X_train, X_test, y_train, y_test = one_vs_rest(*labelled, 0)
    with pytest.raises(ValueError, match=r"np\.where\(y == 1, -1, 1\)"):
        move(X_train, X_test, y_train, np.where(y_test == -1, 1, 0))
    with pytest.raises(ValueError, match="kinds_test must be given together"):
        move(*split[:4], kinds_test=split[5])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        move(*split[:4], split[5], split[4])


@pytest.mark.parametrize("move", MOVERS)
def test_movers_refuse_other_columns(move, labelled):
    X_train, X_test, *y = one_vs_rest(*labelled, 0)
    frames = pd.DataFrame({"a": X_train}), pd.DataFrame({"b": X_test})
    with pytest.raises(ValueError, match="X_train and X_test must have the same col"):
        move(*frames, *y)
    with pytest.raises(ValueError, match="must have the same columns"):
        move(frames[0], X_test[:, None], *y)


def test_a_mixture_is_not_contaminated_again(labelled):
    split = one_vs_rest(*labelled, 0, random_state=0)
    for move in MOVERS:
        mixture = (
            move(*split, contamination=0.2)
            if move is contaminate
            else move(*split, ratio=0.2)
        )
        with pytest.raises(ValueError, match="contaminate once, and before"):
            contaminate(*mixture)


def test_kinds_must_be_anomalies_and_known(labelled):
    split = one_vs_rest(*labelled, 0, random_state=0, return_kinds=True)
    with pytest.raises(
        ValueError, match=r"kinds must be among the classes \[1, 2, 3\]"
    ):
        labelled_anomalies(*split, kinds=[0, 1])
    with pytest.raises(ValueError, match="split with return_kinds=True"):
        labelled_anomalies(*split[:4], kinds=[1])
    with pytest.raises(ValueError, match="28 anomalies are needed, but there are 20"):
        labelled_anomalies(*split, kinds=2, ratio=0.7)


# ------------------------------------------------------------------- two domains


@pytest.fixture
def domains(labelled):
    """Return two data sets of four classes; the target's samples are 1000 and more."""
    X, y = labelled
    return X, y, X + 1000, y


@pytest.mark.parametrize(("contamination", "expected"), [(0.25, 4), (0.4, 8)])
def test_across_domains_counts_and_labels(domains, contamination, expected):
    X_source, y_source, _, y_target = domains
    X_train, X_test, y_train, y_test, domain = across_domains(
        *domains, 2, contamination=contamination, random_state=0
    )
    np.testing.assert_array_equal(X_train[:20], X_source[y_source == 2])
    np.testing.assert_array_equal(domain, np.where(X_train >= 1000, -1, 1))
    np.testing.assert_array_equal(domain, np.repeat([1, -1], [20, 12 + expected]))
    # Of the target's 20 normal samples 12 train and 8 are held out.
    truth = np.where(y_target == 2, 1, -1)
    np.testing.assert_array_equal(y_train[20:], truth[X_train[20:] - 1000])
    np.testing.assert_array_equal(y_test, truth[X_test - 1000])
    assert (y_train[:20] == 1).all()
    assert (y_train == -1).sum() == expected
    assert (y_test == 1).sum() == 8
    assert (y_test == -1).mean() == pytest.approx(contamination, abs=0.04)
    assert not set(X_train) & set(X_test)
    assert {y_train.dtype, y_test.dtype, domain.dtype} == {np.dtype(np.int64)}
    assert (np.diff(X_test) > 0).all()


@pytest.mark.parametrize(("share", "expected"), [("same", 1), (0.5, 3), (None, 6)])
def test_across_domains_with_an_official_test_set(domains, share, expected):
    X_test, y_test = np.arange(2000, 2009), np.repeat([0, 1, 2], 3)
    X_train, X_test, y_train, y_test, domain = across_domains(
        *domains,
        0,
        contamination=0.2,
        test_contamination=share,
        X_test=X_test,
        y_test=y_test,
        random_state=0,
    )
    assert y_train.tolist() == [1] * 40 + [-1] * 5
    assert domain.tolist() == [1] * 20 + [-1] * 25
    assert X_train.max() < 2000 <= X_test.min()
    assert X_test[:3].tolist() == [2000, 2001, 2002]
    assert y_test.tolist() == [1] * 3 + [-1] * expected


def test_across_domains_is_deterministic(domains):
    def split(seed):
        return across_domains(*domains, [0, 1], random_state=seed)

    copies = [part.copy() for part in domains]
    assert_same(split(3), split(3))
    assert_same(split(3), split(np.random.RandomState(3)))
    assert not np.array_equal(split(3)[0], split(4)[0])
    assert_same(domains, copies)


def test_across_domains_draws_the_anomalies_to_test(domains):
    def tested(seed):
        # No anomaly is trained on, so that all are there to draw from.
        options = {"contamination": 0, "test_contamination": 0.5}
        _, X_test, _, y_test, _ = across_domains(
            *domains, 0, random_state=seed, **options
        )
        return X_test[y_test == -1]

    assert len(tested(3)) == len(tested(4)) == 8
    np.testing.assert_array_equal(tested(3), tested(3))
    assert not np.array_equal(tested(3), tested(4))


def test_across_domains_needs_every_normal_class_everywhere(domains):
    X_source, y_source, X_target, y_target = domains
    without = np.where(y_source == 1, 0, y_source)
    with pytest.raises(ValueError, match=r"in y_source must be among .*got \[0, 1\]"):
        across_domains(X_source, without, X_target, y_target, [0, 1])
    with pytest.raises(ValueError, match=r"normal_class must be among .*got \[0, 1\]"):
        across_domains(X_source, y_source, X_target, without, [0, 1])


def test_across_domains_refuses_missing_labels(domains):
    X_source, y_source, X_target, y_target = domains
    missing = [*y_source.tolist()[1:], None]
    with pytest.raises(ValueError, match="y_source has missing values"):
        across_domains(X_source, missing, X_target, y_target, 0)
    with pytest.raises(ValueError, match="y_target has missing values"):
        across_domains(X_source, y_source, X_target, missing, 0)
    with pytest.raises(ValueError, match="y_test has missing values"):
        across_domains(*domains, 0, X_test=X_source, y_test=missing)


def test_across_domains_keeps_containers(domains):
    X_source, y_source, X_target, y_target = domains
    frames = [pd.DataFrame({"a": X, "b": X / 2}) for X in (X_source, X_target)]
    split = across_domains(frames[0], y_source, frames[1], y_target, 0, random_state=0)
    X_train, X_test, _, _, domain = split
    assert list(X_train.columns) == list(X_test.columns) == ["a", "b"]
    np.testing.assert_array_equal(domain, np.where(X_train["a"] >= 1000, -1, 1))

    images = [np.zeros((80, 1, 4, 4), np.uint8) for _ in range(2)]
    split = across_domains(images[0], y_source, images[1], y_target, 0, random_state=0)
    assert split[0].shape[1:] == split[1].shape[1:] == (1, 4, 4)
    assert split[0].dtype == np.uint8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"X_target": np.zeros((80, 1))},
            r"shape \(\), those of X_target the shape \(1",
        ),
        ({"X_test": np.zeros((2, 3)), "y_test": [0, 1]}, "those of X_test the shape"),
        (
            {"X_target": np.zeros(80, np.uint8)},
            r"X_target holds bytes \(uint8\), and X_source does not",
        ),
        (
            {"X_source": list(np.zeros(80, np.uint8))},
            r"X_source holds bytes \(uint8\), and X_target does not",
        ),
        ({"y_source": np.ones(80)}, r"normal_class in y_source must be .*got \[0\]"),
        ({"y_target": np.ones(80)}, r"normal_class must be among .*got \[0\]"),
        ({"y_target": np.zeros(80)}, "No sample is anomalous"),
        ({"X_test": [1]}, "X_test and y_test must be given together"),
        ({"X_test": [1, 2], "y_test": [1, 2]}, "y_test has no normal sample"),
        ({"contamination": 1}, r"contamination must be a number in \[0, 1\)"),
        ({"contamination": 0.9}, "anomalies are needed, but there are 60"),
        ({"contamination": 0.01}, "contamination=0.01 of 12 samples is less than one"),
        ({"contamination": 0}, "would have no anomaly"),
        ({"test_contamination": 0}, "would have no anomaly"),
        ({"test_contamination": "all"}, "test_contamination must be a number"),
        ({"test_contamination": 0.9}, "72 anomalies are needed to test on, but 59"),
        ({"test_size": 0}, "No normal sample is left to test on"),
    ],
)
def test_across_domains_refuses(domains, changes, message):
    names = ("X_source", "y_source", "X_target", "y_target")
    given = dict(zip(names, domains, strict=True)) | {"random_state": 0} | changes
    with pytest.raises(ValueError, match=message):
        across_domains(**given, normal_class=0)


@pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])
def test_data_frames_keep_their_type(library):
    X = library.DataFrame({"a": np.arange(12), "b": np.arange(12) * 0.5})
    split = one_vs_rest(X, [0, 1] * 6, 0, random_state=0)
    X_train, X_test, y_train, y_test = contaminate(
        *split, contamination=0.2, random_state=0
    )
    assert isinstance(X_train, library.DataFrame)
    assert isinstance(X_test, library.DataFrame)
    assert list(X_train.columns) == list(X_test.columns) == ["a", "b"]
    for rows, y in ((X_train, y_train), (X_test, y_test)):
        assert ((rows["a"].to_numpy() % 2 == 0) == (y == 1)).all()
        assert (rows["b"].to_numpy() * 2 == rows["a"].to_numpy()).all()
    assert rows_together(X_train, X_test) == list(range(12))


def rows_together(*parts):
    return sorted(np.concatenate([part["a"].to_numpy() for part in parts]).tolist())


def test_across_domains_reads_bytes_in_dataframes(domains):
    X_source, y_source, X_target, y_target = domains
    frames = [pd.DataFrame({"a": X % 256}) for X in (X_source, X_target)]
    with pytest.raises(ValueError, match="X_source holds bytes"):
        across_domains(frames[0].astype("UInt8"), y_source, frames[1], y_target, 0)


def test_sparse_samples_are_refused():
    with pytest.raises(TypeError, match="toarray"):
        one_vs_rest(csr_array(np.eye(10)), [0, 1] * 5, 0)


def test_across_domains_refuses_other_columns(domains):
    X_source, y_source, X_target, y_target = domains
    frames = pd.DataFrame({"a": X_source}), pd.DataFrame({"b": X_target})
    with pytest.raises(ValueError, match="must have the same columns"):
        across_domains(frames[0], y_source, frames[1], y_target, 0)


# ------------------------------------------------------------------------ loaders

IMAGES = {
    fetch_mnist: ("mnist.npz", (28, 28)),
    fetch_fashion_mnist: ("fashion_mnist.npz", (28, 28)),
    fetch_kmnist: ("kmnist.npz", (28, 28)),
    fetch_usps: ("usps.npz", (16, 16)),
    fetch_cifar10: ("cifar10.npz", (32, 32, 3)),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Keep every loader away from the network and from the user's own folders."""

    def offline(*args, **kwargs):
        raise URLError("no network in the tests")

    monkeypatch.setattr(_images, "fetch_openml", offline)
    monkeypatch.delenv("SKANOMALY_DATA", raising=False)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "scikit_learn_data"))


def write_images(path, shape, n_train=6, n_test=4, **changes):
    """Write a small file of random images and return its arrays."""
    rng = np.random.RandomState(0)
    arrays = {
        "X_train": rng.randint(256, size=(n_train, *shape)).astype(np.uint8),
        "y_train": np.arange(n_train, dtype=np.uint8),
        "X_test": rng.randint(256, size=(n_test, *shape)).astype(np.uint8),
        "y_test": np.arange(n_test, dtype=np.uint8)[::-1],
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return arrays


@pytest.mark.parametrize("fetch", IMAGES)
def test_images_come_out_channels_first(fetch, tmp_path):
    name, shape = IMAGES[fetch]
    arrays = write_images(tmp_path / name, shape)
    bunch = fetch(data_home=tmp_path)
    assert bunch.data.dtype == np.uint8
    assert bunch.data.flags.c_contiguous
    assert bunch.target.dtype == np.int64
    assert bunch.data.shape == (6, 3 if len(shape) == 3 else 1, *shape[:2])
    channels_last = np.moveaxis(bunch.data, 1, -1).reshape(6, *shape)
    np.testing.assert_array_equal(channels_last, arrays["X_train"])
    np.testing.assert_array_equal(bunch.target, arrays["y_train"])
    assert len(bunch.target_names) == 10
    assert bunch.filename == str(tmp_path / name)
    assert bunch.DESCR.startswith("Load ")
    assert "Rights: " in bunch.DESCR
    assert "Parameters" not in bunch.DESCR


def test_subsets(tmp_path):
    arrays = write_images(tmp_path / "mnist.npz", (28, 28))
    X_test, y_test = fetch_mnist(subset="test", data_home=tmp_path, return_X_y=True)
    np.testing.assert_array_equal(X_test[:, 0], arrays["X_test"])
    np.testing.assert_array_equal(y_test, [3, 2, 1, 0])
    X, y = fetch_mnist(subset="all", data_home=str(tmp_path), return_X_y=True)
    np.testing.assert_array_equal(X[6:], X_test)
    np.testing.assert_array_equal(X[:6, 0], arrays["X_train"])
    np.testing.assert_array_equal(y, [0, 1, 2, 3, 4, 5, 3, 2, 1, 0])


def test_data_home_comes_before_the_variable_and_that_before_the_default(
    tmp_path, monkeypatch
):
    folders = [tmp_path / name for name in ("home", "variable", "scikit_learn_data")]
    for n, folder in enumerate(folders, start=1):
        write_images(folder / "usps.npz", (16, 16), n_train=n)
    assert len(fetch_usps().data) == 3
    monkeypatch.setenv("SKANOMALY_DATA", str(folders[1]))
    assert len(fetch_usps().data) == 2
    assert len(fetch_usps(data_home=folders[0]).data) == 1
    assert len(fetch_usps(data_home=tmp_path / "nowhere").data) == 2
    monkeypatch.delenv("SKANOMALY_DATA")
    with pytest.raises(FileNotFoundError):
        fetch_usps(data_home=tmp_path / "nowhere")


def test_the_default_folder_is_not_made_when_it_is_not_needed(tmp_path, monkeypatch):
    write_images(tmp_path / "variable" / "usps.npz", (16, 16))
    monkeypatch.setenv("SKANOMALY_DATA", str(tmp_path / "variable"))
    fetch_usps()
    assert not (tmp_path / "scikit_learn_data").exists()


def test_kmnist_test_part_alone(tmp_path):
    write_images(tmp_path / "kmnist_test.npz", (28, 28), X_train=None, y_train=None)
    assert len(fetch_kmnist(subset="test", data_home=tmp_path).data) == 4
    for subset in ("train", "all"):
        with pytest.raises(FileNotFoundError, match="with the arrays X_train, y_train"):
            fetch_kmnist(subset=subset, data_home=tmp_path)


@pytest.mark.parametrize("fetch", IMAGES)
def test_the_offline_error_names_files_and_folders(fetch, tmp_path, monkeypatch):
    monkeypatch.setenv("SKANOMALY_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError) as caught:
        fetch(data_home=tmp_path / "home")
    message = str(caught.value)
    expected = ["X_train, y_train", "no network in the tests", "OpenML", "data_home"]
    expected += ["SKANOMALY_DATA", str(tmp_path / "elsewhere"), str(tmp_path / "home")]
    for part in [IMAGES[fetch][0], *expected]:
        assert part in message
    assert "is not set" not in message
    assert isinstance(caught.value.__cause__, URLError)


def test_errors_say_that_the_variable_is_not_set():
    with pytest.raises(FileNotFoundError, match="SKANOMALY_DATA, which is not set"):
        fetch_mnist()


@pytest.mark.parametrize("fetch", IMAGES)
def test_nothing_is_fetched_where_that_is_not_wanted(fetch, tmp_path):
    with pytest.raises(OSError, match="With download_if_missing=True, ") as caught:
        fetch(data_home=tmp_path, download_if_missing=False)
    assert "no network in the tests" not in str(caught.value)
    write_images(tmp_path / IMAGES[fetch][0], IMAGES[fetch][1])
    found = fetch(data_home=tmp_path, download_if_missing=False)
    assert len(found.data) == 6


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(
    "fetch",
    [
        fetch_emnist_letters,
        fetch_tiny_imagenet,
        fetch_ucsd_ped2,
        partial(fetch_odds, "wine"),
    ],
)
def test_sets_that_nothing_downloads(fetch, download, tmp_path):
    with pytest.raises(OSError, match=r"[Ss]tore .* under that name"):
        fetch(data_home=tmp_path, download_if_missing=download)


@pytest.mark.parametrize("error", [ConnectionResetError(), ValueError("wrong md5")])
def test_other_failures_of_the_fetch(error, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(_images, "fetch_openml", fail)
    with pytest.raises(FileNotFoundError) as caught:
        fetch_mnist(data_home=tmp_path)
    assert caught.value.__cause__ is error


def openml_like(fetch, known):
    """Return samples as OpenML has them and the file arrays they should become."""
    rng = np.random.RandomState(0)
    y_test = np.repeat(np.arange(10), known.test_counts)
    y = np.concatenate([np.arange(10).repeat(3), rng.permutation(y_test)])
    pixels = rng.randint(256, size=(len(y), 1), dtype=np.uint8)
    pixels = np.tile(pixels, (1, np.prod(known.shape)))
    pixels[0, :2], pixels[0, -1] = (0, 255), 7
    low, high = known.values
    values = pixels / 255 * (high - low) + low
    labels = (y + known.first_label).astype(str).astype(object)
    return Bunch(data=values, target=labels), pixels.reshape(-1, *known.shape), y


@pytest.mark.parametrize("fetch", [fetch_mnist, fetch_usps])
def test_openml_is_fetched_once_and_kept(fetch, tmp_path, monkeypatch):
    known = {fetch_mnist: _images._MNIST, fetch_usps: _images._USPS}[fetch]
    found, images, labels = openml_like(fetch, known)
    calls = []

    def fetch_openml(name, **options):
        calls.append((name, options["version"]))
        return found

    monkeypatch.setattr(_images, "fetch_openml", fetch_openml)
    home = tmp_path / "new" / "home"
    for _ in range(2):
        X, y = fetch(subset="all", data_home=home, return_X_y=True)
        np.testing.assert_array_equal(X, images)
        np.testing.assert_array_equal(y, labels)
    assert calls == [known.openml]
    assert [path.name for path in home.iterdir()] == [known.files[0]]
    assert len(fetch(data_home=home).data) == 30
    assert len(fetch(subset="test", data_home=home).data) == sum(known.test_counts)


def test_colour_images_of_openml_are_planes():
    known = replace(_images._CIFAR10, test_counts=(2,) * 10)
    found, images, _ = openml_like(fetch_cifar10, known)
    arrays = _images._official_split(known, found.data, found.target)
    assert arrays["X_train"].shape == (30, 32, 32, 3)
    np.testing.assert_array_equal(arrays["X_train"][0], images[0].transpose(1, 2, 0))
    assert arrays["X_train"][0, 0, 1].tolist()[0] == 255
    assert arrays["X_train"][0, -1, -1].tolist()[-1] == 7


@pytest.mark.parametrize("change", ["order", "values", "labels"])
def test_an_openml_set_that_has_changed_is_refused(change, tmp_path, monkeypatch):
    found, _, _ = openml_like(fetch_usps, _images._USPS)
    if change == "order":
        found.target = found.target[::-1]
    elif change == "values":
        found.data = (found.data + 1) / 2
    else:
        found.target = np.array([str(int(label) % 10 + 1) for label in found.target])
    monkeypatch.setattr(_images, "fetch_openml", lambda *args, **kwargs: found)
    with pytest.raises(ValueError, match="no longer has the order and the values"):
        fetch_usps(data_home=tmp_path)
    assert not list(tmp_path.glob("*.npz"))


def test_a_file_in_the_way_is_not_overwritten(tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros(3))
    with pytest.raises(FileExistsError, match="lacks some of the arrays"):
        fetch_mnist(data_home=tmp_path)


def test_half_a_file_is_never_left(tmp_path, monkeypatch):
    found, _, _ = openml_like(fetch_usps, _images._USPS)
    monkeypatch.setattr(_images, "fetch_openml", lambda *args, **kwargs: found)

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_usps(data_home=tmp_path / "home")
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.parametrize(
    "changes",
    [
        {"X_train": np.zeros((6, 28, 28), np.float32)},
        {"X_train": np.zeros((6, 16, 16), np.uint8)},
        {"X_train": np.zeros((5, 28, 28), np.uint8)},
    ],
)
def test_images_of_another_kind_are_refused(changes, tmp_path):
    write_images(tmp_path / "mnist.npz", (28, 28), **changes)
    with pytest.raises(ValueError, match=r"must hold uint8 images"):
        fetch_mnist(data_home=tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_a_broken_file_raises_an_error(content, tmp_path):
    (tmp_path / "mnist.npz").write_bytes(content)
    with pytest.raises(OSError, match=r"mnist\.npz cannot be read as an \.npz file"):
        fetch_mnist(data_home=tmp_path)


def test_a_single_array_is_no_table(tmp_path):
    with (tmp_path / "wine.npz").open("wb") as file:
        np.save(file, np.zeros((2, 2)))
    with pytest.raises(OSError, match=r"wine\.npz cannot be read as an \.npz file"):
        fetch_odds("wine", data_home=tmp_path)


def test_broken_lzma_raises_an_error(tmp_path):
    path = tmp_path / "wine.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        for name in ("X", "y"):
            with file.open(f"{name}.npy", "w") as member:
                np.save(member, np.zeros((1000, 2)))
    content = bytearray(path.read_bytes())
    content[60:80] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(OSError, match="cannot be read") as caught:
        fetch_odds("wine", data_home=tmp_path)
    assert isinstance(caught.value.__cause__, lzma.LZMAError)


@pytest.mark.parametrize("broken", [b"(" * 20, b"if 1:\n  1\n 2\n" + b" " * 9])
def test_a_broken_header_raises_an_error(broken, tmp_path):
    path = tmp_path / "wine.npz"
    # So long that the header is parsed before the check sum can tell.
    np.savez(path, X=np.zeros((1000, 2)), y=np.zeros(1000))
    content = bytearray(path.read_bytes())
    start = content.index(b"{'descr'")
    content[start : start + len(broken)] = broken
    path.write_bytes(content)
    with pytest.raises(OSError, match="cannot be read"):
        fetch_odds("wine", data_home=tmp_path)


def test_an_unknown_compression_raises_an_error(tmp_path):
    path = tmp_path / "wine.npz"
    np.savez(path, X=np.zeros((4, 2)), y=np.zeros(4))
    content = bytearray(path.read_bytes())
    # The method that the directory at the end of the archive gives for X.
    content[content.index(b"PK\x01\x02") + 10] = 99
    path.write_bytes(content)
    with pytest.raises(OSError, match="cannot be read"):
        fetch_odds("wine", data_home=tmp_path)


def test_pickles_are_not_loaded(tmp_path):
    table = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "wine.npz", X=table, y=np.zeros(1))
    with pytest.raises(OSError, match="cannot be read"):
        fetch_odds("wine", data_home=tmp_path)


@pytest.mark.parametrize("subset", ["validation", None, 3])
def test_unknown_subset(subset, tmp_path):
    with pytest.raises(ValueError, match='"train", "test" or "all"'):
        fetch_mnist(subset=subset, data_home=tmp_path)


@pytest.mark.parametrize("fetch", [fetch_mnist, lambda **kw: fetch_odds("wine", **kw)])
def test_data_home_must_be_a_path(fetch):
    with pytest.raises(TypeError, match="data_home must be a path or None, got 3"):
        fetch(data_home=3)


# ------------------------------------------------- images that nothing downloads


def test_letters(tmp_path):
    path = tmp_path / "emnist_letters.npz"
    arrays = write_images(path, (28, 28), y_train=np.arange(20, 26, dtype=np.uint8))
    bunch = fetch_emnist_letters(data_home=tmp_path)
    np.testing.assert_array_equal(bunch.data[:, 0], arrays["X_train"])
    assert bunch.data.flags.c_contiguous
    assert bunch.target.dtype == np.int64
    assert [bunch.target_names[k] for k in bunch.target] == list("UVWXYZ")
    assert len(bunch.target_names) == 26
    assert bunch.filename == str(path)
    assert bunch.DESCR.startswith("Load EMNIST Letters")
    assert "Rights: " in bunch.DESCR
    X, y = fetch_emnist_letters(subset="all", data_home=tmp_path, return_X_y=True)
    np.testing.assert_array_equal(X[6:, 0], arrays["X_test"])
    assert y.tolist() == [20, 21, 22, 23, 24, 25, 3, 2, 1, 0]
    with pytest.raises(ValueError, match='"train", "test" or "all"'):
        fetch_emnist_letters(subset="letters", data_home=tmp_path)


CLASSES = {
    "n02123045": "tabby, tabby cat",
    "n02814533": "beach wagon, station wagon, wagon",
    "n01443537": "goldfish, Carassius auratus",
    "n03977966": "police van, wagon",
}


@pytest.fixture
def photos(tmp_path):
    """Write eight images of four classes, and return how to write others."""

    def write(**changes):
        arrays = {
            "X": np.random.RandomState(0).randint(256, size=(8, 32, 32, 3), dtype="u1"),
            "y": np.int16([3, 0, 1, 2, 2, 1, 0, 3]),
            "class_ids": np.array(list(CLASSES)),
            "class_names": np.array(list(CLASSES.values())),
        } | changes
        np.savez(tmp_path / "tiny_imagenet_32.npz", **arrays)
        return arrays

    return write


def test_tiny_imagenet(photos, tmp_path):
    arrays = photos()
    bunch = fetch_tiny_imagenet(data_home=tmp_path)
    assert bunch.data.dtype == np.uint8
    assert bunch.data.flags.c_contiguous
    np.testing.assert_array_equal(np.moveaxis(bunch.data, 1, -1), arrays["X"])
    assert bunch.target.dtype == np.int64
    assert bunch.target.tolist() == arrays["y"].tolist()
    names = ["tabby", "beach wagon", "goldfish", "police van"]
    assert bunch.target_names == names
    assert bunch.class_ids == list(CLASSES)
    assert bunch.filename == str(tmp_path / "tiny_imagenet_32.npz")
    assert bunch.DESCR.startswith("Load Tiny ImageNet")
    assert "Rights: " in bunch.DESCR
    assert "Parameters" not in bunch.DESCR
    X, y = fetch_tiny_imagenet(data_home=str(tmp_path), return_X_y=True)
    np.testing.assert_array_equal(X, bunch.data)
    np.testing.assert_array_equal(y, bunch.target)


@pytest.mark.parametrize(
    ("without", "left"),
    [
        (["tabby"], [1, 2, 3]),
        (["n02123045"], [1, 2, 3]),
        ("tabby cat", [1, 2, 3]),
        (np.array(["goldfish", "n02123045", "tabby"]), [1, 3]),
        (["wagon"], [0, 2]),
        (("station wagon",), [0, 2, 3]),
        ([], [0, 1, 2, 3]),
    ],
)
def test_tiny_imagenet_without_classes(without, left, photos, tmp_path):
    arrays = photos()
    bunch = fetch_tiny_imagenet(without=without, data_home=tmp_path)
    rows = np.isin(arrays["y"], left)
    np.testing.assert_array_equal(np.moveaxis(bunch.data, 1, -1), arrays["X"][rows])
    assert bunch.class_ids == [list(CLASSES)[k] for k in left]
    # Numbers, ids and names are of the classes that are left.
    ids = np.array(bunch.class_ids)[bunch.target]
    np.testing.assert_array_equal(ids, arrays["class_ids"][arrays["y"][rows]])
    firsts = [name.split(",")[0] for name in CLASSES.values()]
    assert bunch.target_names == [firsts[k] for k in left]
    _, y = fetch_tiny_imagenet(without=without, data_home=tmp_path, return_X_y=True)
    np.testing.assert_array_equal(y, bunch.target)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (
            ["gold fish"],
            r"'gold fish', which is .* 4 classes\. Did you mean 'goldfish'",
        ),
        (["goldfish", "n0"], r"without has 'n0', which is neither the WordNet id nor"),
        ("cat", "without has 'cat'"),
        ([3], "without has '3'"),
        (list(CLASSES), "without leaves no class"),
    ],
)
def test_tiny_imagenet_refuses_unknown_classes(without, message, photos, tmp_path):
    photos()
    with pytest.raises(ValueError, match=message):
        fetch_tiny_imagenet(without=without, data_home=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": np.zeros((8, 64, 64, 3), np.uint8)}, "must hold uint8 images"),
        ({"X": np.zeros((8, 32, 32, 3))}, "must hold uint8 images"),
        ({"y": np.arange(3)}, "with one label each, got .* with 3 labels"),
        ({"y": np.full(8, 4)}, "got 4 ids, 4 names and the labels 4 to 4"),
        ({"class_names": np.array(["tabby"])}, "got 4 ids, 1 names"),
    ],
)
def test_tiny_imagenet_of_another_kind_is_refused(changes, message, photos, tmp_path):
    photos(**changes)
    with pytest.raises(ValueError, match=message):
        fetch_tiny_imagenet(data_home=tmp_path)


@pytest.mark.parametrize(
    ("fetch", "expected"),
    [
        (
            fetch_emnist_letters,
            ["emnist_letters.npz", "X_train, y_train", "nist.gov", "0 for A"],
        ),
        (
            fetch_tiny_imagenet,
            ["tiny_imagenet_32.npz", "class_names", "stanford.edu", "32 x 32"],
        ),
    ],
)
def test_errors_of_loaders_without_download_name_the_files(fetch, expected, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        fetch(data_home=tmp_path)
    for part in [*expected, str(tmp_path), "SKANOMALY_DATA, which is not set"]:
        assert part in str(caught.value)
    assert "no network" not in str(caught.value)


# ------------------------------------------------------------------------- tables


@pytest.fixture
def wine(tmp_path):
    """Write a small table and return the folder that holds its subfolder."""
    (tmp_path / "tabular").mkdir()
    X = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.savez(tmp_path / "tabular" / "wine.npz", X=X, y=np.int8([0, 1, 0, 0]))
    return tmp_path


def test_tables_mark_anomalies_by_minus_one(wine, monkeypatch):
    bunch = fetch_odds("wine", data_home=wine)
    assert bunch.data.dtype == np.float32
    assert bunch.data.shape == (4, 3)
    assert bunch.target.dtype == np.int64
    assert bunch.target.tolist() == [1, -1, 1, 1]
    assert bunch.feature_names == ["x0", "x1", "x2"]
    assert bunch.frame is None
    assert "45_wine.npz" in bunch.DESCR
    monkeypatch.setenv("SKANOMALY_DATA", str(wine))
    X, y = fetch_odds("wine", return_X_y=True)
    np.testing.assert_array_equal(X, bunch.data)
    np.testing.assert_array_equal(y, bunch.target)
    monkeypatch.setenv("SKANOMALY_DATA", str(wine / "tabular"))
    assert fetch_odds("wine").filename == str(wine / "tabular" / "wine.npz")


def test_tables_as_frames(wine):
    bunch = fetch_odds("wine", data_home=wine, as_frame=True)
    assert list(bunch.frame.columns) == ["x0", "x1", "x2", "target"]
    pd.testing.assert_frame_equal(bunch.frame.iloc[:, :3], bunch.data)
    assert (bunch.data.dtypes == np.float32).all()
    X, y = fetch_odds("wine", data_home=wine, as_frame=True, return_X_y=True)
    pd.testing.assert_frame_equal(X, bunch.data)
    pd.testing.assert_series_equal(y, pd.Series([1, -1, 1, 1], name="target"))


def test_integer_tables_become_float64(tmp_path):
    np.savez(tmp_path / "wine.npz", X=np.arange(4).reshape(2, 2), y=np.array([0.0, 1]))
    X, y = fetch_odds("wine", data_home=tmp_path, return_X_y=True)
    assert X.dtype == np.float64
    assert y.tolist() == [1, -1]


def test_tables_refuse_other_labels(tmp_path):
    np.savez(tmp_path / "wine.npz", X=np.zeros((2, 2)), y=np.array([1, -1]))
    with pytest.raises(ValueError, match="must be 1 for an anomaly and 0 elsewhere"):
        fetch_odds("wine", data_home=tmp_path)


def test_labels_in_a_column_are_accepted(tmp_path):
    np.savez(tmp_path / "wine.npz", X=np.zeros((3, 2)), y=np.array([[0], [1], [0]]))
    table = fetch_odds("wine", data_home=tmp_path, as_frame=True)
    assert table.target.tolist() == [1, -1, 1]


@pytest.mark.parametrize("shape", [(2, 2), (3,), (3, 2, 1)])
def test_tables_refuse_other_shapes(shape, tmp_path):
    np.savez(tmp_path / "wine.npz", X=np.zeros(shape), y=np.zeros(3))
    with pytest.raises(ValueError, match=r"got X of shape .* and 3 labels"):
        fetch_odds("wine", data_home=tmp_path)


@pytest.mark.parametrize("name", ["thyroid", "arrhythmia"])
def test_a_missing_table_says_where_to_get_it(name, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        fetch_odds(name, data_home=tmp_path)
    source = {"thyroid": "38_thyroid.npz", "arrhythmia": "arrhythmia.csv"}[name]
    expected = [f"{name}.npz", f"tabular/{name}.npz", str(tmp_path), "SKANOMALY_DATA"]
    for part in ["https://github.com/", source, *expected]:
        assert part in str(caught.value)


def test_unknown_tables():
    with pytest.raises(
        ValueError, match=r"Did you mean 'internetads'\? .*annthyroid, "
    ):
        fetch_odds("InternetAds")
    with pytest.raises(ValueError, match="Did you mean 'satellite'"):
        fetch_odds("SATELLITE")
    with pytest.raises(ValueError, match=r"'xyzxyz'\. The names are annthyroid, "):
        fetch_odds("xyzxyz")
    with pytest.raises(TypeError, match="name must be a string, got 3"):
        fetch_odds(3)


# --------------------------------------------------------------------- real files


@pytest.fixture
def shared_data(monkeypatch):
    """Point SKANOMALY_DATA at the real files, or skip where there are none."""
    folder = Path(SHARED or REPOSITORY.parent / "shared" / "data")
    if not (folder / "mnist.npz").is_file():
        pytest.skip("no real data: set SKANOMALY_DATA")
    monkeypatch.setenv("SKANOMALY_DATA", str(folder))
    return folder


# Read at import, because the fixture `no_network` takes the variable away.
SHARED = os.environ.get("SKANOMALY_DATA")


@pytest.mark.parametrize(
    ("fetch", "subset", "shape", "counts"),
    [
        (fetch_mnist, "test", (10000, 1, 28, 28), _images._MNIST.test_counts),
        (fetch_fashion_mnist, "train", (60000, 1, 28, 28), (6000,) * 10),
        (fetch_kmnist, "test", (10000, 1, 28, 28), (1000,) * 10),
        (fetch_usps, "test", (2007, 1, 16, 16), _images._USPS.test_counts),
        (fetch_usps, "all", (9298, 1, 16, 16), None),
        (fetch_emnist_letters, "train", (10400, 1, 28, 28), (400,) * 26),
        (fetch_emnist_letters, "test", (2600, 1, 28, 28), (100,) * 26),
    ],
)
def test_real_images(fetch, subset, shape, counts, shared_data):
    X, y = fetch(subset=subset, return_X_y=True)
    assert X.shape == shape
    assert y.shape == shape[:1]
    assert (X.min(), X.max()) == (0, 255)
    if counts:
        assert tuple(np.bincount(y)) == counts


def test_real_cifar10_holds_what_the_loader_reads(shared_data):
    # The images take 8 s to unpack: the labels and the names of the arrays must do.
    with np.load(shared_data / "cifar10.npz", allow_pickle=False) as file:
        assert {"X_train", "y_train", "X_test", "y_test"} <= set(file.files)
        assert tuple(np.bincount(file["y_test"])) == _images._CIFAR10.test_counts
        assert tuple(file["class_names"]) == _images._CIFAR10.classes


def test_real_tiny_imagenet(shared_data):
    bunch = fetch_tiny_imagenet(without=["wagon", "tabby", "n02123394"])
    assert bunch.data.shape == (196 * 50, 3, 32, 32)
    assert np.bincount(bunch.target).tolist() == [50] * 196
    assert len(set(bunch.target_names)) == len(set(bunch.class_ids)) == 196
    assert "Egyptian cat" in bunch.target_names
    assert not {"tabby", "Persian cat", "police van"} & set(bunch.target_names)


@pytest.mark.parametrize(
    ("name", "shape", "n_anomalies", "dtype"),
    [
        ("annthyroid", (7200, 6), 534, "float64"),
        ("arrhythmia", (452, 274), 66, "float64"),
        ("satimage-2", (5803, 36), 71, "float32"),
        ("wbc", (223, 9), 10, "float32"),
    ],
)
def test_real_tables(name, shape, n_anomalies, dtype, shared_data):
    X, y = fetch_odds(name, return_X_y=True)
    assert X.shape == shape
    assert X.dtype == dtype
    assert (y == -1).sum() == n_anomalies
    assert (y == 1).sum() == len(X) - n_anomalies


def test_every_table_of_the_readme_is_known(shared_data):
    stored = {path.stem for path in (shared_data / "tabular").glob("*.npz")}
    listed = fetch_odds.__doc__
    assert stored
    for name in stored:
        assert f'"{name}"' in listed
        assert Path(fetch_odds(name).filename).stem == name


def test_deep_sad_protocol_on_real_data(shared_data):
    X, y = fetch_odds("satimage-2", return_X_y=True)
    split = one_vs_rest(X, y, 1, test_size=0.4, random_state=0)
    split = contaminate(*split, contamination=0.005, random_state=0)
    split = labelled_anomalies(*split, ratio=0.01, random_state=0)
    X_train, X_test, y_train, y_test = split
    assert len(X_train) == 3439 + 17 + 35
    assert (y_train == -1).sum() == 35
    assert (y_test == -1).sum() == 71 - 17 - 35
    assert len(X_test) == len(X) - len(X_train)


# ------------------------------------------------------------------------ package


def test_the_package_is_light():
    code = (
        "import sys, skanomaly.datasets as d; "
        "print({'torch', 'skorch', 'pooch', 'matplotlib'} & set(sys.modules), "
        "sorted(set(d.__all__) - set(dir(d))))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert done.stdout.strip() == "set() []"


def test_a_split_copies_only_the_samples_it_takes(tmp_path):
    path = tmp_path / "X.npy"
    X = np.lib.format.open_memmap(path, "w+", np.uint8, (2000, 4096))
    y = np.repeat([0, 1], [1990, 10])
    tracemalloc.start()
    _, X_test, *_ = one_vs_rest(X[:], y, 1, X_test=X[1000:], y_test=y[1000:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(X_test) == 1000
    assert peak < X.nbytes / 4


def test_all_public_names_are_documented():
    for name in datasets.__all__:
        doc = getdoc(getattr(datasets, name))
        for section in ("Parameters", "Returns", "Raises", "Examples"):
            assert f"{section}\n---" in doc
