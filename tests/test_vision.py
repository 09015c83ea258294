"""Networks of timm as backbones: which fit, why others do not, and equal bits."""

import numpy as np
import pytest

from skanomaly import ADRA

timm = pytest.importorskip("timm")
#: Small networks of each family; `vit3` and others are for images of 160 pixels alone.
NAMES = timm.list_models("test_*")
OF_160 = ["test_coatnet", "test_maxvit", "test_vit3", "test_vit_relpos"]

pytestmark = pytest.mark.filterwarnings("ignore")


def detector(name):
    network = timm.create_model(name, pretrained=False, num_classes=0)
    return ADRA(backbone=network, max_epochs=1, batch_size=8, random_state=0)


def images(side):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (24, 3, side, side)).astype(np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_the_same_score_alone(name):
    X = images(160)
    fitted = detector(name).fit(X)
    scores = fitted.score_samples(X)
    alone = [fitted.score_samples(X[k : k + 1])[0] for k in range(6)]
    np.testing.assert_array_equal(scores[:6], alone)
    np.testing.assert_array_equal(scores[3:6], fitted.score_samples(X[3:6]))


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(OF_160)))
def test_smaller_images_fit(name):
    X = images(64)
    assert np.isfinite(detector(name).fit(X).score_samples(X)).all()


@pytest.mark.parametrize("name", sorted(set(NAMES) & set(OF_160)))
def test_networks_that_need_a_size_say_so(name):
    with pytest.raises(ValueError, match="input_size enlarges images"):
        detector(name).fit(images(64))
    enlarged = detector(name).set_params(input_size=160).fit(images(64))
    assert np.isfinite(enlarged.score_samples(images(64))).all()
