"""The contract, kept by every store: one suite, seven places (S3 by two implementations)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from threading import Timer

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from attachments.storage import Store
from attachments.storage.errors import StoreUnavailable
from attachments.storage.retention import retention_cutoff

from .contract import StoreContract
from .places import KINDS, Place, Places, kinds
from .samples import ATTACHMENT, CONTENT, MESSAGE, PLACE


class TestEveryStore(StoreContract):
    """All of the contract, in every place."""

    place: Place

    @pytest.fixture(params=kinds(KINDS))
    def store(self, request: pytest.FixtureRequest, places: Places) -> Store:
        self.place = places.make(request.param)
        return self.place.open()

    def visible(self, store: Store) -> Mapping[str, bytes]:
        return self.place.visible()

    def pending(self, store: Store) -> list[str]:
        return self.place.open_uploads()

    def plant(self, store: Store, key: str, content: bytes) -> None:
        self.place.plant(key, content)

    def test_a_probe_leaves_the_store_as_it_was(self, store: Store) -> None:
        """In a new store and in one in use, beside other probes; what a dead prober has left goes with it."""
        assert store.probe() in {"works", "not made yet"}
        assert set(self.place.everything()) <= {".store"}  # what every first write to S3 leaves
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
        before = self.place.everything()
        if self.place.kind != "local":  # whose probes have no names
            self.place.plant(".probe/doctor", b"left by a dead prober")
        with ThreadPoolExecutor(2) as threads:
            assert set(threads.map(lambda _: self.probed(store), range(4))) == {"works"}
        assert self.place.everything() == before
        assert list(store.message_keys()) == [MESSAGE]

    def probed(self, store: Store) -> str:
        """Again where rclone breaks off a reading since another probe writes: a file in place, not an object."""
        for _ in range(5 if self.place.kind == "s3-rclone" else 0):
            with suppress(StoreUnavailable):
                return store.probe()
        return store.probe()

    def test_who_asks_for_the_time_leaves_the_store_as_it_was(self, store: Store) -> None:
        """Several at once as well; each is told the store's own time."""
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
        before = self.place.everything()
        with ThreadPoolExecutor(3) as threads:
            # Patiently: over SFTP one may remove the folder that another has just made.
            moments = list(threads.map(lambda _: retention_cutoff(timedelta(0), store), range(6)))
        assert max(moments) - min(moments) < timedelta(minutes=1)
        assert self.place.everything() == before


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
