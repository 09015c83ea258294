"""Advice on parameters after a training that diverged."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

__all__ = ["advice"]

#: Ratio to its default, or to 1, beyond which a number is unusual.
_UNUSUAL = 1e3


def advice(
    given: Mapping[str, Any], defaults: Mapping[str, Any], rates: Mapping[str, float]
) -> str:
    """Return changes of parameters that may help.

    Parameters
    ----------
    given, defaults : mapping of str to object
        The parameters of a detector, and their defaults.
    rates : mapping of str to float
        Learning rates used, by parameter.
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
    return f"{found}Try {', or '.join(hints)}."


def _is_unusual(value: Any, default: Any) -> bool:
    """Return whether a parameter is a float far beyond its default."""
    if isinstance(value, bool) or not isinstance(value, float):
        return False
    usual = abs(default) if isinstance(default, int | float) else 0.0
    return not isfinite(value) or abs(value) > _UNUSUAL * max(usual, 1.0)
