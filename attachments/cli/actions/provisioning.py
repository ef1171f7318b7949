"""Creates the blocks, limits, pool, queues and deployments in Prefect; safe to repeat.

Blocks come from the environment; limits, the work pool and deployments from constants and prefect.yaml. A user's
changes (a limit's size, a pool's type) are kept.
"""

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    GlobalConcurrencyLimitCreate,
    WorkPoolCreate,
)
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import DeploymentSort
from prefect.events import Automation, DeploymentTriggerTypes, TriggerTypes
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from pydantic import BaseModel, TypeAdapter

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.cli.actions.block_settings import account_block, existing_block, save_block, store_block
from attachments.cli.actions.schedule import ReportResult, Result, reporting_problem, switch_reconciliation
from attachments.cli.command_boundary import CommandFailed
from attachments.doctor.deployments import check_filter
from attachments.doctor.probe import describe_error
from attachments.prefect_api.paging import all_pages_async
from attachments.runs.deployment_spec import (
    LIMITS,
    POOL,
    QUEUES,
    as_deployed,
    current_entrypoint,
    declared_deployments,
    declared_flow,
    form_of,
)
from attachments.runs.download_runs import FLOW
from attachments.worker.warm_worker import WarmWorker

# Fields that change although the content stays the same.
VOLATILE_FIELDS = {"id", "created", "updated", "created_by", "updated_by", "version_id", "last_polled", "status"}
SERVER_START_TIMEOUT = 30.0  # seconds; a server needs 10 to 20 to start
_triggers: TypeAdapter[DeploymentTriggerTypes] = TypeAdapter(DeploymentTriggerTypes)


async def set_up(
    environment: Mapping[str, str],
    tell: ReportResult,
    *,
    switch_on: bool = True,
    start_timeout: float = SERVER_START_TIMEOUT,
) -> str | None:
    """Create blocks, limits, the work pool and the deployments, and report each to `tell`.

    `start_timeout`: seconds that Prefect's server gets to start.

    With `switch_on`, the reconciliation's schedule is switched on if the API key has the scope for it, otherwise off.
    Returns why the API key could not be checked; None if Emailgistics has accepted it.

    Raises:
        CommandFailed: A variable is missing or wrong, or Prefect cannot be reached, and nothing was created; or
        Emailgistics rejects the API key, and everything was created.
    """
    if not PREFECT_API_URL.value():
        raise CommandFailed(
            "PREFECT_API_URL is not set. Start a server with `prefect server start` and set it, for example to "
            "http://127.0.0.1:4200/api."
        )
    async with get_client() as client:
        problem = await _wait_for_server(client, start_timeout)
        if isinstance(problem, httpx.TransportError):
            raise CommandFailed(
                f"Prefect does not respond at {PREFECT_API_URL.value()} ({type(problem).__name__}). Check that it is "
                "running; a server needs up to a minute to start."
            )
        if problem is not None:
            raise CommandFailed(" ".join(describe_error(problem)))
        account = account_block(environment, await existing_block(EmailgisticsAccount, client))
        store = store_block(environment, await existing_block(AttachmentStore, client))
        await save_block(account, "default", client, tell)
        await save_block(store, "default", client, tell)
        for name, slots in LIMITS.items():
            await _make_limit(name, slots, client, tell)
        await _make_pool(client, tell)
        for name, (priority, limit) in QUEUES.items():
            await _make_queue(name, priority, limit, client, tell)
        for spec in declared_deployments():
            await _deploy(spec, client, tell)
        await migrate_deployments(client, tell)
        found = await reporting_problem(account)
        if switch_on:
            await switch_reconciliation(found, client, tell)
    if found is None or found.lacks_scope:
        return None
    if found.is_permanent:
        raise CommandFailed(
            f"Everything is set up in Prefect, but no call to Emailgistics will succeed: {found.message}"
        )
    return found.message


async def _wait_for_server(client: PrefectClient, timeout: float) -> Exception | None:
    """Wait for Prefect, up to `timeout` seconds. The error if it does not respond, otherwise None."""
    end = time.monotonic() + timeout
    while (problem := await client.api_healthcheck()) is not None and time.monotonic() < end:
        if isinstance(problem, httpx.HTTPStatusError) and problem.response.is_client_error:
            break  # the server has started, and refuses the request
        await asyncio.sleep(0.5)
    return problem


async def _make_limit(name: str, slots: int, client: PrefectClient, tell: ReportResult) -> None:
    try:
        existing = await client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots, active=True))
        tell("created", f"limit {name}: {slots} calls in any 60 s")
    else:
        state = "" if existing.active else ", SWITCHED OFF: no run makes a call until it is on again"
        tell("unchanged", f"limit {name}: {existing.limit} calls in any 60 s{state}")


async def _make_pool(client: PrefectClient, tell: ReportResult) -> None:
    try:
        pool = await client.read_work_pool(POOL)
    except ObjectNotFound:
        template = WarmWorker.get_default_base_job_template()
        await client.create_work_pool(WorkPoolCreate(name=POOL, type=WarmWorker.type, base_job_template=template))
        tell("created", f"work pool {POOL}, type {WarmWorker.type}")
    else:
        tell("unchanged", f"work pool {POOL}, type {pool.type}")


async def _make_queue(name: str, priority: int, limit: int | None, client: PrefectClient, tell: ReportResult) -> None:
    subject = f"work queue {POOL}/{name}"
    try:
        queue = await client.read_work_queue_by_name(name, POOL)
    except ObjectNotFound:
        await client.create_work_queue(name=name, work_pool_name=POOL, priority=priority, concurrency_limit=limit)
        tell("created", f"{subject}, priority {priority}{f', {limit} runs at a time' if limit else ''}")
    else:
        tell("unchanged", f"{subject}, priority {queue.priority}")


async def _deploy(spec: dict[str, Any], client: PrefectClient, tell: ReportResult) -> None:
    flow = declared_flow(spec)
    name = f"{flow.name}/{spec['name']}"
    try:
        existing = await client.read_deployment_by_name(name)
    except ObjectNotFound:
        existing = None
    automations = {trigger["name"]: await _automation(trigger["name"], client) for trigger in spec.get("triggers", [])}
    triggers: list[DeploymentTriggerTypes | TriggerTypes] = [
        _triggers.validate_python({**trigger, "enabled": _is_enabled(trigger, automations[trigger["name"]])})
        for trigger in spec.get("triggers", [])
    ]
    deployment = as_deployed(
        flow,
        spec["name"],
        description=existing.description if existing else spec.get("description"),
        # Keep what a user has set in the UI.
        parameters={**spec.get("parameters", {}), **(existing.parameters if existing else {})},
        job_variables=existing.job_variables if existing else None,
        paused=existing.paused if existing else spec.get("paused"),
        tags=(existing.tags if existing else []) or spec.get("tags"),
        concurrency_limit=_existing_limit(existing) if existing else _declared_limit(spec),
        triggers=triggers,
        work_pool_name=spec["work_pool"]["name"],
        work_queue_name=spec["work_pool"].get("work_queue_name"),
        schedules=[_schedule(declared) for declared in spec.get("schedules", [])],
    )
    if existing is not None:
        # A list would remove or reset schedules that a user has created or changed.
        deployment.schedules = None
        deployment.__pydantic_fields_set__.discard("schedules")
    await deployment.aapply()
    tell(_result(existing, await client.read_deployment_by_name(name)), f"deployment {name}")
    for trigger, before in automations.items():
        automation = await _automation(trigger, client)
        state = "" if automation and automation.enabled else ": switched off"
        tell(_result(before, automation), f"automation {trigger}{state}")


def _result(before: BaseModel | None, after: BaseModel | None) -> Result:
    """Whether the object was created or its content changed, apart from `VOLATILE_FIELDS`."""
    if before is None:
        return "created"
    return "unchanged" if _stable_content(before) == _stable_content(after) else "updated"


def _stable_content(stored: BaseModel | None) -> dict[str, Any]:
    """The content without empty values: Prefect stores no steps first as an empty list, later as null."""
    content = stored.model_dump(mode="json", exclude=VOLATILE_FIELDS) if stored else {}
    return {name: value for name, value in content.items() if value not in (None, [], {})}


async def _automation(name: str, client: PrefectClient) -> Automation | None:
    return next(iter(await client.read_automations_by_name(name)), None)


async def migrate_deployments(client: PrefectClient, tell: ReportResult) -> None:
    """Update the entrypoint and parameter schema of deployments that users created with an older version.

    The receiver uses the schema to decide whether a run may get a new parameter, with which an older flow would fail.
    Invalid filters are reported, because only their author can correct them.
    """
    ours = {spec["entrypoint"]: declared_flow(spec) for spec in declared_deployments()}
    downloads = (await client.read_flow_by_name(FLOW)).id
    flows = FlowFilter(name=FlowFilterName(any_=sorted({flow.name for flow in ours.values()})))
    read = partial(client.read_deployments, flow_filter=flows, sort=DeploymentSort.NAME_ASC)
    async for deployment in all_pages_async(read):
        if deployment.flow_id == downloads:
            _report_invalid_filter(deployment, tell)
        entrypoint = current_entrypoint(deployment.entrypoint or "")
        if entrypoint not in ours:
            continue
        flow = ours[entrypoint]
        if (deployment.entrypoint, deployment.parameter_openapi_schema) != (entrypoint, form_of(flow)):
            changed = {"entrypoint": entrypoint, "parameter_openapi_schema": form_of(flow)}
            await client.update_deployment(deployment.id, DeploymentUpdate.model_validate(changed))
            tell("updated", f"deployment {flow.name}/{deployment.name}: its parameters are now those of {entrypoint}")


def _report_invalid_filter(deployment: DeploymentResponse, tell: ReportResult) -> None:
    """Report a filter that an older version accepted, and that makes each run fail now."""
    for finding in check_filter(f"{FLOW}/{deployment.name}", deployment.parameters.get("filter")):
        tell("INVALID", f"{finding.about}: {finding.text} {finding.remedy}")


def _schedule(declared: dict[str, Any]) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(
        schedule=CronSchedule(cron=declared["cron"], timezone=declared.get("timezone")),
        active=bool(declared.get("active", True)),
        slug=declared.get("slug"),
    )


def _is_enabled(trigger: dict[str, Any], existing: Automation | None) -> bool:
    """A trigger that a user has switched off stays off."""
    return existing.enabled if existing else bool(trigger.get("enabled", True))


def _existing_limit(existing: DeploymentResponse) -> ConcurrencyLimitConfig | int | None:
    """The existing limit on concurrent runs; a limit that a user has removed stays removed."""
    limit, options = existing.global_concurrency_limit, existing.concurrency_options
    if limit is None:
        return None
    return (
        ConcurrencyLimitConfig(limit=limit.limit, collision_strategy=options.collision_strategy)
        if options
        else limit.limit
    )


def _declared_limit(spec: Mapping[str, Any]) -> ConcurrencyLimitConfig | None:
    declared = spec.get("concurrency_limit")
    return ConcurrencyLimitConfig.model_validate(declared) if declared else None
