"""The slots in use of one process: renewed, handed on and released."""

import threading
import time
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest

from attachments.foundation.cancellation import CURRENT, Cancellation, RunCancelled
from attachments.prefect_api.prefect_retry import PrefectUnreachable
from attachments.rate_limit.lease_pool import MAX_CALLS_PER_SLOT, LeasePool
from attachments.rate_limit.timings import RateLimitTimings
from tests.rate_limit.conftest import eventually

NAMES = ("test-limit",)
TIMINGS = RateLimitTimings()


class StandIn:
    """Prefect's API, for the thread that looks after slots: fails as it should, and records the requests."""

    def __init__(self, *failures: Exception, during: Callable[[], object] = lambda: None) -> None:
        self._failures = list(failures)
        self._during = during
        self.requests: list[str] = []

    def renew(self, _: UUID) -> None:
        self._during()
        self._respond("renew")

    def release(self, _: UUID) -> None:
        self._respond("release")

    def _respond(self, request: str) -> None:
        self.requests.append(request)
        if self._failures:
            raise self._failures.pop(0)


def make_pool(
    *failures: Exception, timings: RateLimitTimings = TIMINGS, during: Callable[[], object] = lambda: None
) -> tuple[LeasePool, StandIn]:
    api = StandIn(*failures, during=during)
    return LeasePool(cast("Any", api), timings), api


def test_a_lease_that_was_not_renewed_is_renewed_soon() -> None:
    """Not after another RENEW_AFTER: it would run out before the call has left the window."""
    pool, api = make_pool(httpx.ReadTimeout("no response"), timings=RateLimitTimings(unreachable=0.1))
    pool.add(NAMES, uuid4(), time.monotonic() - TIMINGS.renew_after)
    eventually(lambda: api.requests == ["renew", "renew"], 5)


def test_a_lease_that_runs_out_within_the_window_is_renewed() -> None:
    """The answer came late, and the renewals before it had failed."""
    pool, api = make_pool()
    slot = pool.add(NAMES, uuid4(), time.monotonic() - TIMINGS.lease + 10)
    pool.release_at(slot, time.monotonic() + TIMINGS.window)
    eventually(lambda: api.requests[:1] == ["renew"], 5)
    assert len(pool) == 1
    time.sleep(0.5)
    assert api.requests == ["renew"], "its lease lasts until its call has left the window"


@pytest.mark.parametrize(("may_have_arrived", "attempts"), [(True, 1), (False, 2)])
def test_a_slot_is_not_given_back_twice(may_have_arrived: bool, attempts: int) -> None:
    """Prefect takes off two for two requests at once; what it may have heard of is left to the lease."""
    away = PrefectUnreachable("ReadTimeout", may_have_arrived=may_have_arrived)
    pool, api = make_pool(away, timings=RateLimitTimings(unreachable=0.1, reuse_window=0.0))
    pool.release_at(pool.add(NAMES, uuid4(), time.monotonic()), time.monotonic())
    time.sleep(1)
    assert api.requests == ["release"] * attempts


def test_a_slot_goes_from_caller_to_caller_and_then_to_others() -> None:
    """Some calls in a row with one slot, each a window after the last; then another process may have it."""
    pool, api = make_pool()
    slot = pool.add(NAMES, uuid4(), time.monotonic())
    for _ in range(MAX_CALLS_PER_SLOT - 1):
        pool.release_at(slot, time.monotonic() + 0.1)
        assert pool.wait_for_reuse(NAMES, 5) is slot
    pool.release_at(slot, time.monotonic() + 0.1)
    assert pool.wait_for_reuse(NAMES, 1) is None
    assert api.requests == ["renew"] * (MAX_CALLS_PER_SLOT - 1) + ["release"]


def test_a_process_asks_less_often_while_it_has_slots_of_its_own() -> None:
    """One of them is due soon; a process without any asks again and again."""
    pool, _ = make_pool()
    assert not pool.will_be_free(NAMES, 10)
    slot = pool.add(NAMES, uuid4(), time.monotonic())
    assert not pool.will_be_free(NAMES, 10), "its call has no answer yet"
    pool.release_at(slot, time.monotonic() + 5)
    assert pool.will_be_free(NAMES, 10)
    assert not pool.will_be_free(NAMES, 1)
    assert not pool.will_be_free((*NAMES, "test-backlog"), 10)


def test_a_slot_waits_a_moment_for_the_next_caller() -> None:
    """A run's next call often comes just after: no slot has to be asked for. Without one it is given back."""
    pool, api = make_pool()
    assert pool.try_reuse(NAMES) is None
    slot = pool.add(NAMES, uuid4(), time.monotonic())
    pool.release_at(slot, time.monotonic())
    eventually(lambda: pool.has_idle(NAMES), 5)
    assert pool.try_reuse((*NAMES, "test-backlog")) is None
    assert pool.try_reuse(NAMES) is slot
    assert pool.try_reuse(NAMES) is None
    pool.release_at(slot, time.monotonic())
    eventually(lambda: api.requests == ["renew", "release"], 5)
    assert len(pool) == 0


def test_a_kept_slot_that_was_left_to_its_lease_is_left_alone() -> None:
    """Prefect hangs as it is handed over and as it is given back; it may have heard, so nothing more is sent."""
    away = [PrefectUnreachable("ReadTimeout", may_have_arrived=True) for _ in range(2)]
    pool, api = make_pool(*away)
    pool.release_at(pool.add(NAMES, uuid4(), time.monotonic()), time.monotonic())
    eventually(lambda: pool.has_idle(NAMES), 5)
    assert pool.try_reuse(NAMES) is None
    time.sleep(2)
    assert api.requests == ["renew", "release"]


def test_a_slot_is_handed_over_for_the_same_limits_alone() -> None:
    """A slot of a backfill is no live mail's, which does not count against the backfill's share."""
    pool, api = make_pool(timings=RateLimitTimings(reuse_window=0.0))
    pool.release_at(pool.add((*NAMES, "test-backlog"), uuid4(), time.monotonic()), time.monotonic() + 0.1)
    assert pool.wait_for_reuse(NAMES, 0.5) is None
    assert api.requests == ["release"]


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_slot_whose_caller_is_cancelled_is_released(moment: str) -> None:
    """Whenever the cancellation comes, the slot is not held for ever, and the next one is kept for nobody."""
    cancellation = Cancellation()
    ended = threading.Event()

    def wait() -> None:
        CURRENT.set(cancellation)
        with pytest.raises(RunCancelled):
            pool.wait_for_reuse(NAMES, 30)
        ended.set()

    def cancel() -> None:
        if moment == "meanwhile":
            cancellation.cancel()
            time.sleep(0.5)

    pool, api = make_pool(during=cancel)
    thread = threading.Thread(target=wait)
    thread.start()
    if moment == "before":
        cancellation.cancel()
        thread.join(10)
    for _ in range(2):
        pool.release_at(pool.add(NAMES, uuid4(), time.monotonic()), time.monotonic() + 0.1)
        eventually(lambda: api.requests[-1:] == ["release"], 5)
        assert ended.wait(5)
        assert len(pool) == 0
        released = api.requests.count("renew")
        api.requests.clear()
    assert released == 0, "no caller waits any more"


def test_an_internal_error_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged, the call under way keeps its lease, and the other slots are looked after."""
    pool, api = make_pool(RuntimeError("a secret"), timings=RateLimitTimings(unreachable=0.1, reuse_window=0.0))
    pool.add(NAMES, uuid4(), time.monotonic() - TIMINGS.renew_after)
    eventually(lambda: api.requests == ["renew", "renew"], 5)
    pool.release_at(pool.add(NAMES, uuid4(), time.monotonic()), time.monotonic())
    eventually(lambda: api.requests == ["renew", "renew", "release"], 5)
    assert "Internal error in the lease pool (RuntimeError)" in caplog.text
    assert "a secret" not in caplog.text


def test_an_internal_error_keeps_no_caller_waiting() -> None:
    """It asks Prefect for another slot."""
    pool, api = make_pool(RuntimeError())
    slot = pool.add(NAMES, uuid4(), time.monotonic())
    pool.release_at(slot, time.monotonic() + 0.1)
    began = time.monotonic()
    assert pool.wait_for_reuse(NAMES, 30) is None
    assert time.monotonic() - began < 15
    assert api.requests == ["renew"]
