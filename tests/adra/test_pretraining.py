"""The pretraining of the package's own networks."""

import math
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV

from skanomaly._adra._networks import ResNet26, stacked_mlps
from skanomaly._adra._pretraining import JoinedRows, Rotation
from skanomaly.engine import AlternatingNet, DeviceDataset

from .parts import ignore_missing_corpus, network_of, short, state_of

pytestmark = ignore_missing_corpus


def stages(detector):
    return list(dict.fromkeys(row["stage"] for row in detector.history_))


@pytest.mark.parametrize(
    ("kind", "pretrain", "message"),
    [
        ("images", "supervised", "needs a corpus with classes"),
        ("images", "denoising", "'denoising' is no task for images"),
        ("X", "rotation", "'rotation' is no task for tables"),
        ("X", "supervised", "'supervised' is no task for tables"),
    ],
)
def test_tasks_that_do_not_fit_raise_an_error(kind, pretrain, message, request):
    data = request.getfixturevalue(kind)
    settings = {} if kind == "X" else {"corpus": data[1]}
    with pytest.raises(ValueError, match=message):
        short(pretrain=pretrain, **settings).fit(data if kind == "X" else data[0])


@pytest.mark.parametrize(
    ("kind", "pretrain", "labelled"),
    [
        ("X", "denoising", False),
        ("X", "auto", False),
        ("X", None, False),
        ("images", "rotation", False),
        ("images", "auto", False),
        ("images", "auto", True),
        ("images", "supervised", True),
        ("images", "rotation", True),
        ("images", None, True),
    ],
)
def test_own_networks_are_pretrained(kind, pretrain, labelled, request):
    data = request.getfixturevalue(kind)
    settings = {"pretrain": pretrain}
    if kind == "images":
        labels = np.repeat([5, 11], 20)
        settings["corpus"] = (data[1], labels) if labelled else data[1]
        data = data[0]
    detector = short(**settings).fit(data)
    expected = ["adaptation"] if pretrain is None else ["pretraining", "adaptation"]
    assert stages(detector) == expected
    assert np.ptp(detector.score_samples(data)) > 0
    if pretrain is None:
        untrained = ResNet26(3, 4) if kind == "images" else stacked_mlps(2, 4, 4)
        assert state_of(detector.backbone_).keys() == untrained.state_dict().keys()
        means = [
            v for k, v in state_of(detector.backbone_).items() if "running_mean" in k
        ]
        assert not any(mean.any() for mean in means)


def test_rotations_use_normal_images_and_the_corpus(images, monkeypatch):
    seen = []

    def make_task(self, batch):
        seen.extend(batch.mean((1, 2, 3)).tolist())
        return make(self, batch)

    make = Rotation.make_task
    monkeypatch.setattr(Rotation, "make_task", make_task)
    dark, bright = images[0] // 20, 255 - images[1] // 20
    short(corpus=bright, pretrain_epochs=3).fit(dark)
    assert sum(mean < 0 for mean in seen) == pytest.approx(
        sum(mean > 0 for mean in seen), rel=0.5
    )


def test_joined_rows_are_concatenated():
    tables = [np.random.default_rng(n).normal(size=(n, 3)) for n in (4, 1, 6)]
    joined, whole = (
        JoinedRows([DeviceDataset(t) for t in tables]),
        np.concatenate(tables),
    )
    index = torch.tensor([10, 0, 4, 4, 3, 5, 9, 1])
    assert len(joined) == 11
    torch.testing.assert_close(joined[index], torch.tensor(whole).float()[index])
    other = pickle.loads(pickle.dumps(joined))
    assert torch.equal(other[index], joined[index])


def test_memory_names_functions_that_it_cannot_hash(images, tmp_path):
    detector = short(
        corpus=images[1], augment=lambda batch: batch, memory=str(tmp_path)
    )
    with pytest.raises(ValueError, match=r"With `memory`, .* lambda"):
        detector.fit(images[0])


def test_a_given_network_is_not_pretrained(images):
    backbone = network_of()
    for pretrain in ("auto", "rotation", "supervised", "denoising"):
        detector = short(backbone=backbone, pretrain=pretrain).fit(images[0])
        assert stages(detector) == ["adaptation"]


def pretraining_losses(data, **settings):
    """Return the losses of the pretraining, epoch by epoch."""
    detector = short(**settings, pretrain_epochs=12).fit(data)
    return [
        row["pretraining_loss"]
        for row in detector.history_
        if row["stage"] == "pretraining"
    ]


def test_own_networks_learn_the_classes_of_the_corpus(images):
    rows = np.concatenate([images[1] // 4, 192 + images[1] // 4])
    losses = pretraining_losses(
        images[0], corpus=(rows, np.repeat(["dark", "bright"], 40))
    )
    assert 0.3 < losses[0] < 2
    assert losses[-1] < 0.2
    # Labels that say nothing cannot be learned so soon.
    random = np.random.default_rng(0).integers(0, 2, 80)
    assert pretraining_losses(images[0], corpus=(rows, random))[-1] > 0.35


def test_own_networks_learn_which_way_up_images_are(images):
    upright = images[0].copy()
    upright[:, :, :5] //= 4
    losses = pretraining_losses(upright, augment=None)
    assert 0.7 < losses[0] < 3
    assert losses[-1] < 1.2 < math.log(4)
    # Images that are the same on all sides have no way up.
    plain = np.repeat(np.arange(40, dtype=np.uint8), 360).reshape(40, 3, 10, 12)
    assert pretraining_losses(plain)[-1] > 1.3


def test_own_networks_learn_to_take_noise_away():
    rng = np.random.default_rng(0)
    table = np.repeat(rng.normal(size=(200, 1)), 8, axis=1)
    losses = pretraining_losses(table, n_estimators=1, width=16)
    assert 0.02 < losses[-1] < losses[0] / 3


@pytest.fixture
def runs(monkeypatch):
    """Count the runs of each kind of net."""
    counted, run_epochs = Counter(), AlternatingNet._run_epochs

    def watched(net, *arguments, **options):
        counted[type(net).__name__] += 1
        return run_epochs(net, *arguments, **options)

    monkeypatch.setattr(AlternatingNet, "_run_epochs", watched)
    return counted


@pytest.mark.parametrize(
    ("kind", "task"),
    [("X", "Denoising"), ("images", "Rotation"), ("images", "Supervised")],
)
def test_candidates_of_a_search_share_the_pretraining(
    kind, task, request, tmp_path, runs
):
    data, settings = request.getfixturevalue(kind), {}
    if kind == "images":
        data, corpus = data
        corpus = np.concatenate([corpus, corpus])
        settings["corpus"] = corpus
        if task == "Supervised":
            settings["corpus"] = corpus, np.repeat([0, 1], 40)
    detector = short(memory=str(tmp_path), **settings)
    everything = np.arange(len(data))
    search = GridSearchCV(
        detector,
        {"n_experts": [1, 2, 3]},
        scoring=lambda *_: 0.0,
        cv=[(everything, everything)],
        refit=False,
    )
    search.fit(data)
    assert runs == {task: 1, "ResidualAdaptation": 3}
