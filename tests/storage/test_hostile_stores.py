"""What somebody else may have put into a store: records that are too large, and keys that are none."""

from __future__ import annotations

import pytest

from attachments.storage import Manifest
from attachments.storage.errors import InvalidManifest, MalformedKey
from attachments.storage.manifest import LARGEST
from tests.storage.places import KINDS, Place, Places, kinds

from .samples import MESSAGE, PLACE, manifest


@pytest.fixture(params=kinds(KINDS))
def place(request: pytest.FixtureRequest, places: Places) -> Place:
    return places.make(request.param)


OVERSIZED = manifest().to_bytes().rstrip()[:-1] + b', "x": "' + b"x" * LARGEST + b'"}'
"""JSON of the right shape, and one field too large."""


def test_a_manifest_that_is_too_large_is_damaged_and_is_replaced(place: Place) -> None:
    """No reader takes more of it than a manifest may have, and the next run rebuilds it."""
    place.plant(f"{MESSAGE}/manifest.json", OVERSIZED)
    store = place.open()
    with pytest.raises(InvalidManifest, match="too large"):
        store.read_manifest(MESSAGE)
    given: list[Manifest | None] = []

    def change(current: Manifest | None) -> Manifest:
        given.append(current)
        return manifest()

    rebuilt = store.update_manifest(MESSAGE, change)
    assert given == [None]
    assert place.open().read_manifest(MESSAGE) == rebuilt


@pytest.mark.parametrize(
    "key", ["", MESSAGE, f"{PLACE}/a\0b", f"{PLACE}/../x", "a/b", f"{PLACE}/a/b", f"{PLACE}/a\nb", f"{PLACE}/.x", "/"]
)
def test_a_malformed_key_is_a_store_error(place: Place, key: str) -> None:
    """Of a reader too: no other error comes out, whatever the file system would make of it."""
    for act in (lambda: list(place.open().read(key)), lambda: place.open().remove(key)):
        with pytest.raises(MalformedKey):
            act()
