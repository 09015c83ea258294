"""Checkpoints of a fit: the files, and the key by which the same fit finds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from shutil import rmtree
from typing import Any

from skorch.callbacks import Callback

from ._version import __version__
from .engine import AlternatingNet, Checkpoint
from .exceptions import TrainingDivergedError
from .utils._digest import digest_of

__all__ = ["CheckpointMixin"]

#: Parameters that do not change the result of a fit, or are known otherwise.
_NOT_IN_KEY = {
    *("checkpoint", "memory", "verbose", "on_interrupt", "callbacks", "random_state")
}


class CheckpointMixin(ABC):
    """For detectors whose training goes on after the process was killed."""

    checkpoint: str | PathLike[str] | None
    callbacks: list[Callback] | None
    interrupted_: bool
    _checkpoint: Checkpoint | None

    @abstractmethod
    def _continues(self) -> bool:
        """Return whether ``fit`` continues an earlier one."""

    @contextmanager
    def _checkpointed(self, *data: Any) -> Iterator[None]:
        """Keep files from which the same fit goes on, until it has ended.

        `data` are the samples, their use, and the seed.
        """
        if self.checkpoint is None:
            yield
            return
        key = digest_of([*self._settings_of_fit(), *data])
        folder = Path(self.checkpoint) / f"{type(self).__name__}-{key[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob(".*.tmp"):  # of a process that was killed in writing
            file.unlink(missing_ok=True)
        self._checkpoint = Checkpoint(folder, key)
        try:
            yield
        except TrainingDivergedError:
            rmtree(folder, ignore_errors=True)
            raise
        except BaseException:
            with suppress(OSError):
                folder.rmdir()  # if it is empty
            raise
        finally:
            del self._checkpoint
        if not self.interrupted_:
            rmtree(folder, ignore_errors=True)

    def _settings_of_fit(self) -> list[Any]:
        """Return all that determines a fit besides data and seed, for its key."""
        params: dict[str, Any] = self.get_params(deep=False)  # type: ignore[attr-defined]
        fitted = vars(self).values() if self._continues() else []
        return [
            *(__version__, type(self).__qualname__),
            {k: value for k, value in params.items() if k not in _NOT_IN_KEY},
            [(type(one).__name__, _numbers_of(one)) for one in self.callbacks or []],
            [
                (net.step_, net.module_, net.optimizer_.state_dict())
                for net in fitted
                if isinstance(net, AlternatingNet)
            ],
        ]


def _numbers_of(callback: Any) -> dict[str, Any]:
    """Return the numbers and texts among the parameters of a callback."""
    return {
        name: value
        for name, value in vars(callback).items()
        if isinstance(value, bool | int | float | str) and not name.endswith("_")
    }
