"""Ctrl-C and SIGTERM as a wish that the demo looks at, instead of an exception out of nowhere.

So no signal falls between starting a process and noting that it runs, and a second one does not break the ending.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """Somebody wants the demo to end."""


class Stop:
    """Whether somebody wants the demo to end."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def request(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Ask for the end; a signal handler."""
        if not self._event.is_set():
            self._event.set()
            os.write(sys.stderr.fileno(), b"\nStopping: ending all processes ...\n")

    @property
    def requested(self) -> bool:
        """Whether the end was asked for."""
        return self._event.is_set()

    def check(self) -> None:
        """Raises `Stopped` when the end was asked for."""
        if self.requested:
            raise Stopped

    def wait(self) -> None:
        """Wait until the end is asked for."""
        while not self._event.wait(0.5):
            continue


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Signals ask for the end, as often as they come; afterwards they mean what they meant before."""
    stop = Stop()
    before = {number: signal.signal(number, stop.request) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
