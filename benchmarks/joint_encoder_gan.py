"""JointEncoderGAN: contaminated images and tables, and the effect of its parts.

The CPU profile takes about an hour on two cores.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from skanomaly import JointEncoderGAN, datasets

from .detection import BASELINES, RIVALS, TABLE_NAMES, detect, images
from .runner import Experiment, grid
from .tables import AUROC, DETECTION, Metric, Table

N_NORMAL, N_OTHERS, N_COMPONENTS = 3000, 3000, 32

# Ways to train; each is scored in all ways.
VARIANTS = {
    "joint": {},
    "separate": {"encoder_training": "separate"},
    "joint, latent loss": {"encoder_loss": "latent"},
    "joint, eq. 1 with a mean": {"cycle_updates_generator": True},
    "joint, eq. 1 to the letter": {
        "cycle_updates_generator": True,
        "cycle_weight": 1.0,
    },
    "untrained": {"lr": 1e-12, "max_epochs": 1},
}


#: Simple rivals among the variants.
SIMPLE = ("baselines", "neighbours")


# Problems -----------------------------------------------------------------------------


@cache
def contaminated(
    name, normal, contamination, seed, n_normal=N_NORMAL, n_others=N_OTHERS
):
    """One class contaminated by others for training; that class and others for test."""
    X, y = images(name, "train")
    X_test, y_test = images(name, "test")
    pool = datasets.one_vs_rest(X, y, normal, test_size=0)
    chosen = np.random.default_rng(seed).permutation(len(pool[0]))[:n_normal]
    X_train = pool[0][chosen]
    if contamination:
        split = X_train, pool[1], np.ones(len(X_train)), pool[3]
        X_train = datasets.contaminate(
            *split, contamination=contamination, random_state=seed
        )[0]
    others = np.flatnonzero(y_test != normal)
    others = np.random.default_rng(seed).choice(others, n_others, replace=False)
    chosen = np.r_[np.flatnonzero(y_test == normal), others]
    return X_train, X_test[chosen], y_test[chosen] != normal


# Detectors ----------------------------------------------------------------------------


def auroc_of_terms(detector, X, is_anomaly):
    """Return the AUROC of each term of the score and of sums of them, for one fit."""
    residuals, distances = detector.score_terms(X).T
    codes = detector.encode(X)
    origin = -np.linalg.norm(codes, axis=1) / codes.shape[1] ** 0.5
    errors = detector.reconstruct(X).astype(np.float64) - X
    n_numbers = np.prod(X.shape[1:])
    if detector.residual_norm != "paper" and detector.preset is None:
        residuals = residuals / n_numbers**0.5  # as eq. 2 has it
    scores = {
        "both": -detector.score_samples(X),
        "residual": residuals,
        "residual, eq. 8": np.square(errors).sum((1, 2, 3)),
        "distance": distances,
        "origin distance": origin,
        "eq. 5": 0.05 * residuals + 0.95 * origin,
    }
    return {k: {"auroc": roc_auc_score(is_anomaly, v)} for k, v in scores.items()}


def joint(X, X_test, is_anomaly, seed, **params):
    """Return the metrics of a JointEncoderGAN, by score."""
    start = time.perf_counter()
    detector = JointEncoderGAN(random_state=seed, **params).fit(X)
    of_fit = {
        "fit_seconds": round(time.perf_counter() - start, 1),
        "norm_auroc": detector.norm_auroc_,
        "n_train": len(X),
    }
    found = auroc_of_terms(detector, X_test, is_anomaly)
    return {score: metrics | of_fit for score, metrics in found.items()}


def flat(X):
    return X.reshape(len(X), -1).astype(np.float32)


def baselines(X, X_test, is_anomaly, seed):
    """Return the metrics of simple detectors on raw pixels."""
    X, X_test = flat(X), flat(X_test)
    forest = IsolationForest(random_state=seed).fit(X)
    pca = PCA(N_COMPONENTS, random_state=seed).fit(X)
    reconstructions = pca.inverse_transform(pca.transform(X_test))
    scores = {
        "IsolationForest": -forest.score_samples(X_test),
        f"PCA, {N_COMPONENTS}": np.square(X_test - reconstructions).sum(1),
    }
    return {
        name: {"auroc": roc_auc_score(is_anomaly, score)}
        for name, score in scores.items()
    }


def neighbours(X, X_test, is_anomaly, seed):
    """Return the metrics of distances to training images."""
    names = "1-NN", "5-NN", "LocalOutlierFactor"
    scores = {
        name: BASELINES[name](seed, "images").fit(X).decision_function(X_test)
        for name in names
    }
    return {k: {"auroc": roc_auc_score(is_anomaly, -v)} for k, v in scores.items()}


def one_class(name, normal, contamination, variant, seed):
    """Fit on one contaminated class; return metrics by score."""
    problem = contaminated(name, normal, contamination, seed)
    if variant == "baselines":
        return baselines(*problem, seed)
    if variant == "neighbours":
        return neighbours(*problem, seed)
    return joint(*problem, seed, **VARIANTS[variant])


def cars(contamination, params, seed):
    """Table 2: CIFAR-10 cars, and as many other images to test."""
    problem = contaminated("cifar10", 1, contamination, seed, 5000, 1000)
    return joint(*problem, seed, **params)


# Experiments --------------------------------------------------------------------------

RATES = [0.0, 0.02, 0.05, 0.1]
CLASSES = {"fashion_mnist": [2, 6, 8], "mnist": [3, 4, 8]}


def cells(variants, rates, seeds=(0,), **classes):
    """Return the cells of some classes of each data set, given by its name."""
    axes = {"variant": variants, "contamination": rates, "seed": seeds}
    return [
        cell
        for name, normal in classes.items()
        for cell in grid(name=[name], normal=normal, **axes)
    ]


IMAGES = [
    *cells(["joint", "baselines", "neighbours"], RATES, **CLASSES),
    *cells(["separate"], [RATES[0], RATES[-1]], **CLASSES),
    *cells(
        ["joint", "baselines", "neighbours"],
        [0.05],
        fashion_mnist=[0, 1, 3, 4, 5, 7, 9],
    ),
    *cells(list(VARIANTS)[2:], [0.05], fashion_mnist=CLASSES["fashion_mnist"]),
    # Contamination makes a small difference, which needs another seed.
    *cells(["joint", "separate"], [RATES[0], RATES[-1]], [1], **CLASSES),
    # Random weights differ more than trained ones.
    *cells(["untrained"], [0.05], range(1, 5), fashion_mnist=CLASSES["fashion_mnist"]),
]
CARS = {"seed": range(3), "contamination": [0.0, 0.02]}
PAPER = {"preset": "paper"}

EXPERIMENTS = [
    Experiment("joint_encoder_gan.images", one_class, IMAGES),
    Experiment(
        "joint_encoder_gan.tables",
        detect,
        grid(
            problem=["table"],
            name=TABLE_NAMES,
            detector=["JointEncoderGAN", *RIVALS],
            seed=range(3),
        ),
    ),
    Experiment(
        "joint_encoder_gan.cifar10",
        cars,
        grid(**CARS, params=[{}, PAPER, {**PAPER, "max_epochs": 20}]),
        profile="gpu",
    ),
]

OVER_CLASSES = (Metric("auroc", "AUROC, mean over the classes", "mean"),)


def in_all_rates(record):
    """Return whether a record is of a class that was tried at all contaminations."""
    return record["normal"] in CLASSES[record["name"]]


TABLES = [
    Table(
        "joint_encoder_gan.images",
        ("variant", "score"),
        "contamination",
        OVER_CLASSES,
        "Encoder, score",
        nested="score",
        name="joint_encoder_gan_contamination",
        keep=lambda record: (
            in_all_rates(record) and record["variant"] in ("joint", "separate", *SIMPLE)
        ),
    ),
    Table(
        "joint_encoder_gan.images",
        ("name", "normal"),
        "score",
        DETECTION[:1],
        "Class",
        nested="score",
        name="joint_encoder_gan_classes",
        keep=lambda record: (
            record["contamination"] == 0.05
            and record["variant"] in ("joint", "baselines")
        ),
    ),
    Table(
        "joint_encoder_gan.images",
        ("variant",),
        "score",
        OVER_CLASSES,
        "Training",
        nested="score",
        name="joint_encoder_gan_ablation",
        keep=lambda record: (
            record["contamination"] == 0.05
            and record["name"] == "fashion_mnist"
            and in_all_rates(record)
            and record["variant"] != "baselines"
        ),
    ),
    Table("joint_encoder_gan.tables", ("name",), "detector", DETECTION, "Table"),
    Table(
        "joint_encoder_gan.cifar10",
        ("params", "score"),
        "contamination",
        (AUROC,),
        "Setting, score",
        nested="score",
        description="JointEncoderGAN on CIFAR-10, on a GPU. Cars are normal, and as "
        "many cars as other images test, as in Table 2 of the paper: with the "
        "defaults, with the paper's settings, and with these and a longer training. "
        "The images at hand are JPEG-compressed and half as many as the paper had "
        "(2,500 cars), so that its figures cannot be compared with these.",
    ),
]
