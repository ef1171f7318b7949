"""The contract, kept by every store: one suite, seven places (S3 by two implementations)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import Timer

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from attachments.storage import Store

from .contract import StoreContract
from .places import KINDS, Place, Places
from .samples import ATTACHMENT, CONTENT, MESSAGE, PLACE


class TestEveryStore(StoreContract):
    """All of the contract, in every place."""

    place: Place

    @pytest.fixture(params=KINDS)
    def store(self, request: pytest.FixtureRequest, places: Places) -> Store:
        self.place = places.make(request.param)
        return self.place.open()

    def visible(self, store: Store) -> Mapping[str, bytes]:
        return self.place.visible()

    def pending(self, store: Store) -> list[str]:
        return self.place.open_uploads()

    def plant(self, store: Store, key: str, content: bytes) -> None:
        self.place.plant(key, content)


def test_a_memory_file_that_is_looked_at_grows_a_moment_later(places: Places) -> None:
    """While another thread asks for its size, Python does not let it."""

    def source() -> Iterator[bytes]:
        yield CONTENT[:1000]
        (incoming,) = (file for path, file in MemoryFileSystem.store.items() if f"/{place.name}/root/.incoming" in path)
        Timer(0.1, incoming.getbuffer().release).start()
        yield CONTENT[1000:]

    place = places.make("memory")
    place.open().write(MESSAGE, ATTACHMENT, "a.pdf", source())
    assert place.visible() == {f"{PLACE}/a.pdf": CONTENT}
