"""The corpus of ADRA: its forms, its spectrum, altered samples."""

import math
from collections import Counter
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, cross_validate

from skanomaly import ADRA
from skanomaly._adra._corpus import AlteredSamples, filter_bands, spectrum_factors
from skanomaly.engine import DeviceDataset, TransformedDataset
from skanomaly.exceptions import CorpusSourceWarning

from .parts import (
    assert_same_state,
    ignore_missing_corpus,
    network_of,
    recorded,
    scaled,
    short,
    state_of,
)

pytestmark = ignore_missing_corpus


# The corpus ---------------------------------------------------------------------------


def scores_of(X, corpus, y=None, **settings):
    return short(corpus=corpus, lr=0.1, **settings).fit(X, y).score_samples(X)


LABELS = np.repeat(list("ab"), 25)


@pytest.mark.parametrize(
    "form",
    [
        lambda rows: rows.tolist(),
        np.asfortranarray,
        pd.DataFrame,
        lambda rows: (rows, LABELS),
        lambda rows: (pd.DataFrame(rows), pd.Series(LABELS)),
        lambda rows: (rows.tolist(), LABELS.tolist()),
    ],
    ids=["list", "columns", "frame", "labelled", "labelled frame", "labelled list"],
)
def test_a_corpus_comes_in_many_forms(form, X, corpus):
    expected = scores_of(X, corpus)
    np.testing.assert_array_equal(scores_of(X, form(corpus)), expected)


def test_a_corpus_may_be_a_memory_map(X, corpus, tmp_path):
    np.save(tmp_path / "corpus.npy", corpus)
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    np.testing.assert_array_equal(scores_of(X, mapped), scores_of(X, corpus))


def test_it_matters_which_corpus_it_is(X, corpus):
    each = [scores_of(X, given) for given in (corpus, corpus + 1, "auto", None)]
    for k, one in enumerate(each):
        for other in each[:k]:
            assert not np.array_equal(one, other)


@pytest.mark.parametrize("pretrain", ["auto", "denoising"])
def test_networks_of_tables_are_pretrained_on_normal_samples(X, corpus, pretrain):
    """The corpus has no part in the denoising."""
    nets = [
        short(corpus=given, pretrain=pretrain).fit(X).backbone_
        for given in (corpus, 2 * corpus, None)
    ]
    for other in nets[1:]:
        assert_same_state(state_of(other), state_of(nets[0]))


def test_columns_of_a_corpus_are_those_of_the_samples(X, corpus):
    frame, names = pd.DataFrame(X, columns=list("abcd")), list("dcba")
    others = pd.DataFrame(corpus, columns=list("abcd"))
    short(corpus=others).fit(frame)
    for given in (others[names], (others[names], LABELS)):
        with pytest.raises(ValueError, match=r"corpus does not match X.*names"):
            short(corpus=given).fit(frame)


def test_a_corpus_in_other_units_gives_a_warning(X, corpus):
    with pytest.warns(UserWarning, match="of the corpus.*same units"):
        short(corpus=corpus + 5000).fit(X)


@pytest.mark.parametrize(
    "given", [lambda rows: (rows, rows), lambda rows: [rows, rows[:5]]]
)
def test_two_corpora_are_refused(X, corpus, given):
    with pytest.raises(
        ValueError, match=r"corpus (is|has to be) .*\(samples, classes\)"
    ):
        short(corpus=given(corpus)).fit(X)


def test_a_corpus_of_images_comes_flat_too(images):
    backbone = network_of()
    expected = scores_of(images[0], images[1], backbone=backbone)
    flat = images.reshape(2, 40, -1)
    for corpus in images[1], flat[1]:
        settings = {"backbone": backbone, "image_shape": (3, 10, 12)}
        np.testing.assert_array_equal(scores_of(flat[0], corpus, **settings), expected)


@pytest.mark.parametrize("missing", [None, np.nan])
def test_missing_classes_of_a_corpus_raise_an_error(missing, images):
    classes = [missing, 1] * (len(images[1]) // 2)
    with pytest.raises(ValueError, match=r"\(samples, classes\), has missing"):
        short(corpus=(images[1], classes)).fit(images[0])


@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_corpus_by_name(n_channels, images, monkeypatch):
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (30, 3, 32, 32)).astype(np.uint8)
    labels = np.repeat([4, 7, 9], 10)
    asked = []

    def fetch(**settings):
        asked.append(settings)
        return coarse, labels

    monkeypatch.setattr("skanomaly.datasets.fetch_tiny_imagenet", fetch)
    normal = images[0][:, :n_channels]
    detector = short(corpus="tiny_imagenet", backbone=network_of(n_channels))
    detector.set_params(normalization=None).fit(normal)
    assert asked == [{"return_X_y": True}]
    assert np.isfinite(detector.score_samples(normal)).all()
    # The package's network is pretrained on the classes.
    detector = short(corpus="tiny_imagenet", pretrain="supervised").fit(normal)
    assert detector.history_[0]["stage"] == "pretraining"


def test_a_corpus_by_name_is_brought_to_the_shape_of_the_images(images, monkeypatch):
    plain = np.ones((30, 3, 32, 32), np.uint8)
    plain *= np.array([200, 100, 50], np.uint8)[:, None, None]
    monkeypatch.setattr(
        "skanomaly.datasets.fetch_tiny_imagenet", lambda **_: (plain, np.zeros(30))
    )
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    for n_channels, colour in ((3, (200, 100, 50)), (1, (round(grey),))):
        network, seen = recorded(network_of(n_channels))
        settings = {"normalization": None, "augment": None, "backbone": network}
        short(corpus="tiny_imagenet", **settings).fit(images[0][:, :n_channels])
        (batch, *_) = [x for x in seen if len(x) == 16]
        expected = torch.tensor(colour).view(-1, 1, 1) / 127.5 - 1
        torch.testing.assert_close(
            batch[8:], expected.expand(8, n_channels, 10, 12), rtol=0, atol=0.006
        )


@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.ConstantScoresWarning")
def test_known_anomalies_and_a_corpus_have_equal_parts_in_a_batch(images):
    # Constant images have no sharpness to bring to that of others.
    normal, known, corpus = (
        np.full((20, 3, 10, 12), value, np.uint8) for value in (128, 255, 0)
    )
    X, y = np.r_[normal, known], np.repeat([1, -1], 20)
    settings = {"normalization": None, "augment": None}
    for given, labels, share in (
        (corpus, y, {255: 4, 0: 4}),
        (corpus, None, {0: 8}),
        (None, y, {255: 8}),
        (None, None, {}),
    ):
        network, seen = recorded(network_of())
        data = X if labels is not None else normal
        detector = short(corpus=given, backbone=network, **settings)
        detector.fit(data, labels)
        batches = [x for x in seen if len(x) == 16]
        pixels = (batches[0][:, 0, 0, 0] + 1) * 127.5
        counts = Counter(pixels.round().int().tolist())
        assert counts == {128: 16 - sum(share.values()), **share}
        if share:
            assert detector.offset_ == -math.log(2)
        else:
            assert detector.offset_ != -math.log(2)


@pytest.mark.parametrize("kind", ["X", "images"])
def test_a_corpus_may_be_small_or_contain_normal_samples(kind, request):
    data = request.getfixturevalue(kind)
    normal = data if kind == "X" else data[0]
    settings = {} if kind == "X" else {"backbone": network_of()}
    for corpus in (normal[:5] * 2, normal[:1], normal, np.concatenate([normal] * 3)):
        scores = scores_of(normal, corpus, **settings)
        assert np.isfinite(scores).all()
        assert np.ptp(scores) > 0


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (np.zeros((9, 3)), r"corpus have shape \(3,\), those of X \(4,\)"),
        (np.full((9, 4), np.nan), "corpus contains NaN"),
        (np.zeros((0, 4)), "0 sample"),
        ("nothing", "'nothing' is no data set.*tiny_imagenet"),
        ("odds", "corpus='odds'"),
        ("ucsd_ped2", "corpus"),
        ((np.zeros((9, 4)), np.zeros(8)), "9 samples, but 8 labels"),
        ((np.zeros((9, 4)), np.zeros(9), 1), "corpus"),
        (np.zeros(4), "corpus"),
    ],
)
def test_a_corpus_that_does_not_fit_raises_an_error(corpus, message, X, monkeypatch):
    def fetch(**settings):
        return np.zeros((9, 1, 8, 8), np.uint8), np.zeros(9)

    monkeypatch.setattr("skanomaly.datasets.fetch_ucsd_ped2", fetch)
    detector = short(corpus=corpus)
    with pytest.raises(ValueError, match=message):
        detector.fit(X)
    assert vars(detector).keys() == detector.get_params().keys()


def test_bytes_and_floats_are_refused_together(images):
    for normal, corpus in (images[0], images[1] / 255), (images[0] / 255, images[1]):
        with pytest.raises(ValueError, match="give both as uint8"):
            short(corpus=corpus, backbone=network_of()).fit(normal)


def test_without_a_corpus_it_does_not_collapse(toy):
    X_train, X_test, y_test = toy
    detector = ADRA(corpus=None, random_state=0).fit(X_train)
    scores = detector.score_samples(X_test)
    assert len(np.unique(scores)) > 300
    assert np.median(-scores) > 1e-4
    assert roc_auc_score(y_test, scores) > 0.85
    assert np.mean(detector.predict(X_train) == 1) > 0.8


def test_cross_validation_leaves_the_corpus_whole(X, corpus):
    detector = short(corpus=corpus, lr=0.1)
    folds = KFold(2)
    result = cross_validate(
        detector, X, cv=folds, scoring=lambda *_: 0.0, return_estimator=True
    )
    for estimator, (train, _) in zip(result["estimator"], folds.split(X), strict=True):
        expected = scores_of(X[train], corpus)
        np.testing.assert_array_equal(estimator.score_samples(X[train]), expected)


# Spectra ------------------------------------------------------------------------------


def blurred(images):
    return F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), 5, 1)


@pytest.fixture
def smooth_and_noisy():
    def draw(n, noise):
        made = blurred(blurred(torch.randn(n, 3, 24, 20)))
        return made / made.std() + noise * torch.randn(n, 3, 24, 20)

    return draw(600, 0.1), draw(600, 0.4)


def test_equal_sets_have_equal_spectra(smooth_and_noisy):
    smooth, noisy = smooth_and_noisy
    for images in (smooth, smooth[:, :1]):
        factors = spectrum_factors(images, images)
        torch.testing.assert_close(factors, torch.ones(images.shape[1], 24))
    # A corpus that is less sharp stays so.
    factors = spectrum_factors(noisy, smooth)
    assert factors.min() > 0.8
    assert factors.max() == 1


def test_factors_damp_fine_detail_that_normal_images_lack(smooth_and_noisy):
    smooth, noisy = smooth_and_noisy
    factors = spectrum_factors(smooth, noisy)
    assert (factors[:, :3] == 1).all()
    # Where there is little but noise, a quarter of it, and 1 in 7 more of all power.
    torch.testing.assert_close(
        factors[:, 19:], torch.full((3, 5), 0.28), rtol=0.15, atol=0
    )
    # Brightness and contrast do not matter.
    other = spectrum_factors(3 * smooth + 1, 100 * noisy - 7)
    torch.testing.assert_close(other, factors, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (3, 24, 20), (4, 5, 4)])
def test_factors_of_one_change_nothing(shape):
    images = torch.randn(3, *shape)
    factors = torch.ones(3 if shape[0] == 3 else shape[0], 24)
    torch.testing.assert_close(
        filter_bands(images, factors), images, rtol=1e-4, atol=1e-5
    )


def spectrum(images):
    """Return the power by frequency of the middle of images, in three bands."""
    window = np.outer(np.hanning(26)[1:-1], np.hanning(22)[1:-1])
    images = images.numpy() - images.numpy().mean((2, 3), keepdims=True)
    power = np.abs(np.fft.fft2(images * window)) ** 2
    power /= power.sum((2, 3), keepdims=True)
    radius = np.hypot(np.fft.fftfreq(24)[:, None], np.fft.fftfreq(20))
    bands = pairwise([0.3, 0.4, 0.5, 0.6])
    return np.array([power[..., (radius >= a) & (radius < b)].mean() for a, b in bands])


def test_a_filtered_corpus_has_the_spectrum_of_normal_images(smooth_and_noisy):
    smooth, noisy = smooth_and_noisy
    assert (spectrum(noisy) > 4 * spectrum(smooth)).all()
    made = filter_bands(noisy, spectrum_factors(smooth, noisy))
    assert made.shape == noisy.shape
    np.testing.assert_allclose(spectrum(made), spectrum(smooth), rtol=0.5)
    # Coarse structures stay.
    torch.testing.assert_close(
        F.avg_pool2d(made, 8)[..., 1, :],
        F.avg_pool2d(noisy, 8)[..., 1, :],
        rtol=0,
        atol=0.1,
    )


def test_filtered_bytes_stay_within_their_range():
    X = np.zeros((4, 3, 16, 16), np.uint8)
    X[..., 8:] = 255
    factors = torch.ones(3, 24)
    factors[:, 4:] = 0.2
    made = TransformedDataset(DeviceDataset(X), partial(filter_bands, factors=factors))[
        torch.arange(4)
    ]
    expected = filter_bands(torch.from_numpy(X).float(), factors).clamp(0, 255)
    torch.testing.assert_close(made.float(), expected, rtol=0, atol=0.51)


def test_detectors_see_the_matched_corpus(smooth_and_noisy):
    def as_bytes(images):
        return (128 + 20 * images).clamp(0, 255).byte().numpy()

    smooth, noisy = map(as_bytes, smooth_and_noisy)
    network, seen = recorded(network_of())
    settings = {"normalization": None, "augment": None, "input_size": 20}
    detector = short(corpus=noisy, backbone=network, batch_size=200, **settings)
    with pytest.warns(CorpusSourceWarning):
        detector.fit(smooth)
    corpus = next(x for x in seen if len(x) == 200)[100:]
    high = [spectrum(part)[-1] for part in (scaled(smooth), corpus, scaled(noisy))]
    assert high[1] < high[2] / 4
    assert high[1] == pytest.approx(high[0], rel=0.5)


# Altered samples ----------------------------------------------------------------------


@pytest.mark.parametrize("members", [(), (3,)])
def test_altered_samples_are_halves_and_quarters(members):
    table = torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
    rows = DeviceDataset(table.numpy())
    altered = AlteredSamples(rows, 0)
    assert len(altered) == 500
    index = torch.arange(400).expand(*members, 400)
    made, same = altered[index], rows[index]
    assert made.shape == same.shape
    changed = made != same
    # Swapped columns come from other samples, seldom from the sample itself.
    swapped = changed[..., :200, :].sum(-1)
    assert (swapped >= 1).float().mean() > 0.98
    assert (swapped < 6).any()
    values = [set(table[:400, k].tolist()) for k in range(6)]
    for k in range(6):
        assert set(made[..., :200, k].flatten().tolist()) <= values[k]
    # Those of one sample come from different ones.
    swaps, found = (
        changed[..., :200, :].flatten(0, -2),
        made[..., :200, :].flatten(0, -2),
    )
    giver = (table[:, None] == found).float().argmax(0).masked_fill(~swaps, -1)
    assert all(len(row.unique()) > 2 for row in giver[swaps.sum(1) > 2])
    # Noise is added to one column at least, and to any number of them.
    noisy = changed[..., 200:300, :].sum(-1)
    assert noisy.min() == 1
    assert noisy.max() == 6
    size = (made - same)[..., 200:300, :].abs()
    assert 0.2 < size[size > 0].median() < 2
    # The rest is anywhere in a box that is a little larger than the data.
    low, high = table.amin(0), table.amax(0)
    beyond = 0.25 * (high - low) + 0.5
    free = made[..., 300:, :]
    assert (free >= low - beyond).all()
    assert (free <= high + beyond).all()
    assert ((free < low) | (free > high)).any()
    assert changed[..., 300:, :].all()


def test_altered_rows_are_drawn_by_a_seed():
    rows, index = (
        DeviceDataset(np.random.default_rng(0).normal(size=(50, 3))),
        torch.arange(40),
    )
    one, other, third = (AlteredSamples(rows, seed)[index] for seed in (0, 0, 1))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    altered = AlteredSamples(rows, 0)
    assert not torch.equal(altered[index], altered[index])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_altered_rows(n):
    rows = DeviceDataset(np.random.default_rng(0).normal(size=(50, 1)))
    assert AlteredSamples(rows, 0)[torch.arange(n)].shape == (n, 1)


@pytest.mark.filterwarnings("error:ADRA was given no corpus:UserWarning")
def test_images_without_a_corpus_give_a_warning(images):
    settings = {"backbone": network_of()}
    with pytest.warns(UserWarning, match="no corpus.*UADRA"):
        short(**settings).fit(images[0])
    short(**settings, corpus=None).fit(images[0])
    short(**settings).fit(images.reshape(80, 3, 10, 12), np.repeat([1, -1], 40))
    short().fit(np.random.default_rng(0).normal(size=(60, 4)))


def test_a_corpus_of_larger_numbers_is_refused(images):
    X, corpus = images.astype(np.float32)
    short(corpus=corpus / 200, backbone=network_of()).fit(X / 255)
    with pytest.raises(ValueError, match="corpus goes from 0 to 255 and X from 0 to 1"):
        short(corpus=corpus, backbone=network_of()).fit(X / 255)


def test_a_warm_start_alters_rows_anew(X, monkeypatch):
    seeds = []

    class Seen(AlteredSamples):
        def __init__(self, rows, seed):
            seeds.append(seed)
            super().__init__(rows, seed)

    monkeypatch.setattr("skanomaly._adra._estimator.AlteredSamples", Seen)
    short(warm_start=True).fit(X).fit(X)
    assert len(set(seeds)) == 2
