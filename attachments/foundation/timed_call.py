"""Calls that may never return: each in a thread of its own, which nobody has to wait for. Knows nothing of the rest."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextvars import copy_context
from typing import Generic, TypeVar

from attachments.foundation import cancellation

PATIENCE = 20.0
"""Seconds for one answer."""

T = TypeVar("T")


class NoResponse(Exception):
    """There was no answer in time."""


class TimedCall(Generic[T]):
    """A question under way in a thread of its own, which nobody has to wait for."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._cancellation = cancellation.Cancellation()
        self._answer: Future[T] = Future()
        work = copy_context()
        work.run(cancellation.CURRENT.set, self._cancellation)
        threading.Thread(target=work.run, args=(self._work, ask), name="question", daemon=True).start()

    def answer(self, seconds: float) -> T:
        """What it came to, or what it raised. Raises `NoResponse` after so many seconds, and `RunCancelled`."""
        with cancellation.on_cancel(self._cancellation.cancel):
            try:
                return self._answer.result(seconds)
            except FutureTimeoutError:
                if self._answer.done():  # at the last moment, or what was asked has itself run out of time
                    return self._answer.result()
            finally:
                # It ends where it waits, and makes no call that nobody wants any more.
                self._cancellation.cancel()
        cancellation.raise_if_cancelled()
        raise NoResponse from None

    def _work(self, ask: Callable[[], T]) -> None:
        try:
            self._answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001  it is raised where the answer is waited for
            self._answer.set_exception(error)


def call_with_timeout(seconds: float, ask: Callable[[], T]) -> T:
    """What it answers, or what it raises. Raises `NoResponse` when that takes longer, and `RunCancelled`."""
    return TimedCall(ask).answer(seconds)
