"""A stand-in for Prefect's API on a real socket: the three calls that the receiver makes, and ways to fail at them.

What it answers follows Prefect 3.9's `deployments.py`: a known idempotency key gets the run that it made; a parameter
whose value does not fit is refused with 409, while one that the deployment's schema does not have is taken.
`tests/e2e` runs the receiver against the real server.
"""

import json
import socket
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from uuid import uuid4

Mood = Literal[
    "well",
    "hung",  # takes the connection and says nothing
    "busy",  # 503, as with "database is locked"
    "forgetful",  # acts, then drops the connection instead of answering
    "locked-out",  # 401
    "another-site",  # 200, with a page of HTML
    "odd",  # 200, with JSON of another shape
    "refusing",  # 409 for every run
]
FIRST_PARAMETERS = {"message_id", "mailbox", "received", "conversation_id", "filter", "account", "store", "force"}
"""Of version 0.1."""
PARAMETERS = {*FIRST_PARAMETERS, "has_attachments"}


@dataclass
class PrefectStub:
    """Its state, and the server that can be stopped and started again on the same port."""

    mood: Mood = "well"
    deployments: dict[str, str] = field(default_factory=lambda: {"default": str(uuid4())})
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)  # by idempotency key, in the order they were made
    posts: int = 0
    looks: int = 0
    lists: int = 0
    questions: int = 0
    most_at_once: int = 0
    delay: float = 0.0
    ahead: float = 0.0
    """Seconds by which its clock is ahead of the receiver's."""
    refused_ids: set[str] = field(default_factory=set)
    parameters: set[str] = field(default_factory=lambda: PARAMETERS)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._at_once = 0
        self._over = threading.Event()
        self._server: _Server | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def message_ids(self) -> list[str]:
        """Of the runs, in the order they were made."""
        return [run["parameters"]["message_id"] for run in list(self.runs.values())]

    def start(self) -> None:
        self._over.clear()
        self._server = _Server(("127.0.0.1", self.port), self)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Connections are refused from now on, and those that stand are cut."""
        if self._server is not None:
            self._over.set()
            self._server.shutdown()
            self._server.server_close()
            self._server.cut()
            self._server = None

    def end(self, message_id: str, state: str, name: str | None = None, message: str = "", ago: float = 0.0) -> None:
        """Have the newest run of a message end like this, some seconds ago."""
        newest = [run for run in self.runs.values() if run["parameters"]["message_id"] == message_id][-1]
        newest["state_type"] = state
        at = datetime.now(UTC) + timedelta(seconds=self.ahead - ago)
        newest["created"] = min(newest["created"], at.isoformat())
        newest["state"] = {
            "type": state,
            "name": name or state.title(),
            "message": message,
            "timestamp": at.isoformat(),
        }

    # ---- the API ----

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        """Status and document; None when the connection is to be dropped."""
        if self.mood == "hung":
            while self.mood == "hung" and not self._over.wait(0.02):
                continue
            if self._over.is_set():
                return None
        simple = {"busy": (503, {}), "locked-out": (401, {}), "odd": (200, {"id": 7}), "another-site": (200, b"<html>")}
        if self.mood in simple:
            return simple[self.mood]
        if path == "/api/deployments/filter":
            self.lists += 1
            schema = {"type": "object", "properties": {name: {} for name in self.parameters}}
            known = [
                {"id": id_, "name": name, "flow_id": str(uuid4()), "parameter_openapi_schema": schema}
                for name, id_ in self.deployments.items()
            ]
            return 200, known[body["offset"] : body["offset"] + body["limit"]]
        if path == "/api/flow_runs/filter":
            asked = body["flow_runs"]
            if asked.get("name"):
                self.questions += 1
                named = [run for run in reversed(self.runs.values()) if run["name"] in asked["name"]["any_"]]
                return 200, [dict(run) for run in named[: body["limit"]]]
            self.looks += 1
            return 200, [dict(run) for run in self.runs.values() if run["id"] in asked["id"]["any_"]]
        return self._create(path.split("/")[3], body)

    def _create(self, deployment_id: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        with self._lock:
            self.posts += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        self._over.wait(self.delay)
        with self._lock:
            self._at_once -= 1
            if deployment_id not in self.deployments.values():
                return 404, {"detail": "Deployment not found"}
            if self.mood == "refusing" or not self._fits(body["parameters"]):
                return 409, {"detail": f"Error creating flow run: {body['parameters']}"}
            key = body["idempotency_key"]
            status = 200 if key in self.runs else 201
            run = self.runs.setdefault(
                key,
                {
                    "id": str(uuid4()),
                    "created": (datetime.now(UTC) + timedelta(seconds=self.ahead)).isoformat(),
                    "flow_id": str(uuid4()),
                    "deployment_id": deployment_id,
                    "name": body["name"],
                    "parameters": body["parameters"],
                    "idempotency_key": key,
                    "labels": body.get("labels") or {},
                    "state_type": "SCHEDULED",
                },
            )
            return None if self.mood == "forgetful" else (status, dict(run))

    def _fits(self, parameters: dict[str, Any]) -> bool:
        if parameters["message_id"] in self.refused_ids:
            return False
        try:
            return datetime.fromisoformat(parameters.get("received", "2026-01-01T00:00:00Z")).tzinfo is not None
        except (ValueError, TypeError):
            return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], stub: PrefectStub) -> None:
        self.stub = stub
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A receiver that was killed breaks its connections: nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_GET(self) -> None:
        self._send(422, {"detail": "CSRF protection is disabled."})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self.server.stub.answer(self.path, body)
        if answer is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._send(*answer)

    def _send(self, status: int, document: Any) -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing to print."""
