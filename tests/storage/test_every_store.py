"""The contract, kept by every store: one suite, seven places (S3 by two implementations)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from attachments.storage import Store

from .contract import StoreContract
from .places import KINDS, Place, Places


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
