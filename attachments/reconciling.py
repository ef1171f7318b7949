"""Which spans of time a reconciliation looks at, and how far its mark may move. Knows no Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

SLICE = timedelta(days=1)
"""A span that is looked at as a whole; the mark moves after each, so that a kill costs one at the most."""
HELD_FOR = timedelta(days=4)
"""For so long a message that could not be fetched holds the mark back. Its own attempts go on for a day."""
LOST = frozenset({"not-found", "already-exists", "deleted"})
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
    return Span(min(start, end), end)


def moved(covered: datetime, held_at: datetime | None) -> datetime:
    """Where the mark may move when all was looked at until `covered`.

    `held_at` is where the first slice began in which a message could not be fetched yet; None when all could. It holds
    the mark there, but no more than `HELD_FOR` behind.
    """
    return covered if held_at is None else min(covered, max(held_at, covered - HELD_FOR))


@dataclass
class Slice:
    """What became of the messages of a slice."""

    stored: int = 0
    lost: int = 0
    """Failed with one of the codes `LOST`."""
    failed: int = 0
    """Failed otherwise, for now or for good."""
    elsewhere: int = 0
    """Left to another run that is at them, or will be; how that ends is not known yet."""

    @property
    def is_held(self) -> bool:
        """Whether a message has to be looked at again."""
        return self.failed > 0 or self.elsewhere > 0

    @property
    def is_away(self) -> bool:
        """Whether so much failed that vendor, key or store must be the reason: to go on would lose the rest too."""
        return self.failed > max(FEW, self.stored)


def may_pass(held_since: datetime, now: datetime) -> bool:
    """Whether a slice in which most failed may be passed over: it was held for long, and must not be for ever."""
    return now - held_since >= HELD_FOR
