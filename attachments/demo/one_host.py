"""All parts on one host, for `attachments up`: Prefect's server, set-up, worker and receiver, and the sandbox."""

import errno
import re
import secrets
import shlex
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from attachments.demo import services
from attachments.demo.data_folder import REAL, SANDBOX, DataFolder, data_folder
from attachments.demo.merged_log import Format, MergedLog
from attachments.demo.processes import LOOPBACK, free_port
from attachments.demo.stop_request import Stop, stop_on_signals
from attachments.demo.supervisor import Part, Supervisor

SERVER_STOP_TIMEOUT = 20.0  # seconds for Prefect's server to end; an open page of its UI would delay it for ever
PORT_TIMEOUT = 5.0  # seconds for a port to become free; the children of a killed command end within one
SANDBOX_KEY = "sandbox-key"


class CannotStart(Exception):
    """Something is missing or in the way; the text says what to do."""


@dataclass(frozen=True)
class Settings:
    """The settings of an installation.

    Every part gets `environment`; only the set-up and the receiver get their secrets.
    """

    data: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    setup_secrets: Mapping[str, str] = field(default_factory=dict)
    receiver_secrets: Mapping[str, str] = field(default_factory=dict)
    prefect_password: str | None = None
    """The password of the server that this command starts; None generates one."""
    host: str = LOOPBACK
    port: int = 8080
    prefect_port: int = 4200
    receiver_options: Sequence[str] = ()
    mail: Path | None = None
    """Run against the sandbox, with the mail of this folder."""


def run(settings: Settings, form: Format) -> int | None:
    """Run everything until SIGTERM, SIGINT or SIGHUP, and return which of them came.

    Raises `FolderUnusable`, `CannotStart` and `PartFailed`.
    """
    kind = REAL if settings.mail is None else SANDBOX
    with stop_on_signals() as stop, data_folder(settings.data, kind) as folder:
        log = MergedLog(form)
        try:
            OneHost(settings, folder, log).run(stop)
            log.say("Stopped. Work that waits in the inbox or in Prefect is done after the next start.")
        finally:
            log.close()
        return stop.by


class OneHost:
    """The parts of an installation, and the messages about it."""

    def __init__(self, settings: Settings, folder: DataFolder, log: MergedLog) -> None:
        self._settings = settings
        self._folder = folder
        self._log = log
        self._is_first_start = not folder.set_up.exists()
        self._sandbox_port = free_port() if settings.mail else 0
        self._common, self._setup_secrets, self._receiver_secrets = self._environments()
        self._has_server = "PREFECT_API_URL" not in settings.environment

    def run(self, stop: Stop) -> None:
        """Run all parts until the stop is requested. Raises `CannotStart` and `PartFailed`."""
        self.check_ports()
        self.write_files()
        supervisor = Supervisor(self.parts(), self._log, is_first_start=self._is_first_start)
        supervisor.run(stop, when_ready=self._log_addresses)

    @property
    def _webhook(self) -> str:
        scheme = "https" if "--tls-certificate" in self._settings.receiver_options else "http"
        return f"{scheme}://{self._settings.host}:{self._settings.port}/webhooks/default"

    @property
    def _api_url(self) -> str:
        return f"{services.server_address(self._settings.prefect_port)}/api"

    def _environments(self) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """The environment of every part, and the secrets of the set-up and the receiver."""
        settings, folder = self._settings, self._folder
        common = {"ATTACHMENTS_INBOX": str(folder.inbox), **settings.environment}
        if "PREFECT_API_URL" not in settings.environment:
            common = {
                **services.server_settings(settings.prefect_port),
                **common,
                "PREFECT_API_URL": self._api_url,
                "PREFECT_HOME": str(folder.prefect_home),
                "PREFECT_PROFILES_PATH": str(folder.profiles),
            }
        if settings.mail is None:
            return common, dict(settings.setup_secrets), dict(settings.receiver_secrets)
        common |= {
            "EMAILGISTICS_BASE_URL": f"http://{LOOPBACK}:{self._sandbox_port}/api/v1",
            "ATTACHMENTS_URL": (folder.path / "attachments").as_uri(),
            "ATTACHMENTS_IDS_ALLOWED": (folder.path / "ids").as_uri(),
        }
        return (
            common,
            {"EMAILGISTICS_API_KEY": SANDBOX_KEY},
            {"EMAILGISTICS_WEBHOOK_SECRET": secrets.token_hex(16)},
        )

    def check_ports(self, patience: float = PORT_TIMEOUT) -> None:
        """Raises `CannotStart` when a port is still taken after so many seconds, before anything is started."""
        settings = self._settings
        wanted = [(settings.host, settings.port, "--port")]
        if self._has_server:
            wanted.append((LOOPBACK, settings.prefect_port, "--prefect-port"))
        end = time.monotonic() + patience
        for host, port, option in wanted:
            while error := _bind_error(host, port):
                is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
                if is_taken and time.monotonic() < end:
                    time.sleep(0.1)
                    continue
                reason = getattr(error, "strerror", None) or "it is not a valid address"
                remedy = "or end the program that listens there" if is_taken else "or correct --host"
                raise CannotStart(
                    f"Cannot listen on {host} port {port} ({reason}). Choose another port with {option}, {remedy}."
                )

    def write_files(self) -> None:
        """Write Prefect's password, and how other commands reach this installation."""
        exported = {"ATTACHMENTS_INBOX": self._common["ATTACHMENTS_INBOX"]}
        if self._has_server:
            self._folder.write_profile(self._api_url, self._settings.prefect_password or self._folder.password())
            exported["PREFECT_HOME"] = str(self._folder.prefect_home)
        if self._settings.mail is not None:
            (self._folder.path / "ids").mkdir(mode=0o700, exist_ok=True)
            names = ("EMAILGISTICS_BASE_URL", "ATTACHMENTS_URL")
            exported |= {name: self._common[name] for name in names} | self._setup_secrets | self._receiver_secrets
        self._folder.write_environment(exported)

    def parts(self) -> list[Part]:
        """The parts in the order of their start. They stop in reverse, because the worker needs Prefect while it
        drains."""
        settings, common = self._settings, self._common
        sandbox, server = [], []
        receiver_environment = {**common, **self._receiver_secrets}
        if settings.mail is not None:
            log, port = self._log_of("sandbox"), self._sandbox_port
            sandbox = [Part(services.sandbox(receiver_environment, log, port, settings.mail, self._webhook))]
        if self._has_server:
            process = services.prefect_server(common, self._log_of("Prefect server"), settings.prefect_port)
            server = [Part(process, patience=SERVER_STOP_TIMEOUT)]
        process = services.setup({**common, **self._setup_secrets}, self._log_of("setup"))
        setup = Part(process, needs=(*sandbox, *server), once=True)
        # A receiver that does not know the deployments yet responds 404, which ends a delivery. On later starts it
        # starts at once, because it accepts webhooks without Prefect.
        process = services.worker(common, self._log_of("worker"))
        # The sandbox has another port at each start, which the worker finds in the block.
        needs_setup = self._is_first_start or settings.mail is not None
        worker = Part(process, needs=(setup,) if needs_setup else tuple(server))
        log, options = self._log_of("receiver"), settings.receiver_options
        process = services.receiver(receiver_environment, log, settings.host, settings.port, *options)
        receiver = Part(process, needs=(setup,) if self._is_first_start else ())
        parts = [*sandbox, *server, setup, worker, receiver]
        for part in parts:
            part.process.inherited_descriptors = (self._folder.lock,)  # the lock is released once no part is running
        return parts

    def _log_of(self, part: str) -> Callable[[str], None]:
        return partial(self._log.add, part)

    def _log_addresses(self) -> None:
        """Say where everything is."""
        self._folder.set_up.touch(mode=0o600)
        folder, settings = self._folder, self._settings
        if not self._has_server:
            log_in = ""
        elif settings.prefect_password:
            log_in = " (log in with the text of PREFECT_API_AUTH_STRING)"
        else:
            log_in = f" (log in with the text in {folder.password_file})"
        url = settings.environment.get("PREFECT_API_URL", self._api_url)
        self._log.say("Everything is running.")
        self._log.say(f"Prefect UI: {url.removesuffix('/api')}{log_in}")
        self._log.say(f"Webhook:    {self._webhook}")
        self._log.say(f"Store:      {_without_credentials(self._common['ATTACHMENTS_URL'])}")
        self._log.say(f"Data:       {folder.path}")
        variables = shlex.quote(str(folder.environment_file))
        self._log.say(f"For other commands, such as `attachments status`: set -a; . {variables}; set +a")
        self._log.say("Ctrl-C stops everything; a second one does not wait for downloads.")


def _without_credentials(url: str) -> str:
    return re.sub(r"//[^/]*@|\?.*", lambda found: "//" if found[0].startswith("//") else "", url)


def _bind_error(host: str, port: int) -> OSError | UnicodeError | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: a part of the host's name is too long for one
        return error
    return None
