"""Every private import of scikit-learn, in one place.

When scikit-learn moves one of these, this file changes and no other. The constants
are the constraints that most parameters have.
"""

from sklearn.base import _fit_context as fit_context
from sklearn.metrics._scorer import _Scorer as Scorer
from sklearn.utils._param_validation import (
    HasMethods,
    Integral,
    Interval,
    Options,
    Real,
    StrOptions,
)

__all__ = [
    "AUTO",
    "AUTO_COUNT",
    "AUTO_NONNEGATIVE",
    "AUTO_POSITIVE",
    "COUNT",
    "MEMORY",
    "NONNEGATIVE",
    "POSITIVE",
    "Integral",
    "Interval",
    "Options",
    "Real",
    "Scorer",
    "StrOptions",
    "fit_context",
]

AUTO = StrOptions({"auto"})
COUNT = Interval(Integral, 1, None, closed="left")
POSITIVE = Interval(Real, 0, None, closed="neither")
NONNEGATIVE = Interval(Real, 0, None, closed="left")
MEMORY = [str, HasMethods(["cache"]), None]
AUTO_COUNT = [COUNT, AUTO]
AUTO_POSITIVE = [POSITIVE, AUTO]
AUTO_NONNEGATIVE = [NONNEGATIVE, AUTO]
