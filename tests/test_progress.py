"""Progress is told on stderr: a bar on a terminal, and in a log a line now and then."""

import io
import sys

import pytest

from neuropeft.progress import track


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch):
    """Return what gives what is told of ten items that take three seconds each."""

    def work(stream: io.StringIO) -> str:
        clock = [100.0]
        monkeypatch.setattr("time.monotonic", lambda: clock[0])
        monkeypatch.setattr(sys, "stderr", stream)
        seen = []
        for item in track(iter("abcdefghij"), 10, "scans"):
            clock[0] += 3
            seen.append(item)
        monkeypatch.undo()
        assert "".join(seen) == "abcdefghij"
        return stream.getvalue()

    return work


def test_a_log_gets_a_line_every_ten_seconds_and_at_the_end(told) -> None:
    assert told(io.StringIO()).splitlines() == [
        "scans: 4/10, 12 s so far, about 18 s left",
        "scans: 8/10, 24 s so far, about 6 s left",
        "scans: 10/10, 30 s so far, about 0 s left",
    ]


def test_a_terminal_gets_a_bar_that_grows_in_its_place(told) -> None:
    shown = told(Screen())
    assert (shown.count("\n"), shown[-1]) == (1, "\n"), "the next line begins below the bar"
    _, *bars = shown.split("\r")
    assert [bar.count("#") for bar in bars] == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert "scans: 5/10, 15 s so far, about 15 s left" in bars[4]
