"""Small defects and images of other kinds: which of them maps and scores detect.

Images of one kind are normal. Each of those held out is tested as it is and with one
defect of each kind, at a random place; images of other kinds are tested, too.
"""

from __future__ import annotations

import time
import warnings
from statistics import fmean

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

import skanomaly
from skanomaly import datasets

from .detection import images
from .runner import Experiment, grid
from .tables import Metric, Table

N_TRAIN, N_TEST = 2000, 300
TRAINING_VIDEOS = 12  # of 16; normal frames of the others are tested

_CONTRAST = 1.5  # of spots and scratches: standard deviations of the image's pixels


# Problems: normal images for training and test, and images of other kinds -------------


def one_class(name, normal, seed):
    """Return images of one class, and of all others."""
    X, y = images(name, "train")
    X_test, y_test = images(name, "test")
    return some_of(
        (X[y == normal], X_test[y_test == normal], X_test[y_test != normal]), seed
    )


def walkway(seed):
    """Return frames of a fixed camera: people on a walkway; cyclists and carts."""
    video = datasets.fetch_ucsd_ped2()
    last = video.videos > TRAINING_VIDEOS
    X_test, y_test = images("ucsd_ped2", "test")
    frames = video.data[~last], video.data[last], X_test[y_test == -1]
    return some_of([coarser(part) for part in frames], seed)


def some_of(parts, seed):
    rng = np.random.default_rng(seed)
    numbers = N_TRAIN, N_TEST, N_TEST
    return [X[rng.permutation(len(X))[:n]] for X, n in zip(parts, numbers, strict=True)]


def coarser(frames):
    """Return uint8 images with half the height and width, by means of pixels."""
    n, c, h, w = frames.shape
    means = frames.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
    return np.rint(means).astype(np.uint8)


def problem(name, normal, seed):
    """Return normal images for training and test, and images of other kinds."""
    if name == "ucsd_ped2":
        return walkway(seed)
    return one_class(name, normal, seed)


# Defects: each changes one float image (channels, height, width) in place -------------


def spot(image, rng):
    """Make a disc brighter or darker."""
    _mark(image, _disc(image, rng, image.shape[2] / 16))


def scratch(image, rng):
    """Make a straight line brighter or darker, half as long as the image."""
    side = image.shape[2]
    h, w = _place(image, rng)
    angle, along = rng.uniform(0, np.pi), np.linspace(-side / 4, side / 4, 2 * side)
    rows = np.rint(h + along * np.sin(angle)).astype(int).clip(0, image.shape[1] - 1)
    columns = np.rint(w + along * np.cos(angle)).astype(int).clip(0, side - 1)
    mask = np.zeros(image.shape[1:], dtype=bool)
    mask[rows, columns] = True
    _mark(image, mask)


def hole(image, rng):
    """Replace a disc by the colour of the background."""
    image[:, _disc(image, rng, image.shape[2] / 8)] = _ground(image)


def blur(image, rng):
    """Blur the whole image by a Gaussian of one pixel."""
    image[:] = gaussian_filter(image, (0, 1, 1))


def missing_part(image, rng):
    """Replace a third, at one of the sides, by the colour of the background."""
    side, ground = rng.integers(4), _ground(image)
    turned = np.rot90(image, side, (1, 2))
    turned[:, : turned.shape[1] // 3] = ground[:, None]


DEFECTS = {
    "spot": spot,
    "scratch": scratch,
    "hole": hole,
    "blur": blur,
    "missing part": missing_part,
}


def with_defect(images, defect, seed):
    """Return uint8 images, each with a defect of one kind."""
    rng, changed = np.random.default_rng(seed), images.astype(np.float64)
    for image in changed:
        DEFECTS[defect](image, rng)
    return np.rint(changed).astype(np.uint8)


def _place(image, rng):
    """Return the centre of a defect, in the inner half of the image."""
    return [rng.uniform(side / 4, 3 * side / 4) for side in image.shape[1:]]


def _disc(image, rng, radius):
    h, w = np.ogrid[: image.shape[1], : image.shape[2]]
    y, x = _place(image, rng)
    return (h - y) ** 2 + (w - x) ** 2 <= radius**2


def _mark(image, mask):
    far = _CONTRAST * image.std()
    far = far if image[:, mask].mean() < 255 / 2 else -far
    image[:, mask] = (image[:, mask] + far).clip(0, 255)


def _ground(image):
    """Return the median colour of the edge of an image, (channels, 1)."""
    edge = np.concatenate(
        [
            image[:, [0, -1]].reshape(len(image), -1),
            image[:, :, [0, -1]].reshape(len(image), -1),
        ],
        1,
    )
    return np.median(edge, axis=1)[:, None]


# Detectors: each is fitted once, and scores in all of its ways ------------------------

CRITERIA = {
    "JointEncoderGAN": ("combined", "map"),
    "AABiGAN": ("reconstruction", "latent_norm", "map"),
    "TransferAD": ("combined", "reconstruction", "map"),
}


def fitted(detector, X, seed):
    """Return a detector with its defaults, and the seconds that its fit took."""
    start = time.perf_counter()
    with warnings.catch_warnings():  # of TransferAD, and of ADRA without a corpus
        warnings.filterwarnings("ignore", ".* was given no ", UserWarning)
        model = getattr(skanomaly, detector)(random_state=seed).fit(X)
    return model, round(time.perf_counter() - start, 1)


def anomaly_scores(model, X):
    """Yield the name and the anomaly scores of each way to score images."""
    for criterion in CRITERIA[type(model).__name__]:
        if hasattr(model, "criterion_"):
            model.criterion_ = criterion  # of AABiGAN, which chooses it in fit
        else:
            model.set_params(criterion=criterion)
        yield criterion, -model.score_samples(X)
    yield "maximum of anomaly_map", model.anomaly_map(X).max((1, 2))


def measure(name, normal, detector, seed):
    """Return the AUROC of each defect, by the way to score."""
    X, X_test, other_kinds = problem(name, normal, seed)
    model, seconds = fitted(detector, X, seed)
    usual = dict(anomaly_scores(model, X_test))
    metrics = {way: {"fit_seconds": seconds, "n_train": len(X)} for way in usual}
    odd = {defect: with_defect(X_test, defect, seed) for defect in DEFECTS}
    for kind, images_of_kind in (odd | {"other kind": other_kinds}).items():
        y = np.repeat([0, 1], [len(X_test), len(images_of_kind)])
        for way, values in anomaly_scores(model, images_of_kind):
            metrics[way][kind] = roc_auc_score(y, np.r_[usual[way], values])
    for way in metrics:
        metrics[way]["mean"] = np.mean([metrics[way][k] for k in [*odd, "other kind"]])
    return metrics


#: Data on which ``criterion="map"`` was chosen, and other data.
DEVELOPMENT = {"fashion_mnist": [8], "ucsd_ped2": [None]}
OTHER_DATA = {"fashion_mnist": [1], "cifar10": [1]}

EXPERIMENTS = [
    Experiment(
        "defects",
        measure,
        [
            cell
            for problems in (DEVELOPMENT, OTHER_DATA)
            for name, normal in problems.items()
            for cell in grid(name=[name], normal=normal, detector=CRITERIA, seed=[0])
        ],
    )
]

SMALL_DEFECTS = "spot", "scratch", "hole"
COLUMNS = tuple(
    Metric(kind, kind.capitalize(), "mean")
    for kind in (*DEFECTS, "other kind", "small defects", "mean")
)


def with_small_defects(record):
    """Return the record of a way to score, with the mean over the small defects."""
    return record | {"small defects": fmean(record[k] for k in SMALL_DEFECTS)}


def is_of(name, normal):
    """Return a function that tells whether a record is of one set of images."""
    return lambda record: (record["name"], record["normal"]) == (name, normal)


OVERALL = Table(
    "defects",
    ("detector", "way"),
    None,
    COLUMNS[-3:],
    "Detector, score",
    nested="way",
    transform=with_small_defects,
)
TABLES = [
    OVERALL,
    *(
        OVERALL._replace(
            metrics=COLUMNS, name=f"defects_{name}_{normal}", keep=is_of(name, normal)
        )
        for problems in (DEVELOPMENT, OTHER_DATA)
        for name, classes in problems.items()
        for normal in classes
    ),
]
