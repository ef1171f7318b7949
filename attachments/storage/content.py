"""An object's content, and how a stream of chunks is written to it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

Write = Callable[[bytes], object]
Transform = Callable[[Iterable[bytes], Write], None]
"""Reads all chunks and writes the transformed stream: ciphertext or plaintext."""

LARGE_CHUNK = 256 * 1024
"""Bytes from which on a chunk is hashed in a thread: a smaller one takes less time than the start of a thread."""
WAITING_CHUNKS = 4
"""Large chunks that may wait for the hash to take them."""


@dataclass(frozen=True)
class Content:
    """Size in bytes and SHA-256 as hex digits, of the attachment and of the stored object.

    The two differ only if the object is encrypted.
    """

    bytes: int
    sha256: str
    stored_bytes: int
    stored_sha256: str

    @classmethod
    def plain(cls, size: int, sha256: str) -> Content:
        """Content that is stored unencrypted."""
        return cls(size, sha256, size, sha256)

    @property
    def is_sealed(self) -> bool:
        """Whether the stored object is ciphertext."""
        return (self.bytes, self.sha256) != (self.stored_bytes, self.stored_sha256)

    def is_same_attachment(self, other: Content) -> bool:
        """Whether both are the same attachment, however each is stored."""
        return (self.bytes, self.sha256) == (other.bytes, other.sha256)


def pour(chunks: Iterable[bytes], write: Write, seal: Transform | None = None) -> Content:
    """Write all chunks, transformed by `seal` if given, and return their sizes and hashes.

    Errors of `chunks` and `write` are raised unchanged.
    """
    with _hash_thread() as thread:
        if seal is None:
            plain = _Tally(write, thread)
            for chunk in _owned(chunks):
                plain.take(chunk)
            return Content.plain(plain.bytes, plain.sha256())
        with _hash_thread() as second_thread:
            plain, sealed = _Tally(None, thread), _Tally(write, second_thread)
            seal(map(plain.take, _owned(chunks)), sealed.take)
            return Content(plain.bytes, plain.sha256(), sealed.bytes, sealed.sha256())


def _hash_thread() -> ThreadPoolExecutor:
    """One thread, started by the first large chunk: a hash takes its chunks in order."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="attachment-sha256")


class _Tally:
    """Counts and hashes chunks, and writes them.

    Large chunks are hashed in a thread while they are written and the next ones are read. A download of 1 GB on 2 idle
    cores, relative to `curl -o`: 0.94 to 1.0 in five runs with one chunk waiting, 1.0 to 1.04 in four runs with four.
    """

    def __init__(self, write: Write | None, thread: Executor) -> None:
        self._write = write
        self._thread = thread
        self._hash = hashlib.sha256()
        self._waiting: deque[Future[None]] = deque()
        self.bytes = 0

    def take(self, chunk: bytes) -> bytes:
        self.bytes += len(chunk)
        if len(chunk) < LARGE_CHUNK:
            self._wait(0)
            self._hash.update(chunk)
        else:
            self._wait(WAITING_CHUNKS - 1)
            self._waiting.append(self._thread.submit(self._hash.update, chunk))
        if self._write is not None:
            self._write(chunk)
        return chunk

    def sha256(self) -> str:
        self._wait(0)
        return self._hash.hexdigest()

    def _wait(self, most: int) -> None:
        """Until at most `most` chunks wait."""
        while len(self._waiting) > most:
            self._waiting.popleft().result()


def _owned(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Chunks as bytes: the hash may lag behind, so a buffer that the source reuses is copied."""
    for buffer in chunks:
        yield buffer if isinstance(buffer, bytes) else bytes(memoryview(buffer))
