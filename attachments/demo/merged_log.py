"""One log of several processes, on standard output: for people with each part's name, or as JSON, a line for each."""

import queue
import re
import threading
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from attachments.foundation.numerals import counted
from attachments.foundation.terminal_text import escaped_line, say, say_json

Format = Literal["text", "json"]
FORMATS: tuple[Format, ...] = ("text", "json")
MAX_QUEUED = 10_000  # lines that wait to be written
FLUSH_TIMEOUT = 2.0  # seconds for the last lines
WIDTH = len("Prefect server")
OWN_NAME = "attachments up"
_LEVEL = re.compile(r"^.{0,40}?\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")


class _Line(NamedTuple):
    time: datetime
    part: str
    level: str
    message: str


class MergedLog:
    """Takes lines from any thread and never makes it wait.

    Otherwise a paused terminal or a slow reader would block the part that prints. If more than `KEPT` lines wait,
    further ones are left out and counted.
    """

    def __init__(self, form: Format = "text") -> None:
        self._form = form
        self._lines: queue.Queue[_Line | None] = queue.Queue(MAX_QUEUED)
        self._omitted = 0
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def add(self, part: str, message: str) -> None:
        """Add a line that a part has printed."""
        if message.strip():
            level = _LEVEL.match(message)
            self._put(_Line(datetime.now(UTC), part, level[1] if level else "INFO", message))

    def say(self, message: str, level: str = "INFO") -> None:
        """Add a line of this command."""
        self._put(_Line(datetime.now(UTC), OWN_NAME, level, message))

    def close(self) -> None:
        """Write the waiting lines, for `FLUSH` seconds at most."""
        try:
            self._lines.put(None, timeout=FLUSH_TIMEOUT)
        except queue.Full:
            return
        self._writer.join(FLUSH_TIMEOUT)

    def _put(self, line: _Line) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._omitted += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            self._print(line)
            if self._omitted:
                omitted, self._omitted = counted(self._omitted, "line"), 0
                message = f"{omitted} of the log left out, because its reader is too slow."
                self._print(_Line(datetime.now(UTC), OWN_NAME, "WARNING", message))

    def _print(self, line: _Line) -> None:
        if self._form == "json":
            record = {
                "time": line.time.isoformat(timespec="milliseconds"),
                "part": line.part,
                "level": line.level,
                "message": escaped_line(line.message),
            }
            say_json(record, in_one_line=True)
        else:
            say(f"{line.part:<{WIDTH}} | {line.message}")
