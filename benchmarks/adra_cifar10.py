"""ADRA on CIFAR-10: one class, classes held out, corpora, small modes.

The CPU profile takes half an hour on two cores, the long one about four hours more: it
has further seeds, the classes on which settings were chosen, larger images, and more
steps.
"""

from __future__ import annotations

import numpy as np

from skanomaly import datasets
from skanomaly.metrics import detector_roc_auc_score

from .adra_setting import (
    DETECTORS,
    SCORES,
    SMALL_RATE,
    WITHOUT_CORPUS,
    left_out,
    make_detector,
    measured,
    one_class,
    photographs,
    without_passes,
)
from .detection import images, without_class
from .runner import Experiment, grid
from .tables import AVERAGE_PRECISION, DETECTION, Metric, Table

#: Images of nine classes of CIFAR-10.
ALL_OTHERS = 22_500


# Experiments --------------------------------------------------------------------------


def one_vs_rest(detector, normal, seed, **params):
    """One class of CIFAR-10 is normal (Table 1)."""
    model = make_detector(detector, photographs()[0], seed, **params)
    return measured(model, *one_class("cifar10", normal))[1]


def hold_one_out(detector, anomaly, seed, n_train, **params):
    """One class of CIFAR-10 is anomalous (Table 2)."""
    X, X_test, _, y_test = without_class("cifar10", anomaly, n_train, seed)
    model = make_detector(detector, photographs()[0], seed, **params)
    return measured(model, X, X_test, y_test)[1]


def same_source(
    detector, anomaly, seed, corpus, n_train, max_epochs, input_size, name="cifar10"
):
    """One class is anomalous, four are a corpus, five are normal (Table 2).

    The corpus is every second of the nine other classes. They are neither normal nor in
    the test set, and with another corpus they are not used at all, so that all corpora
    have the same normal and test images.
    """
    corpus_classes = [c for c in range(10) if c != anomaly][1::2]
    X, X_test, _, y_test, others = datasets.hold_one_out(
        *images(name, "train"),
        anomaly,
        corpus_class=corpus_classes,
        **dict(zip(("X_test", "y_test"), images(name, "test"), strict=True)),
    )
    given = {
        "other classes": lambda: others,
        "Tiny ImageNet": lambda: photographs()[0],
        "letters": lambda: images("emnist_letters", "train")[0],
        "none": lambda: None,
    }[corpus]()
    chosen = np.random.default_rng(seed).permutation(len(X))[:n_train]
    settings = {"max_epochs": max_epochs, "input_size": input_size}
    if name == "mnist":
        settings["augment"] = ["crop"]  # digits do not look alike in a mirror
    model = make_detector(detector, given, seed, **settings)
    if input_size == 32 and given is not None:
        model.set_params(lr=SMALL_RATE)
    return measured(model, X[chosen], X_test, y_test)[1]


def source(detector, anomaly, seed, n_train, max_epochs, n_held_out=1500):
    """Separate the source of normal images from their contents.

    The classes that the corpus lacks are those of CIFAR-10, apart from aeroplanes and
    horses, in images of the corpus's source. If `anomaly` is one of these two, their
    objects are normal.
    """
    X, X_test, _, y_test = without_class("cifar10", anomaly, n_train, seed)
    order = np.random.default_rng(seed).permutation(len(photographs()[0]))
    corpus = photographs()[0][order]
    model = make_detector(detector, corpus[n_held_out:], seed, max_epochs=max_epochs)
    scores = model.fit(X).score_samples(X_test)
    normal, anomalous = scores[y_test == 1], scores[y_test == -1]
    elsewhere = model.score_samples(left_out())
    of_corpus = model.score_samples(corpus[:n_held_out])
    return {
        "auroc": auroc_between(normal, anomalous),
        "auroc_corpus": auroc_between(normal, of_corpus),
        "auroc_elsewhere": auroc_between(elsewhere, anomalous),
        "auroc_elsewhere_corpus": auroc_between(elsewhere, of_corpus),
        "auroc_source": auroc_between(normal, elsewhere),
        "n_train": len(X),
    }


def auroc_between(normal, anomalous):
    """Return the AUROC of two groups of scores."""
    labels = np.repeat([1, -1], [len(normal), len(anomalous)])
    return detector_roc_auc_score(labels, np.concatenate([normal, anomalous]))


def small_modes(detector, primary, secondary, ratio, seed, n_steps):
    """Images of a second class are normal too, but there are fewer (Fig. 2).

    Each class is tested against the eight that are not normal, of which a quarter of
    the test images is enough. The number of passes is the nearest to `n_steps`.
    """
    X, y = images("cifar10", "train")
    first, second = (X[y == c] for c in (primary, secondary))
    few = np.random.default_rng(seed).permutation(len(second))
    X = np.concatenate([first, second[few[: round(ratio * len(first))]]])
    X_test, y_test = images("cifar10", "test")
    normal = np.isin(y_test, (primary, secondary))
    chosen = normal | (np.arange(len(y_test)) % 4 == 0)
    X_test, y_test, normal = X_test[chosen], y_test[chosen], normal[chosen]
    epochs = max(round(n_steps / (len(X) // 64)), 1)
    model = make_detector(detector, photographs()[0], seed, max_epochs=epochs)
    scores, metrics = measured(model, X, X_test, np.where(normal, 1, -1))
    for name, c in (("primary", primary), ("secondary", secondary)):
        tested = (y_test == c) | ~normal
        labels = np.where(y_test[tested] == c, 1, -1)
        metrics[f"auroc_{name}"] = detector_roc_auc_score(labels, scores[tested])
    return metrics


# Cells --------------------------------------------------------------------------------

COMPARED = ["ADRA K=1", "ADRA K=2", "TF", "L2-SP"]
REFERENCES = ["TF", "L2-SP", "frozen", "2-NN"]
TRAINED, FROZEN = ["ADRA K=2", "UADRA", "TF", "L2-SP"], ["frozen", "2-NN"]
DEVELOPMENT, ONCE = [1, 3], [2, 8]
GPU = {"max_epochs": [20], "input_size": [128], "precision": ["bfloat16"]}


def classes(normal, detector, seed, max_epochs=2, **more):
    return grid(
        normal=normal, detector=detector, seed=seed, max_epochs=[max_epochs], **more
    )


def modes(detector, seed=(0,), ratio=(1.0, 0.3, 0.1, 0.03)):
    return grid(
        primary=[1],
        secondary=[8],
        ratio=ratio,
        detector=detector,
        seed=seed,
        n_steps=[39],
    )


def held_out(detector, max_epochs, n_train=2500, anomaly=(0, 3, 5, 8)):
    return grid(
        anomaly=anomaly,
        detector=detector,
        seed=[0],
        n_train=[n_train],
        max_epochs=[max_epochs],
    )


def with_corpus(
    corpus, detector, seed, anomaly=(0, 3, 5, 8), n_train=1000, epochs=12, side=32
):
    return grid(
        seed=[seed],
        anomaly=anomaly,
        detector=detector,
        corpus=[corpus],
        n_train=[n_train],
        max_epochs=[epochs],
        input_size=[side],
    )


def digits(corpus, detector):
    # With 32 pixels a side all features die, and all samples get one score.
    cells = with_corpus(corpus, detector, 0, [4, 9], n_train=400, epochs=10, side=64)
    return [cell | {"name": "mnist"} for cell in cells]


def sources(detector, max_epochs):
    return grid(
        anomaly=[0, 7],
        detector=detector,
        seed=[0],
        n_train=[2500],
        max_epochs=max_epochs,
    )


def on_gpu(seed):
    return grid(
        normal=range(10),
        detector=[*COMPARED, "ADRA K=4", "2-NN", "UADRA"],
        seed=[seed],
        **GPU,
        device=["cuda"],
    )


EXPERIMENTS = [
    Experiment(
        "adra_cifar10.one_vs_rest", one_vs_rest, classes(ONCE, list(DETECTORS), [0])
    ),
    Experiment(
        "adra_cifar10.one_vs_rest",
        one_vs_rest,
        classes(DEVELOPMENT, list(DETECTORS), [0])
        + classes([*ONCE, *DEVELOPMENT], [*COMPARED, "ADRA K=2, block 7"], [1])
        + classes([*ONCE, *DEVELOPMENT], COMPARED, [0], max_epochs=6)
        + classes(ONCE[:1], COMPARED, [0], max_epochs=20)
        + classes([*ONCE, *DEVELOPMENT], COMPARED, [0, 1], input_size=[128])
        + classes([*ONCE, *DEVELOPMENT], ["2-NN"], [0], input_size=[128])
        + classes([*DEVELOPMENT, *ONCE], ["ADRA K=2"], [0], input_size=[224])
        + classes(
            [*DEVELOPMENT, *ONCE],
            ["ADRA K=2", "TF"],
            [0],
            max_epochs=6,
            input_size=[128],
        ),
        profile="long",
    ),
    Experiment(
        "adra_cifar10.hold_one_out",
        hold_one_out,
        held_out(["ADRA K=2", "TF", "2-NN"], 1),
    ),
    Experiment(
        "adra_cifar10.hold_one_out",
        hold_one_out,
        held_out(["L2-SP", "ADRA K=1", "ADRA K=4", "HSC", "UADRA"], 1)
        + held_out(COMPARED, 3)
        + held_out(["ADRA K=2", "TF", "L2-SP"], 12)
        + held_out([*COMPARED, "UADRA", "2-NN"], 1, ALL_OTHERS, anomaly=[0]),
        profile="long",
    ),
    *(
        Experiment(
            "adra_cifar10.same_source",
            same_source,
            with_corpus("other classes", ["ADRA K=1", *REFERENCES], seed)
            + with_corpus("none", ["UADRA"], seed)
            + with_corpus("Tiny ImageNet", ["ADRA K=1", "TF"], seed),
            profile="long",
        )
        for seed in range(3)
    ),
    *(
        Experiment(
            "adra_cifar10.same_source",
            same_source,
            with_corpus("other classes", ["ADRA K=2", "ADRA K=4"], seed),
            profile="long",
        )
        for seed in range(3)
    ),
    Experiment(
        "adra_cifar10.digits",
        same_source,
        digits("other classes", ["ADRA K=1", "frozen"])
        + digits("letters", ["ADRA K=1"])
        + digits("none", ["UADRA"]),
        profile="long",
    ),
    Experiment(
        "adra_cifar10.source",
        source,
        sources(["frozen"], [1]) + sources(["ADRA K=2", "TF"], [1, 3]),
        profile="long",
    ),
    Experiment("adra_cifar10.small_modes", small_modes, modes(["ADRA K=2", "TF"])),
    Experiment(
        "adra_cifar10.small_modes",
        small_modes,
        modes(["HSC"]) + modes(["ADRA K=2", "TF"], seed=[1, 2], ratio=[0.03]),
        profile="long",
    ),
    Experiment(
        "adra_cifar10.one_vs_rest_gpu",
        one_vs_rest,
        on_gpu(seed=0) + on_gpu(seed=1),
        profile="gpu",
    ),
]


# Tables -------------------------------------------------------------------------------


def with_corpus_named(record):
    """Return the record with its corpus in the name of a detector that learns it."""
    if record["detector"] in WITHOUT_CORPUS:
        return record
    return record | {"detector": f"{record['detector']}, {record['corpus']}"}


def one_class_of(passes, side, development):
    """Return a function that tells whether a table of one class has a record."""

    def keep(record):
        setting = record["max_epochs"], record.get("input_size", 64)
        is_development = record["normal"] in DEVELOPMENT
        return setting == (passes, side) and is_development == development

    return keep


def held_out_of(passes, n_train):
    """Return a function that tells whether a table of classes held out has a record."""
    return lambda record: (record["max_epochs"], record["n_train"]) == (passes, n_train)


ONE_CLASS = Table("adra_cifar10.one_vs_rest", ("normal",), "detector", SCORES, "Class")
HELD_OUT = Table(
    "adra_cifar10.hold_one_out",
    ("anomaly",),
    "detector",
    (AVERAGE_PRECISION._replace(average=True), *SCORES),
    "Class",
)
SAME_SOURCE = Table(
    "adra_cifar10.same_source",
    ("anomaly",),
    "detector",
    HELD_OUT.metrics[:3],  # not the seconds: other work had its part of the machine
    "Class held out",
    transform=with_corpus_named,
)
TABLES = [
    *(
        ONE_CLASS._replace(
            name="adra_one_vs_rest" + length + ("_development" if development else ""),
            keep=one_class_of(passes, side, development),
        )
        for length, passes, side in (
            ("", 2, 64),
            ("_large", 2, 128),
            ("_long", 6, 64),
            ("_large_long", 6, 128),
            ("_longest", 20, 64),
        )
        for development in (False, True)
        if not (development and passes == 20)
    ),
    Table(
        "adra_cifar10.one_vs_rest",
        ("normal",),
        "input_size",
        SCORES[::2],
        "Class",
        name="adra_input_size",
        keep=lambda record: (
            (record["detector"], record["max_epochs"], record["seed"])
            == ("ADRA K=2", 2, 0)
        ),
        transform=lambda record: {"input_size": 64} | record,
    ),
    Table(
        "adra_cifar10.one_vs_rest_gpu",
        ("normal",),
        "detector",
        DETECTION[::2],
        "Class",
        description="ADRA with a longer training on larger images, on a GPU, with all "
        "classes of CIFAR-10, 1, 3 and 7 among them.",
    ),
    *(
        HELD_OUT._replace(
            name="adra_hold_one_out" + length, keep=held_out_of(passes, n_train)
        )
        for length, passes, n_train in (
            ("", 1, 2500),
            ("_long", 3, 2500),
            ("_longest", 12, 2500),
            ("_all", 1, ALL_OTHERS),
        )
    ),
    SAME_SOURCE,
    SAME_SOURCE._replace(
        experiment="adra_cifar10.digits",
        description="Digits of MNIST, with a digit held out.",
    ),
    Table(
        "adra_cifar10.source",
        ("anomaly", "detector", "max_epochs"),
        None,
        (
            Metric("auroc", "CIFAR-10, normal / CIFAR-10, held out"),
            Metric("auroc_corpus", "CIFAR-10, normal / corpus"),
            Metric("auroc_elsewhere", "Tiny ImageNet, normal / CIFAR-10, held out"),
            Metric("auroc_elsewhere_corpus", "Tiny ImageNet, normal / corpus"),
            Metric("auroc_source", "CIFAR-10, normal / Tiny ImageNet, normal"),
        ),
        "Class held out, detector, passes",
        transform=without_passes,
    ),
    Table(
        "adra_cifar10.small_modes",
        ("ratio",),
        "detector",
        (
            Metric("auroc_secondary", "AUROC of the second class"),
            Metric("auroc_primary", "AUROC of the first class"),
        ),
        "Ratio",
    ),
]
