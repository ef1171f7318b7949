"""The times of the rate limit, in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RateLimitTimings:
    """The defaults are for production; tests shorten them."""

    window: float = 60.0
    """For so long a call counts (getting-started/rate-limits)."""
    lease: float = 90.0
    """For so long at most, a process that dies leaves its slots taken."""
    renew_after: float = 25.0
    """For so long a call may wait for its response before its lease is renewed, and again; below `lease - window`."""
    reuse_window: float = 1.0
    """For so long a slot waits for this process's next call."""
    poll: float = 2.0
    """Between requests for a slot while other processes hold all of them."""
    poll_with_own: float = 3.0
    """The same while some are this process's own, and come back to it."""
    stagger: float = 1.0
    """Between a slot's release and the request for it, at most: processes take turns."""
    busy: float = 0.1
    """Before the first retry of a request that a busy SQLite has refused."""
    busy_patience: float = 60.0
    """Such refusals for so long are no locked database: they are logged."""
    limit_check: float = 60.0
    """Between checks that the limit still exists and is active."""
    response_timeout: float = 30.0
    """For Prefect to respond."""
    unreachable: float = 2.0
    """Between attempts while Prefect is unreachable."""
    first_pause: float = 60.0
    """After a 429: "wait at least a minute" (getting-started/rate-limits)."""
    longest_pause: float = 480.0
    pause_check: float = 5.0
    """Between checks for a pause that another process has ordered."""
    spread: float = 0.8
    """The part of the window over which one process's calls of a backfill are spread, at least."""
    widest_spread: float = 1.0
    """Between two of those calls, at most."""
