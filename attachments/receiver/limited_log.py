"""Rate limit for log lines that unauthenticated clients can cause: one of each kind per interval, then a count."""

import asyncio
import logging

from attachments.receiver.safe_traceback import safe_traceback

MAX_KINDS = 20  # kinds of line that are distinguished; any further kind is counted under `OTHER_LINES`
OTHER_LINES = "Other lines of this sort were left out."


class LimitedLog:
    """Writes the first line of a kind at once and counts the following ones. Use it in the event loop's thread only."""

    def __init__(self, logger: logging.Logger, interval: float) -> None:
        self._logger = logger
        self._interval = interval
        self._counts: dict[tuple[int, str], int] = {}
        """How many lines of each kind were left out since the last one was written."""

    def log(self, level: int, text: str) -> None:
        """Write a line, unless one with the same text was written within the interval."""
        kind = (level, text)
        if kind not in self._counts and len(self._counts) >= MAX_KINDS:
            kind = (logging.WARNING, OTHER_LINES)
        if kind in self._counts:
            self._counts[kind] += 1
            return
        self._write(kind, kind[1])

    def flush(self) -> None:
        """Write the counts that are still pending."""
        for (level, text), count in self._counts.items():
            if count:
                self._logger.log(level, "%s (%d more times)", text, count)
        self._counts.clear()

    def _write(self, kind: tuple[int, str], line: str) -> None:
        self._counts[kind] = 0
        self._logger.log(kind[0], "%s", line)
        asyncio.get_running_loop().call_later(self._interval, self._end_interval, kind)

    def _end_interval(self, kind: tuple[int, str]) -> None:
        count = self._counts.pop(kind, 0)
        if count:
            self._write(kind, f"{kind[1]} ({count} more times in {self._interval:.0f} s)")


class LimitedServerLog(logging.Filter):
    """A logging filter that sends the warnings of uvicorn and asyncio through a `LimitedLog`."""

    def __init__(self, limited: LimitedLog) -> None:
        super().__init__()
        self._limited = limited

    def filter(self, record: logging.LogRecord) -> bool:
        """Let records below WARNING pass unchanged."""
        if record.levelno < logging.WARNING:
            return True
        error = record.exc_info[1] if record.exc_info else None
        text = record.getMessage().strip()
        self._limited.log(record.levelno, f"{text} {safe_traceback(error)}" if error else text)
        return False
