"""Prefect's API as the rate limit uses it: the one place that knows its clients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse

from attachments.prefect_api.prefect_retry import PrefectUnreachable, retrying_settings
from attachments.prefect_api.transport import direct_transport
from attachments.prefect_api.url_path import path_part
from attachments.rate_limit.timings import RateLimitTimings


@dataclass(frozen=True)
class Grant:
    """A lease on a slot of each of these limits. Limits that do not exist are missing: Prefect skips them."""

    lease: UUID
    limits: frozenset[str]


class SlotApi:
    """Slots of concurrency limits, and the Variable of a pause. Shared between threads; its clients stay open.

    Every method raises `httpx.HTTPStatusError` for a refusal, and `PrefectUnreachable` when Prefect is unreachable or
    the response is not Prefect's.
    """

    def __init__(
        self, timings: RateLimitTimings, transport: Callable[[], httpx.BaseTransport] = direct_transport
    ) -> None:
        self._lease = timings.lease
        self._client = _open(timings, transport, shortest=timings.busy)
        # It does not retry while the database is locked: one of the process's own slots may come back first.
        self._impatient = _open(timings, transport, raise_if_busy=True)

    def acquire(self, names: tuple[str, ...]) -> Grant:
        """A slot of each limit. Raises `PrefectBusy` besides, while the database is locked."""
        with _odd_responses():
            granted = self._impatient.increment_concurrency_slots_with_lease(
                names=list(names), slots=1, mode="concurrency", lease_duration=self._lease
            ).json()
            return Grant(UUID(granted["lease_id"]), frozenset(limit["name"] for limit in granted["limits"]))

    def renew(self, lease: UUID) -> None:
        """Let a lease run for its whole time from now on."""
        self._client.renew_concurrency_lease(lease, self._lease)

    def release(self, lease: UUID) -> None:
        """Give the lease's slots back."""
        self._client.release_concurrency_slots_with_lease(lease)

    def read_limit(self, name: str) -> GlobalConcurrencyLimitResponse:
        """The limit of that name. Raises `ObjectNotFound` besides."""
        with _odd_responses():
            return self._client.read_global_concurrency_limit_by_name(path_part(name))

    def read_variable(self, name: str) -> Any:
        """The value of a Prefect Variable; None if there is none."""
        with _odd_responses():
            variable = self._client.read_variable_by_name(name)
        return variable.value if variable else None

    def write_variable(self, name: str, value: dict[str, Any]) -> None:
        """Set a Prefect Variable. Raises `ObjectAlreadyExists` besides, if another process creates it meanwhile."""
        try:
            self._client.update_variable(VariableUpdate(name=name, value=value))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.NOT_FOUND:
                raise
            with _odd_responses():
                self._client.create_variable(VariableCreate(name=name, value=value))


@contextmanager
def _odd_responses() -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, TypeError) as error:
        raise PrefectUnreachable(type(error).__name__, may_have_arrived=True) from None


def _open(timings: RateLimitTimings, transport: Callable[[], httpx.BaseTransport], **options: Any) -> SyncPrefectClient:
    # Its own settings keep it apart from the client of the flow run that comes first, which is closed with that run.
    settings = retrying_settings(timings.response_timeout, raise_if_unreachable=True, transport=transport, **options)
    return get_client(httpx_settings=settings, sync_client=True).__enter__()
