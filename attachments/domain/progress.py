"""How far the work on many messages is: counts, pace, and when it will end. Knows no Prefect and no names."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from attachments.foundation.numerals import counted

PACE_OVER = 300.0
"""Seconds that the pace is taken over: it follows the vendor's mood, and does not jump."""


@dataclass(frozen=True)
class Counts:
    """What has become of the messages so far. Every message is in one of them, but `seen`, which is their sum."""

    seen: int = 0
    """Taken from the stream."""
    duplicates: int = 0
    """Seen a short while ago already. One from longer ago counts as what it is by then: done, mostly."""
    already_done: int = 0
    """The manifest settles all: no call was made."""
    succeeded: int = 0
    elsewhere: int = 0
    """Another run is at it, or will be."""
    for_now: int = 0
    """Failed for a reason that can pass; another attempt follows by itself."""
    cancelled: int = 0
    """Somebody has cancelled the message's run."""
    failed: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """By code, as in a manifest."""
    waiting: int = 0
    """Looked at, or waiting for a worker."""
    running: int = 0

    @property
    def failures(self) -> int:
        """Messages that failed and are not tried again by themselves."""
        return sum(self.failed.values())

    @property
    def unfinished(self) -> int:
        """Messages that something may still become of in this run."""
        return self.waiting + self.running

    @property
    def ended(self) -> int:
        """Messages that nothing more becomes of in this run."""
        return self.seen - self.unfinished

    @property
    def is_all_well(self) -> bool:
        """Whether every message that has ended is done."""
        return self.failures + self.for_now + self.cancelled == 0

    def __str__(self) -> str:
        parts = [
            (self.succeeded, "done now"),
            (self.already_done, "done before"),
            (self.duplicates, "named twice"),
            (self.elsewhere, "under way in another run"),
            (self.failures, f"failed ({self.codes})"),
            (self.for_now, "failed for now, to be tried again automatically"),
            (self.cancelled, "cancelled"),
            (self.unfinished, "not finished"),
        ]
        told = ", ".join(f"{count:,} {words}" for count, words in parts if count)
        return f"Of {counted(self.seen, 'message')} {told}" if told else "There were no messages"

    @property
    def codes(self) -> str:
        """The failures by code, the most frequent first: ``not-found 3, forbidden 1``."""
        ordered = sorted(self.failed.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{code} {count:,}" for code, count in ordered)


class Tally:
    """Counts as they grow."""

    def __init__(self) -> None:
        self._counts = Counts()
        self._failed: Counter[str] = Counter()

    def add(self, **by: int) -> None:
        """So many more of each: ``add(seen=1)``."""
        changed = {name: getattr(self._counts, name) + count for name, count in by.items()}
        self._counts = replace(self._counts, **changed)

    def add_failed(self, code: str) -> None:
        """One more that failed, by its code."""
        self._failed[code] += 1

    def counts(self, *, running: int = 0) -> Counts:
        """As they are now; `running` of those that are not finished are under way."""
        now = replace(self._counts, failed=MappingProxyType(dict(self._failed)))
        unfinished = now.seen - (
            now.duplicates
            + now.already_done
            + now.elsewhere
            + now.succeeded
            + now.for_now
            + now.cancelled
            + now.failures
        )
        running = min(running, unfinished)
        return replace(now, waiting=unfinished - running, running=running)


@dataclass(frozen=True)
class Estimate:
    """How far it is, at one moment."""

    total: int | None
    """Messages in all; None when nobody can say."""
    per_minute: float | None
    """Messages that ended in a minute lately; None while it is too early to say."""
    share: float | None
    """Between 0 and 1."""
    end: datetime | None
    """When it will be over at this pace, in UTC."""


class Pace:
    """Estimates from counts, given one after the other. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def estimate(self, counts: Counts, total: int | None, now: float, today: datetime | None = None) -> Estimate:
        """What can be said of `counts`, taken at `now`."""
        self._seen.append((now, counts.ended))
        while len(self._seen) > 2 and now - self._seen[1][0] >= PACE_OVER:  # noqa: PLR2004  the first and the last
            self._seen.popleft()
        began, had = self._seen[0]
        per_minute = (counts.ended - had) / (now - began) * 60 if now - began >= 1 else None
        if total is None:
            return Estimate(None, per_minute, None, None)
        total = max(total, counts.seen)
        share = counts.ended / total if total else 1.0
        left = total - counts.ended
        end = (today or datetime.now(UTC)) + timedelta(minutes=left / per_minute) if per_minute and left else None
        return Estimate(total, per_minute, share, end)
