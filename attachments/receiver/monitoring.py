"""The pages for monitors: `/health`, `/ready` and `/metrics`, which need no secret.

Behind a proxy that forwards only `/webhooks/`, the webhooks' own listener serves these pages. A receiver that serves
HTTPS itself is reachable from outside, so it serves `/ready` and `/metrics` on a separate listener.
"""

import asyncio
import logging

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from attachments.emailgistics import envelope
from attachments.receiver.inbox import Depth, Inbox, InboxUnavailable
from attachments.receiver.limited_log import LimitedLog
from attachments.receiver.metrics import Metrics

DEFAULT_MONITORING_ADDRESS = ("127.0.0.1", 8081)  # for a receiver that serves HTTPS
MONITORING_PATHS = ("/health", "/ready", "/metrics")


class Monitoring:
    """The handlers of the three pages."""

    def __init__(self, inbox: Inbox, metrics: Metrics, log: LimitedLog, inbox_timeout: float) -> None:
        self._inbox = inbox
        self._metrics = metrics
        self._log = log
        self._ready_patience = inbox_timeout

    def routes(self, *, is_public: bool) -> list[Route]:
        """Routes of the three pages. With `is_public`, only `/health` responds, which costs and reveals nothing."""
        health = Route("/health", self.health)
        if is_public:
            return [health, Route("/ready", not_public), Route("/metrics", not_public)]
        return [health, Route("/ready", self.ready), Route("/metrics", self.metrics)]

    async def health(self, _: Request) -> Response:
        """Report that the process is alive."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """Report whether a delivery would get a 200 now."""
        try:
            async with asyncio.timeout(self._ready_patience):
                await self._inbox.check_writable()
                depth = await self._inbox.depth()
        except InboxUnavailable as error:
            return JSONResponse({"status": "error", "message": str(error)}, 503)
        except TimeoutError:
            return JSONResponse({"status": "error", "message": "The inbox did not complete a write in time."}, 503)
        return JSONResponse({"status": "ok", "inbox": depth.entries, "oldest_seconds": round(depth.oldest_seconds, 1)})

    async def metrics(self, _: Request) -> Response:
        """Counters and gauges for Prometheus."""
        depth = await self._depth()
        if depth is not None:
            self._metrics.depth.set(depth.entries)
            self._metrics.oldest.set(depth.oldest_seconds)
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _depth(self) -> Depth | None:
        try:
            async with asyncio.timeout(self._ready_patience):
                return await self._inbox.depth()
        except (InboxUnavailable, TimeoutError):
            self._log.log(logging.ERROR, "The inbox's depth cannot be read; its gauges keep their last values.")
            return None


def build_monitoring_app(monitoring: Monitoring) -> Starlette:
    """A separate ASGI app of the three pages."""
    return Starlette(routes=monitoring.routes(is_public=False), exception_handlers={HTTPException: _http_error})


async def not_public(_: Request) -> Response:
    """The response on a listener that is reachable from outside."""
    message = "This page is not public. The receiver serves it at the address of --monitoring-address."
    return JSONResponse(envelope("error", message), 404)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  the handler is registered for this type alone
    return JSONResponse(
        envelope("error", "Only GET of /health, /ready and /metrics is served here."), error.status_code
    )
