"""Settings of torch that belong to the whole process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch

__all__ = ["one_thread", "single_precision", "without_modes"]


class _Lent:
    """A setting that several threads of Python may have changed at the same time.

    What it was before the first of them comes back in the end: if each put back what
    it had found, the last to leave would leave what another had set.
    """

    def __init__(
        self,
        read: Callable[[], Any],
        write: Callable[[Any], None],
        *,
        of_a_thread: bool = False,
    ):
        self._read, self._write = read, write
        self._of_a_thread = of_a_thread
        self._lock, self._n_users = Lock(), 0

    @contextmanager
    def being(self, value: Any) -> Iterator[None]:
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
                if self._of_a_thread or self._n_users == 0:
                    self._write(self._before)


_DTYPE = _Lent(torch.get_default_dtype, torch.set_default_dtype)
# Each thread has a number of its own, which it takes from the one that was set last,
# as late as when it is first read.
_N_THREADS = _Lent(torch.get_num_threads, torch.set_num_threads, of_a_thread=True)


def single_precision():
    """Make new tensors of float32, whatever the default of the process is."""
    return _DTYPE.being(torch.float32)


@contextmanager
def without_modes(device_type: str) -> Iterator[None]:
    """Compute with gradients and in full precision, whatever the caller has switched.

    Parameters
    ----------
    device_type : str
        Where: "cpu", "cuda".
    """
    with ExitStack() as contexts:
        contexts.enter_context(torch.inference_mode(False))
        contexts.enter_context(torch.enable_grad())
        contexts.enter_context(torch.autocast(device_type, enabled=False))
        if torch.get_default_device().type != "cpu":  # else each call is dearer
            contexts.enter_context(torch.device("cpu"))
        yield


def one_thread():
    """Compute with one thread: small networks lose more by sharing than they gain."""
    return _N_THREADS.being(1)
