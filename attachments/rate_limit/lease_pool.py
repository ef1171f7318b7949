"""The vendor's rate limit, kept by the whole fleet: an exact sliding window over a Prefect concurrency limit.

The account may make 100 calls in a minute (getting-started/rate-limits). Each call takes a slot of a Prefect
global concurrency limit, with a lease, and gives it back, or hands it on, 60 s after its response began. The vendor
counted the call before that, so there are never more than `limit` calls in any 60 s, however many processes share it.
`rate_limit()` would leave a quarter of the cap unused (docs/decisions.md).

A process that dies leaves its slots to the leases' expiry: `LEASE` seconds after the call at the latest.

A 429 all the same (another integration shares the account) pauses the whole fleet: who gets it says so in a Prefect
Variable, and the others look at it every few seconds. After the pause each process sends one call and waits for its
answer before it goes on. A call of a backfill takes a slot of a second, smaller limit as well, and waits in a line of
its own, so that it never stands in the way of live mail. The first of a backfill's calls would all be made at once,
and a minute later again, and so on: for seconds a minute live mail would find Prefect busy. They are spread instead.
"""

import atexit
import heapq
import logging
import math
import random
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from attachments.foundation import cancellation
from attachments.foundation.terminal_text import bounded, shown_name
from attachments.prefect_api.prefect_retry import Backoff, PrefectAway, PrefectBusy, retrying_settings
from attachments.prefect_api.url_path import path_part

logger = logging.getLogger("attachments.rate_limit.lease_pool")

WINDOW = 60.0  # seconds that a call counts
LEASE = 90.0  # seconds; for so long at the most a process that dies leaves its slots taken
RENEW_AFTER = 25.0  # seconds a call may wait for its response before its lease is renewed, and again; < LEASE - WINDOW
CALLS_IN_A_ROW = 6  # calls of one process with the same slot before others may have it
REUSE_WINDOW = 1.0  # seconds that a slot waits for this process's next call
ASK_AGAIN = 2.0  # seconds between questions when all slots are held by others
LONG = 3.0  # seconds between questions when some are this process's own, and come back to it
ASIDE = 1.0  # seconds at the most between news of a free slot and the question for it, so that processes take turns
BUSY = 0.1  # seconds to begin with before a question is asked again that a busy SQLite has not answered
CHECK_AGAIN = 60.0  # seconds between looks at whether the limit is still switched on
ANSWER_TIMEOUT = 30.0  # seconds for Prefect to answer
AWAY = 2.0  # seconds between tries while Prefect does not answer
FIRST_PAUSE = 60.0  # seconds after a 429: "wait at least a minute" (getting-started/rate-limits)
LONGEST_PAUSE = 480.0
HEAR = 5.0  # seconds between looks for a pause that another process has ordered
SPREAD = 0.8  # of the window over which one process's calls of a backfill are spread, at least
WIDEST = 1.0  # seconds at the most between two of them for that


class PacingError(Exception):
    """The vendor must not be called, since nothing would keep the calls below its cap."""


_low_priority: ContextVar[bool] = ContextVar("attachments_low_priority", default=False)


@contextmanager
def low_priority() -> Iterator[None]:
    """Calls in here, and in threads that are started from here, are a backfill's: live mail goes first."""
    before = _low_priority.set(True)
    try:
        yield
    finally:
        _low_priority.reset(before)


def is_low_priority() -> bool:
    """Whether what runs here is a backfill's."""
    return _low_priority.get()


class PrefectPacer:
    """Slots of one Prefect global concurrency limit. Safe to share between threads; make one a process and limit.

    Args:
        limit_name: the global concurrency limit, `emailgistics-api` by default.
        backlog_limit_name: the limit whose slots a backfill's calls take besides; without one they take none.
    """

    def __init__(self, limit_name: str, backlog_limit_name: str | None = None) -> None:
        self.limit_name = limit_name
        self._names: dict[bool, tuple[str, ...]] = {
            False: (limit_name,),
            True: (limit_name, backlog_limit_name) if backlog_limit_name else (limit_name,),
        }
        self._lines = {False: FifoLock(), True: FifoLock()}
        self._checked = dict.fromkeys(self._names[True], -CHECK_AGAIN)
        self._apart = 0.0
        """Seconds between two calls of a backfill."""
        self._backlog_goes_on = 0.0  # monotonic
        self._full = dict.fromkeys(self._names.values(), 0.0)
        """Until when, by the monotonic clock, nobody here asks for a slot: just now all were taken."""
        self._returns = LeasePool()
        self._pause = _Pause(limit_name, self._returns.client)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Hold a slot around one call: enter before the request is sent, leave when its response has begun.

        Waits as long as it takes, also while Prefect is away: no call is made unpaced.

        Raises:
            PacingError: the limit does not exist, or is switched off.
            RunCancelled: the run was cancelled while it waited.
        """
        is_backlog = _low_priority.get()
        with ExitStack() as turn:
            turn.enter_context(self._lines[is_backlog].turn())
            if is_backlog:
                cancellation.sleep(max(0.0, self._backlog_goes_on - time.monotonic()))
            slot = self._take(self._names[is_backlog])
            if is_backlog:
                self._backlog_goes_on = time.monotonic() + self._apart
            counts = 0.0  # seconds from now; nothing was sent yet
            try:
                with self._pause.obeyed() as is_probe:
                    # Whoever calls first after a pause keeps its turn until it is answered.
                    if not is_probe:
                        turn.close()
                    counts = WINDOW
                    yield
            finally:
                self._returns.release_at(slot, time.monotonic() + counts)

    def rate_limited(self) -> None:
        """The vendor answered 429: let a minute pass before the fleet's next call, longer if it repeats."""
        self._pause.order()

    def _take(self, names: tuple[str, ...]) -> "_Slot":
        """A slot of each limit."""
        busy: Backoff | None = None
        while True:
            self._pause.wait()
            if slot := self._returns.try_reuse(names):
                return slot
            asked = time.monotonic()
            if asked < self._full[names]:
                if slot := self._returns.wait_for_reuse(names, self._full[names] - asked):
                    return slot
                self._full[names] = 0.0
                # Processes that wait for less than all of this get what was given back as often as this one.
                cancellation.sleep(random.uniform(0, ASIDE))  # noqa: S311  no secret
                continue
            try:
                answer = self._ask(names)
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.LOCKED:
                    patience = LONG if self._returns.will_be_free(names, WINDOW) else ASK_AGAIN
                    self._full[names] = time.monotonic() + patience
                    busy = None
                else:
                    self._wait_as_told(error.response.status_code)
                continue
            except PrefectBusy:
                busy = busy or Backoff(BUSY)
                # One of this process's own slots may come back first.
                if slot := self._returns.wait_for_reuse(names, busy.next()):
                    return slot
                if busy.is_exhausted():
                    self._wait_for_prefect("503")
                    busy = None
                continue
            except PrefectAway as error:
                self._wait_for_prefect(str(error))
                continue
            body = answer.json()
            missing = set(names) - {limit["name"] for limit in body["limits"]}
            if missing:
                raise self._missing(min(missing))
            return self._returns.hold(names, UUID(body["lease_id"]), asked)

    def _wait_as_told(self, status: int) -> None:
        """Wait before asking again, as long as the refusal asks for. Raises `PacingError` for one that will stay."""
        if status == httpx.codes.UNPROCESSABLE_ENTITY:
            logger.warning("The limit %s is 0: no call is made until it is larger.", bounded(self.limit_name))
            cancellation.sleep(AWAY)
        elif status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
            self._wait_for_prefect(str(status))
        else:
            raise PacingError(
                f"Prefect refused a slot of the limit {shown_name(self.limit_name)} ({status}). Check what this "
                "process may do in Prefect (PREFECT_API_KEY, PREFECT_API_AUTH_STRING)."
            ) from None

    def _ask(self, names: tuple[str, ...]) -> httpx.Response:
        for name in names:
            self._check(name, self._returns.client)
        return self._returns.asking.increment_concurrency_slots_with_lease(
            names=list(names), slots=1, mode="concurrency", lease_duration=LEASE
        )

    def _check(self, name: str, client: SyncPrefectClient) -> None:
        """A limit that is missing or switched off limits nothing, silently: Prefect grants every slot."""
        if time.monotonic() - self._checked[name] < CHECK_AGAIN:
            return
        try:
            limit = client.read_global_concurrency_limit_by_name(path_part(name))
        except ObjectNotFound:
            raise self._missing(name) from None
        if not limit.active:
            raise PacingError(
                f"The limit {shown_name(name)} is switched off, so nothing would keep the calls below the cap of "
                "Emailgistics. Switch it on in the Prefect UI under Concurrency."
            )
        if name not in self._names[False]:
            self._apart = min(WIDEST, SPREAD * WINDOW / max(limit.limit, 1))
        self._checked[name] = time.monotonic()

    def _missing(self, name: str) -> PacingError:
        return PacingError(
            f"There is no global concurrency limit {shown_name(name)}, so nothing would keep the calls below the cap "
            "of Emailgistics. `attachments setup` makes it."
        )

    def _wait_for_prefect(self, reason: str) -> None:
        logger.warning("Prefect gives no slot (%s); the call waits, none is made without.", reason)
        cancellation.sleep(AWAY)


class FifoLock:
    """One at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn, and keep it. Raises `RunCancelled` when the run is to end while it waits."""
        mine = threading.Event()
        with self._lock:
            self._waiting.append(mine)
            self._waiting[0].set()
        try:
            with cancellation.on_cancel(mine.set):
                mine.wait()
            cancellation.raise_if_cancelled()
            yield
        finally:
            with self._lock:
                self._waiting.remove(mine)
                if self._waiting:
                    self._waiting[0].set()


def pause_variable(limit_name: str) -> str:
    """The name of the Prefect Variable that says until when no calls are made under a limit."""
    return re.sub(r"[^a-z0-9_-]", "-", f"{limit_name}-pause".lower())


class _Pause:
    """No calls for a while, after a 429: in this process at once, in others as soon as they hear of it."""

    def __init__(self, limit_name: str, client: SyncPrefectClient) -> None:
        self._client = client
        self._variable = pause_variable(limit_name)
        self._lock = threading.Lock()
        self._until = -LONGEST_PAUSE  # monotonic
        self._seconds = FIRST_PAUSE
        self._heard = -HEAR
        self._acted_on = ""
        """The end of the last pause that was told or heard of: it is obeyed once, whatever the clocks do."""
        self._is_doubted = False
        """Whether there was a pause, and no call has come through since."""

    def order(self) -> None:
        """Pause the fleet, for twice as long as the last time when that was just now."""
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                return
            repeats = self._is_doubted or now - self._until < self._seconds
            self._begin(min(self._seconds * 2, LONGEST_PAUSE) if repeats else FIRST_PAUSE)
            seconds = self._seconds
            self._acted_on = until = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        logger.warning("Emailgistics answered 429 (rate limit): no calls for %.0f s.", seconds)
        self._tell({"until": until, "seconds": seconds})

    def wait(self) -> None:
        """Wait until there is no pause, as far as is known."""
        self._hear()
        while (left := self._left()) > 0:
            cancellation.sleep(left)

    @contextmanager
    def obeyed(self) -> Iterator[bool]:
        """Enter with a slot, before the call; yields whether it is the one that finds out whether the pause is over."""
        self._hear()
        while (left := self._left()) > 0:  # ordered while the slot was asked for
            cancellation.sleep(left)
        with self._lock:
            is_probe, began = self._is_doubted, self._until
        yield is_probe
        with self._lock:
            if is_probe and self._until == began:
                self._is_doubted = False

    def _left(self) -> float:
        with self._lock:
            return self._until - time.monotonic()

    def _begin(self, seconds: float, left: float | None = None) -> None:
        self._until = time.monotonic() + (seconds if left is None else left)
        self._seconds = seconds
        self._is_doubted = True

    def _hear(self) -> None:
        """Read of others' pauses. Whoever cannot finds out by a 429 of its own."""
        with self._lock:
            if time.monotonic() - self._heard < HEAR:
                return
            self._heard = time.monotonic()
        try:
            variable = self._client.read_variable_by_name(self._variable)
            told = variable.value if variable else None
            if not isinstance(told, Mapping):
                return
            until, seconds = str(told["until"]), min(float(told["seconds"]), LONGEST_PAUSE)
            left = min((datetime.fromisoformat(until) - datetime.now(UTC)).total_seconds(), seconds)
        except (httpx.HTTPError, PrefectAway) as error:
            logger.debug("Whether the fleet pauses cannot be read (%s).", type(error).__name__)
            return
        except (KeyError, TypeError, ValueError):
            logger.warning("The Prefect Variable %s holds no pause; it is ignored. Delete it.", bounded(self._variable))
            return
        with self._lock:
            if until == self._acted_on:
                return
            self._acted_on = until
            if left > 0 and time.monotonic() + left > self._until:
                logger.warning("Another process met the rate limit: no calls for %.0f s.", left)
                self._begin(seconds, left)

    def _tell(self, pause: dict[str, Any]) -> None:
        try:
            try:
                self._client.update_variable(VariableUpdate(name=self._variable, value=pause))
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.NOT_FOUND:
                    raise
                self._client.create_variable(VariableCreate(name=self._variable, value=pause))
        except (httpx.HTTPError, PrefectAway, ObjectAlreadyExists) as error:
            logger.warning("The other processes could not be told of the pause (%s).", type(error).__name__)


class _Slot:
    """A slot of each of these limits in use, from the grant of its lease to its return."""

    def __init__(self, names: tuple[str, ...], lease: UUID, asked: float) -> None:
        self.names = names
        self.lease = lease
        self.calls = 1
        self.leased = asked  # monotonic: since when the lease runs, at the latest
        self.retry = asked  # monotonic: not to be renewed before
        self.due: float | None = None  # monotonic; None while the response has not begun
        self.is_kept = False  # for REUSE_WINDOW seconds after that, for another caller
        self.is_over = False  # it is being given back, or left to its lease
        self.failures = 0

    def next_action(self) -> float:
        """When the slot needs something, by the monotonic clock: its return, or before that a longer lease."""
        if self.is_over:
            return math.inf
        if self.due is None:
            return max(self.leased + RENEW_AFTER, self.retry)
        free = self.due + REUSE_WINDOW * self.is_kept
        return free if free < self.leased + LEASE else min(free, self.retry)


class Waiter:
    """A caller that waits for a slot of these limits."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.is_heard = False
        """Whether it is about to be answered."""
        self.is_over = False
        """Whether nobody waits for the answer any more."""
        self.slot: _Slot | None = None
        self.news = threading.Event()


class LeasePool:
    """Looks after the slots in use, in one thread of its own.

    It renews the leases of calls under way. A slot that falls due it hands over to the next caller of this process that
    comes within `REUSE_WINDOW`, which is one request that Prefect needs no database for, or gives it back. After
    `CALLS_IN_A_ROW` it is given back, so that other processes get their share, and a limit that was lowered is heeded.
    """

    def __init__(self) -> None:
        self.client = _client(shortest=BUSY)
        self.asking = _client(raise_if_busy=True)
        """For what is not to be asked again while the database is locked: it raises `PrefectBusy`."""
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, _Slot]] = []
        self._order = 0
        self._closed = False
        self._wishes: deque[Waiter] = deque()
        self._kept: list[_Slot] = []
        threading.Thread(target=self._serve, name="lease-pool", daemon=True).start()
        atexit.register(self._close)

    def hold(self, names: tuple[str, ...], lease: UUID, asked: float) -> _Slot:
        """Look after a slot whose response has not begun, and that was asked for at `asked`, by the monotonic clock."""
        slot = _Slot(names, lease, asked)
        self._push(slot)
        return slot

    def release_at(self, slot: _Slot, when: float) -> None:
        """The slot's call leaves the window at `when`, by the monotonic clock."""
        slot.due, slot.is_kept, slot.is_over = when, False, False
        self._push(slot)

    def try_reuse(self, names: tuple[str, ...]) -> _Slot | None:
        """A slot that waits for a caller here; None when there is none. Raises `RunCancelled`."""
        with self._changed:
            if not any(slot.names == names for slot in self._kept):
                return None
        return self.wait_for_reuse(names, 1.0)

    def will_be_free(self, names: tuple[str, ...], seconds: float) -> bool:
        """Whether a slot of this process falls due by then."""
        latest = time.monotonic() + seconds
        with self._changed:
            slots = [slot for _, _, slot in self._heap]
        return any(slot.names == names and slot.due is not None and slot.due < latest for slot in slots)

    def wait_for_reuse(self, names: tuple[str, ...], seconds: float) -> _Slot | None:
        """A slot that another caller of this process is through with; None when it is time to ask Prefect again.

        Raises `RunCancelled` when the run is to end while it waits.
        """
        wish = Waiter(names)
        with self._changed:
            self._wishes.append(wish)
            self._changed.notify()
        with cancellation.on_cancel(wish.news.set):
            wish.news.wait(seconds)
            if wish.is_heard:
                wish.news.wait(ANSWER_TIMEOUT)
        with self._changed:
            wish.is_over = True
            if wish in self._wishes:
                self._wishes.remove(wish)
        try:
            cancellation.raise_if_cancelled()
        except cancellation.RunCancelled:
            if wish.slot is not None:
                self.release_at(wish.slot, time.monotonic())
            raise
        return wish.slot

    def _push(self, slot: _Slot) -> None:
        with self._changed:
            self._order += 1
            heapq.heappush(self._heap, (slot.next_action(), self._order, slot))
            self._changed.notify()

    def _serve(self) -> None:
        while True:
            slot = self._next()
            if slot is None:
                return
            if slot.due is None or slot.due > time.monotonic():
                self._renew(slot)
                self._push(slot)
                continue
            may_go_on = slot.calls < CALLS_IN_A_ROW
            wish = self._wish_for(slot) if may_go_on else None
            if wish is not None:
                self._hand_over(slot, wish)
            elif may_go_on and not slot.is_kept:
                slot.is_kept = True
                with self._changed:
                    self._kept.append(slot)
                self._push(slot)
            else:
                self._give_back(slot)
                if wish := self._wish_for(slot):
                    self._answer(wish, None)

    def _hand_over(self, slot: _Slot, wish: Waiter) -> None:
        if not self._renew(slot):
            self._give_back(slot)
            self._answer(wish, None)
            return
        slot.calls += 1
        slot.due = None
        self._push(slot)
        self._answer(wish, slot)

    def _answer(self, wish: Waiter, slot: _Slot | None) -> None:
        """With a slot, or with the news that one was just given back."""
        with self._changed:
            is_late = wish.is_over
            if not is_late:
                wish.slot = slot
        wish.news.set()
        if is_late and slot is not None:
            self.release_at(slot, time.monotonic())

    def _wish_for(self, slot: _Slot) -> Waiter | None:
        with self._changed:
            wish = next((wish for wish in self._wishes if wish.names == slot.names), None)
            if wish is not None:
                wish.is_heard = True
                self._wishes.remove(wish)
            return wish

    def _next(self) -> _Slot | None:
        """Wait for the next slot that needs something. A slot stands twice once it is due; the stale one is dropped."""
        with self._changed:
            while not self._closed:
                wanted = {wish.names for wish in self._wishes}
                kept = next((slot for slot in self._kept if slot.names in wanted), None)
                if kept is not None:
                    self._kept.remove(kept)
                    return kept
                if not self._heap:
                    self._changed.wait()
                    continue
                when, _, slot = self._heap[0]
                if when != slot.next_action():
                    heapq.heappop(self._heap)
                elif when > time.monotonic():
                    self._changed.wait(when - time.monotonic())
                else:
                    heapq.heappop(self._heap)
                    if slot in self._kept:
                        self._kept.remove(slot)
                    return slot
        return None

    def _renew(self, slot: _Slot) -> bool:
        asked = time.monotonic()
        try:
            self.client.renew_concurrency_lease(slot.lease, LEASE)
        except (httpx.HTTPError, PrefectAway) as error:
            logger.warning("A lease on a slot could not be renewed (%s).", type(error).__name__)
            slot.retry = time.monotonic() + AWAY
            return False
        slot.leased = asked
        return True

    def _give_back(self, slot: _Slot) -> None:
        """Tried again until the lease would have run out anyway, since a slot not given back is lost till then.

        Not when Prefect may have heard: giving back twice at the same moment counts twice there.
        """
        slot.is_over = True
        try:
            self.client.release_concurrency_slots_with_lease(slot.lease)
        except (httpx.HTTPError, PrefectAway) as error:
            may_have_heard = isinstance(error, PrefectAway) and error.may_have_heard
            if may_have_heard or slot.failures * AWAY > LEASE:
                logger.warning("A slot could not be given back (%s); its lease will run out.", type(error).__name__)
                return
            slot.failures += 1
            self.release_at(slot, time.monotonic() + AWAY)

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()


def _client(**options: Any) -> SyncPrefectClient:
    # Settings of its own keep it apart from the client of whatever flow run happens to come first,
    # which is closed when that run ends.
    settings = retrying_settings(ANSWER_TIMEOUT, raise_if_unreachable=True, **options)
    return get_client(httpx_settings=settings, sync_client=True).__enter__()
