"""Kill fits at random moments: ``python killed.py seed n_kills folder detector...``.

Each detector is fitted in processes that are killed until that has happened `n_kills`
times. The fit that ends at last has to be equal to one that was never killed; so has
each of two fits at the same time. Writes the number of kills that left checkpoints.
"""

import os
import pickle
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from test_common import SHORT

import skanomaly
from skanomaly.engine import AlternatingNet, _checkpoint

_checkpoint.SECONDS = 0.0
LONGER = {"max_epochs": 12, "transfer_epochs": 6, "detector_epochs": 6}


def make(name, folder):
    params = {k: LONGER.get(k, value) for k, value in SHORT[name].items()}
    return getattr(skanomaly, name)(random_state=0, checkpoint=folder, **params)


def result(name, folder):
    """Return scores and weights of a fit, as bytes."""
    X = np.random.default_rng(0).normal(size=(80, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = make(name, folder).fit(X)
    nets = [one for one in vars(detector).values() if isinstance(one, AlternatingNet)]
    weights = [
        tensor.numpy(force=True)
        for net in nets
        for module in vars(net).values()
        if isinstance(module, torch.nn.Module)
        for tensor in (*module.parameters(), *module.buffers())
    ]
    return pickle.dumps((detector.score_samples(X), weights))


def start(name, folder, output):
    """Start a process that fits, and writes its result."""
    process = os.fork()
    if process:
        return process
    try:
        output.write_bytes(result(name, folder))
    finally:
        os._exit(not output.exists())


def check(name, folder, n_kills, rng):
    """Return the number of kills that left checkpoints."""
    began = time.perf_counter()
    expected = result(name, None)
    duration = time.perf_counter() - began
    done, n_with_files = 0, 0
    checkpoints, output = folder / "checkpoints", folder / "result"
    while True:
        process = start(name, checkpoints, output)
        if done < n_kills:
            time.sleep(rng.uniform(0, duration))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            done += 1
            n_with_files += bool([*checkpoints.rglob("*.ckpt")])
            output.unlink(missing_ok=True)
            continue
        assert output.read_bytes() == expected, name
        output.unlink()
        assert not [*checkpoints.iterdir()], name
        if done >= n_kills:
            break
    outputs = folder / "one", folder / "other"
    for process in [start(name, checkpoints, output) for output in outputs]:
        _, status = os.waitpid(process, 0)
        assert status == 0, name
    assert [one.read_bytes() for one in outputs] == [expected] * 2, name
    return n_with_files


if __name__ == "__main__":
    seed, n_kills, folder, *names = sys.argv[1:]
    torch.set_num_threads(1)
    rng = np.random.default_rng(int(seed))
    counts = {}
    for name in names:
        (own := Path(folder) / name).mkdir()
        counts[name] = check(name, own, int(n_kills), rng)
    sys.stdout.write(f"{counts}\n")
