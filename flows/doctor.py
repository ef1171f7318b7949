"""Whether all that the product needs is there and right: what `attachments doctor` looks at, by a schedule."""

from collections.abc import Sequence

import httpx
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from attachments.cancelling import RunCancelled
from attachments.doctor import Finding, examine, summary
from attachments.flows.failures import OUR_ERRORS, contained

NEXT = "The table of this run says what to do."


@flow(name="doctor", persist_result=False)
def doctor() -> State[None]:
    """Look at Prefect, blocks, limits, API key, stores, workers, queues and deployments; fail when any of it is wrong.

    It changes nothing, and makes three calls to Emailgistics for each account. Let an automation tell you of a failure.
    """
    try:
        with contained():
            found = tuple(examine())
    except RunCancelled:
        raise Abort("The run was cancelled.") from None  # whoever cancelled it says so to Prefect
    except OUR_ERRORS as error:
        return Failed(message=str(error))
    _show(found)
    if any(finding.status == "failed" for finding in found):
        return Failed(message=f"{summary(found)} {NEXT}")
    return Completed(message=summary(found))


def _show(found: Sequence[Finding]) -> None:
    """The table in the UI. A Prefect that cannot take it does not change what was found."""
    try:
        create_table_artifact(
            key="doctor",
            description="What the doctor found",
            table=[
                {"check": finding.about, "status": finding.status, "finding": finding.text, "next": finding.remedy}
                for finding in found
            ],
        )
    except httpx.HTTPError as error:
        get_run_logger().warning("Prefect did not take the table of this run (%s).", type(error).__name__)
