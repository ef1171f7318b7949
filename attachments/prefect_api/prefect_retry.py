"""Retries while Prefect's embedded SQLite is locked, after milliseconds instead of seconds.

A request that reads and then writes fails at once when another has written in between, and Prefect answers 503.
The lock lasts milliseconds, but Prefect's client sleeps 2, 4, 8 … s before it retries, and gives up after five
retries. Measured: a run of two files took 8 s with that, and 1.2 s with this.
"""

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client

from attachments.prefect_api.transport import direct_async_transport, direct_transport

SHORTEST, LONGEST = 0.03, 1.0  # seconds between two attempts
PATIENCE = 60.0  # seconds after which a 503 is returned to the caller


class PrefectUnreachable(Exception):
    """Prefect's API cannot be reached, or does not respond in time.

    `may_have_arrived` is False when the request was never sent.
    """

    def __init__(self, reason: str, *, may_have_arrived: bool) -> None:
        super().__init__(reason)
        self.may_have_arrived = may_have_arrived


class PrefectBusy(Exception):
    """Prefect's database is locked (503)."""


def retrying_settings(
    timeout: float | None = None,
    *,
    raise_if_unreachable: bool = False,
    raise_if_busy: bool = False,
    shortest: float = SHORTEST,
    longest: float = LONGEST,
    transport: Callable[[], httpx.BaseTransport] = direct_transport,
) -> dict[str, Any]:
    """`httpx_settings` for a synchronous client that retries soon while the API answers 503.

    It waits `shortest` seconds before the first retry, then longer, up to `longest`: little where a caller waits for
    the response, more where many send requests at once. `timeout` is in seconds for each response; None is Prefect's
    setting. With `raise_if_unreachable` the client raises `PrefectUnreachable` at once, where Prefect's own would retry
    for a minute; with `raise_if_busy` it raises `PrefectBusy` for a 503 and does not retry.
    """
    retrying = RetryingTransport(
        transport(), shortest, longest, raise_if_unreachable=raise_if_unreachable, raise_if_busy=raise_if_busy
    )
    return _settings(retrying, timeout)


def retrying_async_settings(longest: float = LONGEST) -> dict[str, Any]:
    """The same for an asynchronous client, without its options."""
    return _settings(AsyncRetryingTransport(direct_async_transport(), SHORTEST, longest), None)


def _settings(transport: httpx.BaseTransport | httpx.AsyncBaseTransport, timeout: float | None) -> dict[str, Any]:
    # `verify` is not used beside a transport. Without it Prefect's client would read the certificates once more.
    settings = {"transport": transport, "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}
    return settings if timeout is None else {**settings, "timeout": timeout}


@contextmanager
def own_client(
    timeout: float, *, raise_if_unreachable: bool = False, shortest: float = SHORTEST
) -> Iterator[SyncPrefectClient]:
    """A client of the caller's own that retries soon, closed with the block; `timeout` seconds for each response.

    Within a flow run, `get_client` without settings returns the run's own client, which the warm worker lends to the
    next run.
    """
    settings = retrying_settings(timeout, raise_if_unreachable=raise_if_unreachable, shortest=shortest)
    with get_client(httpx_settings=settings, sync_client=True) as client:
        yield client


class RetryingTransport(httpx.BaseTransport):
    """Sends a request again while the response is a 503 without `Retry-After`."""

    def __init__(
        self,
        inner: httpx.BaseTransport,
        shortest: float = SHORTEST,
        longest: float = LONGEST,
        *,
        raise_if_unreachable: bool = False,
        raise_if_busy: bool = False,
    ) -> None:
        self._inner = inner
        self._backoff = partial(Backoff, shortest, longest)
        self._raise_if_unreachable = raise_if_unreachable
        self._raise_if_busy = raise_if_busy

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        backoff = self._backoff()
        while True:
            try:
                response = self._inner.handle_request(request)
            except httpx.TransportError as error:
                if self._raise_if_unreachable:
                    sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                    raise PrefectUnreachable(type(error).__name__, may_have_arrived=sent) from None
                raise
            pause = backoff.after(response)
            if pause is None:
                return response
            response.close()
            if self._raise_if_busy:
                raise PrefectBusy
            time.sleep(pause)

    def close(self) -> None:
        self._inner.close()


class AsyncRetryingTransport(httpx.AsyncBaseTransport):
    """The same for asynchronous clients."""

    def __init__(self, inner: httpx.AsyncBaseTransport, shortest: float = SHORTEST, longest: float = LONGEST) -> None:
        self._inner = inner
        self._backoff = partial(Backoff, shortest, longest)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        backoff = self._backoff()
        while True:
            response = await self._inner.handle_async_request(request)
            pause = backoff.after(response)
            if pause is None:
                return response
            await response.aclose()
            await asyncio.sleep(pause)

    async def aclose(self) -> None:
        await self._inner.aclose()


class Backoff:
    """How long to wait between attempts of one request, in seconds: `shortest` at first, `longest` in the end."""

    def __init__(self, shortest: float = SHORTEST, longest: float = LONGEST, patience: float | None = None) -> None:
        self._end = time.monotonic() + (PATIENCE if patience is None else patience)
        self._next = shortest
        self._longest = longest

    def after(self, response: httpx.Response) -> float | None:
        """Seconds to wait before the next attempt; None when the response is final."""
        busy = response.status_code == httpx.codes.SERVICE_UNAVAILABLE and "retry-after" not in response.headers
        return self.next() if busy and not self.is_exhausted() else None

    def is_exhausted(self) -> bool:
        """Whether it has lasted longer than a locked database explains."""
        return time.monotonic() > self._end

    def next(self) -> float:
        """Seconds to wait before the next attempt, however long it has lasted."""
        pause = self._next * random.uniform(0.5, 1)  # noqa: S311  jitter, no secret
        self._next = min(self._longest, self._next * 1.5)
        return pause
