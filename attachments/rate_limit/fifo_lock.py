"""A lock whose waiters get their turns in order, and whose wait ends when the run is cancelled."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from attachments.foundation import cancellation


class FifoLock:
    """One holder at a time, in the order of arrival."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    def __len__(self) -> int:
        """The holder and all that wait."""
        return len(self._waiting)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn, and keep it. Raises `RunCancelled` when the run is cancelled during the wait."""
        mine = threading.Event()
        with self._lock:
            self._waiting.append(mine)
            self._waiting[0].set()
        try:
            with cancellation.on_cancel(mine.set):
                mine.wait()
            cancellation.raise_if_cancelled()
            yield
        finally:
            with self._lock:
                self._waiting.remove(mine)
                if self._waiting:
                    self._waiting[0].set()
