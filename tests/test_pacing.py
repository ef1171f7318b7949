"""The vendor's cap, kept across threads and processes by slots of a real Prefect server."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from attachments import pacing
from attachments.demo.processes import Process, road

pytestmark = pytest.mark.xdist_group("pacing")  # they share a Prefect server and its limit

LIMIT = 5
WINDOW = 3.0

CALLS = """
import sys, threading, time
from attachments import pacing
pacing.WINDOW = {window}
pacer = pacing.PrefectPacer("test-limit")
def call():
    with pacer.call():
        print(time.monotonic(), flush=True)
threads = [threading.Thread(target=call) for _ in range({calls})]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
time.sleep({window} + 1)  # until the slots have been given back: the process would take its leases along
"""


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    stack = road(tmp_path_factory.mktemp("pacing"), "http://127.0.0.1:1", "key")
    stack.prefect.start()
    try:
        yield stack.prefect
    finally:
        stack.prefect.stop()


@pytest.fixture
def api(prefect: Process, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """Prefect's API with an empty limit of five slots."""
    for name, value in prefect.environment.items():
        monkeypatch.setenv(name, value)
    with httpx.Client(base_url=prefect.environment["PREFECT_API_URL"], trust_env=False, timeout=60) as client:
        client.delete("/v2/concurrency_limits/test-limit")
        made = client.post("/v2/concurrency_limits/", json={"name": "test-limit", "limit": LIMIT, "active": True})
        made.raise_for_status()
        yield client


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
    monkeypatch.setattr(pacing, "RENEW_AFTER", 0.2)
    monkeypatch.setattr(pacing, "WINDOW", 0.5)
    pacer = pacing.PrefectPacer("test-limit")
    with pacer.call():
        time.sleep(1.5)
        assert api.get("/v2/concurrency_limits/test-limit").json()["active_slots"] == 1
    _eventually(lambda: api.get("/v2/concurrency_limits/test-limit").json()["active_slots"] == 0)


def test_an_error_of_the_call_still_gives_the_slot_back_after_the_window(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vendor may have counted a call whose answer was lost, so the slot is held for the window all the same."""
    monkeypatch.setattr(pacing, "WINDOW", 1.0)
    pacer = pacing.PrefectPacer("test-limit")
    with pytest.raises(ConnectionError), pacer.call():
        raise ConnectionError
    assert api.get("/v2/concurrency_limits/test-limit").json()["active_slots"] == 1
    _eventually(lambda: api.get("/v2/concurrency_limits/test-limit").json()["active_slots"] == 0)


@pytest.mark.parametrize("change", ["missing", "switched off"])
def test_a_limit_that_would_not_limit_is_an_error(api: httpx.Client, change: str) -> None:
    """Prefect grants every slot of a limit that is missing or inactive; the pacer refuses, and says what to do."""
    if change == "missing":
        api.delete("/v2/concurrency_limits/test-limit").raise_for_status()
    else:
        api.patch("/v2/concurrency_limits/test-limit", json={"active": False}).raise_for_status()
    pacer = pacing.PrefectPacer("test-limit")
    with pytest.raises(pacing.PacingError, match=r"attachments setup|Switch it on"), pacer.call():
        pytest.fail("the call was made")


def test_a_limit_that_is_deleted_while_in_use_is_noticed_at_the_next_call(api: httpx.Client) -> None:
    """The check that a limit exists is made once a minute; every grant is checked as well."""
    pacer = pacing.PrefectPacer("test-limit")
    with pacer.call():
        api.delete("/v2/concurrency_limits/test-limit").raise_for_status()
    with pytest.raises(pacing.PacingError, match="attachments setup"), pacer.call():
        pytest.fail("the call was made")


def test_a_limit_of_zero_holds_calls_until_it_is_larger(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sets the limit to 0 in the UI stops the calls for a while, and fails no run."""
    monkeypatch.setattr(pacing, "AWAY", 0.05)
    api.patch("/v2/concurrency_limits/test-limit", json={"limit": 0}).raise_for_status()
    pacer = pacing.PrefectPacer("test-limit")
    made = threading.Event()

    def call() -> None:
        with pacer.call():
            made.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert not made.wait(1)
    api.patch("/v2/concurrency_limits/test-limit", json={"limit": 1}).raise_for_status()
    assert made.wait(30)
    thread.join()


def test_no_call_is_made_while_prefect_is_away(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call waits until there is a server that grants its slot."""
    monkeypatch.setattr(pacing, "AWAY", 0.05)
    server = api.base_url
    pacer = pacing.PrefectPacer("test-limit")
    made = threading.Event()
    pacer._returns.client._client.base_url = httpx.URL("http://127.0.0.1:1/api/")

    def call() -> None:
        with pacer.call():
            made.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert not made.wait(1)
    pacer._returns.client._client.base_url = server
    assert made.wait(30)
    thread.join()


def test_a_429_pauses_and_a_second_one_pauses_longer(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a 429 no call is made for a while; when the next is refused again, for twice as long."""
    monkeypatch.setattr(pacing, "FIRST_PAUSE", 1.0)
    pacer = pacing.PrefectPacer("test-limit")
    pauses = []
    for _ in range(2):
        pacer.rate_limited()
        started = time.monotonic()
        with pacer.call():
            pauses.append(time.monotonic() - started)
    assert 0.9 < pauses[0] < 1.9
    assert 1.9 < pauses[1] < 3.5


def _eventually(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)
