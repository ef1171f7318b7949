"""The account's rate limit: an exact sliding window (getting-started/rate-limits).

The vendor does not document the kind of window; the strictest kind is the one to be tested against.
"""

from collections import deque


class SlidingWindow:
    """At most `limit` granted calls in any `window` seconds; None for no limit, 0 to refuse every call.

    A call at `now` sees the grants of the half-open stretch (now - window, now]: one granted at 0.0 has left
    a window of 60 at exactly 60.0. A refused call does not count: asking too often does not prolong the wait.
    """

    def __init__(self, limit: int | None, window: float) -> None:
        self.limit = limit
        self.window = window
        self._granted: deque[float] = deque()

    def admit(self, now: float) -> bool:
        """Whether a call that arrived at `now` (monotonic seconds) is granted; counts it if so."""
        if self.limit is None:
            return True
        while self._granted and now - self._granted[0] >= self.window:
            self._granted.popleft()
        if len(self._granted) >= self.limit:
            return False
        self._granted.append(now)
        return True

    def forget(self) -> None:
        """Begins with an empty window."""
        self._granted.clear()


class Peak:
    """The most calls that any one window has seen, whether or not a limit was set."""

    def __init__(self) -> None:
        self.most = 0
        self._recent: deque[float] = deque()

    def add(self, now: float, window: float) -> None:
        """Counts a granted call that arrived at `now` (monotonic seconds)."""
        self._recent.append(now)
        while now - self._recent[0] >= window:
            self._recent.popleft()
        self.most = max(self.most, len(self._recent))
