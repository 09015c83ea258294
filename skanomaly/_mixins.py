"""Methods of detectors with encoders, decoders or generators."""

from __future__ import annotations

from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor

from .engine import DeviceDataset
from .objectives import upper_error
from .utils._random import own_random_state
from .utils._sklearn_compat import check_count
from .utils._sklearn_types import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from .utils._state import on_shallow_copy

if TYPE_CHECKING:
    from ._base import BaseDeepDetector as Detector
else:
    Detector = object

__all__ = ["EncodingMixin", "ReconstructionMixin", "SamplingMixin"]

#: Maximum number of training samples for the usual error, and of pixels of their maps.
_MAX_SAMPLES, _MAX_PIXELS = 1000, 2**24
_TINY = 1e-12


class EncodingMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Detector):
    """For detectors with an encoder.

    A child writes ``_encode_batch``, which maps a batch of scaled samples (n, ...) to
    the latent codes (k, n, l) by each of k ensemble members.
    """

    @on_shallow_copy
    def encode(self, X: ArrayLike) -> NDArray[np.float32]:
        """Map samples to latent codes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, channels, height, width)
            Samples like those of ``fit``.

        Returns
        -------
        ndarray of shape (n_samples, n_estimators * latent_dim), float32
            Latent codes by the members of the ensemble, one after the other.

        Raises
        ------
        ValueError
            If a sample is so far out that its latent code is not finite.
        """
        return self._finite(self._compute(self._encode_flat, X))

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Map samples to latent codes, as :meth:`encode` does.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, channels, height, width)
            Samples like those of ``fit``.

        Returns
        -------
        ndarray of shape (n_samples, n_estimators * latent_dim), float32
            Latent codes, or a data frame of them after ``set_output``.

        Raises
        ------
        ValueError
            If a sample is so far out that its latent code is not finite.
        """
        return self.encode(X)

    def _encode_batch(self, batch: Tensor) -> Tensor:
        raise NotImplementedError

    def _encode_flat(self, batch: Tensor) -> Tensor:
        return self._encode_batch(batch).transpose(0, 1).flatten(1)

    def _latent_shape(self) -> tuple[int, int]:
        """Return the number of ensemble members, and the length of their codes."""
        return max(self.net_.n_estimators, 1), self.net_.latent_dim

    @property
    def _n_features_out(self) -> int:  # for names of features
        return prod(self._latent_shape())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @staticmethod
    def _finite(outputs: NDArray[Any]) -> NDArray[Any]:
        """Return the outputs for samples, after a check that they are finite."""
        lost = ~np.isfinite(outputs).reshape(len(outputs), -1).all(1)
        if lost.any():
            raise ValueError(
                f"{lost.sum()} samples of X, the first of them X[{lost.argmax()}], are "
                "so far from those of fit that their outputs are not finite. Such "
                "samples have the lowest score there is."
            )
        return outputs


class ReconstructionMixin(EncodingMixin):
    """For detectors with an encoder and a decoder.

    A child writes ``_decode_batch`` too, which maps latent codes (k, n, l) to scaled
    samples (n, ...), the mean over the ensemble.
    """

    criterion: str

    @on_shallow_copy
    def reconstruct(self, X: ArrayLike) -> NDArray[Any]:
        """Encode samples, and decode their latent codes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or \
                (n_samples, channels, height, width)
            Samples like those of ``fit``.

        Returns
        -------
        ndarray of the shape of `X`
            Mean reconstruction by the ensemble, in the units of the training data.

        Raises
        ------
        ValueError
            If a sample is so far out that its reconstruction is not finite.
        """
        samples = self._finite(self._compute(self._reconstruct_batch, X))
        return self._unscaled(samples)

    @on_shallow_copy
    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """Decode latent codes.

        The decoded latent codes of samples are their reconstructions, as of
        :meth:`reconstruct`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_estimators * latent_dim)
            Latent codes, as :meth:`transform` returns them.

        Returns
        -------
        ndarray of shape (n_samples, n_features) or \
                (n_samples, channels, height, width)
            Mean over the ensemble of the decoded samples, in the units of the training
            data.

        Raises
        ------
        ValueError
            If `X` has another number of columns than :meth:`transform` returns, or the
            decoded samples are not finite.
        """
        check_is_fitted(self)
        codes = check_array(X, dtype=np.float32, input_name="X")
        if codes.shape[1] != self._n_features_out:
            raise ValueError(
                f"X has {codes.shape[1]} columns; latent codes of this "
                f"{type(self).__name__} have {self._n_features_out}."
            )
        with self._computing(), self._caching():
            dataset = DeviceDataset(codes, None, self.net_.device, max_bytes=0)
            samples = self._map_rows(self._decode_flat, dataset, self._prepared_shape())
        return self._unscaled(self._finite(samples))

    def _decode_batch(self, codes: Tensor) -> Tensor:
        raise NotImplementedError

    def _decode_flat(self, codes: Tensor) -> Tensor:
        by_member = codes.reshape(-1, *self._latent_shape()).transpose(0, 1)
        return self._decode_batch(by_member.contiguous())

    def _reconstruct_batch(self, batch: Tensor) -> Tensor:
        return self._decode_batch(self._encode_batch(batch))

    @on_shallow_copy
    def anomaly_map(self, X: ArrayLike) -> NDArray[np.float32]:
        """Compute the reconstruction error of each pixel.

        Parameters
        ----------
        X : array-like of shape (n_samples, channels, height, width) or \
                (n_samples, channels, frames, height, width)
            Images or clips like those of ``fit``; with `image_shape`, of shape
            (n_samples, n_features).

        Returns
        -------
        ndarray of shape (n_samples, height, width) or \
                (n_samples, frames, height, width), float32
            Squared errors of scaled pixels, summed over the channels.

        Raises
        ------
        ValueError
            If the detector was fitted on tables, or an image is so far out that its
            reconstruction is not finite.
        """
        check_is_fitted(self)
        if self.image_shape_ is None:
            raise ValueError(
                f"{type(self).__name__} was fitted on tables, which have no pixels. "
                f"Errors of columns are {self._errors_of_columns()}."
            )
        return self._finite(self._compute(self._squared_errors, X))

    def _errors_of_columns(self) -> str:
        """Return the expression for errors that do not depend on units of columns."""
        errors = "(X - detector.reconstruct(X))"
        if isinstance(self.scaler_, StandardScaler):
            errors = f"({errors} / detector.scaler_.scale_)"
        elif self.scaler_ is not None:  # of MinMaxScaler, which multiplies by it
            errors = f"({errors} * detector.scaler_.scale_)"
        return f"{errors} ** 2"

    def _squared_errors(self, batch: Tensor) -> Tensor:
        return (batch - self._reconstruct_batch(batch)).square().sum(1)

    def _check_criterion(self) -> None:
        """Refuse ``criterion="map"`` for tables."""
        if self._given("criterion") == "map" and not self._kind.has_channels:
            raise ValueError(
                "criterion='map' is for images: tables have no pixels. Give "
                "`image_shape` if the columns of X are pixels."
            )

    def _learn_usual_error(self, rows: DeviceDataset) -> None:
        """Keep the mean of the maps of training samples, for ``criterion="map"``.

        It costs little, and the criterion can be changed after ``fit``.
        """
        vars(self).pop("usual_error_", None)  # of an earlier fit
        if not self._kind.has_channels:
            return
        n_most = _MAX_PIXELS // prod(self._row_shape[1:])
        some = rows.subset(rows.spread_indices(max(min(_MAX_SAMPLES, n_most), 1)))
        maps = self._map_rows(self._squared_errors, some, self._prepared_shape())
        self.usual_error_ = maps.mean(0, dtype=np.float64).astype(np.float32)

    def _map_score(self, batch: Tensor) -> Tensor:
        """Compute minus the logarithm of the highest values of anomaly maps."""
        self._check_criterion()
        if not hasattr(self, "usual_error_"):
            raise ValueError(
                "criterion='map' needs a fit: this detector is from a file that an "
                "older version wrote."
            )
        usual = torch.from_numpy(self.usual_error_).to(batch.device)
        upper = upper_error(self._squared_errors(batch).float(), usual)
        return -upper.clamp(min=_TINY).log()


class SamplingMixin(Detector):
    """For detectors with an ensemble of generators.

    A child writes ``_draw_rows(n, seed)``, which draws n scaled samples of each of k
    generators, (k, n, ...).
    """

    def _draw_rows(self, n: int, seed: int) -> Tensor:
        raise NotImplementedError

    @on_shallow_copy
    def sample(
        self, n_samples: int = 1, *, random_state: int | RandomState | None = None
    ) -> NDArray[Any]:
        """Draw samples from the generators.

        Parameters
        ----------
        n_samples : int, default=1
            Number of samples; each member of the ensemble draws its share.
        random_state : int, RandomState instance or None, default=None
            Draws the noise; None stands for the `random_state` of the detector.

        Returns
        -------
        ndarray of shape (n_samples, n_features) or \
                (n_samples, channels, height, width)
            In the units of the training data.
        """
        check_is_fitted(self)
        check_count(n_samples, "n_samples")
        n_per_member = ceil(n_samples / self.net_.n_estimators)
        chosen = self.random_state if random_state is None else random_state
        seed = own_random_state(chosen).randint(2**31 - 1)
        with self._computing():
            samples = self._draw_rows(n_per_member, seed)
        rows = samples.transpose(0, 1).flatten(0, 1)[:n_samples]
        return self._unscaled(rows.numpy(force=True))
