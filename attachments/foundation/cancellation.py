"""Ending a run from outside, wherever its threads wait.

Python cannot stop a thread. Code that starts a run in a thread of its own process therefore sets a `Cancellation` as
the current one there. Code that may wait for long in that run registers with it, so that it is woken. Threads that a
run starts inherit it with their context. Without one, as in a process that can simply be killed, nothing here has any
effect.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

TICK = 0.5
"""Seconds between looks where a wait cannot be woken."""


class RunCancelled(Exception):
    """The run is to end here: somebody has cancelled it."""

    def __init__(self) -> None:
        super().__init__("The run was cancelled.")


class Cancellation:
    """A wish that a run end. Any thread may utter it; it cannot be taken back."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._wakers: dict[int, Callable[[], None]] = {}
        self._count = 0

    @property
    def is_cancelled(self) -> bool:
        """Whether the run is to end."""
        return self._asked.is_set()

    def cancel(self) -> None:
        """Let the run end: wake whatever has asked to be woken."""
        with self._lock:
            self._asked.set()
            wakers = tuple(self._wakers.values())
        for wake in wakers:
            wake()

    def wait(self, seconds: float) -> None:
        """Sleep; shorter when the run is to end."""
        self._asked.wait(seconds)

    @contextmanager
    def on_cancel(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake`, from another thread, when the run is to end while the block is entered."""
        with self._lock:
            self._count += 1
            number = self._count
            self._wakers[number] = wake
            is_cancelled = self.is_cancelled
        try:
            if is_cancelled:
                wake()
            yield
        finally:
            with self._lock:
                del self._wakers[number]


CURRENT: ContextVar[Cancellation | None] = ContextVar("attachments_cancellation", default=None)


def is_cancelled() -> bool:
    """Whether the run that this thread works for is to end."""
    cancellation = CURRENT.get()
    return cancellation is not None and cancellation.is_cancelled


def raise_if_cancelled() -> None:
    """Raises `RunCancelled` when the run is to end."""
    if is_cancelled():
        raise RunCancelled


def sleep(seconds: float) -> None:
    """As `time.sleep`. Raises `RunCancelled` when the run is to end, before or meanwhile."""
    raise_if_cancelled()
    cancellation = CURRENT.get()
    if cancellation is None:
        time.sleep(seconds)
    else:
        cancellation.wait(seconds)
    raise_if_cancelled()


@contextmanager
def on_cancel(wake: Callable[[], None]) -> Iterator[None]:
    """While the block is entered, `wake` is called when the run is to end: from another thread, or at once."""
    cancellation = CURRENT.get()
    if cancellation is None:
        yield
    else:
        with cancellation.on_cancel(wake):
            yield


@contextmanager
def acquire(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock. Raises `RunCancelled` when the run is to end while it waits for it."""
    while not lock.acquire(timeout=TICK):
        raise_if_cancelled()
    try:
        yield
    finally:
        lock.release()
