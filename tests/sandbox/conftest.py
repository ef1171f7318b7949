"""One sandbox for all these tests, emptied before each, and two clients: httpx, and a bare socket."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from attachments.sandbox.process import Sandbox, running_sandbox

DEFAULT_KEYS = [{"key": "sandbox-key", "scopes": None, "mailboxes": None, "expires": None}]


@dataclass(frozen=True)
class RawAnswer:
    """What came over the socket until it ended, and whether it ended with a reset."""

    head: str
    body: bytes
    reset: bool

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    def header(self, name: str) -> str | None:
        found = re.search(rf"(?im)^{re.escape(name)}: (.*)\r$", self.head + "\r\n")
        return found and found[1]

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(scope="session")
def running() -> Iterator[Sandbox]:
    with running_sandbox(limit=None) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running: Sandbox) -> Sandbox:
    """The sandbox without messages, faults and log, and with no rate limit."""
    for path in ("messages", "faults", "requests"):
        running.control.delete(path).raise_for_status()
    running.control.settings(limit=None, window=60, keys=DEFAULT_KEYS, reset_window=True)
    return running


@pytest.fixture(scope="session")
def client(running: Sandbox) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {running.key}"}
    with httpx.Client(base_url=running.base_url, headers=headers, timeout=10, trust_env=False) as client:
        yield client


@pytest.fixture
def api(sandbox: Sandbox, client: httpx.Client) -> httpx.Client:
    """A client with the sandbox's key."""
    return client


def list_path(message: dict[str, Any]) -> str:
    return f"/messages/{quote(message['id'], safe='')}/attachments"


def download_path(message: dict[str, Any], index: int = 0) -> str:
    return f"{list_path(message)}/{quote(message['attachments'][index]['id'], safe='')}/download"


@pytest.fixture
def raw(sandbox: Sandbox) -> Callable[..., RawAnswer]:
    """Sends one GET and reads until the connection ends, or until so many bytes of the body are there."""

    def get(path: str, *, until: int | None = None, timeout: float = 10, headers: str = "") -> RawAnswer:
        address = urlsplit(sandbox.base_url)
        with socket.create_connection((address.hostname, address.port), timeout) as connection:
            lines = f"GET /api/v1{path} HTTP/1.1\r\nHost: sandbox\r\nAuthorization: Bearer {sandbox.key}\r\n"
            connection.sendall(f"{lines}{headers}\r\n".encode())
            received, reset = bytearray(), False
            try:
                while piece := connection.recv(65536):
                    received += piece
                    head, _, body = bytes(received).partition(b"\r\n\r\n")
                    if until is not None and len(body) >= until:
                        break
            except ConnectionResetError:
                reset = True
        head, _, body = bytes(received).partition(b"\r\n\r\n")
        return RawAnswer(head.decode(), body, reset)

    return get
