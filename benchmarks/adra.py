"""ADRA: tables, disentanglement, memory of ten tasks, networks of its own.

The CPU profile takes a quarter of an hour on two cores.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from sklearn.decomposition import PCA

from skanomaly import ADRA, save
from skanomaly._adra._networks import ResNet26
from skanomaly.metrics import dci_scores

from . import shapes
from .adra_setting import (
    SCORES,
    make_detector,
    measured,
    mobilenet,
    one_class,
    photographs,
    without_passes,
)
from .detection import (
    BASELINES,
    RIVALS,
    RIVALS_OF_IMAGES,
    TABLE_NAMES,
    detect,
    fit_and_score,
    images,
)
from .runner import Experiment, grid
from .tables import DETECTION, Metric, Table

N_COMPONENTS = 20
N_TASKS = 10


# Experiments --------------------------------------------------------------------------


def table(detector, **cell):
    """Detect anomalies in a table, with defaults; UADRA is ADRA without a corpus."""
    if detector == "UADRA":
        return detect(detector="ADRA", params={"corpus": None}, **cell)
    return detect(detector=detector, **cell)


def disentanglement(detector, seed, n_views, max_epochs):
    """Shapes of one kind and colour are normal, all others the corpus (Fig. 3).

    The embeddings of views of all kinds are reduced to one number of principal
    components for all detectors: completeness depends on the number of dimensions, and
    forests are slow for many.
    """
    views = shapes.make_shapes(n_views, random_state=seed)
    kind = np.array([0, shapes.SHAPES.index("triangle")])
    places = [range(n) for n in list(shapes.FACTORS.values())[len(kind) :]]
    normal = [[*kind, *place] for place in product(*places)]
    others = (views.target[:, : len(kind)] != kind).any(1)
    model = make_detector(detector, views.data[others], seed, max_epochs=max_epochs)
    embeddings = model.fit(shapes.render(normal)).encode(views.data)
    pca = PCA(N_COMPONENTS, random_state=seed)
    found = dci_scores(pca.fit_transform(embeddings), views.target, random_state=seed)
    scores = "disentanglement", "completeness", "informativeness"
    by_factor = zip(views.target_names, found.factor_informativeness, strict=True)
    return {
        **{name: float(found[name]) for name in scores},
        **{f"informativeness_{name}": float(value) for name, value in by_factor},
        "explained": float(pca.explained_variance_ratio_.sum()),
        "n_train": len(normal),
    }


def memory(backbone, n_experts, n_images=16):
    """Return the bytes of ten detectors around one network (Fig. 3).

    Fine-tuned detectors have a network and a head each. Optimisers are left out.
    """
    network = {"MobileNetV2": mobilenet, "ResNet26": ResNet26}[backbone]()
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (n_images, 3, 32, 32), dtype=np.uint8)
    settings = {"backbone": network, "normalization": None, "input_size": 32}
    detectors = [
        ADRA(
            **settings,
            corpus=X[::-1].copy(),
            n_experts=n_experts,
            batch_size=n_images,
            max_epochs=1,
            random_state=seed,
        ).fit(X)
        for seed in range(N_TASKS)
    ]
    nets = [detector.net_ for detector in detectors]
    adapters = [net.adapters_ for net in nets]
    heads = n_bytes(tensors_of(one.head for one in adapters))
    metrics = {
        "networks": n_bytes(tensors_of(net.backbone_ for net in nets)),
        "adapters": n_bytes(tensors_of(one.layers for one in adapters)),
        "heads": heads,
        "together": n_bytes(tensors_of([*(net.backbone_ for net in nets), *adapters])),
        "fine-tuned": N_TASKS * n_bytes(tensors_of([network])) + heads,
    }
    metrics["together / fine-tuned"] = metrics["together"] / metrics["fine-tuned"]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "detector.safetensors"
        for name, whole in (("file", True), ("file of adapters", False)):
            save(detectors[0], path, include_backbone=whole)
            metrics[name] = path.stat().st_size
    return metrics


def tensors_of(modules):
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()


def n_bytes(tensors):
    """Return the bytes of tensors, with shared memory counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def embedded(name, normal, detector, seed):
    """ADRA pretrains its own network, by the corpus's classes or by rotations."""
    X, X_test, y_test = one_class(name, normal)
    if detector in BASELINES:
        model = BASELINES[detector](seed, "images")
        return fit_and_score(model, [X], X_test, y_test)[1]
    cifar = name == "cifar10"
    corpus = photographs() if cifar else images("emnist_letters", "train")
    task = detector.removeprefix("ADRA, ")
    corpus = corpus if task == "supervised" else corpus[0]
    model = ADRA(corpus=corpus, pretrain=task, random_state=seed)
    return measured(model, X, X_test, y_test)[1]


# Cells --------------------------------------------------------------------------------

TRAINED, FROZEN = ["ADRA K=2", "UADRA", "TF", "L2-SP"], ["frozen", "2-NN"]


def tables(detector, seed):
    return grid(problem=["table"], name=TABLE_NAMES, detector=detector, seed=seed)


def lengths(detector, seed, max_epochs):
    return grid(detector=detector, seed=seed, n_views=[2000], max_epochs=max_epochs)


def own_networks(name, normal):
    return grid(
        name=[name],
        normal=[normal],
        detector=["ADRA, supervised", "ADRA, rotation", *RIVALS_OF_IMAGES],
        seed=[0],
    )


EXPERIMENTS = [
    Experiment(
        "adra.memory",
        memory,
        grid(backbone=["ResNet26", "MobileNetV2"], n_experts=[1, 2, 4]),
    ),
    Experiment("adra.tables", table, tables(["ADRA", "UADRA", *RIVALS], [0])),
    Experiment("adra.tables", table, tables(["ADRA", *RIVALS], [1, 2]), "long"),
    Experiment(
        "adra.disentanglement",
        disentanglement,
        lengths(TRAINED, [0], [2]) + lengths(FROZEN, [0], [10]),
    ),
    Experiment(
        "adra.disentanglement",
        disentanglement,
        lengths(TRAINED, [0], [10])
        + lengths(TRAINED, [1, 2], [2, 10])
        + lengths(FROZEN, [1, 2], [10]),
        profile="long",
    ),
    Experiment(
        "adra.embedded",
        embedded,
        own_networks("cifar10", 4) + own_networks("fashion_mnist", 2),
    ),
]


# Tables -------------------------------------------------------------------------------

#: Tables on which settings were chosen.
DEVELOPMENT = (
    *("arrhythmia", "breastw", "cardio", "glass", "musk", "satellite", "thyroid"),
    *("wbc", "pageblocks", "optdigits"),
)

TABLES = [
    Table(
        "adra.tables",
        ("name",),
        "detector",
        DETECTION,
        "Table",
        keep=lambda record: record["name"] not in DEVELOPMENT,
    ),
    Table(
        "adra.tables",
        ("name",),
        "detector",
        DETECTION,
        "Table",
        name="adra_tables_development",
        keep=lambda record: record["name"] in DEVELOPMENT,
    ),
    Table(
        "adra.disentanglement",
        ("max_epochs", "detector"),
        None,
        (
            Metric("disentanglement", "Disentanglement"),
            Metric("completeness", "Completeness"),
            Metric("informativeness", "Informativeness"),
            *(
                Metric(f"informativeness_{name}", f"of the {name}", "mean")
                for name in ("colour", "shape", "size")
            ),
            Metric("explained", "Variance kept", "mean"),
        ),
        "Passes, detector",
        # UADRA has a length of its own, so that both numbers give the same fit.
        keep=lambda record: record["detector"] != "UADRA" or record["max_epochs"] > 2,
        transform=without_passes,
    ),
    Table(
        "adra.memory",
        ("backbone", "n_experts"),
        None,
        (
            *(
                Metric(key, f"{title}, MiB", "median", 2, unit=2**20)
                for key, title in (
                    ("networks", "Network"),
                    ("adapters", "Adapters"),
                    ("heads", "Heads"),
                    ("together", "Together"),
                    ("fine-tuned", "Fine-tuned"),
                )
            ),
            Metric("together / fine-tuned", "Ratio", "median", 2),
            *(
                Metric(key, f"{title}, MiB", "median", 2, unit=2**20)
                for key, title in (
                    ("file", "One file"),
                    ("file of adapters", "Without the network"),
                )
            ),
            Metric("file", "One file, MiB", "median", 2, unit=2**20),
            Metric(
                "file of adapters", "Without the network, MiB", "median", 2, unit=2**20
            ),
        ),
        "Network, experts",
    ),
    Table(
        "adra.embedded",
        ("name", "normal"),
        "detector",
        (SCORES[0]._replace(average=False), *SCORES[1:]),
        "Class",
    ),
]
