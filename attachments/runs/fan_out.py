"""One run for each of many messages, of a deployment of `download-attachments`, with few of them unfinished at a time.

A backfill or a reconciliation passes its messages to `run_children` as a stream, which is read in batches. Messages
that are complete according to their manifests get no run. Every other message gets a run under an idempotency key made
of the caller's prefix and the message's key: a caller that was killed and reads its stream again finds the same runs.
Each run has its own retries, and any worker takes it; docs/decisions.md says why these are not mapped tasks.

Memory and the number of unfinished runs do not grow with the stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID

from attachments.domain.plan import is_settled
from attachments.domain.progress import Counts, Tally
from attachments.foundation import cancellation
from attachments.foundation.cancellation import RunCancelled
from attachments.foundation.numerals import counted
from attachments.foundation.retry import retry
from attachments.runs.child_runs import (
    BACKFILL,
    NOT_FOUND,
    Child,
    ChildRuns,
    DownloadDeployment,
    MessageRef,
    Stage,
    child_runs,
)
from attachments.runs.errors import Starved, error_boundary, is_retryable
from attachments.runs.state_record import WITHDRAWN
from attachments.storage import StoreError
from attachments.storage.errors import AccessDenied, InvalidManifest, NewerManifest

__all__ = [
    "BACKFILL", "Counts", "DownloadDeployment", "FanOutCancelled", "Limits", "MessageRef", "run_children",
]  # fmt: skip

MANIFEST_THREADS = 20  # manifests that are read at a time: a store in the network answers in 50 ms
REMEMBERED_KEYS = 10_000  # message keys remembered to detect duplicates
MANIFEST_RETRY_DELAYS = (2.0, 4.0, 8.0, 16.0, 32.0)  # seconds between attempts to read a manifest
CANCEL_BUDGET = 20.0  # seconds to cancel the runs that have not started, when the caller is cancelled


@dataclass(frozen=True)
class Limits:
    """How many messages are in progress, and the time limits."""

    window: int = 100
    """Unfinished runs: enough for a fleet; more would only wait, and more than 200 starve a queue (prefect#19403)."""
    batch: int = 40
    """Messages that are read and checked before runs are created for them."""
    poll: float = 1.0
    """Seconds between polls for the unfinished runs while they end."""
    max_poll: float = 3.0
    """Seconds between polls while none ends."""
    deletion_check_after: float = 15.0
    """Seconds without a run that starts or ends, after which a poll also looks for runs that were deleted."""
    starvation_timeout: float = 120.0
    """Seconds in which no run starts, and no worker of the pool downloads anything, until `Starved` is raised."""
    failure_cooldown: timedelta = timedelta(days=1)
    """For how long a message whose run failed gets no other run, see `skip_existing_runs`."""
    max_denials: int = 20
    """Manifests in a row that may not be read, after which the cause is the store and not one message."""


class FanOutCancelled(RunCancelled):
    """The caller was cancelled; the text says what happened to its runs."""

    def __init__(self, text: str) -> None:
        Exception.__init__(self, text)


def run_children(
    messages: Iterable[MessageRef],
    target: DownloadDeployment,
    *,
    key_prefix: str,
    tags: Sequence[str],
    force: bool = False,
    on_progress: Callable[[Counts], None] = lambda _: None,
    on_created: Callable[[MessageRef, Child], None] = lambda *_: None,
    on_result: Callable[[MessageRef, Child], None] = lambda *_: None,
    skip_existing_runs: bool = False,
    limits: Limits = Limits(),
) -> Counts:
    """Have the attachments of all these messages downloaded, and wait until every run has ended.

    Args:
        messages: The messages. They are read in the caller's thread, no further ahead than a batch.
        target: The deployment whose runs download them.
        key_prefix: Begins the runs' idempotency keys; the same prefix finds the same runs.
        tags: Tags of the runs; the first one is their kind. With `BACKFILL` they let live mail go first.
        force: Download every message again although its manifest is complete.
        on_progress: Called with each poll, every one to three seconds.
        on_created: Called with each message and the run that was created for it, or that its key has found.
        on_result: Called with each message and its run once that has ended, or is left to another caller.
        skip_existing_runs: Consider the runs of the same deployment that others have created. A message that one of
            them waits for or works on is left to it; one whose run failed less than a day ago gets no other run so
            soon, unless a run of another kind did not find it: the caller knows that the message exists.
            A complete manifest is accepted even if the deployment's parameters have `force`.
        limits: How many messages are in progress, and for how long something may last.

    Raises:
        FanOutCancelled: The caller was cancelled, and with it its runs that had not started.
        Starved: No worker starts the runs. They are left as they are.
        StoreError, PrefectLost, NotConfigured: It cannot continue. The runs are left as they are.
        Whatever reading the messages raises.
    """
    with child_runs(target, key_prefix=key_prefix, tags=tags, force=force) as runs:
        fan_out = FanOut(
            target,
            runs,
            limits,
            force=force or (target.force and not skip_existing_runs),
            on_progress=on_progress,
            on_created=on_created,
            on_result=on_result,
            skip_existing_runs=skip_existing_runs,
        )
        try:
            fan_out.run(messages)
        except RunCancelled:
            raise FanOutCancelled(fan_out.cancel_unstarted()) from None
        finally:
            fan_out.close()
        return fan_out.counts()


@dataclass(frozen=True)
class _Unfinished:
    """A message whose run has not ended."""

    message: MessageRef
    child: Child


class FanOut:
    """Processes messages in batches: read, check the manifest, create the run, wait until it ends."""

    def __init__(
        self,
        target: DownloadDeployment,
        runs: ChildRuns,
        limits: Limits,
        *,
        force: bool,
        on_progress: Callable[[Counts], None],
        on_created: Callable[[MessageRef, Child], None],
        on_result: Callable[[MessageRef, Child], None],
        skip_existing_runs: bool,
    ) -> None:
        self._target = target
        self._runs = runs
        self._limits = limits
        self._force = force
        self._on_progress = on_progress
        self._on_created = on_created
        self._on_result = on_result
        self._skip_existing_runs = skip_existing_runs
        self._tally = Tally()
        self._recent: dict[str, None] = {}
        self._unfinished: dict[UUID, _Unfinished] = {}
        self._denied_in_a_row = 0
        self._checks = ThreadPoolExecutor(MANIFEST_THREADS, thread_name_prefix="manifest")
        now = time.monotonic()
        self._poll_interval = limits.poll
        self._next_poll = self._last_poll = self._last_start = self._last_activity = now

    def close(self) -> None:
        """Shut down the threads that read manifests."""
        self._checks.shutdown(wait=False, cancel_futures=True)

    def run(self, messages: Iterable[MessageRef]) -> None:
        """Process the messages until every run has ended."""
        stream = iter(messages)
        while batch := self._unseen(islice(stream, self._limits.batch)):
            self._poll_until(unfinished=self._limits.window)
            for message, predecessor in self._without_run(batch):
                self._poll_until(unfinished=self._limits.window - 1)
                child = self._runs.create(message, predecessor.id if predecessor else None)
                self._on_created(message, child)
                self._record_stage(
                    message, replace(child, first_attempt=predecessor.first_attempt) if predecessor else child
                )
        self._poll_until(unfinished=0)

    def counts(self) -> Counts:
        """The counts as they are now."""
        running = sum(one.child.stage is Stage.RUNNING for one in self._unfinished.values())
        return self._tally.counts(running=running)

    def _unseen(self, messages: Iterator[MessageRef]) -> list[MessageRef | None]:
        """A batch of messages, with None in place of each recent duplicate."""
        batch: list[MessageRef | None] = []
        for message in messages:
            is_duplicate = message.key in self._recent
            self._tally.add(seen=1, duplicates=int(is_duplicate))
            batch.append(None if is_duplicate else message)
            self._recent[message.key] = None
            if len(self._recent) > REMEMBERED_KEYS:
                del self._recent[next(iter(self._recent))]
        return batch

    def _without_run(self, batch: Sequence[MessageRef | None]) -> Iterator[tuple[MessageRef, Child | None]]:
        """The messages of a batch that need a run, each with the run that it follows, if any."""
        messages = [message for message in batch if message is not None]
        if not self._force:
            messages = list(self._incomplete(messages))
        existing: Mapping[str, Child] = self._runs.latest(messages) if self._skip_existing_runs else {}
        for message in messages:
            latest = existing.get(message.key)
            if latest is None or self._needs_another_run(latest):
                yield message, latest
            else:
                is_other_callers = not latest.stage.is_ended and not self._runs.is_own(latest)
                self._record_stage(message, latest, is_other_callers=is_other_callers)

    def _incomplete(self, messages: Sequence[MessageRef]) -> Iterator[MessageRef]:
        contexts = [copy_context() for _ in messages]  # a thread does not inherit the run's cancellation
        results = self._checks.map(lambda context, message: context.run(self._is_settled, message), contexts, messages)
        for message, result in zip(messages, results, strict=True):
            self._denied_in_a_row = self._denied_in_a_row + 1 if isinstance(result, StoreError) else 0
            if isinstance(result, StoreError):
                if self._denied_in_a_row == self._limits.max_denials:
                    raise result
                self._record_stage(message, Child(None, Stage.FAILED, result.outcome_code))
            elif result:
                self._tally.add(already_done=1)
            else:
                yield message

    def _is_settled(self, message: MessageRef) -> bool | AccessDenied:
        """Whether a run of the target would have nothing to do; the error if the manifest may not be read."""
        store = self._target.store
        with error_boundary():
            try:
                known = retry(
                    lambda: store.read_manifest(message.key),
                    StoreError,
                    MANIFEST_RETRY_DELAYS,
                    is_retryable=is_retryable,
                )
            except (InvalidManifest, NewerManifest):
                return False  # its own run rebuilds it, or says what is wrong
            except AccessDenied as error:
                return error
            return known is not None and known.is_announced and is_settled(known, self._target.filter)

    def _needs_another_run(self, latest: Child) -> bool:
        """Whether a message needs a run although it has this one."""
        if not latest.stage.is_ended:
            return False
        if latest.code == WITHDRAWN or (latest.code == NOT_FOUND and not self._runs.is_same_kind(latest)):
            return True
        is_fresh = latest.since is not None and datetime.now(UTC) - latest.since < self._limits.failure_cooldown
        # An earlier success is not enough: the filter may have changed since, or the files may be gone.
        return latest.stage is Stage.SUCCEEDED or not is_fresh

    def _record_stage(self, message: MessageRef, child: Child, *, is_other_callers: bool = False) -> None:
        """Record the stage of a message's run. `is_other_callers`: another caller owns the run, so it is not polled."""
        if child.id is not None and not child.stage.is_ended and not is_other_callers:
            if not child.is_later_attempt:
                self._unfinished[child.id] = _Unfinished(message, child)
                return
            child = replace(child, stage=Stage.RETRY_SCHEDULED)  # it may be hours away, so do not wait for it
        self._on_result(message, child)
        match child.stage:
            case Stage.SUCCEEDED:
                self._tally.add(succeeded=1)
            case Stage.RETRY_SCHEDULED:
                self._tally.add(retry_scheduled=1)
            case Stage.CANCELLED:
                self._tally.add(cancelled=1)
            case Stage.FAILED:
                self._tally.add_failed(child.code or "")
            case _:
                self._tally.add(in_other_runs=1)

    def _poll_until(self, *, unfinished: int) -> None:
        """Poll for the unfinished runs when it is time to, until there are no more than this many."""
        while True:
            cancellation.raise_if_cancelled()
            if time.monotonic() >= self._next_poll:
                self._poll()
            if len(self._unfinished) <= unfinished:
                return
            cancellation.sleep(max(0.0, self._next_poll - time.monotonic()))

    def _poll(self) -> None:
        before = time.monotonic()
        if self._unfinished:
            self._read_unfinished(before)
        self._on_progress(self.counts())
        self._next_poll = time.monotonic() + self._poll_interval

    def _read_unfinished(self, before: float) -> None:
        was_interrupted = before - self._last_poll > self._limits.deletion_check_after
        find_deleted = before - self._last_start > self._limits.deletion_check_after
        found = self._runs.read(tuple(self._unfinished), find_deleted=find_deleted)
        now = self._last_poll = time.monotonic()
        if any(child.stage is not Stage.WAITING for child in found):
            self._last_start = now
        # A gap is a time in which Prefect did not answer, or a report was read: it says nothing about the workers.
        if (
            was_interrupted
            or now - before > self._limits.deletion_check_after
            or self._last_start == now
            or self._runs.is_any_in_progress()
        ):
            self._last_activity = now
        elif now - self._last_activity >= self._limits.starvation_timeout:
            raise Starved(len(self._unfinished), self._target.work_pool)
        has_ended = False
        for child in found:
            if child.id is not None and (known := self._unfinished.pop(child.id, None)) is not None:
                self._record_stage(known.message, replace(child, first_attempt=known.child.first_attempt))
                has_ended |= child.stage.is_ended
        self._poll_interval = self._limits.poll if has_ended else min(self._limits.max_poll, self._poll_interval * 1.5)

    def cancel_unstarted(self) -> str:
        """Cancel the runs that have not started, later attempts included, for `CANCEL_BUDGET`; say what is left."""
        cancelled, is_rest = self._cancel_until(time.monotonic() + CANCEL_BUDGET)
        left = len(self._unfinished)
        withdrawn = counted(cancelled, "run that waited was", "runs that waited were")
        started = counted(left, "that had started finishes by itself", "that had started finish by themselves")
        text = f"Cancelled. {self.counts()}. {withdrawn} cancelled with it{f'; {started}' if left else ''}."
        return f"{text} More of them may still wait: cancel the runs with its tag." if is_rest else text

    def _cancel_until(self, end: float) -> tuple[int, bool]:
        """How many runs were cancelled, and whether more may wait."""
        cancelled = 0
        tried: set[UUID] = set()
        while found := self._runs.unstarted(excluding=tried):
            for run_id in found:
                if time.monotonic() > end:
                    return cancelled, True
                tried.add(run_id)
                if self._runs.cancel(run_id):
                    cancelled += 1
                    if self._unfinished.pop(run_id, None) is not None:
                        self._tally.add(cancelled=1)
        # Prefect may not have answered, now or for one of them.
        return cancelled, found is None or self._runs.unstarted(excluding=()) != []
