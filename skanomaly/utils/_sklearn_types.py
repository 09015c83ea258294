"""Bases of scikit-learn, with annotations for type checkers.

scikit-learn has none: for a checker its classes have the type Any, and so have all
subclasses, whatever they declare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Self

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    class BaseEstimator:
        """Methods of :class:`sklearn.base.BaseEstimator`."""

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """Return the parameters by name."""

        def set_params(self, **params: Any) -> Self:
            """Set parameters."""

        def get_metadata_routing(self) -> Any:
            """Return the requested metadata."""

        def _validate_params(self) -> None:
            """Check the parameters against their constraints."""

        def __sklearn_tags__(self) -> Any:
            """Return the tags of the estimator."""

    class CallbackSupportMixin:
        """Methods of :class:`sklearn.callback.CallbackSupportMixin`."""

        def set_callbacks(self, *callbacks: Any) -> Self:
            """Set callbacks for the estimator."""

        def _init_callback_context(self, *, max_subtasks: int | None) -> Any:
            """Return the context of the whole fit."""

    class OutlierMixin:
        """Methods of :class:`sklearn.base.OutlierMixin`."""

    class TransformerMixin:
        """Methods of :class:`sklearn.base.TransformerMixin`."""

        def fit_transform(
            self, X: ArrayLike, y: ArrayLike | None = None, **fit_params: Any
        ) -> NDArray[Any]:
            """Fit, and transform the training data."""

        def set_output(self, *, transform: str | None = None) -> Self:
            """Choose the container of transformed data."""

    class ClassNamePrefixFeaturesOutMixin:
        """Methods of :class:`sklearn.base.ClassNamePrefixFeaturesOutMixin`."""

        def get_feature_names_out(
            self, input_features: ArrayLike | None = None
        ) -> NDArray[np.object_]:
            """Return the names of the columns of transformed data."""

else:
    from sklearn.base import (
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        OutlierMixin,
        TransformerMixin,
    )

    try:
        from sklearn.callback import CallbackSupportMixin
    except ImportError:  # before scikit-learn 1.9

        class CallbackSupportMixin:
            """An empty base: there are no callbacks."""


__all__ = [
    "BaseEstimator",
    "CallbackSupportMixin",
    "ClassNamePrefixFeaturesOutMixin",
    "OutlierMixin",
    "TransformerMixin",
]
