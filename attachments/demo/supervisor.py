"""Keeps the parts of an installation running: starts them in order, restarts what ends, and stops them in order."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attachments.demo.merged_log import MergedLog
from attachments.demo.processes import STOP_TIMEOUT, Process
from attachments.demo.stop_request import Stop

POLL_INTERVAL = 0.2  # seconds between two looks at the parts
FIRST_RESTART_DELAY = 1.0  # seconds before a part is restarted; doubled each time
MAX_RESTART_DELAY = 60.0
STABLE_AFTER = 60.0  # seconds after which a part counts as running well again


class PartFailed(Exception):
    """A part ended before everything was ready; the text says which, and how."""


@dataclass(frozen=True)
class Timing:
    """In seconds: how often the parts are looked at, and how long a part that ends waits for its restart."""

    look: float = POLL_INTERVAL
    first_pause: float = FIRST_RESTART_DELAY
    longest_pause: float = MAX_RESTART_DELAY
    stable: float = STABLE_AFTER


@dataclass
class Part:
    """A process that is kept running; it starts once the parts that it `needs` are ready.

    With `once` it must end with status 0, and is then ready. `patience`: seconds to end after SIGTERM.
    """

    process: Process
    needs: tuple["Part", ...] = ()
    once: bool = False
    patience: float = STOP_TIMEOUT
    is_ready: bool = False
    """Whether it was ready once."""
    is_running: bool = False
    restart_at: float = 0.0
    _pause: float = 0.0
    started_at: float = 0.0

    @property
    def name(self) -> str:
        """Its name in the log."""
        return self.process.name

    @property
    def is_done(self) -> bool:
        """Whether it does not have to run again."""
        return self.once and self.is_ready

    def start(self) -> None:
        """Start its process, without waiting until it is ready."""
        self.process.start(wait=False)
        self.is_running, self.started_at = True, time.monotonic()

    def schedule_restart(self, timing: Timing) -> float:
        """Note that it has ended. Returns the seconds until it is due: more each time, unless it ran for long."""
        now = time.monotonic()
        ran_well = now - self.started_at >= timing.stable
        self._pause = timing.first_pause if ran_well or not self._pause else min(self._pause * 2, timing.longest_pause)
        self.restart_at = now + self._pause
        return self._pause


class Supervisor:
    """Runs parts, given in the order of their start, until the stop is requested; it stops them in reverse order.

    With `is_first_start`, a part that ends before all are ready is an error: wrong settings are reported at once.
    Otherwise it is restarted, for as long as it takes.
    """

    def __init__(
        self, parts: Sequence[Part], log: MergedLog, *, is_first_start: bool, timing: Timing | None = None
    ) -> None:
        self._parts = parts
        self._log = log
        self._may_fail = not is_first_start
        self._timing = timing or Timing()

    def run(self, stop: Stop, *, when_ready: Callable[[], None]) -> None:
        """Run the parts until the stop is requested; `when_ready` is called when all are ready for the first time.

        Raises `PartFailed` on the first start.
        """
        announced = False
        try:
            while not stop.requested:
                for part in self._parts:
                    self._check_part(part)
                if not announced and all(part.is_ready for part in self._parts):
                    announced = self._may_fail = True
                    when_ready()
                stop.wait(self._timing.look)
        finally:
            self._stop(stop)

    def _check_part(self, part: Part) -> None:
        if part.is_running:
            code = part.process.code
            if code is not None:
                self._handle_exit(part, code)
            elif not part.is_ready and part.process.is_ready():
                part.is_ready = True
                self._log.say(f"The {part.name} is ready.")
        elif (
            not part.is_done
            and time.monotonic() >= part.restart_at
            and (part.restart_at or all(need.is_ready for need in part.needs))
        ):
            try:
                part.start()
            except OSError as error:  # no memory or no process left
                self._handle_failure(part, f"could not be started ({error.strerror or type(error).__name__})")

    def _handle_exit(self, part: Part, code: int) -> None:
        part.is_running = False
        part.process.kill()  # its remaining children
        if part.once and code == 0:
            part.is_ready = True
        else:
            self._handle_failure(part, _describe_exit(code))

    def _handle_failure(self, part: Part, how: str) -> None:
        if not self._may_fail:
            raise PartFailed(f"The {part.name} {how} before everything was ready. Its lines above say why.")
        pause = part.schedule_restart(self._timing)
        self._log.say(f"The {part.name} {how}. It is restarted in {pause:.0f} s.", "ERROR")

    def _stop(self, stop: Stop) -> None:
        for part in reversed(self._parts):
            if part.is_running and part.process.code is None:
                self._log.say(f"Stopping the {part.name}.")
                part.process.stop(part.patience, is_urgent=lambda: stop.is_urgent)
            elif part.is_running:
                part.process.kill()
            part.is_running = False


def _describe_exit(code: int) -> str:
    """How a process ended, by its exit status as Python gives it."""
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
