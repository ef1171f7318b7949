"""Uploads in parts of equal size: at most two parts per stream are in memory.

One that fits into a single part is sent in one request instead, at the end, when its hash is known. A part is on its
way while the next one fills. Measured with 8 streams of 1 GB: see `make bench`.
"""

from __future__ import annotations

import asyncio
import random
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from attachments.storage.backends.base import Upload

PART_BYTES = 5 * 1024 * 1024
"""S3's minimum, and a multiple of 256 KiB as Google Cloud Storage requires. R2 requires equal parts."""

PATIENCE = 900.0
"""Seconds for one request with all its retries. The backends' own timeouts are shorter; this is the last resort."""

PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses after which a retry may succeed."""

_RACES = frozenset({404, 409, 410, 412, 423, 425, 499})  # caused by another writer, or too early
_NEVER = frozenset({501, 505})  # not implemented

_TRIES = 5
_BACK_OFF = 0.5  # seconds before the first retry, doubled each time, with up to 100 % jitter: at most 15 s in all

T = TypeVar("T")


def is_permanent(status: int) -> bool:
    """Whether this HTTP status is a permanent refusal, so that a retry does not help."""
    return status in _NEVER or (400 <= status < 500 and status not in PASSING_STATUS | _RACES)  # noqa: PLR2004  HTTP


class PartedUpload(Upload):
    """Collects bytes into parts. A subclass sends them, in coroutines on the backend's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._filling: list[bytes | memoryview] = []
        self._filled = 0
        self._parts = 0
        self._under_way: Future[None] | None = None
        self._begun = False
        self._ended = False

    def write(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        while rest:
            if self._filled == PART_BYTES:
                self._send()
            room = PART_BYTES - self._filled
            if len(rest) > room:
                rest = memoryview(rest)
            self._filling.append(rest[:room])
            self._filled += min(room, len(rest))
            rest = rest[room:]

    def commit(self, metadata: Mapping[str, str]) -> None:
        if not self._begun:
            run(self._whole(self._taken(), metadata), self._loop)
        else:
            self._wait()
            run(self._complete(self._parts + 1, self._taken(), metadata), self._loop)
        self._ended = True

    def discard(self) -> None:
        if self._ended or not self._begun:
            return
        self._ended = True
        if self._under_way is not None:
            self._under_way.cancel()
            # Its error is already known, or no longer relevant.
            with suppress(BaseException):
                self._under_way.result(PATIENCE)
        with suppress(Exception):
            run(self._abort(), self._loop)

    def _taken(self) -> bytes:
        part = b"".join(self._filling)
        self._filling, self._filled = [], 0
        return part

    def _send(self) -> None:
        """Send a full part once the previous one has been sent and freed."""
        if not self._begun:
            run(self._begin(), self._loop)
            self._begun = True
        self._wait()
        self._parts += 1
        self._under_way = asyncio.run_coroutine_threadsafe(self._part(self._parts, self._taken()), self._loop)

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.result(PATIENCE)
            self._under_way = None

    @abstractmethod
    async def _whole(self, data: bytes, metadata: Mapping[str, str]) -> None:
        """Send the whole object in one request. Raises Conflict."""

    @abstractmethod
    async def _begin(self) -> None:
        """Called before the first part."""

    @abstractmethod
    async def _part(self, number: int, data: bytes) -> None:
        """Send a full part, numbered from 1, in order."""

    @abstractmethod
    async def _complete(self, number: int, data: bytes, metadata: Mapping[str, str]) -> None:
        """Send the last part, of 1 to `PART_BYTES` bytes, and commit. Raises Conflict."""

    @abstractmethod
    async def _abort(self) -> None:
        """Discard what was sent. Errors are ignored."""


def run(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """Run a coroutine on the backend's event loop, and return or raise its result in this thread."""
    return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE)


async def retry_transient(
    ask: Callable[[], Awaitable[T]], errors: tuple[type[Exception], ...], may_pass: Callable[[Exception], bool]
) -> T:
    """The response to a request, retried with growing pauses after transient errors."""
    for attempt in range(_TRIES):
        try:
            return await ask()
        except errors as error:
            if attempt == _TRIES - 1 or not may_pass(error):
                raise
            await asyncio.sleep(_BACK_OFF * 2**attempt * random.uniform(1, 2))  # noqa: S311  # no secret
    raise AssertionError("a try returns or raises")
