"""Latent codes: encode and transform, and back by inverse_transform."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_common import DETECTORS, short

pytestmark = [
    pytest.mark.filterwarnings("ignore:No sample is taken as a known:UserWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
    pytest.mark.filterwarnings("ignore:ADRA was given no corpus:UserWarning"),
]

ENCODERS = [cls for cls in DETECTORS if hasattr(cls, "encode")]
DECODERS = [cls for cls in DETECTORS if hasattr(cls, "reconstruct")]

every_encoder = pytest.mark.parametrize("cls", ENCODERS, ids=lambda c: c.__name__)
every_decoder = pytest.mark.parametrize("cls", DECODERS, ids=lambda c: c.__name__)


def samples_of(kind):
    rng = np.random.default_rng(0)
    if kind == "table":
        return rng.normal(size=(60, 4))
    n_channels = 1 if kind == "grey" else 3
    return rng.integers(0, 256, (40, n_channels, 9, 12)).astype(np.uint8)


def test_detectors_with_an_encoder_or_a_decoder():
    names = {cls.__name__ for cls in ENCODERS}
    assert names == {"ADRA", "AABiGAN", "JointEncoderGAN", "TransferAD"}
    assert {cls.__name__ for cls in DECODERS} == names - {"ADRA"}
    for cls in DETECTORS:
        assert hasattr(cls, "transform") == (cls in ENCODERS)
        assert hasattr(cls, "inverse_transform") == (cls in DECODERS)


@every_encoder
@pytest.mark.parametrize("kind", ["table", "grey"])
def test_transform_is_encode(cls, kind):
    X = samples_of(kind)
    detector = short(cls)
    codes = detector.fit_transform(X)
    assert codes.dtype == np.float32
    np.testing.assert_array_equal(codes, detector.encode(X))
    np.testing.assert_array_equal(codes, clone(detector).fit(X).transform(X))
    names = detector.get_feature_names_out()
    assert len(names) == codes.shape[1]
    assert names[0] == f"{cls.__name__.lower()}0"


@every_decoder
@pytest.mark.parametrize("kind", ["table", "grey", "colour"])
def test_decoded_codes_are_reconstructions(cls, kind):
    X = samples_of(kind)
    detector = short(cls, n_estimators=2).fit(X)
    codes, expected = detector.transform(X), detector.reconstruct(X)
    decoded = detector.inverse_transform(codes)
    assert (decoded.dtype, decoded.shape) == (expected.dtype, X.shape)
    np.testing.assert_array_equal(decoded, expected)
    alone = detector.inverse_transform(codes[:1].astype(np.float64))
    np.testing.assert_array_equal(alone, expected[:1])
    other = detector.inverse_transform(codes + 1)
    assert not np.array_equal(other, expected)


@every_decoder
def test_flat_images_come_back_flat(cls):
    X = samples_of("grey").reshape(40, -1)
    detector = short(cls, image_shape=(1, 9, 12)).fit(X)
    decoded = detector.inverse_transform(detector.transform(X))
    np.testing.assert_array_equal(decoded, detector.reconstruct(X))
    assert decoded.shape == X.shape


@every_decoder
def test_invalid_codes_raise_an_error(cls):
    X = samples_of("table")
    with pytest.raises(NotFittedError):
        short(cls).inverse_transform(X)
    detector = short(cls).fit(X)
    codes = detector.transform(X)
    with pytest.raises(ValueError, match=rf"3 columns; .* have {codes.shape[1]}"):
        detector.inverse_transform(codes[:, :3].repeat(3, 1)[:, :3])
    with pytest.raises(ValueError, match="NaN"):
        detector.inverse_transform(np.full_like(codes, np.nan))


@every_encoder
def test_data_frames_of_codes(cls):
    frame = pd.DataFrame(samples_of("table"), columns=list("abcd")).iloc[::-1]
    detector = short(cls).set_output(transform="pandas").fit(frame)
    codes = detector.transform(frame)
    assert list(codes.columns) == list(detector.get_feature_names_out())
    assert list(codes.index) == list(frame.index)
    np.testing.assert_array_equal(codes, detector.encode(frame))
    if hasattr(cls, "inverse_transform"):
        decoded = detector.inverse_transform(codes)
        np.testing.assert_array_equal(decoded, detector.reconstruct(frame))


@every_encoder
def test_a_detector_is_a_step_of_a_pipeline(cls):
    X = samples_of("table")
    y = (X[:, 0] > 0).astype(int)
    pipeline = make_pipeline(StandardScaler(), short(cls), LogisticRegression())
    assert pipeline.fit(X, y).predict_proba(X).shape == (60, 2)
    name = cls.__name__.lower()
    assert pipeline[:-1].get_feature_names_out()[0] == f"{name}0"
    search = GridSearchCV(pipeline, {f"{name}__batch_size": [16, 32]}, cv=2)
    assert search.fit(X, y).best_score_ > 0
    ends = make_pipeline(StandardScaler(), short(cls)).fit(X)
    np.testing.assert_array_equal(ends.transform(X), pipeline[:-1].transform(X))
    if hasattr(cls, "inverse_transform"):
        assert ends.inverse_transform(ends.transform(X)).shape == X.shape
