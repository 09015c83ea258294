"""Fits on several processes: ``python together.py rank size folder``.

Each process writes the results of the same fits, by name. Batches of all processes
together have the same size for any number of them.
"""

import io
import pickle
import sys
import warnings
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from skorch.callbacks import Callback

import skanomaly
from skanomaly.engine import _checkpoint
from skanomaly.model_selection import SideBySideGridSearchCV

#: Samples per step in all processes.
BATCH = 32
EPOCHS = {
    "HistoryAD": {"max_epochs": 2, "detector_epochs": 2},
    "AABiGAN": {"max_epochs": 3},
    "TransferAD": {"max_epochs": 3, "transfer_epochs": 2},
    "JointEncoderGAN": {"max_epochs": 2},
    "ADRA": {"max_epochs": 3, "pretrain_epochs": 2},
}
SHAPES = {"table": (8,), "image": (1, 8, 8)}


def samples(shape, n=50, seed=0):
    rng = np.random.default_rng(seed)
    if len(shape) > 1:
        return rng.integers(0, 256, (n, *shape)).astype(np.uint8)
    return rng.normal(size=(n, *shape)) @ rng.normal(size=(*shape, *shape))


def make(name, size, **params):
    cls = getattr(skanomaly, name)
    return cls(
        **{"batch_size": BATCH // size, "random_state": 0, "precision": "float32"}
        | params
    )


def results_of(detector, X):
    """Return losses, scores, threshold, and the standard deviation of scores."""
    losses = [
        (row["stage"], k, v)
        for row in detector.history_
        for k, v in row.items()
        if k.endswith("_loss")
    ]
    scores = detector.score_samples(X)
    return losses, scores, detector.offset_, scores.std()


def fit(name, kind, size):
    X, others = (samples(SHAPES[kind], seed=seed) for seed in (0, 1))
    known = {"y": np.r_[[-1] * 8, [0] * 42]} if name == "AABiGAN" else {}
    source = {"X_source": others} if name == "TransferAD" else {}
    detector = make(name, size, **EPOCHS[name]).fit(X, **known, **source)
    return results_of(detector, X)


def search(size):
    grid = {"lam": [0.5, 2.0], "max_epochs": [2]}
    found = SideBySideGridSearchCV(
        make("HistoryAD", size, detector_epochs=2), grid, scoring=mean_score, cv=2
    ).fit(samples((8,), 100))
    return found.cv_results_["mean_test_score"]


def mean_score(detector, X, y=None):
    return detector.score_samples(X).mean()


class Fail(Callback):
    """Raises an error in some step."""

    now = True

    def on_batch_end(self, net, **kwargs):
        if self.now and net.step_ == 3:
            raise ZeroDivisionError


# Only for several processes ---------------------------------------------------------


def error_of(function, *args, **params):
    try:
        function(*args, **params)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def differences(rank, size):
    """Return errors of fits that are not the same in all processes."""
    X = samples((8,))
    with_nan = X.copy()
    with_nan[rank * 3, 0] = np.nan if rank else 0.0
    Fail.now = rank == 1
    failing = make("AABiGAN", size, max_epochs=5, callbacks=[Fail()])
    long = make("AABiGAN", size, max_epochs=1 + rank)
    return {
        "other X": error_of(make("AABiGAN", size).fit, samples((8,), seed=rank)),
        "NaN in one": error_of(make("AABiGAN", size).fit, with_nan),
        "other plan": error_of(long.fit, X),
        "callback of one": error_of(failing.fit, X),
        "keep": error_of(make("AABiGAN", size, on_interrupt="keep").fit, X),
    }


def seeds(size):
    """Return scores of a fit whose seed each process draws."""
    detector = make("AABiGAN", size, max_epochs=2, random_state=None)
    return detector.fit(samples((8,))).score_samples(samples((8,)))


def shown(size):
    with redirect_stderr(io.StringIO()) as output:
        make("AABiGAN", size, max_epochs=2, verbose=1).fit(samples((8,)))
    return output.getvalue()


def resumed(rank, size, folder):
    """Return the files after a fit that failed, and the results of the next fit."""
    X, Fail.now = samples((8,)), True
    detector = make(
        "AABiGAN", size, max_epochs=4, callbacks=[Fail()], checkpoint=folder
    )
    error_of(detector.fit, X)
    dist.barrier()
    files = [path.name for path in folder.rglob("*.ckpt")]
    Fail.now = False
    dist.barrier()
    went_on = results_of(detector.fit(X), X)
    detector.checkpoint = None
    return files, went_on, results_of(detector.fit(X), X)


def main(rank, size, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = {}
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size
        )
        _checkpoint.SECONDS = 0.0
        results["differences"] = differences(rank, size)
        results["seeds"] = seeds(size)
        results["shown"] = shown(size)
        results["resumed"] = resumed(rank, size, folder / "checkpoints")
    for kind in SHAPES:
        for name in EPOCHS:
            results[name, kind] = fit(name, kind, size)
    results["search"] = search(size)
    (folder / f"{size}-{rank}").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
