"""The vendor's cap, kept across threads and processes by slots of a real Prefect server."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.context import refresh_global_settings_context

from attachments.demo.processes import Process
from attachments.demo.stack import make_stack
from attachments.foundation.cancellation import CURRENT, Cancellation, RunCancelled
from attachments.prefect_api import prefect_retry
from attachments.prefect_api.prefect_retry import PrefectAway
from attachments.rate_limit import lease_pool

pytestmark = pytest.mark.xdist_group("pacing")  # they share a Prefect server and its limit

LIMIT = 5
NAMES = ("test-limit",)
WINDOW = 3.0

# Their threads write a line at once: `print` writes its end apart, and another thread's line can come in between.
CALLS = """
import os, threading, time
from attachments.rate_limit import lease_pool
lease_pool.WINDOW = {window}
pacer = lease_pool.PrefectPacer("test-limit")
def call():
    with pacer.call():
        os.write(1, f"{{time.monotonic()}}\\n".encode())
threads = [threading.Thread(target=call) for _ in range({calls})]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
time.sleep({window} + lease_pool.REUSE_WINDOW + 1)  # until the slots are released: leases end with the process
"""


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    stack = make_stack(tmp_path_factory.mktemp("pacing"), "http://127.0.0.1:1", "key")
    stack.prefect.start()
    with pytest.MonkeyPatch.context() as here:
        for name, value in stack.prefect.environment.items():
            here.setenv(name, value)
        refresh_global_settings_context()  # for threads, too, which have no other
        try:
            yield stack.prefect
        finally:
            stack.prefect.stop()
    refresh_global_settings_context()


@pytest.fixture
def api(prefect: Process) -> Iterator[httpx.Client]:
    """Prefect's API with an empty limit of five slots."""
    url, auth = (prefect.environment[f"PREFECT_API_{name}"] for name in ("URL", "AUTH_STRING"))
    user, _, password = auth.partition(":")
    with httpx.Client(base_url=url, auth=(user, password), trust_env=False, timeout=60) as client:
        _make_limit(client, "test-limit", LIMIT)
        yield client


def _make_limit(api: httpx.Client, name: str, slots: int) -> None:
    """A fresh limit, whatever an earlier test has left."""
    _remove(api, f"/v2/concurrency_limits/{name}")
    limit = {"name": name, "limit": slots, "active": True}
    _patiently(lambda: api.post("/v2/concurrency_limits/", json=limit))
    assert api.get(f"/v2/concurrency_limits/{name}").json()["limit"] == slots


def _change_limit(api: httpx.Client, change: dict[str, object]) -> None:
    _patiently(lambda: api.patch("/v2/concurrency_limits/test-limit", json=change)).raise_for_status()


def _remove(api: httpx.Client, path: str) -> None:
    answer = _patiently(lambda: api.delete(path))
    assert answer.status_code in {httpx.codes.NO_CONTENT, httpx.codes.NOT_FOUND}


def _patiently(request: Callable[[], httpx.Response]) -> httpx.Response:
    """Embedded SQLite says 503 now and then; a person would ask again."""
    answers: list[httpx.Response] = []

    def is_heard() -> bool:
        answers.append(request())
        return answers[-1].status_code != httpx.codes.SERVICE_UNAVAILABLE

    _eventually(is_heard)
    return answers[-1]


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
    assert api.get("/v2/concurrency_limits/test-limit").json()["active_slots"] == 0


def test_a_call_that_waits_for_its_response_keeps_its_slot(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window begins when the response does: a slow answer holds its slot, with its lease renewed."""
    monkeypatch.setattr(lease_pool, "RENEW_AFTER", 0.2)
    monkeypatch.setattr(lease_pool, "WINDOW", 0.5)
    pacer = lease_pool.PrefectPacer("test-limit")
    with pacer.call():
        time.sleep(1.5)
        assert api.get("/v2/concurrency_limits/test-limit").json()["active_slots"] == 1
    _eventually(lambda: api.get("/v2/concurrency_limits/test-limit").json()["active_slots"] == 0)


def test_an_error_of_the_call_still_gives_the_slot_back_after_the_window(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vendor may have counted a call whose answer was lost, so the slot is held for the window all the same."""
    monkeypatch.setattr(lease_pool, "WINDOW", 1.0)
    pacer = lease_pool.PrefectPacer("test-limit")
    with pytest.raises(ConnectionError), pacer.call():
        raise ConnectionError
    assert api.get("/v2/concurrency_limits/test-limit").json()["active_slots"] == 1
    _eventually(lambda: api.get("/v2/concurrency_limits/test-limit").json()["active_slots"] == 0)


@pytest.mark.parametrize("change", ["missing", "switched off"])
def test_a_limit_that_would_not_limit_is_an_error(api: httpx.Client, change: str) -> None:
    """Prefect grants every slot of a limit that is missing or inactive; the pacer refuses, and says what to do."""
    if change == "missing":
        _remove(api, "/v2/concurrency_limits/test-limit")
    else:
        _change_limit(api, {"active": False})
    pacer = lease_pool.PrefectPacer("test-limit")
    with pytest.raises(lease_pool.PacingError, match=r"attachments setup|Switch it on"), pacer.call():
        pytest.fail("the call was made")


def test_a_limit_that_is_deleted_while_in_use_is_noticed_at_the_next_call(api: httpx.Client) -> None:
    """The check that a limit exists is made once a minute; every grant is checked as well."""
    pacer = lease_pool.PrefectPacer("test-limit")
    with pacer.call():
        _remove(api, "/v2/concurrency_limits/test-limit")
    with pytest.raises(lease_pool.PacingError, match="attachments setup"), pacer.call():
        pytest.fail("the call was made")


def test_a_limit_of_zero_holds_calls_until_it_is_larger(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sets the limit to 0 in the UI stops the calls for a while, and fails no run."""
    monkeypatch.setattr(lease_pool, "AWAY", 0.05)
    _change_limit(api, {"limit": 0})
    pacer = lease_pool.PrefectPacer("test-limit")
    made = threading.Event()

    def call() -> None:
        with pacer.call():
            made.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert not made.wait(1)
    _change_limit(api, {"limit": 1})
    assert made.wait(30)
    thread.join()


def test_no_call_is_made_while_prefect_is_away(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call waits until there is a server that grants its slot."""
    monkeypatch.setattr(lease_pool, "AWAY", 0.05)
    server = api.base_url
    pacer = lease_pool.PrefectPacer("test-limit")
    made = threading.Event()
    clients = (pacer._returns.client._client, pacer._returns.asking._client)
    for client in clients:
        client.base_url = httpx.URL("http://127.0.0.1:1/api/")

    def call() -> None:
        with pacer.call():
            made.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert not made.wait(1)
    for client in clients:
        client.base_url = server
    assert made.wait(30)
    thread.join()


def test_a_429_pauses_and_a_second_one_pauses_longer(
    api: httpx.Client, no_pause: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a 429 no call is made for a while; when the next is refused again, for twice as long."""
    monkeypatch.setattr(lease_pool, "FIRST_PAUSE", 3.0)
    pacer = lease_pool.PrefectPacer("test-limit")
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


@pytest.fixture
def no_pause(api: httpx.Client) -> Iterator[None]:
    """Nothing is left of an earlier test's pause."""
    _remove(api, "/variables/name/test-limit-pause")
    yield
    _remove(api, "/variables/name/test-limit-pause")


STORM = """
import os, threading, time
from attachments.rate_limit import lease_pool
lease_pool.WINDOW, lease_pool.FIRST_PAUSE, lease_pool.HEAR = 0.5, 3.0, 0.5
pacer = lease_pool.PrefectPacer("test-limit")
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
    _change_limit(api, {"limit": 1000})
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


def test_a_pause_is_heard_of_by_a_process_that_met_none(
    api: httpx.Client, no_pause: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not need a 429 of its own."""
    monkeypatch.setattr(lease_pool, "FIRST_PAUSE", 2.0)
    with lease_pool.PrefectPacer("test-limit").call():
        lease_pool.PrefectPacer("test-limit").rate_limited()
    started = time.monotonic()
    with lease_pool.PrefectPacer("test-limit").call():
        assert 1.0 < time.monotonic() - started < 20


def test_a_pause_is_obeyed_once_whatever_the_clocks_say(
    api: httpx.Client, no_pause: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host's clock is an hour ahead: its pause of five seconds takes five seconds, and does not begin again."""
    monkeypatch.setattr(lease_pool, "HEAR", 0.1)
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    pause = {"name": "test-limit-pause", "value": {"until": until, "seconds": 5.0}}
    _patiently(lambda: api.post("/variables/", json=pause)).raise_for_status()
    pacer = lease_pool.PrefectPacer("test-limit")
    waited = []
    for _ in range(3):
        started = time.monotonic()
        with pacer.call():
            waited.append(time.monotonic() - started)
        time.sleep(0.2)
    assert 4.9 < waited[0] < 20
    assert max(waited[1:]) < 4.9


class Answers:
    """Prefect, for the thread that looks after slots; answers as it is told, and counts."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.asked: list[str] = []

    def renew_concurrency_lease(self, *_: object) -> None:
        self._answer("renew")

    def release_concurrency_slots_with_lease(self, *_: object) -> None:
        self._answer("release")

    def _answer(self, what: str) -> None:
        self.asked.append(what)
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture
def returns(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[lease_pool.LeasePool, Answers]]:
    def made(*failures: Exception) -> tuple[lease_pool.LeasePool, Answers]:
        answers = Answers(*failures)
        found = lease_pool.LeasePool()
        monkeypatch.setattr(found, "client", answers)
        return found, answers

    return made


Returns = Callable[..., tuple[lease_pool.LeasePool, Answers]]


def test_a_lease_that_was_not_renewed_is_renewed_soon(returns: Returns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after another RENEW_AFTER: it would run out before the call has left the window."""
    monkeypatch.setattr(lease_pool, "AWAY", 0.1)
    watch, answers = returns(httpx.ReadTimeout("no answer"))
    watch.hold(NAMES, uuid4(), time.monotonic() - lease_pool.RENEW_AFTER)
    _eventually(lambda: answers.asked == ["renew", "renew"], 5)


def test_a_lease_that_runs_out_within_the_window_is_renewed(returns: Returns) -> None:
    """The answer came late, and the renewals before it had failed."""
    watch, answers = returns()
    slot = watch.hold(NAMES, uuid4(), time.monotonic() - lease_pool.LEASE + 10)
    watch.release_at(slot, time.monotonic() + lease_pool.WINDOW)
    _eventually(lambda: answers.asked[:1] == ["renew"], 5)
    assert slot.leased > time.monotonic() - 10
    assert slot.next_action() == slot.due


@pytest.mark.parametrize(("may_have_heard", "asked"), [(True, 1), (False, 2)])
def test_a_slot_is_not_given_back_twice(
    returns: Returns, monkeypatch: pytest.MonkeyPatch, may_have_heard: bool, asked: int
) -> None:
    """Prefect takes off two for two requests at once; what it may have heard of is left to the lease."""
    monkeypatch.setattr(lease_pool, "AWAY", 0.1)
    monkeypatch.setattr(lease_pool, "REUSE_WINDOW", 0.0)
    watch, answers = returns(PrefectAway("ReadTimeout", may_have_heard=may_have_heard))
    watch.release_at(watch.hold(NAMES, uuid4(), time.monotonic()), time.monotonic())
    time.sleep(1)
    assert answers.asked == ["release"] * asked


def test_a_slot_goes_from_caller_to_caller_and_then_to_others(
    returns: Returns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some calls in a row with one slot, each a window after the last; then another process may have it."""
    watch, answers = returns()
    slot = watch.hold(NAMES, uuid4(), time.monotonic())
    for _ in range(lease_pool.CALLS_IN_A_ROW - 1):
        watch.release_at(slot, time.monotonic() + 0.1)
        assert watch.wait_for_reuse(NAMES, 5) is slot
    watch.release_at(slot, time.monotonic() + 0.1)
    assert watch.wait_for_reuse(NAMES, 1) is None
    assert answers.asked == ["renew"] * (lease_pool.CALLS_IN_A_ROW - 1) + ["release"]


def test_a_process_asks_less_often_while_it_has_slots_of_its_own(returns: Returns) -> None:
    """One of them is due soon; a process without any asks again and again."""
    watch, _ = returns()
    assert not watch.will_be_free(NAMES, 10)
    slot = watch.hold(NAMES, uuid4(), time.monotonic())
    assert not watch.will_be_free(NAMES, 10), "its call has no answer yet"
    watch.release_at(slot, time.monotonic() + 5)
    assert watch.will_be_free(NAMES, 10)
    assert not watch.will_be_free(NAMES, 1)
    assert not watch.will_be_free((*NAMES, "test-backlog"), 10)


def test_callers_that_wait_for_a_slot_that_comes_back_ask_for_no_other(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five calls with one slot: the first takes it, the second hears that there is no other, and it is handed on."""
    monkeypatch.setattr(lease_pool, "WINDOW", 1.0)
    monkeypatch.setattr(lease_pool, "LONG", 10.0)  # longer than it takes them all
    _change_limit(api, {"limit": 1})
    pacer = lease_pool.PrefectPacer("test-limit")
    asked: list[int] = []
    ask = pacer._ask

    def counted(names: tuple[str, ...]) -> httpx.Response:
        asked.append(1)
        return ask(names)

    monkeypatch.setattr(pacer, "_ask", counted)
    threads = [threading.Thread(target=_call, args=(pacer,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 2


def _call(pacer: lease_pool.PrefectPacer) -> None:
    with pacer.call():
        pass


def test_a_caller_that_a_locked_database_keeps_waiting_takes_what_comes_back(
    api: httpx.Client, no_pause: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot that was handed over needs no database; in the next second it would be given back unused."""
    monkeypatch.setattr(lease_pool, "WINDOW", 1.5)
    monkeypatch.setattr(lease_pool, "REUSE_WINDOW", 0.05)
    monkeypatch.setattr(lease_pool, "BUSY", 10.0)
    pacer = lease_pool.PrefectPacer("test-limit")
    with pacer.call():
        began = time.monotonic()
    asked: list[httpx.Request] = []

    def locked(request: httpx.Request) -> httpx.Response:
        assert not asked, "it asked again"
        asked.append(request)
        return httpx.Response(503)

    patience: Any = pacer._returns.asking._client._transport
    patience.inner.close()
    patience.inner = httpx.MockTransport(locked)
    with pacer.call():
        assert 1.0 < time.monotonic() - began < 4.5
    assert len(asked) == 1


def test_a_database_that_stays_locked_is_told_of(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Or a proxy that answers 503 for hours; the call is made when that ends."""
    monkeypatch.setattr(prefect_retry, "PATIENCE", 0.5)
    monkeypatch.setattr(lease_pool, "AWAY", 0.1)
    pacer = lease_pool.PrefectPacer("test-limit")
    patience: Any = pacer._returns.asking._client._transport
    inner = patience.inner
    patience.inner = httpx.MockTransport(lambda _: httpx.Response(503))
    threading.Timer(3.0, setattr, (patience, "inner", inner)).start()
    with pacer.call():
        assert "Prefect gives no slot (503); the call waits" in caplog.text


def test_a_slot_waits_a_moment_for_the_next_caller(returns: Returns, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's next call often comes just after: no slot has to be asked for. Without one it is given back."""
    monkeypatch.setattr(lease_pool, "REUSE_WINDOW", 1.0)
    watch, answers = returns()
    assert watch.try_reuse(NAMES) is None
    slot = watch.hold(NAMES, uuid4(), time.monotonic())
    watch.release_at(slot, time.monotonic())
    _eventually(lambda: bool(watch._kept), 5)
    assert watch.try_reuse((*NAMES, "test-backlog")) is None
    assert watch.try_reuse(NAMES) is slot
    assert watch.try_reuse(NAMES) is None
    watch.release_at(slot, time.monotonic())
    _eventually(lambda: answers.asked == ["renew", "release"], 5)
    assert not watch._kept
    assert not watch._heap


def test_a_kept_slot_that_was_left_to_its_lease_is_left_alone(
    returns: Returns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect hangs as it is handed over and as it is given back; it may have heard, so nothing more is sent."""
    monkeypatch.setattr(lease_pool, "REUSE_WINDOW", 1.0)
    away = [PrefectAway("ReadTimeout", may_have_heard=True) for _ in range(2)]
    watch, answers = returns(*away)
    watch.release_at(watch.hold(NAMES, uuid4(), time.monotonic()), time.monotonic())
    _eventually(lambda: bool(watch._kept), 5)
    assert watch.try_reuse(NAMES) is None
    time.sleep(2)
    assert answers.asked == ["renew", "release"]


def test_a_slot_is_handed_over_for_the_same_limits_alone(returns: Returns, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot of a backfill is no live mail's, which does not count against the backfill's share."""
    monkeypatch.setattr(lease_pool, "REUSE_WINDOW", 0.0)
    watch, answers = returns()
    watch.release_at(watch.hold((*NAMES, "test-backlog"), uuid4(), time.monotonic()), time.monotonic() + 0.1)
    assert watch.wait_for_reuse(NAMES, 0.5) is None
    assert answers.asked == ["release"]


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_slot_whose_caller_is_cancelled_is_given_back(
    returns: Returns, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """It has waited for nothing, whenever the wish to end comes; the slot is not held for ever."""
    watch, answers = returns()
    cancellation = Cancellation()
    ended = threading.Event()

    def wait() -> None:
        CURRENT.set(cancellation)
        with pytest.raises(RunCancelled):
            watch.wait_for_reuse(NAMES, 30)
        ended.set()

    renew = answers.renew_concurrency_lease

    def slow(*_: object) -> None:
        cancellation.cancel()
        time.sleep(0.5)
        renew()

    if moment == "meanwhile":
        monkeypatch.setattr(answers, "renew_concurrency_lease", slow)
    thread = threading.Thread(target=wait)
    thread.start()
    if moment == "before":
        cancellation.cancel()
        thread.join(10)
    watch.release_at(watch.hold(NAMES, uuid4(), time.monotonic()), time.monotonic() + 0.1)
    _eventually(lambda: answers.asked[-1:] == ["release"], 5)
    assert ended.wait(5)
    assert not watch._heap
    assert not watch._wishes


@pytest.mark.parametrize("value", ["soon", {"until": "tomorrow"}, {"until": "2026-01-01T00:00:00", "seconds": 1}, [1]])
def test_a_pause_that_cannot_be_read_is_none(api: httpx.Client, no_pause: None, value: object) -> None:
    """Somebody has written something else there; calls go on, for a 429 would be met soon enough."""
    _patiently(lambda: api.post("/variables/", json={"name": "test-limit-pause", "value": value})).raise_for_status()
    with lease_pool.PrefectPacer("test-limit").call():
        pass


def test_a_backfill_waits_for_its_own_slots_and_holds_up_nobody(api: httpx.Client, no_pause: None) -> None:
    """With its two slots taken its next call waits, and those of live mail, which come later, do not."""
    _make_limit(api, "test-backlog", 2)
    pacer = lease_pool.PrefectPacer("test-limit", "test-backlog")
    made: list[int] = []
    cancellation = Cancellation()

    def fill() -> None:
        CURRENT.set(cancellation)
        with suppress(RunCancelled), lease_pool.low_priority():
            for number in range(3):
                with pacer.call():
                    made.append(number)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    _eventually(lambda: len(made) == 2)
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


def test_the_first_calls_of_a_backfill_are_spread(
    api: httpx.Client, no_pause: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slots are free and its calls wait, yet each is made a part of the window after the last."""
    monkeypatch.setattr(lease_pool, "WINDOW", WINDOW)
    _make_limit(api, "test-backlog", 4)
    pacer = lease_pool.PrefectPacer("test-limit", "test-backlog")
    made: list[float] = []

    def fill() -> None:
        with lease_pool.low_priority(), pacer.call():
            made.append(time.monotonic())

    threads = [threading.Thread(target=fill, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # Their turns end a moment after they are noted.
    assert [after - before > 0.95 * lease_pool.SPREAD * WINDOW / 4 for before, after in pairwise(made)] == [True, True]


def test_a_backfill_without_its_limit_is_an_error(api: httpx.Client, no_pause: None) -> None:
    """It would take all slots from live mail."""
    pacer = lease_pool.PrefectPacer("test-limit", "test-nowhere")
    with pytest.raises(lease_pool.PacingError, match="test-nowhere"), lease_pool.low_priority(), pacer.call():
        pytest.fail("the call was made")


def test_calls_get_their_turn_in_order(api: httpx.Client, no_pause: None) -> None:
    """A message of many attachments has a few calls waiting at a time, so it can't shut out another."""
    _change_limit(api, {"limit": 1000})
    pacer = lease_pool.PrefectPacer("test-limit")
    order: list[int] = []

    def call(number: int) -> None:
        with pacer.call():
            order.append(number)

    with pacer._lines[False].turn():
        threads = [threading.Thread(target=call, args=(number,)) for number in range(10)]
        for number, thread in enumerate(threads):
            thread.start()
            _eventually(lambda n=number: len(pacer._lines[False]._waiting) == n + 2)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert order == sorted(order)


def test_a_cancelled_run_leaves_the_line_at_once(api: httpx.Client, no_pause: None) -> None:
    """It neither calls nor keeps those behind it."""
    pacer = lease_pool.PrefectPacer("test-limit")
    cancellation = Cancellation()
    ended: list[BaseException] = []

    def call() -> None:
        CURRENT.set(cancellation)
        try:
            with pacer.call():
                pytest.fail("the call was made")
        except RunCancelled as error:
            ended.append(error)

    with pacer._lines[False].turn():
        thread = threading.Thread(target=call)
        thread.start()
        _eventually(lambda: len(pacer._lines[False]._waiting) == 2)
        cancellation.cancel()
        thread.join(2)
        assert len(ended) == 1
    with pacer.call():
        pass


def _eventually(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)
