"""Reconciliation: whether what no webhook told us about is looked for."""

from collections.abc import Iterator, Sequence

from prefect.client.schemas.responses import DeploymentResponse

from attachments.doctor.deployments import DOWNLOAD, RECONCILE, Deployments, is_scheduled
from attachments.doctor.findings import Finding, failed, ok, warning

RESUME = f"Switch its schedule on in the Prefect UI under Deployments, {RECONCILE}/default."


def look_at_reconciliation(standing: Deployments, scopes: Sequence[Finding]) -> Iterator[Finding]:
    """Whether it runs by itself, given what was found of the scope `reporting`."""
    deployments = [found for name, found in standing.items() if name.startswith(f"{RECONCILE}/")]
    running = [deployment for deployment in deployments if is_scheduled(deployment)]
    runs = bool(running)
    used = {f"reporting ({_account(deployment, standing)})" for deployment in running or deployments}
    known = {finding.status for finding in scopes if finding.subject in used}
    if not deployments:
        return  # that it is missing was said, where this version has one
    if runs and "warning" in known:
        text = "It runs by itself, and the key lacks the scope `reporting`: every run fails."
        yield failed("reconciliation", text, "Make a new key that has it, or switch the schedule off.")
    elif runs:
        yield ok("reconciliation", "It runs by itself.")
    else:
        text = "It does not run by itself, so a message whose webhook never came is not found."
        yield warning("reconciliation", text, RESUME if "ok" in known else f"Give the key `reporting`. Then: {RESUME}")


def _account(deployment: DeploymentResponse, standing: Deployments) -> str:
    """The account that its runs use: that of the deployment that they fetch for."""
    target = standing.get(f"{DOWNLOAD}/{deployment.parameters.get('deployment') or 'default'}")
    return str((target and target.parameters.get("account")) or "default")
