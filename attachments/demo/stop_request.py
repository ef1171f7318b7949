"""Ctrl-C and SIGTERM as a request that the command checks, instead of an exception at any point of its code.

So no signal can interrupt between starting a process and recording it, and a second one does not break the stop.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """The command was requested to stop."""


class Stop:
    """Whether the command was requested to stop. `announcement` is printed at the first request."""

    def __init__(self, announcement: str = "") -> None:
        self._event = threading.Event()
        self._announcement = announcement
        self.by: int | None = None
        """The signal of the first request."""
        self.is_urgent = False
        """Whether it was requested more than once."""

    def request(self, number: int = 0, _frame: FrameType | None = None) -> None:
        """Request the stop; a signal handler."""
        if self._event.is_set():
            self.is_urgent = True
            return
        self.by = number
        self._event.set()
        if self._announcement:
            with suppress(OSError):  # standard error may be closed
                os.write(sys.stderr.fileno(), self._announcement.encode())

    @property
    def requested(self) -> bool:
        """Whether the stop was requested."""
        return self._event.is_set()

    def check(self) -> None:
        """Raises `Stopped` when the stop was requested."""
        if self.requested:
            raise Stopped

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the stop is requested, for `seconds` at most."""
        if seconds is not None:
            self._event.wait(seconds)
            return
        while not self._event.wait(0.5):
            continue


@contextmanager
def stop_on_signals(announcement: str = "") -> Iterator[Stop]:
    """Let signals request the stop; restores the previous handlers at the end.

    SIGHUP stays ignored where it is, as under `nohup`.
    """
    stop = Stop(announcement)
    handled = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop.request) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
