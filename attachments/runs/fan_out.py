"""Many messages: a run for each, of a deployment of `download-attachments`, and never more than a few at a time.

A backfill or a reconciliation passes its messages to `run_children` as a stream. What the store's manifests settle is
skipped without a call. For each other message a run is created, under an idempotency key that is
made of the caller's and the message's: a caller that was killed and goes through its stream again finds the same runs.
Each child has its own retries, and any worker takes it; docs/decisions.md says why these are no mapped tasks.

Memory and the number of unfinished runs do not grow with the stream.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from queue import Empty, Full, Queue
from typing import TypeVar
from uuid import UUID

from attachments.domain.plan import is_settled
from attachments.domain.progress import Counts, Tally
from attachments.foundation import cancellation
from attachments.foundation.cancellation import Cancellation, RunCancelled
from attachments.foundation.numerals import counted
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
from attachments.runs.errors import error_boundary
from attachments.runs.state_record import WITHDRAWN
from attachments.storage import StoreError
from attachments.storage.errors import AccessDenied, InvalidManifest, NewerManifest

__all__ = ["BACKFILL", "Counts", "DownloadDeployment", "FanOutCancelled", "MessageRef", "Starved", "run_children"]

WINDOW = 50  # unfinished runs: enough for a fleet, and far from the 200 that starve a queue (prefect#19403)
CHECKS = 20  # manifests that are read at a time: a store in the network answers in 50 ms
AHEAD = 2 * CHECKS  # messages that are looked at before a place in the window is free for them
CREATIONS = 2  # runs that are created at a time: more make embedded SQLite refuse most of them
LOOK, LONGEST_LOOK = 1.0, 3.0  # seconds between looks at the unfinished runs: short while they end
LOOK_AT_ALL = 15.0  # seconds between looks that tell of those that wait, too
NOBODY = 30.0  # seconds in which no run is started, and none is under way, after which the caller is in the way
RECENT = 10_000  # message keys that are remembered, to know a message that is named twice
STORE_PAUSES = (2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before a manifest is read again that could not be
DENIALS = 20  # manifests in a row that may not be read, after which it is no matter of one message
STANDS_FOR = timedelta(days=1)  # in which a message whose run has failed gets no other one, see `skip_existing_runs`
CANCEL_BUDGET = 20.0  # seconds for cancelling what has not started, when the caller is cancelled
TELL = 1.0  # seconds between two words of progress

T = TypeVar("T")


class FanOutCancelled(RunCancelled):
    """The caller was cancelled; the text says what became of the runs that it had made."""

    def __init__(self, told: str) -> None:
        Exception.__init__(self, told)


class Starved(Exception):
    """The runs wait, and nobody starts one: maybe the caller itself holds the place that they wait for."""

    def __init__(self, counts: Counts) -> None:
        super().__init__("Nobody starts the runs that wait.")
        self.counts = counts


def run_children(
    wanted: Iterable[MessageRef],
    target: DownloadDeployment,
    *,
    key_prefix: str,
    tags: Sequence[str],
    force: bool = False,
    on_progress: Callable[[Counts], None] = lambda _: None,
    on_made: Callable[[MessageRef, Child], None] = lambda *_: None,
    on_ended: Callable[[MessageRef, Child], None] = lambda *_: None,
    yield_slot: bool = False,
    skip_existing_runs: bool = False,
) -> Counts:
    """Have the attachments of all these messages downloaded, and wait until it is done.

    Args:
        wanted: The messages. They are read in a thread of its own, and no further ahead than there is use for.
        target: The deployment whose runs do it.
        key_prefix: Begins the runs' idempotency keys; the same again finds the same runs.
        tags: Tags of the runs; the first one says of which kind they are. With `BACKFILL` they let live mail go first.
        force: Do every message again although its manifest says that it is done.
        on_progress: Called about once a second, in the caller's thread.
        on_made: Called with each run that was made and its message, in the caller's thread.
        on_ended: Called with each run that has ended and its message, in the caller's thread.
        skip_existing_runs: Consider the runs of the same deployment that others have made. A message that one of them
            waits for or works on is left to it; one whose run has failed less than a day ago is not tried again so
            soon, unless it was not found by a run of another kind: the caller knows of it.
            What the manifest settles is left alone even if the deployment's parameters have `force`.
        yield_slot: Raise `Starved` when no run is started for half a minute.

    Raises:
        FanOutCancelled: The caller was cancelled, and its runs that had not started with it.
        Starved: See `yield_slot`. The runs are left as they are.
        StoreError, PrefectLost, NotConfigured: It cannot go on. The runs are left as they are.
        Whatever reading the messages raises.
    """
    with child_runs(target, key_prefix=key_prefix, tags=tags, force=force) as runs:
        work = FanOut(
            wanted,
            target,
            runs,
            force=force or (target.force and not skip_existing_runs),
            on_progress=on_progress,
            on_made=on_made,
            on_ended=on_ended,
            skip_existing_runs=skip_existing_runs,
        )
        with work:
            return work.done(yield_slot=yield_slot)


@dataclass(frozen=True)
class _Known:
    """What is known of a message before a run is made for it; nothing when one is needed."""

    word: str | None = None
    """Why none is needed, as a word of `Counts`."""
    child: Child | None = None
    """The run that there is already, and stands."""
    after: UUID | None = None
    """The run after which another one is needed."""
    denied: StoreError | None = None
    """Why nobody knows: its manifest may not be read."""


class FanOut:
    """The loop that moves each message on: read, manifest looked at, run created, run ended."""

    def __init__(
        self,
        wanted: Iterable[MessageRef],
        target: DownloadDeployment,
        runs: ChildRuns,
        *,
        force: bool,
        on_progress: Callable[[Counts], None],
        on_made: Callable[[MessageRef, Child], None],
        on_ended: Callable[[MessageRef, Child], None],
        skip_existing_runs: bool,
    ) -> None:
        self._news = threading.Event()
        self._end = Cancellation()
        """For the threads that work for this: they end with it, and not only when the caller is cancelled."""
        self._stream = Prefetcher(wanted, self._news, self._end)
        self._target = target
        self._runs = runs
        self._force = force
        self._on_progress = on_progress
        self._on_made = on_made
        self._on_ended = on_ended
        self._skip_existing_runs = skip_existing_runs
        self._tally = Tally()
        self._recent: dict[str, None] = {}
        self._checking: dict[Future[_Known], MessageRef] = {}
        self._ready: deque[tuple[MessageRef, UUID | None]] = deque()
        self._creating: dict[Future[Child], MessageRef] = {}
        self._unfinished: dict[UUID, Stage] = {}
        self._whose: dict[UUID, MessageRef] = {}
        self._looking: Future[tuple[tuple[Child, ...], bool]] | None = None
        self._looks = PollSchedule()
        self._told = 0.0
        self._denied_in_a_row = 0
        self._checks = ThreadPoolExecutor(CHECKS, thread_name_prefix="manifest")
        self._creations = ThreadPoolExecutor(CREATIONS, thread_name_prefix="create-run")
        self._watch = ThreadPoolExecutor(1, thread_name_prefix="look-at-runs")

    def __enter__(self) -> FanOut:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.stop()
        self._end.cancel()
        for pool in (self._checks, self._creations, self._watch):
            pool.shutdown(wait=False, cancel_futures=True)

    def done(self, *, yield_slot: bool) -> Counts:
        """Until every message has ended."""
        try:
            with cancellation.on_cancel(self._end.cancel), cancellation.on_cancel(self._news.set):
                while not self._is_over():
                    self._news.wait(self._longest_wait())
                    self._news.clear()
                    cancellation.raise_if_cancelled()
                    self._move_on()
                    if yield_slot and self._looks.nobody_starts():
                        raise Starved(self.counts())
        except RunCancelled:
            raise FanOutCancelled(self._cancel_waiting()) from None
        self._on_progress(self.counts())
        return self.counts()

    def _longest_wait(self) -> float:
        """Seconds until there is something to do of which no news comes."""
        is_next = bool(self._unfinished) and self._looking is None
        return min(1.0, self._looks.seconds_left()) if is_next else 1.0

    def counts(self) -> Counts:
        """As they are now."""
        return self._tally.counts(running=sum(stage is Stage.RUNNING for stage in self._unfinished.values()))

    def _is_over(self) -> bool:
        return not (self._checking or self._ready or self._creating or self._unfinished) and self._stream.is_over()

    def _move_on(self) -> None:
        """Whatever can be done without waiting."""
        self._read_on()
        for check in [future for future in self._checking if future.done()]:
            self._checked(self._checking.pop(check), check.result())
        while self._ready and len(self._creating) + len(self._unfinished) < WINDOW:
            wanted, after = self._ready.popleft()
            self._creating[self._begin(self._creations, self._runs.create, wanted, after)] = wanted
        for creation in [future for future in self._creating if future.done()]:
            self._made(creation.result(), self._creating.pop(creation))
        self._look()
        now = time.monotonic()
        if now - self._told >= TELL:
            self._told = now
            self._on_progress(self.counts())

    def _read_on(self) -> None:
        while len(self._checking) + len(self._ready) < AHEAD and (wanted := self._stream.take()) is not None:
            self._tally.add(seen=1)
            if wanted.key in self._recent:
                self._tally.add(duplicates=1)
                continue
            self._recent[wanted.key] = None
            if len(self._recent) > RECENT:
                del self._recent[next(iter(self._recent))]
            if self._force:
                self._ready.append((wanted, None))
            else:
                self._checking[self._begin(self._checks, self._known, wanted)] = wanted

    def _known(self, wanted: MessageRef) -> _Known:
        try:
            if self._is_settled(wanted):
                return _Known("already_done")
        except AccessDenied as error:
            return _Known(denied=error)
        latest = self._runs.latest(wanted) if self._skip_existing_runs else None
        return _Known() if latest is None else self._after(latest)

    def _after(self, latest: Child) -> _Known:
        """What a message's newest run says of it, where others' runs are heeded."""
        if not latest.stage.is_ended:
            if not self._runs.is_ours(latest):
                return _Known("elsewhere")
            # Its own attempts may be hours ahead: nobody waits here for that.
            return _Known(child=replace(latest, stage=Stage.FOR_NOW) if latest.is_later_attempt else latest)
        if latest.code == WITHDRAWN:
            return _Known(after=latest.id)
        if latest.code == NOT_FOUND and not self._runs.is_same_kind(latest):
            return _Known(after=latest.id)
        is_fresh = latest.since is not None and datetime.now(UTC) - latest.since < STANDS_FOR
        if latest.stage is not Stage.SUCCEEDED and is_fresh:
            return _Known(child=latest)
        # One that succeeded before says nothing of now: the filter may be another, or the files be gone.
        return _Known(after=latest.id)

    def _is_settled(self, wanted: MessageRef) -> bool:
        """Whether a run of the target would have nothing to do."""
        with error_boundary():
            for pause in (*STORE_PAUSES, None):
                try:
                    known = self._target.store.read_manifest(wanted.key)
                except (InvalidManifest, NewerManifest):
                    return False  # its own run sees to it, or says what is wrong
                except StoreError as error:
                    if pause is None or not error.retryable:
                        raise
                    cancellation.sleep(pause)
                else:
                    return known is not None and known.is_announced and is_settled(known, self._target.filter)
        raise AssertionError("the last try returns or raises")

    def _checked(self, wanted: MessageRef, known: _Known) -> None:
        self._denied_in_a_row = 0 if known.denied is None else self._denied_in_a_row + 1
        if known.denied is not None:
            if self._denied_in_a_row == DENIALS:
                raise known.denied
            self._is_now(Child(None, Stage.FAILED, known.denied.outcome_code), wanted)
        elif known.word is not None:
            self._tally.add(**{known.word: 1})
        elif known.child is not None:
            self._is_now(known.child, wanted)
        else:
            self._ready.append((wanted, known.after))

    def _made(self, child: Child, wanted: MessageRef) -> None:
        self._on_made(wanted, child)
        self._is_now(child, wanted)

    def _is_now(self, child: Child, wanted: MessageRef) -> None:
        """Note where a message's run is."""
        if child.id is not None and not child.stage.is_ended:
            self._unfinished[child.id] = child.stage
            self._whose[child.id] = wanted
            return
        if child.id is not None:
            self._unfinished.pop(child.id, None)
            self._whose.pop(child.id, None)
        self._on_ended(wanted, child)
        match child.stage:
            case Stage.SUCCEEDED:
                self._tally.add(succeeded=1)
            case Stage.FOR_NOW:
                self._tally.add(for_now=1)
            case Stage.CANCELLED:
                self._tally.add(cancelled=1)
            case _:
                self._tally.add_failed(child.code or "")

    def _look(self) -> None:
        """Ask how the unfinished runs are, when it is time to, and note what was answered."""
        if self._looking is not None and self._looking.done():
            found, is_moving = self._looking.result()
            self._looking = None
            for child in found:
                if child.id in self._unfinished:
                    self._is_now(child, self._whose[child.id])
            self._looks.answered(
                has_ended=any(child.stage.is_ended for child in found),
                is_stuck=bool(self._unfinished) and not is_moving,
            )
        if self._looking is None and self._unfinished and self._looks.seconds_left() <= 0:
            at_all = self._looks.begin()
            self._looking = self._begin(self._watch, self._ask, tuple(self._unfinished), at_all)

    def _ask(self, run_ids: tuple[UUID, ...], at_all: bool) -> tuple[tuple[Child, ...], bool]:
        """Where these runs are, and whether anything moves: one of them, or one that has a place with their workers."""
        found = tuple(self._runs.look(run_ids, at_all=at_all).values())
        return found, any(child.stage is not Stage.WAITING for child in found) or self._runs.is_any_under_way()

    def _begin(self, pool: ThreadPoolExecutor, job: Callable[..., T], *arguments: object) -> Future[T]:
        """Start a job in a pool's thread, which hears when it is to end, and tells when it has ended."""
        future = pool.submit(_in_context(self._end).run, job, *arguments)
        future.add_done_callback(lambda _: self._news.set())
        return future

    def _cancel_waiting(self) -> str:
        """Cancel the runs that have not started, for a while, and say what is left."""
        end = time.monotonic() + CANCEL_BUDGET
        made = wait(self._creating, CANCEL_BUDGET / 4).done
        for creation in made:
            if not creation.cancelled() and creation.exception() is None:
                self._made(creation.result(), self._creating[creation])
        cancelled = 0
        for run_id in [run_id for run_id, stage in self._unfinished.items() if stage is Stage.WAITING]:
            if time.monotonic() > end:
                break
            if self._runs.cancel(run_id):
                del self._unfinished[run_id]
                cancelled += 1
        attempts, is_rest = self._cancel_attempts(end)
        self._tally.add(cancelled=cancelled)
        left = len(self._unfinished)
        withdrawn = counted(cancelled + attempts, "run that waited was", "runs that waited were")
        started = counted(left, "that had started finishes by itself", "that had started finish by themselves")
        told = f"Cancelled. {self.counts()}. {withdrawn} cancelled with it{f'; {started}' if left else ''}."
        return f"{told} More of them may still wait: cancel the runs with its tag." if is_rest else told

    def _cancel_attempts(self, end: float) -> tuple[int, bool]:
        """Cancel what else waits, such as attempts that are hours ahead: how many, and whether more may wait."""
        cancelled = 0
        asked: set[UUID] = set()
        while found := self._runs.waiting(but=asked):
            for run_id in found:
                if time.monotonic() > end:
                    return cancelled, True
                asked.add(run_id)
                if self._runs.cancel(run_id):
                    cancelled += 1
                    if self._unfinished.pop(run_id, None) is not None:
                        self._tally.add(cancelled=1)
        # Prefect may have been away, now or for one of them.
        return cancelled, found is None or self._runs.waiting(but=()) != []


def _in_context(end: Cancellation) -> Context:
    """For a thread that works for the caller, and that whatever waits in it ends when `end` is asked."""
    context = copy_context()
    context.run(cancellation.CURRENT.set, end)
    return context


class Prefetcher:
    """Reads the messages in a thread of its own, a few ahead: to read on may take minutes."""

    def __init__(self, wanted: Iterable[MessageRef], news: threading.Event, end: Cancellation) -> None:
        self._read: Queue[MessageRef | BaseException | None] = Queue(AHEAD)
        self._news = news
        self._stopped = threading.Event()
        self._is_over = False
        # Whoever waits in there for a report would else start the next one, and the next, for a run that has ended.
        reader = _in_context(end)
        threading.Thread(target=reader.run, args=(self._read_all, wanted), name="wanted", daemon=True).start()

    def take(self) -> MessageRef | None:
        """The next message; None when there is none now, or no more at all. Raises what the reading raised."""
        try:
            found = None if self._is_over else self._read.get_nowait()
        except Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        self._is_over = found is None
        return found

    def is_over(self) -> bool:
        """Whether the last message has been taken."""
        return self._is_over

    def stop(self) -> None:
        """Read no more."""
        self._stopped.set()

    def _read_all(self, wanted: Iterable[MessageRef]) -> None:
        try:
            for one in wanted:
                if not self._put(one):
                    return
        except BaseException as error:  # noqa: BLE001  raised where the messages are taken
            self._put(error)
        else:
            self._put(None)

    def _put(self, item: MessageRef | BaseException | None) -> bool:
        while not self._stopped.is_set():
            with suppress(Full):
                self._read.put(item, timeout=0.5)
                self._news.set()
                return True
        return False


class PollSchedule:
    """When to look at the unfinished runs again, and since when nothing has moved."""

    def __init__(self) -> None:
        self._pause = LOOK
        self._next = 0.0
        self._next_at_all = 0.0
        self._answered = 0.0
        self._stuck_since: float | None = None

    def seconds_left(self) -> float:
        """Until the next look is due."""
        return max(0.0, self._next - time.monotonic())

    def begin(self) -> bool:
        """A look begins. Whether it has to tell of those that wait, too."""
        now = time.monotonic()
        self._next = now + self._pause
        if now < self._next_at_all:
            return False
        self._next_at_all = now + LOOK_AT_ALL
        return True

    def answered(self, *, has_ended: bool, is_stuck: bool) -> None:
        """Note an answer. While Prefect was away nobody could start anything: such a time does not count."""
        now = time.monotonic()
        self._pause = LOOK if has_ended else min(LONGEST_LOOK, self._pause * 1.5)
        self._next = now + self._pause
        if not is_stuck or now - self._answered > LOOK_AT_ALL:
            self._stuck_since = now if is_stuck else None
        elif self._stuck_since is None:
            self._stuck_since = now
        self._answered = now

    def nobody_starts(self) -> bool:
        """Whether runs have waited for long, and none was under way."""
        return self._stuck_since is not None and time.monotonic() - self._stuck_since >= NOBODY
