"""What runs set up, done a thousand times in one process: a warm worker's process does it for months."""

import contextlib
import gc
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from fsspec import AbstractFileSystem
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import (
    PREFECT_API_TLS_INSECURE_SKIP_VERIFY,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    temporary_settings,
)

from attachments.blocks import AttachmentStore
from attachments.demo.processes import wait_for
from attachments.doctor import run_checks
from attachments.domain.message_ids import read_ids
from attachments.domain.message_ids_source import ALLOWED_FOLDERS_VARIABLE, ids_file_opener
from attachments.domain.progress import Counts
from attachments.domain.selection import Filter
from attachments.flows import reconcile_attachments as reconciling
from attachments.flows.reconcile_attachments import ReconcileResult
from attachments.prefect_api.prefect_retry import own_client
from attachments.runs.backfill_progress import progress
from attachments.runs.fan_out import DownloadDeployment, run_children
from attachments.storage.retention import Budget, Holds, PurgePolicy, PurgeRate, purge, retention_cutoff
from attachments.worker.clients import ClientPool
from tests.storage.memory import PROTOCOL, TestMemory

TIMES = 1000
MAKERS = {"attachments", "prefect", "httpx", "httpcore", "anyio", "fsspec", "contextlib", "threading", "contextvars"}
WARM_UP = 5  # what is made once and kept: modules, caches, the pool's connections


class _Prefect(BaseHTTPRequestHandler):
    """It lists nothing and knows nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        self._answer(404, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, []) if self.path.endswith("/filter") else self._answer(404, {})

    def _answer(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing to print."""


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The settings of a process whose Prefect is the one above."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Prefect)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)  # to read the certificates for each client takes 60 ms
    settings = {
        PREFECT_API_URL: f"http://127.0.0.1:{server.server_address[1]}/api",
        PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,
        PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,
        PREFECT_API_TLS_INSECURE_SKIP_VERIFY: True,
    }
    with temporary_settings(settings):
        yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def target(tmp_path: Path) -> DownloadDeployment:
    (tmp_path / "store").mkdir()
    store = AttachmentStore(url=(tmp_path / "store").as_uri()).store()
    return DownloadDeployment(
        name="default",
        deployment_id=uuid4(),
        work_pool="attachments",
        work_queue="default",
        filter=Filter(),
        account=cast("Any", None),
        store=store,
    )


def held(*, everything: bool) -> dict[str, int]:
    """What this process holds of all that could grow with its runs.

    Of the objects only those of `MAKERS`, or `everything`: few repetitions are not to be told from what other tests of
    the same process are still about to release or to cache.
    """
    gc.collect()
    objects = gc.get_objects()
    clients = [found for found in objects if isinstance(found, SyncPrefectClient)]
    return {
        "clients": len(clients),
        "threads": threading.active_count(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),  # files and sockets
        "objects": sum(everything or str(type(found).__module__).partition(".")[0] in MAKERS for found in objects),
    }


def is_as_before(before: dict[str, int], after: dict[str, int], times: int) -> bool:
    """Not one object for each repetition; of all else, no more than there was."""
    return after["objects"] - before["objects"] < times and all(
        after[kind] <= before[kind] for kind in before if kind != "objects"
    )


def repeated(setup: Callable[[], object], times: int) -> tuple[dict[str, int], dict[str, int]]:
    """What is held before and after so many repetitions. Threads and connections may take a moment to end."""
    everything = times >= TIMES
    for _ in range(WARM_UP):
        setup()
    settled: list[dict[str, int]] = []

    def is_settled() -> bool:
        settled.append(held(everything=everything))
        return len(settled) > 1 and settled[-1]["threads"] == settled[-2]["threads"]

    wait_for(is_settled, "the process to come to rest", 30)
    before = settled[-1]
    for _ in range(times):
        setup()
    with contextlib.suppress(RuntimeError):
        wait_for(
            lambda: is_as_before(before, held(everything=everything), times), "what was set up to be gone", 10, 0.2
        )
    return before, held(everything=everything)


def reconciliation(target: DownloadDeployment) -> None:
    wish = cast("Any", SimpleNamespace(tag="reconcile:x", target=target))
    assert reconciling._read_created_runs(wish, ReconcileResult()) == []
    children(target)


def children(target: DownloadDeployment) -> None:
    assert run_children([], target, key_prefix="x", tags=("x",)).seen == 0


def backfill(target: DownloadDeployment) -> None:
    with progress(uuid4(), lambda _: None, "x") as shown:
        shown.show(Counts(), is_last=True)
    children(target)


def purging(target: DownloadDeployment) -> None:
    policy = PurgePolicy(stored_before=retention_cutoff(timedelta(days=1), target.store), holds=Holds(()))
    assert purge(target.store, policy, Budget(None), PurgeRate(concurrency=2, per_second=1000)).messages == 0


def doctor(_: DownloadDeployment) -> None:
    assert any(finding.status == "failed" for finding in run_checks(patience=5))


@pytest.mark.parametrize("times", [30, pytest.param(TIMES, marks=pytest.mark.soak)])
def test_repeated_runs_leave_nothing_behind(times: int, prefect: None, target: DownloadDeployment) -> None:
    """Each with the client that the worker lends it: clients, layers, threads, descriptors and memory stay."""
    clients = ClientPool("worker")

    def run() -> None:
        for setup in (reconciliation, backfill, purging, doctor):
            with clients.acquire():
                setup(target)

    before, after = repeated(run, times)
    print(f"{times} times: {before} became {after}")
    assert is_as_before(before, after, times), f"{before} became {after}"


def test_no_thread_leaves_a_file_system_behind(tmp_path: Path) -> None:
    """fsspec keeps one for each thread and set of options, and each run is a thread of its own."""

    def file_systems() -> int:
        gc.collect()
        return sum(isinstance(found, AbstractFileSystem) for found in gc.get_objects())

    ids = tmp_path / "ids.txt"
    ids.write_text("an-id\n")
    TestMemory().pipe("/ids/a.txt", b"an-id\n")
    together = threading.Barrier(20, timeout=30)  # threads that follow each other may have the same number

    def read() -> None:
        AttachmentStore(url=tmp_path.as_uri()).store()
        for url in (ids.as_uri(), f"{PROTOCOL}://ids/a.txt"):
            read_ids(
                ids_file_opener(url, environment={ALLOWED_FOLDERS_VARIABLE: f"{tmp_path.as_uri()},{PROTOCOL}://ids"})
            ).close()

    def run() -> None:
        read()
        together.wait()

    read()  # the one of a folder that is allowed stays, as a store's does
    before = file_systems()
    with ThreadPoolExecutor(together.parties) as pool:
        for done in [pool.submit(run) for _ in range(together.parties)]:
            done.result()
    assert file_systems() <= before


def test_a_client_of_ones_own_is_not_the_runs(prefect: None) -> None:
    """What is changed there would stay, since the worker lends the run's to the next one."""
    clients = ClientPool("worker")
    with clients.acquire(), own_client(5) as client:
        assert client is not get_client(sync_client=True)
