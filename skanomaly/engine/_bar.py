"""A progress bar for terminals and notebooks, and lines of progress for files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from io import StringIO
from typing import Any

__all__ = ["Bar"]

#: Width of a line in a file or a pipe.
_WIDTH = 80
_IN_PLACE = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
_WITHOUT_END = "{desc} {n_fmt} {elapsed}{postfix}"
_IN_LINES = "{desc} {percentage:3.0f}% {elapsed}<{remaining}{postfix}"


class Bar:
    """A :mod:`tqdm` bar over all stages of a task, with the losses that fit.

    A terminal shows a bar of its width, a notebook a widget. A file or a pipe gets
    whole lines.

    Parameters
    ----------
    name : str
        Name of the task.
    total : int or None
        Number of steps; None if it is unknown.
    file : file-like, default=None
        The output; None stands for ``sys.stderr``.
    line_interval : float, default=10.0
        Least number of seconds between two lines in a file or a pipe.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        file: Any = None,
        line_interval: float = 10.0,
    ):
        from tqdm.auto import tqdm

        # A program without a console has no stderr.
        file, self.name = file or sys.stderr or StringIO(), name
        self.losses: Mapping[str, float] = {}
        options: dict[str, Any] = {"dynamic_ncols": True, "bar_format": _IN_PLACE}
        if not (_is_widget(tqdm) or _is_terminal(file)):
            options = {"ncols": _WIDTH, "bar_format": _IN_LINES}
            options["mininterval"] = line_interval
            file = _Lines(file)
        if total is None:
            options["bar_format"] = _WITHOUT_END
        self.bar = tqdm(total=total, desc=name, file=file, miniters=1, **options)

    def __enter__(self) -> Bar:
        """Return the bar."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the bar, and leave its last state visible."""
        self.bar.close()

    def show(self, stage: str, losses: Mapping[str, float] | None = None) -> None:
        """Show a stage, and as many losses as the line has room for.

        Parameters
        ----------
        stage : str
            Text after the name.
        losses : mapping of str to float, default=None
            Losses by name; None keeps the last ones.
        """
        if losses is not None:
            self.losses = losses
        bar, text = self.bar, f"{self.name}: {stage}"
        width = bar.dynamic_ncols(bar.fp)[0] if bar.dynamic_ncols else bar.ncols
        line = bar.format_dict | {"prefix": text, "postfix": None, "ncols": None}
        room = (width or _WIDTH) - len(bar.format_meter(**line)) - len(", ")
        # Without a width tqdm draws ten blocks; one is enough.
        room += 9 if "{bar}" in bar.bar_format else 0
        shown = ""
        for name, value in self.losses.items():
            more = f"{', ' if shown else 'loss: '}{name} {value:.3g}"
            if len(shown) + len(more) <= room:
                shown += more
        bar.set_description_str(text, refresh=False)
        bar.set_postfix_str(shown, refresh=False)

    def advance(self, n: int = 1) -> None:
        """Count steps."""
        self.bar.update(n)

    def skip(self, n: int) -> None:
        """Count steps that were made earlier, and took no time now."""
        self.bar.initial += n
        self.bar.last_print_n += n
        self.bar.n += n


class _Lines:
    """A file that receives each state of a bar as a line of its own."""

    def __init__(self, file: Any):
        self.file = file

    def write(self, text: str) -> None:
        """Write a line, without the characters that move a cursor."""
        if text := text.strip():
            self.file.write(f"{text}\n")

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()


def _is_terminal(file: Any) -> bool:
    return hasattr(file, "isatty") and file.isatty()


def _is_widget(tqdm: type) -> bool:
    return any(cls.__module__ == "tqdm.notebook" for cls in tqdm.__mro__)
