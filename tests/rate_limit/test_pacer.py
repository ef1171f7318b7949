"""The vendor's cap, kept across threads and processes by slots of a real Prefect server."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import httpx
import pytest

from attachments.foundation.cancellation import CURRENT, Cancellation, RunCancelled
from attachments.prefect_api.transport import direct_transport
from attachments.rate_limit.errors import PacingError
from attachments.rate_limit.pacer import PrefectPacer
from attachments.rate_limit.priority import low_priority
from attachments.rate_limit.slot_api import Grant, SlotApi
from attachments.rate_limit.timings import RateLimitTimings
from tests.rate_limit.conftest import LIMIT, active_slots, change_limit, eventually, make_limit, patiently, remove

pytestmark = pytest.mark.xdist_group("pacing")  # they share a Prefect server and its limit

WINDOW = 3.0

# Their threads write a line at once: `print` writes its end apart, and another thread's line can come in between.
CALLS = """
import os, threading, time
from attachments.rate_limit.pacer import PrefectPacer
from attachments.rate_limit.timings import RateLimitTimings
pacer = PrefectPacer("test-limit", timings=RateLimitTimings(window={window}))
def call():
    with pacer.call():
        os.write(1, f"{{time.monotonic()}}\\n".encode())
threads = [threading.Thread(target=call) for _ in range({calls})]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
time.sleep({window} + RateLimitTimings().reuse_window + 1)  # until the slots are released: leases end with the process
"""


class Switch(httpx.BaseTransport):
    """The way to Prefect; a test sets what is returned or raised instead."""

    def __init__(self) -> None:
        self._inner = direct_transport()
        self.instead: Callable[[httpx.Request], httpx.Response] | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self.instead(request) if self.instead else self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


def _unreachable(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no server")


def _most_in_any_window(moments: list[float]) -> int:
    return max(sum(start <= moment < start + WINDOW for moment in moments) for start in moments)


def test_two_processes_never_make_more_calls_in_a_window_than_there_are_slots(api: httpx.Client) -> None:
    """Fifteen calls by two processes: exactly the limit at once, then more as the first leave the window."""
    code = CALLS.format(window=WINDOW, calls=8)
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    moments = sorted(float(line) for output in outputs for line in output.split())
    assert len(moments) == 16
    assert _most_in_any_window(moments) <= LIMIT
    assert moments[-1] - moments[0] < 6 * WINDOW + 10, "slots are given back, not left to their leases"
    assert active_slots(api) == 0


def test_a_call_that_waits_for_its_response_keeps_its_slot(api: httpx.Client) -> None:
    """The window begins when the response does: a slow answer holds its slot, with its lease renewed."""
    pacer = PrefectPacer("test-limit", timings=RateLimitTimings(renew_after=0.2, window=0.5))
    with pacer.call():
        time.sleep(1.5)
        assert active_slots(api) == 1
    eventually(lambda: active_slots(api) == 0)


def test_an_error_of_the_call_still_gives_the_slot_back_after_the_window(api: httpx.Client) -> None:
    """The vendor may have counted a call whose answer was lost, so the slot is held for the window all the same."""
    pacer = PrefectPacer("test-limit", timings=RateLimitTimings(window=1.0))
    with pytest.raises(ConnectionError), pacer.call():
        raise ConnectionError
    assert active_slots(api) == 1
    eventually(lambda: active_slots(api) == 0)


@pytest.mark.parametrize("change", ["missing", "switched off"])
def test_a_limit_that_would_not_limit_is_an_error(api: httpx.Client, change: str) -> None:
    """Prefect grants every slot of a limit that is missing or inactive; the pacer refuses, and says what to do."""
    if change == "missing":
        remove(api, "/v2/concurrency_limits/test-limit")
    else:
        change_limit(api, {"active": False})
    pacer = PrefectPacer("test-limit")
    with pytest.raises(PacingError, match=r"attachments setup|Switch it on"), pacer.call():
        pytest.fail("the call was made")


def test_a_limit_that_is_deleted_while_in_use_is_noticed_at_the_next_call(api: httpx.Client) -> None:
    """The check that a limit exists is made once a minute; every grant is checked as well."""
    pacer = PrefectPacer("test-limit")
    with pacer.call():
        remove(api, "/v2/concurrency_limits/test-limit")
    with pytest.raises(PacingError, match="attachments setup"), pacer.call():
        pytest.fail("the call was made")


def test_a_limit_of_zero_holds_calls_until_it_is_larger(api: httpx.Client) -> None:
    """Setting the limit to 0 in the UI pauses all calls and fails no run."""
    change_limit(api, {"limit": 0})
    pacer = PrefectPacer("test-limit", timings=RateLimitTimings(unreachable=0.05))
    made = threading.Event()

    def call() -> None:
        with pacer.call():
            made.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert not made.wait(1)
    change_limit(api, {"limit": 1})
    assert made.wait(30)
    thread.join()


def test_no_call_is_made_while_prefect_is_unreachable(api: httpx.Client) -> None:
    """A call waits until there is a server that grants its slot."""
    timings, way = RateLimitTimings(unreachable=0.05), Switch()
    way.instead = _unreachable
    pacer = PrefectPacer("test-limit", timings=timings, api=SlotApi(timings, lambda: way))
    made = threading.Event()

    def call() -> None:
        with pacer.call():
            made.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert not made.wait(1)
    way.instead = None
    assert made.wait(30)
    thread.join()


def test_a_response_that_is_not_prefects_lets_the_call_wait(api: httpx.Client) -> None:
    """A proxy's page with status 200 is no slot, and no failure of the run."""
    timings, way = RateLimitTimings(unreachable=0.05), Switch()
    way.instead = lambda _: httpx.Response(200, text="<html>")
    pacer = PrefectPacer("test-limit", timings=timings, api=SlotApi(timings, lambda: way))
    threading.Timer(1.0, setattr, (way, "instead", None)).start()
    began = time.monotonic()
    with pacer.call():
        assert time.monotonic() - began > 0.5


def test_a_slot_that_is_not_used_is_released_at_once(api: httpx.Client) -> None:
    """A limit is deleted after it was checked: the slot of the other one would stay taken for 90 s."""
    make_limit(api, "test-backlog", 2)
    pacer = PrefectPacer("test-limit", "test-backlog", timings=RateLimitTimings(window=0.2, reuse_window=0.0))
    with low_priority():
        with pacer.call():
            pass
        eventually(lambda: active_slots(api) == 0)
        remove(api, "/v2/concurrency_limits/test-backlog")
        with pytest.raises(PacingError, match="test-backlog"), pacer.call():
            pytest.fail("the call was made")
    assert active_slots(api) == 0


def test_a_429_pauses_and_a_second_one_pauses_longer(api: httpx.Client, no_pause: None) -> None:
    """After a 429 no call is made for a while; when the next is refused again, for twice as long."""
    pacer = PrefectPacer("test-limit", timings=RateLimitTimings(first_pause=3.0))
    pauses = []
    with pacer.call():
        ordered = time.monotonic()  # before Prefect hears of it, which takes its time on a busy machine
        pacer.rate_limited()
    for _ in range(2):
        with pacer.call():
            pauses.append(time.monotonic() - ordered)
            ordered = time.monotonic()
            pacer.rate_limited()
    assert 2.9 < pauses[0] < 5.9
    assert 5.9 < pauses[1] < 11.9


STORM = """
import os, threading, time
from attachments.rate_limit.pacer import PrefectPacer
from attachments.rate_limit.timings import RateLimitTimings
pacer = PrefectPacer("test-limit", timings=RateLimitTimings(window=0.5, first_pause=3.0, pause_check=0.5))
def call():
    while True:
        with pacer.call():
            refused = time.time() < {end}
            os.write(1, f"{{time.time()}} {{refused}}\\n".encode())
            time.sleep(0.05)
            if refused:
                pacer.rate_limited()
        if not refused:
            return
threads = [threading.Thread(target=call) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
time.sleep(1.5)
"""


def test_a_storm_of_429_costs_each_process_one_call_a_pause(api: httpx.Client, no_pause: None) -> None:
    """Six threads each in two processes: after the first refusal a pause, one call that asks, and a longer pause."""
    change_limit(api, {"limit": 1000})
    end = time.time() + 12
    code = STORM.format(end=end)
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    for output in outputs:
        calls = [line.split() for line in output.splitlines()]
        moments = [float(moment) for moment, _ in calls]
        refused = [float(moment) for moment, refused in calls if refused == "True"]
        assert len(calls) - len(refused) == 6, "all get through in the end"
        # Those that were on their way when the first was answered are nobody's fault.
        assert len([moment for moment in refused if moment > moments[0] + 0.2]) <= 2


def test_a_pause_is_heard_of_by_a_process_that_met_none(api: httpx.Client, no_pause: None) -> None:
    """It does not need a 429 of its own."""
    timings = RateLimitTimings(first_pause=2.0)
    with PrefectPacer("test-limit", timings=timings).call():
        PrefectPacer("test-limit", timings=timings).rate_limited()
    started = time.monotonic()
    with PrefectPacer("test-limit").call():
        assert 1.0 < time.monotonic() - started < 20


def test_a_pause_is_obeyed_once_whatever_the_clocks_say(api: httpx.Client, no_pause: None) -> None:
    """Another host's clock is an hour ahead: its pause of five seconds takes five seconds, and does not begin again."""
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    pause = {"name": "test-limit-pause", "value": {"until": until, "seconds": 5.0}}
    patiently(lambda: api.post("/variables/", json=pause)).raise_for_status()
    pacer = PrefectPacer("test-limit", timings=RateLimitTimings(pause_check=0.1))
    waited = []
    for _ in range(3):
        started = time.monotonic()
        with pacer.call():
            waited.append(time.monotonic() - started)
        time.sleep(0.2)
    assert 4.9 < waited[0] < 20
    assert max(waited[1:]) < 4.9


def test_callers_that_wait_for_a_slot_that_comes_back_ask_for_no_other(api: httpx.Client) -> None:
    """Five calls with one slot: the first takes it, the second hears that there is no other, and it is handed on."""
    change_limit(api, {"limit": 1})
    requests: list[tuple[str, ...]] = []

    class Counted(SlotApi):
        def acquire(self, names: tuple[str, ...]) -> Grant:
            requests.append(names)
            return super().acquire(names)

    timings = RateLimitTimings(window=1.0, poll_with_own=10.0)  # the latter longer than it takes them all
    pacer = PrefectPacer("test-limit", timings=timings, api=Counted(timings))
    threads = [threading.Thread(target=_call, args=(pacer,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(requests) == 2


def _call(pacer: PrefectPacer) -> None:
    with pacer.call():
        pass


def test_a_caller_that_a_locked_database_keeps_waiting_takes_what_comes_back(api: httpx.Client, no_pause: None) -> None:
    """A slot that was handed over needs no database; in the next second it would be given back unused."""
    timings, way = RateLimitTimings(window=1.5, reuse_window=0.05, busy=10.0), Switch()
    pacer = PrefectPacer("test-limit", timings=timings, api=SlotApi(timings, lambda: way))
    with pacer.call():
        began = time.monotonic()
    requests: list[httpx.Request] = []

    def locked(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("increment-with-lease"):
            way.instead = None
            try:
                return way.handle_request(request)
            finally:
                way.instead = locked
        assert not requests, "it requested a slot again"
        requests.append(request)
        return httpx.Response(503)

    way.instead = locked
    with pacer.call():
        assert 1.0 < time.monotonic() - began < 4.5
    assert len(requests) == 1


def test_a_database_that_stays_locked_is_logged(api: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    """Or a proxy that returns 503 for hours; the call is made when that ends."""
    timings, way = RateLimitTimings(busy_patience=0.5, unreachable=0.1), Switch()
    pacer = PrefectPacer("test-limit", timings=timings, api=SlotApi(timings, lambda: way))
    with pacer.call():
        pass

    def locked(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503 if request.url.path.endswith("increment-with-lease") else 404)

    way.instead = locked
    threading.Timer(3.0, setattr, (way, "instead", None)).start()
    with pacer.call():
        assert "Prefect gives no slot (503); the call waits" in caplog.text


@pytest.mark.parametrize("value", ["soon", {"until": "tomorrow"}, {"until": "2026-01-01T00:00:00", "seconds": 1}, [1]])
def test_a_pause_that_cannot_be_read_is_none(api: httpx.Client, no_pause: None, value: object) -> None:
    """Somebody has written something else there; calls go on, for a 429 would be met soon enough."""
    patiently(lambda: api.post("/variables/", json={"name": "test-limit-pause", "value": value})).raise_for_status()
    with PrefectPacer("test-limit").call():
        pass


def test_a_backfill_waits_for_its_own_slots_and_holds_up_nobody(api: httpx.Client, no_pause: None) -> None:
    """With its two slots taken its next call waits, and those of live mail, which come later, do not."""
    make_limit(api, "test-backlog", 2)
    pacer = PrefectPacer("test-limit", "test-backlog")
    made: list[int] = []
    cancellation = Cancellation()

    def fill() -> None:
        CURRENT.set(cancellation)
        with suppress(RunCancelled), low_priority():
            for number in range(3):
                with pacer.call():
                    made.append(number)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    eventually(lambda: len(made) == 2)
    for _ in range(3):
        with pacer.call():
            pass
    counted = {
        name: api.get(f"/v2/concurrency_limits/{name}").json()["active_slots"]
        for name in ("test-limit", "test-backlog")
    }
    assert counted == {"test-limit": 5, "test-backlog": 2}
    cancellation.cancel()
    thread.join(10)
    assert len(made) == 2


def test_the_first_calls_of_a_backfill_are_spread(api: httpx.Client, no_pause: None) -> None:
    """Its slots are free and its calls wait, yet each is made a part of the window after the last."""
    timings = RateLimitTimings(window=WINDOW)
    make_limit(api, "test-backlog", 4)
    pacer = PrefectPacer("test-limit", "test-backlog", timings=timings)
    made: list[float] = []

    def fill() -> None:
        with low_priority(), pacer.call():
            made.append(time.monotonic())

    threads = [threading.Thread(target=fill, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # Their turns end a moment after they are noted.
    assert [after - before > 0.95 * timings.spread * WINDOW / 4 for before, after in pairwise(made)] == [True, True]


def test_a_backfill_without_its_limit_is_an_error(api: httpx.Client, no_pause: None) -> None:
    """It would take all slots from live mail."""
    pacer = PrefectPacer("test-limit", "test-nowhere")
    with pytest.raises(PacingError, match="test-nowhere"), low_priority(), pacer.call():
        pytest.fail("the call was made")
