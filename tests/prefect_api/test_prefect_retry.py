"""Retries while Prefect's database is locked, and what the caller learns when Prefect is unreachable."""

import asyncio
from collections.abc import Sequence

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings

from attachments.prefect_api.prefect_retry import (
    AsyncRetryingTransport,
    Backoff,
    PrefectBusy,
    PrefectUnreachable,
    RetryingTransport,
    retrying_settings,
)

REQUEST = httpx.Request("GET", "http://prefect.example/api/health")


class Server(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Responds with these statuses one after the other, and from then on with 200; or fails."""

    def __init__(self, statuses: Sequence[int] = (), *, error: Exception | None = None, **headers: str) -> None:
        self._statuses = list(statuses)
        self._error = error
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.requests = 0
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True

    def handle_request(self, _: httpx.Request) -> httpx.Response:
        self.requests += 1
        if self._error is not None:
            raise self._error
        return httpx.Response(self._statuses.pop(0) if self._statuses else 200, headers=self._headers)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


def test_a_locked_database_is_retried_until_it_responds() -> None:
    """After milliseconds; by synchronous and asynchronous clients."""
    server = Server([503] * 3)
    assert RetryingTransport(server, 0.001, 0.001).handle_request(REQUEST).status_code == 200
    assert server.requests == 4
    server = Server([503] * 3)
    transport = AsyncRetryingTransport(server, 0.001, 0.001)
    assert asyncio.run(transport.handle_async_request(REQUEST)).status_code == 200
    assert server.requests == 4


@pytest.mark.parametrize(("status", "headers"), [(503, {"retry_after": "2"}), (500, {}), (404, {}), (429, {})])
def test_other_responses_are_the_callers(status: int, headers: dict[str, str]) -> None:
    """Also a 503 that says when to retry: it is no locked database."""
    server = Server([status], **headers)
    assert RetryingTransport(server, 0.001).handle_request(REQUEST).status_code == status
    assert server.requests == 1


def test_a_caller_that_can_do_something_else_is_not_made_to_wait() -> None:
    """It learns that the database is locked, and does not retry."""
    server = Server([503])
    with pytest.raises(PrefectBusy):
        RetryingTransport(server, raise_if_busy=True).handle_request(REQUEST)
    assert server.requests == 1


@pytest.mark.parametrize(
    ("error", "may_have_arrived"),
    [(httpx.ConnectError(""), False), (httpx.ConnectTimeout(""), False), (httpx.ReadTimeout(""), True)],
)
def test_an_unreachable_prefect_is_reported_at_once(error: Exception, may_have_arrived: bool) -> None:
    """With whether the request may have been received; only a caller that wants it so."""
    with pytest.raises(PrefectUnreachable) as away:
        RetryingTransport(Server(error=error), raise_if_unreachable=True).handle_request(REQUEST)
    assert away.value.may_have_arrived == may_have_arrived
    with pytest.raises(type(error)):
        RetryingTransport(Server(error=error)).handle_request(REQUEST)


def test_pauses_grow_up_to_the_longest() -> None:
    """And have jitter, so that many clients do not come back at the same moment."""
    backoff = Backoff(1.0, 4.0, patience=0.0)
    pauses = [backoff.next() for _ in range(10)]
    assert 0.5 <= pauses[0] <= 1.0
    assert all(2.0 <= pause <= 4.0 for pause in pauses[5:])
    assert len(set(pauses)) == len(pauses)
    assert backoff.after(httpx.Response(503)) is None, "its patience is over"


def test_prefects_clients_take_the_transport() -> None:
    """`get_client(httpx_settings=...)`: requests go through it, and it is closed with the client."""
    server = Server([503])
    settings = {PREFECT_API_URL: "http://prefect.example/api", PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}
    with temporary_settings(settings):
        client = get_client(sync_client=True, httpx_settings=retrying_settings(transport=lambda: server))
        with client:
            assert client.api_healthcheck() is None
    assert server.requests == 2
    assert server.is_closed
