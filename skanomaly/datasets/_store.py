"""Files of data sets: the folders they are looked for in, reading and writing."""

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
from numpy.typing import NDArray
from sklearn.datasets import get_data_home

from ..utils._docstring import fill_in
from ._types import DataHome

VARIABLE = "SKANOMALY_DATA"

_SUBSET = """\
subset : {"train", "test", "all"}, default="train"
    Part of the official split; "all" is the training part, then the test part."""
_DATA_HOME = """\
data_home : str or path-like, default=None
    Folder to look in first; the folder that the environment variable
    `SKANOMALY_DATA` names comes next. With None, the folder of
    :func:`sklearn.datasets.get_data_home` comes last."""
_LOCAL_ONLY = """\
download_if_missing : bool, default=True
    No effect: nothing downloads this set, and a missing file is an error with
    either value. The other loaders have this parameter, too."""
_RETURN_X_Y = """\
return_X_y : bool, default=False
    Whether to return only ``(data, target)``."""
_ERRORS = """\
TypeError
    If `data_home` is not a path.
FileNotFoundError
    If the file is in none of the folders. This is an OSError.
OSError
    If the file cannot be read."""

#: Fills in descriptions that most loaders have in their docstrings.
describe_loader = fill_in(
    subset=_SUBSET,
    data_home=_DATA_HOME,
    download_if_missing=_LOCAL_ONLY,
    return_X_y=_RETURN_X_Y,
    errors=_ERRORS,
)


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
    """Return the error for a missing file, with the folders and with advice."""
    places = ", ".join(str(folder) for folder in folders(data_home))
    state = "" if os.environ.get(VARIABLE) else ", which is not set"
    return FileNotFoundError(
        f"No file {' or '.join(names)} with the arrays {', '.join(members)} in "
        f"{places}. {advice} A folder is named by data_home or by the environment "
        f"variable {VARIABLE}{state}."
    )


def read(path: Path, members: Collection[str]) -> dict[str, NDArray[Any]]:
    """Read the members, each one once, since some files are slow to unpack."""
    with _opened(path) as file:
        return {member: file[member] for member in members}


def keep(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write the arrays; an interruption leaves no incomplete file behind."""
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
