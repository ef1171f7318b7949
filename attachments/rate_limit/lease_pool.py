"""The slots that one process has in use: their leases, and their reuse by later calls."""

import atexit
import heapq
import logging
import math
import threading
import time
from collections import deque
from uuid import UUID

import httpx

from attachments.foundation import cancellation
from attachments.prefect_api.prefect_retry import PrefectUnreachable
from attachments.rate_limit.slot_api import SlotApi
from attachments.rate_limit.timings import RateLimitTimings

MAX_CALLS_PER_SLOT = 6  # calls of one process with the same slot before others may have it

logger = logging.getLogger("attachments.rate_limit")


class Slot:
    """One slot of each limit in `names`, from the grant of the lease to its release."""

    def __init__(self, names: tuple[str, ...], lease: UUID, requested: float) -> None:
        self.names = names
        self.lease = lease
        self.calls = 1
        self.lease_start = requested  # monotonic: latest possible start of the lease
        self.retry_at = requested  # monotonic: earliest time of the next renewal
        self.window_end: float | None = None  # monotonic: when it leaves the window; None until the response has begun
        self.is_idle = False  # kept after `window_end` for another caller, for `reuse_window`
        self.is_ending = False  # it is being released, or its lease will expire
        self.failures = 0

    def next_action(self, timings: RateLimitTimings) -> float:
        """The monotonic time at which the slot must be released or, if that is earlier, its lease renewed."""
        if self.is_ending:
            return math.inf
        if self.window_end is None:
            return max(self.lease_start + timings.renew_after, self.retry_at)
        free = self.window_end + timings.reuse_window * self.is_idle
        return free if free < self.lease_start + timings.lease else min(free, self.retry_at)


class Waiter:
    """A caller that is waiting for a slot of each limit in `names`."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.is_chosen = False
        """Whether the pool has chosen this waiter, so that a response will follow."""
        self.has_stopped_waiting = False
        """Whether the caller has stopped waiting."""
        self.slot: Slot | None = None
        self.response = threading.Event()


class LeasePool:
    """Renews, reuses and releases the slots in use, in a thread of its own. Thread-safe.

    It renews the leases of calls in progress. A slot that has left the window is reused by the next caller in this
    process, if one arrives within `reuse_window`; otherwise it is released. Reuse costs one request, which does not
    touch Prefect's database. After `MAX_CALLS_PER_SLOT` calls a slot is released, so that other processes get their
    share and a lowered limit takes effect.
    """

    def __init__(self, api: SlotApi, timings: RateLimitTimings) -> None:
        self._api = api
        self._timings = timings
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Slot]] = []
        self._order = 0
        self._closed = False
        self._waiters: deque[Waiter] = deque()
        self._idle: list[Slot] = []
        threading.Thread(target=self._serve, name="lease-pool", daemon=True).start()
        atexit.register(self._close)

    def __len__(self) -> int:
        """The slots in use or kept."""
        with self._changed:
            return len(
                {id(slot) for _, _, slot in self._heap if not slot.is_ending} | {id(slot) for slot in self._idle}
            )

    def add(self, names: tuple[str, ...], lease: UUID, requested: float) -> Slot:
        """Add a slot whose call has no response yet. `requested` is the monotonic time of the request for it."""
        slot = Slot(names, lease, requested)
        self._push(slot)
        return slot

    def release_at(self, slot: Slot, when: float) -> None:
        """Release or reuse the slot at `when` (monotonic), when its call leaves the window."""
        slot.window_end, slot.is_idle, slot.is_ending = when, False, False
        self._push(slot)

    def has_idle(self, names: tuple[str, ...]) -> bool:
        """Whether a slot of these limits is kept for reuse."""
        with self._changed:
            return any(slot.names == names for slot in self._idle)

    def try_reuse(self, names: tuple[str, ...]) -> Slot | None:
        """A slot that is kept for reuse; None if there is none. Raises `RunCancelled`."""
        return self.wait_for_reuse(names, 1.0) if self.has_idle(names) else None

    def will_be_free(self, names: tuple[str, ...], seconds: float) -> bool:
        """Whether a slot of this process leaves the window within this many seconds."""
        latest = time.monotonic() + seconds
        with self._changed:
            slots = [slot for _, _, slot in self._heap]
        return any(slot.names == names and slot.window_end is not None and slot.window_end < latest for slot in slots)

    def wait_for_reuse(self, names: tuple[str, ...], seconds: float) -> Slot | None:
        """A slot that another call of this process no longer needs; None: request one from Prefect.

        Raises `RunCancelled` when the run is cancelled during the wait.
        """
        waiter = Waiter(names)
        with self._changed:
            self._waiters.append(waiter)
            self._changed.notify()
        with cancellation.on_cancel(waiter.response.set):
            waiter.response.wait(seconds)
            if waiter.is_chosen:
                waiter.response.wait(self._timings.response_timeout)
        with self._changed:
            waiter.has_stopped_waiting = True
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        try:
            cancellation.raise_if_cancelled()
        except cancellation.RunCancelled:
            if waiter.slot is not None:
                self.release_at(waiter.slot, time.monotonic())
            raise
        return waiter.slot

    def _push(self, slot: Slot) -> None:
        with self._changed:
            self._order += 1
            heapq.heappush(self._heap, (slot.next_action(self._timings), self._order, slot))
            self._changed.notify()

    def _serve(self) -> None:
        while (slot := self._next()) is not None:
            try:
                self._process(slot)
            except Exception as error:  # noqa: BLE001  the thread's outermost loop: the other slots need it
                logger.error(
                    "Internal error in the lease pool (%s); it continues with the other slots. Please report this.",
                    type(error).__name__,
                )
                if slot.window_end is None or slot.window_end > time.monotonic():
                    # Its call still counts: keep the lease.
                    slot.retry_at = time.monotonic() + self._timings.unreachable
                    self._push(slot)
                else:
                    slot.is_ending = True  # Prefect may have received the release; otherwise the lease ends by itself

    def _process(self, slot: Slot) -> None:
        if slot.window_end is None or slot.window_end > time.monotonic():
            self._renew(slot)
            self._push(slot)
            return
        is_reusable = slot.calls < MAX_CALLS_PER_SLOT
        waiter = self._waiter_for(slot) if is_reusable else None
        if waiter is not None:
            try:
                if self._renew(slot):
                    self._hand_over(slot, waiter)
                else:
                    self._release(slot)
            finally:
                self._respond(waiter, None)  # no-op after a hand-over
        elif is_reusable and not slot.is_idle:
            slot.is_idle = True
            with self._changed:
                self._idle.append(slot)
            self._push(slot)
        else:
            self._release(slot)
            if waiter := self._waiter_for(slot):
                self._respond(waiter, None)

    def _hand_over(self, slot: Slot, waiter: Waiter) -> None:
        slot.calls += 1
        slot.window_end = None
        self._push(slot)
        self._respond(waiter, slot)

    def _respond(self, waiter: Waiter, slot: Slot | None) -> None:
        """Respond to a waiter: with a slot, or with None because one was just released. The first response counts."""
        with self._changed:
            if waiter.response.is_set() and slot is None:
                return
            is_late = waiter.has_stopped_waiting
            if not is_late:
                waiter.slot = slot
        waiter.response.set()
        if is_late and slot is not None:
            self.release_at(slot, time.monotonic())

    def _waiter_for(self, slot: Slot) -> Waiter | None:
        with self._changed:
            waiter = next((waiter for waiter in self._waiters if waiter.names == slot.names), None)
            if waiter is not None:
                waiter.is_chosen = True
                self._waiters.remove(waiter)
            return waiter

    def _next(self) -> Slot | None:
        """Wait for the next slot that needs action. A due slot is in the heap twice; its stale entry is dropped."""
        with self._changed:
            while not self._closed:
                requested = {waiter.names for waiter in self._waiters}
                idle = next((slot for slot in self._idle if slot.names in requested), None)
                if idle is not None:
                    self._idle.remove(idle)
                    return idle
                if not self._heap:
                    self._changed.wait()
                    continue
                when, _, slot = self._heap[0]
                if when != slot.next_action(self._timings):
                    heapq.heappop(self._heap)
                elif when > time.monotonic():
                    self._changed.wait(when - time.monotonic())
                else:
                    heapq.heappop(self._heap)
                    if slot in self._idle:
                        self._idle.remove(slot)
                    return slot
        return None

    def _renew(self, slot: Slot) -> bool:
        requested = time.monotonic()
        try:
            self._api.renew(slot.lease)
        except (httpx.HTTPError, PrefectUnreachable) as error:
            logger.warning("A lease on a slot could not be renewed (%s).", type(error).__name__)
            slot.retry_at = time.monotonic() + self._timings.unreachable
            return False
        slot.lease_start = requested
        return True

    def _release(self, slot: Slot) -> None:
        """Retried until the lease would have ended anyway, because a slot that is not released is lost until then.

        Not retried when Prefect may have received it: two releases at the same moment count twice there.
        """
        slot.is_ending = True
        try:
            self._api.release(slot.lease)
        except (httpx.HTTPError, PrefectUnreachable) as error:
            may_have_arrived = isinstance(error, PrefectUnreachable) and error.may_have_arrived
            if may_have_arrived or slot.failures * self._timings.unreachable > self._timings.lease:
                logger.warning("A slot could not be released (%s); its lease will end.", type(error).__name__)
                return
            slot.failures += 1
            self.release_at(slot, time.monotonic() + self._timings.unreachable)

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
