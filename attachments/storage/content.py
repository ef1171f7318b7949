"""An object's content, and how a stream of chunks is written to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

Write = Callable[[bytes], object]
Transform = Callable[[Iterable[bytes], Write], None]
"""Reads all chunks and writes the transformed stream: ciphertext or plaintext."""

LARGE_CHUNK = 256 * 1024
"""Bytes from which on a chunk is hashed in a thread: a smaller one takes less time than the start of a thread."""


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
    with ThreadPoolExecutor(thread_name_prefix="attachment-sha256") as threads:
        if seal is None:
            plain = _Tally(write, threads)
            for chunk in _owned(chunks):
                plain.take(chunk)
            return Content.plain(plain.bytes, plain.sha256())
        plain, sealed = _Tally(None, threads), _Tally(write, threads)
        seal(map(plain.take, _owned(chunks)), sealed.take)
        return Content(plain.bytes, plain.sha256(), sealed.bytes, sealed.sha256())


class _Tally:
    """Counts and hashes chunks, and writes them.

    A large chunk is hashed in a thread while it is written and the next one is read; at most one chunk waits. A
    download of 1 GB on 2 busy cores, relative to `curl -o`: 0.65 with the hash between the writes, 0.8 beside them.
    """

    def __init__(self, write: Write | None, threads: Executor) -> None:
        self._write = write
        self._threads = threads
        self._hash = hashlib.sha256()
        self._hashing: Future[None] | None = None
        self.bytes = 0

    def take(self, chunk: bytes) -> bytes:
        self.bytes += len(chunk)
        self._wait()
        if len(chunk) < LARGE_CHUNK:
            self._hash.update(chunk)
        else:
            self._hashing = self._threads.submit(self._hash.update, chunk)
        if self._write is not None:
            self._write(chunk)
        return chunk

    def sha256(self) -> str:
        self._wait()
        return self._hash.hexdigest()

    def _wait(self) -> None:
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None


def _owned(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Chunks as bytes: the hash may lag behind, so a buffer that the source reuses is copied."""
    for buffer in chunks:
        yield buffer if isinstance(buffer, bytes) else bytes(memoryview(buffer))
