"""Settings of torch that belong to the whole process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Lock, RLock
from typing import Any

import torch

__all__ = ["n_threads", "one_thread", "seeded", "single_precision", "without_modes"]

#: Guards torch's global generator while a function has seeded it.
_GENERATOR_LOCK = RLock()


class _Setting:
    """A setting of torch that several threads may change for a time.

    The last thread to leave restores the value from before the first one: a thread
    that restored the value it had found could restore that of another thread.
    """

    def __init__(
        self,
        read: Callable[[], Any],
        write: Callable[[Any], None],
        *,
        per_thread: bool = False,
    ):
        self._read, self._write = read, write
        self._per_thread = per_thread
        self._lock, self._n_users = Lock(), 0

    @contextmanager
    def override(self, value: Any) -> Iterator[None]:
        with self._lock:
            found = self._read()
            if self._n_users == 0:
                self._before = found
            self._n_users += 1
            self._write(value)
        try:
            yield
        finally:
            with self._lock:
                self._n_users -= 1
                if self._per_thread or self._n_users == 0:
                    self._write(self._before)

    def usual(self) -> Any:
        """Return the value outside of all :meth:`override`."""
        with self._lock:
            return self._before if self._n_users else self._read()


_DTYPE = _Setting(torch.get_default_dtype, torch.set_default_dtype)
# Each thread has its own number, which starts as the number set last.
_N_THREADS = _Setting(torch.get_num_threads, torch.set_num_threads, per_thread=True)


def single_precision() -> AbstractContextManager[None]:
    """Make new tensors float32, whatever the default of the process."""
    return _DTYPE.override(torch.float32)


@contextmanager
def without_modes(device_type: str) -> Iterator[None]:
    """Compute without the caller's inference mode, autocast and default device.

    Parameters
    ----------
    device_type : str
        Device whose autocast is switched off: "cpu", "cuda".
    """
    with ExitStack() as contexts:
        contexts.enter_context(torch.inference_mode(False))
        contexts.enter_context(torch.enable_grad())
        contexts.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device().type != "cpu":  # the context slows each call
            contexts.enter_context(torch.device("cpu"))
        yield


def one_thread() -> AbstractContextManager[None]:
    """Compute with one thread: small networks are slower with several."""
    return _N_THREADS.override(1)


def n_threads() -> int:
    """Return the number of threads that the user gives torch."""
    return _N_THREADS.usual()


@contextmanager
def seeded(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed torch's global generators, and restore the caller's states afterwards.

    Parameters
    ----------
    seed : int
        The seed.
    device : str or torch.device
        Device whose generator is seeded besides that of the host.
    """
    device = torch.device(device)
    cuda = [device] if device.type == "cuda" else []
    with _GENERATOR_LOCK, torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(seed)
        yield
