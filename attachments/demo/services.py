"""How each service is started and with which settings: for the demo, `attachments up`, tests and benchmarks.

The units in deploy/systemd, which run each service separately, have the same commands and settings; a test compares
them.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from attachments.demo.processes import LOOPBACK, Process, listens, responds, script_path

SERVER_SETTINGS = {
    # Without this, slots of the rate limit that are in use at a restart are never released.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Without this, a backlog's runs are marked late one by one, which takes as much of the server's time as the runs.
    "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "3600",
    # Without these, each state of a task is a transaction, and live mail waits beside a backfill.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # A run ends when its event is written: within a second instead of five.
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
}
"""Of Prefect's server, wherever it runs."""

Log = Path | Callable[[str], None]


def server_address(port: int) -> str:
    """The address of the UI of Prefect's server; its API is below it, at /api."""
    return f"http://{LOOPBACK}:{port}"


def server_settings(port: int) -> dict[str, str]:
    """The environment that Prefect's server needs; pages of other origins than its UI's can read nothing."""
    origins = f"{server_address(port)},http://localhost:{port}"
    return {**SERVER_SETTINGS, "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins}


def prefect_server(environment: Mapping[str, str], log: Log, port: int) -> Process:
    """Prefect's server, on loopback."""
    return Process(
        "Prefect server",
        [script_path("prefect"), "server", "start", "--host", LOOPBACK, "--port", str(port)],
        environment,
        log,
        lambda: responds(f"{server_address(port)}/api/health"),
        dies_with_us=True,
    )


def setup(environment: Mapping[str, str], log: Log) -> Process:
    """`attachments setup`, which ends once everything is created."""
    return Process("setup", [script_path("attachments"), "setup"], environment, log, lambda: False, dies_with_us=True)


def worker(environment: Mapping[str, str], log: Log, *options: str) -> Process:
    """A warm worker."""
    command = [script_path("prefect"), "worker", "start", "--pool", "attachments", "--type", "warm", *options]
    process = Process("worker", command, environment, log, lambda: "started!" in process.output(), dies_with_us=True)
    return process


def receiver(environment: Mapping[str, str], log: Log, host: str, port: int, *options: str) -> Process:
    """The receiver of webhooks."""
    return Process(
        "receiver",
        [script_path("attachments"), "receive", "--host", host, "--port", str(port), *options],
        environment,
        log,
        lambda: listens(host, port),
        dies_with_us=True,
    )


def sandbox(environment: Mapping[str, str], log: Log, port: int, mail: Path, webhook: str) -> Process:
    """The sandbox, which serves the mail and posts a webhook for each message once the receiver listens."""
    command = [sys.executable, "-m", "attachments.sandbox", "--mail", str(mail), "--port", str(port)]
    return Process(
        "sandbox",
        [*command, "--deliver-to", webhook],
        environment,
        log,
        lambda: listens(LOOPBACK, port),
        dies_with_us=True,
    )
