"""TransferAD: digits, changed images, tables, video, and the time of scoring.

The CPU profile is sized for two cores and forty minutes.
"""

from __future__ import annotations

from statistics import median

import numpy as np
import torch
from sklearn.utils import check_array

from skanomaly import TransferAD, datasets
from skanomaly.metrics import detector_roc_auc_score

from . import domains
from .domains import AUTOENCODERS, DETECTORS, Problem, detect, over_rates
from .runner import Experiment, grid
from .tables import AUROC, FIT_SECONDS, Metric, Table
from .timing import interleaved, ratios

RATES = [0.05, 0.15, 0.25, 0.35, 0.45]
DIRECTIONS = ["mnist to usps", "usps to mnist"]

# AUROC that the paper prints in Table 1, by rate.
PAPER = {
    "paper": {
        "mnist to usps": [0.840, 0.833, 0.820, 0.817, 0.820],
        "usps to mnist": [0.960, 0.930, 0.927, 0.913, 0.890],
    },
    "paper: IsolationForest": {
        "mnist to usps": [0.940, 0.970, 0.817, 0.777, 0.730],
        "usps to mnist": [0.957, 0.917, 0.867, 0.827, 0.783],
    },
}


def table_1(direction, detector, seed):
    """Return the metrics of Table 1 by rate: measured, or printed in the paper."""
    if detector in PAPER:
        printed = zip(RATES, PAPER[detector][direction], strict=True)
        return {rate: {"auroc": auroc} for rate, auroc in printed}
    return over_rates(*("digits", detector, seed, RATES), direction=direction, normal=0)


# Video ------------------------------------------------------------------------------

LENGTH, BLOCK = 16, 8


def changed(frames):
    """Return frames as from another camera: mirrored, zoomed, paler and brighter."""
    zoomed = torch.nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(frames[..., ::-1])).float(),
        scale_factor=1.1,
        mode="bilinear",
    )
    edge = (zoomed.shape[-1] - frames.shape[-1]) // 2
    side = slice(edge, edge + frames.shape[-1])
    return (zoomed[..., side, side] * 0.8 + 40).round().byte().numpy()


def clips_of(data, videos, stride, change=lambda frames: frames):
    chosen = np.isin(data.videos, videos)
    frames = change(data.data[chosen])
    return datasets.make_clips(
        frames, data.videos[chosen], length=LENGTH, stride=stride
    )[0]


def video(detector, seed):
    """Return the AUROC of the frames of all test videos of Ped2, changed.

    The source is half of the training videos as they are; the target the other half
    and a third of the test videos, changed.
    """
    train, test = (datasets.fetch_ucsd_ped2(subset=s) for s in ("train", "test"))
    target = [
        clips_of(train, range(9, 17), 4, changed),
        clips_of(test, range(1, 5), 4, changed),
    ]
    y = np.repeat([1, -1], [len(part) for part in target])  # only for the metrics
    problem = Problem(
        clips_of(train, range(1, 9), 4), np.concatenate(target), y, None, None
    )
    if detector == "frame differences":
        score = differences
    else:
        fitted = DETECTORS[detector](problem, random_state=seed, batch_size=8)
        score = scores_of(fitted)
    return frame_metrics(test, score)


def frame_metrics(test, score):
    parts, labels = {}, []
    for number in np.unique(test.videos):
        chosen = test.videos == number
        frames, y = changed(test.data[chosen]), test.target[chosen]
        clips, starts = datasets.make_clips(frames, length=LENGTH, stride=2)
        labels.append(y)
        for name, values in score(clips).items():
            scores = datasets.frame_scores(values, starts, len(y), length=LENGTH)
            parts.setdefault(name, []).append(scores)
    y = np.concatenate(labels)
    metrics = {}
    for name, scores in parts.items():
        scores = np.concatenate(scores)
        seen = np.isfinite(scores)
        metrics[name] = detector_roc_auc_score(y[seen], scores[seen])
    return metrics | {"n_frames": len(y)}


def scores_of(detector):
    """Return a function that scores clips in three ways."""

    def score(clips):
        found = {}
        for criterion in ("reconstruction", "combined"):
            detector.set_params(criterion=criterion)
            found[f"auroc_{criterion}"] = detector.score_samples(clips)
        found["auroc_block"] = -largest_block(detector.anomaly_map(clips))
        return found

    return score


def largest_block(maps):
    """Return the largest error of a block of pixels in each clip, (n,)."""
    errors = torch.from_numpy(maps).mean(1, keepdim=True)
    pooled = torch.nn.functional.avg_pool2d(errors, BLOCK, BLOCK // 2)
    return pooled.flatten(1).amax(1).numpy()


def differences(clips):
    """Return two scores of each clip that need no training, by its motion."""
    change = np.diff(clips[:, 0].astype(np.float32), axis=1) ** 2
    return {
        "auroc_reconstruction": -change.mean((1, 2, 3)),
        "auroc_block": -largest_block(change),
    }


# Time of scoring ----------------------------------------------------------------------


BATCH = 256


def scoring(kind, n_samples, n_rounds):
    """Interleave the detector's scoring with that of its bare autoencoder."""
    rng = np.random.default_rng(0)
    shape = {"images": (1, 28, 28), "table": (16,)}[kind]
    X = rng.normal(size=(n_samples, *shape)).astype(np.float32)
    detector = TransferAD(random_state=0, max_epochs=1, transfer_epochs=1)
    detector.fit(X, X_source=X[::-1].copy())
    net = detector.net_

    @torch.inference_mode()
    def bare():
        samples = check_array(X, allow_nd=True)  # finite numbers, as the detector wants
        losses = []
        for start in range(0, len(samples), BATCH):
            batch = detector.scaler_.transform(samples[start : start + BATCH])
            x = net.for_members(torch.from_numpy(batch))
            errors = (net.decoder_(net.encoder_(x)) - x).square()
            losses.append(errors.flatten(2).mean(2).mean(0).numpy())
        return np.concatenate(losses)

    ways = {"detector": lambda: detector.score_samples(X), "autoencoder": bare}
    seconds = interleaved(ways, n_rounds)
    return {
        **{
            f"{name}, us per sample": median(values) / n_samples * 1e6
            for name, values in seconds.items()
        },
        "ratio": median(ratios(seconds, "detector", "autoencoder")),
    }


def adversarial(weight, **settings):
    return detect(
        "digits", "TransferAD", params={"adversarial_weight": weight}, **settings
    )


NEIGHBOURS = ["5-NN, source", "5-NN, aligned"]
OTHERS = ["TransferAD", "IsolationForest", *AUTOENCODERS, *NEIGHBOURS]
FURTHER = ["source, then target", "target normals"]
NAMES = [
    *("annthyroid", "satellite", "cardio", "thyroid", "pageblocks"),
    *("shuttle", "satimage-2", "optdigits", "musk", "breastw", "spambase"),
    *("arrhythmia", "cover", "wbc"),
]
EXPERIMENTS = [
    Experiment(
        "transfer.scoring",
        scoring,
        grid(kind=["images", "table"], n_samples=[4096], n_rounds=[15]),
        alone=True,
    ),
    Experiment(
        "transfer.table_1",
        table_1,
        grid(
            direction=DIRECTIONS,
            detector=[*OTHERS[:3], *FURTHER, *NEIGHBOURS],
            seed=[0, 1, 2],
        )
        + grid(direction=DIRECTIONS, detector=list(PAPER), seed=[0]),
    ),
    Experiment(
        "transfer.tables",
        domains.detect,
        grid(
            problem=["table"],
            shift=["another site", "by a column"],
            name=NAMES,
            rate=[0.05, 0.45],
            detector=OTHERS,
            seed=[0, 1],
        ),
    ),
    Experiment(
        "transfer.digits",
        domains.detect,
        grid(
            problem=["digits"],
            direction=DIRECTIONS,
            normal=list(range(10)),
            rate=[0.25],
            detector=OTHERS,
            seed=[0],
        ),
    ),
    Experiment(
        "transfer.fashion",
        domains.detect,
        grid(
            problem=["fashion"],
            change=list(domains.CHANGES),
            normal=[0, 2, 5, 6, 8],
            rate=[0.25],
            detector=OTHERS,
            seed=[0],
        ),
    ),
    Experiment(
        "transfer.adversarial",
        adversarial,
        grid(
            weight=[0.0, 5e-6, 5e-5, 5e-4, 5e-3, 5e-2, 0.5],
            direction=DIRECTIONS,
            normal=[0],
            rate=[0.25],
            seed=[0],
        ),
    ),
    Experiment(
        "transfer.video",
        video,
        grid(detector=["TransferAD", *AUTOENCODERS], seed=[0, 1])
        + grid(detector=["frame differences"], seed=[0]),
    ),
]

DOMAINS = (
    AUROC._replace(average=True),
    Metric(
        "auroc_reconstruction",
        "AUROC with the loss of reconstruction as score",
        average=True,
    ),
    FIT_SECONDS,
)
MEANS = (
    Metric("auroc", "AUROC", "mean", average=True),
    Metric("auroc_combined", "AUROC with the combined score", "mean", average=True),
    FIT_SECONDS,
)
TABLES = [
    Table(
        "transfer.table_1",
        ("direction", "rate"),
        "detector",
        DOMAINS[:2],
        "Domains, anomalies",
        nested="rate",
    ),
    Table("transfer.digits", ("direction", "normal"), "detector", DOMAINS, "Digits"),
    Table("transfer.fashion", ("change", "normal"), "detector", DOMAINS, "Class"),
    Table("transfer.tables", ("shift", "rate"), "detector", MEANS, "Shift"),
    Table(
        "transfer.tables",
        ("name",),
        "detector",
        MEANS[:2],
        "Table",
        name="transfer_tables_by_name",
    ),
    Table("transfer.adversarial", ("weight",), "direction", (AUROC,), "Weight"),
    Table(
        "transfer.video",
        ("detector",),
        None,
        (
            Metric("auroc_combined", "Combined"),
            Metric("auroc_reconstruction", "Loss"),
            Metric("auroc_block", "Largest block of the map"),
        ),
        "Detector",
    ),
    Table(
        "transfer.scoring",
        ("kind",),
        None,
        (
            Metric("detector, us per sample", "Detector, µs per sample", "median", 1),
            Metric(
                "autoencoder, us per sample", "Autoencoder, µs per sample", "median", 1
            ),
            Metric("ratio", "Ratio", "median", 3),
        ),
        "Data",
    ),
]
