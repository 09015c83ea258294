"""A bar that fits its line, and is whole lines where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from io import StringIO

__all__ = ["Bar"]

#: Seconds between two lines in a file or a pipe, and their width.
_EVERY, _WIDTH = 10.0, 80
_IN_PLACE = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
_IN_LINES = "{desc} {percentage:3.0f}% {elapsed}<{remaining}{postfix}"


class Bar:
    """A bar of :mod:`tqdm` over all stages of something, with figures as have room.

    In a terminal it changes in place and is no wider than that; in a notebook it is a
    widget; a file or a pipe gets whole lines, one every ten seconds.

    Parameters
    ----------
    name : str
        What takes so long.
    total : int
        Steps.
    file : file-like, default=None
        Where to show it; None stands for ``sys.stderr``.
    """

    def __init__(self, name: str, total: int, file=None):
        from tqdm.auto import tqdm

        # There is no stderr in a program without a console.
        file, self.name = file or sys.stderr or StringIO(), name
        self.losses: Mapping[str, float] = {}
        options = {"dynamic_ncols": True, "bar_format": _IN_PLACE}
        if not (_is_widget(tqdm) or _is_terminal(file)):
            options = {"mininterval": _EVERY, "ncols": _WIDTH, "bar_format": _IN_LINES}
            file = _Lines(file)
        self.bar = tqdm(total=total, desc=name, file=file, miniters=1, **options)

    def __enter__(self) -> Bar:
        """Return the bar."""
        return self

    def __exit__(self, *error) -> None:
        """Leave the last state of it where it is."""
        self.bar.close()

    def tell(self, stage: str, losses: Mapping[str, float] | None = None) -> None:
        """Say how far it is, and with which losses; as many of these as have room.

        Parameters
        ----------
        stage : str
            Comes after the name.
        losses : mapping of str to float, default=None
            By name; None leaves those that there are.
        """
        if losses is not None:
            self.losses = losses
        bar, text = self.bar, f"{self.name}: {stage}"
        width = bar.dynamic_ncols(bar.fp)[0] if bar.dynamic_ncols else bar.ncols
        line = bar.format_dict | {"prefix": text, "postfix": None, "ncols": None}
        room = (width or _WIDTH) - len(bar.format_meter(**line)) - len(", ")
        # Where the width is not said, tqdm draws ten blocks; one is enough.
        room += 9 if "{bar}" in bar.bar_format else 0
        shown = ""
        for name, value in self.losses.items():
            more = f"{', ' if shown else 'loss: '}{name} {value:.3g}"
            if len(shown) + len(more) <= room:
                shown += more
        bar.set_description_str(text, refresh=False)
        bar.set_postfix_str(shown, refresh=False)

    def advance(self) -> None:
        """Count a step."""
        self.bar.update()


class _Lines:
    """A file in which what a bar writes in place is lines."""

    def __init__(self, file):
        self.file = file

    def write(self, text: str) -> None:
        """Write what there is as a line, without what moves a cursor."""
        if text := text.strip():
            self.file.write(f"{text}\n")

    def flush(self) -> None:
        """Pass it on."""
        self.file.flush()


def _is_terminal(file) -> bool:
    """Return whether a file is a terminal; one that cannot tell is none."""
    return hasattr(file, "isatty") and file.isatty()


def _is_widget(tqdm) -> bool:
    """Return whether that class of bars is the one of notebooks."""
    return any(cls.__module__ == "tqdm.notebook" for cls in tqdm.__mro__)
