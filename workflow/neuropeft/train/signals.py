"""Leave in good order when the cluster asks to."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

# What a training run exits with after it has saved its state on a signal: start it again and it goes on.
REQUEUE_EXIT_CODE = 85
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass
class StopRequest:
    """Which of `SIGNALS` have come."""

    signals: set[signal.Signals] = field(default_factory=set)

    @property
    def received(self) -> bool:
        """Whether any has come."""
        return bool(self.signals)


_active: StopRequest | None = None


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within the context, note SIGTERM and SIGUSR1 instead of dying of them.

    The loop looks at `received` after each step. A context within another has the same request, so that a
    signal which comes while one cell ends is not lost on the next. Outside the main thread, where Python
    allows no handlers, nothing is caught.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active or StopRequest()
        return
    request = _active = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.signals.add(signal.Signals(number))
        name = signal.Signals(number).name
        print(f"{name}: finishing this step, then saving", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        _active = None
        for number, handler in before.items():
            signal.signal(number, handler)
