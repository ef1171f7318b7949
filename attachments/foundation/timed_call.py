"""Calls that may never return: each runs in its own thread, for which no one has to wait."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextvars import copy_context
from typing import Generic, TypeVar

from attachments.foundation import cancellation

RESPONSE_TIMEOUT = 20.0
"""Seconds for one response."""

T = TypeVar("T")


class NoResponse(Exception):
    """The call did not return in time."""


class TimedCall(Generic[T]):
    """A call in progress in its own daemon thread."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._cancellation = cancellation.Cancellation()
        self._answer: Future[T] = Future()
        work = copy_context()
        work.run(cancellation.CURRENT.set, self._cancellation)
        threading.Thread(target=work.run, args=(self._work, ask), name="question", daemon=True).start()

    def result(self, seconds: float) -> T:
        """The call's result or its error. Raises `NoResponse` after `seconds`, and `RunCancelled`."""
        with cancellation.on_cancel(self._cancellation.cancel):
            try:
                return self._answer.result(seconds)
            except FutureTimeoutError:
                if self._answer.done():  # just now, or the call itself raised a timeout
                    return self._answer.result()
            finally:
                # Ends the call at its next wait, so that it makes no further requests.
                self._cancellation.cancel()
        cancellation.raise_if_cancelled()
        raise NoResponse from None

    def _work(self, ask: Callable[[], T]) -> None:
        try:
            self._answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001  raised in `answer`
            self._answer.set_exception(error)


def call_with_timeout(seconds: float, ask: Callable[[], T]) -> T:
    """The function's result or its error. Raises `NoResponse` if it takes longer, and `RunCancelled`."""
    return TimedCall(ask).result(seconds)
