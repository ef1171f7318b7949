"""Calls a function in threads, for any number of items, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], items: Iterable[T], *, concurrency: int, thread_name: str) -> Iterator[R]:
    """The results in the order of the items; at most twice `concurrency` items are taken ahead.

    The calls have the caller's context, and with it the run's cancellation. A caller that stops early does not wait for
    the calls in progress.
    """
    remaining = iter(items)
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix=thread_name)
    is_left = False
    try:
        while True:
            for item in islice(remaining, 2 * concurrency - len(waiting)):
                waiting.append(pool.submit(copy_context().run, function, item))
            if not waiting:
                return
            yield waiting.popleft().result()
    except (KeyboardInterrupt, GeneratorExit):
        is_left = True
        raise
    finally:
        pool.shutdown(wait=not is_left, cancel_futures=True)
