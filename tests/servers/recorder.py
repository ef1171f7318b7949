"""A server that notes who asks it for what: a proxy that must not be used, or a service that must be reached."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Recorder:
    """An HTTP server that notes what it is sent, and the password or key with it."""

    url: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    """Each request's first line and headers, as one text."""


@contextmanager
def recording() -> Iterator[Recorder]:
    """A recorder on all of 127.0.0.0/8, as `url` says; `/health` is answered with 200 and all else with 404."""
    recorder = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            recorder.requests.append((f"{self.command} {self.path}", self.headers.get("Authorization")))
            recorder.whole.append(f"{self.requestline}\n{self.headers}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_health = self.path.endswith("/health")
            body = b"true" if is_health else b'{"detail": "Not Found", "status": "error", "message": "no"}'
            self.send_response(200 if is_health else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_CONNECT = answer  # noqa: N815  http.server's

        def log_message(self, *_: Any) -> None:
            """Nothing to print."""

    with ThreadingHTTPServer(("0.0.0.0", 0), Handler) as server:  # so that all of 127.0.0.0/8 leads here
        recorder.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield recorder
        finally:
            server.shutdown()
            thread.join()
