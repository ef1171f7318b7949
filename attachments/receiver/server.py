"""Runs the receiver under uvicorn until SIGTERM."""

import asyncio
import logging
import resource
import signal
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import uvicorn
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from uvicorn.protocols.http.h11_impl import H11Protocol

from attachments.receiver.answers import Answers
from attachments.receiver.app import build_app
from attachments.receiver.dispatcher import Dispatcher
from attachments.receiver.inbox import LOCK_PATIENCE, Inbox
from attachments.receiver.metrics import Metrics
from attachments.receiver.prefect_api import prefect_flow_runs
from attachments.receiver.tls import TlsListener

logger = logging.getLogger("attachments.receiver")
DRAIN = 8  # seconds that open connections get on SIGTERM; Docker kills after 10
IDLE_CONNECTION = 10.0  # seconds; a connection without a request for twice as long at most is closed


class CannotServe(Exception):
    """The receiver cannot start as it is set up; the text says what to change."""


@dataclass(frozen=True)
class ReceiverSettings:
    """What `attachments receive` is told. No secrets means: let everybody in."""

    inbox: Path
    secrets: Sequence[str]
    host: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    certificate_key: Path | None = None
    answers: Answers = field(default_factory=Answers)
    list_all: bool = False
    """Hand on messages whose webhook denies attachments as well."""


def serve(settings: ReceiverSettings) -> int | None:
    """Serve until SIGTERM or SIGINT, and return which of them came.

    Raises `CannotServe`, and `InboxUnavailable` when the inbox cannot be opened.
    """
    return asyncio.run(_serve(settings))


async def _serve(settings: ReceiverSettings) -> int | None:
    _check_prefect_url()
    _allow_many_connections()
    with _listening(settings) as listener:
        inbox = Inbox(settings.inbox, lock_patience=LOCK_PATIENCE)
        try:
            # The dispatcher has its own back-off; Prefect's client would sit on a failing call for a minute.
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                stopped_by = await _run(settings, listener, inbox)
        finally:
            inbox.close()
    logger.info("Stopped. What waits in the inbox is dispatched after the next start.")
    return stopped_by


async def _run(settings: ReceiverSettings, listener: socket.socket, inbox: Inbox) -> int | None:
    async with prefect_flow_runs() as flow_runs:
        metrics = Metrics()
        dispatcher = Dispatcher(inbox, flow_runs, metrics)
        app = build_app(inbox, dispatcher, metrics, settings.secrets, settings.answers, list_all=settings.list_all)
        server = _Server(_configuration(settings, app))
        await server.serve(sockets=[listener])
        return server.stopped_by


def _configuration(settings: ReceiverSettings, app: Any) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=_Patient,
        ws="none",  # a request to upgrade is then one like any other, and needs the secret
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=DRAIN,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.certificate_key,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise CannotServe(
            f"The certificate {settings.certificate} and its key cannot be read ({error.strerror or error}). "
            "Both must be PEM files that belong together."
        ) from None
    return config


@contextmanager
def _listening(settings: ReceiverSettings) -> Iterator[socket.socket]:
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, address = found[0]
            # With the protocol named, asyncio knows that it is TCP and sends small answers at once (TCP_NODELAY).
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            raise CannotServe(
                f"Cannot listen on {settings.host} port {settings.port} ({error.strerror or error}). "
                "Say another --host or --port, or end what listens there."
            ) from None
        yield listener


def _check_prefect_url() -> None:
    url = PREFECT_API_URL.value()
    if not url:  # Prefect would start a server of its own, which nobody else looks at
        raise CannotServe("PREFECT_API_URL is not set. Set it to your server's, such as http://127.0.0.1:4200/api.")
    try:
        scheme = httpx.URL(url).scheme
    except (httpx.InvalidURL, ValueError):
        scheme = ""
    if scheme not in ("http", "https"):
        raise CannotServe("PREFECT_API_URL is no URL. It looks like http://127.0.0.1:4200/api.")


def _allow_many_connections() -> None:
    """Idle connections of strangers must not use up the few hundred files that some systems grant by default."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS grants less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Server(uvicorn.Server):
    """Says where it listens once it does, and takes SIGTERM for a wish, not for its death."""

    stopped_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.config.ssl is None:
            await super().startup(sockets)
        else:
            await super().startup([])
            self._listen_with_tls(self.config.ssl, sockets or [])
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.is_ssl else "http"
        address = f"[{host}]" if ":" in host else host
        logger.info("Listening on %s://%s:%d/webhooks/default", scheme, address, port)

    def _listen_with_tls(self, context: ssl.SSLContext, sockets: list[socket.socket]) -> None:
        def make_protocol() -> asyncio.Protocol:
            return _Patient(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

        for listener in sockets:
            listener.listen(self.config.backlog)
            self.servers.append(cast("asyncio.Server", TlsListener(listener, context, make_protocol)))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without uvicorn's raising the signal again at the end: who stopped in good order has no traceback."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        yield

    def _stop(self, number: int) -> None:
        self.stopped_by = number
        self.handle_exit(number, None)


class _Patient(H11Protocol):
    """Closes connections on which no request comes; uvicorn itself waits for ever for the first one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._at_last_look: object = None
        self._look = self.loop.call_later(IDLE_CONNECTION, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        super().connection_lost(exc)

    def _close_if_idle(self) -> None:
        """Idle means: at two looks no request was under way, and none in between."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._at_last_look is self.cycle:
            self.transport.abort()
            return
        self._at_last_look = self.cycle if is_idle else self
        self._look = self.loop.call_later(IDLE_CONNECTION, self._close_if_idle)

    def _unsupported_upgrade_warning(self) -> None:
        """No log line: any stranger can make as many as it likes."""
