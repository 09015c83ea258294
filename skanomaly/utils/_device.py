"""Choice of the device to compute on, and of the number format."""

from __future__ import annotations

import torch

__all__ = ["resolve_device", "resolve_precision"]


def resolve_device(device: str) -> str:
    """Return the name of the device that a parameter selects.

    Parameters
    ----------
    device : str
        "auto", or any name that torch takes: "cpu", "cuda", "cuda:<number>", "mps",
        "xpu".

    Returns
    -------
    str
        The name of a device of this machine. The CPU is always "cpu", without a
        number: its tensors have none, and skorch compares the two in a pickle.

    Raises
    ------
    ValueError
        If the name is unknown, or the machine lacks the device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        wanted = torch.device(device)
        if wanted.type == "cpu" and not wanted.index:
            return "cpu"
        n_found = torch.get_device_module(wanted.type).device_count()
    except (RuntimeError, AttributeError):  # an unknown name; a device without data
        raise ValueError(
            f"device={device!r} is none of 'auto', 'cpu', 'cuda', 'cuda:<number>', "
            "'mps', and no other device of torch to compute on."
        ) from None
    if (wanted.index or 0) >= n_found:
        raise ValueError(
            f"device={device!r}, but torch sees {n_found} {wanted.type} devices here. "
            "Use device='auto' to take one of them, or the CPU."
        )
    return device


def resolve_precision(precision: str, device: str, may_halve: bool) -> str:
    """Return the number format of the training.

    Parameters
    ----------
    precision : {"auto", "float32", "bfloat16"}
        "auto" is "bfloat16" on a CPU that multiplies such numbers, if `may_halve`.
    device : str
        Device of the training.
    may_halve : bool
        Whether the training would be faster.

    Returns
    -------
    str
        "float32" or "bfloat16".
    """
    if precision != "auto":
        return precision
    return "bfloat16" if may_halve and device == "cpu" and _halves() else "float32"


def _halves() -> bool:
    """Return whether the CPU has instructions for products of bfloat16 numbers.

    Others convert the numbers, which costs more than half of their memory saves.
    """
    found = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in found)
