"""Which errors are retried, and which texts may be shown.

Prefect writes an exception's text into states and logs, which every user of its UI can read.
"""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat, takewhile
from typing import Any, TypeVar

import httpx
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import Abort
from prefect.tasks import Task, exponential_backoff

from attachments.emailgistics import EmailgisticsError, NotFound
from attachments.foundation import cancellation
from attachments.foundation.cancellation import RunCancelled
from attachments.foundation.numerals import counted
from attachments.foundation.retry import retry
from attachments.foundation.terminal_text import shown_name
from attachments.rate_limit.errors import PacingError
from attachments.rate_limit.priority import is_low_priority
from attachments.runs.state_record import UNKNOWN
from attachments.storage import StoreError

RETRIES = 6
BACK_OFF = 2  # seconds before the first retry, doubled for each: about two minutes in all
JITTER = 0.3
PATIENCE = 900.0  # seconds that a run waits for Prefect's API to become available
BETWEEN = 2.0  # seconds between two attempts, in addition to the back-off of Prefect's client
FRESH = 4  # attempts in which a 404 is retried: 2 + 4 + 8 + 16 seconds, half a minute
FRESH_PAUSES = tuple(float(BACK_OFF * 2**number) for number in range(FRESH))
"""Seconds between reads of a list that is not final, which add up to the same half a minute."""

RETRYING: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": exponential_backoff(BACK_OFF),
    "retry_jitter_factor": JITTER,
}
"""Arguments of every task that talks to the vendor or the store; each adds its `retry_condition_fn`."""


T = TypeVar("T")


class UnexpectedError(Exception):
    """An internal error or an unforeseen failure. Its own text is left out, because it could contain a file name."""


class NotConfigured(Exception):
    """Something that the run needs is not set up."""


class PrefectLost(Exception):
    """Prefect's API has not responded for a long time."""


class Starved(Exception):
    """Runs wait, and no worker starts them."""

    def __init__(self, waiting: int, work_pool: str | None) -> None:
        super().__init__(waiting, work_pool)
        self.waiting = waiting
        self.work_pool = work_pool

    def __str__(self) -> str:
        runs = counted(self.waiting, "run waits", "runs wait")
        pool = shown_name(self.work_pool or "")
        return (
            f"{runs}, and no worker has started one for minutes. Check that a worker serves the work pool {pool} and "
            "has a free slot, and that neither the pool nor its queues are paused."
        )


OUR_ERRORS = (
    EmailgisticsError, StoreError, PacingError, NotConfigured, PrefectLost, Starved, RunCancelled, UnexpectedError,
)  # fmt: skip
OurError = (
    EmailgisticsError
    | StoreError
    | PacingError
    | NotConfigured
    | PrefectLost
    | Starved
    | RunCancelled
    | UnexpectedError
)


OTHER_CODES: dict[type[Exception], str] = {
    PacingError: "unpaced",
    NotConfigured: "not-configured",
    PrefectLost: "prefect-lost",
    Starved: "starved",
}
"""The codes of errors that are neither the vendor's nor the store's."""


@contextmanager
def error_boundary() -> Iterator[None]:
    """Let only errors out whose text is safe to show. Others become `UnexpectedError`, with their type and place.

    Raises `RunCancelled` if the run is cancelled before or during the block, whatever error that caused.
    """
    cancellation.raise_if_cancelled()
    try:
        yield
    except OUR_ERRORS:
        cancellation.raise_if_cancelled()
        raise
    except Exception as error:  # noqa: BLE001  nothing unknown may reach Prefect with its text
        cancellation.raise_if_cancelled()
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UnexpectedError(
            f"{type(error).__name__} in {place.name}, line {place.lineno}. Please report this with the version you run."
        ) from None


@contextmanager
def flow_boundary() -> Iterator[None]:
    """As `error_boundary`, around a whole flow: raises Prefect's `Abort` when the run is cancelled."""
    try:
        with error_boundary():
            yield
    except RunCancelled:
        raise Abort("The run was cancelled.") from None  # the worker sets the run's state to Cancelled


def is_retryable(error: object) -> bool:
    """Whether a retry may succeed without anyone's help."""
    return isinstance(error, PrefectLost | Starved) or (
        isinstance(error, EmailgisticsError | StoreError) and error.retryable
    )


def retry_until_available(ask: Callable[[], T]) -> T:
    """Call Prefect, waiting while it is unavailable.

    Raises:
        PrefectLost: It has not responded for `PATIENCE` seconds.
    """
    end = time.monotonic() + PATIENCE
    pauses = takewhile(lambda _: time.monotonic() < end, repeat(BETWEEN))
    try:
        return retry(ask, httpx.HTTPError, pauses)
    except httpx.HTTPError as error:
        raise PrefectLost(
            f"Prefect's API does not respond ({type(error).__name__}). Check that it is running."
        ) from None


def is_transient(_: Task[Any, Any], __: TaskRun, state: State[Any]) -> bool:
    """Whether to retry a task: after timeouts, broken connections, 429, 5xx and if the store is unavailable."""
    return is_retryable(state.result(raise_on_failure=False))


def is_transient_or_fresh(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """As `is_transient`, and also retries a 404 for half a minute, because the message may be too new.

    A new message's list and each of its parts can return 404 for some seconds before Exchange has settled, the parts
    also after the list (docs/errors.md). The mail of a backfill is old, and much of it has been deleted.
    """
    is_not_found = isinstance(state.result(raise_on_failure=False), NotFound)
    is_fresh = is_not_found and run.run_count <= FRESH and not is_low_priority()
    return is_fresh or is_transient(task, run, state)


def error_code(error: object) -> str:
    """The short stable code of an error, as in a manifest."""
    if isinstance(error, EmailgisticsError | StoreError):
        return error.outcome_code
    return next((code for kind, code in OTHER_CODES.items() if isinstance(error, kind)), UNKNOWN)
