"""Anomaly maps, and scores from them: criterion="map"."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from sklearn.metrics import roc_auc_score

from skanomaly import (
    ADRA,
    AABiGAN,
    HistoryAD,
    JointEncoderGAN,
    TransferAD,
    load,
    save,
)
from skanomaly.objectives import upper_error

SHORT = {"random_state": 0, "max_epochs": 1, "width": 4, "criterion": "map"}
DETECTORS = [
    partial(JointEncoderGAN, max_width=8, **SHORT),
    partial(AABiGAN, **SHORT),
    partial(TransferAD, **SHORT),
]
every_detector = pytest.mark.parametrize(
    "short", DETECTORS, ids=lambda short: short.func.__name__
)
by_occlusion = pytest.mark.parametrize(
    "short",
    [
        partial(HistoryAD, random_state=0, max_epochs=1, detector_epochs=1, width=4),
        partial(
            *(ADRA,),
            random_state=0,
            max_epochs=1,
            pretrain_epochs=1,
            width=4,
            corpus=None,
        ),
    ],
    ids=lambda short: short.func.__name__,
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains"),
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
]


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 1, 12, 8)).astype(np.uint8)


def by_hand(maps, usual):
    """Return the highest 2 % of the blocks of maps (n, ..., h, w), one by one."""
    unit = usual + 0.1 * usual.mean()
    size = (1,) * (maps.ndim - 3) + (3, 3)
    found = []
    for errors in maps / unit:
        inside = uniform_filter(np.ones(errors.shape), size, mode="constant")
        blocks = uniform_filter(errors, size, mode="constant") / inside
        highest = np.sort(blocks.ravel())[-math.ceil(0.02 * blocks.size) :]
        found.append(highest.mean())
    return np.array(found)


@pytest.mark.parametrize("shape", [(6, 5), (20, 13), (3, 8, 9)])
def test_upper_error(shape):
    rng = np.random.default_rng(0)
    maps, usual = rng.random((7, *shape)), rng.random(shape)
    found = upper_error(torch.from_numpy(maps), torch.from_numpy(usual))
    np.testing.assert_allclose(found, by_hand(maps, usual), rtol=1e-10)


def test_upper_error_detects_scratches_that_a_mean_does_not():
    """Maps showed scratches, and scores, means over all pixels, did not."""
    rng = np.random.default_rng(0)
    level = rng.uniform(1, 4, (400, 1, 1))  # images differ in all their pixels,
    maps = level * rng.chisquare(1, (400, 28, 28))
    maps[200:, 10, 7:21] += 40  # and half of them have a scratch
    y = np.repeat([0, 1], 200)
    assert roc_auc_score(y, maps.mean((1, 2))) < 0.75
    upper = upper_error(torch.from_numpy(maps), torch.ones(28, 28).double())
    assert roc_auc_score(y, upper) > 0.95


def test_upper_error_of_a_perfect_reconstruction_is_finite():
    maps, usual = torch.zeros(2, 4, 4), torch.zeros(4, 4)
    maps[1] += 1
    nothing, much = upper_error(maps, usual)
    assert nothing == 0
    assert torch.isfinite(much)


@every_detector
def test_the_map_is_the_score(short, images, tmp_path):
    detector = short(calibration=None).fit(images)
    maps = detector.anomaly_map(images)
    np.testing.assert_allclose(detector.usual_error_, maps.mean(0), rtol=1e-4)
    scores = detector.score_samples(images)
    expected = -np.log(by_hand(maps, detector.usual_error_))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    alone = np.concatenate([detector.score_samples(x[None]) for x in images[:3]])
    np.testing.assert_array_equal(alone, scores[:3])
    assert detector.usual_error_.shape == (12, 8)

    save(detector, tmp_path / "detector")
    again = load(tmp_path / "detector")
    np.testing.assert_array_equal(again.score_samples(images), scores)
    del again.usual_error_
    with pytest.raises(ValueError, match="older version"):
        again.score_samples(images)


@every_detector
def test_tables_have_no_map_to_score_by(short, images):
    X = images.reshape(40, -1)
    with pytest.raises(ValueError, match="for images"):
        short().fit(X)
    with_shape = short(image_shape=(1, 12, 8)).fit(X).score_samples(X)
    np.testing.assert_array_equal(with_shape, short().fit(images).score_samples(images))


@pytest.mark.parametrize("cls", [JointEncoderGAN, TransferAD])
def test_the_criterion_of_a_fitted_detector_can_be_changed(cls, images):
    short = partial(cls, **SHORT)
    criterion = "combined"
    detector = short(criterion=criterion).fit(images)
    changed = detector.set_params(criterion="map").score_samples(images)
    np.testing.assert_array_equal(changed, short().fit(images).score_samples(images))
    X = images.reshape(40, -1)[:, :3].astype(float)
    on_tables = short(criterion=criterion).fit(X).set_params(criterion="map")
    assert not hasattr(on_tables, "usual_error_")
    with pytest.raises(ValueError, match="for images"):
        on_tables.score_samples(X)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_known_anomalies_and_the_map(early_stopping, images):
    y = np.tile([1, 1, 1, -1], 10)
    detector = AABiGAN(**SHORT, early_stopping=early_stopping).fit(images, y)
    assert detector.criterion_ == "map"
    expected = by_hand(detector.anomaly_map(images), detector.usual_error_)
    np.testing.assert_allclose(
        detector.score_samples(images), -np.log(expected), rtol=1e-4, atol=1e-5
    )


def test_clips_have_maps():
    clips = np.random.default_rng(0).random((8, 1, 4, 8, 8))
    detector = TransferAD(**SHORT).fit(clips)
    assert detector.usual_error_.shape == (4, 8, 8)
    expected = by_hand(detector.anomaly_map(clips), detector.usual_error_)
    scores = detector.score_samples(clips)
    np.testing.assert_allclose(scores, -np.log(expected), rtol=1e-4, atol=1e-5)


# Maps by occlusion -------------------------------------------------------------------


def patches(height, width):
    """Yield all patches, two neighbouring cells of eight wide and high, or one."""
    rows, columns = (np.rint(np.linspace(0, n, 9)).astype(int) for n in (height, width))
    for i in range(-1, 8):
        for j in range(-1, 8):
            mask = np.zeros((height, width), dtype=bool)
            up, down = rows[max(i, 0)], rows[min(i + 2, 8)]
            left, right = columns[max(j, 0)], columns[min(j + 2, 8)]
            mask[up:down, left:right] = True
            yield mask


@by_occlusion
def test_maps_are_mean_rises_of_the_score(short):
    X = np.random.default_rng(0).uniform(-1, 1, (30, 2, 16, 24)).astype(np.float32)
    detector = short(scaling=None, calibration=None).fit(X)
    np.testing.assert_allclose(detector.usual_image_, X.mean(0), atol=1e-6)
    some, rises, counts = X[:4], np.zeros((4, 16, 24)), np.zeros((16, 24))
    for mask in patches(16, 24):
        changed = np.where(mask, X.mean(0), some)
        rise = detector.score_samples(changed) - detector.score_samples(some)
        rises += rise[:, None, None] * mask
        counts += mask
    assert (counts == 4).all()
    maps = detector.anomaly_map(some)
    assert (maps.shape, maps.dtype) == ((4, 16, 24), np.float32)
    np.testing.assert_allclose(maps, rises / 4, atol=1e-3 * np.abs(rises).max())


@by_occlusion
def test_maps_by_occlusion_of_bytes_flat_images_and_files(short, images, tmp_path):
    detector, some = short().fit(images), images[:3]
    maps = detector.anomaly_map(some)
    assert (maps.shape, np.isfinite(maps).all()) == ((3, 12, 8), True)
    alone = np.concatenate([detector.anomaly_map(x[None]) for x in some])
    np.testing.assert_array_equal(alone, maps)
    flat = images.reshape(40, -1)
    by_hint = short(image_shape=(1, 12, 8)).fit(flat)
    np.testing.assert_array_equal(by_hint.anomaly_map(flat[:3]), maps)

    save(detector, tmp_path / "detector")
    again = load(tmp_path / "detector")
    np.testing.assert_array_equal(again.anomaly_map(some), maps)
    del again.usual_image_
    with pytest.raises(ValueError, match="older version"):
        again.anomaly_map(some)


@by_occlusion
def test_tables_have_no_maps_by_occlusion(short, images):
    detector = short().fit(images)
    X = images.reshape(40, -1)[:, :3].astype(float)
    detector.fit(X)
    assert not hasattr(detector, "usual_image_")
    with pytest.raises(
        ValueError, match=r"tables, which have no pixels. skanomaly\.exp"
    ):
        detector.anomaly_map(X)


@by_occlusion
def test_small_images_have_smaller_patches(short):
    X = np.random.default_rng(0).random((20, 1, 5, 9))
    assert short().fit(X).anomaly_map(X[:2]).shape == (2, 5, 9)


def test_maps_show_the_place_of_a_defect():
    """Squares in images of stripes, which the detectors find anomalous."""
    rng = np.random.default_rng(0)
    shift = rng.uniform(-0.5, 0.5, (240, 1, 1, 1))
    stripes = np.sin(np.arange(16) / 2 + shift) + 0.1 * rng.normal(
        size=(240, 1, 16, 16)
    )
    X, X_test = stripes[:200], stripes[200:].copy()
    place = np.zeros((16, 16), dtype=bool)
    place[9:14, 2:7] = True
    X_test[:, :, place] = -X_test[:, :, place]
    for detector in (
        HistoryAD(random_state=0, max_epochs=30, detector_epochs=10),
        ADRA(random_state=0, max_epochs=3, pretrain_epochs=3, corpus=None),
    ):
        detector.fit(X)
        scores = detector.score_samples(np.r_[stripes[200:], X_test])
        assert roc_auc_score(np.repeat([1, 0], 40), scores) > 0.9
        maps = detector.anomaly_map(X_test[:20])
        each = [roc_auc_score(place.ravel(), values.ravel()) for values in maps]
        assert np.mean(each) > 0.7
