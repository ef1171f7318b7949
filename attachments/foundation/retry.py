"""Retries calls that may succeed later."""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from attachments.foundation import cancellation

T = TypeVar("T")


def back_off(first: float, longest: float = math.inf, factor: float = 2.0) -> Iterator[float]:
    """Endless pauses in seconds, from `first` up to `longest`; jitter of up to half keeps waiters out of step."""
    pause = first
    while True:
        yield pause * random.uniform(0.5, 1.5)  # noqa: S311  jitter, not a secret
        pause = min(longest, pause * factor)


def retry(
    call: Callable[[], T],
    errors: type[Exception] | tuple[type[Exception], ...],
    pauses: Iterable[float],
    *,
    is_retryable: Callable[[Exception], bool] = lambda _: True,
    sleep: Callable[[float], object] = cancellation.sleep,
) -> T:
    """The call's result. After one of `errors` it is called again, once after each of `pauses`.

    Raises the error of the last call or the first error that is not retryable, and what `sleep` raises: `RunCancelled`.
    """
    for pause in pauses:
        try:
            return call()
        except errors as error:
            if not is_retryable(error):
                raise
        sleep(pause)
    return call()
