"""Starts the product's processes on free ports, waits until they are ready, and ends them again.

Each is its own process, as in production, with its output in a log file. Only processes that were started here
are ended, by their id.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

READY = 90.0  # seconds for a process to get ready; Prefect's server takes 10 to 20 on a small machine
END = 40.0  # seconds for a process to end after SIGTERM before it is killed; the worker drains for 20
FOREIGN = ("PREFECT_", "EMAILGISTICS_", "ATTACHMENTS_")  # the user's own settings, which must not reach what we start
LOOPBACK = "127.0.0.1"


class NotReady(RuntimeError):
    """A process did not get ready; the text says which, and shows the end of its log."""


def _heed_sigint() -> None:
    """A script's `&` makes its children ignore SIGINT, and Prefect's worker ends on SIGTERM by way of SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = READY, every: float = 0.05) -> None:
    """Wait until the condition holds, looking every so many seconds. Raises `NotReady` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise NotReady(f"{what}: not within {seconds:.0f} s")
        time.sleep(every)


def answers(url: str) -> bool:
    """Whether a GET gets a success."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def surroundings(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process of ours: the user's, without what would point it at another installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | dict(environment)


@dataclass
class Process:
    """A process of ours that can be ended, killed, frozen and started again with the same command."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    is_ready: Callable[[], bool]
    _running: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _before: int = field(default=0, init=False)  # bytes of the log that earlier starts have printed

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it is ready."""
        self._before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(  # noqa: S603  our own commands
                self.command,
                env=surroundings(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_heed_sigint,  # noqa: PLW1509  it only sets a signal's default
            )
        if wait:
            self.wait_until_ready()

    def printed(self) -> str:
        """What it has printed since it was started last."""
        return self.log.read_bytes()[self._before :].decode("utf-8", "replace")

    def wait_until_ready(self) -> None:
        """Wait for readiness. Raises `NotReady` when it ended or took too long."""
        end = time.monotonic() + READY
        while not self.is_ready():
            if self.code is not None or time.monotonic() > end:
                state = (
                    f"was still starting after {READY:.0f} s: this machine is slow or busy. Try again when it has less "
                    "to do"
                    if self.code is None
                    else f"ended while it was starting, with exit status {self.code}"
                )
                tail = self.log.read_text("utf-8", "replace")[-2000:]
                raise NotReady(f"The {self.name} {state}. End of {self.log}:\n{tail}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._running is not None, f"{self.name} was not started"  # noqa: S101  a mistake of the caller
        return self._running.pid

    @property
    def code(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._running.poll() if self._running else None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to the processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """`kill -9`, and wait for its end."""
        self.signal(signal.SIGKILL)
        assert self._running is not None  # noqa: S101  a mistake of the caller
        self._running.wait()

    def stop(self) -> int:
        """SIGTERM to the process itself, `kill -9` when it does not end. Returns its exit status."""
        assert self._running is not None, f"{self.name} was not started"  # noqa: S101  a mistake of the caller
        if self.code is None:
            self.signal(signal.SIGCONT)
            self._running.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._running.wait(END)
        self.signal(signal.SIGKILL)  # whatever it left behind
        return self._running.wait()


@dataclass(frozen=True)
class Stack:
    """Everything between a webhook and a file, but for Emailgistics itself."""

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
        """In the order in which they start."""
        return self.prefect, self.receiver, self.worker

    def webhook_url(self, deployment: str = "default") -> str:
        """Where Emailgistics posts to."""
        return f"{self.receiver_url}/webhooks/{deployment}"

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of the same virtual environment, such as `attachments setup`, against this Prefect."""
        return subprocess.run(  # noqa: S603  our own commands
            [_script(command[0]), *command[1:]],
            env=surroundings(self.environment),
            capture_output=True,
            text=True,
            check=check,
            timeout=120,
        )


def make_stack(
    folder: Path, base_url: str, api_key: str, *, worker_options: tuple[str, ...] = (), database: str | None = None
) -> Stack:
    """A stack whose files are under `folder`; nothing is started yet. Prefect's `database` is an SQLite of its own."""
    (folder / "ids").mkdir(parents=True, exist_ok=True)
    prefect_port, receiver_port = free_port(), free_port()
    api_url = f"http://{LOOPBACK}:{prefect_port}/api"
    secret = "demo-webhook-secret"  # noqa: S105  for loopback alone
    password = ("demo", secrets.token_hex(12))
    environment = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_PROFILES_PATH": str(folder / "prefect" / "profiles.toml"),
        "PREFECT_API_URL": api_url,
        "PREFECT_API_AUTH_STRING": ":".join(password),
        "PREFECT_SERVER_API_AUTH_STRING": ":".join(password),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{LOOPBACK}:{prefect_port},http://localhost:{prefect_port}",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database
        or f"sqlite+aiosqlite:///{folder / 'prefect' / 'prefect.db'}",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "3600",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
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
    receiver_url = f"http://{LOOPBACK}:{receiver_port}"
    worker = Process(
        "worker",
        [_script("prefect"), "worker", "start", "--pool", "attachments", "--type", "warm", *worker_options],
        environment,
        folder / "worker.log",
        lambda: "started!" in worker.printed(),
    )
    return Stack(
        folder=folder,
        prefect=Process(
            "Prefect server",
            [_script("prefect"), "server", "start", "--host", LOOPBACK, "--port", str(prefect_port)],
            environment,
            folder / "prefect-server.log",
            lambda: answers(f"{api_url}/health"),
        ),
        worker=worker,
        receiver=Process(
            "receiver",
            [_script("attachments"), "receive", "--host", LOOPBACK, "--port", str(receiver_port)],
            environment,
            folder / "receiver.log",
            lambda: answers(f"{receiver_url}/ready"),
        ),
        environment=environment,
        api_url=api_url,
        receiver_url=receiver_url,
        secret=secret,
        prefect_password=password,
    )


@contextmanager
def running(stack: Stack, *, keep: Callable[[], bool] = lambda: False) -> Iterator[Stack]:
    """Start Prefect, set it up, start receiver and worker; end them all with the block, however it ends."""
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
            if process._running is not None and not keep():
                process.stop()


def _sqlite(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
