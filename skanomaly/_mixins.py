"""Methods of detectors with encoders, decoders or generators."""

from __future__ import annotations

from itertools import product
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
    from ._base import BatchFunction
else:
    Detector = object

__all__ = ["EncodingMixin", "OcclusionMixin", "ReconstructionMixin", "SamplingMixin"]

#: Maximum number of training samples for the usual error or image, and of their pixels.
_MAX_SAMPLES, _MAX_PIXELS = 1000, 2**24
_TINY = 1e-12
#: Cells along a side, of which a patch has two; patches that cover a pixel.
_CELLS, _PATCHES_PER_PIXEL = 8, 4


class OutputMixin(Detector):
    """For detectors with outputs besides scores, which have to be finite."""

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

    def _pixels(
        self, function: BatchFunction, X: ArrayLike, n_passes: int = 1
    ) -> NDArray[np.float32]:
        """Apply a function that maps batches of images to maps."""
        check_is_fitted(self)
        if self.image_shape_ is None:
            raise ValueError(
                f"{type(self).__name__} was fitted on tables, which have no pixels. "
                f"{self._instead_of_maps()}"
            )
        return self._finite(self._compute(function, X, n_passes))

    def _instead_of_maps(self) -> str:
        """Return advice for a user who asks for the maps of tables."""
        raise NotImplementedError


class EncodingMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin, OutputMixin):
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
        return self._pixels(self._squared_errors, X)

    def _instead_of_maps(self) -> str:
        return f"Errors of columns are {self._errors_of_columns()}."

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
        some = rows.subset(rows.spread_indices(_most_samples(self._row_shape)))
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


class OcclusionMixin(OutputMixin):
    """For detectors without reconstructions, whose maps come from changed images."""

    @on_shallow_copy
    def anomaly_map(self, X: ArrayLike) -> NDArray[np.float32]:
        r"""Compute how much each pixel's surroundings add to the anomaly score.

        Patches of the image, :math:`B`, take the pixels of `usual_image_`, the mean of
        training images, :math:`u`. If the image then looks more normal, the patch was
        anomalous. The value of pixel :math:`p` is the mean rise of the score s over the
        four patches that cover it (occlusion [1]_):

        .. math:: m_p(x) = \frac{1}{4} \sum_{B \ni p} s(x_{B \leftarrow u}) - s(x)

        There are 81 patches, each a quarter as high and wide as the image, an eighth
        apart, so that a map costs as much as scoring 82 images. It cannot show a defect
        that hardly changes the score.

        Parameters
        ----------
        X : array-like of shape (n_samples, channels, height, width)
            Images like those of ``fit``; with `image_shape`, of shape
            (n_samples, n_features).

        Returns
        -------
        ndarray of shape (n_samples, height, width), float32
            In units of ``score_samples``: positive where the image is more anomalous
            than the usual one, negative where it is more normal.

        Raises
        ------
        ValueError
            If the detector was fitted on tables, or an image is so far out that its
            map is not finite.

        References
        ----------
        .. [1] M. D. Zeiler and R. Fergus, "Visualizing and understanding convolutional
           networks", ECCV 2014, section 2.2.
        """
        return self._pixels(self._rises, X, n_passes=1 + (1 + _CELLS) ** 2)

    def _instead_of_maps(self) -> str:
        return "skanomaly.explain has contributions of their columns."

    def _learn_usual_image(self, rows: DeviceDataset) -> None:
        """Keep the mean of training images, for maps."""
        vars(self).pop("usual_image_", None)  # of an earlier fit
        if self._kind.has_channels:
            some = rows[rows.spread_indices(_most_samples(self._row_shape))]
            self.usual_image_ = some.float().mean(0).numpy(force=True)

    def _rises(self, batch: Tensor) -> Tensor:
        """Compute the mean rise of the score by the patches at each pixel."""
        if not hasattr(self, "usual_image_"):
            raise ValueError(
                "anomaly_map needs a fit: this detector is from a file that an older "
                "version wrote."
            )
        usual = torch.from_numpy(self.usual_image_).to(batch)
        before = self._score_batch(batch)
        maps = batch.new_zeros(len(batch), *batch.shape[2:])
        for rows, columns in product(*map(_spans, batch.shape[2:])):
            changed = batch.clone()
            changed[:, :, rows, columns] = usual[:, rows, columns]
            rise = (self._score_batch(changed) - before) / _PATCHES_PER_PIXEL
            maps[:, rows, columns] += rise[:, None, None]
        return maps


def _spans(side: int) -> list[slice]:
    """Return the places of patches along a side; each pixel is in two of them."""
    n = min(_CELLS, side)
    edges = [0, *(round(k * side / n) for k in range(n + 1)), side]
    return [slice(*pair) for pair in zip(edges[:-2], edges[2:], strict=True)]


def _most_samples(shape: tuple[int, ...]) -> int:
    """Return the number of training samples for a mean of images or maps."""
    return max(min(_MAX_SAMPLES, _MAX_PIXELS // prod(shape[1:])), 1)


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
