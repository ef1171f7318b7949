"""`attachments doctor`, check by check; tests/e2e shows it against a real Prefect."""

import asyncio
import contextlib
import importlib
import json
import os
import re
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import httpx
import pyrage
import pytest
import respx
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import Worker, WorkerStatus
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    temporary_settings,
)
from pydantic import SecretStr

import attachments.doctor as doctor_package
from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.cli.actions import status_report
from attachments.cli.main import main
from attachments.doctor import receiver as checks
from attachments.doctor import run_checks, workers
from attachments.doctor.api_key import check_content, check_key, check_reading
from attachments.doctor.checks import Checks
from attachments.doctor.deployments import check_deployments
from attachments.doctor.findings import Finding, by_urgency, failed, ok, summary, warning
from attachments.doctor.limits import Capacity, capacity_of, check_limits
from attachments.doctor.prefect_server import FILES, MEMORY, check_access, check_server, check_settings
from attachments.doctor.probe import NoResponse, call_with_timeout, describe_error, prefect_client, request_json
from attachments.doctor.receiver import SLOW_AFTER, STUCK_AFTER, check_inbox, check_receiver
from attachments.doctor.reconciliation import check_reconciliation
from attachments.doctor.schedules import check_schedules
from attachments.doctor.stores import check_store
from attachments.doctor.workers import check_queue, check_workers
from attachments.emailgistics import EmailgisticsClient, parse_delivery
from attachments.flows.doctor import doctor, report
from attachments.foundation import cancellation
from attachments.foundation.terminal_text import quoted
from attachments.prefect_api.versions import LOCKED, TESTED
from attachments.receiver.inbox import Inbox
from attachments.receiver.inbox_reader import read_depth
from attachments.receiver.secrets import split_secrets
from attachments.runs.deployment_spec import (
    POOL_TYPE,
    QUEUES,
    as_deployed,
    declared_deployments,
    declared_flow,
    form_of,
)
from attachments.sandbox.process import Sandbox, running_sandbox
from attachments.worker.warm_worker import WarmWorker
from tests.storage.processes import answer, without_rights

CANARY = "canary-d0c70r"
KEY = "a-key-that-must-not-show"

LONG = 1000
"""Seconds; longer than a test may take."""


def said(finding: Finding) -> str:
    """One line, which holds no secret and no address."""
    line = str(finding)
    assert "\n" not in line
    assert KEY not in line
    assert CANARY not in line + finding.model_dump_json()
    return line


# ---- asking ----


def test_an_answer_is_waited_for_so_long_and_no_longer() -> None:
    """And what hangs is told to end, where it can be."""
    ended = threading.Event()

    def hang() -> None:
        try:
            cancellation.sleep(LONG)
        except cancellation.RunCancelled:
            ended.set()
            raise

    with pytest.raises(NoResponse):
        call_with_timeout(0.1, hang)
    assert ended.wait(60)
    assert call_with_timeout(60, lambda: 7) == 7
    with pytest.raises(TimeoutError, match="its own"):
        call_with_timeout(60, lambda: (_ for _ in ()).throw(TimeoutError("its own")))


def test_a_run_that_is_cancelled_ends_what_it_has_asked() -> None:
    """From another thread, as the worker does it."""
    running = cancellation.Cancellation()
    token = cancellation.CURRENT.set(running)
    timer = threading.Timer(0.1, running.cancel)
    timer.start()
    try:
        with pytest.raises(cancellation.RunCancelled):
            call_with_timeout(LONG, lambda: cancellation.sleep(LONG))
    finally:
        cancellation.CURRENT.reset(token)
        timer.join()


def test_a_module_that_another_one_shadows_is_called_that_and_no_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of the user's may have a file with the name of a package, such as `yaml.py`."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shadowing_one.py").write_text("import module_that_is_nowhere")
    (tmp_path / "shadowing_two.py").write_text("")
    shadowing = importlib.import_module("shadowing_two")
    attempts: list[Callable[[], object]] = [
        lambda: importlib.import_module("shadowing_one"),
        lambda: exec("from shadowing_two import safe_load"),
        lambda: shadowing.safe_load,
    ]
    for attempt, name in zip(attempts, ["module_that_is_nowhere", "shadowing_two", "shadowing_two"], strict=True):
        with pytest.raises((ImportError, AttributeError)) as caught:
            attempt()
        text, remedy = describe_error(caught.value)
        assert text.startswith(f"Python cannot import the module {name} as it was installed (")
        assert "Run this from another folder" in remedy
        assert "proxy" not in text + remedy


def test_a_proxy_that_needs_a_package_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx's own error names no module."""
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(ImportError) as caught:
        httpx.Client(proxy="socks5://127.0.0.1:1")
    text, remedy = describe_error(caught.value)
    assert "proxy" in text
    assert "httpx[socks]" in remedy


def test_what_failed_comes_first_and_its_remedy_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Failures come first on the terminal, in JSON and in the Prefect UI, before the checks that passed."""
    found = [ok("a", "Fine."), warning("b", "Odd.", "See to it."), ok("c", "Fine."), failed("d", "Broken.", "Mend it.")]
    monkeypatch.setattr(doctor_package, "run_checks", lambda: iter(found))
    assert main(["doctor", "--no-receiver", "--inbox", str(tmp_path / "none")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["FAILED   d", "warning  b", "ok       a", "ok       c"]
    assert lines[0] == "FAILED   d: Broken. Mend it."
    assert main(["doctor", "--no-receiver", "--inbox", str(tmp_path / "none"), "--json"]) == 1
    assert [finding["check"] for finding in json.loads(capsys.readouterr().out)["findings"]][:3] == ["d", "b", "a"]
    shown = report(by_urgency([*found, failed("store", "Away.", "Run `attachments setup`.", subject="a_b|c")]))
    assert shown.splitlines()[:2] == ["**FAILED d**", ""]
    assert shown.index("Mend it.") < shown.index("store") < shown.index("See to it.") < shown.index("- a: Fine.")
    assert "**FAILED store a\\_b\\|c**\n\n- Away.\n- What to do: Run `attachments setup`." in shown


@pytest.mark.parametrize("error", [httpx.ConnectError(CANARY), ValueError(CANARY), KeyError(CANARY)])
def test_prefects_errors_are_told_without_their_text(error: Exception) -> None:
    """What happened, and what to do."""
    text, remedy = describe_error(error)
    assert CANARY not in text + remedy
    assert remedy.endswith(".")


@contextmanager
def answering(answers: dict[str, tuple[int, Any]]) -> Iterator[str]:
    """A server that answers each path with a status and JSON, any other with 404; its address."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers.get(self.path, (404, {"detail": CANARY}))
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer  # noqa: N815  http.server's names

        def log_message(self, *_: Any) -> None:
            """Nothing to print."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Asked:
    """As much of Prefect's client as `asked` needs."""

    def __init__(self, address: str) -> None:
        self._http = httpx.Client(base_url=address, trust_env=False)
        self.request = self._http.request

    def __enter__(self) -> Any:
        return cast("Any", self)

    def __exit__(self, *_: object) -> None:
        self._http.close()


def settings(leases: str, retention: Any = "P7D") -> dict[str, Any]:
    return {"server": {"concurrency": {"lease_storage": leases}, "events": {"retention_period": retention}}}


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (200, settings(MEMORY), "FAILED   leases: "),
        (200, settings(FILES), "ok       leases: The server stores them in filesystem"),
        (200, settings("prefect_redis.lease_storage"), "ok       leases: "),
        (200, {}, "warning  leases: It is unknown where the server"),
        (200, [], "warning  leases: It is unknown where the server"),
        (404, {}, "warning  leases: It is unknown where the server"),
        (403, {}, "warning  leases: It is unknown where the server"),
    ],
)
def test_where_the_servers_leases_are_is_seen_or_said_not_to_be(status: int, answer: Any, expected: str) -> None:
    """In memory they do not outlive a restart, and the calls stop for good."""
    with answering({"/admin/settings": (status, answer)}) as address, Asked(address) as client:
        lines = [said(finding) for finding in check_settings(client)]
    assert lines[0].startswith(expected)
    assert ("7 days" in lines[-1]) == (status == 200 and bool(answer))


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (1, ["warning  recorder: The server writes each task state"]),
        (50, ["ok       recorder: The server writes up to 50 task states"]),
        ("", []),
    ],
)
def test_a_server_that_writes_each_state_of_a_task_alone_is_a_warning(batch: Any, expected: list[str]) -> None:
    """It is Prefect's default, and on SQLite it doubles the transactions."""
    answer = {"server": {"services": {"task_run_recorder": {"batch_size": batch}}}}
    with answering({"/admin/settings": (200, answer)}) as address, Asked(address) as client:
        lines = [said(finding) for finding in check_settings(client)]
    found = [line for line in lines if "recorder:" in line]
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("password", "allowed", "expected"),
    [
        (None, "*", ["warning  password: Prefect's API needs no", "warning  origins: Prefect's API lets pages"]),
        ("user:pass", "*", ["ok       password: ", "warning  origins: "]),
        ("user:pass", None, ["ok       password: ", "ok       origins: "]),
        (None, "http://127.0.0.1:4200", ["warning  password: ", "ok       origins: "]),
        (None, "{origin}", ["warning  password: ", "warning  origins: "]),
    ],
)
def test_a_prefect_that_answers_strangers_is_a_warning(
    password: str | None, allowed: str | None, expected: list[str]
) -> None:
    """A request without our own password, from a page of an origin that nobody knows. Prefect's defaults are open."""
    seen: list[str | None] = []

    class Prefect(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(401 if password else 200)
            if allowed:
                self.send_header("Access-Control-Allow-Origin", allowed.format(origin=self.headers["Origin"]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing to print."""

    with HTTPServer(("127.0.0.1", 0), Prefect) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        settings = {
            PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api",
            PREFECT_API_AUTH_STRING: password,
            PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,
        }
        with temporary_settings(settings):
            lines = [said(finding) for finding in check_access()]
        server.shutdown()
    assert [line.startswith(start) for line, start in zip(lines, expected, strict=True)] == [True, True], lines
    assert set(seen) == {None}


def test_another_version_of_prefect_is_a_warning() -> None:
    """So is none at all, as on Prefect Cloud, no failure. What is tested is what the lock file names."""
    with answering({"/health": (200, True), "/admin/version": (200, "3.8.8")}) as address, Asked(address) as client:
        (finding,) = check_server(client)
    assert said(finding).startswith("warning  prefect: The server has version 3.8.8")
    with answering({"/health": (200, True)}) as address, Asked(address) as client:
        (finding,) = check_server(client)
    assert finding.status == "ok"
    assert LOCKED in TESTED
    assert f"\nprefect=={LOCKED} " in (Path(__file__).parents[2] / "requirements.lock").read_text()
    with answering({"/health": (500, {})}) as address, Asked(address) as client:
        with pytest.raises(httpx.HTTPStatusError) as caught:
            request_json(client, "GET", "/health")
        assert describe_error(caught.value)[0] == "Prefect's API responds 500."


@contextmanager
def hanging() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api"


def test_a_prefect_that_hangs_does_not_hang_the_doctor() -> None:
    """One line for it, one for what cannot be seen then."""
    with hanging() as url, temporary_settings({PREFECT_API_URL: url}):
        lines = [said(finding) for finding in run_checks(patience=0.5)]
    # Its client's time-out and ours end at the same moment.
    assert re.match("FAILED   prefect: Prefect (does|did) not respond", lines[0])
    assert lines[1].startswith("warning  unseen: ")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (None, "PREFECT_API_URL is not set"),
        ("http://127.0.0.1:9/api", "Connect"),
        ("http://127.0.0.1:4200api", "PREFECT_API_URL is not a valid URL."),
    ],
)
def test_without_prefect_the_rest_is_looked_at(
    url: str | None,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The secret and the inbox are this machine's own. Status 1, and no traceback."""
    monkeypatch.setenv("EMAILGISTICS_WEBHOOK_SECRET", KEY)
    monkeypatch.setenv("ATTACHMENTS_INBOX", str(tmp_path / "inbox.sqlite"))
    Inbox(tmp_path / "inbox.sqlite").close()
    with temporary_settings({PREFECT_API_URL: url}):
        assert main(["doctor"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert main(["doctor", "--json", "--no-receiver"]) == 1
        document = json.loads(capsys.readouterr().out)
    assert text in lines[0]
    assert [line.partition(":")[0] for line in lines[:-1]] == [
        "FAILED   prefect",
        "warning  unseen",
        "ok       receiver",
        "ok       inbox",
    ]
    assert lines[-1] == "1 of 4 checks failed, 1 warning: prefect."
    assert KEY not in "".join(lines)
    assert document["ok"] is False
    assert [set(finding) for finding in document["findings"]] == [
        {"check", "subject", "status", "text", "remedy"},
    ] * 3


def test_the_summary_names_what_failed() -> None:
    """In one sentence, by check and subject."""
    assert summary([ok("a", "x"), warning("b", "x")]) == "Nothing failed in 2 checks, 1 warning."
    found = [failed("limit", "x", "y", subject="emailgistics-api"), failed("worker", "x", "y"), ok("a", "x")]
    assert summary(found) == "2 of 3 checks failed: limit emailgistics-api, worker."


# ---- limits ----


def limit(size: int = 100, name: str = "emailgistics-api", **fields: Any) -> GlobalConcurrencyLimitResponse:
    values = {"active": True, "active_slots": 3, "slot_decay_per_second": 0.0, **fields}
    return GlobalConcurrencyLimitResponse(id=uuid4(), name=name, limit=size, **values)


def backlog(size: int = 60, **fields: Any) -> GlobalConcurrencyLimitResponse:
    return limit(size, "emailgistics-backfill", **fields)


ACCOUNT = EmailgisticsAccount(api_key=SecretStr(KEY))


@pytest.mark.parametrize(
    ("api", "other", "expected", "room"),
    [
        (limit(), backlog(), (None, None), Capacity.FREE),
        (limit(active_slots=100), backlog(), (None, None), Capacity.FULL),
        (None, backlog(), ("It does not exist", None), Capacity.NONE),
        (limit(), None, (None, "It does not exist"), Capacity.FREE),
        (limit(active=False), backlog(), ("switched off", None), Capacity.NONE),
        (limit(0), backlog(), ("It is 0", None), Capacity.NONE),
        (limit(101), backlog(), ("It allows 101 calls", None), Capacity.FREE),
        (limit(slot_decay_per_second=1.6), backlog(), ("are released", None), Capacity.FREE),
        (limit(), backlog(active=False), (None, "switched off"), Capacity.FREE),
        (limit(), backlog(slot_decay_per_second=0.1), (None, "are released"), Capacity.FREE),
        (limit(), backlog(100), (None, "of 100, which leaves none"), Capacity.FREE),
        (limit(60), backlog(60), (None, "of 60, which leaves none"), Capacity.FREE),
        (limit(500), backlog(600), ("It allows 500 calls", "update emailgistics-backfill --limit 60`"), Capacity.FREE),
        (limit(60), backlog(59), (None, None), Capacity.FREE),
        (
            limit(1, active_slots=0),
            backlog(1),
            (None, "`prefect global-concurrency-limit update emailgistics-api --limit"),
            Capacity.FREE,
        ),
    ],
)
def test_a_limit_that_is_not_safe_is_a_failure(
    api: Any, other: Any, expected: tuple[str | None, str | None], room: Capacity
) -> None:
    """Each limit that does not keep the calls below the cap, or takes live mail's share, is reported with a remedy."""
    found = list(check_limits(ACCOUNT, api, other))
    assert [finding.subject for finding in found] == ["emailgistics-api", "emailgistics-backfill"]
    for finding, text in zip(found, expected, strict=True):
        assert (finding.status == "failed") == (text is not None)
        assert (text or "At most") in said(finding)
        assert bool(finding.remedy) == (text is not None)
    assert capacity_of(api) is room


# ---- pool, queues, workers ----


def queue(name: str, **fields: Any) -> dict[str, Any]:
    priority, most = QUEUES[name]
    return {"name": name, "priority": priority, "concurrency_limit": most, "is_paused": False, **fields}


@pytest.mark.parametrize(
    ("name", "changed", "status", "text"),
    [
        ("default", {}, "ok", "It is open"),
        ("default", {"is_paused": True}, "failed", "prefect work-queue resume default --pool attachments"),
        ("default", {"status": "PAUSED"}, "failed", "It is paused"),
        ("backfill", {"concurrency_limit": 0}, "failed", "is 0"),
        ("backfill", {"concurrency_limit": None}, "warning", "set-concurrency-limit backfill 4"),
        ("backfill", {"priority": 1}, "failed", "puts it before default, upkeep"),
        ("upkeep", {"priority": 2}, "ok", "It is open"),
        ("upkeep", {"priority": 1}, "failed", "puts it before default"),
    ],
)
def test_a_queue_is_open_and_in_its_turn(name: str, changed: dict[str, Any], status: str, text: str) -> None:
    """Priorities may be other numbers, as long as live mail goes first."""
    queues = {each: queue(each) for each in QUEUES}
    queues[name] = queue(name, **changed)
    finding = check_queue(name, queues)
    assert finding.status == status
    assert text in said(finding)
    del queues[name]
    assert "It does not exist. Run `attachments setup`" in said(check_queue(name, queues))


class Workers:
    """A Prefect that knows these workers, one answer after the other."""

    def __init__(self, *answers: list[WorkerStatus]) -> None:
        self._answers = list(answers)

    def read_workers_for_work_pool(self, *_: object, **__: object) -> list[Worker]:
        return [Worker(name=CANARY, work_pool_id=uuid4(), status=status) for status in self._answers.pop(0)]


def test_a_worker_lives_by_the_servers_clock() -> None:
    """A busy Prefect hears beats late, so it is asked twice before nobody is said to live."""

    def line(*answers: list[WorkerStatus]) -> str:
        (finding,) = check_workers(cast("Any", Workers(*answers)), recheck_delay=0.01)
        return said(finding)

    online, offline = WorkerStatus.ONLINE, WorkerStatus.OFFLINE
    assert line([online, offline]) == "ok       worker: One is alive."
    assert line([offline], [online, online]) == "ok       worker: 2 alive."
    nobody = "FAILED   worker: None is alive, so no run starts. Start one: `prefect worker start --pool attachments`."
    assert line([offline], []) == nobody


@contextmanager
def prefect_with_runs(unwritable: set[str], ids: list[str]) -> Iterator[SyncPrefectClient]:
    """A client of a Prefect that answers 500 where one of these runs would be in the answer."""

    def answer(request: httpx.Request) -> httpx.Response:
        path, body = request.url.path.removeprefix("/api"), json.loads(request.content or b"{}")
        if path == "/csrf-token":
            return httpx.Response(404, json={})
        if path.endswith("/workers/filter"):
            worker = Worker(id=uuid4(), name="w", work_pool_id=uuid4(), status=WorkerStatus.ONLINE)
            return httpx.Response(200, json=[worker.model_dump(mode="json")])
        if path == "/ui/flow_runs/history":
            return httpx.Response(200, json=[{"id": run} for run in ids])
        named = body.get("flow_runs", {}).get("id", {}).get("any_", ids)
        is_listed = path.endswith(("/get_scheduled_flow_runs", "/flow_runs/filter"))
        broken = is_listed and bool(unwritable & set(named))
        return httpx.Response(500, json={}) if broken else httpx.Response(200, json=[])

    with prefect_that_answers(answer) as client:
        yield client


@contextmanager
def prefect_that_answers(answer: Callable[[httpx.Request], httpx.Response]) -> Iterator[SyncPrefectClient]:
    elsewhere = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False}
    with temporary_settings(elsewhere), respx.mock(assert_all_called=False) as api, prefect_client(5) as client:
        api.route(host="127.0.0.1", port=9).mock(side_effect=answer)
        yield client


@pytest.mark.parametrize("number", [0, 1, 3, 40])
def test_runs_that_prefect_cannot_give_out_are_named(number: int) -> None:
    """It takes them, and then answers 500 to each worker that asks for any: the first few are named, to be deleted."""
    ids = [str(uuid4()) for _ in range(500)]
    with prefect_with_runs(set(ids[50 : 50 + number]), ids) as client:
        (finding,) = workers.check_runs(client)
    if not number:
        assert said(finding) == "ok       runs: Prefect returns the due runs and the active ones."
        return
    assert finding.status == "failed"
    assert "responds 500 when workers request runs" in said(finding)
    named = re.findall(r"`prefect flow-run delete ([0-9a-f-]+)`", finding.remedy)
    assert named == ids[50 : 50 + min(number, workers.MAX_NAMED)]


def test_a_prefect_that_answers_500_for_another_reason_is_told_as_that() -> None:
    """No run is to blame, so none is named."""
    with prefect_that_answers(_fails_where_workers_ask) as client:
        (finding,) = workers.check_runs(client)
    assert finding.status == "failed"
    assert "flow-run delete" not in said(finding)
    assert "Check the log of the Prefect server; see" in said(finding)


def _fails_where_workers_ask(request: httpx.Request) -> httpx.Response:
    if request.url.path.endswith("/workers/filter"):
        worker = Worker(id=uuid4(), name="w", work_pool_id=uuid4(), status=WorkerStatus.ONLINE)
        return httpx.Response(200, json=[worker.model_dump(mode="json")])
    statuses = {"csrf-token": 404, "get_scheduled_flow_runs": 500}
    return httpx.Response(statuses.get(request.url.path.rpartition("/")[2], 200), json=[])


def test_status_says_that_workers_get_no_runs() -> None:
    """And that it is a 500; not that Prefect does not answer."""
    problems: list[str] = []
    with prefect_with_runs({"one"}, ["one"]) as client:
        status_report.read_prefect(client, status_report.TimeBudget(LONG), problems)
    assert "Prefect's API responds 500 when workers request runs, so they get none. `attachments doctor` names" in (
        " ".join(problems)
    )
    assert "in time" not in " ".join(problems)


def test_the_expected_type_is_our_workers() -> None:
    """The pool's type names the worker that may take its runs."""
    assert WarmWorker.type == POOL_TYPE


@pytest.mark.parametrize(
    ("persister", "expected"),
    [
        ({"enabled": True, "batch_size": 20, "flush_interval": 1.0}, ["ok       persister: Events are written"]),
        ({"enabled": True, "batch_size": 20, "flush_interval": 5}, ["warning  persister: A run ends only when"]),
        ({"enabled": True, "batch_size": 200, "flush_interval": 1}, ["warning  persister: On SQLite, a server"]),
        (
            {"enabled": True, "batch_size": 21, "flush_interval": 5.0},
            ["warning  persister: On SQLite, a server", "warning  persister: A run ends only when"],
        ),
        ({"enabled": False, "batch_size": 20, "flush_interval": 1.0}, ["warning  persister: The server writes no"]),
        ({"enabled": "x", "batch_size": "20", "flush_interval": None}, []),
        (None, []),
    ],
)
def test_a_server_that_loses_events_or_writes_them_late_is_a_warning(persister: Any, expected: list[str]) -> None:
    """As one that was set up for version 0.1 does, whose unit was not replaced with the installed version's."""
    answer = {"server": {"services": {"event_persister": persister}}}
    with answering({"/admin/settings": (200, answer)}) as address, Asked(address) as client:
        lines = [said(finding) for finding in check_settings(client)]
    found = [line for line in lines if "persister:" in line]
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


# ---- deployments ----


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "ok       {}: It is up to date."),
        ({"paused": True}, "warning  {}: It is paused in Prefect"),
        ({"version": "an-older-one"}, "warning  {}: It was created from another version"),
        (
            {"entrypoint": "flows.elsewhere.download"},
            "FAILED   {}: It starts other code than the installed version.",
        ),
        ({"parameter_openapi_schema": {}}, "FAILED   {}: Its parameters are those of another version."),
        ({"work_pool_name": None, "work_queue_name": None}, "FAILED   {}: It uses no work pool"),
        ({"work_pool_name": "other"}, "FAILED   {}: It uses another work pool"),
        ({"work_queue_name": "by-hand"}, "warning  {}: It is in the wrong work queue."),
    ],
)
def test_a_deployment_is_what_the_installed_version_would_make(changed: dict[str, Any], expected: str) -> None:
    """What runs would start, what the form asks for; and whether it is the same code."""
    spec = declared_deployments()[0]
    made = as_deployed(declared_flow(spec), spec["name"])
    schema = json.loads(made._parameter_openapi_schema.model_dump_json(exclude_unset=True))
    fields = {
        "entrypoint": made.entrypoint,
        "version": made.version,
        "paused": False,
        "parameter_openapi_schema": schema,
        "work_pool_name": "attachments",
        "work_queue_name": "default",
        "parameters": {},
    }
    name = "download-attachments/default"
    found = list(check_deployments({name: cast("Any", SimpleNamespace(**{**fields, **changed}))}))
    assert said(found[0]).startswith(expected.format(f"deployment {name}"))
    assert {finding.status for finding in found[1:]} == {"failed"}  # the others are missing


def test_a_users_deployment_of_an_older_version_is_found() -> None:
    """By where it says that our flow is, or by its form; deployments of other code have forms of their own."""
    spec = declared_deployments()[0]
    flow = declared_flow(spec)

    def found(entrypoint: str, form: dict[str, Any]) -> list[str]:
        fields = {"entrypoint": entrypoint, "parameter_openapi_schema": form, "parameters": {}}
        name = "download-attachments/invoices"
        findings = check_deployments({name: cast("Any", SimpleNamespace(**fields))})
        return [said(finding) for finding in findings if finding.subject == name]

    assert found(spec["entrypoint"], form_of(flow)) == found("invoices.extract", {}) == []
    (by_place,) = found("flows.download_attachments.download_attachments", form_of(flow))
    assert by_place.startswith("FAILED   deployment download-attachments/invoices: It refers to its flow as an older")
    (by_form,) = found(spec["entrypoint"], {"type": "object", "properties": {"message_id": {}}})
    assert by_form == (
        "FAILED   deployment download-attachments/invoices: Its parameters are those of another version. Stop the "
        "workers on all hosts, install the same version on each, run `attachments setup`, and start the workers."
    )


def test_a_filter_that_no_run_takes_is_found() -> None:
    """Of any deployment of the download. The sentence is for the terminal: patterns may hold a customer's name."""

    def found(**parameters: Any) -> list[Finding]:
        deployment = cast("Any", SimpleNamespace(entrypoint=None, parameters=parameters))
        findings = check_deployments({"download-attachments/invoices": deployment, "doctor/other": deployment})
        return [finding for finding in findings if finding.check == "filter"]

    assert found() == found(filter=None) == found(filter={"exclude": [{"names": ["canary*"]}]}) == []
    (bad,) = found(filter={"include": [{"names": ["canary/*"]}]})
    assert said(bad).startswith("FAILED   filter download-attachments/invoices: Its filter is not valid, so each of")
    assert "canary" not in said(bad) + bad.model_dump_json()
    assert bad.names[0].startswith("include[0].names: 'canary/*' has a / or \\")


FAR = datetime.now(UTC).replace(microsecond=0) + timedelta(days=200)
PAST = FAR - timedelta(days=230)


def unplanned(*schedules: Any) -> str:
    """What the doctor says of a deployment with these schedules, of which Prefect plans no run."""
    active = [SimpleNamespace(active=True, schedule=one, updated=None) for one in schedules]
    deployment = SimpleNamespace(id="1", paused=False, schedules=active)
    no_runs = httpx.Response(200, json=0, request=httpx.Request("POST", "http://prefect"))
    client = SimpleNamespace(request=lambda *_, **__: no_runs)
    deployments = cast("Any", {"purge/yearly": deployment})
    (finding,) = check_schedules(cast("Any", client), deployments, recheck_delay=0.0)
    return str(finding)


@pytest.mark.parametrize(
    "schedule",
    [
        CronSchedule(cron=f"0 0 {FAR.day} {FAR.month} *"),
        IntervalSchedule(interval=timedelta(days=365), anchor_date=FAR),
        RRuleSchedule(rrule=f"DTSTART:{FAR:%Y%m%dT%H%M%S}\nRRULE:FREQ=YEARLY"),
    ],
    ids=["cron", "interval", "rrule"],
)
def test_a_schedule_of_which_the_next_date_is_months_ahead_is_well(schedule: Any) -> None:
    """Prefect plans no run of it yet: it looks 100 days ahead. One that is due sooner and has none is broken."""
    assert unplanned(schedule) == (
        f"ok       schedule purge/yearly: Its next run is due on {FAR:%Y-%m-%d}; Prefect plans runs 100 days ahead."
    )
    assert unplanned(schedule, IntervalSchedule(interval=timedelta(hours=1))).startswith(
        "FAILED   schedule purge/yearly: It is active, but"
    )


@pytest.mark.parametrize(
    "end",
    [pytest.param("COUNT=1", id="count"), pytest.param(f"UNTIL={PAST + timedelta(days=3):%Y%m%dT%H%M%S}", id="until")],
)
def test_a_schedule_that_has_ended_is_told_as_that(end: str) -> None:
    """Nothing is wrong with Prefect's scheduler: no date is left. Another schedule that goes on counts as ever."""
    ended = RRuleSchedule(rrule=f"DTSTART:{PAST:%Y%m%dT%H%M%S}\nRRULE:FREQ=DAILY;{end}")
    assert unplanned(ended) == (
        "warning  schedule purge/yearly: Its schedule has ended, so it no longer starts runs. If it should, "
        "give the schedule a later end in the Prefect UI, or a new one; else switch the schedule off."
    )
    yearly = CronSchedule(cron=f"0 0 {FAR.day} {FAR.month} *")
    assert unplanned(ended, yearly).startswith("ok       schedule purge/yearly: Its next run is due on")
    hourly = IntervalSchedule(interval=timedelta(hours=1))
    assert unplanned(ended, hourly).startswith("FAILED   schedule purge/yearly: It is active, but")


def test_a_schedule_without_any_date_is_no_ended_one() -> None:
    """Prefect takes the 30th of February, and plans nothing; the UI shows the schedule."""
    assert unplanned(CronSchedule(cron="0 0 30 2 *")).startswith("FAILED   schedule purge/yearly: It is active, but")


def scheduled(*, active: bool, **parameters: Any) -> Any:
    return SimpleNamespace(paused=False, schedules=[SimpleNamespace(active=active)], parameters=parameters)


@pytest.mark.parametrize(
    ("active", "scope", "expected"),
    [
        (True, "ok", "ok       reconciliation: It is scheduled."),
        (True, "warning", "FAILED   reconciliation: It is scheduled, but the key lacks"),
        (False, "ok", "warning  reconciliation: It is not scheduled,"),
        (False, "warning", "warning  reconciliation: It is not scheduled,"),
        (True, None, "ok       reconciliation: It is scheduled."),
    ],
)
def test_reconciliation_should_run_by_itself_when_it_can(active: bool, scope: Any, expected: str) -> None:
    """A schedule without the scope fails every hour; a scope without the schedule finds nothing."""
    scopes = [Finding(check="scope", subject="reporting (default)", status=scope, text="x")] if scope else []
    found = list(check_reconciliation({"reconcile-attachments/default": scheduled(active=active)}, scopes))
    assert said(found[0]).startswith(expected)
    assert list(check_reconciliation({}, scopes)) == []


@pytest.mark.parametrize(("lacks", "status"), [("uk", "ok"), ("us", "failed")])
def test_the_key_of_another_account_is_no_matter_of_reconciliation(lacks: str, status: str) -> None:
    """Its runs use the account of the deployment that they fetch for."""
    scopes = [
        Finding(
            check="scope", subject=f"reporting ({account})", status="warning" if account == lacks else "ok", text="x"
        )
        for account in ("uk", "us")
    ]
    standing = {
        "download-attachments/claims": SimpleNamespace(parameters={"account": "us"}),
        "download-attachments/default": SimpleNamespace(parameters={"account": "uk"}),
        "reconcile-attachments/claims": scheduled(active=True, deployment="claims"),
        "reconcile-attachments/default": scheduled(active=False),
    }
    (found,) = check_reconciliation(cast("Any", standing), scopes)
    assert found.status == status


# ---- Emailgistics ----


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with running_sandbox(key=KEY, limit=None) as running:
        running.control.add_message(mailbox=f"{CANARY}@example.com")
        yield running


@contextmanager
def client(sandbox: Sandbox, key: str = KEY, **fields: Any) -> Iterator[EmailgisticsClient]:
    """A client whose key may do so much."""
    sandbox.control.settings(keys=[{"key": KEY, **fields}])
    sandbox.control.clear_requests()
    with EmailgisticsClient(sandbox.base_url, key) as made:
        yield made
    sandbox.control.clear_faults()


ALL = ["reporting", "messages:read", "messages:content"]


def test_a_key_that_may_do_all_is_well(sandbox: Sandbox) -> None:
    """Three calls and no more; the mailboxes' addresses are for the terminal alone."""
    with client(sandbox) as asking:
        found = [
            *check_key(asking, "default"),
            check_reading(asking, "default"),
            check_content(asking, "default"),
        ]
    assert [finding.status for finding in found] == ["ok"] * 5
    assert [finding.about for finding in found] == [
        "api-key default",
        "scope reporting (default)",
        "mailboxes default",
        "scope messages:read (default)",
        "scope messages:content (default)",
    ]
    assert f"{CANARY}@example.com" in found[2].names
    for finding in found:
        said(finding)
    assert "seems to have it" in found[3].text
    assert [call["endpoint"] for call in sandbox.control.requests()] == ["mailboxes", "list", "download"]
    assert CANARY not in repr(found[2])


def test_a_key_without_reporting_is_a_warning(sandbox: Sandbox) -> None:
    """Downloads need it not; reconciliation does."""
    with client(sandbox, scopes=ALL[1:]) as asking:
        key, scope = check_key(asking, "default")
    assert key.status == "ok"
    assert said(scope).startswith("warning  scope reporting (default): The key lacks it;")


@pytest.mark.parametrize(("lacking", "look"), [(ALL[1], check_reading), (ALL[2], check_content)])
def test_a_missing_scope_is_a_failure(sandbox: Sandbox, lacking: str, look: Any) -> None:
    """And what to do: scopes are fixed when a key is made."""
    with client(sandbox, scopes=[scope for scope in ALL if scope != lacking]) as asking:
        finding = look(asking, "default")
    assert said(finding).startswith(f"FAILED   scope {lacking} (default): The key lacks it (HTTP 403). A key's scopes")


def test_a_wrong_key_is_a_failure_and_nothing_more_is_asked(sandbox: Sandbox) -> None:
    """401 concerns every call."""
    with client(sandbox, key=f"{KEY}-of-another") as asking:
        (finding,) = check_key(asking, "default")
    assert said(finding).startswith("FAILED   api-key default: Emailgistics refuses it (HTTP 401). The API key is")


def test_a_key_that_sees_no_mailbox_is_a_failure(sandbox: Sandbox) -> None:
    """It would get 404 for every message."""
    with client(sandbox, mailboxes=[]) as asking:
        *_, finding = check_key(asking, "default")
    assert said(finding).startswith("FAILED   mailboxes default: The key can access no mailbox")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ("failed", "warning")),
        (404, ("failed", "ok")),
        (429, ("warning", "warning")),
        (500, ("failed", "failed")),
        (302, ("failed", "failed")),
    ],
)
def test_other_answers_are_no_proof_of_anything(sandbox: Sandbox, status: int, expected: tuple[str, str]) -> None:
    """The order in which Emailgistics judges is not documented, and a proxy may answer in its place."""
    with client(sandbox) as asking:
        sandbox.control.fault(times=None, fault={"kind": "status", "status": status, "body": CANARY})
        (key,) = check_key(asking, "default")
        scope = check_reading(asking, "default")
    assert (key.status, scope.status) == expected
    for finding in (key, scope):
        said(finding)
        assert finding.remedy or finding.status == "ok"


LONG_AGO, SOON = "2026-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("room", "taken", "pause", "expected"),
    [
        (Capacity.FREE, 2, None, "FAILED   api-key default: Emailgistics did not respond within 0 s."),
        (Capacity.FREE, 2, {"until": LONG_AGO}, "FAILED   api-key default: Emailgistics did not respond within 0 s."),
        (Capacity.FREE, 2, "rubbish", "FAILED   api-key default: Emailgistics did not respond within 0 s."),
        (Capacity.FREE, 3, None, "warning  api-key default: Not checked: all slots of the limit are taken"),
        (Capacity.FULL, 2, None, "warning  api-key default: Not checked: all slots of the limit are taken"),
        (
            Capacity.FREE,
            2,
            {"until": SOON},
            "warning  api-key default: Not checked: Emailgistics recently responded with 429, so",
        ),
    ],
)
def test_a_vendor_that_hangs_does_not_hang_the_doctor(room: Capacity, taken: int, pause: Any, expected: str) -> None:
    """It is asked once, not three times; where a slot or the end of a pause was waited for, that is no failure."""
    told = SimpleNamespace(
        read_global_concurrency_limit_by_name=lambda _: limit(3, active_slots=taken),
        read_variable_by_name=lambda name: {"emailgistics-api-pause": SimpleNamespace(value=pause)}[name],
    )
    with hanging() as url, EmailgisticsClient(url, KEY) as asking:
        account = cast("Any", SimpleNamespace(client=lambda: asking, limit_name="emailgistics-api"))
        found = list(Checks(cast("Any", told), 0.3).check_vendor("default", account, room))
    assert len(found) == 1
    assert said(found[0]).startswith(expected)


@pytest.mark.parametrize(
    "proxy",
    [
        pytest.param(f"http://user:{CANARY}@", id="without-a-host"),
        pytest.param(f"socks5://user:{CANARY}@127.0.0.1:9", id="socks-without-its-package"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_a_finding(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The account's client cannot even be made then."""
    account = EmailgisticsAccount(
        api_key=SecretStr(KEY),
        base_url="https://c1.proxied.example/api/v1",
        limit_name="proxied",  # a process keeps the pacer of a limit, and this one's Prefect is nowhere
    )
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        # The pacer asks Prefect by the environment's proxies as well, and a caller that gets here has reached Prefect.
        account.model_copy(update={"base_url": "https://c1.direct.example/api/v1"}).client()
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        (found,) = Checks(cast("Any", None), 1).check_vendor("default", account, Capacity.FREE)
    line = said(found)
    assert line.startswith("FAILED   api-key default: The proxy that the environment names")
    assert "HTTPS_PROXY" in line


# ---- stores ----


def test_a_store_that_hangs_does_not_hang_the_doctor() -> None:
    """A mount that is gone, a service that does not answer."""
    forever = threading.Event()
    block = cast("Any", SimpleNamespace(store=forever.wait))
    finding = Checks(cast("Any", None), 0.1).check_store("default", block)
    forever.set()
    assert said(finding).startswith("FAILED   store default: It did not respond within")


def test_a_store_whose_options_a_library_cannot_use_is_a_failure() -> None:
    """A typing error in them must not cost what else the doctor finds."""
    block = AttachmentStore(
        url="s3://bucket/root", options={"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": "minio:9000"}}
    )
    finding = Checks(cast("Any", None), LONG).check_store("default", block)
    expected = "FAILED   store default: The store's options cannot be used. Check endpoint_url (https://host)"
    assert said(finding).startswith(expected)


def test_a_store_that_works_is_well_and_left_as_it_was(tmp_path: Path) -> None:
    """Whatever it is: each kind is tried in tests/storage."""
    root = tmp_path / "root"
    block = AttachmentStore(url=root.as_uri())
    assert said(check_store(block, "default")).startswith(
        f"warning  store default: {root.as_uri()} does not exist on this machine"
    )
    assert not root.exists()
    root.mkdir()
    encryption = "Attachments are stored without age encryption."
    expected = f"ok       store default: {root.as_uri()} can be written and read. {encryption}"
    assert said(check_store(block, "default")) == expected
    assert list(root.iterdir()) == []


def test_whether_a_store_encrypts_is_said(tmp_path: Path) -> None:
    """And where its recipients have been lost, which stores nothing; where that is meant, it is a warning."""
    recipient = str(pyrage.x25519.Identity.generate().to_public())
    url = tmp_path.as_uri()
    block = AttachmentStore(url=url, age_recipients=[recipient])
    assert said(check_store(block, "default")).endswith("Attachments are encrypted to 1 age recipient.")
    assert list(tmp_path.iterdir()) == []
    block.store().write("0" * 32, "1" * 32, "a.pdf", [b"x"])
    assert said(check_store(block, "default")).startswith("ok ")
    lost = said(check_store(AttachmentStore(url=url), "default"))
    assert lost.startswith(
        f"FAILED   store default: {url} has stored encrypted attachments before, and its block has no age"
    )
    assert "Allow plaintext" in lost
    allowed = said(check_store(AttachmentStore(url=url, allow_plaintext=True), "default"))
    assert allowed.startswith(
        f"warning  store default: {url} has stored encrypted attachments before, and now stores them unencrypted,"
    )


def test_a_store_that_may_not_be_written_is_a_failure(tmp_path: Path) -> None:
    """Also one that has yet to be made, where the folder above may not be written."""
    closed = tmp_path / CANARY
    closed.mkdir(mode=0o555)
    for folder in tmp_path.parents[:3]:
        folder.chmod(0o755)  # pytest's own folders are closed to other users
    for root in (closed, closed / "root"):
        block = AttachmentStore(url=root.as_uri())
        finding = answer(without_rights(lambda block=block: check_store(block, "default")))
        expected = "FAILED   store default: Could not probe the store (EACCES). Let the worker's user write to the"
        assert said(finding).startswith(expected)


# ---- receiver and inbox ----


@pytest.mark.parametrize(
    ("refusal", "ready", "expected"),
    [
        (401, 200, ["ok       receiver: It refuses", "ok       ready: It would accept"]),
        (401, 503, ["ok       receiver: It refuses", "FAILED   ready: It would refuse a delivery now"]),
        (401, 404, ["ok       receiver: It refuses", "warning  ready: It is unknown whether it would accept"]),
        (400, 200, ["FAILED   receiver: It accepts webhooks without a secret", "ok       ready"]),
        (404, 200, ["FAILED   receiver: A webhook without the secret gets 404"]),
        (502, 200, ["FAILED   receiver: A webhook without the secret gets 502"]),
    ],
)
@pytest.mark.parametrize("path", ["", "/", "/webhooks/default"])
def test_a_receiver_must_refuse_strangers_and_take_deliveries(
    refusal: int, ready: int, expected: list[str], path: str
) -> None:
    """Asked at any of its addresses."""
    with answering({"/webhooks/default": (refusal, {}), "/ready": (ready, {})}) as address:
        lines = [said(finding) for finding in check_receiver([], f"{address}{path}")]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "no url", "http://[", ""])
def test_no_receiver_is_a_failure(url: str) -> None:
    """A closed port, or what is no URL."""
    (finding,) = check_receiver([KEY], url)
    assert finding.status == "failed"
    said(finding)


def test_no_secret_is_a_failure() -> None:
    """Without it the receiver does not start."""
    assert "EMAILGISTICS_WEBHOOK_SECRET is not set here" in said(next(iter(check_receiver([], None))))
    assert next(iter(check_receiver([KEY], None))).status == "ok"


@pytest.mark.parametrize(
    ("value", "status"), [("abc,def", "failed"), (f"{KEY},{KEY}x,short", "failed"), ("q7k", "warning")]
)
def test_a_secret_that_can_be_guessed_is_told(value: str, status: str) -> None:
    """A part of it is a failure: the receiver does not start with that."""
    (found,) = check_receiver(split_secrets(value), None)
    assert found.status == status
    assert "16 characters" in found.text
    assert value not in said(found)


def test_the_pages_of_monitors_are_found_beside_https(tmp_path: Path) -> None:
    """At the address that the receiver has for them by itself, or at the one that the doctor is told."""
    with answering({"/webhooks/default": (401, {}), "/ready": (404, {})}) as public:
        with answering({"/ready": (200, {"status": "ok"})}) as apart:
            address = ("127.0.0.1", int(apart.rpartition(":")[2]))
            _, ready = check_receiver([KEY], public, address)
            assert said(ready).startswith("ok       ready")
        with answering({"/ready": (200, {"unrelated": "page"})}) as apart:
            address = ("127.0.0.1", int(apart.rpartition(":")[2]))
            _, ready = check_receiver([KEY], public, address)
            assert said(ready).startswith("warning  ready: It is unknown whether it would accept")


def fill(path: Path, count: int, age: float = 0.0) -> Inbox:
    """An open inbox in which so many wait."""

    async def append() -> None:
        for number in range(count):
            await inbox.append(
                "default", parse_delivery(json.dumps({"id": f"{CANARY}-{number}", "event": "received"}).encode())
            )

    inbox = Inbox(path)
    asyncio.run(append())
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE entry SET accepted = accepted - ?", (age,))
    return inbox


@pytest.mark.parametrize(
    ("count", "age", "status", "text"),
    [
        (0, 0, "ok", "Nothing waits in it."),
        (3, 5, "ok", "3 deliveries wait, the oldest for 5 s."),
        (1, SLOW_AFTER + 1, "warning", "is running and reaches"),
        (1, STUCK_AFTER + 1, "failed", "is running and reaches"),
    ],
)
def test_an_inbox_is_read_beside_its_receiver_and_after_it(
    tmp_path: Path, count: int, age: float, status: str, text: str
) -> None:
    """While it is in use nothing is locked, and at rest no file is made that the receiver might not own."""
    path = tmp_path / "in box?#%.sqlite"
    with contextlib.closing(fill(path, count, age)) as inbox:
        for finding in check_inbox(path):
            assert finding.status == status
            assert text in said(finding)
        asyncio.run(inbox.check_writable())
    before = sorted((file.name, file.stat().st_mtime_ns) for file in tmp_path.iterdir())
    assert {finding.status for finding in check_inbox(path)} == {status}
    assert sorted((file.name, file.stat().st_mtime_ns) for file in tmp_path.iterdir()) == before


def test_an_inbox_at_rest_is_read_without_the_right_to_write(tmp_path: Path) -> None:
    """By a user who may only read it; SQLite itself would create files beside it."""
    path = tmp_path / "inbox.sqlite"
    fill(path, 2).close()
    for folder in tmp_path.parents[:3]:
        folder.chmod(0o755)  # pytest's own folders are closed to other users
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    depth = answer(without_rights(lambda: read_depth(path)))
    tmp_path.chmod(0o755)
    assert depth.entries == 2


def test_a_reader_holds_up_no_delivery(tmp_path: Path) -> None:
    """A hundred looks beside a hundred deliveries: all are taken."""
    path = tmp_path / "inbox.sqlite"
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            assert read_depth(path) is not None

    Inbox(path).close()
    reader = threading.Thread(target=look)
    reader.start()
    try:
        with contextlib.closing(fill(path, 100)):
            pass
    finally:
        done.set()
        reader.join()
    depth = read_depth(path)
    assert depth is not None
    assert depth.entries == 100


def test_an_inbox_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    """Another program's file, rubbish, a folder; none at all is not this machine's business."""
    path = tmp_path / "inbox.sqlite"
    assert list(check_inbox(path)) == []
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE x (y)")
    (finding,) = check_inbox(path)
    assert said(finding).startswith("FAILED   inbox: The inbox ")
    path.write_bytes(b"\x00rubbish" * 1000)
    assert [finding.status for finding in check_inbox(path)] == ["failed"]
    path.unlink()
    path.mkdir()
    assert [finding.status for finding in check_inbox(path)] == ["failed"]
    assert os.listdir(tmp_path) == ["inbox.sqlite"]  # noqa: PTH208  names alone


# ---- what the document says ----

OPERATING = (Path(__file__).parents[2] / "docs" / "operating.md").read_text("utf-8")


def test_the_documented_automation_is_one() -> None:
    """Prefect takes it; and it waits for a failure of the doctor's flow, or the end of its worker."""
    (code,) = re.findall(r"^```yaml\n(.*?)^```$", OPERATING, re.MULTILINE | re.DOTALL)
    automation = AutomationCore.model_validate(yaml.safe_load(code))
    assert isinstance(automation.trigger, EventTrigger)
    assert automation.trigger.expect == {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}
    assert f'"{doctor.name}"' in automation.trigger.match_related.model_dump_json()  # type: ignore[union-attr]


def test_every_check_is_documented() -> None:
    """The names that `--json` gives; the code has no others."""
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", OPERATING.partition("## Status")[0], re.MULTILINE))
    folders = (Path(doctor_package.__file__).parent.glob("*.py"), [Path(checks.__file__)])
    code = "".join(path.read_text("utf-8") for paths in folders for path in paths)
    assert set(re.findall(r"\b(?:ok|warning|failed)\(\s*\"([a-z -]+)\"", code)) == documented


# ---- the terminal ----


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("invoice.pdf", '"invoice.pdf"'),
        ("日本語 α.pdf", '"日本語 α.pdf"'),
        ("inv\u202efdp.exe", '"inv\\u202efdp.exe"'),
        ("a\x1b[2Jb\r\n\x9b\x07", '"a\\x1b[2Jb\\r\\n\\x9b\\x07"'),
        ("\u2066a\u2069\u200b\u200f\ufeff\u2028", '"\\u2066a\\u2069\\u200b\\u200f\\ufeff\\u2028"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("\udc80", '"\\udc80"'),
        ("a\u00a0b\u3000", '"a\\xa0b\\u3000"'),
        ("x" * 201, f'"{"x" * 200}"… (201 characters)'),
        ("", '""'),
    ],
)
def test_a_hostile_name_cannot_fool_a_terminal(text: str, shown: str) -> None:
    """What moves, turns round or hides is escaped; what people write is left as it is."""
    assert quoted(text) == shown
