"""What to change after a training that diverged, by the settings in force."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

__all__ = ["advice"]

#: Times its default, or 1, from which a number is unusual.
_UNUSUAL = 1e3


def advice(
    given: Mapping[str, Any], defaults: Mapping[str, Any], rates: Mapping[str, float]
) -> str:
    """Return what would help, among what has not been done already.

    Parameters
    ----------
    given, defaults : mapping of str to object
        The parameters of a detector, and what they are unless told.
    rates : mapping of str to float
        Its learning rates in force, by parameter.
    """
    odd = [
        f"{name}={value!r}"
        for name, value in given.items()
        if name not in rates and _is_unusual(value, defaults[name])
    ]
    found = ""
    if odd:
        found = f"{' and '.join(odd)} may be the cause: far from the default. "
        if max(rates.values()) < 1:
            return found.strip()
    hints = [f"a lower `{name}` than {value:g}" for name, value in rates.items()]
    if given.get("scaling", "auto") is None:
        hints.append("scaled inputs (`scaling='auto'` instead of None)")
    if given.get("precision") == "bfloat16":
        hints.append("`precision='float32'`")
    return f"{found}What may help: {', or '.join(hints)}."


def _is_unusual(value, default):
    """Return whether a parameter is a fraction, or what is no count, of odd size."""
    if isinstance(value, bool) or not isinstance(value, float):
        return False
    usual = abs(default) if isinstance(default, int | float) else 0.0
    return not isfinite(value) or abs(value) > _UNUSUAL * max(usual, 1.0)
