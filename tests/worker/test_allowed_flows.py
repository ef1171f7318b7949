"""Which deployments the warm worker runs; tests/e2e shows it against a real Prefect."""

import pytest

from attachments.runs.deployment_spec import declared_deployments
from attachments.worker.allowed_flows import FlowNotAllowed, check_allowed

OURS = "attachments.flows.download_attachments.download_attachments"


@pytest.mark.parametrize("entrypoint", sorted({spec["entrypoint"] for spec in declared_deployments()}))
def test_our_own_flows_run_also_by_the_names_of_version_0_1(entrypoint: str) -> None:
    """Without any configuration."""
    for name in (entrypoint, entrypoint.removeprefix("attachments.")):
        check_allowed(name, has_pull_steps=False, allowed="")


@pytest.mark.parametrize(
    ("entrypoint", "has_pull_steps", "allowed", "text"),
    [
        (OURS, True, "", "has pull steps, which are commands"),
        (OURS, True, "invoices", "has pull steps, which are commands"),
        ("flows/invoices.py:extract", False, "", "code is a file"),
        ("invoices:extract", False, "invoices", "code is a file"),
        (None, False, "", "code is a file"),
        ("", False, "", "code is a file"),
        ("invoices.extract", False, "", "add the name of its package to ATTACHMENTS_WORKER_FLOWS"),
        ("invoices_too.extract", False, "invoices", "add the name of its package"),
        ("attachments.flows.doctor.doctor.with_options", False, "", "add the name of its package"),
        ("attachments.flows.doctor", False, "", "add the name of its package"),
        ("srv.attachments.0123456789abcdef.0123456789abcdef.invoice.flow", False, "", "add the name of its package"),
        ("antigravity.flow", False, " , ", "add the name of its package"),
    ],
)
def test_what_the_host_has_not_allowed_is_not_run(
    entrypoint: str | None, has_pull_steps: bool, allowed: str, text: str
) -> None:
    """A mail's attachment below the worker's working directory is a module too, as far as Python is concerned."""
    with pytest.raises(FlowNotAllowed) as caught:
        check_allowed(entrypoint, has_pull_steps=has_pull_steps, allowed=allowed)
    assert str(caught.value).startswith("Not started: ")
    assert text in str(caught.value)
    assert "ATTACHMENTS_WORKER_FLOWS" in str(caught.value)


@pytest.mark.parametrize(
    ("entrypoint", "has_pull_steps", "allowed"),
    [
        ("invoices.monthly.extract", False, "invoices"),
        ("invoices.monthly.extract", False, "other, invoices.monthly"),
        ("invoices.monthly.extract", False, "invoices.monthly.extract"),
        ("flows/invoices.py:extract", True, "*"),
        ("flows/invoices.py:extract", False, "invoices,*"),
        (None, True, "*"),
    ],
)
def test_what_the_host_allows_is_run(entrypoint: str | None, has_pull_steps: bool, allowed: str) -> None:
    """A package, a module, a flow, or whatever a deployment names."""
    check_allowed(entrypoint, has_pull_steps=has_pull_steps, allowed=allowed)
