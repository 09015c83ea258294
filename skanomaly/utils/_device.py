"""Where to compute."""

from __future__ import annotations

import torch

__all__ = ["resolve_device"]


def resolve_device(device: str) -> str:
    """Return the device that a user's word stands for.

    Parameters
    ----------
    device : str
        "auto", "cpu", "cuda", "cuda:<number>" or "mps".

    Returns
    -------
    str
        A name that torch understands and that this machine has.

    Raises
    ------
    ValueError
        If the word is none of these, or names a device that is not here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind, index = (wanted := torch.device(device)).type, wanted.index or 0
    except RuntimeError:
        kind, index = None, 0
    found = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind not in found:
        raise ValueError(
            f"device={device!r} is not one of 'auto', 'cpu', 'cuda', 'cuda:<number>' "
            "and 'mps'."
        )
    if index >= found[kind]:
        raise ValueError(
            f"device={device!r}, but torch sees {found[kind]} {kind} devices here. "
            "Use device='auto' to take what there is."
        )
    return device
