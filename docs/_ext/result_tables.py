"""Writes the tables of results from the files that the benchmarks leave.

No number is typed: each is computed from ``benchmarks/results/<experiment>.jsonl``
when the documentation is built. An experiment is described by a :class:`Table`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from statistics import fmean, median, stdev
from typing import NamedTuple

from benchmarks import runner
from benchmarks.adra import ALL_OTHERS
from benchmarks.defects import DEFECTS, DEVELOPMENT, OTHER_DATA
from benchmarks.joint_encoder_gan import CLASSES as JOINT_CLASSES

NOT_RUN = "*Not run yet.*\n"
COMPLETE = "Every experiment has been run.\n"


# How the figures of several seeds become one entry ----------------------------------


def mean_and_spread(values: list[float]) -> str:
    """Return mean ± standard deviation; the mean alone of a single value."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{fmean(values):.3f} ± {stdev(values):.3f}"


def mean(values: list[float]) -> str:
    """Return the mean."""
    return f"{fmean(values):.3f}"


def middle(digits: int = 1) -> Callable[[list[float]], str]:
    """Return a function that writes the median with that many decimals."""
    return lambda values: f"{median(values):,.{digits}f}"


class Value(NamedTuple):
    """A figure of the results, and how it is shown.

    Attributes
    ----------
    key : str
        Its name in the files.
    title : str
        Stands above the table. What it says in brackets of several seeds is left out
        where there is one figure for each entry.
    show : callable
        Makes one text of the figures of all seeds.
    average : bool
        Whether a last row shows the mean over the rows above.
    """

    key: str
    title: str
    show: Callable[[list[float]], str] = mean_and_spread
    average: bool = False


class Table(NamedTuple):
    """How an experiment becomes tables, one per value.

    Attributes
    ----------
    experiment : str
        Name of the file of the results, and of the one that is written.
    rows : tuple of str
        Keys of a cell that name a row; those that no cell has are left out.
    columns : str or None
        Key of a cell that names a column; None puts the values side by side.
    values : tuple of Value
        What is shown; those that no result has are left out.
    row_title : str
        Stands above the names of the rows.
    unfolded : str or None
        For results that hold a dict of figures for each of several settings: the
        key under which the settings are found after each has become a record.
    file : str
        Name of the file, where it is not that of the experiment.
    where : callable or None
        Says of a record whether the table shows it.
    changed : callable or None
        Makes another record of one, before it is shown.
    about : str
        A paragraph above a table that may be missing; without results, it stands in
        the list of what has not been run.
    """

    experiment: str
    rows: tuple[str, ...]
    columns: str | None
    values: tuple[Value, ...]
    row_title: str
    unfolded: str | None = None
    file: str = ""
    where: Callable[[dict], bool] | None = None
    changed: Callable[[dict], dict] | None = None
    about: str = ""


AUROC = Value("auroc", "AUROC (mean ± standard deviation over the seeds)")
AVERAGE_PRECISION = Value(
    "average_precision",
    "Average precision (mean ± standard deviation over the seeds)",
)
FIT_SECONDS = Value("fit_seconds", "Seconds to fit (median over the seeds)", middle(1))
COVERAGE = Value("coverage", "Coverage", mean_and_spread)
DETECTION = (
    AUROC._replace(average=True),
    AVERAGE_PRECISION._replace(average=True),
    FIT_SECONDS,
)
SHORT = tuple(
    value._replace(title=value.title.partition(" (")[0])
    for value in (AUROC, AVERAGE_PRECISION, COVERAGE, FIT_SECONDS)
)
KINDS = (
    AUROC,
    Value("auroc_seen", "AUROC of kinds that had labels"),
    Value("auroc_unseen", "AUROC of kinds that had none"),
    FIT_SECONDS,
)
KINDS_OF_PAIRS = tuple(
    value._replace(title=value.title.replace("the seeds", "the pairs of classes"))
    for value in KINDS
)
DOMAINS = (
    AUROC._replace(average=True),
    Value(
        "auroc_reconstruction",
        "AUROC with the loss of reconstruction as score",
        average=True,
    ),
    FIT_SECONDS,
)
MEANS = (
    Value("auroc", "AUROC", mean, average=True),
    Value("auroc_combined", "AUROC with the combined score", mean, average=True),
    FIT_SECONDS,
)
STEP = (
    Value("package, ms per step", "Package, ms per step", middle(0)),
    Value("script, ms per step", "Script, ms per step", middle(0)),
    Value("script / package", "Ratio", middle(2)),
    Value("script without looks / package", "Ratio without looks", middle(2)),
)

GROWING_STEP = (
    Value("package, ms per step", "Package, ms per step", middle(0)),
    Value("plain, ms per step", "Straightforward, ms per step", middle(0)),
    Value("plain / package", "Ratio", middle(2)),
    Value("plain, half a penalty / package", "Ratio, same penalty", middle(2)),
    Value("optimiser memory, package / plain", "Memory of the optimisers", middle(2)),
)
GROWN = (Value("auroc", "AUROC, mean over the classes", mean),)


SMALL_DEFECTS = "spot", "scratch", "hole"
DEFECTS_SEEN = tuple(
    Value(kind, kind.capitalize(), mean)
    for kind in (*DEFECTS, "other kind", "small defects", "mean")
)


def with_small_defects(record: dict) -> dict:
    """Return the record of a way to score, with the mean over the small defects."""
    return record | {"small defects": fmean(record[k] for k in SMALL_DEFECTS)}


def in_all_rates(record: dict) -> bool:
    """Return whether a record is of a class that was tried at all contaminations."""
    return record["normal"] in JOINT_CLASSES[record["name"]]


def mebibytes(values: list[float]) -> str:
    """Return the median of numbers of bytes, in MiB."""
    return middle(2)([value / 2**20 for value in values])


def with_experts(record: dict) -> dict:
    """Return a record with its number of experts in words."""
    return record | {"experts": f"K = {record['n_experts']}"}


GATES = Value("gates", "Rank correlation with the scores of mean gates", mean)
ADRA_SCORES = (
    AUROC._replace(average=True),
    Value("loss", "Loss of the training at its end", mean),
    FIT_SECONDS,
)
ADRA_STEP = (
    Value("fine-tuning, ms per step", "Fine-tuning, ms per step", middle(0)),
    *(
        Value(f"K={k} / fine-tuning", f"K = {k} / fine-tuning", middle(2))
        for k in (1, 2, 4)
    ),
    *(Value(f"K={k} / K=1", f"K = {k} / K = 1", middle(2)) for k in (2, 4)),
    Value("scoring, K=1 / scoring, bare", "Scoring, K = 1 / network", middle(2)),
    Value(
        "scoring, K=1 / scoring, bare, alike",
        "The same, computed alike",
        middle(2),
    ),
)
#: What settings of ADRA were chosen on.
ADRA_TABLES = (
    *("arrhythmia", "breastw", "cardio", "glass", "musk", "satellite", "thyroid"),
    *("wbc", "pageblocks", "optdigits"),
)
ADRA_CLASSES = 1, 3, 7


def chosen_on(key: str, names: tuple, yes: bool) -> Callable[[dict], bool]:
    """Return what says of a record whether settings were chosen on it, or not."""
    return lambda record: (record[key] in names) == yes


def without_passes(record: dict) -> dict:
    """Return the record without a number of passes that its detector does not read."""
    reads = record["detector"] not in ("2-NN", "frozen", "UADRA")
    return record if reads else record | {"max_epochs": None}


def with_corpus(record: dict) -> dict:
    """Return the record with its corpus in the name of the detector that learns it."""
    trained = record["detector"] not in ("2-NN", "frozen", "UADRA")
    named = f"{record['detector']}, {record['corpus']}"
    return record | {"detector": named if trained else record["detector"]}


TABLES = (
    *(
        Table(
            "adra_one_vs_rest",
            ("normal",),
            "detector",
            ADRA_SCORES,
            "Class",
            file="adra_one_vs_rest" + length + kind,
            where=lambda record, passes=passes, side=side, seen=seen: (
                (record["max_epochs"], record.get("input_size", 64)) == (passes, side)
                and chosen_on("normal", ADRA_CLASSES, seen)(record)
            ),
        )
        for length, passes, side in (
            ("", 2, 64),
            ("_large", 2, 128),
            ("_long", 6, 64),
            ("_large_long", 6, 128),
            ("_longest", 20, 64),
        )
        for kind, seen in (("", False), ("_development", True))
        if not (seen and passes == 20)
    ),
    Table(
        "adra_one_vs_rest",
        ("normal",),
        "input_size",
        ADRA_SCORES[::2],
        "Class",
        file="adra_input_size",
        where=lambda record: (
            (record["detector"], record["max_epochs"], record["seed"])
            == ("ADRA K=2", 2, 0)
        ),
        changed=lambda record: {"input_size": 64} | record,
    ),
    Table(
        "adra_one_vs_rest_gpu",
        ("normal",),
        "detector",
        DETECTION[::2],
        "Class",
        about="ADRA with a longer training on larger images, on a GPU, with all "
        "classes of CIFAR-10, 1, 3 and 7 among them.",
    ),
    *(
        Table(
            "adra_hold_one_out",
            ("anomaly",),
            "detector",
            (
                AVERAGE_PRECISION._replace(average=True),
                *ADRA_SCORES,
            ),
            "Class",
            file="adra_hold_one_out" + length,
            where=lambda record, setting=setting: (
                (record["max_epochs"], record["n_train"]) == setting
            ),
        )
        for length, setting in (
            ("", (1, 2500)),
            ("_long", (3, 2500)),
            ("_longest", (12, 2500)),
            ("_all", (1, ALL_OTHERS)),
        )
    ),
    *(
        Table(
            experiment,
            ("anomaly",),
            "detector",
            (
                AVERAGE_PRECISION._replace(average=True),
                *ADRA_SCORES[:2],  # other work had its part of the machine
            ),
            "Class held out",
            changed=with_corpus,
            about=about,
        )
        for experiment, about in (
            ("adra_same_source", ""),
            ("adra_digits", "Digits of MNIST, with a digit held out."),
        )
    ),
    Table(
        "adra_source",
        ("anomaly", "detector", "max_epochs"),
        None,
        (
            Value("auroc", "CIFAR-10, normal / CIFAR-10, held out"),
            Value("auroc_corpus", "CIFAR-10, normal / corpus"),
            Value("auroc_elsewhere", "Tiny ImageNet, normal / CIFAR-10, held out"),
            Value("auroc_elsewhere_corpus", "Tiny ImageNet, normal / corpus"),
            Value("auroc_source", "CIFAR-10, normal / Tiny ImageNet, normal"),
        ),
        "Class held out, detector, passes",
        changed=without_passes,
    ),
    Table(
        "adra_small_modes",
        ("ratio",),
        "detector",
        (
            Value("auroc_secondary", "AUROC of the second class"),
            Value("auroc_primary", "AUROC of the first class"),
        ),
        "Ratio",
    ),
    Table(
        "adra_experts",
        ("network", "anomaly"),
        "experts",
        (
            *(v._replace(average=True) for v in (AUROC, AVERAGE_PRECISION)),
            Value("loss", "Loss of the training at its end", mean, average=True),
            GATES,
        ),
        "Network, class held out",
        changed=with_experts,
    ),
    Table(
        "adra_experts_few",
        ("modes",),
        "experts",
        (
            Value("auroc_secondary", "AUROC of the small modes", mean, average=True),
            Value("auroc_primary", "AUROC of the first class", mean, average=True),
            Value("loss", "Loss of the training at its end", mean, average=True),
            GATES,
        ),
        "First class",
        changed=with_experts,
    ),
    Table(
        "adra_experts_tables",
        ("name",),
        "experts",
        (AUROC._replace(average=True),),
        "Table",
        changed=with_experts,
    ),
    *(
        Table(
            "adra_tables",
            ("name",),
            "detector",
            DETECTION,
            "Table",
            file=file,
            where=chosen_on("name", ADRA_TABLES, seen),
        )
        for file, seen in (("adra_tables", False), ("adra_tables_development", True))
    ),
    Table(
        "adra_disentanglement",
        ("max_epochs", "detector"),
        None,
        (
            Value("disentanglement", "Disentanglement"),
            Value("completeness", "Completeness"),
            Value("informativeness", "Informativeness"),
            *(
                Value(f"informativeness_{name}", f"of the {name}", mean)
                for name in ("colour", "shape", "size")
            ),
            Value("explained", "Variance kept", mean),
        ),
        "Passes, detector",
        # UADRA has a length of its own, so that both numbers give the same fit.
        where=lambda record: record["detector"] != "UADRA" or record["max_epochs"] > 2,
        changed=without_passes,
    ),
    Table(
        "adra_memory",
        ("backbone", "n_experts"),
        None,
        (
            Value("networks", "Network, MiB", mebibytes),
            Value("corrections", "Corrections, MiB", mebibytes),
            Value("heads", "Heads, MiB", mebibytes),
            Value("together", "Together, MiB", mebibytes),
            Value("fine-tuned", "Fine-tuned, MiB", mebibytes),
            Value("together / fine-tuned", "Ratio", middle(2)),
            Value("file", "One file, MiB", mebibytes),
            Value("file of adapters", "Without the network, MiB", mebibytes),
        ),
        "Network, experts",
    ),
    Table(
        "adra_embedded",
        ("name", "normal"),
        "detector",
        (ADRA_SCORES[0]._replace(average=False), *ADRA_SCORES[1:]),
        "Class",
    ),
    Table(
        "adra_step",
        ("network", "vectors", "n_threads"),
        None,
        ADRA_STEP,
        "Network, instructions, threads",
    ),
    Table(
        "adra_step_gpu",
        ("network", "side"),
        None,
        ADRA_STEP,
        "Network, pixels",
        about="ADRA: a training step on a GPU.",
    ),
    Table(
        "defects",
        ("detector", "way"),
        None,
        DEFECTS_SEEN[-3:],
        "Detector, score",
        unfolded="way",
        changed=with_small_defects,
    ),
    *(
        Table(
            "defects",
            ("detector", "way"),
            None,
            DEFECTS_SEEN,
            "Detector, score",
            unfolded="way",
            file=f"defects_{name}_{normal}",
            where=lambda record, which=(name, normal): (
                (record["name"], record["normal"]) == which
            ),
            changed=with_small_defects,
        )
        for problems in (DEVELOPMENT, OTHER_DATA)
        for name, classes in problems.items()
        for normal in classes
    ),
    Table(
        "joint_encoder_gan_images",
        ("variant", "score"),
        "contamination",
        GROWN,
        "Encoder, score",
        unfolded="score",
        file="joint_encoder_gan_contamination",
        where=lambda record: (
            in_all_rates(record)
            and record["variant"] in ("joint", "separate", "baselines")
        ),
    ),
    Table(
        "joint_encoder_gan_images",
        ("name", "normal"),
        "score",
        (AUROC._replace(average=True),),
        "Class",
        unfolded="score",
        file="joint_encoder_gan_classes",
        where=lambda record: (
            record["contamination"] == 0.05
            and record["variant"] in ("joint", "baselines")
        ),
    ),
    Table(
        "joint_encoder_gan_images",
        ("variant",),
        "score",
        GROWN,
        "Training",
        unfolded="score",
        file="joint_encoder_gan_ablation",
        where=lambda record: (
            record["contamination"] == 0.05
            and record["name"] == "fashion_mnist"
            and in_all_rates(record)
            and record["variant"] != "baselines"
        ),
    ),
    Table("joint_encoder_gan_tables", ("name",), "detector", DETECTION, "Table"),
    Table(
        "joint_encoder_gan_cifar10",
        ("params", "score"),
        "contamination",
        (AUROC,),
        "Setting, score",
        unfolded="score",
        about="JointEncoderGAN on CIFAR-10, on a GPU. Cars are normal, and as many "
        "cars as other images test, as in Table 2 of the paper: with the defaults, "
        "with the paper's settings, and with these and a longer training. The images "
        "at hand are JPEG-compressed and half as many as the paper had (2,500 cars), "
        "so that its figures cannot be compared with these.",
    ),
    Table(
        "joint_encoder_gan_step",
        ("width", "fading", "n_threads"),
        None,
        GROWING_STEP,
        "Channels, fading in, threads",
    ),
    Table(
        "joint_encoder_gan_step_gpu",
        ("fading",),
        None,
        GROWING_STEP,
        "Fading in",
        about="JointEncoderGAN: a training step with the paper's networks, on a GPU.",
    ),
    Table("history_ad_tables", ("name",), "detector", DETECTION, "Table"),
    Table("history_ad_mnist", ("anomaly",), "detector", DETECTION, "Digit"),
    Table("history_ad_digits", ("anomaly",), "detector", DETECTION, "Digit"),
    Table("history_ad_kmnist", ("detector", "params"), None, SHORT, "Detector"),
    Table(
        "history_ad_mnist_paper",
        ("anomaly",),
        "params",
        DETECTION,
        "Digit",
        about="HistoryAD on MNIST, with what the paper states of its settings, on a "
        "GPU; what it does not state is our choice (:ref:`history_ad`).",
    ),
    Table(
        "history_ad_kmnist_paper",
        ("detector", "params"),
        None,
        SHORT,
        "Detector",
        about="HistoryAD on MNIST against Kuzushiji-MNIST, with what the paper states "
        "of its settings, on a GPU.",
    ),
    Table(
        "history_ad_noise",
        ("noise",),
        None,
        (
            Value("mean_score", "Mean of score_samples"),
            Value("auroc", "AUROC against images without noise"),
        ),
        "Noise (of 255)",
        unfolded="noise",
    ),
    Table("history_ad_saves", ("n_saves", "params"), None, SHORT, "Save points"),
    Table(
        "history_ad_ablation",
        ("variant",),
        None,
        (
            Value("auroc", "AUROC, mean over the tables", mean),
            Value("average_precision", "Average precision, mean", mean),
            Value("coverage", "Coverage, mean", mean),
            Value("fit_seconds", "Seconds to fit, median", middle(1)),
            Value("auroc", "Runs", lambda values: str(len(values))),
        ),
        "Variant",
    ),
    Table("aa_bigan_paper_tables", ("name",), "detector", DETECTION, "Table"),
    Table("aa_bigan_tables", ("name",), "detector", DETECTION, "Table"),
    Table("aa_bigan_devnet", ("name",), "detector", DETECTION, "Table"),
    Table("aa_bigan_selection", ("name",), "variant", DETECTION[:1], "Table"),
    Table("aa_bigan_images", ("name", "gamma_l"), "detector", KINDS_OF_PAIRS, "Images"),
    Table("aa_bigan_pollution", ("gamma_p",), "detector", KINDS, "Pollution"),
    Table("aa_bigan_kinds", ("n_kinds",), "detector", KINDS, "Known kinds"),
    Table(
        "aa_bigan_mnist_paper",
        ("normal",),
        "params",
        KINDS_OF_PAIRS,
        "Normal digit",
        about="AABiGAN on MNIST, with the settings of the paper and all pairs of "
        "digits, on a GPU.",
    ),
    Table(
        "aa_bigan_cifar10",
        ("gamma_l",),
        "params",
        KINDS_OF_PAIRS,
        "Known anomalies",
        about="AABiGAN on CIFAR-10, with the settings of the paper, on a GPU.",
    ),
    Table("aa_bigan_step", ("n_threads",), None, STEP, "Threads"),
    Table(
        "aa_bigan_step_gpu",
        ("device",),
        None,
        STEP,
        "Device",
        about="AABiGAN: a training step on a GPU.",
    ),
    Table(
        "transfer_table_1",
        ("direction", "rate"),
        "detector",
        DOMAINS[:2],
        "Domains, anomalies",
        unfolded="rate",
    ),
    Table("transfer_digits", ("direction", "normal"), "detector", DOMAINS, "Digits"),
    Table("transfer_fashion", ("change", "normal"), "detector", DOMAINS, "Class"),
    Table("transfer_tables", ("shift", "rate"), "detector", MEANS, "Shift"),
    Table(
        "transfer_tables",
        ("name",),
        "detector",
        MEANS[:2],
        "Table",
        file="transfer_tables_by_name",
    ),
    Table("transfer_adversarial", ("weight",), "direction", (AUROC,), "Weight"),
    Table(
        "transfer_video",
        ("detector",),
        None,
        (
            Value("auroc_combined", "Combined"),
            Value("auroc_reconstruction", "Loss"),
            Value("auroc_block", "Largest block of the map"),
        ),
        "Detector",
    ),
    Table(
        "transfer_scoring",
        ("kind",),
        None,
        (
            Value("detector, us per row", "Detector, µs per row", middle(1)),
            Value("autoencoder, us per row", "Autoencoder, µs per row", middle(1)),
            Value("ratio", "Ratio", middle(3)),
        ),
        "Rows",
    ),
    Table(
        "engine_overhead",
        ("batch_size",),
        None,
        (
            Value("engine_us_per_step", "Engine, µs per step", middle(0)),
            Value("bare_us_per_step", "Loop by hand, µs per step", middle(0)),
            Value("ratio", "Ratio", middle(3)),
        ),
        "Batch size",
    ),
    Table(
        "history_memory",
        ("n_saves",),
        "way",
        (Value("peak_mib", "Peak memory above that before the fit, MiB", middle(0)),),
        "Save points",
    ),
)


# From files to text -----------------------------------------------------------------


def write(folder: Path, tables: Iterable[Table] = TABLES) -> None:
    """Write ``<experiment>.rst`` for every table, and a list of what is not run."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = []
    for table in tables:
        text = render(table)
        if text == NOT_RUN and table.about:
            missing.append(f"- {table.about}\n")
            text = f".. {table.experiment}: not run yet\n"
        write_if_new(folder / f"{table.file or table.experiment}.rst", text)
    write_if_new(folder / "not_run.rst", "".join(sorted(missing)) or COMPLETE)


def write_if_new(path: Path, text: str) -> None:
    """Write unless it stands there, so that Sphinx reads only what has changed."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def read(experiment: str, unfolded: str | None = None) -> list[dict]:
    """Return the records of an experiment: keys of the cell, figures, circumstances."""
    made = []
    for kept in runner.records(experiment):
        about = {key: kept[key] for key in ("name", "machine", "versions", "date")}
        about["run"] = about.pop("name")  # cells may have a name of their own
        parts = [kept["result"]]
        if unfolded:
            parts = [{unfolded: k} | part for k, part in kept["result"].items()]
        made += [{**kept["cell"], **part, **about} for part in parts]
    return differing(made)


def differing(records: list[dict]) -> list[dict]:
    """Return the records with those of their ``params`` alone that differ."""
    sets = [record["params"] or {} for record in records if "params" in record]
    differ = [k for k in dict.fromkeys(k for p in sets for k in p) if not same(sets, k)]
    return [
        r | {"params": {k: v for k, v in (r["params"] or {}).items() if k in differ}}
        if "params" in r
        else r
        for r in records
    ]


def same(dicts: list[dict], key: str) -> bool:
    """Return whether all have the same value under `key`."""
    return all(key in d and d[key] == dicts[0].get(key) for d in dicts)


def render(table: Table) -> str:
    """Return the reStructuredText of an experiment."""
    records = read(table.experiment, table.unfolded)
    if table.where is not None:
        records = [record for record in records if table.where(record)]
    if table.changed is not None:
        records = [table.changed(record) for record in records]
    values = [v for v in table.values if any(v.key in r for r in records)]
    if not values:
        return NOT_RUN
    parts = [f"{table.about}\n"] if table.about else []
    if table.columns is None:
        parts.append(list_table(side_by_side(records, table, values), table.row_title))
    else:
        parts += [
            f"**{title(records, table, value)}**\n\n"
            + list_table(crossed(records, table, value), table.row_title)
            for value in values
        ]
    return "\n".join([*parts, circumstances(records)])


def title(records, table, value) -> str:
    """Return the title, without what it says of several seeds where there is one."""
    shown = [r for r in records if figures([r], value.key)]
    entries = Counter((row_name(r, table.rows), label(r[table.columns])) for r in shown)
    several = max(entries.values()) > 1
    return value.title if several else value.title.partition(" (")[0]


def side_by_side(records, table, values) -> dict[str, dict[str, str]]:
    """Return the entries by row and value."""
    rows = grouped(records, lambda record: row_name(record, table.rows))
    return {
        name: {
            value.title: value.show(found)
            for value in values
            if (found := figures(group, value.key))
        }
        for name, group in rows.items()
    }


def crossed(records, table, value) -> dict[str, dict[str, str]]:
    """Return the entries by row and column, and the row of means."""
    rows = grouped(records, lambda record: row_name(record, table.rows))
    columns = list(dict.fromkeys(label(r[table.columns]) for r in records))
    if all(map(is_number, columns)):
        columns.sort(key=float)
    found = {
        name: {
            column: numbers
            for column, part in grouped(
                group, lambda record: label(record[table.columns])
            ).items()
            if (numbers := figures(part, value.key))
        }
        for name, group in rows.items()
    }
    entries = {
        name: {c: value.show(numbers[c]) for c in columns if c in numbers}
        for name, numbers in found.items()
    }
    complete = [n for n in found.values() if len(n) == len(columns)]
    if value.average and len(complete) > 1:
        entries[f"*mean of {len(complete)}*"] = {
            c: f"*{fmean(fmean(numbers[c]) for numbers in complete):.3f}*"
            for c in columns
        }
    return entries


def figures(records, key) -> list[float]:
    """Return the numbers under `key`."""
    return [r[key] for r in records if isinstance(r.get(key), int | float)]


def grouped(records, key) -> dict[str, list[dict]]:
    """Return records by name, in the natural order of the names."""
    ordered = sorted(records, key=lambda record: natural(key(record)))
    return {name: list(group) for name, group in groupby(ordered, key)}


def natural(name: str) -> list:
    """Return what puts 9 before 10."""
    words = name.replace("=", " ").replace(",", " ").split()
    return [(0, float(w), "") if is_number(w) else (1, 0.0, w) for w in words]


def is_number(word: str) -> bool:
    """Return whether a word is a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def row_name(record: dict, keys: tuple[str, ...]) -> str:
    """Return the name of the row that a record belongs to."""
    words = [label(record[key]) for key in keys if record.get(key) is not None]
    return ", ".join(word for word in words if word) or "all"


def label(value) -> str:
    """Return how a value of a cell is shown."""
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return str(value)


def list_table(entries: dict[str, dict[str, str]], row_title: str) -> str:
    """Return a table; an entry that is missing is left empty."""
    columns = list(dict.fromkeys(c for row in entries.values() for c in row))
    rows = [[name, *(row.get(c, "") for c in columns)] for name, row in entries.items()]
    lines = [".. list-table::", "   :header-rows: 1", "   :class: results", ""]
    for first, *others in [[row_title, *columns], *rows]:
        lines.append(f"   * - {first}")
        lines += [f"     - {entry}".rstrip() for entry in others]
    return "\n".join(lines) + "\n"


def circumstances(records) -> str:
    """Return what a reader has to know to judge the figures."""
    machines = sorted(
        {
            f"{m['system']}, {m['cores']} cores"
            + (f", {m['gpu']}" if m.get("gpu") else ", no GPU")
            for m in (record["machine"] for record in records)
        }
    )
    torches = sorted({record["versions"]["torch"] for record in records})
    dates = sorted({record["date"] for record in records})
    n_runs = len({record["run"] for record in records})
    n_train = {record["n_train"] for record in records if "n_train" in record}
    seeds = {record["seed"] for record in records if "seed" in record}
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    facts = [
        "1 run" if n_runs == 1 else f"{n_runs} runs",
        *([f"{n_train.pop():,} rows to train"] if len(n_train) == 1 else []),
        *([f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"] if seeds else []),
        when,
        " and ".join(machines),
        f"torch {', '.join(torches)}",
    ]
    return f"\n.. rst-class:: small\n\n{'; '.join(facts)}.\n"
