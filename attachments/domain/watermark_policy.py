"""Which time spans a reconciliation checks, and what holds back its watermark. Knows no Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

SLICE = timedelta(days=1)
"""The watermark advances after each slice, so that a crash costs one at most."""
HELD_FOR = timedelta(days=4)
"""For how long a message holds back the watermark, from its first attempt. Its own attempts last for a day."""
PERMANENT_CODES = frozenset({"not-found", "already-exists", "deleted", "not-listed", "scan-in-progress"})
"""Codes of failures that concern one message and that time does not fix: they are reported, and hold nothing back."""
FEW = 2
"""So many failures say nothing about vendor and store, even if nothing was stored."""


@dataclass(frozen=True)
class Span:
    """From `start` until before `end`."""

    start: datetime
    end: datetime

    def slices(self) -> Iterator[Span]:
        """The span in pieces of at most `SLICE`, the oldest first."""
        start = self.start
        while start < self.end:
            end = min(start + SLICE, self.end)
            yield Span(start, end)
            start = end


def span(
    watermark: datetime | None, now: datetime, *, overlap: timedelta, settling: timedelta, first: timedelta
) -> Span:
    """What is to be checked.

    A report may lag behind, so `overlap` before the watermark is checked again, and what arrived within `settling` is
    left to the next time. Without a watermark it begins `first` ago, and also if the watermark is in the future: a
    clock was wrong, and what was requested then did not exist yet, so nobody knows what has been checked.
    """
    end = now - settling
    start = now - first if watermark is None or watermark > now else min(watermark, end) - overlap
    # Reports are for whole seconds: otherwise each day of the span would be a report, and another one of a second.
    start, end = start.replace(microsecond=0), end.replace(microsecond=0)
    return Span(min(start, end), end)


@dataclass
class Slice:
    """What happened to the messages of a slice."""

    stored: int = 0
    failed: int = 0
    """Messages that failed now, and not permanently: they say something about vendor, key and store."""
    held: int = 0
    """Messages that have to be checked again, `failed` among them: they hold back the watermark."""
    expired: int = 0
    """Messages that are not stored `HELD_FOR` after their first attempt: they hold nothing back any more."""

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
        return self.failed > max(FEW, self.stored)
