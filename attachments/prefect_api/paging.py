"""Lists of Prefect's API, which arrive in pages."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

PAGE = 200
"""Objects in one response, the most that Prefect returns."""

T = TypeVar("T")


def all_pages(read: Callable[..., Sequence[T]]) -> Iterator[T]:
    """Every object of a list. `read` takes `limit` and `offset`, as the methods of Prefect's client do."""
    offset = 0
    while page := read(limit=PAGE, offset=offset):
        yield from page
        if len(page) < PAGE:
            return
        offset += PAGE


async def all_pages_async(read: Callable[..., Awaitable[Sequence[T]]]) -> AsyncIterator[T]:
    """The same for an asynchronous client."""
    offset = 0
    while page := await read(limit=PAGE, offset=offset):
        for each in page:
            yield each
        if len(page) < PAGE:
            return
        offset += PAGE
