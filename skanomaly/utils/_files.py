"""Files that are there whole or not at all, and that tell when they were changed."""

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

__all__ = ["pack", "read_packed", "replace_file"]

_KEY = "skanomaly"
#: Stands for the digest while it is computed.
_BLANK = "0" * 64
#: Beginning of a header, as it stands in the file: text within text.
_BEGINNING = b'{\\"sha256\\": \\"'


def replace_file(path: str | PathLike, parts: Iterable) -> None:
    """Write a file beside another one, and put it in its place in one step.

    The file has the mode that the old one had, or what the umask leaves of a new one.
    A link stays, and what it leads to is replaced. What is no file, such as a pipe, is
    written to.

    Parameters
    ----------
    path : str or path-like
        Where to write.
    parts : iterable of bytes-like
        What to write.

    Raises
    ------
    OSError
        If it cannot be written. Nothing has changed then, and nothing is left behind.
    """
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


def _flush_folder(folder):
    """Have the new name outlast a loss of power, where there is a way to."""
    if os.name == "posix":
        with suppress(OSError):
            number = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


def pack(header: dict[str, Any], tensors: dict[str, Tensor]) -> list:
    """Return a safetensors file, in parts, with a digest of all its bytes.

    Parameters
    ----------
    header : dict
        Of what JSON has; without "sha256".
    tensors : dict of Tensor
        By name.

    Returns
    -------
    list of bytes-like
        Parts of the file, in their order.
    """
    text = json.dumps({"sha256": _BLANK, **header})
    packed = save(tensors, {_KEY: text})
    data = memoryview(packed)
    start = packed.index(_BEGINNING + _BLANK.encode()) + len(_BEGINNING)
    digest = sha256(packed).hexdigest().encode()
    return [data[:start], digest, data[start + len(_BLANK) :]]


def read_packed(path: str | PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a file of :func:`pack`.

    Parameters
    ----------
    path : str or path-like
        A file; with a header without "sha256", as older ones have it, nothing is
        compared.

    Returns
    -------
    header : dict
        As it was packed, with "sha256".
    tensors : dict of Tensor
        By name. They do not change, or fall, with the file.

    Raises
    ------
    ValueError
        If the file is not one of these, or has been changed since.
    OSError
        If it cannot be read.
    """
    foreign = "is not a file that skanomaly.save wrote, or not any more"
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
            "has been changed since skanomaly.save wrote it: its digest is another. "
            "Copy it again from where it came, or save the detector again."
        )
    try:
        return header, load(data)
    except (SafetensorError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(f"{foreign}: {error}") from error


def _digest(data, length, said):
    """Return the digest of a file, computed without the one that it has."""
    head = data[:length]
    if isinstance(said, str):
        head = head.replace(_BEGINNING + said.encode(), _BEGINNING + _BLANK.encode(), 1)
    digest = sha256(head)
    digest.update(memoryview(data)[length:])
    return digest.hexdigest()
