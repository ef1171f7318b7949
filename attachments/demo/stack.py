"""The whole product on this machine, without Emailgistics: for the demo, tests and benchmarks."""

import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attachments.demo import services
from attachments.demo.processes import LOOPBACK, NotReady, Process, free_port, process_environment, script_path


@dataclass(frozen=True)
class Stack:
    """Everything between a webhook and a file, without Emailgistics."""

    folder: Path
    prefect: Process
    worker: Process
    receiver: Process
    environment: Mapping[str, str]
    api_url: str
    receiver_url: str
    secret: str
    prefect_password: tuple[str, str]
    """User and password of Prefect's API, for a client's `auth`."""

    @property
    def store(self) -> Path:
        """Where the files go."""
        return self.folder / "attachments"

    @property
    def ids(self) -> Path:
        """Where files of ids may be read from."""
        return self.folder / "ids"

    @property
    def inbox(self) -> Path:
        """The receiver's inbox."""
        return self.folder / "inbox.sqlite"

    @property
    def database(self) -> Path:
        """Prefect's SQLite database."""
        return self.folder / "prefect" / "prefect.db"

    @property
    def processes(self) -> tuple[Process, ...]:
        """The processes in the order of their start."""
        return self.prefect, self.receiver, self.worker

    def webhook_url(self, deployment: str = "default") -> str:
        """Where Emailgistics posts to."""
        return f"{self.receiver_url}/webhooks/{deployment}"

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of the same virtual environment, such as `attachments setup`, against this Prefect."""
        return subprocess.run(  # noqa: S603  our own commands
            [script_path(command[0]), *command[1:]],
            env=process_environment(self.environment),
            capture_output=True,
            text=True,
            check=check,
            timeout=120,
        )


def make_stack(
    folder: Path, base_url: str, api_key: str, *, worker_options: tuple[str, ...] = (), database: str | None = None
) -> Stack:
    """A stack whose files are under `folder`; nothing is started yet. The default `database` is a new SQLite file."""
    (folder / "ids").mkdir(parents=True, exist_ok=True)
    prefect_port, receiver_port = free_port(), free_port()
    api_url = f"{services.server_address(prefect_port)}/api"
    secret = "demo-webhook-secret"  # noqa: S105  for loopback alone
    password = ("demo", secrets.token_hex(12))
    environment = {
        **services.server_settings(prefect_port),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_PROFILES_PATH": str(folder / "prefect" / "profiles.toml"),
        "PREFECT_API_URL": api_url,
        "PREFECT_API_AUTH_STRING": ":".join(password),
        "PREFECT_SERVER_API_AUTH_STRING": ":".join(password),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database
        or f"sqlite+aiosqlite:///{folder / 'prefect' / 'prefect.db'}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "EMAILGISTICS_BASE_URL": base_url,
        "EMAILGISTICS_API_KEY": api_key,
        "EMAILGISTICS_WEBHOOK_SECRET": secret,
        "ATTACHMENTS_URL": (folder / "attachments").as_uri(),
        "ATTACHMENTS_INBOX": str(folder / "inbox.sqlite"),
        "ATTACHMENTS_IDS_ALLOWED": (folder / "ids").as_uri(),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    return Stack(
        folder=folder,
        prefect=services.prefect_server(environment, folder / "prefect-server.log", prefect_port),
        worker=services.worker(environment, folder / "worker.log", *worker_options),
        receiver=services.receiver(environment, folder / "receiver.log", LOOPBACK, receiver_port),
        environment=environment,
        api_url=api_url,
        receiver_url=f"http://{LOOPBACK}:{receiver_port}",
        secret=secret,
        prefect_password=password,
    )


@contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    """Start Prefect, set it up, start receiver and worker; stop them all when the block ends."""
    try:
        stack.prefect.start()
        setup = stack.run("attachments", "setup", "--schedules-off", check=False)
        if setup.returncode != 0:
            raise NotReady(f"attachments setup failed:\n{setup.stdout}{setup.stderr}")
        stack.receiver.start()
        stack.worker.start()
        yield stack
    finally:
        for process in reversed(stack.processes):
            if process.is_started:
                process.stop()
