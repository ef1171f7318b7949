"""The bytes of an attachment: held, spooled or generated, always read in pieces."""

import hashlib
import os
import random
import tempfile
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol

PIECE = 256 * 1024
"""Bytes per piece."""

# A prime, so that no part size of any store divides the period: parts put together in the wrong order show.
_BLOCK_BYTES = 16_777_259


class Body(Hashable, Protocol):
    """The body of a download: its size in bytes, and its content in pieces, from the beginning each time."""

    @property
    def size(self) -> int: ...

    def pieces(self) -> Iterator[memoryview]: ...


@dataclass(frozen=True)
class HeldBody:
    """Content in memory."""

    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def pieces(self) -> Iterator[memoryview]:
        view = memoryview(self.content)
        for start in range(0, len(view), PIECE):
            yield view[start : start + PIECE]


@dataclass(frozen=True)
class GeneratedBody:
    """Any number of bytes that depend only on the seed, in constant memory.

    The SHA-256 of the seed, then a shared random block read round and round from an offset that the seed
    sets; so no two seeds agree in the first 32 bytes.
    """

    seed: str
    size: int

    def pieces(self) -> Iterator[memoryview]:
        digest = hashlib.sha256(self.seed.encode("utf-8", "surrogatepass")).digest()
        left = self.size
        head = memoryview(digest)[:left]
        if head:
            yield head
        left -= len(head)
        block = _random_block()
        position = int.from_bytes(digest[:8], "big") % len(block)
        while left > 0:
            piece = block[position : position + min(PIECE, left)]
            yield piece
            left -= len(piece)
            position = (position + len(piece)) % len(block)


@dataclass(frozen=True)
class SpooledBody:
    """A range of the spool file."""

    spool: "Spool"
    offset: int
    size: int

    def pieces(self) -> Iterator[memoryview]:
        position, end = self.offset, self.offset + self.size
        while position < end:
            piece = self.spool.read(position, min(PIECE, end - position))
            yield memoryview(piece)
            position += len(piece)


class Spool:
    """A nameless temporary file for the content of mail, so that memory does not grow with the mail."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="sandbox-mail-")  # noqa: SIM115  (closed by close())
        self._end = 0

    def keep(self, content: bytes) -> SpooledBody:
        """Appends the content and returns the body that reads it back."""
        body = SpooledBody(self, self._end, len(content))
        self._file.write(content)
        self._file.flush()
        self._end += len(content)
        return body

    def read(self, offset: int, length: int) -> bytes:
        """Read up to `length` bytes; raises EOFError if another program has truncated the file."""
        piece = os.pread(self._file.fileno(), length, offset)
        if not piece:
            raise EOFError(f"the spool ends before byte {offset}; restart the sandbox")
        return piece

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()


@lru_cache(maxsize=65_536)
def sha256(body: Body) -> str:
    """The SHA-256 of the whole content in hex; computed once per body, on first use."""
    digest = hashlib.sha256()
    for piece in body.pieces():
        digest.update(piece)
    return digest.hexdigest()


@cache
def _random_block() -> memoryview:
    return memoryview(random.Random("emailgistics sandbox").randbytes(_BLOCK_BYTES))  # noqa: S311  (test data)
