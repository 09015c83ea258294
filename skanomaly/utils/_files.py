"""Files that are written whole or not at all, with a digest of their content."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from os import PathLike
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["check_path", "pack", "read_packed", "replace_file"]

Buffer = bytes | memoryview

_KEY = "skanomaly"
#: Placeholder of the digest while it is computed.
_BLANK = "0" * 64
#: The start of the header in the file, which is JSON within JSON.
_BEGINNING = b'{\\"sha256\\": \\"'


def check_path(path: object) -> None:
    """Raise an error unless a path is a string or a path-like object.

    Parameters
    ----------
    path : object
        The path of a file.

    Raises
    ------
    TypeError
        If it is something else, such as an open file.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(
            f"path is of type {type(path).__name__}, and has to be the name of a file, "
            "as a string or a pathlib.Path."
        )


def replace_file(path: str | PathLike[str], parts: Iterable[Buffer]) -> None:
    """Replace a file in one step, by a temporary file beside it.

    The new file has the mode of the old one, or that of the umask. Of a link, the
    target is replaced. A pipe or another special file is written to directly.

    Parameters
    ----------
    path : str or path-like
        The file to write.
    parts : iterable of bytes-like
        Its content.

    Raises
    ------
    OSError
        If the file cannot be written. The old file is then unchanged, and no temporary
        file is left.
    """
    try:
        _replace(path, parts)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(error.errno, f"{path} cannot be written: {reason}") from error


def _replace(path: str | PathLike[str], parts: Iterable[Buffer]) -> None:
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "It is a folder")
    there = os.path.exists(target)
    if there and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if there and not os.path.isfile(target):
        with open(target, "wb") as device:
            device.writelines(parts)
        return
    folder = os.path.dirname(target)
    beside = os.path.join(folder, f".skanomaly-{secrets.token_hex(8)}.tmp")
    try:
        with open(beside, "xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        if there and os.stat(beside).st_mode != (mode := os.stat(target).st_mode):
            os.chmod(beside, mode & 0o7777)
        os.replace(beside, target)
    except BaseException:  # an interrupt too
        with suppress(OSError):
            os.unlink(beside)
        raise
    _flush_folder(folder)


def _flush_folder(folder: str) -> None:
    """Write the new name to the disk, on systems that can."""
    if os.name == "posix":
        with suppress(OSError):
            number = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


def pack(header: dict[str, Any], tensors: dict[str, Tensor]) -> list[Buffer]:
    """Return a safetensors file, in parts, with a digest of all its bytes.

    Parameters
    ----------
    header : dict
        Values of JSON, without the key "sha256".
    tensors : dict of Tensor
        By name.

    Returns
    -------
    list of bytes-like
        Parts of the file, in order.
    """
    text = json.dumps({"sha256": _BLANK, **header})
    packed = save(tensors, {_KEY: text})
    data = memoryview(packed)
    start = packed.index(_BEGINNING + _BLANK.encode()) + len(_BEGINNING)
    digest = sha256(packed).hexdigest().encode()
    return [data[:start], digest, data[start + len(_BLANK) :]]


def read_packed(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the header and the tensors of a file made by :func:`pack`.

    Parameters
    ----------
    path : str or path-like
        The file. An older file, without "sha256" in its header, is not checked.

    Returns
    -------
    header : dict
        The header, with "sha256".
    tensors : dict of Tensor
        Tensors by name, copied into new memory.

    Raises
    ------
    ValueError
        If :func:`pack` did not make the file, or it was changed since.
    OSError
        If it cannot be read.
    """
    foreign = "is not a file written by skanomaly.save, or it is damaged"
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > os.fstat(file.fileno()).st_size:
            raise ValueError(f"{foreign}.")
        start += file.read(length)
        try:
            header = json.loads(json.loads(start[8:])["__metadata__"][_KEY])
            digest = header.get("sha256")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{foreign}.") from error
        except RecursionError as error:
            raise ValueError(f"{foreign}: it is nested too deeply.") from error
        data = start + file.read()
    if digest is not None and digest != _digest(data, len(start), digest):
        raise ValueError(
            "was changed after skanomaly.save wrote it: its digest differs. Copy it "
            "again from its origin, or save the detector again."
        )
    try:
        return header, load(data)
    except (SafetensorError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(f"{foreign}: {error}") from error


def _digest(data: bytes, length: int, stored: object) -> str:
    """Return the digest of a file with the placeholder for its stored digest."""
    head = data[:length]
    if isinstance(stored, str):
        stored_text = _BEGINNING + stored.encode()
        head = head.replace(stored_text, _BEGINNING + _BLANK.encode(), 1)
    digest = sha256(head)
    digest.update(memoryview(data)[length:])
    return digest.hexdigest()
