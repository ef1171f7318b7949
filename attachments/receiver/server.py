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
from attachments.receiver.flow_runs import prefect_flow_runs
from attachments.receiver.inbox import Inbox
from attachments.receiver.limited_log import LimitedLog, LimitedServerLog
from attachments.receiver.limits import ReceiverLimits
from attachments.receiver.listener import Listener
from attachments.receiver.metrics import Metrics
from attachments.receiver.monitoring import DEFAULT_MONITORING_ADDRESS, Monitoring, build_monitoring_app
from attachments.receiver.protocol import ReceiverProtocol, request_log, server_log
from attachments.receiver.responses import WebhookResponses
from attachments.receiver.safe_traceback import safe_traceback
from attachments.receiver.unauthenticated import UnauthenticatedConnections

logger = logging.getLogger("attachments.receiver")


class CannotServe(Exception):
    """The receiver cannot start with these settings; the text says what to change."""


@dataclass(frozen=True)
class ReceiverSettings:
    """The options of `attachments receive`. Without secrets, every request is accepted."""

    inbox: Path
    secrets: Sequence[str]
    host: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    certificate_key: Path | None = None
    monitoring: tuple[str, int] | None = None
    """Host and port of a separate listener for monitors. Default: `DEFAULT_MONITORING_ADDRESS` with a certificate, else
    none."""
    responses: WebhookResponses = field(default_factory=WebhookResponses)
    list_all: bool = False
    """Also pass on messages whose webhook says that they have no attachments."""
    limits: ReceiverLimits = field(default_factory=ReceiverLimits)


def serve(settings: ReceiverSettings) -> int | None:
    """Serve until SIGTERM or SIGINT, and return the signal's number.

    Raises `CannotServe`, and `InboxUnavailable` when the inbox cannot be opened.
    """
    return asyncio.run(_serve(settings))


async def _serve(settings: ReceiverSettings) -> int | None:
    _check_prefect_url()
    _allow_many_connections()
    with ExitStack() as stack:
        listener = stack.enter_context(_bound_socket(settings.host, settings.port, "--host or --port"))
        monitoring = settings.monitoring or (DEFAULT_MONITORING_ADDRESS if settings.certificate else None)
        monitor = stack.enter_context(_bound_socket(*monitoring, "--monitoring-address")) if monitoring else None
        limits = settings.limits
        inbox = Inbox(settings.inbox, lock_timeout=limits.lock_timeout, probe_interval=limits.probe_interval)
        try:
            # The dispatcher has its own back-off; Prefect's client would retry a failing call for a minute.
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), _limited_log(limits.log_interval) as log:
                stopped_by = await _run(settings, listener, monitor, inbox, log)
        finally:
            inbox.close()
    logger.info("Stopped. Deliveries that wait in the inbox are dispatched after the next start.")
    return stopped_by


async def _run(
    settings: ReceiverSettings, listener: socket.socket, monitor: socket.socket | None, inbox: Inbox, log: LimitedLog
) -> int | None:
    async with prefect_flow_runs() as flow_runs:
        metrics = Metrics()
        dispatcher = Dispatcher(inbox, flow_runs, metrics, settings.limits)
        monitoring = Monitoring(inbox, metrics, log, settings.limits.inbox_timeout)
        app = build_app(
            inbox,
            dispatcher,
            metrics,
            settings.secrets,
            settings.responses,
            list_all=settings.list_all,
            log=log,
            monitoring=monitoring.routes(is_public=monitor is not None),
            limits=settings.limits,
        )
        server = _Server(_uvicorn_config(settings, app), monitor, build_monitoring_app(monitoring), settings.limits)
        await server.serve(sockets=[listener])
        return server.stopped_by


def _uvicorn_config(settings: ReceiverSettings, app: Any) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",  # an upgrade request is then like any other request, and needs the secret
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=settings.limits.drain_timeout,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.certificate_key,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise CannotServe(
            f"The certificate {settings.certificate} and its key cannot be read ({error.strerror or error}). "
            "Give two PEM files that belong together."
        ) from None
    return config


@contextmanager
def _bound_socket(host: str, port: int, options: str) -> Iterator[socket.socket]:
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, address = found[0]
            # With an explicit protocol, asyncio recognises TCP and sends small responses at once (TCP_NODELAY).
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            raise CannotServe(
                f"Cannot listen on {host} port {port} ({error.strerror or error}). Choose another {options}, or stop "
                "the program that listens there."
            ) from None
        yield listener


@contextmanager
def _limited_log(interval: float) -> Iterator[LimitedLog]:
    """The rate-limited log for whatever unauthenticated clients can cause: for this service, uvicorn and asyncio."""
    log = LimitedLog(logger, interval)
    servers, server_filter = (server_log, request_log, logging.getLogger("asyncio")), LimitedServerLog(log)

    def log_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        log.log(logging.ERROR, f"{_first_line(context)} {safe_traceback(error) if error else ''}".rstrip())

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
    """asyncio's message about an error, without the objects involved."""
    return str(context.get("message", "")).partition("\n")[0]


def _check_prefect_url() -> None:
    url = PREFECT_API_URL.value()
    if not url:  # Prefect would start a temporary server, which no worker uses
        raise CannotServe("PREFECT_API_URL is not set. Set it to your server's API, such as http://127.0.0.1:4200/api.")
    try:
        scheme = httpx.URL(url).scheme
    except (httpx.InvalidURL, ValueError):
        scheme = ""
    if scheme not in ("http", "https"):
        raise CannotServe(
            "PREFECT_API_URL is not a valid URL. Set it to your server's API, such as http://127.0.0.1:4200/api."
        )


def _allow_many_connections() -> None:
    """Raise the limit on open files, so that idle connections cannot use up the few hundred that some systems allow."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS allows less than it reports
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Server(uvicorn.Server):
    """Logs where it listens once it does, and shuts down in order on SIGTERM."""

    stopped_by: int | None = None

    def __init__(
        self, config: uvicorn.Config, monitor: socket.socket | None, monitoring_app: Any, limits: ReceiverLimits
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
        def make_protocol(unauthenticated: UnauthenticatedConnections) -> asyncio.Protocol:
            return ReceiverProtocol(unauthenticated, config, self.server_state, self.lifespan.state, self._limits)

        self.servers.append(cast("asyncio.Server", Listener(listener, config.ssl, make_protocol, self._limits)))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but does not raise the signal again at the end, which would cause a traceback."""
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
