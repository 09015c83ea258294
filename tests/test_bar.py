"""The bar of ``verbose=1``: detector, stage, losses, the width of a line."""

import io
import re

import numpy as np
import pytest
from test_common import every_detector, short

from skanomaly.engine import Bar

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(no corpus|no domains)",
    "ignore::skanomaly.exceptions.CoverageWarning",
)


class Terminal(io.StringIO):
    """A file that is a terminal."""

    def isatty(self):
        return True


def lines_of(text):
    return [line for line in re.split("[\r\n]", text) if line.strip()]


@pytest.fixture(params=["X", "images"])
def data(request):
    rng = np.random.default_rng(0)
    if request.param == "X":
        return rng.normal(size=(80, 4))
    return rng.integers(0, 256, (40, 1, 16, 16)).astype(np.uint8)


class Plain:
    """A file without ``isatty``."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_a_file_without_isatty_gets_lines(monkeypatch):
    for stream in (Plain(), None):  # None: a program without a console
        monkeypatch.setattr("sys.stderr", stream)
        with Bar("Name", 2) as bar:
            bar.show("stage")
            bar.advance()
            bar.advance()
        assert stream is None or "Name: stage 100%" in stream.text


@every_detector
def test_a_file_gets_few_and_whole_lines(cls, data, capsys):
    # It was one line of a hundred thousand characters, without a name.
    short(cls, verbose=1).fit(data)
    printed = capsys.readouterr().err
    assert "\r" not in printed
    assert printed.endswith("\n")
    lines = printed.splitlines()
    assert 2 <= len(lines) <= 5
    assert all(re.match(rf"{cls.__name__}\b", line) for line in lines)
    assert re.search(r": [\w ]+, epoch (\d+)/\1 100% .*, loss: \w+ -?\d", lines[-1])
    assert max(map(len, lines)) <= 80


@every_detector
def test_a_terminal_of_eighty_columns_is_not_overrun(cls, data, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda fp: (80, 24))
    short(cls, verbose=1).fit(data)
    lines = lines_of(terminal.getvalue())
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert all(line.startswith(cls.__name__) for line in lines)
    *_, last = lines
    assert re.search(r": [\w ]+, epoch (\d+)/\1 100%\|[█#]+\| \d\d:\d\d<\d\d", last)
    assert re.search(r", loss: \w+ -?[\d.e+-]+(, \w+ -?[\d.e+-]+)*\s*$", last)


def test_the_bar_has_as_many_losses_as_fit():
    terminal = Terminal()
    many = {f"player_{k}": 1 / 3 for k in range(9)}
    with Bar("Detector", 2, terminal) as bar:
        bar.bar.dynamic_ncols = lambda file: (80, 24)
        bar.show("stage, epoch 1/2", many)
        bar.advance()
        bar.show("stage, epoch 2/2")
        bar.advance()
    *_, last = lines_of(terminal.getvalue())
    assert "player_0 0.333" in last
    assert "player_4" not in last
    assert len(last.rstrip()) <= 80


def test_lines_come_at_a_given_interval():
    file = io.StringIO()
    with Bar("Detector", 1000, file, line_interval=3600.0) as bar:
        for _ in range(1000):
            bar.advance()
    assert len(file.getvalue().splitlines()) == 2
    with Bar("Detector", 20, file, line_interval=0.0) as bar:
        for _ in range(20):
            bar.advance()
    assert len(file.getvalue().splitlines()) > 10
