"""Whose work a run does: its own, or that of an earlier run that it continues, whose runs it finds again."""

from dataclasses import dataclass

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from attachments.runs.delayed_retry import ATTEMPT
from attachments.runs.errors import NotConfigured, retry_until_available
from attachments.runs.run_labels import CRASH_COUNT, ORIGIN, id_label


@dataclass(frozen=True)
class Lineage:
    """A run and the run whose work it does. A crash of the worker does not change it."""

    run: FlowRun
    origin: str
    """The first run's id; another for each time that an ended run is retried, which needs new child runs."""

    @property
    def short(self) -> str:
        """Eight characters that identify it: the last ones of the first run's id, whose first ones are the time."""
        return self.origin.partition("/")[0][-8:]

    @property
    def labels(self) -> dict[str, str]:
        """Labels for a later attempt at the same work, which then finds the runs that were created for it."""
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

    def reset_counts(self) -> None:
        """Let later attempts and crashes count from the start: the run makes progress, so it is not their cause.

        A backfill of days sees some of both.
        """
        self.run.tags = [tag for tag in self.run.tags if not ATTEMPT.fullmatch(tag)]
        if self.run.labels.pop(CRASH_COUNT, 0):
            retry_until_available(
                lambda: get_client(sync_client=True).update_flow_run_labels(self.run.id, {CRASH_COUNT: 0})
            )
