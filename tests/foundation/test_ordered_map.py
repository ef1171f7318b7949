"""A function called in threads for many items."""

import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from attachments.foundation.ordered_map import ordered_map

word: ContextVar[str] = ContextVar("word", default="none")


def test_the_results_are_in_the_order_of_the_items() -> None:
    """Although a later call may end first."""
    second_ended = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second_ended.wait(30)
        elif number == 1:
            second_ended.set()
        return number * number

    assert list(ordered_map(work, range(20), concurrency=2, thread_name="test")) == [n * n for n in range(20)]


def test_no_more_than_twice_the_concurrency_is_taken_ahead() -> None:
    """Of any number of items."""
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = ordered_map(str, items(), concurrency=3, thread_name="test")
    for number in range(5):
        assert next(results) == str(number)
        assert len(taken) <= number + 6
    results.close()  # type: ignore[attr-defined]  # a generator


def test_the_calls_have_the_callers_context() -> None:
    """The run's cancellation is in it."""
    word.set("caller's")
    assert list(ordered_map(lambda _: word.get(), range(3), concurrency=2, thread_name="test")) == ["caller's"] * 3


def test_an_error_is_raised_in_its_place() -> None:
    """After the results before it."""
    results = ordered_map(lambda number: 1 / number, [2, 1, 0, 4], concurrency=2, thread_name="test")
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_caller_that_stops_early_does_not_wait() -> None:
    """A call in progress goes on by itself, and the items that no call has begun are left out."""
    release, begun = threading.Event(), list[int]()

    def work(number: int) -> int:
        begun.append(number)
        if number:
            release.wait(30)
        return number

    results = ordered_map(work, range(8), concurrency=1, thread_name="test")
    try:
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]  # a generator
        assert not release.is_set()
    finally:
        release.set()
    assert set(begun) <= {0, 1}
