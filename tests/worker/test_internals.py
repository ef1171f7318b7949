"""What each internal of Prefect has to do for this project: an incompatible version fails here, with its name."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import __version__ as version
from prefect import flow, flow_engine
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.events.clients import NullEventsClient, PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)
from prefect.states import Pending, Running, Suspended

from attachments.prefect_api.prefect_retry import retrying_settings
from attachments.prefect_api.versions import TESTED
from attachments.worker.clients import SignedClient
from attachments.worker.engine import Suspension, run_to_final_state
from attachments.worker.internals import INTERNALS, Internal, incompatibilities, record_poll
from attachments.worker.warm_worker import WarmWorker

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {
    PREFECT_API_URL: "http://prefect.example/api",
    PREFECT_API_AUTH_STRING: "user:password",
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
    PREFECT_LOGGING_TO_API_ENABLED: False,
}


def broken(name: str, expectation: str) -> str:
    """The message of a contract that does not hold."""
    assert any(internal.name.endswith(name) for internal in INTERNALS)
    return f"Prefect {version}: {name}: expected that {expectation}"


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    EventsWorker.set_client_override(NullEventsClient)
    with temporary_settings(SETTINGS):
        yield
    EventsWorker.set_client_override(None)


class Server(httpx.BaseTransport):
    """Prefect's API for one run: it accepts every state, and records the requests."""

    def __init__(self, flow_run: FlowRun | None = None) -> None:
        self.flow_run = flow_run
        self.requests: list[httpx.Request] = []
        self.states: list[dict[str, Any]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        run = self.flow_run
        if request.url.path.endswith("/set_state") and run is not None:
            state = json.loads(request.content)["state"] | {"id": str(uuid4()), "timestamp": str(datetime.now(UTC))}
            self.states.append(state)
            self.flow_run = FlowRun.model_validate(run.model_dump(mode="json") | {"state": state})
            response = {"state": state, "status": "ACCEPT", "details": {"type": "accept_details"}}
            return httpx.Response(201, json=response)
        if run is not None and request.url.path.endswith(f"/flow_runs/{run.id}"):
            return httpx.Response(200, json=run.model_dump(mode="json"))
        return httpx.Response(404, json={})


def test_this_prefect_has_every_internal() -> None:
    """Each under its name, and with the parameters that are passed."""
    assert list(incompatibilities()) == []


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: internal.name)
def test_each_internal_has_its_reason(internal: Internal) -> None:
    """And says what public way was tried, and where it is discussed, if anywhere."""
    assert internal.reason.endswith(".")
    assert internal.alternative.endswith(".")
    assert internal.issue == "none" or (ROOT / internal.issue).exists() or internal.issue.startswith("https://")


@pytest.mark.parametrize(
    ("name", "parameters", "problem"),
    [
        ("prefect.workers.base:BaseWorker.gone", None, "prefect.workers.base.BaseWorker.gone is missing"),
        ("prefect.workers.base:BaseWorker.setup", ("new",), "BaseWorker.setup has no parameter new"),
        ("prefect.client.orchestration:SyncPrefectClient.set_flow_run_state", ("state",), "flow_run_id"),
    ],
)
def test_what_is_missing_or_changed_is_named(name: str, parameters: tuple[str, ...] | None, problem: str) -> None:
    """With the version: the worker says it before it takes a run."""
    changed = Internal(name=name, parameters=parameters, reason="", alternative="", issue="")
    (found,) = incompatibilities((changed,))
    assert found.startswith(f"Prefect {version}: ")
    assert problem in found


def test_the_readme_names_the_tested_versions() -> None:
    """And the requirements allow them."""
    text = (ROOT / "README.md").read_text()
    (line,) = (line for line in text.splitlines() if "Prefect" in line and "tested with" in line.lower())
    assert all(tested in line for tested in TESTED)


def test_the_health_check_reads_the_time_of_the_last_poll() -> None:
    """`BaseWorker._last_polled_time`."""
    worker = WarmWorker("pool")
    expectation = broken("BaseWorker._last_polled_time", "the health check reads it")
    time.sleep(2)
    assert not worker.is_worker_still_polling(query_interval_seconds=0.05), expectation
    record_poll(worker)
    assert worker.is_worker_still_polling(query_interval_seconds=0.05), expectation


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    """The runs whose suspension Prefect observes."""
    found: list[UUID] = []

    @contextmanager
    def observe(flow_run_id: UUID, *_: object, **__: object) -> Iterator[None]:
        found.append(flow_run_id)
        yield

    monkeypatch.setattr(flow_engine, "observe_flow_run_suspension", observe)
    return found


def run_in(server: Server, started: Any, suspension: Suspension) -> None:
    """Run a flow as the worker does."""
    assert server.flow_run is not None
    with (
        SignedClient("a worker", lambda: server) as client,
        SyncClientContext.model_construct(client=client),
    ):
        run_to_final_state(started, server.flow_run, suspension)


def of_a_deployment(started: Any) -> FlowRun:
    return FlowRun(
        id=uuid4(), flow_id=uuid4(), deployment_id=uuid4(), name="run", state=Pending(), parameters={"number": 2}
    )


def test_the_engine_runs_a_flow_without_an_observer(observed: list[UUID]) -> None:
    """`FlowRunEngine`, from Pending by way of Running to its end, with the owner in the state Running."""
    numbers: list[int] = []

    @flow(persist_result=False)
    def doubled(number: int, factor: int = 3) -> None:
        numbers.append(number * factor)

    server = Server(of_a_deployment(doubled))
    run_in(server, doubled, Suspension())
    assert numbers == [6], broken("FlowRunEngine", "its parts run the flow with the run's parameters")
    assert [state["type"] for state in server.states] == ["RUNNING", "COMPLETED"]
    assert server.states[0]["message"] == "[worker=a worker]", broken(
        "SyncPrefectClient.set_flow_run_state", "the engine sets its states through it"
    )
    assert observed == [], broken("setup_flow_run_suspension_request", "it observes runs of deployments only")


def test_prefects_own_engine_observes_runs_of_deployments(observed: list[UUID]) -> None:
    """If it no longer does, the engine of our own can go."""

    @flow(persist_result=False)
    def nothing(number: int) -> None:
        pass

    server = Server(of_a_deployment(nothing))
    with SignedClient("a worker", lambda: server) as client, SyncClientContext.model_construct(client=client):
        flow_engine.run_flow(nothing, flow_run=server.flow_run)
    assert observed, broken("setup_flow_run_suspension_request", "Prefect's own engine observes suspensions there")


def test_a_suspended_run_ends_before_its_next_step(observed: list[UUID]) -> None:
    """`mark_requested`: the run's state stays what it was set to, and is not Completed."""
    suspension = Suspension()

    @flow(persist_result=False)
    def suspended(number: int) -> None:
        suspension.apply(Running())
        suspension.apply(Suspended())

    server = Server(of_a_deployment(suspended))
    run_in(server, suspended, suspension)
    assert [state["type"] for state in server.states] == ["RUNNING"], broken(
        "setup_flow_run_suspension_request", "`mark_requested` of what it yields suspends the run"
    )


def test_an_async_flow_runs_to_its_end(observed: list[UUID]) -> None:
    """Prefect's engine returns a coroutine for it: if nobody awaited that, the run would stay Pending."""
    numbers: list[int] = []

    @flow(persist_result=False)
    async def asynchronous(number: int) -> None:
        numbers.append(number)

    server = Server(of_a_deployment(asynchronous))
    # Prefect makes the client of such a flow itself, so that it needs a socket.
    with served(server) as url, temporary_settings({PREFECT_API_URL: url}):
        assert server.flow_run is not None
        run_to_final_state(asynchronous, server.flow_run, Suspension())
    assert numbers == [2]
    assert [state["type"] for state in server.states] == ["RUNNING", "COMPLETED"]


@contextmanager
def served(server: Server) -> Iterator[str]:
    """The same API on a real socket."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = f"http://{self.headers['Host']}{self.path}"
            response = server.handle_request(httpx.Request(self.command, url, content=body))
            self.send_response(response.status_code)
            self.send_header("Content-Length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        do_GET = do_POST = do_PATCH = respond  # noqa: N815  http.server's names

        def log_message(self, *_: Any) -> None:
            """Nothing to print."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.server_port}/api"
        listener.shutdown()
        thread.join()


def test_a_context_lends_its_client_to_everything_in_the_thread() -> None:
    """`SyncClientContext`; and `AsyncClientContext` to what runs in the event loop."""
    with SignedClient("a worker", Server) as client:
        with SyncClientContext.model_construct(client=client):
            assert get_client(sync_client=True) is client, broken("SyncClientContext", "get_client returns its client")
        with client:  # raises when the context has closed it
            pass

    async def in_the_loop() -> None:
        async with get_client() as client:
            with AsyncClientContext.model_construct(client=client):
                assert get_client() is client, broken("AsyncClientContext", "get_client returns its client")
            assert get_client() is not client

    asyncio.run(in_the_loop())


def test_a_client_is_open_until_it_has_been_left_as_often_as_entered() -> None:
    """`SyncPrefectClient.__enter__`."""
    client = SignedClient("a worker", Server)
    with client:
        for _ in range(2):
            with client:
                pass
        with client:  # raises when it is closed
            pass
    with pytest.raises(RuntimeError, match="after closing"), client:
        pytest.fail(broken("SyncPrefectClient.__enter__", "a client that was closed stays closed"))


def test_clients_of_ours_send_what_prefects_send() -> None:
    """They are made with the same arguments as `get_client` passes, such as the password's header."""
    ours, theirs = Server(), Server()
    with SignedClient("a worker", lambda: ours) as client:
        client.api_healthcheck()
    with get_client(sync_client=True, httpx_settings=retrying_settings(transport=lambda: theirs)) as client:
        client.api_healthcheck()
    (sent,), (expected,) = ours.requests, theirs.requests
    assert (sent.url, sent.headers) == (expected.url, expected.headers)
    assert sent.headers["authorization"].startswith("Basic ")


def test_events_go_through_the_client_that_was_set() -> None:
    """`EventsWorker.set_client_override`, with the number of events that are resent."""
    made = threading.Event()

    class Client(NullEventsClient):
        def __init__(self, checkpoint_every: int) -> None:
            if checkpoint_every == 8:
                made.set()

    EventsWorker.set_client_override(Client, checkpoint_every=8)
    worker = EventsWorker.instance()
    try:
        assert made.wait(10), broken("EventsWorker.set_client_override", "new events workers use that client")
    finally:
        worker.drain()
    PrefectEventsClient(api_url="http://prefect.example/api", checkpoint_every=8, checkpoint_interval=1.0)


def test_a_worker_polls_and_syncs_by_the_overridden_methods() -> None:
    """`BaseWorker.get_and_submit_flow_runs`, `sync_with_backend` and `limiter` are what `start` uses."""
    names = {name for method in (WarmWorker.start, WarmWorker.setup) for name in _names_in_base(method.__name__)}
    for name in ("get_and_submit_flow_runs", "limiter"):
        assert name in names, broken(f"BaseWorker.{name}", "`BaseWorker.start` uses it")
    assert isinstance(SignedClient("a worker", Server), SyncPrefectClient)


def _names_in_base(method: str) -> Iterator[str]:
    code = [getattr(WarmWorker.__mro__[1], method).__code__]
    while code:
        found = code.pop()
        yield from found.co_names
        code += [constant for constant in found.co_consts if hasattr(constant, "co_names")]
