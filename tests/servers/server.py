"""A server of somebody else's, as a process on a free port of this machine: started, killed, restarted, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STARTED_WITHIN = 60.0  # seconds; they need 0.1 to 5 on an idle machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server(ABC):
    """One server. A subclass says how it is started, and how fsspec gets at it."""

    keeps_data = True
    """Whether what was stored outlives a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """The program and its arguments."""

    @abstractmethod
    def url(self, name: str) -> str:
        """The URL of a fresh place, made by `make_place`, for `open_store` and fsspec."""

    @abstractmethod
    def options(self, port: int | None = None) -> dict[str, Any]:
        """fsspec's options, to reach it directly or through a proxy on another port."""

    @abstractmethod
    def make_place(self, name: str) -> None:
        """Makes the bucket or container of that name."""

    def environment(self) -> Mapping[str, str]:
        return {}

    def start(self) -> None:
        """Starts it, and waits until it takes connections."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(word) for word in self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                start_new_session=True,
            )
        deadline = time.monotonic() + STARTED_WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{type(self).__name__} did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """As a power switch would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Asks it to end, and then makes it."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kills it, and starts it on the same port with the same data."""
        self.kill()
        self.start()

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # The session is the server's own, with its children.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False
