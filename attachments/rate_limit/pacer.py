"""The vendor's rate limit, kept by the whole fleet: an exact sliding window over a Prefect concurrency limit.

The account may make 100 calls in a minute (getting-started/rate-limits). Each call takes a slot of a Prefect
global concurrency limit, with a lease, and releases it, or hands it on, 60 s after its response began. The vendor
counted the call before that, so there are never more than `limit` calls in any 60 s, however many processes share it.
`rate_limit()` would leave a quarter of the cap unused (docs/decisions.md).

A process that dies leaves its slots to the leases' expiry: 90 s after the call at the latest.

A 429 all the same (another integration shares the account) pauses the whole fleet. A call of a backfill takes a slot of
a second, smaller limit as well, and waits in a line of its own, so that it never delays live mail. The first calls of a
backfill would all be made at once, and a minute later again, and so on: for seconds of each minute live mail would find
Prefect busy. They are spread instead.
"""

import logging
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
from prefect.exceptions import ObjectNotFound

from attachments.foundation import cancellation
from attachments.foundation.terminal_text import escaped_line, shown_name
from attachments.prefect_api.prefect_retry import Backoff, PrefectBusy, PrefectUnreachable
from attachments.rate_limit.errors import PacingError
from attachments.rate_limit.fifo_lock import FifoLock
from attachments.rate_limit.fleet_pause import FleetPause
from attachments.rate_limit.lease_pool import LeasePool, Slot
from attachments.rate_limit.priority import is_low_priority
from attachments.rate_limit.slot_api import Grant, SlotApi
from attachments.rate_limit.timings import RateLimitTimings

logger = logging.getLogger("attachments.rate_limit")


class PrefectPacer:
    """Slots of one Prefect global concurrency limit. Shared between threads; make one per process and limit.

    Args:
        limit_name: the global concurrency limit, `emailgistics-api` by default.
        backlog_limit_name: the limit whose slots a backfill's calls take besides; without one they take none.
        timings: those of production unless a test shortens them.
        api: Prefect's API.
    """

    def __init__(
        self,
        limit_name: str,
        backlog_limit_name: str | None = None,
        *,
        timings: RateLimitTimings = RateLimitTimings(),  # noqa: B008  frozen
        api: SlotApi | None = None,
    ) -> None:
        self.limit_name = limit_name
        self._timings = timings
        self._api = api or SlotApi(timings)
        self._lines = {
            False: _PriorityLine((limit_name,)),
            True: _PriorityLine((limit_name, backlog_limit_name) if backlog_limit_name else (limit_name,)),
        }
        self._checked = dict.fromkeys(self._lines[True].names, -timings.limit_check)
        self._pool = LeasePool(self._api, timings)
        self._pause = FleetPause(limit_name, self._api, timings)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Hold a slot around one call: enter before the request is sent, leave when its response has begun.

        Waits as long as it takes, also while Prefect is unreachable: no call is made unpaced.

        Raises:
            PacingError: the limit does not exist, or is switched off.
            RunCancelled: the run was cancelled during the wait.
        """
        line = self._lines[is_low_priority()]
        with ExitStack() as turn:
            turn.enter_context(line.lock.turn())
            cancellation.sleep(max(0.0, line.next_call - time.monotonic()))
            slot = self._take(line)
            line.next_call = time.monotonic() + line.spread
            counts = 0.0  # seconds from now; nothing was sent yet
            try:
                with self._pause.obeyed() as is_probe:
                    # The probe keeps its turn until it has a response.
                    if not is_probe:
                        turn.close()
                    counts = self._timings.window
                    yield
            finally:
                self._pool.release_at(slot, time.monotonic() + counts)

    def rate_limited(self) -> None:
        """The vendor answered 429: let a minute pass before the fleet's next call, longer if it repeats."""
        self._pause.order()

    def _take(self, line: "_PriorityLine") -> Slot:
        """A slot of each limit."""
        busy: Backoff | None = None
        while True:
            self._pause.wait()
            if slot := self._pool.try_reuse(line.names):
                return slot
            requested = time.monotonic()
            if requested < line.full_until:
                if slot := self._pool.wait_for_reuse(line.names, line.full_until - requested):
                    return slot
                line.full_until = 0.0
                # Processes that wait for less than all of this get a released slot as often as this one.
                cancellation.sleep(random.uniform(0, self._timings.stagger))  # noqa: S311  no secret
                continue
            try:
                grant = self._request(line.names)
            except httpx.HTTPStatusError as error:
                busy = None
                self._wait_after_refusal(error.response.status_code, line)
                continue
            except PrefectBusy:
                busy = busy or Backoff(self._timings.busy, patience=self._timings.busy_patience)
                # One of this process's own slots may come back first.
                if slot := self._pool.wait_for_reuse(line.names, busy.next()):
                    return slot
                if busy.is_exhausted():
                    self._wait_for_prefect("503")
                    busy = None
                continue
            except PrefectUnreachable as error:
                self._wait_for_prefect(str(error))
                continue
            if missing := set(line.names) - grant.limits:
                self._discard(grant)
                raise self._missing(min(missing))
            return self._pool.add(line.names, grant.lease, requested)

    def _wait_after_refusal(self, status: int, line: "_PriorityLine") -> None:
        """Wait before the next request, as the refusal demands. Raises `PacingError` for a permanent one."""
        if status == httpx.codes.LOCKED:  # all slots are taken
            own = self._pool.will_be_free(line.names, self._timings.window)
            line.full_until = time.monotonic() + (self._timings.poll_with_own if own else self._timings.poll)
        elif status == httpx.codes.UNPROCESSABLE_ENTITY:
            logger.warning("The limit %s is 0: no call is made until it is larger.", escaped_line(self.limit_name))
            cancellation.sleep(self._timings.unreachable)
        elif status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
            self._wait_for_prefect(str(status))
        else:
            raise PacingError(
                f"Prefect refused a slot of the limit {shown_name(self.limit_name)} ({status}). Check what this "
                "process may do in Prefect (PREFECT_API_KEY, PREFECT_API_AUTH_STRING)."
            ) from None

    def _request(self, names: tuple[str, ...]) -> Grant:
        for name in names:
            self._check(name)
        return self._api.acquire(names)

    def _check(self, name: str) -> None:
        """Raises `PacingError` for a limit that is missing or switched off: Prefect would grant every slot."""
        if time.monotonic() - self._checked[name] < self._timings.limit_check:
            return
        try:
            limit = self._api.read_limit(name)
        except ObjectNotFound:
            raise self._missing(name) from None
        if not limit.active:
            raise PacingError(
                f"The limit {shown_name(name)} is switched off, so nothing would keep the calls below the cap of "
                "Emailgistics. Switch it on in the Prefect UI under Concurrency."
            )
        if name != self.limit_name:
            spread = self._timings.spread * self._timings.window / max(limit.limit, 1)
            self._lines[True].spread = min(self._timings.widest_spread, spread)
        self._checked[name] = time.monotonic()

    def _discard(self, grant: Grant) -> None:
        """Release slots that are not used. Those that cannot be released are free when their lease ends."""
        with suppress(httpx.HTTPError, PrefectUnreachable):
            self._api.release(grant.lease)

    def _missing(self, name: str) -> PacingError:
        return PacingError(
            f"There is no global concurrency limit {shown_name(name)}, so nothing would keep the calls below the cap "
            "of Emailgistics. `attachments setup` makes it."
        )

    def _wait_for_prefect(self, reason: str) -> None:
        logger.warning("Prefect gives no slot (%s); the call waits, none is made without.", reason)
        cancellation.sleep(self._timings.unreachable)


class _PriorityLine:
    """Calls of one priority, one after the other, that need a slot of each of these limits."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.lock = FifoLock()
        self.spread = 0.0
        """Seconds between two calls."""
        self.next_call = 0.0  # monotonic
        self.full_until = 0.0  # monotonic: until then no slot is requested, because just now all were taken
