"""What has to be in Prefect: `attachments setup` makes it, `attachments doctor` compares with it."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, cast

import yaml
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import MissingFlowError
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.types.entrypoint import EntrypointType

LIMITS = {"emailgistics-api": 100, "emailgistics-backfill": 60}  # slots, each held for a minute
POOL = "attachments"
POOL_TYPE = "warm"
UPKEEP = "upkeep"
"""The work queue of runs that may wait for other runs. The warm worker has slots of their own for them."""
QUEUES: Mapping[str, tuple[int, int | None]] = {"default": (1, None), UPKEEP: (5, 5), "backfill": (10, 4)}
"""Priority (1 goes first) and how many runs may be under way at a time, of all workers together."""


def declared_deployments() -> list[dict[str, Any]]:
    """The deployments of prefect.yaml."""
    declared = resources.files("attachments") / "prefect.yaml"
    return cast("list[dict[str, Any]]", yaml.safe_load(declared.read_text("utf-8"))["deployments"])


def current_entrypoint(entrypoint: str) -> str:
    """Where a flow of ours is now, for the entrypoint that a deployment of an older version has; others stay as is.

    Up to version 0.1 the flows were installed as a top-level package `flows`.
    """
    moved = f"attachments.{entrypoint}"
    return moved if any(spec["entrypoint"] == moved for spec in declared_deployments()) else entrypoint


def declared_flow(spec: Mapping[str, Any]) -> Flow[..., Any]:
    """The flow of one of these deployments, as it is installed here."""
    return load_flow_from_entrypoint(spec["entrypoint"])


def load_flow(entrypoint: str, *, is_named: bool) -> Flow[..., Any]:
    """The flow of a module path. The name that one of ours had in an older version leads to ours.

    With `is_named`, the host allows a package of that name, and a user's project may have a module and a flow of the
    same names as ours had: these are the user's. Without, no module of the old name is imported: whatever lies in the
    worker's working directory would be code that nobody has allowed.
    """
    moved = current_entrypoint(entrypoint)
    if not is_named:
        return load_flow_from_entrypoint(moved, use_placeholder_flow=False)
    try:
        return load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    except MissingFlowError:
        if moved == entrypoint:
            raise
    except ModuleNotFoundError as error:
        is_the_module = f"{entrypoint}.".startswith(f"{error.name}.")  # not one that it imports
        if moved == entrypoint or not is_the_module:
            raise
    return load_flow_from_entrypoint(moved, use_placeholder_flow=False)


def form_of(flow: Flow[..., Any]) -> dict[str, Any]:
    """The schema of a flow's parameters, as Prefect keeps it with a deployment."""
    schema = flow.parameters.model_dump(exclude_unset=True)
    return cast("dict[str, Any]", json.loads(json.dumps(schema, default=str)))


def as_deployed(flow: Flow[..., Any], name: str, **options: Any) -> RunnerDeployment:
    """A deployment of an installed flow, not yet sent to Prefect.

    Its version is that of the flow's code; Prefect would take that of whatever Git repository one happens to stand in.
    """
    return RunnerDeployment.from_flow(
        flow, name=name, version=flow.version, entrypoint_type=EntrypointType.MODULE_PATH, **options
    )
