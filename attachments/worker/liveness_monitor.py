"""Which workers are alive, by the clock of this worker alone."""

from collections.abc import Callable, Mapping
from datetime import datetime
from uuid import UUID

import anyio
from prefect.client.schemas.objects import FlowRun

from attachments.worker.timings import WorkerTimings


class LivenessMonitor:
    """What this worker has seen of the others' heartbeats since Prefect was last unreachable."""

    def __init__(self, timings: WorkerTimings, clock: Callable[[], float] = anyio.current_time) -> None:
        self._timings = timings
        self._clock = clock
        self._reachable_since: float | None = None
        self._last_check = -timings.reap
        self._heartbeats: dict[str, tuple[datetime | None, float]] = {}
        """By worker: its last heartbeat, and when it was first seen here."""
        self._before: dict[UUID, tuple[UUID, float]] = {}
        """By run, at the last check: its state, and since when it was seen."""
        self._seen: dict[UUID, tuple[UUID, float]] = {}

    def api_answered(self) -> None:
        """Record that Prefect responded."""
        if self._reachable_since is None:
            self._reachable_since = self._clock()

    def api_failed(self) -> None:
        """Record that Prefect did not respond: for a while, a missing heartbeat proves nothing."""
        self._reachable_since = None

    def is_check_due(self) -> bool:
        """Whether it is time to look for the runs of dead workers; if so, that check begins."""
        if self._clock() - self._last_check < self._timings.reap:
            return False
        self._last_check = self._clock()
        self._before, self._seen = self._seen, {}
        return True

    def living(self, heartbeats: Mapping[str, datetime | None]) -> set[str]:
        """The workers whose heartbeat changed within the time-out, from the last heartbeats that the server knows."""
        now = self._clock()
        for name, heartbeat in heartbeats.items():
            if name not in self._heartbeats or self._heartbeats[name][0] != heartbeat:
                self._heartbeats[name] = (heartbeat, now)
        self._heartbeats = {name: known for name, known in self._heartbeats.items() if name in heartbeats}
        timeout = self._timings.heartbeat_timeout
        return {name for name, (_, seen) in self._heartbeats.items() if now - seen < timeout}

    @property
    def can_judge(self) -> bool:
        """Whether Prefect has responded for as long as the time-out: only then can another worker be called dead."""
        since = self._reachable_since
        return since is not None and self._clock() - since >= self._timings.heartbeat_timeout

    def seconds_unchanged(self, run: FlowRun) -> float:
        """For how long the run has been seen in the very same state at each check. Call it once per run and check."""
        assert run.state is not None  # noqa: S101  the filter selects by state
        now = self._clock()
        state, since = self._before.get(run.id, (run.state.id, now))
        self._seen[run.id] = (run.state.id, since if state == run.state.id else now)
        return now - self._seen[run.id][1]
