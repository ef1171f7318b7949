"""The line in which calls wait for their turn."""

import threading

import pytest

from attachments.foundation.cancellation import CURRENT, Cancellation, RunCancelled
from attachments.rate_limit.fifo_lock import FifoLock
from tests.rate_limit.conftest import eventually


def test_calls_get_their_turn_in_order() -> None:
    """A message of many attachments has a few calls waiting at a time, so it cannot shut out another."""
    line = FifoLock()
    order: list[int] = []

    def call(number: int) -> None:
        with line.turn():
            order.append(number)

    with line.turn():
        threads = [threading.Thread(target=call, args=(number,)) for number in range(10)]
        for number, thread in enumerate(threads):
            thread.start()
            eventually(lambda n=number: len(line) == n + 2)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert order == sorted(order)
    assert len(line) == 0


def test_a_cancelled_run_leaves_the_line_at_once() -> None:
    """It neither calls nor keeps those behind it."""
    line = FifoLock()
    cancellation = Cancellation()
    ended: list[BaseException] = []

    def call() -> None:
        CURRENT.set(cancellation)
        try:
            with line.turn():
                pytest.fail("it got its turn")
        except RunCancelled as error:
            ended.append(error)

    with line.turn():
        thread = threading.Thread(target=call)
        thread.start()
        eventually(lambda: len(line) == 2)
        cancellation.cancel()
        thread.join(2)
        assert len(ended) == 1
    with line.turn():
        pass
