"""Samples that come in batches, or from files larger than the memory."""

import subprocess
import sys
from itertools import count, islice

import numpy as np
import pandas as pd
import pytest
from test_common import every_detector, short

from skanomaly import AABiGAN

pytestmark = [
    pytest.mark.filterwarnings("ignore::skanomaly.exceptions.CoverageWarning"),
    pytest.mark.filterwarnings("ignore:TransferAD was given no domains:UserWarning"),
    pytest.mark.filterwarnings("ignore:ADRA was given no corpus:UserWarning"),
]


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(80, 4))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 1, 9, 12)).astype(np.uint8)


@every_detector
@pytest.mark.parametrize("kind", ["X", "images"])
def test_scores_of_batches_are_those_of_one_array(cls, kind, request):
    data = request.getfixturevalue(kind)
    detector = short(cls).fit(data)
    parts = [data[:1], data[1:30], data[30:30], data[30:]]
    found = list(detector.score_batches(iter(parts)))
    assert [len(scores) for scores in found] == [len(part) for part in parts]
    assert {scores.dtype for scores in found} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(np.concatenate(found), detector.score_samples(data))


def test_batches_are_read_one_at_a_time(X):
    read = []

    def without_end():
        for k in count():
            read.append(k)
            yield X[k : k + 2]

    scores = short(AABiGAN).fit(X).score_batches(without_end())
    assert not read
    assert len(list(islice(scores, 3))) == 3
    assert read == [0, 1, 2]


def test_a_later_fit_does_not_change_scores(X):
    detector = short(AABiGAN).fit(X)
    expected, scores = detector.score_samples(X), detector.score_batches([X, X])
    next(scores)
    detector.fit(X[:40])
    np.testing.assert_array_equal(next(scores), expected)


def test_errors_name_the_batch(X):
    detector = short(AABiGAN).fit(X)
    scores = detector.score_batches([X, X[:, :3], X])
    next(scores)
    with pytest.raises(ValueError, match="X has 3 features") as error:
        next(scores)
    assert error.value.__notes__ == ["This is an error of batch 1, counted from 0."]


@pytest.mark.parametrize("single", [np.ones((3, 4)), pd.DataFrame(np.ones((3, 4)))])
def test_a_single_array_is_refused(single, X):
    detector = short(AABiGAN).fit(X)
    with pytest.raises(TypeError, match="Use score_samples for a single one"):
        detector.score_batches(single)


@pytest.mark.parametrize(
    ("n_samples", "shown"), [(80, "AABiGAN 100%"), (None, "AABiGAN 80 ")]
)
def test_a_bar_counts_samples(n_samples, shown, X, capsys):
    detector = short(AABiGAN).fit(X)
    parts = np.array_split(X, 5)
    list(detector.score_batches(parts))
    assert not capsys.readouterr().err
    list(detector.score_batches(parts, n_samples=n_samples, verbose=1))
    assert shown in capsys.readouterr().err


def test_batches_of_parquet_and_arrow(X, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    frame = pd.DataFrame(X, columns=list("abcd"))
    table, path = arrow.Table.from_pandas(frame), tmp_path / "samples.parquet"
    parquet.write_table(table, path)
    detector = short(AABiGAN).fit(table)
    expected = detector.score_samples(frame)
    assert list(detector.feature_names_in_) == list("abcd")
    np.testing.assert_array_equal(detector.score_samples(table), expected)
    batches = parquet.ParquetFile(path).iter_batches(batch_size=30)
    found = list(detector.score_batches(batches))
    assert [len(scores) for scores in found] == [30, 30, 20]
    np.testing.assert_array_equal(np.concatenate(found), expected)
    with_text = table.append_column("e", arrow.array(["x"] * 80))
    with pytest.raises(ValueError, match="text or categories in 'e'"):
        short(AABiGAN).fit(with_text)


# Memory -------------------------------------------------------------------------------

MEASURE = """
import sys, warnings
import numpy as np
import torch
from resource import RLIMIT_DATA, setrlimit

warnings.simplefilter("ignore")
torch.set_num_threads(1)
from skanomaly import AABiGAN
from skanomaly.engine import _dataset

_dataset.HOST_BYTES = 0  # stream, as data of more than 4 GiB are
path, what = sys.argv[1:]
X = np.memmap(path, np.float32, "r").reshape(-1, 100)
detector = AABiGAN(max_epochs=1, batch_size=4096, n_estimators=1, width=4)
detector.set_params(calibration=None).fit(X[:5000]).score_samples(X[:5000])

def used():
    with open("/proc/self/status") as file:
        return next(int(row.split()[1]) for row in file if row.startswith("VmData"))

limit = used() * 1024 + 300 * 2**20
setrlimit(RLIMIT_DATA, (limit, limit))
if what == "copy":
    X.copy()
elif what == "fit":
    detector.fit(X)
else:
    detector.score_samples(X)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("what", ["fit", "score_samples", "copy"])
def test_a_memory_map_is_not_copied(what, tmp_path):
    """400 MB are fitted and scored where 300 MB more cannot be allocated."""
    path = tmp_path / "samples"
    rng, part = np.random.default_rng(0), 20_000
    with open(path, "wb") as file:
        rows = rng.normal(size=(part, 100)).astype(np.float32)
        for _ in range(50):
            file.write(rows.tobytes())
    script = [sys.executable, "-c", MEASURE, str(path), what]
    done = subprocess.run(script, check=False, capture_output=True, text=True)
    path.unlink()
    assert (done.returncode != 0) == (what == "copy"), done.stderr
    assert what != "copy" or "Unable to allocate" in done.stderr
