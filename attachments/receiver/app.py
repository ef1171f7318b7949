"""The ASGI app that Emailgistics posts to.

The response depends only on the local disk: authenticate, parse, append to the inbox, respond. The envelope and the
rules for redelivery are the vendor's (webhooks/response-envelope, webhooks/delivery).
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attachments.emailgistics import Action, Delivery, InvalidDelivery, authenticate, envelope, parse_delivery
from attachments.foundation.terminal_text import quoted
from attachments.receiver.dispatcher import Dispatcher
from attachments.receiver.inbox import Inbox, InboxUnavailable
from attachments.receiver.limited_log import LimitedLog
from attachments.receiver.limits import ReceiverLimits
from attachments.receiver.metrics import Metrics
from attachments.receiver.monitoring import MONITORING_PATHS, Monitoring
from attachments.receiver.protocol import AUTHENTICATED
from attachments.receiver.responses import WebhookResponse, WebhookResponses
from attachments.receiver.run_waiter import RunFuture
from attachments.receiver.safe_traceback import safe_traceback
from attachments.runs.download_runs import FLOW
from attachments.storage import message_key

logger = logging.getLogger("attachments.receiver")

MAX_BODY = 1024 * 1024  # bytes
READ_METHODS = ("GET", "HEAD")
JSON_TYPES = ("application/json", "text/json")
REFUSED_LOG = "Requests without a valid secret were refused. Compare the webhook's secret in Admin with the receiver's."
ABSOLUTE_FORM = re.compile(r"https?://[^/]*/?", re.ASCII | re.IGNORECASE)


class _Rejection(Exception):
    """Ends a delivery with an error response; `status` is its HTTP status, `outcome` the metric's label."""

    def __init__(self, status: int, message: str, outcome: str) -> None:
        super().__init__(message)
        self.status = status
        self.outcome = outcome


def build_app(
    inbox: Inbox,
    dispatcher: Dispatcher,
    metrics: Metrics,
    secrets: Sequence[str],
    responses: WebhookResponses | None = None,
    *,
    list_all: bool = False,
    log: LimitedLog | None = None,
    monitoring: Sequence[Route] | None = None,
    limits: ReceiverLimits | None = None,
) -> Starlette:
    """The receiver as an ASGI app. With empty `secrets`, every request is accepted (`--insecure`).

    With `list_all`, messages whose webhook denies attachments are passed on too. `monitoring`: routes of the pages for
    monitors, by default all of them.
    """
    limits = limits or ReceiverLimits()
    log = log or LimitedLog(logger, limits.log_interval)
    if monitoring is None:
        monitoring = Monitoring(inbox, metrics, log, limits.inbox_timeout).routes(is_public=False)
    receiver = _Receiver(inbox, dispatcher, metrics, responses or WebhookResponses(), limits, list_all=list_all)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with dispatcher.running():
            yield

    app = Starlette(
        routes=[
            Route("/webhooks/{deployment}", receiver.deliver, methods=["POST"]),
            *monitoring,
        ],
        middleware=[
            Middleware(_ErrorBoundary, log=log),
            Middleware(_NormalizedPath),
            Middleware(_Authenticated, secrets=tuple(secrets), metrics=metrics, log=log),
        ],
        exception_handlers={HTTPException: _http_error, _Rejection: receiver.rejection_response},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a webhook sender does not follow a redirect
    return app


class _ErrorBoundary:
    """Turns an internal error, or a shutdown during a request, into a response with the vendor's envelope.

    An error is logged without its text, which may quote the delivery.
    """

    def __init__(self, app: ASGIApp, log: LimitedLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_responded = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_responded
            has_responded = True
            await send(message)

        rejection = None
        try:
            await self._app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            rejection = _envelope(503, "error", "The receiver is stopping. Please try again.")
        except Exception as error:  # noqa: BLE001  logged without its text
            self._log.log(
                logging.CRITICAL, f"Internal error while serving a request. Please report this: {safe_traceback(error)}"
            )
            rejection = _envelope(500, "error", "Internal error in the receiver. Please try again.")
        if rejection is not None and not has_responded:
            await rejection(scope, receive, send)


class _NormalizedPath:
    """Normalizes the request's path, because Emailgistics never retries after a 404 (webhooks/delivery).

    The target may be in absolute form, which servers must accept (RFC 9112, section 3.2.2). Doubled and trailing
    slashes, which joined URLs often have, are ignored. The server has already decoded percent-encoding.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": _normalize(scope["path"])}
        await self._app(scope, receive, send)


class _Authenticated:
    """Checks the secret before anything else, except on the pages for monitors; responds 401 if it is wrong."""

    def __init__(self, app: ASGIApp, secrets: Sequence[str], metrics: Metrics, log: LimitedLog) -> None:
        self._app = app
        self._secrets = secrets
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_monitoring(scope):
            await self._app(scope, receive, send)
            return
        if self._is_allowed(scope):
            scope.get("state", {}).get(AUTHENTICATED, lambda: None)()
            await self._app(scope, receive, send)
            return
        self._metrics.deliveries.labels("unauthorized").inc()
        self._log.log(logging.WARNING, REFUSED_LOG)
        rejection = _envelope(401, "error", "The secret is missing or wrong. Set the receiver's secret in Admin.")
        rejection.headers["WWW-Authenticate"] = "Bearer"
        await rejection(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if not self._secrets:
            return True
        header = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        if header is None:
            return authenticate(None, self._secrets)
        # RFC 9110 leaves a header's encoding open. Always try both that occur, so that timing reveals nothing.
        readings = [header.decode("latin-1"), header.decode("utf-8", "surrogateescape")]
        return any([authenticate(reading, self._secrets) for reading in readings])  # noqa: C419  no early exit


class _Receiver:
    def __init__(
        self,
        inbox: Inbox,
        dispatcher: Dispatcher,
        metrics: Metrics,
        responses: WebhookResponses,
        limits: ReceiverLimits,
        *,
        list_all: bool,
    ) -> None:
        self._inbox = inbox
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._responses = responses
        self._limits = limits
        self._list_all = list_all

    async def deliver(self, request: Request) -> Response:
        """One webhook delivery."""
        deployment = await self._known_deployment(request.path_params["deployment"])
        delivery = _parse(await _read_body(request, self._limits.body_timeout))
        if not (delivery.is_received if self._list_all else delivery.wants_download):
            return self._success("nothing-to-do", "Nothing to do: no attachments to download.")
        response = self._responses.of(deployment)
        if not response.wait:
            new = await self._append(deployment, delivery)
            outcome_and_message = (
                ("accepted", f"Accepted: {FLOW}/{deployment} will download the attachments.")
                if new
                else ("duplicate", "Already accepted: the message is waiting for its download.")
            )
            return self._success(*outcome_and_message, response.actions)
        with self._dispatcher.run_waiter.expect_run(deployment, message_key(delivery.message_id)) as waiting:
            await self._append(deployment, delivery)
            return await self._wait_for_run(waiting, response)

    async def _append(self, deployment: str, delivery: Delivery) -> bool:
        """Append a delivery to the inbox. False: one for the same message is already waiting."""
        try:
            new = await self._inbox.append(deployment, delivery)
        except InboxUnavailable as error:
            logger.critical(
                "A delivery was refused with 503: %s Free space or repair the disk; Emailgistics tries 3 times.", error
            )
            raise _Rejection(503, "The inbox cannot be written. Please try again.", "inbox-unavailable") from None
        self._dispatcher.wake()
        return new

    async def _wait_for_run(self, waiting: RunFuture, response: WebhookResponse) -> Response:
        """Respond once the run has ended, or after `response.wait` seconds. The delivery is already in the inbox."""
        try:
            async with asyncio.timeout(response.wait):
                ending = await waiting
        except TimeoutError:
            return self._success("still-downloading", "Still downloading.")
        if ending.kind == "stored":
            return self._success("stored", f"Saved {ending.stored} file(s).", response.actions)
        if ending.kind == "failed-for-now":
            raise _Rejection(503, "The attachments could not be saved yet. Please try again.", "failed-for-now")
        self._metrics.deliveries.labels("failed").inc()
        message = "The attachments could not be saved, and a retry would not help. The run in Prefect says why."
        return _envelope(200, "error", message)

    async def rejection_response(self, _: Request, rejection: Exception) -> Response:
        """Turn a rejection into the vendor's envelope."""
        assert isinstance(rejection, _Rejection)  # noqa: S101  the handler is registered for this type alone
        self._metrics.deliveries.labels(rejection.outcome).inc()
        return _envelope(rejection.status, "error", str(rejection))

    async def _known_deployment(self, name: str) -> str:
        if name == "default" or await self._dispatcher.knows(name):
            return name
        if not self._dispatcher.is_synced:
            raise _Rejection(503, "The list of deployments is not known yet. Please try again.", "not-synced")
        message = f"Prefect has no deployment {FLOW}/{quoted(name)[1:-1]}. Deploy it, or correct the webhook's URL."
        raise _Rejection(404, message, "unknown-deployment")

    def _success(self, outcome: str, message: str, actions: Sequence[Action] = ()) -> Response:
        self._metrics.deliveries.labels(outcome).inc()
        return JSONResponse(envelope("success", message, actions))


def _normalize(path: str) -> str:
    """The path of a request target in origin or absolute form; the path of a webhook gets single slashes."""
    absolute = ABSOLUTE_FORM.match(path)
    if absolute:
        path = f"/{path[absolute.end() :]}"
    parts = [part for part in path.split("/") if part]
    # Webhooks only: a proxy that blocks /metrics may let //metrics through.
    return f"/{'/'.join(parts)}" if path.startswith("/") and parts[:1] == ["webhooks"] else path


def _is_monitoring(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["path"] in MONITORING_PATHS and scope["method"] in READ_METHODS


def _parse(body: bytes) -> Delivery:
    """The delivery in a request's body; 400 if it is invalid."""
    try:
        return parse_delivery(body)
    except InvalidDelivery as error:
        raise _Rejection(400, str(error), "invalid") from None


async def _read_body(request: Request, patience: float) -> bytes:
    """The whole body, at most `MAX_BODY` bytes of JSON."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type and content_type not in JSON_TYPES and not content_type.endswith("+json"):
        raise _Rejection(415, "Send the webhook as application/json.", "not-json")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise _Rejection(415, "Send the webhook without a Content-Encoding.", "not-json")
    too_large = _Rejection(413, "The payload is over 1 MiB.", "too-large")
    if int(request.headers.get("content-length", 0)) > MAX_BODY:  # the server has checked that it is a number
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(patience):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise too_large
    except TimeoutError:  # after a 4xx, Emailgistics would not retry
        raise _Rejection(503, "The payload did not arrive in time. Please try again.", "slow") from None
    except ClientDisconnect:
        raise _Rejection(503, "The payload was cut short. Please try again.", "cut") from None
    return bytes(body)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  the handler is registered for this type alone
    messages = {
        404: "Nothing is served at this path; send webhooks to /webhooks/default.",
        405: "This path does not support this method; send webhooks by POST to /webhooks/default.",
    }
    response = _envelope(error.status_code, "error", messages.get(error.status_code, error.detail))
    response.headers.update(error.headers or {})
    return response


def _envelope(status: int, word: str, message: str) -> JSONResponse:
    return JSONResponse(envelope("error" if word == "error" else "success", message), status)
