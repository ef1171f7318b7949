"""Which spans of time a reconciliation looks at, and how far its mark may move. Knows no Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

SLICE = timedelta(days=1)
"""A span that is looked at as a whole; the mark moves after each, so that a kill costs one at the most."""
HELD_FOR = timedelta(days=4)
"""For so long what could not be fetched holds the mark back. A message's own attempts go on for a day."""
STEP = timedelta(hours=6)
"""Times that are no further apart count as one, so that a mark stays small."""
PERMANENT_CODES = frozenset({"not-found", "already-exists", "deleted", "not-listed", "scan-in-progress"})
"""Codes of failures that concern one message, and that waiting does not mend: they are told, and hold nothing back."""
FEW = 2
"""So many failures say nothing of vendor or store, even if nothing else was tried."""


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


def span(mark: datetime | None, now: datetime, *, overlap: timedelta, settling: timedelta, first: timedelta) -> Span:
    """What is to be looked at.

    A report may lag behind, so a piece before the mark is looked at again, and what came in just now is left to the
    next time. Without a mark it begins `first` ago. So it does when the mark lies in the future: a clock was wrong, and
    what was asked for then was not there yet, so that nobody knows what has been looked at.
    """
    end = now - settling
    start = now - first if mark is None or mark > now else min(mark, end) - overlap
    # Reports are asked for by whole seconds: with more, each day of the span would be a report and one of a second.
    start, end = start.replace(microsecond=0), end.replace(microsecond=0)
    return Span(min(start, end), end)


@dataclass(frozen=True)
class FirstAttempt:
    """What a mailbox received before `until` was looked at for the first time at `at`, or at most `STEP` later."""

    until: datetime
    at: datetime


@dataclass(frozen=True)
class Hold:
    """What holds a mailbox's mark back."""

    tried: tuple[FirstAttempt, ...] = ()
    """When what lies beyond the mark was looked at for the first time, the oldest first."""
    at: datetime | None = None
    """Where the first slice begins in which a message could not be fetched yet; None when there was none so far."""

    def record_attempt(self, piece: Span, now: datetime, *, is_held: bool) -> Hold:
        """And a slice was looked at, which holds the mark or does not."""
        tried = self.tried
        if not tried or piece.end > tried[-1].until:
            *earlier, last = tried or (FirstAttempt(piece.end, now),)
            is_one = timedelta(0) <= now - last.at < STEP
            tried = (*earlier, FirstAttempt(piece.end, last.at)) if is_one else (*tried, FirstAttempt(piece.end, now))
        return Hold(tried, piece.start if is_held and self.at is None else self.at)

    def next_watermark(self, covered: datetime, now: datetime) -> datetime:
        """Where the mark may move when all was looked at until `covered`: not beyond `at`, for `HELD_FOR`."""
        if self.at is None:
            return covered
        long_tried = [tried.until for tried in self.tried if now - tried.at >= HELD_FOR]
        return min(covered, max([self.at, *long_tried]))

    def expired(self, piece: Span, now: datetime) -> bool:
        """Whether the whole of a slice was looked at so long ago that nothing in it holds anything any more."""
        return any(tried.until >= piece.end and now - tried.at >= HELD_FOR for tried in self.tried)


@dataclass
class Slice:
    """What became of the messages of a slice."""

    stored: int = 0
    lost: int = 0
    """Failed with one of the codes `PERMANENT_CODES`."""
    failed: int = 0
    """Failed otherwise, for now or for good, when they were tried now."""
    before: int = 0
    """Failed so earlier. It says nothing of vendor and store as they are now."""
    elsewhere: int = 0
    """Left to another run that is at them, or will be; how that ends is not known yet."""

    @property
    def is_held(self) -> bool:
        """Whether a message has to be looked at again."""
        return self.failed > 0 or self.before > 0 or self.elsewhere > 0

    @property
    def is_away(self) -> bool:
        """Whether so much failed that vendor, key or store must be the reason: to go on would lose the rest too."""
        return self.failed > max(FEW, self.stored)
