"""Runs the sandbox as a separate process, for a test or a benchmark."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_POLL_SECONDS = 0.02
_END_SECONDS = 5.0


class SandboxError(RuntimeError):
    """The sandbox did not start, or rejected a request; the text says why."""


class Control(httpx.Client):
    """A client of the control API with a method for each common request; the keywords are its JSON fields."""

    def __init__(self, address: str) -> None:
        headers = {"Accept": "application/json"}
        super().__init__(base_url=f"{address}/_sandbox/", headers=headers, timeout=None, trust_env=False)

    def add_message(self, **fields: Any) -> dict[str, Any]:
        """Adds a message: its `id`, its `attachments` with size and SHA-256, and its `webhook` payload."""
        return self._order("messages", fields)

    def add_messages(self, messages: list[dict[str, Any]], *, digests: bool = True) -> list[dict[str, Any]]:
        """Adds many messages at once; without digests `sha256` is None and large bodies are not read."""
        shown = self._order(f"messages?sha256={'yes' if digests else 'no'}", {"messages": messages})
        rows: list[dict[str, Any]] = shown["messages"]
        return rows

    def fault(self, **fields: Any) -> str:
        """Order a fault, and return its id."""
        return str(self._order("faults", fields)["id"])

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._answer(self.delete("faults"))

    def requests(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """The log of the calls to the API, of one endpoint or of all."""
        rows: list[dict[str, Any]] = self._answer(self.get("requests"))["requests"]
        return [row for row in rows if endpoint in (None, row["endpoint"])]

    def summary(self) -> dict[str, Any]:
        """Counts of the calls, and the most that were granted in any window."""
        return self._answer(self.get("requests/summary"))

    def clear_requests(self) -> None:
        """Empties the log."""
        self._answer(self.delete("requests"))

    def deliver(self, **fields: Any) -> list[dict[str, Any]]:
        """Delivers a webhook: one row with outcome and attempts for each delivery."""
        rows: list[dict[str, Any]] = self._order("deliver", fields)["deliveries"]
        return rows

    def settings(self, **fields: Any) -> dict[str, Any]:
        """Changes limit, window or keys, and returns all settings."""
        return self._order("settings", fields)

    def _order(self, path: str, fields: dict[str, Any]) -> dict[str, Any]:
        # Not httpx's own JSON: it cannot send the lone surrogates that hostile names hold.
        content = json.dumps(fields).encode("ascii")
        return self._answer(self.post(path, content=content, headers={"Content-Type": "application/json"}))

    def _answer(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.is_error:
            raise SandboxError(f"the sandbox answered {answer.status_code}: {answer.text}")
        document: dict[str, Any] = answer.json() if answer.content else {}
        return document


@dataclass(frozen=True)
class Sandbox:
    """A running sandbox: its address, its key and the client of its control API."""

    base_url: str
    key: str
    pid: int
    control: Control


@contextmanager
def running_sandbox(
    *,
    mail: Path | None = None,
    key: str = "sandbox-key",
    limit: int | None = 100,
    window: float = 60.0,
    start_seconds: float = 30.0,
) -> Iterator[Sandbox]:
    """Runs a sandbox on a free port until the block ends, however it ends.

    `limit` calls in `window` seconds, None for no limit. Raises SandboxError when it does not listen within
    `start_seconds`.
    """
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        port_file, output_file = Path(folder, "port"), Path(folder, "output")
        command = [sys.executable, "-m", "attachments.sandbox", "--key", key, "--window", str(window)]
        command += ["--limit", "off" if limit is None else str(limit), "--port-file", str(port_file)]
        if mail is not None:
            command += ["--mail", str(mail)]
        with (
            output_file.open("wb") as output,
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process,  # noqa: S603  (our own)
        ):
            try:
                port = _port(process, port_file, output_file, time.monotonic() + start_seconds)
                with Control(f"http://127.0.0.1:{port}") as control:
                    control.get("health").raise_for_status()
                    yield Sandbox(f"http://127.0.0.1:{port}/api/v1", key, process.pid, control)
            finally:
                _end(process)


def _port(process: subprocess.Popen[bytes], port_file: Path, output_file: Path, deadline: float) -> int:
    while not port_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            state = "did not listen in time" if process.returncode is None else f"ended with {process.returncode}"
            raise SandboxError(f"the sandbox {state}; it printed: {output_file.read_text(errors='replace')[-2000:]}")
        time.sleep(_POLL_SECONDS)
    return int(port_file.read_text())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
