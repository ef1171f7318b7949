"""How many runs a worker runs at a time."""

from collections.abc import Callable, Set
from uuid import UUID

import anyio

from attachments.worker.timings import UPKEEP_SLOTS


class Slots:
    """A slot for each run: one of the worker's limit, or one of those for upkeep.

    Args:
        limiter: Prefect's, which has the worker's limit; `prefect worker start --run-once` waits for it.
    """

    def __init__(self, limiter: Callable[[], anyio.CapacityLimiter]) -> None:
        self._limiter = limiter
        self._runs: set[UUID] = set()
        self._upkeep: set[UUID] = set()

    @property
    def runs(self) -> Set[UUID]:
        """The runs that have a slot."""
        return self._runs

    def take(self, run: UUID) -> bool:
        """Take a slot of the limit; False when the run has one already. Raises `anyio.WouldBlock` when none is free."""
        if run in self._runs:
            return False
        self._limiter().acquire_on_behalf_of_nowait(run)
        self._runs.add(run)
        return True

    def move_to_upkeep(self, run: UUID) -> None:
        """Release the run's slot of the limit: it may wait for runs that need one. No-op if no upkeep slot is free."""
        if len(self._upkeep) < UPKEEP_SLOTS:
            self._upkeep.add(run)
            self._limiter().release_on_behalf_of(run)

    def release(self, run: UUID) -> None:
        """Release the run's slot."""
        self._runs.discard(run)
        if run in self._upkeep:
            self._upkeep.discard(run)
        else:
            self._limiter().release_on_behalf_of(run)
