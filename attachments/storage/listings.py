"""What stands on a message, remembered for a while: one listing a message, not one an attachment."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

FRESH = 60.0
"""Seconds for which a listing is believed. An older or a wrong one costs a request, never a file."""

MOST = 1024
"""Messages that are remembered: memory does not grow with their number."""

Names = Mapping[str, tuple[str, ...]]
"""Paths by attachment key."""


class Listings:
    """The listings of messages, by message key. Safe to share between threads."""

    def __init__(self, list_message: Callable[[str], Names]) -> None:
        self._list = list_message
        self._known: OrderedDict[str, tuple[float, Names]] = OrderedDict()
        self._lock = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}

    def of(self, message_key: str) -> Names:
        """What stood there within the last minute. Threads that ask at once share one listing."""
        known = self._fresh(message_key)
        if known is not None:
            return known
        with self._lock:
            asking = self._asking.setdefault(message_key, threading.Lock())
        try:
            with asking:
                return self._fresh(message_key) or self.refresh(message_key)
        finally:
            with self._lock:
                self._asking.pop(message_key, None)

    def refresh(self, message_key: str) -> Names:
        """What stands there now."""
        # The time before asking: what is written meanwhile may be missing from the answer.
        asked = time.monotonic()
        names = self._list(message_key)
        with self._lock:
            self._known[message_key] = (asked, names)
            self._known.move_to_end(message_key)
            while len(self._known) > MOST:
                self._known.popitem(last=False)
        return names

    def add(self, message_key: str, attachment_key: str, path: str) -> None:
        """Remembers what was just written."""
        with self._lock:
            if message_key in self._known:
                asked, names = self._known[message_key]
                paths = (*names.get(attachment_key, ()), path)
                self._known[message_key] = (asked, {**names, attachment_key: tuple(dict.fromkeys(paths))})

    def forget(self, message_key: str) -> None:
        """The next question is asked of the store."""
        with self._lock:
            self._known.pop(message_key, None)

    def _fresh(self, message_key: str) -> Names | None:
        with self._lock:
            known = self._known.get(message_key)
            return known[1] if known and time.monotonic() - known[0] < FRESH else None
