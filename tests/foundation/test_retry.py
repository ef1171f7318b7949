"""Calls that are made again."""

from contextvars import copy_context
from itertools import islice

import pytest

from attachments.foundation.cancellation import CURRENT, Cancellation, RunCancelled
from attachments.foundation.retry import back_off, retry


class Flaky:
    """Fails a number of times with one error, then succeeds."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "done"


def test_a_call_is_made_again_after_each_pause() -> None:
    """The pauses are slept between the calls, and none after the success."""
    flaky, slept = Flaky(2, OSError()), list[float]()
    assert retry(flaky, OSError, [1.0, 2.0, 3.0], sleep=slept.append) == "done"
    assert (flaky.calls, slept) == (3, [1.0, 2.0])


def test_the_last_error_is_raised() -> None:
    """After as many calls as pauses and one."""
    flaky = Flaky(9, OSError("last"))
    with pytest.raises(OSError, match="last"):
        retry(flaky, OSError, [0.0, 0.0], sleep=lambda _: None)
    assert flaky.calls == 3


@pytest.mark.parametrize("errors", [OSError, (OSError, KeyError)])
def test_other_errors_are_raised_at_once(errors: type[Exception] | tuple[type[Exception], ...]) -> None:
    """An error of another type is not retried, nor one that the caller calls permanent."""
    for error, is_retryable in ((ValueError(), True), (OSError(), False)):
        flaky = Flaky(9, error)
        with pytest.raises(type(error)):
            retry(flaky, errors, [0.0], is_retryable=lambda _, answer=is_retryable: answer, sleep=lambda _: None)  # type: ignore[misc]
        assert flaky.calls == 1


def test_a_cancelled_run_waits_no_longer() -> None:
    """The pause of an hour ends with the run's cancellation."""
    cancellation = Cancellation()
    flaky = Flaky(9, OSError())

    def run() -> None:
        CURRENT.set(cancellation)
        cancellation.cancel()
        retry(flaky, OSError, [3600.0])

    with pytest.raises(RunCancelled):
        copy_context().run(run)
    assert flaky.calls == 1


def test_pauses_grow_up_to_the_longest() -> None:
    """Each has up to half of itself as jitter, either way."""
    pauses = list(islice(back_off(1.0, 5.0), 6))
    for pause, expected in zip(pauses, [1.0, 2.0, 4.0, 5.0, 5.0, 5.0], strict=True):
        assert expected / 2 <= pause <= expected * 1.5
