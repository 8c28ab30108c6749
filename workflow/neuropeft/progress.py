"""Progress of long work: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0
BAR_WIDTH = 30


def track(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield `items`, telling on stderr how many of `total` are done and how long the rest may take."""
    started = last_shown = time.monotonic()
    on_terminal = sys.stderr.isatty()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if on_terminal or done == total or now - last_shown >= SECONDS_BETWEEN_LINES:
            last_shown = now
            _show(label, done, total, now - started, on_terminal)


def _show(label: str, done: int, total: int, seconds: float, on_terminal: bool) -> None:
    left = seconds / done * (total - done)
    text = f"{label}: {done}/{total}, {seconds:.0f} s so far, about {left:.0f} s left"
    if on_terminal:
        filled = BAR_WIDTH * done // max(total, 1)
        end = "\n" if done == total else ""
        print(f"\r[{'#' * filled:<{BAR_WIDTH}}] {text} ", end=end, file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)
