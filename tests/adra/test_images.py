"""Preparation and augmentation of images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from skanomaly._adra._net import Augmentation
from skanomaly._adra._networks import IMAGENET, ImagePreparation

from .parts import ignore_missing_corpus, network_of, recorded, scaled, short, untrained

pytestmark = ignore_missing_corpus

PAIR = (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("config", "settings", "expected"),
    [
        (None, {}, IMAGENET),
        ({"mean": PAIR[0], "std": PAIR[1]}, {}, PAIR),
        ({"mean": PAIR[0]}, {}, IMAGENET),
        (None, {"normalization": PAIR}, PAIR),
        (None, {"normalization": [list(part) for part in PAIR]}, PAIR),
        ({"mean": PAIR[0], "std": PAIR[1]}, {"normalization": IMAGENET}, IMAGENET),
        (None, {"normalization": None}, ((0.5,) * 3, (0.5,) * 3)),
        ({"mean": PAIR[0], "std": PAIR[1]}, {"scaling": None}, None),
    ],
)
def test_normalisation_of_the_input_of_a_network(config, settings, expected, images):
    network, seen = recorded(network_of())
    if config is not None:
        network.pretrained_cfg = config
    detector = short(backbone=network, corpus=images[1], **settings).fit(images[0])
    detector.score_samples(images[0])
    given = torch.from_numpy(images[0]).float()
    if expected is not None:
        mean, spread = (torch.tensor(part).view(-1, 1, 1) for part in expected)
        given = (given / 255 - mean) / spread
    torch.testing.assert_close(seen[-1][:40], given, rtol=1e-4, atol=1e-4)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def places():
    """Images whose pixels are 100 times the row, plus the column."""
    rows, columns = torch.arange(16)[:, None], torch.arange(24)
    image = (100 * rows + columns).float()
    return torch.stack([image, -image]).expand(200, 2, 16, 24)


def test_half_of_the_images_are_mirrored(places, rng):
    made = Augmentation(("flip",))(places, rng)
    assert made.shape == places.shape
    mirrored = (made == places.flip(3)).flatten(1).all(1)
    assert (mirrored ^ (made == places).flatten(1).all(1)).all()
    assert 80 < mirrored.sum() < 120


def test_crops_move_images_and_repeat_their_edges(places, rng):
    made = Augmentation(("crop",))(places, rng)
    assert made.shape == places.shape
    torch.testing.assert_close(made[:, 0], -made[:, 1])
    rows, columns = made[:, 0] // 100, made[:, 0] % 100
    for found, side, far in ((rows[:, :, 0], 16, 2), (columns[:, 0], 24, 3)):
        moved = found[:, side // 2] - side // 2
        assert set(moved.tolist()) == set(range(-far, far + 1))
        expected = (torch.arange(side) + moved[:, None]).clamp(0, side - 1)
        torch.testing.assert_close(found, expected)
    # Every image moves in its own way, both along rows and columns.
    assert len(made.flatten(1).unique(dim=0)) > 25
    again = Augmentation(("crop",))(places, torch.Generator().manual_seed(0))
    assert torch.equal(again, made)


def distinct_of(pixels):
    """Return the set of different images, of pixels in [-1, 1]."""
    as_bytes = (127.5 * (pixels + 1)).round().byte().contiguous().numpy()
    return {image.tobytes() for image in as_bytes}


def training_batches(images, **settings):
    """Return the normal images of all batches, as the network sees them."""
    network, seen = recorded(network_of())
    settings = {"backbone": network, "normalization": None} | settings
    short(**settings, corpus=images[1], batch_size=20, max_epochs=2).fit(images[0])
    batches = [x[:10] for x in seen if len(x) == 20]
    assert len(batches) == 8
    return torch.cat(batches)


def test_detectors_augment_in_training(images):
    given = scaled(images[0])
    plain, mirrored = distinct_of(given), distinct_of(given.flip(3))
    assert distinct_of(training_batches(images, augment=None)) == plain
    assert distinct_of(training_batches(images, augment=())) == plain
    flips = distinct_of(training_batches(images, augment=["flip"]))
    assert flips <= plain | mirrored
    assert len(flips - plain) > 10
    assert len(flips & plain) > 10
    default = distinct_of(training_batches(images))
    assert len(default - plain - mirrored) > 60


def test_scoring_does_not_augment(images):
    network, seen = recorded(network_of())
    detector = short(backbone=network, normalization=None).fit(images[0])
    detector.score_samples(images[0])
    assert distinct_of(seen[-1][:40]) == distinct_of(scaled(images[0]))


@pytest.mark.parametrize(("input_size", "n_rows"), [(10, 64), (100, 29), (900, 1)])
def test_large_images_are_scored_a_few_at_a_time(input_size, n_rows, images):
    network, seen = recorded(network_of())
    detector = untrained(backbone=network, input_size=10).fit(images[0])
    sides = input_size, round(1.2 * input_size)
    detector.net_.prepare = ImagePreparation(sides)
    few = 3 if n_rows == 1 else 70  # large images take their time
    seen.clear()
    detector.score_samples(np.resize(images[0], (few, *images[0].shape[1:])))
    assert [batch.shape[1:] for batch in seen] == [(3, *sides)] * -(-few // n_rows)
    assert max(map(len, seen)) == n_rows


def test_a_function_may_augment(images):
    given = []

    def darker(batch):
        given.append(batch.shape)
        return batch / 2

    batches = training_batches(images, augment=darker)
    assert given == [(20, 3, 10, 12)] * 8
    assert distinct_of(2 * batches) == distinct_of(scaled(images[0]))


def test_a_function_that_changes_the_number_of_images_raises_an_error(images):
    detector = short(backbone=network_of(), augment=lambda batch: batch[1:])
    with pytest.raises(ValueError, match=r"augment returns \(15, 3, 10, 12\) for"):
        detector.fit(images[0])


@pytest.mark.parametrize("augment", [("flip", "turn"), ["turn"]])
def test_unknown_augmentation_raises_an_error(augment, images):
    with pytest.raises(ValueError, match=r"augment has \['turn'\]"):
        short(backbone=network_of(), augment=augment).fit(images[0])


def test_preparation_enlarges_and_normalises():
    x = torch.rand(2, 3, 8, 6) * 2 - 1
    same = ImagePreparation((8, 6))(x)
    assert torch.equal(same, x)
    made = ImagePreparation((16, 12), *PAIR)(x)
    assert made.shape == (2, 3, 16, 12)
    larger = F.interpolate(x, (16, 12), mode="bilinear")
    mean, spread = (torch.tensor(part).view(-1, 1, 1) for part in PAIR)
    torch.testing.assert_close(made, ((larger + 1) / 2 - mean) / spread)


@pytest.mark.parametrize("normalization", ["auto", None, ((0.1,) * 3, (0.2,) * 3)])
@pytest.mark.parametrize("kind", ["given", "own"])
def test_a_backbone_keeps_its_normalisation(kind, normalization, images):
    normal, corpus = images
    backbone = network_of() if kind == "given" else "resnet26"
    first = untrained(backbone=backbone, corpus=corpus, normalization=normalization)
    other = untrained(backbone=first.fit(normal).backbone_, corpus=corpus).fit(normal)
    np.testing.assert_allclose(other.encode(normal), first.encode(normal), rtol=1e-5)


@pytest.mark.parametrize(
    ("augment", "cause"),
    [
        (lambda batch: None, "augment returns a NoneType"),
        (lambda batch: batch.numpy(), "augment returns a ndarray"),
        (lambda batch: batch + 0j, "complex"),
        (lambda batch: batch.long(), "int64"),
        (lambda batch: batch * np.nan, "NaN"),
        ([["flip"]], r"augment has \[\['flip'\]\]"),
    ],
)
def test_wrong_results_of_augment_raise_an_error(augment, cause, images):
    detector = short(backbone=network_of(), corpus=images[1], augment=augment)
    with pytest.raises(ValueError, match=cause):
        detector.fit(images[0])


def test_augment_may_return_floats_of_any_size(images):
    scores = []
    for change in (lambda batch: batch.double(), lambda batch: batch.clone()):
        torch.manual_seed(0)
        detector = short(backbone=network_of(), corpus=images[1], augment=change)
        scores.append(detector.fit(images[0]).score_samples(images[0]))
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("kind", ["X", "images"])
def test_empty_and_complex_corpora_raise_an_error(kind, request):
    data = request.getfixturevalue(kind)
    rows = data if kind == "X" else data[0]
    for corpus, cause in ((rows[:0], "corpus has 0 samples"), (rows + 0j, "complex")):
        with pytest.raises(ValueError, match=cause):
            short(corpus=corpus).fit(rows)
