"""One state of an object, whatever other threads make of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

__all__ = ["of_one_state", "twin"]

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])


def twin(instance: T) -> T:
    """Return another object of the same class with the same attributes.

    Parameters
    ----------
    instance : object
        One that keeps its attributes in ``__dict__``. These are shared, not copied.
    """
    other = object.__new__(type(instance))
    vars(other).update(vars(instance))
    return other


def of_one_state(method: Method) -> Method:
    """Have a method work on the attributes that there were when it was called.

    A ``fit`` in another thread may put others in their place at any time: scores of
    one fit with the threshold of the next one would be answers of no detector.

    Parameters
    ----------
    method : callable
        Sets no attribute.
    """

    @wraps(method)
    def called(self, *args, **kwargs):
        return method(twin(self), *args, **kwargs)

    return called  # type: ignore[return-value]
