"""What a backfill and a reconciliation ask of Prefect about the deployment that fetches."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, cast

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from attachments.runs.child_runs import ChildRuns, DownloadDeployment
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
