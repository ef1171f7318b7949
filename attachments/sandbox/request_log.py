"""The log of every call to the API, refused ones too."""

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

from attachments.sandbox.window import Peak

_KEPT = 100_000
"""How many calls are kept; the summary counts all of them."""

_KEY_LETTERS = 6


@dataclass
class Entry:
    """One call: `at` in monotonic seconds, `bytes_sent` of the body, `status` None while none was sent.

    `counted` says whether the rate limit granted the call; `complete` that the whole answer was written.
    """

    n: int
    at: float
    time: str
    method: str
    endpoint: str
    message_id: str | None
    attachment_id: str | None
    key: str | None
    headers: dict[str, str]
    status: int | None = None
    bytes_sent: int = 0
    counted: bool = False
    complete: bool = False
    under_way: bool = True


@dataclass
class RequestLog:
    """The calls since the log was last cleared."""

    entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=_KEPT))
    peak: Peak = field(default_factory=Peak)
    _calls: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    _last: int = 0

    def open(
        self,
        method: str,
        endpoint: str,
        message_id: str | None,
        attachment_id: str | None,
        headers: dict[str, str],
    ) -> Entry:
        """Record a call on arrival; only the first letters of the key are kept."""
        self._last += 1
        shown, secret = _without_secret(headers)
        entry = Entry(
            n=self._last,
            at=time.monotonic(),
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            method=method,
            endpoint=endpoint,
            message_id=message_id,
            attachment_id=attachment_id,
            key=secret[:_KEY_LETTERS] or None,
            headers=shown,
        )
        self.entries.append(entry)
        return entry

    def close(self, entry: Entry) -> None:
        """Record the end of the call."""
        entry.under_way = False
        self._calls[entry.endpoint, entry.status] += 1

    def summary(self) -> dict[str, object]:
        """The ended calls by endpoint and status, and the most calls granted in any window."""
        endpoints: dict[str, dict[str, int]] = {}
        for (endpoint, status), calls in sorted(self._calls.items(), key=str):
            endpoints.setdefault(endpoint, {})["none" if status is None else str(status)] = calls
        return {
            "calls": self._calls.total(),
            "endpoints": endpoints,
            "most_granted_in_a_window": self.peak.most,
        }

    def clear(self) -> None:
        """Clear the log; the calls that the rate limit has granted still count there."""
        self.entries.clear()
        self.peak = Peak()
        self._calls.clear()


def _without_secret(headers: dict[str, str]) -> tuple[dict[str, str], str]:
    """The headers, with only the scheme of Authorization, and the secret from it."""
    shown, secret = dict(headers), ""
    for name, value in headers.items():
        if name.casefold() == "authorization":
            scheme, gap, secret = value.strip().rpartition(" ")
            shown[name] = f"{scheme}{gap}…"
    return shown, secret
