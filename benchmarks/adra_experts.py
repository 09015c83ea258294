"""ADRA with one, two and four experts, for normal samples of many kinds.

The corpus is of the same source as all other images: classes that are neither normal
nor anomalous. Two networks: MobileNetV2, pretrained on ImageNet, with CIFAR-10 at 64
pixels a side; and ResNet20, pretrained on CIFAR-10 with its labels, for Fashion-MNIST
at 16. Neither was pretrained on the images. To measure the effect of gates on the
ranking, those of a fitted detector are replaced by their means over the test samples.
"""

from __future__ import annotations

import os
from functools import cache

import numpy as np

from skanomaly import ADRA, datasets
from skanomaly.metrics import detector_roc_auc_score

from . import pretrained
from .detection import detect, fit_and_score, images
from .runner import Experiment, grid
from .tables import AUROC, AVERAGE_PRECISION, Metric, Table

EXPERTS = [1, 2, 4]
#: By network: the images, their side, and the normalisation of pixels.
SETTINGS = {
    "ResNet20": ("fashion_mnist", 16, pretrained.IMAGENET),
    "MobileNetV2": ("cifar10", 64, None),
}
#: Anomalous classes, each with those of the corpus; the other six or so are normal.
CORPORA = {
    "ResNet20": {6: (1, 3, 5, 8), 2: (0, 7, 8, 9), 5: (0, 1, 2, 8), 3: (4, 5, 6, 8)},
    "MobileNetV2": {0: (1, 5, 8)},
}
#: First class, other classes, of which there are few images, and anomalous classes.
MODES = {"shirts": (0, (5, 9), (2, 7)), "boots": (9, (3, 8), (1, 7))}
SMALL_TABLES = [
    *("breastw", "cardio", "glass", "lymphography"),
    *("pageblocks", "satellite", "thyroid", "wine"),
]


@cache
def network_of(name):
    """Return a pretrained network."""
    make = {
        "ResNet20": pretrained.resnet20,
        "MobileNetV2": pretrained.mobilenet_v2,
    }[name]
    return make(os.environ["SKANOMALY_DATA"])


def chosen(rng, n, *arrays):
    """Return the same random samples of each array."""
    index = rng.permutation(len(arrays[0]))[:n]
    return tuple(array[index] for array in arrays)


def detector_of(network, corpus, n_experts, seed, n_steps, n_normal):
    """Return a detector that makes about `n_steps` steps of 64 samples each."""
    _, side, normalization = SETTINGS[network]
    return ADRA(
        backbone=network_of(network),
        normalization=normalization,
        input_size=side,
        corpus=corpus,
        n_experts=n_experts,
        batch_size=64,
        max_epochs=max(round(n_steps / (n_normal // 32)), 1),
        random_state=seed,
    )


def many_modes(network, anomaly, n_experts, seed, n_train, n_steps, n_test=1200):
    """Classes of many kinds are normal, and one is anomalous (Table 2)."""
    rng = np.random.default_rng(seed)
    name = SETTINGS[network][0]
    X_test, y_test = images(name, "test")
    X, X_test, _, y_test, Q = datasets.hold_one_out(
        *images(name, "train"),
        anomaly,
        corpus_class=CORPORA[network][anomaly],
        X_test=X_test,
        y_test=y_test,
    )
    (X,), (Q,) = chosen(rng, n_train, X), chosen(rng, n_train, Q)
    X_test, y_test = chosen(rng, n_test, X_test, y_test)
    model = detector_of(network, Q, n_experts, seed, n_steps, len(X))
    scores, metrics = fit_and_score(model, [X], X_test, y_test)
    metrics["loss"] = model.history_[-1]["adapters_loss"]
    return metrics | {"gates": without_gates(model, X_test, scores)}


def few_modes(modes, n_experts, seed, n_train, n_steps, ratio, network="ResNet20"):
    """Images of two other classes are normal, too, but there are few (Fig. 2)."""
    rng = np.random.default_rng(seed)
    name = SETTINGS[network][0]
    first, others, odd = MODES[modes]
    X, y = images(name, "train")
    few = round(ratio * n_train)
    normal = [chosen(rng, n_train, X[y == first])[0]]
    normal += [chosen(rng, few, X[y == other])[0] for other in others]
    normal = np.concatenate(normal)
    kept = np.isin(y, [first, *others, *odd])
    (Q,) = chosen(rng, n_train, X[~kept])
    X_test, y_test = images(name, "test")
    kept = np.isin(y_test, [first, *others, *odd])
    X_test, y_test = chosen(rng, 2500, X_test[kept], y_test[kept])
    model = detector_of(network, Q, n_experts, seed, n_steps, len(normal))
    labels = np.where(np.isin(y_test, odd), -1, 1)
    scores, metrics = fit_and_score(model, [normal], X_test, labels)
    for title, classes in (("primary", [first]), ("secondary", others)):
        tested = np.isin(y_test, [*classes, *odd])
        metrics[f"auroc_{title}"] = detector_roc_auc_score(
            labels[tested], scores[tested]
        )
    metrics["loss"] = model.history_[-1]["adapters_loss"]
    return metrics | {"gates": without_gates(model, X_test, scores)}


def without_gates(model, X, scores):
    """Return the rank correlation of scores with those of averaged gates.

    It is 1 for a single expert, which has no gates.
    """
    gates = [one.gate for one in model.net_.adapters_.layers if one.n_experts > 1]

    def averaged(gate, given, shares):
        return shares.mean(0, keepdim=True).expand_as(shares)

    handles = [gate.register_forward_hook(averaged) for gate in gates]
    alike = model.decision_function(X) if gates else scores
    for handle in handles:
        handle.remove()
    ranks = [np.argsort(np.argsort(one)) for one in (scores, alike)]
    return float(np.corrcoef(ranks)[0, 1])


def table(n_experts, **cell):
    """Detect anomalies in a table."""
    return detect(
        problem="table", detector="ADRA", params={"n_experts": n_experts}, **cell
    )


def modes(network, n_steps, n_train, seed=(0,)):
    return grid(
        network=[network],
        anomaly=CORPORA[network],
        n_experts=EXPERTS,
        seed=seed,
        n_train=[n_train],
        n_steps=[n_steps],
    )


EXPERIMENTS = [
    Experiment("adra_experts", many_modes, modes("ResNet20", 150, 1600)),
    Experiment("adra_experts", many_modes, modes("MobileNetV2", 60, 1000), "long"),
    Experiment(
        "adra_experts.few",
        few_modes,
        grid(
            modes=MODES,
            n_experts=EXPERTS,
            seed=[0, 1],
            n_train=[1500],
            n_steps=[150],
            ratio=[0.03],
        ),
    ),
    Experiment(
        "adra_experts.tables",
        table,
        grid(seed=[0, 1], name=SMALL_TABLES, n_experts=EXPERTS),
    ),
]

SCORES = tuple(m._replace(average=True) for m in (AUROC, AVERAGE_PRECISION))
LOSS = Metric("loss", "Loss of the training at its end", "mean", average=True)
GATES = Metric("gates", "Rank correlation with the scores of mean gates", "mean")


def with_experts(record):
    """Return a record with its number of experts in words."""
    return record | {"experts": f"K = {record['n_experts']}"}


TABLES = [
    Table(
        "adra_experts",
        ("network", "anomaly"),
        "experts",
        (*SCORES, LOSS, GATES),
        "Network, class held out",
        transform=with_experts,
    ),
    Table(
        "adra_experts.few",
        ("modes",),
        "experts",
        (
            Metric("auroc_secondary", "AUROC of the small modes", "mean", average=True),
            Metric("auroc_primary", "AUROC of the first class", "mean", average=True),
            LOSS,
            GATES,
        ),
        "First class",
        transform=with_experts,
    ),
    Table(
        "adra_experts.tables",
        ("name",),
        "experts",
        SCORES[:1],
        "Table",
        transform=with_experts,
    ),
]
