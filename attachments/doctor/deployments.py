"""Checks that the deployments are as the installed version would create them."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import DeploymentSort
from pydantic import ValidationError

from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.doctor.probe import request_json
from attachments.domain.selection import Filter, describe_errors
from attachments.prefect_api.paging import PAGE, all_pages
from attachments.runs.deployment_spec import (
    as_deployed,
    current_entrypoint,
    declared_deployments,
    declared_flow,
    form_of,
)
from attachments.runs.download_runs import FLOW

RECONCILE = "reconcile-attachments"
SETUP_REMEDY = "Run `attachments setup`."
UPGRADE_REMEDY = (
    "Stop the workers on all hosts, install the same version on each, run `attachments setup`, and start the workers."
)
OTHER_PARAMETERS = "Its parameters are those of another version."

Deployments = Mapping[str, DeploymentResponse]
"""By full name, `<flow>/<deployment>`."""


def read_deployments(client: SyncPrefectClient) -> Deployments:
    """All deployments of this project's flows, including those that users created."""
    flows = sorted({declared_flow(spec).name for spec in declared_deployments()})
    names = {flow["id"]: flow["name"] for flow in request_json(client, "POST", "/flows/filter", _by_name(flows))}
    of_flows = FlowFilter(name=FlowFilterName(any_=flows))
    read = partial(client.read_deployments, flow_filter=of_flows, sort=DeploymentSort.NAME_ASC)
    return {f"{names[str(deployment.flow_id)]}/{deployment.name}": deployment for deployment in all_pages(read)}


def check_deployments(deployments: Deployments) -> Iterator[Finding]:
    """Check the deployments that prefect.yaml declares, and others of the same flows that an older version created."""
    forms: dict[str | None, dict[str, Any]] = {}
    declared = set()
    for spec in declared_deployments():
        flow = declared_flow(spec)
        forms[spec["entrypoint"]] = form_of(flow)
        declared.add(f"{flow.name}/{spec['name']}")
        yield _compare(spec, deployments)
    for name, deployment in deployments.items():
        entrypoint = deployment.entrypoint and current_entrypoint(deployment.entrypoint)
        if entrypoint != deployment.entrypoint:
            yield failed("deployment", "It refers to its flow as an older version did.", UPGRADE_REMEDY, subject=name)
        elif name not in declared and entrypoint in forms and deployment.parameter_openapi_schema != forms[entrypoint]:
            yield failed("deployment", OTHER_PARAMETERS, UPGRADE_REMEDY, subject=name)
        if name.startswith(f"{FLOW}/"):
            yield from check_filter(name, deployment.parameters.get("filter"))


def check_filter(name: str, filter_: object) -> Iterator[Finding]:
    """Report an invalid filter: mistyped in the UI, or accepted by an older version although it matches nothing."""
    try:
        Filter.model_validate(filter_ or {})
    except ValidationError as error:
        # Patterns may contain a customer's name, so the details go to the terminal only.
        text = "Its filter is not valid, so each of its runs fails."
        remedy = "Correct it in the Prefect UI or in its prefect.yaml; `attachments check` names each mistake."
        yield failed("filter", text, remedy, subject=name, names=[describe_errors(error)])


def block_names(deployments: Deployments, parameter: str) -> Sequence[str]:
    """The names of the blocks that download deployments use for `parameter`: `account` or `store`."""
    downloads = [deployment for name, deployment in deployments.items() if name.startswith(f"{FLOW}/")]
    named = {deployment.parameters.get(parameter, "default") for deployment in downloads} or {"default"}
    return sorted(name for name in named if isinstance(name, str))


def is_scheduled(deployment: DeploymentResponse) -> bool:
    """Whether an active schedule starts its runs."""
    return not deployment.paused and any(schedule.active for schedule in deployment.schedules)


def _compare(spec: Mapping[str, Any], deployments: Deployments) -> Finding:
    flow = declared_flow(spec)
    name = f"{flow.name}/{spec['name']}"
    deployment = deployments.get(name)
    if deployment is None:
        return failed("deployment", "It does not exist.", SETUP_REMEDY, subject=name)
    expected = as_deployed(flow, spec["name"])
    place = spec["work_pool"]
    lost = "another" if deployment.work_pool_name else "no"
    broken = (
        (
            deployment.entrypoint != expected.entrypoint,
            "It starts other code than the installed version.",
            UPGRADE_REMEDY,
        ),
        (deployment.parameter_openapi_schema != form_of(flow), OTHER_PARAMETERS, UPGRADE_REMEDY),
        (
            deployment.work_pool_name != place["name"],
            f"It uses {lost} work pool, so no worker of this project takes its runs.",
            SETUP_REMEDY,
        ),
    )
    odd = (
        (
            deployment.work_queue_name != place.get("work_queue_name", "default"),
            "It is in the wrong work queue.",
            SETUP_REMEDY,
        ),
        (
            deployment.paused and not spec.get("paused"),
            "It is paused in Prefect, so only people and webhooks start it, never a schedule.",
            "Resume it in the Prefect UI under Deployments.",
        ),
        (
            deployment.version != expected.version,
            "It was created from another version of the same flow, with the same parameters.",
            UPGRADE_REMEDY,
        ),
    )
    failures = (failed("deployment", text, remedy, subject=name) for is_so, text, remedy in broken if is_so)
    warnings = (warning("deployment", text, remedy, subject=name) for is_so, text, remedy in odd if is_so)
    return next(chain(failures, warnings), ok("deployment", "It is up to date.", subject=name))


def _by_name(flows: Sequence[str]) -> dict[str, Any]:
    return {"flows": {"name": {"any_": list(flows)}}, "limit": PAGE}
