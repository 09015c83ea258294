"""Every private import of scikit-learn, in one place.

When scikit-learn moves one of these, this file changes and no other.
"""

from sklearn.base import _fit_context as fit_context
from sklearn.utils._param_validation import (
    HasMethods,
    Integral,
    Interval,
    Options,
    Real,
    StrOptions,
)

__all__ = [
    "HasMethods",
    "Integral",
    "Interval",
    "Options",
    "Real",
    "StrOptions",
    "fit_context",
]
