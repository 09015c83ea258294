"""The comparison of the sources of a corpus and of normal images."""

import io
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from skanomaly import load, save
from skanomaly._adra._corpus import match_spectrum, source_auroc, source_statistics
from skanomaly.datasets import fetch_mnist, one_vs_rest
from skanomaly.engine import DeviceDataset
from skanomaly.exceptions import CorpusSourceWarning
from skanomaly.utils._scaling import ImageScaler

from .parts import network_of, recorded, short


def drawn(seed, n=200, c=3, side=24, noise=0.02, coarse=2):
    """Return smooth random images in [-1, 1], with noise."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(n, c, side, side, generator=rng)
    for _ in range(coarse):
        images = F.avg_pool2d(F.pad(images, (2,) * 4, mode="reflect"), 5, 1)
    images = 0.3 * images / images.std()
    images += noise * torch.randn(images.shape, generator=rng)
    return images.clamp(-1, 1).numpy()


def as_bytes(images):
    return (127.5 * (images + 1)).round().astype(np.uint8)


def as_jpeg(images):
    made = []
    for image in as_bytes(images):
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=50)
        made.append(np.asarray(Image.open(file)).transpose(2, 0, 1))
    return np.stack(made) / np.float32(127.5) - 1


def greyer(images):
    return 0.5 * images + 0.5 * images.mean(1, keepdims=True)


def auroc_of(one, other, seed=0):
    return source_auroc(DeviceDataset(one), DeviceDataset(other), seed)


@pytest.mark.parametrize("c", [1, 2, 3])
def test_images_of_one_source_have_a_low_auroc(c):
    assert auroc_of(drawn(0, c=c), drawn(1, c=c)) < 0.65
    # Brightness and contrast are of what images show.
    assert auroc_of(drawn(0, c=c), 0.7 * drawn(1, c=c) + 0.2) < 0.65


@pytest.mark.parametrize(
    "other",
    [
        partial(drawn, noise=0.04),
        partial(drawn, noise=0.01),
        partial(drawn, coarse=3),
        lambda seed: as_jpeg(drawn(seed)),
        lambda seed: greyer(drawn(seed)),
    ],
    ids=["noisier", "cleaner", "blurred", "compressed", "greyer"],
)
def test_images_of_another_source_have_a_high_auroc(other):
    assert auroc_of(drawn(0), other(1)) > 0.95


def test_blocks_of_jpeg_are_found_where_the_mean_spectrum_is_the_same():
    """A corpus with the grid of JPEG elsewhere: no band of frequencies differs."""
    made = as_jpeg(drawn(0, n=400, side=40, noise=0.1))
    at, across = made[:200, :, :32, :32], made[200:, :, 4:36, 4:36]
    assert auroc_of(at, across) > 0.95


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (4, 16, 17), (3, 150, 300)])
def test_statistics_of_all_shapes_are_finite(shape):
    rng = torch.Generator().manual_seed(0)
    flat = torch.zeros(2, *shape)
    both = torch.cat([2 * torch.rand(2, *shape, generator=rng) - 1, flat])
    assert source_statistics(both).isfinite().all()


def test_statistics_of_an_image_do_not_depend_on_the_others():
    images = torch.from_numpy(drawn(0, n=6))
    together = source_statistics(images)
    for k in range(6):
        torch.testing.assert_close(source_statistics(images[k : k + 1])[0], together[k])


def test_the_auroc_depends_on_the_seed_alone():
    one, other = drawn(0), drawn(1, noise=0.023)
    assert auroc_of(one, other) == auroc_of(one, other)
    assert auroc_of(one, other) != auroc_of(one, other, seed=1)


@pytest.mark.parametrize(
    ("one", "other"),
    [((49, 3, 24), (100, 3, 24)), ((100, 3, 24), (49, 3, 24)), ((99, 1, 7),) * 2],
    ids=["few normal", "few others", "small"],
)
def test_few_or_small_images_have_no_auroc(one, other):
    parts = [np.zeros((n, c, side, side), np.float32) for n, c, side in (one, other)]
    assert auroc_of(*parts) is None


# In the detector ------------------------------------------------------------------


@pytest.fixture
def brief():
    return partial(short, backbone=network_of(), normalization=None, input_size=24)


def test_detectors_warn_of_a_corpus_of_another_source(brief):
    X, Q = as_bytes(drawn(0)), as_jpeg(drawn(1))
    with pytest.warns(CorpusSourceWarning, match=r"corpus_auroc_ is (1\.00|0\.9)"):
        detector = brief(corpus=as_bytes(Q)).fit(X)
    assert 0.9 < detector.corpus_auroc_ <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", CorpusSourceWarning)
        alike = brief(corpus=as_bytes(drawn(1))).fit(X)
    assert alike.corpus_auroc_ < 0.75


def test_the_auroc_is_that_of_the_matched_corpus(brief):
    """Matching lowers the AUROC of a corpus that is merely sharper."""
    X, Q = drawn(0, noise=0.02), drawn(1, noise=0.06)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CorpusSourceWarning)
        found = brief(corpus=Q, scaling=None).fit(X).corpus_auroc_
    assert found < auroc_of(X, Q)


def drawings(seed, size):
    """Return smooth shapes on black ground, as digits are, in bytes."""
    images = drawn(seed, n=300, c=1, side=28, noise=0)
    side = torch.linspace(-1, 1, images.shape[-1]).numpy()
    middle = np.exp(-size * (side**2 + side[:, None] ** 2))
    return as_bytes(np.clip(3 * (images + 0.5) * middle - 1.2, -1, 1))


def test_a_corpus_of_the_same_source_is_not_filtered(brief):
    """Differences by chance or content were once filtered, which left traces."""
    X, Q = drawings(0, size=4), drawings(1, size=4.2)
    network, seen = recorded(network_of())
    settings = {"augment": None, "batch_size": 200, "backbone": network}
    settings["input_size"] = 28
    assert brief(corpus=Q, **settings).fit(X).corpus_auroc_ < 0.75
    given = next(x for x in seen if len(x) == 200)[100:, :1]
    pixels = (127.5 * (given + 1)).round().byte().numpy()
    known = {image.tobytes() for image in Q}
    assert all(image.tobytes() in known for image in pixels)


def test_digits_are_a_corpus_for_digits(brief, shared_data):
    """The filter leaves ripples on black ground, with an AUROC beyond .99."""
    X, y = fetch_mnist(data_home=shared_data, return_X_y=True)
    X, *_, Q = one_vs_rest(X, y, 4, corpus_class=[0, 2, 5, 6, 7, 9], random_state=0)
    X, Q = X[:500], Q[::70]
    normal, corpus = (DeviceDataset(images, ImageScaler().fit(X)) for images in (X, Q))
    assert source_auroc(normal, match_spectrum(corpus, normal), 0) > 0.95
    assert brief(corpus=Q, input_size=28).fit(X).corpus_auroc_ < 0.9


def test_known_anomalies_have_no_auroc(brief):
    """They may differ in anything, and the detector is to learn it."""
    X, Q = as_bytes(drawn(0)), as_bytes(as_jpeg(drawn(1)))
    y = np.repeat([1, -1], [len(X), len(Q)])
    detector = brief(corpus=None).fit(np.concatenate([X, Q]), y)
    assert detector.corpus_auroc_ is None


def test_tables_have_no_auroc():
    X = np.random.default_rng(0).normal(size=(80, 3))
    assert short(corpus=X + 1).fit(X).corpus_auroc_ is None
    assert short().fit(X).corpus_auroc_ is None


def test_the_auroc_is_saved(brief, tmp_path):
    X, Q = as_bytes(drawn(0)), as_bytes(drawn(1))
    detector = brief(corpus=Q).fit(X)
    save(detector, tmp_path / "detector", include_backbone=False)
    loaded = load(tmp_path / "detector", backbone=detector.backbone)
    assert loaded.corpus_auroc_ == detector.corpus_auroc_
