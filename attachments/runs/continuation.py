"""A run that waits for other runs gives them its place when they need it, and goes on later as another run.

A worker with one place would otherwise wait for ever: the run that holds the place waits for those that need it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.states import Scheduled

from attachments.domain.progress import Counts
from attachments.runs.errors import NotConfigured, retry_until_available
from attachments.runs.run_labels import CRASH_COUNT, ENDED, IDLE, ORIGIN, count_label, id_label

SHORTEST, LONGEST = 30.0, 60.0  # seconds until it goes on
EACH = 2.0  # seconds that a run which waits may take, one after the other
IDLE_LONGEST = 900.0  # seconds, when nothing came of the last time either: a queue may be paused


@dataclass(frozen=True)
class Lineage:
    """Whose work a run does: its own, or that of the run that it continues. It outlives deaths of workers."""

    run: FlowRun
    origin: str
    """The first run's id; another for each time that an ended run is retried, which wants fresh children."""

    @property
    def short(self) -> str:
        """A few letters to know it by: the last ones of the first run's id, for its first ones are the time of day."""
        return self.origin.partition("/")[0][-8:]

    @property
    def can_continue(self) -> bool:
        """Whether there is a deployment to make another run of."""
        return self.run.deployment_id is not None

    @property
    def labels(self) -> dict[str, str]:
        """Labels of a run that goes on with the same work: it finds the runs that were made for it."""
        return {ORIGIN: self.origin}

    @classmethod
    def current(cls) -> "Lineage":
        """That of the flow run in which this is called."""
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            raise NotConfigured("This can be called in a flow run only.")
        run = context.flow_run
        origin = id_label(run.labels, ORIGIN) or str(run.id)
        states = retry_until_available(lambda: get_client(sync_client=True).read_flow_run_states(run.id))
        ends = sum(state.is_final() for state in states)
        return cls(run, f"{origin}/retried/{run.id}/{ends}" if ends else origin)

    def schedule_continuation(self, counts: Counts, *, waiting: int) -> str:
        """Schedule the run that goes on, once, and say so in a sentence."""
        assert self.run.deployment_id is not None  # noqa: S101  see can_continue
        deployment_id: UUID = self.run.deployment_id
        before = count_label(self.run.labels, ENDED)
        idle = (count_label(self.run.labels, IDLE) or 0) + 1 if before == counts.ended else 0
        seconds = min(LONGEST, max(SHORTEST, waiting * EACH))
        seconds = min(IDLE_LONGEST, seconds * 2 ** min(idle, 10))
        when = datetime.now(UTC) + timedelta(seconds=seconds)
        retry_until_available(
            lambda: get_client(sync_client=True).create_flow_run_from_deployment(
                deployment_id,
                parameters=self.run.parameters,
                tags=self.run.tags,
                idempotency_key=f"{self.run.id}/{self.run.run_count}/continued",
                state=Scheduled(
                    scheduled_time=when, message="It goes on when the runs that it waits for had their turn"
                ),
                labels={**self.labels, ENDED: counts.ended, IDLE: idle},
            )
        )
        return f"Another run goes on at {when:%H:%M:%S} UTC."

    def reset_crash_count(self) -> None:
        """Forget the deaths of workers: a run that gets on is not their cause, and a long one sees some."""
        if self.run.labels.pop(CRASH_COUNT, 0):
            retry_until_available(
                lambda: get_client(sync_client=True).update_flow_run_labels(self.run.id, {CRASH_COUNT: 0})
            )
