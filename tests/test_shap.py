"""shap explains anomaly scores as it is, given `score_samples`."""

import warnings

import numpy as np
import pytest

from skanomaly import AABiGAN, HistoryAD, explain

with warnings.catch_warnings():  # of methods that matplotlib will deprecate
    warnings.simplefilter("ignore")
    shap = pytest.importorskip("shap")

X = np.random.default_rng(0).normal(size=(80, 3))
STRANGE = np.array([[0.0, 6.0, 0.0], [0.1, 0.2, -6.0]])

DETECTORS = [
    HistoryAD(max_epochs=3, detector_epochs=2, width=8, random_state=0),
    AABiGAN(max_epochs=3, width=8, n_estimators=2, random_state=0),
]


@pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning")
@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: type(d).__name__)
def test_shap_explains_the_scores(detector):
    """`test_other_packages.py` has the permutation explainer, which compiles first."""
    detector.fit(X)
    kernel = shap.KernelExplainer(detector.score_samples, X[:20])
    values = kernel.shap_values(STRANGE, silent=True)
    scores, usual = (detector.score_samples(rows) for rows in (STRANGE, X[:20]))
    np.testing.assert_allclose(values.sum(1), scores - usual.mean(), rtol=1e-6)
    # The strange columns, with the sign of the score, which explain turns.
    assert values.argmin(1).tolist() == [1, 2]
    assert explain(detector, STRANGE, X[:20]).argmax(1).tolist() == [1, 2]
