"""The hash of a stream is the hash of its bytes, and memory does not grow with it."""

from __future__ import annotations

import hashlib
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attachments.storage import Store
from attachments.storage.hashing import LONG, StreamHash

from .samples import ATTACHMENT, MESSAGE


@given(st.lists(st.sampled_from([0, 1, 63, 64_000, 511_999, 1_048_576, LONG - 1, LONG, LONG + 1]), max_size=6))
def test_it_is_the_hash_of_all_chunks(sizes: list[int]) -> None:
    """Short or long, however it is cut."""
    expected, streamed = hashlib.sha256(), StreamHash()
    for number, size in enumerate(sizes):
        chunk = bytes([number]) * size
        expected.update(chunk)
        streamed.update(chunk)
    assert streamed.hexdigest() == expected.hexdigest()


def hashing_threads() -> int:
    return sum(thread.name == "attachment-sha256" for thread in threading.enumerate())


@pytest.mark.parametrize("ends_well", [True, False])
def test_its_thread_ends(ends_well: bool) -> None:
    """Also when the stream breaks off."""
    with StreamHash() as digest:
        for _ in range(10):
            digest.update(b"x" * LONG)
        assert hashing_threads() == 1
        if ends_well:
            digest.hexdigest()
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
