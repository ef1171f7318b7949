"""Whether all that the product needs is there and right: what `attachments doctor` looks at, by a schedule."""

from collections.abc import Sequence

import httpx
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from attachments.doctor import Finding, by_urgency, examine, summary
from attachments.foundation.cancellation import RunCancelled
from attachments.foundation.terminal_text import bounded, markdown, markdown_with_code
from attachments.runs.errors import OUR_ERRORS, error_boundary

TOLD = 3
"""Failures whose remedies stand in the run's state; all of them stand in its artifact."""
NEXT = "The artifact of this run, under Artifacts, says all of it."


@flow(name="doctor", persist_result=False)
def doctor() -> State[None]:
    """Look at Prefect, blocks, limits, API key, stores, workers, queues and deployments; fail when any of it is wrong.

    It changes nothing, and makes three calls to Emailgistics for each account. Let an automation tell you of a failure.
    """
    try:
        with error_boundary():
            found = by_urgency(examine())
    except RunCancelled:
        raise Abort("The run was cancelled.") from None  # whoever cancelled it says so to Prefect
    except OUR_ERRORS as error:
        return Failed(message=bounded(str(error)))
    _show(found)
    failures = [finding for finding in found if finding.status == "failed"]
    if failures:
        remedies = " ".join(_line(finding) for finding in failures[:TOLD])
        return Failed(message=bounded(f"{summary(found)} {remedies} {NEXT}"))
    return Completed(message=bounded(summary(found)))


def _show(found: Sequence[Finding]) -> None:
    """The artifact in the UI. A Prefect that cannot take it does not change what was found."""
    try:
        create_markdown_artifact(key="doctor", description=markdown(summary(found)), markdown=report(found))
    except httpx.HTTPError as error:
        get_run_logger().warning("Prefect did not take the artifact of this run (%s).", type(error).__name__)


def report(found: Sequence[Finding]) -> str:
    """In Markdown, for the UI's table would cut off what to do: what failed first, and all of it in full."""
    parts = [_urgent("FAILED", finding) for finding in found if finding.status == "failed"]
    parts += [_urgent("Warning:", finding) for finding in found if finding.status == "warning"]
    fine = [
        f"- {markdown(finding.about)}: {markdown_with_code(finding.text)}"
        for finding in found
        if finding.status == "ok"
    ]
    if fine:
        parts += ["As it should be:", "\n".join(fine)]
    return "\n\n".join(parts)


def _line_of(finding: Finding) -> str:
    return f"- {markdown(finding.about)}: {markdown_with_code(finding.text)}"


def _urgent(word: str, finding: Finding) -> str:
    lines = [f"**{word} {markdown(finding.about)}**", "", f"- {markdown_with_code(finding.text)}"]
    if finding.remedy:
        lines.append(f"- What to do: {markdown_with_code(finding.remedy)}")
    return "\n".join(lines)


def _line(finding: Finding) -> str:
    return f"{finding.about}: {finding.text} {finding.remedy}".rstrip()
