"""Where to compute."""

from __future__ import annotations

import torch

__all__ = ["resolve_device"]


def resolve_device(device: str) -> str:
    """Return the device that a user's word stands for.

    Parameters
    ----------
    device : str
        "auto", or any name that torch takes: "cpu", "cuda", "cuda:<number>", "mps",
        "xpu".

    Returns
    -------
    str
        A name that torch understands and that this machine has. The one CPU is "cpu",
        with a number or without: tensors on it say no number, and skorch looks for
        one where it reads a pickle.

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
        wanted = torch.device(device)
        if wanted.type == "cpu" and not wanted.index:
            return "cpu"
        n_found = torch.get_device_module(wanted.type).device_count()
    except (RuntimeError, AttributeError):  # no name; a device that holds no numbers
        raise ValueError(
            f"device={device!r} is not one of 'auto', 'cpu', 'cuda', 'cuda:<number>', "
            "'mps' and what else torch has for devices to compute on."
        ) from None
    if (wanted.index or 0) >= n_found:
        raise ValueError(
            f"device={device!r}, but torch sees {n_found} {wanted.type} devices here. "
            "Use device='auto' to take what there is."
        )
    return device
