"""A sample has the same results, to the bit, in any batch."""

from threading import get_ident

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_common import DETECTORS, short
from torch import nn

from skanomaly import HistoryAD
from skanomaly.engine import DeviceDataset
from skanomaly.utils import _batch_invariance, _row_plans
from skanomaly.utils._batch_invariance import (
    _COMPUTED,
    BatchInvariance,
    map_batches,
)
from skanomaly.utils._stacked_product import stacked_product

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(no corpus|no domains)",
    "ignore::skanomaly.exceptions.CoverageWarning",
)

SIZES = [1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 48, 65]


def in_batches(function, x, axis=0):
    """Apply a function in the mode to batches of several sizes, first and last rows."""
    for n in SIZES:
        for start in (0, x.shape[axis] - n):
            batch = x.narrow(axis, start, n).clone(memory_format=torch.preserve_format)
            with torch.inference_mode(), BatchInvariance() as mode:
                result = function(batch)
            assert not mode.unknown
            yield start, n, result


def assert_invariant(function, x, axis=0):
    with torch.inference_mode(), BatchInvariance():
        whole = function(x)
    with torch.inference_mode():
        plain = function(x)
    torch.testing.assert_close(whole, plain, rtol=1e-4, atol=1e-5)
    for start, n, result in in_batches(function, x, axis):
        assert torch.equal(result, whole.narrow(axis, start, n)), (start, n)


LAYERS = {
    **{
        f"linear {i}-{o}": (nn.Linear(i, o), (i,))
        for i in (5, 30, 64)
        for o in (1, 2, 7, 8, 33, 64)
    },
    "linear of patches": (nn.Linear(12, 9), (4, 12)),
    "convolution": (nn.Conv2d(3, 8, 3, 1, 1), (3, 12, 12)),
    "convolution of one channel": (nn.Conv2d(1, 8, 3, 1, 1), (1, 14, 14)),
    "pointwise convolution": (nn.Conv2d(32, 48, 1), (32, 2, 2)),
    "convolution with stride": (nn.Conv2d(8, 16, 4, 2, 1), (8, 8, 8)),
    "grouped convolution": (nn.Conv2d(8, 8, 3, 1, 1, groups=8), (8, 8, 8)),
    "transposed convolution": (nn.ConvTranspose2d(16, 3, 4, 2, 1), (16, 4, 4)),
    "convolution of clips": (nn.Conv3d(1, 4, 3, 1, 1), (1, 4, 8, 8)),
    "convolution of series": (nn.Conv1d(2, 8, 5, 1, 2), (2, 20)),
    "normalised convolution": (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(inplace=True)),
        (3, 9, 9),
    ),
    "layers of a user": (
        nn.Sequential(nn.Linear(9, 20), nn.LayerNorm(20), nn.GELU(), nn.Linear(20, 3)),
        (9,),
    ),
}


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, n_threads):
    layer, shape = LAYERS[name]
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        assert_invariant(layer.eval(), torch.randn(65, *shape))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last])
def test_images_in_both_memory_formats(format_):
    layer = nn.Conv2d(8, 16, 3, 2, 1).to(memory_format=format_)
    assert_invariant(layer, torch.randn(65, 8, 9, 9).contiguous(memory_format=format_))


UNARY = [
    name
    for name in _COMPUTED
    if _COMPUTED[name] is _COMPUTED["sigmoid"] and name[-1] != "_"
]


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_single_numbers(name):
    module = next(
        m
        for m in (torch, F)
        if hasattr(m, {"log_sigmoid": "logsigmoid"}.get(name, name))
    )
    function = getattr(module, {"log_sigmoid": "logsigmoid"}.get(name, name))
    x = torch.rand(65, 3) * 0.8 + 0.1
    arguments = [1.7] if name == "pow" else []
    if name == "acosh":
        x = x + 1
    assert_invariant(lambda batch: function(batch, *arguments), x)


@pytest.mark.parametrize("mask", [None, "common", "of samples", "by name", "causal"])
def test_attention(mask):
    x, common = torch.randn(65, 2, 9, 12), torch.randn(2, 9, 9)

    def attention(batch):
        parts = batch[..., :4], batch[..., 4:8], batch[..., 8:]
        given = {
            None: {},
            "by name": {"attn_mask": common},
            "causal": {"is_causal": True, "scale": 0.3},
        }
        if mask in given:
            return F.scaled_dot_product_attention(*parts, **given[mask])
        own = common if mask == "common" else parts[0] @ parts[0].mT
        return F.scaled_dot_product_attention(*parts, own)

    assert_invariant(attention, x)


def test_in_place_functions_change_their_argument():
    x = torch.randn(3, 5)
    copy = x.clone()
    with BatchInvariance():
        result = x.sigmoid_()
        silu = F.silu(copy, inplace=True)
    assert result is x
    assert silu is copy
    torch.testing.assert_close(copy, F.silu(torch.logit(x)))


@pytest.mark.parametrize("k", [2, 5, 8, 33])
@pytest.mark.parametrize("name", ["sum", "mean", "logsumexp", "std"])
def test_averages_of_members(name, k):
    x = torch.randn(65, k)

    def of_members(batch):
        return getattr(torch, name)(batch.T, 0)

    def with_two_axes(batch):
        return getattr(torch, name)(batch.T[..., None].contiguous(), 0)[..., 0]

    assert_invariant(of_members, x)
    assert_invariant(with_two_axes, x)


def test_arguments_under_other_names_are_not_lost():
    x, weight, out = torch.randn(3, 5), torch.randn(5, 2), torch.empty(3, 2)
    with BatchInvariance() as mode:
        by_name = torch.mm(input=x, mat2=weight)
        torch.mm(x, weight, out=out)
        mean = x.mean(axis=1, keepdims=True)
    assert mode.unknown == {"mm", "mean"}
    torch.testing.assert_close(by_name, x @ weight)
    torch.testing.assert_close(out, x @ weight)
    torch.testing.assert_close(mean, x.mean(1, keepdim=True))


def test_errors_of_torch_are_those_of_torch():
    with BatchInvariance(), pytest.raises(RuntimeError, match="shapes cannot be mult"):
        F.linear(torch.randn(3, 5), torch.randn(2, 4))
    with BatchInvariance(), pytest.raises(TypeError, match="no_argument"):
        torch.mm(torch.randn(3, 5), torch.randn(5, 2), no_argument=1)


@pytest.mark.parametrize(
    "layer", [nn.Linear(5, 2), nn.Conv2d(5, 2, 3), nn.Sigmoid(), nn.GELU()]
)
def test_no_samples(layer):
    x = torch.randn(0, 5, 4, 4) if isinstance(layer, nn.Conv2d) else torch.randn(0, 5)
    with torch.inference_mode(), BatchInvariance():
        result = layer(x)
    assert result.shape == layer(x).shape


def test_averages_keep_axes():
    x = torch.randn(3, 4, 5, 6)
    for axes in [(0,), (1, 2), (0, 2), (3,), (2, 3), (0, 3)]:
        with BatchInvariance() as mode:
            kept, dropped = x.mean(axes, keepdim=True), x.mean(axes)
        assert not mode.unknown
        torch.testing.assert_close(kept, x.mean(axes, keepdim=True))
        torch.testing.assert_close(dropped, x.mean(axes))


@pytest.mark.parametrize("o", [1, 2, 5, 9, 64])
def test_products_of_ensembles(o):
    weight, bias = torch.randn(8, 30, o), torch.randn(8, 1, o)
    x = torch.randn(8, 65, 30)
    assert_invariant(lambda batch: stacked_product(batch, weight, bias), x, axis=1)
    assert_invariant(lambda batch: stacked_product(batch, weight), x, axis=1)
    one = x[:1].expand(8, -1, -1)
    assert_invariant(lambda batch: stacked_product(batch, weight, bias), one, axis=1)


def test_products_of_two_batches():
    x = torch.randn(65, 4, 6)
    assert_invariant(lambda batch: batch @ batch.mT, x)
    assert_invariant(lambda batch: torch.baddbmm(batch, batch @ batch.mT, batch), x)


def test_a_layer_that_depends_on_its_batch_is_found():
    """As an algorithm that is chosen by the number of rows."""

    def compute(rows, others):
        return rows[0] * (1 + 1e-3 * (len(rows[0]) != 16))

    function = _row_plans.RowFunction(compute)
    for n in (1, 3, 16, 40):
        x = torch.randn(n, 2)
        got = _row_plans.by_rows(function, [x], [], "depends", n)
        assert torch.equal(got, x)


def test_a_layer_in_which_the_place_matters_is_found():
    def compute(rows, others):
        return rows[0] + torch.arange(len(rows[0]))[:, None] * 1e-3

    function = _row_plans.RowFunction(compute)
    x = torch.randn(9, 2)
    assert torch.equal(_row_plans.by_rows(function, [x], [], "place"), x)


def test_zero_weights_do_not_hide_a_difference():
    layer = nn.Linear(30, 1)
    nn.init.zeros_(layer.weight)
    _row_plans._PLANS.clear()
    for _ in in_batches(layer, torch.randn(65, 30)):
        pass
    nn.init.normal_(layer.weight)
    assert_invariant(layer, torch.randn(65, 30))


def test_unknown_functions_get_batches_of_one_size():
    sizes = []

    def unknown(batch):
        sizes.append(len(batch))
        return torch.einsum("nd,nd->n", batch, batch)

    X = np.random.default_rng(0).normal(size=(70, 3))
    rows = DeviceDataset(X)
    got = map_batches(unknown, rows, 32)
    assert sizes == [32] * 4  # the first is computed again
    np.testing.assert_allclose(got, (X**2).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(
        map_batches(unknown, DeviceDataset(X[9:]), 32), got[9:]
    )


class Bilinear(nn.Module):
    """A critic with functions that are not known."""

    def __init__(self, shape):
        super().__init__()
        self.layer = nn.Bilinear(shape[0], shape[0], 1)

    def forward(self, x):
        return self.layer(x, x)


def test_networks_of_users_with_unknown_functions():
    X = np.random.default_rng(0).normal(size=(60, 5))
    architecture = {"critic": Bilinear}
    detector = HistoryAD(architecture=architecture, max_epochs=1, random_state=0)
    scores = detector.fit(X).score_samples(X)
    alone = [detector.score_samples(X[k : k + 1])[0] for k in range(9)]
    np.testing.assert_array_equal(alone, scores[:9])


@pytest.mark.parametrize("kind", ["table", "images"])
@pytest.mark.parametrize("cls", DETECTORS)
def test_networks_of_the_package_call_known_functions(cls, kind, monkeypatch):
    shape = (5,) if kind == "table" else (1, 9, 9)
    X = np.random.default_rng(0).normal(size=(90, *shape)).astype(np.float32)
    X = X if kind == "table" else X.clip(-1, 1)

    def refuse(*_):
        raise AssertionError("unknown functions")

    monkeypatch.setattr(_batch_invariance, "_of_constant_size", refuse)
    detector = short(cls).fit(X)
    scores = detector.score_samples(X)
    for start, n in [(0, 1), (7, 2), (4, 5), (11, 33), (1, 89)]:
        part = detector.score_samples(X[start : start + n])
        np.testing.assert_array_equal(part, scores[start : start + n])
    methods = ("encode", "reconstruct", *(["anomaly_map"] if kind == "images" else []))
    for name in methods:
        if hasattr(detector, name):
            whole = getattr(detector, name)(X)
            part = getattr(detector, name)(X[3:7])
            np.testing.assert_array_equal(part, whole[3:7])


def test_scores_of_threads_have_the_bits_of_one_thread(monkeypatch):
    X = np.random.default_rng(0).normal(size=(5000, 6))
    detector = HistoryAD(max_epochs=1, random_state=0).fit(X[:100])
    seen = []

    def score_batch(self, batch):
        seen.append(get_ident())
        return HistoryAD._score_batch(self, batch)

    detector.__class__ = type("Traced", (HistoryAD,), {"_score_batch": score_batch})
    before = torch.get_num_threads()
    scores = {}
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            seen.clear()
            scores[n_threads] = detector.score_samples(X)
            assert torch.get_num_threads() == n_threads
            assert (len(set(seen)) > 1) == (n_threads > 1)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(scores[1], scores[2])


def test_batches_of_many_sizes_need_few_comparisons():
    X = np.random.default_rng(0).normal(size=(300, 6))
    detector = HistoryAD(max_epochs=1, random_state=0).fit(X)
    _row_plans._PLANS.clear()
    detector.score_samples(X[:1])
    n_products = len(_row_plans._PLANS)
    for n in range(1, 301, 7):
        detector.score_samples(X[:n])
    # 1 to 16 one by one, then eight sizes between powers of two.
    assert len(_row_plans._PLANS) <= n_products * (16 + 5 * 8)
    expected = {n: _batch_invariance._rounded(n) for n in (1, 15, 17, 100, 256, 257)}
    assert expected == {1: 1, 15: 15, 17: 18, 100: 104, 256: 256, 257: 288}
