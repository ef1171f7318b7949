"""The checks of `attachments doctor`, on a schedule."""

from collections.abc import Sequence

import httpx
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from attachments.doctor import Finding, by_urgency, run_checks, summary
from attachments.foundation.terminal_text import escaped_line, escaped_markdown, markdown_with_code
from attachments.runs.errors import OUR_ERRORS, flow_boundary

MAX_REMEDIES = 3
"""Failures that the run's state includes; its artifact has all of them."""
SEE_ARTIFACT = "The run's artifact, under Artifacts, has all findings."


@flow(name="doctor", persist_result=False)
def doctor() -> State[None]:
    """Check Prefect, blocks, limits, API key, stores, workers, queues and deployments; fail if a check fails.

    It changes nothing, and makes three calls to Emailgistics for each account. An automation can notify you of
    failures.
    """
    try:
        with flow_boundary():
            found = by_urgency(run_checks())
    except OUR_ERRORS as error:
        return Failed(message=escaped_line(str(error)))
    _show(found)
    failures = [finding for finding in found if finding.status == "failed"]
    if failures:
        remedies = " ".join(_line(finding) for finding in failures[:MAX_REMEDIES])
        return Failed(message=escaped_line(f"{summary(found)} {remedies} {SEE_ARTIFACT}"))
    return Completed(message=escaped_line(summary(found)))


def _show(found: Sequence[Finding]) -> None:
    """Publish the findings in the UI. A failure is only logged."""
    try:
        create_markdown_artifact(key="doctor", description=escaped_markdown(summary(found)), markdown=report(found))
    except httpx.HTTPError as error:
        get_run_logger().warning("Prefect did not store the artifact of this run (%s).", type(error).__name__)


def report(found: Sequence[Finding]) -> str:
    """The findings in Markdown, failures first; the UI's table would truncate the remedies."""
    parts = [_urgent("FAILED", finding) for finding in found if finding.status == "failed"]
    parts += [_urgent("Warning:", finding) for finding in found if finding.status == "warning"]
    fine = [
        f"- {escaped_markdown(finding.about)}: {markdown_with_code(finding.text)}"
        for finding in found
        if finding.status == "ok"
    ]
    if fine:
        parts += ["Passed:", "\n".join(fine)]
    return "\n\n".join(parts)


def _line_of(finding: Finding) -> str:
    return f"- {escaped_markdown(finding.about)}: {markdown_with_code(finding.text)}"


def _urgent(word: str, finding: Finding) -> str:
    lines = [f"**{word} {escaped_markdown(finding.about)}**", "", f"- {markdown_with_code(finding.text)}"]
    if finding.remedy:
        lines.append(f"- What to do: {markdown_with_code(finding.remedy)}")
    return "\n".join(lines)


def _line(finding: Finding) -> str:
    return f"{finding.about}: {finding.text} {finding.remedy}".rstrip()
