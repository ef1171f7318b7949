"""The contract, kept by the local store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attachments.storage import Store

from .contract import StoreContract
from .samples import leftovers, objects


class TestLocalStore(StoreContract):
    """All of the contract, on this machine's file system."""

    def visible(self, store: Store) -> Mapping[str, bytes]:
        return objects(self._root(store))

    def pending(self, store: Store) -> list[str]:
        return leftovers(self._root(store))

    def plant(self, store: Store, key: str, content: bytes) -> None:
        path = self._root(store) / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _root(self, store: Store) -> Path:
        return Path(store.url.removeprefix("file://"))
