"""One sandbox for all these tests, emptied before each, two clients (httpx, and a bare socket), and a receiver."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from attachments.sandbox.process import Sandbox, running_sandbox

SUCCESS = (200, {}, b'{"status": "success", "message": "ok"}')
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


class Receiver(ThreadingHTTPServer):
    """Answers each POST with the next line of its script (the last one again and again), and keeps what came.

    A line is (status, headers, body), or None to close without an answer, or a number of seconds to wait first.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Post)
        self.script: list[Any] = [SUCCESS]
        self.posts: list[tuple[dict[str, str], Any, float]] = []
        self.released = threading.Event()
        """Ends all waiting."""
        self.release_after: int | None = None
        """The number of posts after which it ends."""
        self._turn = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/webhooks/default"

    def next_line(self, headers: dict[str, str], document: Any) -> Any:
        with self._turn:
            self.posts.append((headers, document, time.monotonic()))
            if len(self.posts) == self.release_after:
                self.released.set()
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class Post(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        line = self.server.next_line(dict(self.headers), json.loads(body))
        if line is None:
            self.close_connection = True
            return
        if isinstance(line, float):
            self.server.released.wait(line)
            line = SUCCESS
        status, headers, content = line
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running_receiver(*script: Any, port: int = 0) -> Iterator[Receiver]:
    """A receiver that answers by a script."""
    with Receiver(port) as server:
        server.script = list(script) or server.script
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as server:
        yield server


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
