"""The Received Message Detail report, from its start to its last row (api/reports/received-message-detail).

A report is a run on the vendor's side: started, asked after until it is done, then read page by page. Each of these is
a call of the 100 a minute. An account has three runs at a time; this takes one of them, never more.

A span of time is cut into windows of a day, so that a run stays small, and what fails costs little to do again.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from attachments.emailgistics.envelopes import ReceivedMessage, ReportEnvelope, parse_envelope
from attachments.emailgistics.errors import (
    BadAnswer,
    BadRequest,
    EmailgisticsError,
    InvalidArgument,
    NotFound,
    RateLimited,
    ReportFailed,
)
from attachments.foundation import cancellation

STARTING = "Starting a report"
READING = "Reading a report"

WINDOW = timedelta(days=1)
ROWS = 500
"""Rows a page, the most there may be."""
STARTS = 3
"""Times that a start is tried which may have begun a run that nobody can find again."""
AGAINS = 3
"""How often a window is restarted after its run has failed, or its result has expired."""
TROUBLES = 6
"""Failures in a row of the calls that read, before the report is given up."""


@dataclass(frozen=True)
class ReportLimits:
    """How long a report is waited for, in seconds, and how much of it is read."""

    first_look: float = 2.0
    longest_look: float = 60.0
    look_growth: float = 1.5
    """How the pauses between looks at a run that is not done grow."""
    patience: float = 45 * 60.0
    """For a run: it can take about 30 minutes (getting-started/rate-limits)."""
    slot_pause: float = 60.0
    longest_slot_pause: float = 300.0
    slot_patience: float = 40 * 60.0
    """To wait for one of the three runs: those that hold them are through within about half an hour."""
    start_pause: float = 60.0
    trouble_pause: float = 2.0
    limit_pause: float = 60.0
    """After a 429 to a call that reads: "wait at least a minute" (getting-started/rate-limits)."""
    most_pages: int = 2_000
    """Of one window: a million messages a day. More is a list that leads round in circles."""


logger = logging.getLogger(__name__)


class Exchange(Protocol):
    """One paced call to the vendor, and the whole body of its success."""

    def __call__(self, method: str, href: str, action: str, content: bytes | None = None) -> bytes: ...


class _UnfinishedReport(Exception):
    """A run is over, and its result cannot be had: another may be begun in its place."""

    def __init__(self, error: ReportFailed) -> None:
        super().__init__()
        self.error = error


class ReceivedMessages(Iterator[ReceivedMessage]):
    """The messages that a mailbox received in a span of time, as the report's rows come. Read it in one thread.

    Each message comes once within a day. Memory holds the ids of two days, and one page.
    """

    def __init__(
        self,
        exchange: Exchange,
        mailbox_id: str,
        start: datetime,
        end: datetime,
        on_wait: Callable[[str], None] | None = None,
        limits: ReportLimits | None = None,
    ) -> None:
        self._limits = limits or ReportLimits()
        if start.tzinfo is None or end.tzinfo is None:
            raise InvalidArgument("The span of a report needs moments with a time zone")
        if end < start:
            raise InvalidArgument("The span of a report ends before it starts")
        try:
            first, last = _whole_second(start), _whole_second(end, up=True)
        except OverflowError:
            raise InvalidArgument("The span of a report lies outside the calendar") from None
        self.unnamed: dict[str, None] = {}
        """Rows that name no message, by a digest of each, in their order; so many of them at most, as a page may have.

        `skipped` counts all of them.
        """
        self.skipped = 0
        self.covered_until = end
        """Once all is read: what came in before this moment is in it. Earlier than `end` when the vendor says so."""
        self._exchange = exchange
        self._mailbox_id = mailbox_id
        self._on_wait = on_wait or logger.info
        self._is_wrapped = True
        self._rows = self._read(first, last)

    def __next__(self) -> ReceivedMessage:
        return next(self._rows)

    def _read(self, start: datetime, end: datetime) -> Iterator[ReceivedMessage]:
        before: set[str] = set()
        while start < end:
            until = start + min(WINDOW, end - start)  # not past the calendar's last day
            seen: set[str] = set()
            for message in self._window(start, until):
                if message.message_id not in seen and message.message_id not in before:
                    seen.add(message.message_id)
                    yield message
            start, before = until, seen
        if self.skipped:
            logger.warning(
                "%d rows of the report name no message and were passed over. Ask Emailgistics if it goes on.",
                self.skipped,
            )

    def _window(self, start: datetime, end: datetime) -> Iterator[ReceivedMessage]:
        """The rows of one window; if it is restarted, rows that were already yielded come again."""
        for again in range(AGAINS + 1):
            envelope = self._start(start, end)  # a mailbox that is not there is not found here
            try:
                yield from self._rows_of(envelope, start)
            except _UnfinishedReport as unfinished:
                if again == AGAINS:
                    raise unfinished.error from None
                self._on_wait("The report failed or its result has expired: it is started again.")
            else:
                return

    def _rows_of(self, envelope: ReportEnvelope, start: datetime) -> Iterator[ReceivedMessage]:
        page = self._done(envelope)
        read: set[str] = set()
        for _ in range(self._limits.most_pages):
            self.skipped += len(page.unnamed)
            self.unnamed.update(dict.fromkeys(page.unnamed[: ROWS - len(self.unnamed)]))
            if page.cutoff is not None:
                self.covered_until = min(self.covered_until, max(page.cutoff, start))
            yield from page.rows
            href = page.following
            if href is None:
                return
            if href in read:
                break
            read.add(href)
            page = self._done(self._asked(href), itself=href)
        raise BadAnswer(f"{READING}: its pages never end")

    def _start(self, start: datetime, end: datetime) -> ReportEnvelope:
        """Begin a run. It may have to wait for one of the three, and it is no call that could simply be repeated."""
        parameters = {
            "mailboxId": self._mailbox_id,
            "activityType": "received",
            "activityStart": f"{start:%Y-%m-%dT%H:%M:%SZ}",
            "activityEnd": f"{end:%Y-%m-%dT%H:%M:%SZ}",
        }
        limits = self._limits
        give_up = time.monotonic() + limits.slot_patience
        pause, tries = limits.slot_pause, 1
        while True:
            try:
                return self._started(parameters)
            except RateLimited:
                if time.monotonic() > give_up:
                    raise
                # Nor can it be told which of the two limits it was: see OWN_LIMIT in paced_calls.py.
                self._on_wait(
                    "Emailgistics starts no report just now (429): all three runs of the account are in use, or its "
                    f"calls of this minute. Next try in {pause:.0f} s."
                )
                cancellation.sleep(pause)
                pause = min(pause * 1.5, limits.longest_slot_pause)
            except EmailgisticsError as error:
                # The run may have begun all the same, and there is no list of runs to find it in. It takes up one of
                # the three until it is done, so a second start waits, and a third is the last.
                if not error.retryable or tries == STARTS:
                    raise
                tries += 1
                self._on_wait(
                    f"The report could not be started ({error.outcome_code}): next try in {limits.start_pause:.0f} s."
                )
                cancellation.sleep(limits.start_pause)

    def _started(self, parameters: Mapping[str, str]) -> ReportEnvelope:
        """Begin a run, with the body in the shape that is taken: whether it is wrapped is not documented."""
        try:
            return self._post(parameters, is_wrapped=self._is_wrapped)
        except BadRequest:
            envelope = self._post(parameters, is_wrapped=not self._is_wrapped)
            self._is_wrapped = not self._is_wrapped
            return envelope

    def _post(self, parameters: Mapping[str, str], *, is_wrapped: bool) -> ReportEnvelope:
        body = json.dumps({"parameters": parameters} if is_wrapped else parameters).encode()
        path = f"reports/receivedMessageDetail?fieldGroup=basic&max={ROWS}"
        return parse_envelope(self._exchange("POST", path, STARTING, body))

    def _done(self, envelope: ReportEnvelope, *, itself: str | None = None) -> ReportEnvelope:
        """The envelope of the run once it is done. Asks after it in growing intervals."""
        give_up = time.monotonic() + self._limits.patience
        pause = self._limits.first_look
        if not envelope.is_done and not envelope.is_failed:
            self._on_wait("Emailgistics makes the report, which can take half an hour: it is asked until it is done.")
        while not envelope.is_done:
            itself = envelope.itself or itself
            if envelope.is_failed:
                raise _UnfinishedReport(ReportFailed(f"{READING}: Emailgistics could not make it", code=envelope.code))
            if itself is None:
                raise BadAnswer(f"{READING}: the answer does not say where its result will be")
            if time.monotonic() > give_up:
                # Do not restart it: this run still occupies one of the three, and a second one would occupy another.
                raise ReportFailed(f"{READING}: it was not done within {self._limits.patience / 60:.0f} minutes")
            cancellation.sleep(pause)
            pause = min(pause * self._limits.look_growth, self._limits.longest_look)
            envelope = self._asked(itself)
        return envelope

    def _asked(self, href: str) -> ReportEnvelope:
        """What is answered there; what can pass by itself is tried again."""
        for trouble in range(1, TROUBLES + 1):
            try:
                return parse_envelope(self._exchange("GET", href, READING))
            except NotFound as error:
                raise _UnfinishedReport(
                    ReportFailed(f"{READING}: its result expired before it was read", status=error.status)
                ) from None
            except EmailgisticsError as error:
                if not error.retryable or trouble == TROUBLES:
                    raise
                pause = self._limits.trouble_pause * 2 ** (trouble - 1)
                cancellation.sleep(max(pause, self._limits.limit_pause) if isinstance(error, RateLimited) else pause)
        raise AssertionError("the last try returns or raises")


def _whole_second(moment: datetime, *, up: bool = False) -> datetime:
    """In UTC, without a fraction: nothing smaller can be asked for. The span gets larger, never smaller."""
    whole = moment.astimezone(UTC).replace(microsecond=0)
    return whole + timedelta(seconds=1) if up and moment.microsecond else whole
