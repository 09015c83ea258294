"""Bases of scikit-learn, as type checkers are to see them.

scikit-learn has no annotations: for a checker its classes are of any type, and so is
every subclass, whatever that declares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Self

    class BaseEstimator:
        """What :class:`sklearn.base.BaseEstimator` offers."""

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """Return the parameters by name."""

        def set_params(self, **params: Any) -> Self:
            """Set parameters."""

        def get_metadata_routing(self) -> Any:
            """Return which metadata are asked for."""

        def _validate_params(self) -> None:
            """Refuse parameters that do not meet their constraints."""

    class OutlierMixin:
        """What :class:`sklearn.base.OutlierMixin` offers."""

else:
    from sklearn.base import BaseEstimator, OutlierMixin

__all__ = ["BaseEstimator", "OutlierMixin"]
