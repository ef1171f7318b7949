"""The hash of a stream is the hash of its bytes, its thread ends, and memory does not grow with it."""

from __future__ import annotations

import hashlib
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachments.storage import Store
from attachments.storage.content import LARGE_CHUNK, Content, pour

from .samples import ATTACHMENT, MESSAGE


@given(st.lists(st.sampled_from([0, 1, 63, 64_000, LARGE_CHUNK - 1, LARGE_CHUNK, LARGE_CHUNK + 1]), max_size=12))
def test_it_is_the_hash_of_all_chunks(sizes: list[int]) -> None:
    """Large or small, in any order."""
    chunks = [bytes([number]) * size for number, size in enumerate(sizes)]
    written = bytearray()
    expected = Content.plain(sum(sizes), hashlib.sha256(b"".join(chunks)).hexdigest())
    assert pour(chunks, written.extend) == expected
    assert written == b"".join(chunks)


@pytest.mark.parametrize("size", [1000, LARGE_CHUNK])
def test_a_source_may_fill_its_buffer_again(size: int) -> None:
    """The hash of a chunk is not taken from the bytes of the next one."""
    expected = hashlib.sha256()

    def source() -> Iterator[bytearray]:
        buffer = bytearray(size)
        for number in range(100):
            buffer[:] = bytes([number]) * size
            expected.update(buffer)
            yield buffer

    content = pour(source(), lambda _: None)  # type: ignore[arg-type]
    assert content.sha256 == expected.hexdigest()


def hashing_threads() -> int:
    return sum(thread.name.startswith("attachment-sha256") for thread in threading.enumerate())


@pytest.mark.parametrize("ends_well", [True, False])
def test_its_thread_ends(ends_well: bool) -> None:
    """Also when the source breaks off."""
    seen = []

    def source() -> Iterator[bytes]:
        for _ in range(10):
            yield bytes(LARGE_CHUNK)
            seen.append(hashing_threads())
        if not ends_well:
            raise ConnectionError

    if ends_well:
        pour(source(), lambda _: None)
    else:
        with pytest.raises(ConnectionError):
            pour(source(), lambda _: None)
    assert 1 in seen
    assert hashing_threads() == 0


def test_memory_does_not_grow_with_the_file(store: Store) -> None:
    """100 MiB pass through in a few."""

    def source() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(1024 * 1024)

    tracemalloc.start()
    try:
        store.write(MESSAGE, ATTACHMENT, "a.bin", source())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * 1024 * 1024
