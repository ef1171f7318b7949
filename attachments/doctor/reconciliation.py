"""Checks that reconciliation, which finds messages without a webhook, runs on a schedule."""

from collections.abc import Iterator, Sequence

from prefect.client.schemas.responses import DeploymentResponse

from attachments.doctor.deployments import RECONCILE, Deployments, is_scheduled
from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.runs.download_runs import FLOW

RESUME_REMEDY = f"Switch its schedule on in the Prefect UI under Deployments, {RECONCILE}/default."


def check_reconciliation(all_deployments: Deployments, scopes: Sequence[Finding]) -> Iterator[Finding]:
    """Check that reconciliation is scheduled, given the findings about the scope `reporting`."""
    deployments = [found for name, found in all_deployments.items() if name.startswith(f"{RECONCILE}/")]
    running = [deployment for deployment in deployments if is_scheduled(deployment)]
    runs = bool(running)
    used = {f"reporting ({_account(deployment, all_deployments)})" for deployment in running or deployments}
    known = {finding.status for finding in scopes if finding.subject in used}
    if not deployments:
        return  # `check_deployments` reports that it is missing
    if runs and "warning" in known:
        text = "It is scheduled, but the key lacks the scope `reporting`, so every run fails."
        yield failed("reconciliation", text, "Create a new key that has it, or switch the schedule off.")
    elif runs:
        yield ok("reconciliation", "It is scheduled.")
    else:
        text = "It is not scheduled, so a message whose webhook never arrived is not found."
        yield warning(
            "reconciliation",
            text,
            RESUME_REMEDY if "ok" in known else f"Give the key `reporting`. Then: {RESUME_REMEDY}",
        )


def _account(deployment: DeploymentResponse, deployments: Deployments) -> str:
    """The account that its runs use: that of the download deployment that they start."""
    target = deployments.get(f"{FLOW}/{deployment.parameters.get('deployment') or 'default'}")
    return str((target and target.parameters.get("account")) or "default")
