"""What detectors with encoders or generators offer besides scores."""

from __future__ import annotations

from math import ceil, prod

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from .objectives import upper_error
from .utils._random import own_random_state
from .utils._sklearn_compat import check_count
from .utils._state import of_one_state

__all__ = ["EncodingMixin", "ReconstructionMixin", "SamplingMixin"]

#: Training rows that tell the usual errors; the most numbers of their maps.
_ENOUGH, _MOST = 1000, 2**24
_TINY = 1e-12


class EncodingMixin:
    """For detectors with an encoder.

    A child writes ``_encode_batch``, which maps a batch of scaled samples (n, ...) to
    the latent codes (k, n, l) by each of k ensemble members.
    """

    @of_one_state
    def encode(self, X):
        """Map samples to latent codes.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, c, h, w)
            Rows like those of ``fit``.

        Returns
        -------
        ndarray of shape (n, k * l), float32
            The latent codes of the k members of the ensemble (`n_estimators`), each
            of length l, one after the other.

        Raises
        ------
        ValueError
            If a row is so far out that nothing finite comes of it.
        """
        return self._finite(self._compute(self._encode_rows, X))

    def _encode_rows(self, batch):
        return self._encode_batch(batch).transpose(0, 1).flatten(1)

    @staticmethod
    def _finite(outputs):
        """Return the outputs for samples, after a check that they are finite."""
        lost = ~np.isfinite(outputs).reshape(len(outputs), -1).all(1)
        if lost.any():
            raise ValueError(
                f"{lost.sum()} rows of X, the first of them X[{lost.argmax()}], are so "
                "far from those of fit that nothing finite comes of them. Such rows "
                "have the lowest score there is."
            )
        return outputs


class ReconstructionMixin(EncodingMixin):
    """For detectors with an encoder and a decoder.

    A child writes ``_decode_batch`` too, which maps latent codes (k, n, l) to scaled
    samples (n, ...), the mean over the ensemble.
    """

    @of_one_state
    def reconstruct(self, X):
        """Return rows as the model of normal rows has them.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, c, h, w)
            Rows like those of ``fit``.

        Returns
        -------
        ndarray of the shape of `X`
            What the generator makes of the code of each row, in the units of the
            training data.

        Raises
        ------
        ValueError
            If a row is so far out that nothing finite comes of it.
        """
        samples = self._finite(self._compute(self._reconstruct_batch, X))
        return self._unscaled(samples)

    def _reconstruct_batch(self, batch):
        return self._decode_batch(self._encode_batch(batch))

    @of_one_state
    def anomaly_map(self, X):
        """Return the error of reconstruction, pixel by pixel.

        Parameters
        ----------
        X : array-like of shape (n, c, h, w) or (n, c, t, h, w)
            Images or clips like those of ``fit``; with `image_shape`, of shape
            (n, c * h * w) or (n, c * t * h * w).

        Returns
        -------
        ndarray of shape (n, h, w) or (n, t, h, w), float32
            Squared errors of scaled pixels, summed over the channels: high where an
            image is not as a normal one would be.

        Raises
        ------
        ValueError
            If the detector was fitted on tables, or an image is so far out that nothing
            finite comes of it.
        """
        check_is_fitted(self)
        if self.image_shape_ is None:
            raise ValueError(
                f"{type(self).__name__} was fitted on tables, which have no pixels. "
                f"Errors of columns are {self._errors_of_columns()}."
            )
        return self._finite(self._compute(self._squared_errors, X))

    def _errors_of_columns(self):
        """Return the expression for errors that do not depend on units of columns."""
        errors = "(X - detector.reconstruct(X))"
        if isinstance(self.scaler_, StandardScaler):
            errors = f"({errors} / detector.scaler_.scale_)"
        elif self.scaler_ is not None:  # of MinMaxScaler, which multiplies by it
            errors = f"({errors} * detector.scaler_.scale_)"
        return f"{errors} ** 2"

    def _squared_errors(self, batch):
        return (batch - self._reconstruct_batch(batch)).square().sum(1)

    def _check_criterion(self):
        """Check that there is a map, if it is to be the score."""
        if self.criterion == "map" and not self._kind.has_channels:
            raise ValueError(
                "criterion='map' is for images: tables have no pixels. Give "
                "`image_shape` if the columns of X are pixels."
            )

    def _learn_usual_error(self, rows):
        """Keep the mean of the maps of training rows, which ``criterion="map"`` needs.

        It costs little, and the criterion can then be changed on a fitted detector.
        """
        vars(self).pop("usual_error_", None)  # of an earlier fit
        if not self._kind.has_channels:
            return
        n_most = _MOST // prod(self._row_shape[1:])
        some = rows.subset(rows.spread_indices(max(min(_ENOUGH, n_most), 1)))
        maps = self._map_rows(self._squared_errors, some, self._given_shape())
        self.usual_error_ = maps.mean(0, dtype=np.float64).astype(np.float32)

    def _map_score(self, batch):
        """Return minus the logarithm of what maps have where they are highest."""
        self._check_criterion()
        if not hasattr(self, "usual_error_"):
            raise ValueError(
                "criterion='map' needs a fit: this detector is from a file that an "
                "older version wrote."
            )
        usual = torch.from_numpy(self.usual_error_).to(batch.device)
        upper = upper_error(self._squared_errors(batch).float(), usual)
        return -upper.clamp(min=_TINY).log()


class SamplingMixin:
    """For detectors with an ensemble of generators.

    A child writes ``_draw_rows(n, seed)``, which draws n scaled samples of each of k
    generators, (k, n, ...).
    """

    @of_one_state
    def sample(self, n_samples=1, *, random_state=None):
        """Draw rows from the model of normal rows.

        Parameters
        ----------
        n_samples : int, default=1
            How many; each game makes its part of them.
        random_state : int, RandomState instance or None, default=None
            Draws the noise; None stands for the `random_state` of the detector.

        Returns
        -------
        ndarray of shape (n_samples, d) or (n_samples, c, h, w)
            In the units of the training data.
        """
        check_is_fitted(self)
        check_count(n_samples, "n_samples")
        n_per_member = ceil(n_samples / self.net_.n_estimators)
        chosen = self.random_state if random_state is None else random_state
        seed = own_random_state(chosen).randint(2**31 - 1)
        with self._computing(self.net_.device):
            samples = self._draw_rows(n_per_member, seed)
        rows = samples.transpose(0, 1).flatten(0, 1)[:n_samples]
        return self._unscaled(rows.numpy(force=True))
