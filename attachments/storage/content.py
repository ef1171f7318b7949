"""An object's content, and how a stream of chunks is written to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from attachments.storage.hashing import StreamHash

Write = Callable[[bytes], object]
Transform = Callable[[Iterable[bytes], Write], None]
"""Reads all chunks and writes the transformed stream: ciphertext or plaintext."""


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
    with _Tally(write if seal is None else None) as plain:
        if seal is None:
            for chunk in _owned(chunks):
                plain.take(chunk)
            return Content.plain(plain.bytes, plain.sha256())
        with _Tally(write) as sealed:
            seal(map(plain.take, _owned(chunks)), sealed.take)
            return Content(plain.bytes, plain.sha256(), sealed.bytes, sealed.sha256())


class _Tally:
    """Counts and hashes chunks, and passes them on."""

    def __init__(self, write: Write | None) -> None:
        self._write = write
        self._hash = StreamHash()
        self.bytes = 0

    def take(self, chunk: bytes) -> bytes:
        self.bytes += len(chunk)
        self._hash.update(chunk)
        if self._write is not None:
            self._write(chunk)
        return chunk

    def sha256(self) -> str:
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hash.close()


def _owned(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Chunks as bytes: the hash may lag behind, so a buffer that the source reuses is copied."""
    for buffer in chunks:
        yield buffer if isinstance(buffer, bytes) else bytes(memoryview(buffer))
