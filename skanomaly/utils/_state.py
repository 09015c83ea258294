"""Consistent state of an object that another thread may change."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

__all__ = ["on_shallow_copy", "shallow_copy"]

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])


def shallow_copy(instance: T) -> T:
    """Return a shallow copy of an object.

    Parameters
    ----------
    instance : object
        Its attributes are in ``__dict__``. They are shared, not copied.
    """
    other = object.__new__(type(instance))
    vars(other).update(vars(instance))
    return other


def on_shallow_copy(method: Method) -> Method:
    """Run a method on a shallow copy that is made when it is called.

    A ``fit`` in another thread may replace attributes at any time. The scores of one
    fit and the threshold of the next one do not belong together.

    Parameters
    ----------
    method : callable
        It must not set attributes.
    """

    @wraps(method)
    def called(self, *args, **kwargs):
        return method(shallow_copy(self), *args, **kwargs)

    return called  # type: ignore[return-value]
