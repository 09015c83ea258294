"""Half precision: one set of weights trains and scores, and detection is as good."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from skorch.callbacks import Callback
from test_common import every_detector, short
from test_engine import SGD
from torch import nn

from skanomaly.engine import AlternatingNet, DeviceDataset, Player
from skanomaly.utils import _device
from skanomaly.utils._process import without_modes

pytestmark = pytest.mark.filterwarnings("ignore:.*(domains|corpus|history)")
half = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
# Long enough to detect something, and no longer.
ON_TABLE = {
    "ADRA": {"pretrain_epochs": 15, "max_epochs": 5},
    "AABiGAN": {"max_epochs": 25},
    "HistoryAD": {"max_epochs": 20},
    "JointEncoderGAN": {"max_epochs": 12},
    "TransferAD": {"max_epochs": 20, "transfer_epochs": 10},
}
ON_IMAGES = {
    "ADRA": {"pretrain_epochs": 3, "max_epochs": 3, "width": 8},
    "AABiGAN": {"max_epochs": 20},
    "HistoryAD": {"max_epochs": 8, "detector_epochs": 4, "width": 16},
    "JointEncoderGAN": {"max_epochs": 4, "width": 16},
    "TransferAD": {"max_epochs": 10, "transfer_epochs": 5, "width": 8},
}


class Line(AlternatingNet):
    """Records the outputs of its weights in training."""

    def configure_optimizers(self):
        return {"line": Player(self.line_, SGD)}

    def training_step(self, batch):
        output = self.line_(batch)
        now = nn.functional.linear(batch.bfloat16(), self.line_.weight.bfloat16())
        self.seen.append((output.tolist(), now.tolist()))
        yield "line", output.float().square().mean()


@pytest.mark.parametrize(
    "around",
    [nullcontext, partial(without_modes, "cpu"), half],
    ids=["nothing", "ours", "the user's"],
)
def test_a_loss_is_computed_with_the_weights_of_the_last_step(around):
    # Inside of another autocast, all steps took the weights of the first.
    net = Line({"line": partial(nn.Linear, 3, 1, bias=False)}, precision="bfloat16")
    net.seen, rows = (
        [],
        DeviceDataset(np.random.default_rng(0).normal(size=(90, 3)) + 1),
    )
    with around():
        net.run(rows, max_epochs=1, epoch_steps=5)
    assert [output for output, _ in net.seen] == [now for _, now in net.seen]
    assert len(net.seen) == 5


class Compare(Callback):
    """Checks at every loss that the present weights are multiplied."""

    def __init__(self):
        self.n_turns, self.stale = 0, set()

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        def training_step(batch):
            for turn in method(batch):
                self.look(net)
                yield turn

        method, net.training_step = net.training_step, training_step

    def on_train_end(self, net, X=None, y=None, **kwargs):
        del net.training_step

    def look(self, net):
        assert torch.is_autocast_enabled("cpu")
        self.n_turns += 1
        for player, (module, *_) in net.configure_optimizers().items():
            for name, weight in module.named_parameters():
                ones = weight.new_ones(weight.shape[-1])
                now = weight.detach().clone() @ ones
                if not torch.equal(weight @ ones, now):
                    self.stale.add((player, name))


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
@pytest.mark.parametrize("around", [nullcontext, half], ids=["nothing", "autocast"])
def test_the_network_that_trains_is_the_one_that_scores(cls, kind, around, request):
    data, compare = request.getfixturevalue(kind), Compare()
    with around():
        settings = {"precision": "bfloat16", "batch_size": 16, "calibration": None}
        short(cls, **settings, callbacks=[compare]).fit(data)
    assert compare.n_turns > 5
    assert not compare.stale


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
@pytest.mark.parametrize("multiplies", [False, True])
def test_auto_halves_the_precision_where_it_is_faster(
    cls, kind, multiplies, request, monkeypatch
):
    monkeypatch.setattr(_device, "_halves", lambda: multiplies)
    data, settings = request.getfixturevalue(kind), {"device": "cpu"}
    net = short(cls, **settings).fit(data).net_
    halving = "HistoryAD", "JointEncoderGAN"
    halved = multiplies and kind == "images" and cls.__name__ in halving
    assert net.precision == ("bfloat16" if halved else "float32")
    given = short(cls, **settings, precision="float32")
    assert given.fit(data).net_.precision == "float32"


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(80, 4))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 1, 9, 12)).astype(np.uint8)


def auroc(detector, X_train, X_test, y_test):
    return roc_auc_score(y_test, detector.fit(X_train).score_samples(X_test))


@every_detector
def test_half_precision_detects_as_well_on_a_table(cls, toy):
    make = partial(cls, n_estimators=1, **ON_TABLE[cls.__name__])
    single, halved = (
        auroc(make(random_state=0, precision=precision), *toy)
        for precision in ("float32", "bfloat16")
    )
    assert single > 0.8
    assert halved > single - 0.03


@every_detector
def test_half_precision_detects_as_well_on_images(cls):
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 1, 8, 8)
    normal, odd = X[y == 0], X[(y == 1) | (y == 4)]
    X_test = np.concatenate([normal[100:], odd])
    y_test = np.repeat([1, 0], [len(normal) - 100, len(odd)])
    make = partial(cls, **ON_IMAGES[cls.__name__], calibration=None)
    single, halved = (
        auroc(make(random_state=0, precision=precision), normal[:100], X_test, y_test)
        for precision in ("float32", "bfloat16")
    )
    assert single > 0.8
    assert halved > single - 0.05
