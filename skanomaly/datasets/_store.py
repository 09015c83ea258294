"""Where the data files lie: which folders, how a file is read and how it is kept."""

import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from sklearn.datasets import get_data_home

DataHome = str | os.PathLike[str] | None

VARIABLE = "SKANOMALY_DATA"


def folders(data_home: DataHome) -> Iterator[Path]:
    """Yield the folders to look in, the most explicit one first."""
    if data_home is not None:
        if not isinstance(data_home, str | os.PathLike):
            raise TypeError(f"data_home must be a path or None, got {data_home!r}.")
        yield Path(data_home).expanduser()
    if os.environ.get(VARIABLE):
        yield Path(os.environ[VARIABLE]).expanduser()
    if data_home is None:
        # Asked for last, because scikit-learn makes this folder where it is missing.
        yield Path(get_data_home())


def find(
    names: Sequence[str], members: Collection[str], data_home: DataHome
) -> Path | None:
    """Return the first file of one of these names that holds all the members."""
    for path in (folder / name for folder in folders(data_home) for name in names):
        if path.is_file():
            with _opened(path) as file:
                if set(members) <= set(file.files):
                    return path
    return None


def not_found(
    names: Sequence[str], members: Collection[str], data_home: DataHome, advice: str
) -> FileNotFoundError:
    """Make the error that says what was looked for, where, and how to get it."""
    places = ", ".join(str(folder) for folder in folders(data_home))
    state = "" if os.environ.get(VARIABLE) else ", which is not set"
    return FileNotFoundError(
        f"No file {' or '.join(names)} with the arrays {', '.join(members)} in "
        f"{places}. {advice} A folder is named by data_home or by the environment "
        f"variable {VARIABLE}{state}."
    )


def read(path: Path, members: Collection[str]) -> dict[str, np.ndarray]:
    """Read the members, each one once: some files are slow to unpack."""
    with _opened(path) as file:
        return {member: file[member] for member in members}


def keep(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write the arrays so that an interruption never leaves half a file behind."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            yield file
    # TypeError: the file holds a single array, as .npy files do. RuntimeError:
    # zipfile knows no such compression or encryption. SyntaxError and TokenError: NumPy
    # parses headers as Python.
    except (
        BadZipFile,
        EOFError,
        LZMAError,
        RuntimeError,
        SyntaxError,
        TokenError,
        TypeError,
        ValueError,
        zlib.error,
    ) as error:
        raise OSError(
            f"{path} cannot be read as an .npz file of plain arrays: delete it or put "
            "a whole one in its place."
        ) from error
