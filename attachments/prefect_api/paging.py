"""Lists of Prefect's API, which arrive in pages."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

PAGE = 200
"""Objects in one response, the most that Prefect returns."""

T = TypeVar("T")


def all_pages(read: Callable[[int], Sequence[T]]) -> Iterator[T]:
    """Every object of a list; `read` returns up to `PAGE` of them, from an offset on."""
    offset = 0
    while page := read(offset):
        yield from page
        if len(page) < PAGE:
            return
        offset += PAGE


async def all_pages_async(read: Callable[[int], Awaitable[Sequence[T]]]) -> AsyncIterator[T]:
    """The same for an asynchronous client."""
    offset = 0
    while page := await read(offset):
        for each in page:
            yield each
        if len(page) < PAGE:
            return
        offset += PAGE
