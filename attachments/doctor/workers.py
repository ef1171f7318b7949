"""Checks the work pool, its queues, its live workers, and whether they can read their runs."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType, WorkerStatus
from prefect.exceptions import ObjectNotFound

from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.doctor.probe import is_unknown, request_json
from attachments.foundation import cancellation
from attachments.prefect_api.paging import PAGE
from attachments.runs.deployment_spec import POOL, POOL_TYPE, QUEUES

SETUP = "Run `attachments setup`, which creates it."
RECHECK_DELAY = 5.0  # seconds; a busy Prefect records heartbeats late
PREFETCH = timedelta(seconds=10)
"""How long before its scheduled time a worker takes a run (PREFECT_WORKER_PREFETCH_SECONDS)."""
ACTIVE_STATES = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
MAX_IDS = 1000  # run ids in one response of Prefect
MAX_NAMED = 5  # unreadable runs that a finding names
NO_RUNS = "Prefect's API responds 500 when workers request runs, so they get none."


def check_pool(client: SyncPrefectClient, pool_name: str = POOL) -> Iterator[Finding]:
    """Check that the work pool exists and lets runs start."""
    try:
        pool = client.read_work_pool(pool_name)
    except ObjectNotFound:
        yield failed("work-pool", "It does not exist.", SETUP, subject=pool_name)
        return
    if pool.is_paused:
        remedy = f"Resume it: `prefect work-pool resume {pool_name}`."
        yield failed("work-pool", "It is paused, so no run starts.", remedy, subject=pool_name)
    elif pool.concurrency_limit == 0:
        remedy = f"Remove it: `prefect work-pool clear-concurrency-limit {pool_name}`."
        yield failed("work-pool", "Its concurrency limit is 0, so no run starts.", remedy, subject=pool_name)
    elif pool.type != POOL_TYPE:
        yield warning(
            "work-pool",
            f"Its type is {pool.type}: each run starts at least one interpreter, which takes seconds.",
            f"A pool of the type {POOL_TYPE} starts runs at once.",
            subject=pool_name,
        )
    else:
        yield ok("work-pool", f"It accepts runs; its type is {pool.type}.", subject=pool_name)


def count_live_workers(client: SyncPrefectClient, pool_name: str = POOL) -> int:
    """How many workers of the pool are alive, by the server's own clock."""
    try:
        workers = client.read_workers_for_work_pool(pool_name, limit=PAGE, offset=0)
    except httpx.HTTPStatusError as error:
        if not is_unknown(error):
            raise
        return 0
    return sum(worker.status == WorkerStatus.ONLINE for worker in workers)


def check_workers(
    client: SyncPrefectClient, pool_name: str = POOL, *, recheck_delay: float = RECHECK_DELAY
) -> Iterator[Finding]:
    """Check that a worker of the pool is alive."""
    living = count_live_workers(client, pool_name)
    if not living:
        cancellation.sleep(recheck_delay)
        living = count_live_workers(client, pool_name)
    if living:
        yield ok("worker", f"{living} alive." if living > 1 else "One is alive.")
    else:
        yield failed(
            "worker", "None is alive, so no run starts.", f"Start one: `prefect worker start --pool {pool_name}`."
        )


def can_read_runs(client: SyncPrefectClient) -> bool:
    """Whether Prefect responds to the two requests of every warm worker: for due runs and for active ones.

    Call it only while a worker is alive: Prefect treats the caller as one, and marks the queues as ready.
    """
    try:
        due = {"scheduled_before": (datetime.now(UTC) + PREFETCH).isoformat()}
        request_json(client, "POST", f"/work_pools/{POOL}/get_scheduled_flow_runs", due)
        request_json(client, "POST", "/flow_runs/filter", {**_in_states(ACTIVE_STATES), "limit": PAGE})
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
            raise
        return False
    return True


def check_runs(client: SyncPrefectClient) -> Iterator[Finding]:
    """Check that workers can read their runs: a run that Prefect stores but cannot serialize blocks all others."""
    if not count_live_workers(client):
        return  # `check_workers` reports that
    if can_read_runs(client):
        yield ok("runs", "Prefect returns the due runs and the active ones.")
        return
    found = list(islice(_unreadable_runs(client, _unfinished_run_ids(client)), MAX_NAMED))
    if found:
        commands = ", ".join(f"`prefect flow-run delete {run}`" for run in found)
        text = f"{NO_RUNS} It cannot serialize the content of {', '.join(found)}."
        yield failed("runs", text, f"Delete them, and run the doctor again: {commands}. See docs/operating.md.")
    else:
        yield failed("runs", NO_RUNS, "Check the log of the Prefect server; see docs/operating.md.")


def _unfinished_run_ids(client: SyncPrefectClient) -> Sequence[str]:
    """Ids of the pool's unfinished runs, from a route of Prefect's UI that omits parameters; none from Prefect
    Cloud."""
    body = {**_in_states([StateType.SCHEDULED, *ACTIVE_STATES]), "limit": MAX_IDS}
    try:
        return [run["id"] for run in request_json(client, "POST", "/ui/flow_runs/history", body)]
    except httpx.HTTPStatusError as error:
        if not is_unknown(error):
            raise
        return []


def _in_states(states: Sequence[StateType]) -> dict[str, Any]:
    return {"flow_runs": {"state": {"type": {"any_": states}}}, "work_pools": {"name": {"any_": [POOL]}}}


def _unreadable_runs(client: SyncPrefectClient, ids: Sequence[str]) -> Iterator[str]:
    """The runs for which Prefect responds 500, found by bisection."""
    if not ids:
        return
    if len(ids) <= PAGE:
        try:
            request_json(client, "POST", "/flow_runs/filter", {"flow_runs": {"id": {"any_": list(ids)}}, "limit": PAGE})
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            if len(ids) == 1:
                yield ids[0]
                return
        else:
            return
    half = len(ids) // 2
    yield from _unreadable_runs(client, ids[:half])
    yield from _unreadable_runs(client, ids[half:])


def check_queues(client: SyncPrefectClient, pool_name: str = POOL) -> Iterator[Finding]:
    """Check that the queues exist and are open, and that live mail has priority."""
    try:
        answer = request_json(client, "POST", f"/work_pools/{pool_name}/queues/filter", {})
    except httpx.HTTPStatusError as error:
        if not is_unknown(error):
            raise
        return  # `check_pool` reports the missing pool
    queues = {queue["name"]: queue for queue in answer}
    for name in QUEUES:
        yield check_queue(name, queues, pool_name)


def check_queue(name: str, queues: dict[str, Any], pool_name: str = POOL) -> Finding:
    """Check one queue, given all queues of the pool."""
    subject = f"{pool_name}/{name}"
    if name not in queues:
        return failed("queue", "It does not exist.", SETUP, subject=subject)
    queue = queues[name]
    if queue["is_paused"] or queue.get("status") == "PAUSED":
        remedy = f"Resume it: `prefect work-queue resume {name} --pool {pool_name}`."
        return failed("queue", "It is paused, so none of its runs start.", remedy, subject=subject)
    if queue["concurrency_limit"] == 0:
        remedy = f"Remove it: `prefect work-queue clear-concurrency-limit {name} --pool {pool_name}`."
        return failed("queue", "Its concurrency limit is 0, so none of its runs start.", remedy, subject=subject)
    ahead = [
        other
        for other, (priority, _) in QUEUES.items()
        if other in queues and priority < QUEUES[name][0] and queues[other]["priority"] >= queue["priority"]
    ]
    if ahead:
        return failed(
            "queue",
            f"Its priority {queue['priority']} puts it before {', '.join(ahead)}, which should go first.",
            f"Give it a larger number in the Prefect UI under Work Pools, such as {QUEUES[name][0]}.",
            subject=subject,
        )
    if QUEUES[name][1] is not None and queue["concurrency_limit"] is None:
        return warning(
            "queue",
            "It has no concurrency limit, so its runs may take all worker slots from live mail.",
            f"Set one: `prefect work-queue set-concurrency-limit {name} {QUEUES[name][1]} --pool {pool_name}`.",
            subject=subject,
        )
    return ok("queue", f"It is open; its priority is {queue['priority']}.", subject=subject)
