"""No calls for a while after a 429: in this process at once, in the others as soon as they read of it."""

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
from prefect.exceptions import ObjectAlreadyExists

from attachments.foundation import cancellation
from attachments.foundation.terminal_text import escaped_line
from attachments.prefect_api.prefect_retry import PrefectUnreachable
from attachments.rate_limit.slot_api import SlotApi
from attachments.rate_limit.timings import RateLimitTimings

logger = logging.getLogger("attachments.rate_limit")


def pause_variable(limit_name: str) -> str:
    """The name of the Prefect Variable that says until when no calls are made under a limit."""
    return re.sub(r"[^a-z0-9_-]", "-", f"{limit_name}-pause".lower())


class FleetPause:
    """The pause of all processes that share a limit. Shared between threads.

    After a pause each process sends one call, the probe, and waits for its response before it makes others.
    """

    def __init__(self, limit_name: str, api: SlotApi, timings: RateLimitTimings) -> None:
        self._api = api
        self._timings = timings
        self._variable = pause_variable(limit_name)
        self._lock = threading.Lock()
        self._until = -timings.longest_pause  # monotonic
        self._seconds = timings.first_pause
        self._last_check = -timings.pause_check
        self._latest = ""
        """The end of the last pause that was ordered or read: each is obeyed once, whatever the clocks do."""
        self._is_half_open = False
        """Whether there was a pause, and no call has succeeded since."""

    def order(self) -> None:
        """Pause the fleet, for twice as long as the last time if that was recent."""
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                return
            repeats = self._is_half_open or now - self._until < self._seconds
            longer = min(self._seconds * 2, self._timings.longest_pause)
            self._begin(longer if repeats else self._timings.first_pause)
            seconds = self._seconds
            self._latest = until = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        logger.warning("Emailgistics answered 429 (rate limit): no calls for %.0f s.", seconds)
        try:
            self._api.write_variable(self._variable, {"until": until, "seconds": seconds})
        except (httpx.HTTPError, PrefectUnreachable, ObjectAlreadyExists) as error:
            logger.warning("The pause could not be written for the other processes (%s).", type(error).__name__)

    def wait(self) -> None:
        """Wait until there is no pause. Raises `RunCancelled`."""
        self._read()
        while (left := self._left()) > 0:
            cancellation.sleep(left)

    @contextmanager
    def obeyed(self) -> Iterator[bool]:
        """Enter with a slot, before the call; yields whether the call is the probe. Raises `RunCancelled`."""
        self.wait()  # it may have been ordered during the wait for the slot
        with self._lock:
            is_probe, began = self._is_half_open, self._until
        yield is_probe
        with self._lock:
            if is_probe and self._until == began:
                self._is_half_open = False

    def _left(self) -> float:
        with self._lock:
            return self._until - time.monotonic()

    def _begin(self, seconds: float, left: float | None = None) -> None:
        self._until = time.monotonic() + (seconds if left is None else left)
        self._seconds = seconds
        self._is_half_open = True

    def _read(self) -> None:
        """Read of others' pauses. A process that cannot read them learns of them by a 429 of its own."""
        with self._lock:
            if time.monotonic() - self._last_check < self._timings.pause_check:
                return
            self._last_check = time.monotonic()
        try:
            value = self._api.read_variable(self._variable)
            if not isinstance(value, Mapping):
                return
            until, seconds = str(value["until"]), min(float(value["seconds"]), self._timings.longest_pause)
            left = min((datetime.fromisoformat(until) - datetime.now(UTC)).total_seconds(), seconds)
        except (httpx.HTTPError, PrefectUnreachable) as error:
            logger.debug("The fleet's pause cannot be read (%s).", type(error).__name__)
            return
        except (KeyError, TypeError, ValueError):
            logger.warning(
                "The Prefect Variable %s holds no pause; it is ignored. Delete it.", escaped_line(self._variable)
            )
            return
        with self._lock:
            if until == self._latest:
                return
            self._latest = until
            if left > 0 and time.monotonic() + left > self._until:
                logger.warning("Another process met the rate limit: no calls for %.0f s.", left)
                self._begin(seconds, left)
