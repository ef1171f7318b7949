"""The ASGI app that Emailgistics posts to.

Its answer depends on the local disk alone: authenticate, parse, append to the inbox, answer. The envelope and
the rules for what is tried again are the vendor's (webhooks/response-envelope, webhooks/delivery).
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
from attachments.foundation.terminal_text import printable
from attachments.receiver.dispatcher import Dispatcher
from attachments.receiver.inbox import Inbox, InboxUnavailable
from attachments.receiver.limited_log import LimitedLog
from attachments.receiver.limits import Limits
from attachments.receiver.metrics import Metrics
from attachments.receiver.monitoring import PATHS, Monitoring
from attachments.receiver.prefect_api import FLOW
from attachments.receiver.protocol import AUTHENTICATED
from attachments.receiver.responses import WebhookResponse, WebhookResponses
from attachments.receiver.run_waiter import Waiting
from attachments.receiver.safe_traceback import where
from attachments.storage import message_key

logger = logging.getLogger("attachments.receiver")

MAX_BODY = 1024 * 1024  # bytes
READING = ("GET", "HEAD")
JSON_TYPES = ("application/json", "text/json")
REFUSED = "Requests without a valid secret were refused. Compare the webhook's secret in Admin with ours."
ABSOLUTE_FORM = re.compile(r"https?://[^/]*/?", re.ASCII | re.IGNORECASE)


class _Refused(Exception):
    """An answer that ends the delivery; `status` is what the sender sees."""

    def __init__(self, status: int, message: str, outcome: str) -> None:
        super().__init__(message)
        self.status = status
        self.outcome = outcome


def build_app(
    inbox: Inbox,
    dispatcher: Dispatcher,
    metrics: Metrics,
    secrets: Sequence[str],
    answers: WebhookResponses | None = None,
    *,
    list_all: bool = False,
    log: LimitedLog | None = None,
    monitoring: Sequence[Route] | None = None,
    limits: Limits | None = None,
) -> Starlette:
    """The receiver as an ASGI app. An empty `secrets` lets everybody in (`--insecure`).

    With `list_all`, also a message whose webhook denies attachments is handed on. `monitoring`: the pages for monitors,
    by default all of them.
    """
    limits = limits or Limits()
    log = log or LimitedLog(logger, limits.log_interval)
    if monitoring is None:
        monitoring = Monitoring(inbox, metrics, log, limits.ready_patience).routes(is_public=False)
    receiver = _Receiver(inbox, dispatcher, metrics, answers or WebhookResponses(), limits, list_all=list_all)

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
            Middleware(_Contained, log=log),
            Middleware(_NormalizedPath),
            Middleware(_Authenticated, secrets=tuple(secrets), metrics=metrics, log=log),
        ],
        exception_handlers={HTTPException: _http_error, _Refused: receiver.refused},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a webhook sender does not follow a redirect
    return app


class _Contained:
    """What ends a request from within (a defect of ours, a stop) gets the vendor's envelope too.

    A defect is logged without its text, which may quote the delivery.
    """

    def __init__(self, app: ASGIApp, log: LimitedLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        refusal = None
        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            refusal = _envelope(503, "error", "The receiver is stopping. Please try again.")
        except Exception as error:  # noqa: BLE001  logged without its text
            self._log.log(logging.CRITICAL, f"A request met a defect of ours. Please report this: {where(error)}")
            refusal = _envelope(500, "error", "The receiver met an error of its own. Please try again.")
        if refusal is not None and not answered:
            await refusal(scope, receive, send)


class _NormalizedPath:
    """Every legal spelling of a path is that path: a sender gives up for good at a 404 (webhooks/delivery).

    The target may be in absolute form, which servers must accept (RFC 9112, section 3.2.2). Slashes that are doubled
    or at the end, as they come of joined URLs, mean nothing here. The server has undone percent-encoding already.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": _normalized(scope["path"])}
        await self._app(scope, receive, send)


class _Authenticated:
    """401 before anything else is looked at, but for the three pages that monitors read."""

    def __init__(self, app: ASGIApp, secrets: Sequence[str], metrics: Metrics, log: LimitedLog) -> None:
        self._app = app
        self._secrets = secrets
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        if self._is_allowed(scope):
            scope.get("state", {}).get(AUTHENTICATED, lambda: None)()
            await self._app(scope, receive, send)
            return
        self._metrics.deliveries.labels("unauthorized").inc()
        self._log.log(logging.WARNING, REFUSED)
        refusal = _envelope(401, "error", "The secret is missing or wrong. Set the receiver's secret in Admin.")
        refusal.headers["WWW-Authenticate"] = "Bearer"
        await refusal(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if not self._secrets:
            return True
        header = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        if header is None:
            return authenticate(None, self._secrets)
        # RFC 9110 leaves the encoding of a header open; both that occur are tried, whatever the first one says.
        readings = [header.decode("latin-1"), header.decode("utf-8", "surrogateescape")]
        return any([authenticate(reading, self._secrets) for reading in readings])  # noqa: C419  no early exit


class _Receiver:
    def __init__(
        self,
        inbox: Inbox,
        dispatcher: Dispatcher,
        metrics: Metrics,
        answers: WebhookResponses,
        limits: Limits,
        *,
        list_all: bool,
    ) -> None:
        self._inbox = inbox
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._answers = answers
        self._limits = limits
        self._list_all = list_all

    async def deliver(self, request: Request) -> Response:
        """One webhook delivery."""
        deployment = await self._known_deployment(request.path_params["deployment"])
        delivery = _parsed(await _body(request, self._limits.body_patience))
        if not (delivery.is_received if self._list_all else delivery.wants_download):
            return self._answer("nothing-to-do", "Nothing to do: no attachments to download.")
        answer = self._answers.of(deployment)
        if not answer.wait:
            new = await self._keep(deployment, delivery)
            told = (
                ("accepted", f"Accepted: the attachments go through {FLOW}/{deployment}.")
                if new
                else ("duplicate", "Accepted before: the message is waiting for its download already.")
            )
            return self._answer(*told, answer.actions)
        with self._dispatcher.follower.expecting(deployment, message_key(delivery.message_id)) as waiting:
            await self._keep(deployment, delivery)
            return await self._ending(waiting, answer)

    async def _keep(self, deployment: str, delivery: Delivery) -> bool:
        """Put a delivery into the inbox. False: the same one waits already."""
        try:
            new = await self._inbox.append(deployment, delivery)
        except InboxUnavailable as error:
            logger.critical(
                "A delivery was refused with 503: %s Free or mend the disk; Emailgistics tries 3 times.", error
            )
            raise _Refused(503, "The inbox cannot be written. Please try again.", "inbox-unavailable") from None
        self._dispatcher.wake()
        return new

    async def _ending(self, waiting: Waiting, answer: WebhookResponse) -> Response:
        """Hold the answer until the run has ended, for as long as was said. The delivery is safe all the same."""
        try:
            async with asyncio.timeout(answer.wait):
                ending = await waiting
        except TimeoutError:
            return self._answer("still-downloading", "Still downloading.")
        if ending.kind == "stored":
            return self._answer("stored", f"Saved {ending.stored} file(s).", answer.actions)
        if ending.kind == "failed-for-now":
            raise _Refused(503, "The attachments could not be saved yet. Please try again.", "failed-for-now")
        self._metrics.deliveries.labels("failed").inc()
        message = "The attachments could not be saved, and trying again would not help. The run in Prefect says why."
        return _envelope(200, "error", message)

    async def refused(self, _: Request, refusal: Exception) -> Response:
        """Turn a refusal into the vendor's envelope."""
        assert isinstance(refusal, _Refused)  # noqa: S101  the handler is registered for this type alone
        self._metrics.deliveries.labels(refusal.outcome).inc()
        return _envelope(refusal.status, "error", str(refusal))

    async def _known_deployment(self, name: str) -> str:
        if name == "default" or await self._dispatcher.knows(name):
            return name
        if not self._dispatcher.synced:
            raise _Refused(503, "The list of deployments is not known yet. Please try again.", "not-synced")
        message = f"Prefect has no deployment {FLOW}/{printable(name)[1:-1]}. Deploy it, or correct the webhook's URL."
        raise _Refused(404, message, "unknown-deployment")

    def _answer(self, outcome: str, message: str, actions: Sequence[Action] = ()) -> Response:
        self._metrics.deliveries.labels(outcome).inc()
        return JSONResponse(envelope("success", message, actions))


def _normalized(path: str) -> str:
    """The path of a request target in origin form or absolute form; a webhook's with single slashes."""
    absolute = ABSOLUTE_FORM.match(path)
    if absolute:
        path = f"/{path[absolute.end() :]}"
    parts = [part for part in path.split("/") if part]
    # Those alone: a proxy that keeps strangers from /metrics may let //metrics through.
    return f"/{'/'.join(parts)}" if path.startswith("/") and parts[:1] == ["webhooks"] else path


def _is_open(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["path"] in PATHS and scope["method"] in READING


def _parsed(body: bytes) -> Delivery:
    """The delivery in a request's body; 400 when there is none."""
    try:
        return parse_delivery(body)
    except InvalidDelivery as error:
        raise _Refused(400, str(error), "invalid") from None


async def _body(request: Request, patience: float) -> bytes:
    """The whole body, at most `MAX_BODY` bytes of JSON."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type and content_type not in JSON_TYPES and not content_type.endswith("+json"):
        raise _Refused(415, "Send the webhook as application/json.", "not-json")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise _Refused(415, "Send the webhook without a Content-Encoding.", "not-json")
    too_large = _Refused(413, "The payload is over 1 MiB.", "too-large")
    if int(request.headers.get("content-length", 0)) > MAX_BODY:  # the server has checked that it is a number
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(patience):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise too_large
    except TimeoutError:  # a 4xx would end it for good
        raise _Refused(503, "The payload did not arrive in time. Please try again.", "slow") from None
    except ClientDisconnect:
        raise _Refused(503, "The payload is cut short. Please try again.", "cut") from None
    return bytes(body)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  the handler is registered for this type alone
    messages = {
        404: "There is nothing at this path; webhooks go to /webhooks/default.",
        405: "This path does not take this method; webhooks come by POST to /webhooks/default.",
    }
    answer = _envelope(error.status_code, "error", messages.get(error.status_code, error.detail))
    answer.headers.update(error.headers or {})
    return answer


def _envelope(status: int, word: str, message: str) -> JSONResponse:
    return JSONResponse(envelope("error" if word == "error" else "success", message), status)
