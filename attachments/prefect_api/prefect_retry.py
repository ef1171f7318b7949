"""Patience with Prefect's embedded SQLite, in milliseconds instead of seconds.

A request that reads and then writes fails at once when another has written in between, and Prefect answers 503.
That is over within milliseconds, but Prefect's client sleeps 2, 4, 8 … s before it asks again, and gives up after
five times. Measured: a run of two files took 8 s with that, and 1.2 s with this.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import httpx
from prefect.client.orchestration import PrefectClient, SyncPrefectClient, get_client

SHORTEST, LONGEST = 0.03, 1.0  # seconds between two tries
PATIENCE = 60.0  # seconds until the 503 is believed


class PrefectAway(Exception):
    """Prefect's API cannot be reached, or does not answer in time.

    `may_have_heard` is False when the request was never sent.
    """

    def __init__(self, reason: str, *, may_have_heard: bool) -> None:
        super().__init__(reason)
        self.may_have_heard = may_have_heard


class PrefectBusy(Exception):
    """Prefect's database is locked (503)."""


def add_retries(
    client: PrefectClient | SyncPrefectClient,
    *,
    tell_when_away: bool = False,
    tell_when_busy: bool = False,
    shortest: float = SHORTEST,
    longest: float = LONGEST,
) -> None:
    """Let a client of Prefect's ask again quickly while the API answers 503.

    Prefect makes its clients itself and offers no way in but the httpx client that it wraps. A connection through
    a proxy keeps Prefect's own pace. It asks again after `shortest` seconds, and later ever `longest`: little where
    somebody waits for the answer, more where many ask at once. With `tell_when_away`, a synchronous client raises
    `PrefectAway` at once where Prefect's own would go on trying for a minute; with `tell_when_busy` it raises
    `PrefectBusy` and does not ask again. Called again for the same client, the last call counts: a second layer would
    be a leak, since clients live as long as their process.
    """
    inner = client._client
    if isinstance(inner, httpx.AsyncClient):
        beneath = inner._transport
        beneath = beneath.inner if isinstance(beneath, _AsyncRetryingTransport) else beneath
        inner._transport = _AsyncRetryingTransport(beneath, shortest, longest)
    else:
        under = inner._transport
        under = under.inner if isinstance(under, _RetryingTransport) else under
        inner._transport = _RetryingTransport(
            under, shortest, longest, tell_when_away=tell_when_away, tell_when_busy=tell_when_busy
        )


@contextmanager
def own_client(
    timeout: float, *, tell_when_away: bool = False, shortest: float = SHORTEST
) -> Iterator[SyncPrefectClient]:
    """A patient client of the caller's own, closed with the block; `timeout` seconds for each answer.

    Within a flow run, `get_client` without settings returns the run's own client, which the warm worker lends to the
    next run: whatever is changed there stays, for all that follows.
    """
    client = get_client(httpx_settings={"timeout": timeout}, sync_client=True)
    add_retries(client, tell_when_away=tell_when_away, shortest=shortest)
    with client:
        yield client


class _RetryingTransport(httpx.BaseTransport):
    def __init__(
        self,
        inner: httpx.BaseTransport,
        shortest: float,
        longest: float,
        *,
        tell_when_away: bool,
        tell_when_busy: bool,
    ) -> None:
        self.inner = inner
        self._pauses = partial(Backoff, shortest, longest)
        self._tell_when_away = tell_when_away
        self._tell_when_busy = tell_when_busy

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        pauses = self._pauses()
        while True:
            try:
                response = self.inner.handle_request(request)
            except httpx.TransportError as error:
                if self._tell_when_away:
                    sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                    raise PrefectAway(type(error).__name__, may_have_heard=sent) from None
                raise
            pause = pauses.after(response)
            if pause is None:
                return response
            response.close()
            if self._tell_when_busy:
                raise PrefectBusy
            time.sleep(pause)

    def close(self) -> None:
        self.inner.close()


class _AsyncRetryingTransport(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport, shortest: float, longest: float) -> None:
        self.inner = inner
        self._pauses = partial(Backoff, shortest, longest)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        pauses = self._pauses()
        while True:
            response = await self.inner.handle_async_request(request)
            pause = pauses.after(response)
            if pause is None:
                return response
            await response.aclose()
            await asyncio.sleep(pause)

    async def aclose(self) -> None:
        await self.inner.aclose()


class Backoff:
    """How long to wait between tries of one request, in seconds: `shortest` the first time, `longest` in the end."""

    def __init__(self, shortest: float = SHORTEST, longest: float = LONGEST) -> None:
        self._end = time.monotonic() + PATIENCE
        self._next = shortest
        self._longest = longest

    def after(self, response: httpx.Response) -> float | None:
        """Seconds to wait before asking again; None when the answer stands."""
        busy = response.status_code == httpx.codes.SERVICE_UNAVAILABLE and "retry-after" not in response.headers
        return self.next() if busy and not self.are_over() else None

    def are_over(self) -> bool:
        """Whether it has lasted so long that it is no lock of a moment."""
        return time.monotonic() > self._end

    def next(self) -> float:
        """Seconds to wait before asking again, however long it has lasted."""
        pause = self._next * random.uniform(0.5, 1)  # noqa: S311  jitter, no secret
        self._next = min(self._longest, self._next * 1.5)
        return pause
