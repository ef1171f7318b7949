"""The whole product and a sandbox, as processes of their own, with what tests ask of them."""

import os
import sqlite3
import textwrap
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

from attachments.demo.processes import NotReady, wait_for
from attachments.demo.stack import Stack, make_stack, running
from attachments.sandbox.process import Sandbox, running_sandbox
from attachments.storage import Manifest, message_key
from tests.servers.recorder import recording

READY_TIMEOUT = 240.0
"""Seconds for a process to be ready: on a busy machine, Prefect's server takes more than the demo waits for it."""
PATIENCE = 240.0  # seconds for a run on a busy machine; embedded SQLite makes Prefect wait in steps of 2 s
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
LOOK = 0.25  # seconds between looks at Prefect, which needs the processors for the runs
FAST = 100_000  # slots of the pacing limits, so that tests do not wait for the minute

# Mounts that the worker alone sees: a disk of 1 MiB, and one that may not be written. It works where systemd puts it.
MOUNTS = """
mkdir -p "$0/small" "$0/readonly"
mount -t tmpfs -o size=1m none "$0/small"
mount -t tmpfs -o ro none "$0/readonly"
cd /
exec "$@"
"""


@dataclass
class Installation:
    """A running stack with the sandbox at its start."""

    stack: Stack
    sandbox: Sandbox
    prefect: httpx.Client
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When the test began: what ran before is not its own, and costs Prefect much to name again and again."""

    @property
    def prefect_settings(self) -> dict[Any, str]:
        """With them, the test's own process uses this Prefect."""
        return {PREFECT_API_URL: self.stack.api_url, PREFECT_API_AUTH_STRING: ":".join(self.stack.prefect_password)}

    def send(self, message: dict[str, Any], deployment: str = "default", **options: Any) -> list[dict[str, Any]]:
        """Have the sandbox deliver a message's webhook; every delivery must succeed."""
        deliveries = self.sandbox.control.deliver(
            message_id=message["id"], url=self.stack.webhook_url(deployment), secret=self.stack.secret, **options
        )
        assert [delivery["outcome"] for delivery in deliveries] == ["success"] * len(deliveries)
        return deliveries

    def runs(self, **of: Any) -> list[dict[str, Any]]:
        """The test's flow runs by parameter values, newest first."""
        of_this_test = {"expected_start_time": {"after_": self.since.isoformat()}}
        found = self._flow_runs(of_this_test, "START_TIME_DESC")
        return [run for run in found if of.items() <= run["parameters"].items()]

    def _flow_runs(self, filters: dict[str, Any], sort: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            body = {"flow_runs": filters, "sort": sort, "limit": 200, "offset": len(found)}
            page = self._post("flow_runs/filter", body)
            found += page
            if len(page) < 200:
                return found

    def ended_run(self, message: dict[str, Any], *, after: int = 0) -> dict[str, Any]:
        """The newest run of a message once all of its runs have ended and there are more than `after`."""

        def ended() -> bool:
            runs = self.runs(message_id=message["id"])
            return len(runs) > after and all(run["state_type"] in FINAL for run in runs)

        wait_for(ended, f"the run of message {message_key(message['id'])}", PATIENCE, LOOK)
        return max(self.runs(message_id=message["id"]), key=lambda run: run["created"])

    def run_deployment(
        self,
        name: str = "default",
        /,
        patience: float = PATIENCE,
        flow: str = "download-attachments",
        **parameters: Any,
    ) -> dict[str, Any]:
        """A run of a deployment with these parameters, ended."""
        run = self.start_deployment(name, flow=flow, **parameters)
        wait_for(lambda: self.run(run["id"])["state_type"] in FINAL, f"flow run {run['id']}", patience, LOOK)
        return self.run(run["id"])

    def start_deployment(
        self, name: str = "default", /, flow: str = "download-attachments", **parameters: Any
    ) -> dict[str, Any]:
        """A run of a deployment with these parameters, which may not have started."""
        found = self._get(f"deployments/name/{flow}/{name}")
        run: dict[str, Any] = self._post(f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return run

    def deploy_flow(self, file: Path, name: str) -> str:
        """The id of a deployment of the flow of that name in a file, for the worker."""
        flow = self._post("flows/", {"name": name})
        body = {"name": name, "flow_id": flow["id"], "entrypoint": f"{file}:{name}", "work_pool_name": "attachments"}
        return str(self._post("deployments/", body)["id"])

    def create_runs(self, deployment_id: str, asked: list[dict[str, Any]]) -> list[str]:
        """The ids of runs of a deployment with these parameters."""
        path = f"deployments/{deployment_id}/create_flow_run"
        return [str(self._post(path, {"parameters": parameters})["id"]) for parameters in asked]

    def count(self, run_ids: Collection[str], states: Collection[str]) -> int:
        """How many of these runs are in one of these states."""
        filters = {"id": {"any_": list(run_ids)}, "state": {"type": {"any_": list(states)}}}
        return int(self._post("flow_runs/count", {"flow_runs": filters}))

    def refused(self, deployment: str, parameters: dict[str, Any]) -> httpx.Response:
        """Prefect's answer to a run with parameters that it does not take."""
        found = self._get(f"deployments/name/{deployment}")
        answer = self.prefect.post(f"deployments/{found['id']}/create_flow_run", json={"parameters": parameters})
        assert answer.is_client_error
        return answer

    def run(self, run_id: str) -> dict[str, Any]:
        """A flow run as it is now."""
        found: dict[str, Any] = self._get(f"flow_runs/{run_id}")
        return found

    def states(self, run_id: str) -> list[dict[str, Any]]:
        """The states of a flow run."""
        return list(self._get(f"flow_run_states/?flow_run_id={run_id}"))

    def tagged(self, tag: str) -> list[dict[str, Any]]:
        """The flow runs with a tag."""
        return self._flow_runs({"tags": {"all_": [tag]}}, "ID_DESC")

    def deployments(self) -> list[dict[str, Any]]:
        """All deployments that there are."""
        return self._post("deployments/filter", {"sort": "NAME_ASC"})

    def deployment(self, name: str) -> dict[str, Any]:
        """The deployment of that name, as `<flow>/<deployment>`."""
        return self._get(f"deployments/name/{name}")

    def deploy(self, name: str, **parameters: Any) -> None:
        """Another deployment of the flow, known to the receiver when this returns."""
        fields = ("flow_id", "entrypoint", "work_pool_name", "parameter_openapi_schema", "pull_steps")
        default = self._get("deployments/name/download-attachments/default")
        body = {field: default[field] for field in fields}
        self._post("deployments/", {**body, "name": name, "parameters": parameters})
        nothing = {"id": "probe", "event": "something-else"}

        def known() -> bool:
            headers = {"Authorization": f"Bearer {self.stack.secret}"}
            url = self.stack.webhook_url(name)
            return httpx.post(url, json=nothing, headers=headers, trust_env=False).is_success

        wait_for(known, f"the receiver to know deployment {name}")

    def save_blocks(self, code: str) -> None:
        """Run code that saves blocks, as a user's script would."""
        prelude = "from attachments.blocks import AttachmentStore, EmailgisticsAccount\n"
        self.stack.run("python", "-c", prelude + textwrap.dedent(code))

    def manifest(self, message: dict[str, Any], root: Path | None = None) -> Manifest | None:
        """The manifest of a message as it stands in the store."""
        key = message_key(message["id"])
        path = (root or self.stack.store) / key / "manifest.json"
        return Manifest.from_bytes(path.read_bytes(), message_key=key) if path.exists() else None

    def complete_manifest(self, message: dict[str, Any]) -> Manifest:
        """The manifest of a message once it stands and is complete."""

        def complete() -> bool:
            manifest = self.manifest(message)
            return manifest is not None and manifest.complete

        wait_for(complete, f"the manifest of message {message_key(message['id'])}", PATIENCE)
        found = self.manifest(message)
        assert found is not None
        return found

    def files(self, message: dict[str, Any]) -> list[Path]:
        """The message's files in the store, manifest aside."""
        folder = self.stack.store / message_key(message["id"])
        return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]

    def calls(self, message: dict[str, Any], endpoint: str | None = None) -> list[dict[str, Any]]:
        """What the vendor was asked about a message."""
        return [call for call in self.sandbox.control.requests(endpoint) if call["message_id"] == message["id"]]

    def is_idle(self) -> bool:
        """Whether the inbox is empty and no run is under way, or will be within a minute."""
        ready = httpx.get(f"{self.stack.receiver_url}/ready", trust_env=False).json()
        return ready["inbox"] == 0 and all(run["state_type"] in FINAL or _is_far_off(run) for run in self.runs())

    def forget_unfinished_runs(self) -> None:
        """Delete the runs that a test has left behind: attempts for later, and those that nobody was meant to take."""
        with suppress(NotReady):
            until(lambda: not self._runs_in("PENDING", "RUNNING", "CANCELLING"), "what is under way to end", 10)
        for run in self._runs_in("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"):
            with suppress(httpx.HTTPStatusError):  # it has ended meanwhile
                self.remove(f"flow_runs/{run['id']}")

    def _runs_in(self, *states: str) -> list[dict[str, Any]]:
        return self._post("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": list(states)}}}, "limit": 200})

    def emit(self, event: str, resource: str, payload: dict[str, Any]) -> None:
        """An event, as Prefect Cloud's webhooks make them."""
        occurred = datetime.now(UTC).isoformat()
        body = {"event": event, "occurred": occurred, "resource": {"prefect.resource.id": resource}, "payload": payload}
        code = (
            f"from prefect.events import Event\nimport anyio\n{EMIT}\nanyio.run(emit, Event.model_validate({body!r}))"
        )
        self.stack.run("python", "-c", code)

    def events(self, name: str, resource: str) -> list[dict[str, Any]]:
        """Events of that name about that resource, which Prefect keeps."""
        filters = {"event": {"name": [name]}, "resource": {"id": [resource]}, "order": "ASC"}
        found: list[dict[str, Any]] = self._post("events/filter", {"filter": filters, "limit": 50})["events"]
        return found

    def artifacts(self, flow_run_id: str) -> list[dict[str, Any]]:
        """The artifacts of a flow run."""
        return self._post("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}})

    def everything_kept(self) -> Iterator[tuple[str, bytes]]:
        """Every place where customer data must not be: Prefect's tables, and what every process has printed."""
        for log in sorted(self.stack.folder.glob("*.log")):
            yield log.name, log.read_bytes()
        with sqlite3.connect(f"file:{self.stack.database}?mode=ro", uri=True) as database:
            database.text_factory = bytes
            tables = [
                name.decode() for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
            ]
            for table in tables:
                for row in database.execute(f'SELECT * FROM "{table}"'):
                    yield f"table {table}", b" ".join(v if isinstance(v, bytes) else str(v).encode() for v in row)
        database.close()
        for path in (self.stack.database, Path(f"{self.stack.database}-wal")):
            if path.exists():
                yield path.name, path.read_bytes()

    def _get(self, path: str) -> Any:
        return self.prefect.get(path).raise_for_status().json()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._asked("POST", path, body).json()

    def change(self, path: str, body: dict[str, Any]) -> None:
        """Change something in Prefect."""
        self._asked("PATCH", path, body)

    def remove(self, path: str) -> None:
        """Delete something from Prefect."""
        self._asked("DELETE", path, None)

    def _asked(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """Prefect's answer. On a busy machine it says 503 now and then, or 500; a person would ask again."""
        answer: list[httpx.Response] = []

        def taken() -> bool:
            answer[:] = [self.prefect.request(method, path, json=body)]
            return not answer[0].is_server_error

        wait_for(taken, f"Prefect's answer to {path}", every=LOOK)
        return answer[0].raise_for_status()


def _is_far_off(run: dict[str, Any]) -> bool:
    """Whether it is scheduled for later: an attempt that another test's failure has left."""
    due = datetime.fromisoformat(run["expected_start_time"]) if run["expected_start_time"] else None
    return run["state_type"] == "SCHEDULED" and due is not None and (due - datetime.now(UTC)).total_seconds() > 60


EMIT = """
async def emit(event):
    from prefect.events.clients import get_events_client
    async with get_events_client() as client:
        await client.emit(event)
"""


@contextmanager
def installation(
    folder: Path, *, slots: int = FAST, limit: int | None = None, worker_flows: str = ""
) -> Iterator[Installation]:
    """Start everything.

    `slots` is the size of the pacing limits, `limit` the sandbox's calls in 60 s, `worker_flows` what the worker runs
    besides our own flows.
    """
    with running_sandbox(limit=limit) as sandbox, recording() as proxy:
        # None of them may be asked for anything: all that the processes connect to is on this machine.
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), proxy.url)
        stack = make_stack(folder, sandbox.base_url, sandbox.key)
        stack = replace(stack, environment={**stack.environment, **proxies})
        for process in stack.processes:
            process.environment = {**process.environment, **proxies}
            process.ready_timeout = READY_TIMEOUT
        namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
        stack.worker.environment = {**stack.worker.environment, "ATTACHMENTS_WORKER_FLOWS": worker_flows}
        stack.worker.command[:0] = [*namespace, "sh", "-ec", MOUNTS, str(folder)]
        limits = httpx.Limits(max_keepalive_connections=0)  # one that is kept may be closed just as it is used again
        prefect = httpx.Client(
            base_url=f"{stack.api_url}/", auth=stack.prefect_password, trust_env=False, timeout=60, limits=limits
        )
        with running(stack), prefect:
            everything = Installation(stack, sandbox, prefect)
            for name in ("emailgistics-api", "emailgistics-backfill"):
                everything.change(f"v2/concurrency_limits/{name}", {"limit": slots})
            yield everything
        assert proxy.requests == []


def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Wait for a condition for as long as a run may take on a busy machine."""
    wait_for(condition, what, patience, LOOK)
