"""Objects sent in parts of one size, for services that take them so: at most two parts a stream are in memory.

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
"""The least that S3 takes, and a multiple of 256 KiB, as Google Cloud Storage wants it. R2 wants all parts alike."""

PATIENCE = 900.0
"""Seconds for one request with all its retries: the backends' own time-outs are shorter; this is the last resort."""

PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP's answers after which the same request may succeed."""

_RACES = frozenset({404, 409, 410, 412, 423, 425, 499})  # another writer's doing, or too early
_NEVER = frozenset({501, 505})  # not implemented

_TRIES = 5
_BACK_OFF = 0.5  # seconds before the second try, doubled for each, and up to as much again: 15 s at the most in all

T = TypeVar("T")


def is_permanent(status: int) -> bool:
    """Whether a response with this HTTP status refuses the request for good: the same request fails again tomorrow."""
    return status in _NEVER or (400 <= status < 500 and status not in PASSING_STATUS | _RACES)  # noqa: PLR2004  HTTP


class PartedUpload(Upload):
    """Collects bytes into parts. A subclass says how they are sent, in coroutines of the backend's event loop."""

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
            # Its failure is known already, or of no interest any more.
            with suppress(BaseException):
                self._under_way.result(PATIENCE)
        with suppress(Exception):
            run(self._abort(), self._loop)

    def _taken(self) -> bytes:
        part = b"".join(self._filling)
        self._filling, self._filled = [], 0
        return part

    def _send(self) -> None:
        """Sends a full part as soon as the one before it is through, and out of memory."""
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
        """The whole object, in one request. Raises Conflict."""

    @abstractmethod
    async def _begin(self) -> None:
        """Before the first part."""

    @abstractmethod
    async def _part(self, number: int, data: bytes) -> None:
        """A full part, counted from 1; one after another."""

    @abstractmethod
    async def _complete(self, number: int, data: bytes, metadata: Mapping[str, str]) -> None:
        """The last part, of 1 to `PART_BYTES` bytes, and then the commit. Raises Conflict."""

    @abstractmethod
    async def _abort(self) -> None:
        """Gives up what was sent. Its failures are swallowed."""


def run(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """What a coroutine of the backend's event loop returns or raises, in this thread."""
    return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE)


async def patiently(
    ask: Callable[[], Awaitable[T]], errors: tuple[type[Exception], ...], may_pass: Callable[[Exception], bool]
) -> T:
    """What a request answers; it is made again, after a growing pause, where an error may pass."""
    for attempt in range(_TRIES):
        try:
            return await ask()
        except errors as error:
            if attempt == _TRIES - 1 or not may_pass(error):
                raise
            await asyncio.sleep(_BACK_OFF * 2**attempt * random.uniform(1, 2))  # noqa: S311  # no secret
    raise AssertionError("a try returns or raises")
