"""Who does the work: the pool, its queues, the workers that live, and the runs that they get."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType, WorkerStatus
from prefect.exceptions import ObjectNotFound

from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.doctor.probe import asked, is_unknown
from attachments.foundation import cancellation
from attachments.runs.deployment_spec import POOL, POOL_TYPE, QUEUES

SETUP = "Run `attachments setup`, which makes it."
LOOK_AGAIN = 5.0  # seconds; a busy Prefect hears beats late
AHEAD = timedelta(seconds=10)
"""How long before its time a worker takes a run (PREFECT_WORKER_PREFETCH_SECONDS)."""
UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
PAGE = 200
IDS = 1000  # in one answer of Prefect's
MOST_NAMED = 5  # of the runs that Prefect cannot write
NO_RUNS = "Prefect's API answers 500 where workers ask for runs, so they get none."


def look_at_pool(client: SyncPrefectClient) -> Iterator[Finding]:
    """Whether the work pool is there, and lets runs start."""
    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        yield failed("work-pool", "There is none of this name.", SETUP, subject=POOL)
        return
    if pool.is_paused:
        remedy = f"Resume it: `prefect work-pool resume {POOL}`."
        yield failed("work-pool", "It is paused, so no run starts.", remedy, subject=POOL)
    elif pool.concurrency_limit == 0:
        remedy = f"Lift it: `prefect work-pool clear-concurrency-limit {POOL}`."
        yield failed("work-pool", "Its concurrency limit is 0, so no run starts.", remedy, subject=POOL)
    elif pool.type != POOL_TYPE:
        yield warning(
            "work-pool",
            f"Its type is {pool.type}: each run starts an interpreter or more, which takes seconds.",
            f"A pool of the type {POOL_TYPE} starts runs at once.",
            subject=POOL,
        )
    else:
        yield ok("work-pool", f"It takes runs; its type is {pool.type}.", subject=POOL)


def living_workers(client: SyncPrefectClient) -> int:
    """How many workers of the pool live, by the server's own clock."""
    try:
        workers = client.read_workers_for_work_pool(POOL, limit=PAGE, offset=0)
    except httpx.HTTPStatusError as error:
        if not is_unknown(error):
            raise
        return 0
    return sum(worker.status == WorkerStatus.ONLINE for worker in workers)


def look_at_workers(client: SyncPrefectClient) -> Iterator[Finding]:
    """Whether a worker lives that takes the pool's runs."""
    living = living_workers(client)
    if not living:
        cancellation.sleep(LOOK_AGAIN)
        living = living_workers(client)
    if living:
        yield ok("worker", f"{living} alive." if living > 1 else "One is alive.")
    else:
        yield failed("worker", "None is alive, so no run starts.", f"Start one: `prefect worker start --pool {POOL}`.")


def are_runs_given(client: SyncPrefectClient) -> bool:
    """Whether Prefect answers what each worker of ours asks: which runs are due, and which are under way.

    Call it only while a worker is alive: Prefect takes the caller for one, and marks the queues as ready.
    """
    try:
        due = {"scheduled_before": (datetime.now(UTC) + AHEAD).isoformat()}
        asked(client, "POST", f"/work_pools/{POOL}/get_scheduled_flow_runs", due)
        asked(client, "POST", "/flow_runs/filter", {**_in_states(UNDER_WAY), "limit": PAGE})
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
            raise
        return False
    return True


def look_at_runs(client: SyncPrefectClient) -> Iterator[Finding]:
    """Whether the workers get their runs: one that Prefect stores and cannot serialize keeps all others from them."""
    if not living_workers(client):
        return  # the check of the workers reports that
    if are_runs_given(client):
        yield ok("runs", "Prefect gives out those that are due, and shows those under way.")
        return
    found = list(islice(_unwritable(client, _ids_of_unfinished(client)), MOST_NAMED))
    if found:
        commands = ", ".join(f"`prefect flow-run delete {run}`" for run in found)
        text = f"{NO_RUNS} It cannot give out what somebody has written into {', '.join(found)}."
        yield failed("runs", text, f"Delete that, and look again: {commands}. See docs/operating.md.")
    else:
        yield failed("runs", NO_RUNS, "Look at the log of the Prefect server, and at docs/operating.md.")


def _ids_of_unfinished(client: SyncPrefectClient) -> Sequence[str]:
    """Ids of the pool's runs, from a route of Prefect's UI that omits their parameters; none from Prefect Cloud."""
    body = {**_in_states([StateType.SCHEDULED, *UNDER_WAY]), "limit": IDS}
    try:
        return [run["id"] for run in asked(client, "POST", "/ui/flow_runs/history", body)]
    except httpx.HTTPStatusError as error:
        if not is_unknown(error):
            raise
        return []


def _in_states(states: Sequence[StateType]) -> dict[str, Any]:
    return {"flow_runs": {"state": {"type": {"any_": states}}}, "work_pools": {"name": {"any_": [POOL]}}}


def _unwritable(client: SyncPrefectClient, ids: Sequence[str]) -> Iterator[str]:
    """Those of these runs for which Prefect answers 500, found by halving."""
    if not ids:
        return
    if len(ids) <= PAGE:
        try:
            asked(client, "POST", "/flow_runs/filter", {"flow_runs": {"id": {"any_": list(ids)}}, "limit": PAGE})
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            if len(ids) == 1:
                yield ids[0]
                return
        else:
            return
    half = len(ids) // 2
    yield from _unwritable(client, ids[:half])
    yield from _unwritable(client, ids[half:])


def look_at_queues(client: SyncPrefectClient) -> Iterator[Finding]:
    """Whether the queues are there and open, and live mail goes first."""
    try:
        answer = asked(client, "POST", f"/work_pools/{POOL}/queues/filter", {})
    except httpx.HTTPStatusError as error:
        if not is_unknown(error):
            raise
        return  # the pool is missing, which was said
    queues = {queue["name"]: queue for queue in answer}
    for name in QUEUES:
        yield _queue(name, queues)


def _queue(name: str, queues: dict[str, Any]) -> Finding:
    subject = f"{POOL}/{name}"
    if name not in queues:
        return failed("queue", "There is none of this name.", SETUP, subject=subject)
    queue = queues[name]
    if queue["is_paused"] or queue.get("status") == "PAUSED":
        remedy = f"Resume it: `prefect work-queue resume {name} --pool {POOL}`."
        return failed("queue", "It is paused, so none of its runs start.", remedy, subject=subject)
    if queue["concurrency_limit"] == 0:
        remedy = f"Lift it: `prefect work-queue clear-concurrency-limit {name} --pool {POOL}`."
        return failed("queue", "Its concurrency limit is 0, so none of its runs start.", remedy, subject=subject)
    ahead = [
        other
        for other, (priority, _) in QUEUES.items()
        if other in queues and priority < QUEUES[name][0] and queues[other]["priority"] >= queue["priority"]
    ]
    if ahead:
        return failed(
            "queue",
            f"Its priority {queue['priority']} lets it go before {', '.join(ahead)}, which should go first.",
            f"Give it a larger number in the Prefect UI under Work Pools, such as {QUEUES[name][0]}.",
            subject=subject,
        )
    if QUEUES[name][1] is not None and queue["concurrency_limit"] is None:
        return warning(
            "queue",
            "It has no concurrency limit, so its runs may take all places of the workers from live mail.",
            f"Set one: `prefect work-queue set-concurrency-limit {name} {QUEUES[name][1]} --pool {POOL}`.",
            subject=subject,
        )
    return ok("queue", f"It is open; its priority is {queue['priority']}.", subject=subject)
