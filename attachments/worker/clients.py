"""The worker's clients of Prefect's API: they retry soon, and name the worker in each state that starts a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.client.schemas.responses import OrchestrationResult
from prefect.context import SyncClientContext
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

from attachments.prefect_api.prefect_retry import retrying_async_settings, retrying_settings
from attachments.prefect_api.transport import direct_transport
from attachments.runs.state_record import StateRecord, write_record

T = TypeVar("T")


class SignedClient(SyncPrefectClient):
    """A client for the runs of one worker: the state in which a run continues names the worker.

    So ownership is written in one step with the state, without another request.
    """

    def __init__(self, worker: str, transport: Callable[[], httpx.BaseTransport] = direct_transport) -> None:
        super().__init__(**_access(), httpx_settings=retrying_settings(transport=transport))
        self._worker = worker

    def set_flow_run_state(
        self, flow_run_id: UUID | str, state: State[T], force: bool = False
    ) -> OrchestrationResult[T]:
        """As Prefect's own, with the worker's name in a Running state that has no message."""
        if state.is_running() and not state.message:
            state = write_record(state, StateRecord(worker=self._worker))
        return super().set_flow_run_state(flow_run_id, state, force)


def worker_client() -> PrefectClient:
    """The client of the worker itself, not yet open."""
    return PrefectClient(**_access(), httpx_settings=retrying_async_settings())


def _access() -> dict[str, Any]:
    """What `get_client` passes as well."""
    return {
        "api": PREFECT_API_URL.value(),
        "auth_string": PREFECT_API_AUTH_STRING.value(),
        "api_key": PREFECT_API_KEY.value(),
    }


class ClientPool:
    """Open clients, each for one run at a time.

    A new one for each run would cost it an SSL context, a connection and a request for a token.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._idle: list[SyncClientContext] = []

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Let everything of Prefect's that this thread calls in the block use one client of the pool.

        Raises `RuntimeError` when a new client cannot reach Prefect.
        """
        try:
            context = self._idle.pop()
        except IndexError:
            context = SyncClientContext.model_construct(client=SignedClient(self._worker))
            context.client.__enter__()  # once more than the context leaves it, so that it stays open
        entered = False
        try:
            with context:
                entered = True
                yield
        finally:
            if entered:
                self._idle.append(context)
            else:  # entering asks Prefect for its version; if that fails, the context cannot be used
                for _ in range(2):  # as often as it was entered
                    context.client.__exit__(None, None, None)
