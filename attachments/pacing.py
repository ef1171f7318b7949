"""The vendor's rate limit, kept by the whole fleet: an exact sliding window over a Prefect concurrency limit.

The account may make 100 calls in a minute (getting-started/rate-limits). Each call takes a slot of a Prefect
global concurrency limit, with a lease, and gives it back 60 s after its response began. The vendor counted the
call before that, so there are never more than `limit` calls in any 60 s, however many processes share it.
`rate_limit()` would leave a quarter of the cap unused (DESIGN.md, "Measured here").

A process that dies leaves its slots to the leases' expiry: `LEASE` seconds after the call at the latest.
"""

import atexit
import heapq
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from attachments.prefect_busy import PrefectAway, make_patient

logger = logging.getLogger("attachments.pacing")

WINDOW = 60.0  # seconds that a call counts
LEASE = 120.0  # seconds; long enough for a response that begins within LEASE - WINDOW without a renewal
RENEW_AFTER = 30.0  # seconds a call may wait for its response before its lease is renewed, and again
ASK_AGAIN = 1.0  # seconds between questions when the slots are held by others
CHECK_AGAIN = 60.0  # seconds between looks at whether the limit is still switched on
ANSWER_TIMEOUT = 30.0  # seconds for Prefect to answer
AWAY = 2.0  # seconds between tries while Prefect does not answer
FIRST_PAUSE = 60.0  # seconds after a 429: "wait at least a minute" (getting-started/rate-limits)
LONGEST_PAUSE = 480.0


class PacingError(Exception):
    """The vendor must not be called, since nothing would keep the calls below its cap."""


class PrefectPacer:
    """Slots of one Prefect global concurrency limit. Safe to share between threads; make one a process and limit.

    Args:
        limit_name: the global concurrency limit, `emailgistics-api` by default.
    """

    def __init__(self, limit_name: str) -> None:
        self.limit_name = limit_name
        self._turn = threading.Lock()  # one thread asks; the others queue behind it
        self._checked = -CHECK_AGAIN
        self._pause_until = 0.0
        self._pause = FIRST_PAUSE
        self._returns = _Returns()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Hold a slot around one call: enter before the request is sent, leave when its response has begun.

        Waits as long as it takes, also while Prefect is away: no call is made unpaced.

        Raises:
            PacingError: the limit does not exist, or is switched off.
        """
        with self._turn:
            lease = self._take()
        slot = self._returns.hold(lease)
        try:
            yield
        finally:
            self._returns.due(slot, time.monotonic() + WINDOW)

    def rate_limited(self) -> None:
        """The vendor answered 429: let a minute pass before the next call of this process, longer if it repeats."""
        now = time.monotonic()
        if now < self._pause_until:
            return
        repeats = now - self._pause_until < self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE) if repeats else FIRST_PAUSE
        self._pause_until = now + self._pause
        logger.warning("Emailgistics answered 429 (rate limit): no calls for %.0f s.", self._pause)

    def _take(self) -> UUID:
        while True:
            time.sleep(max(0.0, self._pause_until - time.monotonic()))
            try:
                answer = self._ask()
            except httpx.HTTPStatusError as error:
                self._wait_as_told(error.response.status_code)
                continue
            except PrefectAway as error:
                self._wait_for_prefect(str(error))
                continue
            body = answer.json()
            if not body["limits"]:
                raise self._missing()
            return UUID(body["lease_id"])

    def _wait_as_told(self, status: int) -> None:
        """Wait before asking again, as long as the refusal asks for. Raises `PacingError` for one that will stay."""
        if status == httpx.codes.LOCKED:
            time.sleep(self._returns.until_next(at_most=ASK_AGAIN))
        elif status == httpx.codes.UNPROCESSABLE_ENTITY:
            logger.warning("The limit %s is 0: no call is made until it is larger.", self.limit_name)
            time.sleep(AWAY)
        elif status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
            self._wait_for_prefect(str(status))
        else:
            raise PacingError(
                f"Prefect refused a slot of the limit {self.limit_name} ({status}). Check what this process may do in "
                "Prefect (PREFECT_API_KEY, PREFECT_API_AUTH_STRING)."
            ) from None

    def _ask(self) -> httpx.Response:
        client = self._returns.client
        self._check(client)
        return client.increment_concurrency_slots_with_lease(
            names=[self.limit_name], slots=1, mode="concurrency", lease_duration=LEASE
        )

    def _check(self, client: SyncPrefectClient) -> None:
        """A limit that is missing or switched off limits nothing, silently: Prefect grants every slot."""
        if time.monotonic() - self._checked < CHECK_AGAIN:
            return
        try:
            limit = client.read_global_concurrency_limit_by_name(self.limit_name)
        except ObjectNotFound:
            raise self._missing() from None
        if not limit.active:
            raise PacingError(
                f"The limit {self.limit_name} is switched off, so nothing would keep the calls below the cap of "
                "Emailgistics. Switch it on in the Prefect UI under Concurrency."
            )
        self._checked = time.monotonic()

    def _missing(self) -> PacingError:
        return PacingError(
            f"There is no global concurrency limit {self.limit_name}, so nothing would keep the calls below the cap "
            "of Emailgistics. `attachments setup` makes it."
        )

    def _wait_for_prefect(self, reason: str) -> None:
        logger.warning("Prefect gives no slot (%s); the call waits, none is made without.", reason)
        time.sleep(AWAY)


class _Slot:
    """A slot in use, from the grant of its lease to its return."""

    def __init__(self, lease: UUID) -> None:
        self.lease = lease
        self.renewed = time.monotonic()
        self.due: float | None = None  # monotonic; None while the response has not begun
        self.failures = 0

    def next_action(self) -> float:
        """When the slot needs something, by the monotonic clock."""
        return self.renewed + RENEW_AFTER if self.due is None else self.due


class _Returns:
    """Renews the leases of calls under way and gives slots back when they fall due, in one thread of its own."""

    def __init__(self) -> None:
        # Settings of its own keep it apart from the client of whatever flow run happens to come first,
        # which is closed when that run ends.
        self.client = get_client(httpx_settings={"timeout": ANSWER_TIMEOUT}, sync_client=True)
        make_patient(self.client, tell_when_away=True)
        self.client.__enter__()
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, _Slot]] = []
        self._order = 0
        self._closed = False
        threading.Thread(target=self._serve, name="pacing-returns", daemon=True).start()
        atexit.register(self._close)

    def hold(self, lease: UUID) -> _Slot:
        """Look after a slot whose response has not begun."""
        slot = _Slot(lease)
        self._push(slot)
        return slot

    def due(self, slot: _Slot, when: float) -> None:
        """Give the slot back at `when`, by the monotonic clock."""
        slot.due = when
        self._push(slot)

    def until_next(self, *, at_most: float) -> float:
        """Seconds until this process gives back a slot; others may sooner."""
        with self._changed:
            dues = [slot.due for _, _, slot in self._heap if slot.due is not None]
        return min([at_most, *(max(0.05, due - time.monotonic()) for due in dues)])

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
            if slot.due is None:
                self._renew(slot)
            elif slot.due <= time.monotonic():
                self._give_back(slot)

    def _next(self) -> _Slot | None:
        """Wait for the next slot that needs something. A slot stands twice once it is due; the stale one is dropped."""
        with self._changed:
            while not self._closed:
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
                    return slot
        return None

    def _renew(self, slot: _Slot) -> None:
        try:
            self.client.renew_concurrency_lease(slot.lease, LEASE)
        except (httpx.HTTPError, PrefectAway) as error:
            logger.warning("A lease on a slot could not be renewed (%s).", type(error).__name__)
        slot.renewed = time.monotonic()
        self._push(slot)

    def _give_back(self, slot: _Slot) -> None:
        """Tried again until the lease would have run out anyway, since a slot not given back is lost till then."""
        assert slot.due is not None  # noqa: S101  only slots that are due get here
        try:
            self.client.release_concurrency_slots_with_lease(slot.lease)
        except (httpx.HTTPError, PrefectAway) as error:
            if slot.failures * AWAY > LEASE:
                logger.warning("A slot could not be given back (%s); its lease will run out.", type(error).__name__)
                return
            slot.failures += 1
            self.due(slot, time.monotonic() + AWAY)

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
