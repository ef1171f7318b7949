"""Processes of the product: started on loopback, watched until they are ready, and stopped again.

Each is a process of its own, as in production. Its output goes to a log file or, line by line, to a function. Only
processes that were started here are stopped, by their id.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO

import httpx

READY_TIMEOUT = 90.0  # seconds for a process to get ready; Prefect's server takes 10 to 20 on a small machine
STOP_TIMEOUT = 40.0  # seconds for a process to end after SIGTERM before it is killed; the worker drains for 20
USER_SETTING_PREFIXES = (
    "PREFECT_",
    "EMAILGISTICS_",
    "ATTACHMENTS_",
)  # the user's own settings, which must not reach the processes
LOOPBACK = "127.0.0.1"
MAX_LINE_LENGTH = 64 * 1024  # bytes of output that count as one line
MAX_KEPT_LINES = 200  # of the output, for `output`

_PR_SET_PDEATHSIG = 1
_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # only on Linux


class NotReady(RuntimeError):
    """A process did not become ready; the text says which, and shows the end of its log."""


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = READY_TIMEOUT, every: float = 0.05) -> None:
    """Wait until the condition holds, looking every so many seconds. Raises `NotReady` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise NotReady(f"{what}: not within {seconds:.0f} s")
        time.sleep(every)


def responds(url: str) -> bool:
    """Whether a GET gets a success."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def listens(host: str, port: int) -> bool:
    """Whether something accepts connections there; at an unspecified host such as 0.0.0.0, on this machine."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def process_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process: the user's, without variables that would point it to another installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith(USER_SETTING_PREFIXES)} | dict(
        environment
    )


def script_path(name: str) -> str:
    """The path of a command of this virtual environment."""
    return str(Path(sys.executable).with_name(name))


def _prepare(parent: int | None) -> None:
    """Prepare the new process before its program starts; with `parent`, the kernel kills it when that process dies."""
    # A script's `&` makes its children ignore SIGINT, and Prefect's worker ends on SIGTERM by way of SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if parent is not None and _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # the parent has already died
            os._exit(1)


@dataclass
class Process:
    """A process that can be stopped, killed, frozen and started again with the same command.

    `log` is the file that its output goes to, or takes each line of it. With `dies_with_us` it does not outlive this
    process, however this one dies (on Linux); it must then be started from the main thread. The descriptors of
    `inherited_descriptors` stay open in it. `ready_timeout`: seconds that it may take to be ready.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path | Callable[[str], None]
    is_ready: Callable[[], bool]
    dies_with_us: bool = False
    inherited_descriptors: tuple[int, ...] = ()
    ready_timeout: float = READY_TIMEOUT
    _running: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _before: int = field(default=0, init=False)  # bytes of the log file that earlier starts have printed
    _lines: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_KEPT_LINES), init=False)
    _reader: Thread | None = field(default=None, init=False)

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it is ready."""
        if isinstance(self.log, Path):
            self._before = self.log.stat().st_size if self.log.exists() else 0
            with self.log.open("ab") as log:
                self._running = self._spawn(log)
        else:
            self._lines.clear()
            self._running = self._spawn(subprocess.PIPE)
            assert self._running.stdout is not None  # noqa: S101  tells mypy: it is a pipe
            self._reader = Thread(target=self._read, args=(self._running.stdout, self.log), daemon=True)
            self._reader.start()
        if wait:
            self.wait_until_ready()

    def _spawn(self, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
        parent = os.getpid() if self.dies_with_us else None
        return subprocess.Popen(  # noqa: S603  our own commands
            self.command,
            env=process_environment(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=self.inherited_descriptors,
            umask=0o077,
            preexec_fn=lambda: _prepare(parent),  # noqa: PLW1509  it takes no lock that another thread could hold
        )

    def _read(self, output: IO[bytes], log: Callable[[str], None]) -> None:
        with output:
            while line := output.readline(MAX_LINE_LENGTH):
                text = line.decode("utf-8", "replace").rstrip()
                self._lines.append(text)
                log(text)

    def output(self) -> str:
        """Its output since the last start; if its lines go to a function, only the last ones."""
        if isinstance(self.log, Path):
            return self.log.read_bytes()[self._before :].decode("utf-8", "replace")
        return "\n".join(tuple(self._lines))

    def wait_until_ready(self) -> None:
        """Wait for readiness. Raises `NotReady` if the process ends or takes longer than `ready_timeout`."""
        end = time.monotonic() + self.ready_timeout
        while not self.is_ready():
            if self.code is not None or time.monotonic() > end:
                state = (
                    f"was still starting after {self.ready_timeout:.0f} s: this machine is slow or busy. Try again "
                    "when it is less busy"
                    if self.code is None
                    else f"ended while it was starting, with exit status {self.code}"
                )
                where = f"End of {self.log}" if isinstance(self.log, Path) else "Its last lines"
                raise NotReady(f"The {self.name} {state}. {where}:\n{self.output()[-2000:]}")
            time.sleep(0.05)

    @property
    def is_started(self) -> bool:
        """Whether it was started, even if it has ended since."""
        return self._running is not None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._running is not None, f"{self.name} was not started"  # noqa: S101  a mistake of the caller
        return self._running.pid

    @property
    def code(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._running.poll() if self._running else None

    def wait(self, seconds: float) -> int:
        """Wait until it ends by itself, and return its exit status. Raises `subprocess.TimeoutExpired` after
        `seconds`."""
        assert self._running is not None, f"{self.name} was not started"  # noqa: S101  a mistake of the caller
        return self._running.wait(seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to the processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """`kill -9`, and wait for its end."""
        self.signal(signal.SIGKILL)
        assert self._running is not None  # noqa: S101  a mistake of the caller
        self._running.wait()
        if self._reader is not None:
            self._reader.join(1)  # so that its last lines come before what is logged next

    def stop(self, seconds: float = STOP_TIMEOUT, *, is_urgent: Callable[[], bool] = lambda: False) -> int:
        """SIGTERM to the process itself; `kill -9` after `seconds`, or once it is urgent. Returns its exit status."""
        assert self._running is not None, f"{self.name} was not started"  # noqa: S101  a mistake of the caller
        if self.code is None:
            self.signal(signal.SIGCONT)
            self._running.terminate()
            end = time.monotonic() + seconds
            while self.code is None and time.monotonic() < end and not is_urgent():
                time.sleep(0.02)
        self.kill()  # and its remaining children
        return self._running.wait()
