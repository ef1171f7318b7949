"""The receiver as a process of its own on a real socket, and a stand-in for Prefect's API behind it."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from attachments.demo.processes import Process, free_port, wait_for

from .prefect_stub import PrefectStub

SECRET = "correct-horse-battery"
PATIENCE = 120.0
"""Seconds to wait for what is to happen, on a busy machine."""

# Without TLS, for a context of its own for each request takes longer than the request; a new connection each time.
client = httpx.Client(trust_env=False, verify=False, timeout=PATIENCE, limits=httpx.Limits(max_keepalive_connections=0))


@dataclass(frozen=True)
class Receiver:
    """`attachments receive`, with what tests ask of it."""

    process: Process
    url: str
    monitoring_url: str
    """Where `/ready` and `/metrics` are."""
    inbox: Path
    prefect: PrefectStub

    def post(self, document: Any = None, deployment: str = "default", **options: Any) -> httpx.Response:
        """Post a document, or the bytes in `content`, with the secret unless `headers` says another."""
        headers = {"Authorization": f"Bearer {SECRET}", **options.pop("headers", {})}
        if document is not None:
            options["json"] = document
        return client.post(f"{self.url}/webhooks/{deployment}", headers=headers, **options)

    def deliver(self, message_id: str, deployment: str = "default", **fields: Any) -> httpx.Response:
        """Post a `received` event."""
        return self.post({"id": message_id, "event": "received", "hasAttachments": True, **fields}, deployment)

    def get(self, path: str) -> httpx.Response:
        return client.get(self.url + path)

    def monitor(self, path: str) -> httpx.Response:
        """What a monitor reads there."""
        return client.get(self.monitoring_url + path)

    def is_ready(self) -> bool:
        try:
            return self.monitor("/ready").is_success
        except httpx.TransportError:
            return False

    @property
    def depth(self) -> int:
        """How many entries wait; -1 when the receiver cannot tell."""
        return int(self.monitor("/ready").json().get("inbox", -1))

    @property
    def log(self) -> str:
        """What it has written to stdout and stderr."""
        return self.process.log.read_text("utf-8")

    def until(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        wait_for(condition, what, seconds)

    def until_empty(self, seconds: float = PATIENCE) -> None:
        wait_for(lambda: self.depth == 0, "the inbox to be empty", seconds)


def environment(folder: Path, prefect_url: str, secret: str = SECRET) -> dict[str, str]:
    return {
        "PREFECT_API_URL": prefect_url,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_PROFILES_PATH": str(folder / "prefect" / "profiles.toml"),
        "EMAILGISTICS_WEBHOOK_SECRET": secret,
        "ATTACHMENTS_INBOX": str(folder / "inbox.sqlite"),
        "NO_PROXY": "*",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


def make_receiver(
    folder: Path,
    prefect: PrefectStub,
    *,
    secret: str = SECRET,
    tuning: Mapping[str, Any] | None = None,
    before: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> Receiver:
    """A receiver that is not started yet. `before` is put before its command; `tuning` is for `tuned.py`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    monitoring_url = url
    if "--tls-certificate" in options:
        url = f"https://127.0.0.1:{port}"
        monitoring_url = f"http://127.0.0.1:{free_port()}"
        options = (*options, "--monitoring-address", monitoring_url.removeprefix("http://"))
    program = (
        [sys.executable, "-m", "tests.receiver.tuned", json.dumps(tuning)]
        if tuning
        else [str(Path(sys.executable).with_name("attachments"))]
    )
    command = [*before, *program, "receive", "--port", str(port), *options]
    process = Process(
        "receiver",
        command,
        environment(folder, prefect.url, secret),
        folder / "receiver.log",
        bool,
        ready_timeout=PATIENCE,
    )
    receiver = Receiver(process, url, monitoring_url, folder / "inbox.sqlite", prefect)
    process.is_ready = receiver.is_ready
    return receiver


@pytest.fixture
def prefect() -> Iterator[PrefectStub]:
    """A stand-in for Prefect's API, running."""
    stub = PrefectStub()
    stub.start()
    yield stub
    stub.stop()


@pytest.fixture
def make(tmp_path: Path, prefect: PrefectStub) -> Iterator[Callable[..., Receiver]]:
    """Makes receivers on the test's folder and ends them with it."""
    made: list[Receiver] = []

    def make(**options: Any) -> Receiver:
        made.append(make_receiver(tmp_path, prefect, **options))
        return made[-1]

    yield make
    for receiver in made:
        if receiver.process.is_started:
            receiver.process.kill()


@pytest.fixture
def receiver(make: Callable[..., Receiver]) -> Receiver:
    """A receiver of the test's own, running."""
    receiver = make()
    receiver.process.start()
    return receiver


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """One receiver, with two current secrets, for all tests that break nothing; Prefect knows `default` and `pdfs`."""
    stub = PrefectStub()
    stub.deployments["pdfs"] = "6c9c0f0a-2b8e-4a55-9d7c-111111111111"
    stub.start()
    secret = f"{SECRET}, next-secret-of-two,nächstes-wort-davon"
    receiver = make_receiver(tmp_path_factory.mktemp("shared"), stub, secret=secret)
    receiver.process.start()
    wait_for(lambda: receiver.post(content=b"", deployment="pdfs").status_code == 400, "the deployments to be known")
    yield receiver
    assert receiver.process.stop() == 0
    stub.stop()
