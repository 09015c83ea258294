"""All private imports of scikit-learn, and the constraints of most parameters.

When scikit-learn moves one of these names, this is the only file to change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from sklearn.metrics._scorer import _Scorer as Scorer
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils._param_validation import (
    HasMethods,
    Integral,
    Real,
    StrOptions,
)
from sklearn.utils._param_validation import Interval as _Interval
from sklearn.utils._param_validation import Options as _Options
from sklearn.utils.metadata_routing import _raise_for_params as raise_for_params
from sklearn.utils.validation import _check_method_params as sliced_params

if TYPE_CHECKING:
    Method = TypeVar("Method", bound=Callable[..., Any])

    def fit_context(
        *, prefer_skip_nested_validation: bool
    ) -> Callable[[Method], Method]:
        """Decorate ``fit`` with the validation of parameters; it keeps its type."""

else:
    from sklearn.base import _fit_context as fit_context

try:
    from sklearn.callback._callback_support import (
        callback_management_context as tearing_down,
    )
except ImportError:  # before scikit-learn 1.9, without callbacks
    from contextlib import nullcontext as tearing_down

__all__ = [
    "AUTO",
    "AUTO_COUNT",
    "AUTO_NONNEGATIVE",
    "AUTO_POSITIVE",
    "COUNT",
    "FINITE",
    "MEMORY",
    "NONNEGATIVE",
    "POSITIVE",
    "HasMethods",
    "Integral",
    "Interval",
    "Options",
    "Real",
    "Scorer",
    "StrOptions",
    "check_count",
    "fit_context",
    "raise_for_params",
    "safe_indexing",
    "sliced_params",
    "tearing_down",
]

#: Default bounds of constraints: numbers that float32 can hold, and counts that torch
#: takes.
_LARGEST = {Real: 1e38, Integral: 2**31 - 1}
#: Maximum weight of a loss: its square, and that of its gradients, is finite in
#: float32.
_MAX_WEIGHT = 1e12


class Interval(_Interval):
    """Numbers between two bounds, within the range of float32.

    Unlike intervals of scikit-learn, these do not contain True and False, nor numbers
    beyond single precision.

    Parameters
    ----------
    type : {numbers.Integral, numbers.Real}
        Kind of numbers.
    left, right : number or None
        The bounds; None stands for the lowest or the largest number of the range.
    closed : {"left", "right", "both", "neither"}
        The given bounds that belong to the interval.
    """

    def __init__(
        self,
        type: type,
        left: float | None,
        right: float | None,
        *,
        closed: str,
    ):
        ends = {"left": "l", "right": "r", "both": "lr", "neither": ""}[closed]
        if left is None:
            left, ends = -_LARGEST[type], "l" + ends
        if right is None:
            right, ends = _LARGEST[type], ends + "r"
        names = {(True, True): "both", (True, False): "left", (False, True): "right"}
        closed = names.get(("l" in ends, "r" in ends), "neither")
        super().__init__(type, left, right, closed=closed)

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether `val` is a number of this kind, between the bounds."""
        return _is_number(val) and super().is_satisfied_by(val)


class Options(_Options):
    """A set of numbers without True and False."""

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether `val` is one of the numbers."""
        return _is_number(val) and super().is_satisfied_by(val)


def _is_number(value: Any) -> bool:
    numbers = int | float | np.integer | np.floating
    return isinstance(value, numbers) and not isinstance(value, bool)


AUTO = StrOptions({"auto"})
COUNT = Interval(Integral, 1, None, closed="left")
POSITIVE = Interval(Real, 0, None, closed="neither")
NONNEGATIVE = Interval(Real, 0, _MAX_WEIGHT, closed="both")
FINITE = Interval(Real, -_MAX_WEIGHT, _MAX_WEIGHT, closed="both")
MEMORY = [str, HasMethods(["cache"]), None]
AUTO_COUNT = [COUNT, AUTO]
AUTO_POSITIVE = [POSITIVE, AUTO]
AUTO_NONNEGATIVE = [NONNEGATIVE, AUTO]


def check_count(value: Any, name: str) -> None:
    """Raise an error unless a value is a count.

    Parameters
    ----------
    value : object
        Value of the argument.
    name : str
        Name of the argument.

    Raises
    ------
    ValueError
        If `value` is not an integer of at least 1.
    """
    if not COUNT.is_satisfied_by(value):
        raise ValueError(f"{name}={value!r} has to be {COUNT}.")
