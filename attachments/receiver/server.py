"""Runs the receiver under uvicorn until SIGTERM."""

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import uvicorn
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from attachments.receiver.app import build_app
from attachments.receiver.dispatcher import Dispatcher
from attachments.receiver.inbox import Inbox
from attachments.receiver.limited_log import LimitedLog, LimitedServerLog
from attachments.receiver.limits import Limits
from attachments.receiver.listener import Listener
from attachments.receiver.metrics import Metrics
from attachments.receiver.monitoring import MONITORING_ADDRESS, Monitoring, build_monitoring_app
from attachments.receiver.prefect_api import prefect_flow_runs
from attachments.receiver.protocol import ReceiverProtocol, request_log, server_log
from attachments.receiver.responses import WebhookResponses
from attachments.receiver.safe_traceback import where
from attachments.receiver.strangers import Strangers

logger = logging.getLogger("attachments.receiver")


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
    monitoring: tuple[str, int] | None = None
    """Host and port of a listener for monitors alone; None: with a certificate `MONITORING_ADDRESS`, else none."""
    answers: WebhookResponses = field(default_factory=WebhookResponses)
    list_all: bool = False
    """Hand on messages whose webhook denies attachments as well."""
    limits: Limits = field(default_factory=Limits)


def serve(settings: ReceiverSettings) -> int | None:
    """Serve until SIGTERM or SIGINT, and return which of them came.

    Raises `CannotServe`, and `InboxUnavailable` when the inbox cannot be opened.
    """
    return asyncio.run(_serve(settings))


async def _serve(settings: ReceiverSettings) -> int | None:
    _check_prefect_url()
    _allow_many_connections()
    with ExitStack() as stack:
        listener = stack.enter_context(_listening(settings.host, settings.port, "--host or --port"))
        monitoring = settings.monitoring or (MONITORING_ADDRESS if settings.certificate else None)
        monitor = stack.enter_context(_listening(*monitoring, "--monitoring-address")) if monitoring else None
        limits = settings.limits
        inbox = Inbox(settings.inbox, lock_patience=limits.lock_patience, probe_interval=limits.probe_interval)
        try:
            # The dispatcher has its own back-off; Prefect's client would sit on a failing call for a minute.
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), _limited_log(limits.log_interval) as log:
                stopped_by = await _run(settings, listener, monitor, inbox, log)
        finally:
            inbox.close()
    logger.info("Stopped. What waits in the inbox is dispatched after the next start.")
    return stopped_by


async def _run(
    settings: ReceiverSettings, listener: socket.socket, monitor: socket.socket | None, inbox: Inbox, log: LimitedLog
) -> int | None:
    async with prefect_flow_runs() as flow_runs:
        metrics = Metrics()
        dispatcher = Dispatcher(inbox, flow_runs, metrics, settings.limits)
        monitoring = Monitoring(inbox, metrics, log, settings.limits.ready_patience)
        app = build_app(
            inbox,
            dispatcher,
            metrics,
            settings.secrets,
            settings.answers,
            list_all=settings.list_all,
            log=log,
            monitoring=monitoring.routes(is_public=monitor is not None),
            limits=settings.limits,
        )
        server = _Server(_configuration(settings, app), monitor, build_monitoring_app(monitoring), settings.limits)
        await server.serve(sockets=[listener])
        return server.stopped_by


def _configuration(settings: ReceiverSettings, app: Any) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",  # a request to upgrade is then one like any other, and needs the secret
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=settings.limits.drain,
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
def _listening(host: str, port: int, options: str) -> Iterator[socket.socket]:
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, address = found[0]
            # With the protocol named, asyncio knows that it is TCP and sends small answers at once (TCP_NODELAY).
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            raise CannotServe(
                f"Cannot listen on {host} port {port} ({error.strerror or error}). Say another {options}, or end what "
                "listens there."
            ) from None
        yield listener


@contextmanager
def _limited_log(interval: float) -> Iterator[LimitedLog]:
    """The log of what strangers cause: for us, for uvicorn, and for asyncio, which would write tracebacks."""
    log = LimitedLog(logger, interval)
    servers, server_filter = (server_log, request_log, logging.getLogger("asyncio")), LimitedServerLog(log)

    def log_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        log.log(logging.ERROR, f"{_first_line(context)} {where(error) if error else ''}".rstrip())

    asyncio.get_running_loop().set_exception_handler(log_error)
    for server in servers:
        server.addFilter(server_filter)
    try:
        yield log
    finally:
        for server in servers:
            server.removeFilter(server_filter)
        log.flush()


def _first_line(context: dict[str, Any]) -> str:
    """What asyncio says of an error, without the objects that it was about."""
    return str(context.get("message", "")).partition("\n")[0]


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

    def __init__(
        self, config: uvicorn.Config, monitor: socket.socket | None, monitoring_app: Any, limits: Limits
    ) -> None:
        super().__init__(config)
        self._limits = limits
        self._monitor = monitor
        self._monitoring = uvicorn.Config(
            monitoring_app, http="h11", ws="none", access_log=False, server_header=False, log_config=None
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        for listener in sockets or []:
            self._listen(listener, self.config)
            scheme = "https" if self.config.is_ssl else "http"
            logger.info("Listening on %s://%s/webhooks/default", scheme, _address(listener))
        if self._monitor is not None:
            self._monitoring.load()
            self._listen(self._monitor, self._monitoring)
            logger.info("Listening on http://%s/ready and /metrics", _address(self._monitor))

    def _listen(self, listener: socket.socket, config: uvicorn.Config) -> None:
        def make_protocol(strangers: Strangers) -> asyncio.Protocol:
            return ReceiverProtocol(strangers, config, self.server_state, self.lifespan.state, self._limits)

        self.servers.append(cast("asyncio.Server", Listener(listener, config.ssl, make_protocol, self._limits)))

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


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
