"""What a backfill and a reconciliation ask of Prefect about the deployment that fetches."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed, Scheduled

from attachments.runs.child_runs import PAGE, ChildRuns, DownloadDeployment, MessageRef, Stage
from attachments.runs.errors import NotConfigured


class Prefect(ThreadingHTTPServer):
    """It has no deployment, and notes which was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[str] = []


class _Answers(BaseHTTPRequestHandler):
    server: Prefect

    def do_GET(self) -> None:
        """Nothing is there."""
        self.server.asked.append(self.path)
        content = json.dumps({"detail": "Not found"}).encode()
        self.send_response(404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def prefect() -> Iterator[Prefect]:
    with Prefect() as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
            yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("backfill", "backfill"),
        ("backfill?old", "backfill%3Fold"),
        ("a#b", "a%23b"),
        ("100%25", "100%2525"),
        ("Köln 1", "K%C3%B6ln%201"),
    ],
)
def test_a_deployments_whole_name_is_asked_for(prefect: Prefect, name: str, path: str) -> None:
    """Cut off, it would be another deployment's, with that one's filter and store."""
    with pytest.raises(NotConfigured):
        DownloadDeployment.load(name)
    assert [asked for asked in prefect.asked if "/deployments/" in asked] == [
        f"/api/deployments/name/download-attachments/{path}"
    ]


def test_runs_without_a_tag_are_refused() -> None:
    """Cancelling goes by the tags: Prefect takes an empty list of them for every run that there is."""
    with pytest.raises(ValueError, match="need a tag"):
        ChildRuns(cast("Any", None), cast("Any", None), key_prefix="a", tags=(), force=False)


NOW = datetime(2026, 6, 15, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
MESSAGE = MessageRef(message_id="a")


class Kept:
    """A Prefect with these runs, which it gives a page at a time, the newest first."""

    def __init__(self, runs: list[FlowRun]) -> None:
        self.requests = 0
        self._runs = runs

    def read_flow_runs(self, *, limit: int, offset: int, **_: Any) -> list[FlowRun]:
        self.requests += 1
        return self._runs[offset : offset + limit]


def run(days: float, state: State[Any], kind: str = "reconcile", message: str = "a") -> FlowRun:
    """A run that was created so many days ago."""
    return FlowRun(
        id=uuid4(),
        flow_id=uuid4(),
        parameters={"message_id": message},
        tags=[kind],
        state=state,
        created=NOW - days * DAY,
    )


def latest(runs: list[FlowRun], *messages: MessageRef) -> tuple[dict[str, Any], int]:
    prefect = Kept(runs)
    target = cast("Any", SimpleNamespace(work_queue=None, deployment_id=uuid4()))
    children = ChildRuns(cast("Any", prefect), target, key_prefix="a", tags=("reconcile", "reconcile:1"), force=False)
    return children.latest(messages or (MESSAGE,)), prefect.requests


def test_a_messages_newest_run_is_found_an_unfinished_one_first() -> None:
    """Of a batch of messages in one request; what has no run is left out, and so is what only has the same name."""
    other, new = MessageRef(message_id="b"), MessageRef(message_id="c")
    waiting, failed = run(2, Scheduled()), run(0, Failed(), message="b")
    found, requests = latest([run(1, Failed()), failed, waiting, run(9, Failed(), message="d")], MESSAGE, other, new)
    assert {key: child.id for key, child in found.items()} == {MESSAGE.key: waiting.id, other.key: failed.id}
    assert requests == 1


@pytest.mark.parametrize(
    ("runs", "first"),
    [
        ([run(0, Failed()), run(1, Failed()), run(3, Failed())], NOW - 3 * DAY),
        ([run(0, Failed()), run(1, Completed()), run(9, Failed())], NOW),  # it was stored since
        ([run(0, Failed()), run(5, Failed(), kind="webhook")], NOW),  # reconciliation has its own four days
        ([run(5, Failed(), kind="webhook")], None),
        ([run(5, Scheduled(), kind="webhook")], NOW - 5 * DAY),  # left to it for that long
        ([run(0, Completed())], None),
    ],
)
def test_when_a_message_was_first_attempted(runs: list[FlowRun], first: datetime | None) -> None:
    """By a run of the caller's kind since the message was last stored; it holds back the watermark from then on."""
    (child,) = latest(runs)[0].values()
    assert child.first_attempt == first


def test_the_first_attempt_is_found_behind_many_others() -> None:
    """A message that fails for days has more runs than Prefect returns at a time."""
    found, requests = latest([run(number / 100, Failed()) for number in range(PAGE + 1)])
    assert found[MESSAGE.key].first_attempt == NOW - PAGE / 100 * DAY
    assert found[MESSAGE.key].stage is Stage.FAILED
    assert requests == 2
