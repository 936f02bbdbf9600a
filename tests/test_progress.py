"""Progress: seen within a long first step, gone afterwards, silent where nobody looks. Output where an encoding lacks characters."""

import io
import sys
import time

import pytest

from snipnb import __main__ as package
from snipnb import _progress
from tools import __main__ as tools
from tools import verify


@pytest.fixture
def terminal(tmp_path, monkeypatch):
    """A file in place of the runner's terminal; bars appear after 0.6 seconds."""
    monkeypatch.setenv("SNIPNB_PROGRESS", str(tmp_path / "terminal"))
    monkeypatch.setattr(_progress, "DELAY_SECONDS", 0.6)
    yield tmp_path / "terminal"
    _progress.progress_stream().close()


def test_a_bar_appears_within_the_first_long_step_and_goes(terminal):
    steps, until = iter(_progress.track([3, 4], "counting")), time.monotonic() + 60
    assert next(steps) == 3
    while "counting:   0%" not in terminal.read_text() and time.monotonic() < until:
        time.sleep(0.1)
    assert "0/2" in terminal.read_text()
    time.sleep(0.6)  # a bar is drawn twice a second at most
    assert next(steps) == 4
    assert "1/2" in terminal.read_text()
    assert list(steps) == []
    assert not terminal.read_bytes().rsplit(b"\r", 1)[1].strip()  # its line is blank again


def test_a_short_loop_shows_nothing(terminal):
    assert list(_progress.track(range(100), "counting")) == list(range(100))
    time.sleep(1)
    assert terminal.read_text() == ""


def test_a_loop_that_is_left_early_shows_nothing_later(terminal):
    for _ in _progress.track(range(100), "counting"):
        break
    time.sleep(1)
    assert terminal.read_text() == ""


def test_silence_gives_the_items_themselves(monkeypatch):
    monkeypatch.setenv("SNIPNB_PROGRESS", "0")
    items = [1, 2]
    assert _progress.track(items, "counting") is items


def test_characters_that_the_terminal_lacks_do_not_end_a_command(monkeypatch):
    def say(_):
        print("s_κ")

    monkeypatch.setitem(package._COMMANDS, "data", say)
    monkeypatch.setitem(tools._COMMANDS, "status", say)
    monkeypatch.setattr(verify.ledger, "verify", lambda folder, **_: {"C6": ["s_κ"]})
    for main, arguments, lines in ((package.main, ["data"], 1), (tools.main, ["status"], 1), (verify.main, [], 2)):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out := io.BytesIO(), encoding="ascii"))
        main(arguments)
        sys.stdout.flush()
        assert out.getvalue().count(b"s_?") == lines
