"""The deployments: whether they are what the installed version would make."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import DeploymentSort
from pydantic import ValidationError

from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.doctor.probe import asked
from attachments.domain.selection import Filter, problem
from attachments.runs.deployment_spec import (
    as_deployed,
    current_entrypoint,
    declared_deployments,
    declared_flow,
    form_of,
)

DOWNLOAD = "download-attachments"
RECONCILE = "reconcile-attachments"
SETUP = "Run `attachments setup`."
UPGRADE = (
    "Stop the workers on all hosts, install the same version on each, run `attachments setup`, and start the workers."
)
OTHER_FORM = "Its parameters are those of another version."
PAGE = 200

Deployments = Mapping[str, DeploymentResponse]
"""By full name, `<flow>/<deployment>`."""


def read_deployments(client: SyncPrefectClient) -> Deployments:
    """All deployments of our flows, also those that users have made."""
    flows = sorted({declared_flow(spec).name for spec in declared_deployments()})
    names = {flow["id"]: flow["name"] for flow in asked(client, "POST", "/flows/filter", _by_name(flows))}
    found: list[DeploymentResponse] = []
    while True:
        page = client.read_deployments(
            flow_filter=FlowFilter(name=FlowFilterName(any_=flows)),
            sort=DeploymentSort.NAME_ASC,
            limit=PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < PAGE:
            return {f"{names[str(deployment.flow_id)]}/{deployment.name}": deployment for deployment in found}


def look_at_deployments(standing: Deployments) -> Iterator[Finding]:
    """Each one that prefect.yaml declares, and any other of our flows that an older version left behind."""
    forms: dict[str | None, dict[str, Any]] = {}
    declared = set()
    for spec in declared_deployments():
        flow = declared_flow(spec)
        forms[spec["entrypoint"]] = form_of(flow)
        declared.add(f"{flow.name}/{spec['name']}")
        yield _compared(spec, standing)
    for name, deployment in standing.items():
        entrypoint = deployment.entrypoint and current_entrypoint(deployment.entrypoint)
        if entrypoint != deployment.entrypoint:
            yield failed("deployment", "It names its flow as an older version did.", UPGRADE, subject=name)
        elif name not in declared and entrypoint in forms and deployment.parameter_openapi_schema != forms[entrypoint]:
            yield failed("deployment", OTHER_FORM, UPGRADE, subject=name)
        if name.startswith(f"{DOWNLOAD}/"):
            yield from filter_mistakes(name, deployment.parameters.get("filter"))


def filter_mistakes(name: str, filter_: object) -> Iterator[Finding]:
    """A filter that no run takes: mistyped in the UI, or accepted by an older version although nothing matched it."""
    try:
        Filter.model_validate(filter_ or {})
    except ValidationError as error:
        # Patterns may hold a customer's name: the sentence is for the terminal alone.
        text = "Its filter is not valid, so each of its runs fails."
        remedy = "Correct it in the Prefect UI or in its prefect.yaml; `attachments check` names each mistake."
        yield failed("filter", text, remedy, subject=name, names=[problem(error)])


def blocks_named(standing: Deployments, parameter: str) -> Sequence[str]:
    """The names of the blocks that the runs of downloads use: `account` or `store`."""
    downloads = [deployment for name, deployment in standing.items() if name.startswith(f"{DOWNLOAD}/")]
    named = {deployment.parameters.get(parameter, "default") for deployment in downloads} or {"default"}
    return sorted(name for name in named if isinstance(name, str))


def is_scheduled(deployment: DeploymentResponse) -> bool:
    """Whether it runs by itself."""
    return not deployment.paused and any(schedule.active for schedule in deployment.schedules)


def _compared(spec: Mapping[str, Any], standing: Deployments) -> Finding:
    flow = declared_flow(spec)
    name = f"{flow.name}/{spec['name']}"
    deployment = standing.get(name)
    if deployment is None:
        return failed("deployment", "There is none of this name.", SETUP, subject=name)
    expected = as_deployed(flow, spec["name"])
    place = spec["work_pool"]
    lost = "another" if deployment.work_pool_name else "no"
    broken = (
        (deployment.entrypoint != expected.entrypoint, "It starts other code than the installed one.", UPGRADE),
        (deployment.parameter_openapi_schema != form_of(flow), OTHER_FORM, UPGRADE),
        (
            deployment.work_pool_name != place["name"],
            f"It stands in {lost} work pool, so no worker of ours takes its runs.",
            SETUP,
        ),
    )
    odd = (
        (
            deployment.work_queue_name != place.get("work_queue_name", "default"),
            "It stands in another queue than it should.",
            SETUP,
        ),
        (
            deployment.paused and not spec.get("paused"),
            "It is paused in Prefect, so it runs by hand or webhook alone, and never by a schedule.",
            "Resume it in the Prefect UI under Deployments.",
        ),
        (
            deployment.version != expected.version,
            "It was made from another version of the same flow, with the same parameters.",
            UPGRADE,
        ),
    )
    failures = (failed("deployment", text, remedy, subject=name) for is_so, text, remedy in broken if is_so)
    warnings = (warning("deployment", text, remedy, subject=name) for is_so, text, remedy in odd if is_so)
    return next(chain(failures, warnings), ok("deployment", "It is current.", subject=name))


def _by_name(flows: Sequence[str]) -> dict[str, Any]:
    return {"flows": {"name": {"any_": list(flows)}}, "limit": PAGE}
