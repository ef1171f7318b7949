"""Checks Prefect's server: availability, version, access control and settings."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import prefect as installed
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, temporary_settings
from pydantic import TypeAdapter

from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.doctor.probe import prefect_client, request_json
from attachments.prefect_api.versions import TESTED

MEMORY = "prefect.server.concurrency.lease_storage.memory"
FILES = "prefect.server.concurrency.lease_storage.filesystem"
VARIABLE = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
ORIGINS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
RECORDER = "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER"
PERSISTER = "PREFECT_SERVER_SERVICES_EVENT_PERSISTER"
ANOTHER_ORIGIN = "https://another-origin.invalid"
SAFE_BATCH = 20  # events; Prefect's default (docs/upstream/prefect-sqlite-events.md)
PROMPT_FLUSH = 1.0  # seconds
_duration: TypeAdapter[timedelta] = TypeAdapter(timedelta)


def check_server(client: SyncPrefectClient) -> Iterator[Finding]:
    """Check that Prefect responds, in the tested version."""
    request_json(client, "GET", "/health")
    version = _get_or_none(client, "/admin/version")
    if version is None:
        yield ok("prefect", "It responds without its version, as Prefect Cloud does.")
    elif version == installed.__version__ and version in TESTED:
        yield ok("prefect", f"Version {version} answers.")
    else:
        yield warning(
            "prefect",
            f"The server has version {version} and this installation {installed.__version__}; tested is "
            f"{' and '.join(TESTED)}.",
            "If something does not work, install the tested version on both sides.",
        )


def check_access() -> Iterator[Finding]:
    """Check whether the API serves requests without a password, and pages of other origins in a browser."""
    response = _request_without_password()
    if response.is_success:
        yield warning(
            "password",
            "Prefect's API needs no password: everyone who can reach it can read the blocks with their secrets, change "
            "them, and start runs.",
            "Set PREFECT_SERVER_API_AUTH_STRING for the server, and the same text as PREFECT_API_AUTH_STRING for "
            "everything that uses it, and restart them.",
        )
    elif response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        yield ok("password", "Prefect's API requires a password.")
    if response.headers.get("access-control-allow-origin") in ("*", ANOTHER_ORIGIN):
        yield warning(
            "origins",
            "Prefect's API lets pages of every origin read its responses, in any browser that can reach it.",
            f"Set {ORIGINS} for the server to the addresses at which people open its UI, and restart it.",
        )
    else:
        yield ok("origins", "Prefect's API lets no page of another origin read its responses.")


def _request_without_password() -> httpx.Response:
    """The response to a request without credentials, from another origin."""
    with temporary_settings({PREFECT_API_AUTH_STRING: None, PREFECT_API_KEY: None}), prefect_client() as stranger:
        try:
            return stranger.request("GET", "/admin/version", headers={"Origin": ANOTHER_ORIGIN})
        except httpx.HTTPStatusError as error:
            return error.response


def check_settings(client: SyncPrefectClient) -> Iterator[Finding]:
    """Check where the server stores leases, how it writes events and task states, and how long it keeps events."""
    settings = _get_or_none(client, "/admin/settings")
    leases = _setting(settings, "concurrency", "lease_storage")
    if leases == MEMORY:
        yield failed(
            "leases",
            "The server stores leases in memory: after a restart, their slots are never released.",
            f"Set {VARIABLE}={FILES} for the server, and restart it.",
        )
    elif isinstance(leases, str):
        yield ok("leases", f"The server stores them in {leases.rpartition('.')[2]}, which survives a restart.")
    else:
        yield warning(
            "leases",
            "It is unknown where the server stores leases.",
            f"If you run the server yourself, set {VARIABLE}={FILES} there.",
        )
    batch = _setting(settings, "services", "task_run_recorder", "batch_size")
    if batch == 1:
        yield warning(
            "recorder",
            "The server writes each task state in its own transaction. With SQLite, live mail then waits for seconds "
            "during a backfill.",
            f"Set {RECORDER}_BATCH_SIZE=50 and {RECORDER}_FLUSH_INTERVAL=1 for the server, and restart it.",
        )
    elif isinstance(batch, int):
        yield ok("recorder", f"The server writes up to {batch} task states at a time.")
    yield from _persister(_setting(settings, "services", "event_persister"))
    kept = _setting(settings, "events", "retention_period")
    if isinstance(kept, str | int | float):
        days = _duration.validate_python(kept).total_seconds() / 86400
        yield ok("events", f"Prefect keeps events, which may hold message ids and mailboxes, for {days:g} days.")


def _persister(persister: Any) -> Iterator[Finding]:
    """Check that the server writes the events that runs wait for, without losing any, and soon."""
    fields = persister if isinstance(persister, dict) else {}
    enabled, batch, interval = (fields.get(name) for name in ("enabled", "batch_size", "flush_interval"))
    if enabled is False:
        yield warning(
            "persister",
            "The server writes no events, so each run waits half a minute for its own, and stored attachments may not "
            "be announced.",
            f"Set {PERSISTER}_ENABLED=true for the server, and restart it.",
        )
        return
    if isinstance(batch, int) and batch > SAFE_BATCH:
        yield warning(
            "persister",
            f"On SQLite, a server that writes up to {batch} events at a time loses some when it is restarted.",
            f"Remove {PERSISTER}_BATCH_SIZE from the server's environment or systemd unit, and restart it. PostgreSQL "
            "is not affected.",
        )
    if isinstance(interval, int | float) and interval > PROMPT_FLUSH:
        yield warning(
            "persister",
            f"A run ends only when its event is written, and the server writes events every {interval:g} s.",
            f"Set {PERSISTER}_FLUSH_INTERVAL=1 for the server, and restart it.",
        )
    elif isinstance(batch, int) and isinstance(interval, int | float) and batch <= SAFE_BATCH:
        yield ok("persister", f"Events are written within {interval:g} s.")


def _get_or_none(client: SyncPrefectClient, path: str) -> Any:
    """The response; None if this API does not have the path."""
    try:
        return request_json(client, "GET", path)
    except httpx.HTTPStatusError as error:
        # Prefect Cloud does not have these pages, or does not serve them.
        if error.response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.FORBIDDEN, httpx.codes.METHOD_NOT_ALLOWED):
            return None
        raise


def _setting(settings: Any, *path: str) -> Any:
    for name in ("server", *path):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings
