"""The times and limits of a warm worker. Times are in seconds."""

from dataclasses import dataclass

LIMIT = 8  # runs at a time, unless `--limit` says otherwise
UPKEEP_SLOTS = 5  # runs of the work queue for upkeep at a time, beside those; more of them take the others' slots
PAGE = 200  # objects per response of Prefect's API
MAX_CRASHES = 5  # a run that has broken off so often, mostly with its worker, may be the cause: it is not restarted
UNCONFIRMED = 8  # events that are resent after a broken connection; Prefect's own 700 make its server drop others


@dataclass(frozen=True)
class WorkerTimings:
    """The defaults are for production; tests shorten them."""

    poll: float = 0.5
    """Between polls for new runs, unless PREFECT_WORKER_QUERY_SECONDS says otherwise."""
    heartbeat: float = 4.0
    """Between heartbeats."""
    heartbeat_timeout: float = 20.0
    """Without a heartbeat for so long, a worker counts as dead."""
    reap: float = 5.0
    """Between polls for the runs of dead workers."""
    unowned_timeout: float = 30.0
    """After so long in one state, a run whose state names no worker may be a dead worker's."""
    death_margin: float = 60.0
    """Clocks differ, and a busy Prefect records heartbeats late."""
    cancel_poll: float = 1.5
    """Between polls for runs under way that were cancelled or suspended."""
    cancel_grace: float = 2.0
    """For a cancelled run to end by itself; after that the worker no longer waits for its thread."""
    drain: float = 20.0
    """For runs under way to finish after SIGTERM."""
    hand_back: float = 10.0
    """After `drain`, for handing back the others: Prefect's client alone would retry for minutes."""
