"""Which time spans a reconciliation checks, and what holds back its watermark. Independent of Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

SLICE = timedelta(days=1)
"""The watermark advances after each slice, so a crash repeats at most one slice."""
HELD_FOR = timedelta(days=4)
"""For how long a message holds back the watermark, from its first attempt. Its own attempts last for a day."""
PERMANENT_CODES = frozenset({"not-found", "already-exists", "deleted", "not-listed", "scan-in-progress"})
"""Codes of permanent failures of one message: they are reported and do not hold back the watermark."""
TOLERATED_FAILURES = 2
"""Up to this many failures do not indicate a problem of vendor or store, even if nothing was stored."""


@dataclass(frozen=True)
class Span:
    """The times from `start` (inclusive) to `end` (exclusive)."""

    start: datetime
    end: datetime

    def slices(self) -> Iterator[Span]:
        """The span in pieces of at most `SLICE`, the oldest first."""
        start = self.start
        while start < self.end:
            end = min(start + SLICE, self.end)
            yield Span(start, end)
            start = end


def span_to_check(
    watermark: datetime | None, now: datetime, *, overlap: timedelta, settling: timedelta, first: timedelta
) -> Span:
    """The span to check.

    A report may lag behind, so `overlap` before the watermark is checked again, and what arrived within `settling` is
    left to the next run. Without a watermark the span begins `first` ago. So it does if the watermark is in the future:
    a clock was wrong, so it is unknown what has been checked.
    """
    end = now - settling
    start = now - first if watermark is None or watermark > now else min(watermark, end) - overlap
    # Reports cover whole seconds: fractions would add a one-second report to the report of each day.
    start, end = start.replace(microsecond=0), end.replace(microsecond=0)
    return Span(min(start, end), end)


@dataclass
class SliceResult:
    """Counts of the messages of a slice, by result."""

    stored: int = 0
    failed: int = 0
    """Messages that failed now, and not permanently: they say something about vendor, key and store."""
    held: int = 0
    """Messages that have to be checked again, `failed` among them: they hold back the watermark."""
    expired: int = 0
    """Messages that are not stored `HELD_FOR` after their first attempt: they no longer hold back the watermark."""

    def add_missing(self, first_attempt: datetime | None, now: datetime, *, has_failed_now: bool) -> None:
        """Add a message that may still be stored: it failed, now or before, or another run is to store it."""
        if first_attempt is not None and now - first_attempt >= HELD_FOR:
            self.expired += 1
        else:
            self.held += 1
            self.failed += has_failed_now

    @property
    def has_failed(self) -> bool:
        """Whether so much failed that vendor, key or store must be the reason: later slices would fail as well."""
        return self.failed > max(TOLERATED_FAILURES, self.stored)
