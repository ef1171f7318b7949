"""Log lines that a stranger can cause: one of each kind in some seconds, and how many more there were."""

import asyncio
import logging

from attachments.receiver.safe_traceback import where

KINDS = 20  # that are told apart; each further line counts as one of the last kind
OTHERS = "Other lines of the same sort were left out."


class LimitedLog:
    """Writes the first line of a kind at once and counts the following ones. For the event loop's thread alone."""

    def __init__(self, logger: logging.Logger, interval: float) -> None:
        self._logger = logger
        self._interval = interval
        self._counts: dict[tuple[int, str], int] = {}
        """Lines of each kind that were left out since the last one that was written."""

    def log(self, level: int, text: str) -> None:
        """A line, unless one with the same text was written just now."""
        kind = (level, text)
        if kind not in self._counts and len(self._counts) >= KINDS:
            kind = (logging.WARNING, OTHERS)
        if kind in self._counts:
            self._counts[kind] += 1
            return
        self._write(kind, kind[1])

    def flush(self) -> None:
        """Write what is still counted, at the end."""
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
    """What the server under the receiver warns of, through a `LimitedLog`: a filter of its logger."""

    def __init__(self, limited: LimitedLog) -> None:
        super().__init__()
        self._limited = limited

    def filter(self, record: logging.LogRecord) -> bool:
        """Only what is no warning passes through as it is."""
        if record.levelno < logging.WARNING:
            return True
        error = record.exc_info[1] if record.exc_info else None
        text = record.getMessage().strip()
        self._limited.log(record.levelno, f"{text} {where(error)}" if error else text)
        return False
