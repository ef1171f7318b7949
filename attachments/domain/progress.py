"""Progress of the work on many messages: counts, rate and estimated end. Contains no names; does not depend on
Prefect."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from attachments.foundation.numerals import counted

RATE_WINDOW = 300.0
"""Seconds over which the rate is averaged: enough to smooth it, short enough to follow the vendor."""


@dataclass(frozen=True)
class Counts:
    """Messages by their state so far. Each message counts in exactly one field, apart from `seen`, the sum."""

    seen: int = 0
    """Taken from the stream."""
    duplicates: int = 0
    """Seen a short while ago. A repetition after a longer time counts by its state then, mostly as done."""
    already_done: int = 0
    """The manifest leaves nothing to do; no call was made."""
    succeeded: int = 0
    in_other_runs: int = 0
    """Another run is working on it, or will."""
    retry_scheduled: int = 0
    """Failed for a transient reason; another attempt follows automatically."""
    cancelled: int = 0
    """The message's run was cancelled."""
    failed: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """By code, as in a manifest."""
    waiting: int = 0
    """Being checked, or waiting for a worker."""
    running: int = 0

    @property
    def failures(self) -> int:
        """Messages that failed and are not retried automatically."""
        return sum(self.failed.values())

    @property
    def unfinished(self) -> int:
        """Messages that are not finished in this run."""
        return self.waiting + self.running

    @property
    def ended(self) -> int:
        """Messages that are finished in this run."""
        return self.seen - self.unfinished

    @property
    def is_success(self) -> bool:
        """Whether no message failed or was cancelled so far."""
        return self.failures + self.retry_scheduled + self.cancelled == 0

    def __str__(self) -> str:
        parts = [
            (self.succeeded, "done now"),
            (self.already_done, "done before"),
            (self.duplicates, "named twice"),
            (self.in_other_runs, "under way in another run"),
            (self.failures, f"failed ({self.codes})"),
            (self.retry_scheduled, "failed for now, to be tried again automatically"),
            (self.cancelled, "cancelled"),
            (self.unfinished, "not finished"),
        ]
        summary = ", ".join(f"{count:,} {words}" for count, words in parts if count)
        return f"Of {counted(self.seen, 'message')} {summary}" if summary else "There were no messages"

    @property
    def codes(self) -> str:
        """The failures by code, the most frequent first: ``not-found 3, forbidden 1``."""
        ordered = sorted(self.failed.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{code} {count:,}" for code, count in ordered)


class Tally:
    """Accumulates `Counts`."""

    def __init__(self) -> None:
        self._counts = Counts()
        self._failed: Counter[str] = Counter()

    def add(self, **by: int) -> None:
        """Increase counts by these numbers: ``add(seen=1)``."""
        changed = {name: getattr(self._counts, name) + count for name, count in by.items()}
        self._counts = replace(self._counts, **changed)

    def add_failed(self, code: str) -> None:
        """Count one more failure with this code."""
        self._failed[code] += 1

    def counts(self, *, running: int = 0) -> Counts:
        """The current counts; `running` of the unfinished messages have a running run."""
        now = replace(self._counts, failed=MappingProxyType(dict(self._failed)))
        unfinished = now.seen - (
            now.duplicates
            + now.already_done
            + now.in_other_runs
            + now.succeeded
            + now.retry_scheduled
            + now.cancelled
            + now.failures
        )
        running = min(running, unfinished)
        return replace(now, waiting=unfinished - running, running=running)


@dataclass(frozen=True)
class Estimate:
    """Progress at one point in time."""

    total: int | None
    """All messages; None if unknown."""
    per_minute: float | None
    """Messages finished per minute lately; None while it is too early to say."""
    share: float | None
    """Between 0 and 1."""
    end: datetime | None
    """When the work will end at this rate, in UTC."""


class RateEstimator:
    """Estimates progress from successive counts. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def estimate(self, counts: Counts, total: int | None, now: float, today: datetime | None = None) -> Estimate:
        """The estimate for `counts` at time `now`."""
        self._seen.append((now, counts.ended))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_WINDOW:  # noqa: PLR2004  the first and the last
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
