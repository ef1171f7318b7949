"""From a run that Prefect hands out to its flow: the deployment, the permission, the owner and the code."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import Abort, ObjectNotFound
from prefect.flows import Flow, load_flow_from_flow_run
from prefect.states import Cancelled, Crashed, Pending
from prefect.utilities.engine import propose_state

from attachments.foundation.terminal_text import escaped_line
from attachments.runs.deployment_spec import UPKEEP, load_flow
from attachments.runs.state_record import StateRecord, write_record
from attachments.worker.allowed_flows import NO_DEPLOYMENT, FlowNotAllowed, check_allowed, is_named
from attachments.worker.slots import Slots
from attachments.worker.state_changes import reason, set_state

FLOWS_KEPT = 64  # deployment versions whose code stays loaded

logger = logging.getLogger("prefect.attachments.worker")


class FlowLoader:
    """The flows of deployments, loaded once for each version. `allowed` is the value of ATTACHMENTS_WORKER_FLOWS."""

    def __init__(self, allowed: str) -> None:
        self._allowed = allowed
        self._flows: dict[str, Flow[..., Any]] = {}

    async def load(self, flow_run: FlowRun, deployment: DeploymentResponse) -> Flow[..., Any]:
        """The flow that a deployment names. Raises `FlowNotAllowed`, and whatever the flow's code raises."""
        check_allowed(deployment.entrypoint, has_pull_steps=bool(deployment.pull_steps), allowed=self._allowed)
        # Not `updated`, which changes whenever a worker polls.
        version = repr((deployment.id, deployment.version_id, deployment.entrypoint, deployment.pull_steps))
        if version not in self._flows:
            if len(self._flows) >= FLOWS_KEPT:
                self._flows.clear()
            if deployment.pull_steps or not deployment.entrypoint or ":" in deployment.entrypoint:
                self._flows[version] = await load_flow_from_flow_run(flow_run, use_placeholder_flow=False)
            else:
                self._flows[version] = await asyncio.to_thread(
                    load_flow, deployment.entrypoint, is_named=is_named(deployment.entrypoint, self._allowed)
                )
        return self._flows[version]


class RunStarter:
    """Takes runs in a worker's name."""

    def __init__(self, client: PrefectClient, worker: str, loader: FlowLoader, slots: Slots) -> None:
        self._client = client
        self._worker = worker
        self._loader = loader
        self._slots = slots

    async def take(self, flow_run: FlowRun) -> Flow[..., Any] | None:
        """Take a run and return its flow; None when it is not to be started, now or at all."""
        if flow_run.deployment_id is None:
            await self._crash(flow_run, NO_DEPLOYMENT)
            return None
        try:
            deployment = await self._client.read_deployment(flow_run.deployment_id)
            if not await self.sign(flow_run):
                return None
        except ObjectNotFound:
            logger.warning("Flow run %s is cancelled: its deployment is gone.", flow_run.id)
            await set_state(self._client, flow_run, Cancelled(message="Its deployment does not exist any more."))
            return None
        except (httpx.HTTPError, ValueError) as error:  # ValueError: a response that is not Prefect's
            logger.warning("Flow run %s could not be started yet (%s).", flow_run.id, reason(error))
            return None
        if deployment.work_queue_name == UPKEEP:
            self._slots.move_to_upkeep(flow_run.id)
        try:
            return await self._loader.load(flow_run, deployment)
        except httpx.TransportError as error:
            logger.warning("Flow run %s could not be started yet (%s).", flow_run.id, type(error).__name__)
        except FlowNotAllowed as refusal:
            logger.warning("Flow run %s is not started: its deployment's code is not allowed here.", flow_run.id)
            await self._crash(flow_run, str(refusal))
        except Exception as error:  # whatever the flow's code raises when it is loaded
            logger.exception("Flow run %s cannot be run.", flow_run.id)
            await self._crash(
                flow_run, f"The flow cannot be loaded: {type(error).__name__}: {escaped_line(str(error))}"
            )
        return None

    async def sign(self, flow_run: FlowRun) -> bool:
        """Propose the state Pending, which names the worker; False when Prefect does not let the run start.

        Raises `httpx.HTTPError`, and `ValueError` for a response that is not Prefect's.
        """
        try:
            taken: State[None] = write_record(Pending(), StateRecord(worker=self._worker))
            state = await propose_state(self._client, taken, flow_run_id=flow_run.id)
        except Abort as abort:
            logger.info("Flow run %s is not started: %s", flow_run.id, escaped_line(str(abort)))
            return False
        return state.is_pending()

    async def _crash(self, flow_run: FlowRun, message: str) -> None:
        """Propose the state Crashed. No-op if the run is gone or has ended."""
        try:
            with suppress(Abort, ObjectNotFound):
                await propose_state(self._client, Crashed(message=message), flow_run_id=flow_run.id)
        except (httpx.HTTPError, ValueError) as error:
            logger.warning("The state of flow run %s could not be set (%s).", flow_run.id, reason(error))
