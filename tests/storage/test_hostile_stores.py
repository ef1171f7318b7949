"""What somebody else may have put into a store: records that are too large, and keys that are none."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyrage
import pytest

from attachments.blocks import AttachmentStore
from attachments.cli.main import main
from attachments.doctor.stores import check_store
from attachments.storage import Manifest, open_store
from attachments.storage.errors import InvalidManifest, MalformedKey
from attachments.storage.manifest import MAX_SIZE
from attachments.storage.retention import Budget, PurgePolicy, PurgeRate, purge
from tests.storage.places import KINDS, Place, Places, kinds

from .samples import MESSAGE, MESSAGE_ID, PLACE, manifest


@pytest.fixture(params=kinds(KINDS))
def place(request: pytest.FixtureRequest, places: Places) -> Place:
    return places.make(request.param)


OVERSIZED = manifest().to_bytes().rstrip()[:-1] + b', "x": "' + b"x" * MAX_SIZE + b'"}'
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


def test_every_reader_of_a_huge_manifest_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a gigabyte, each takes what a manifest may have and a byte more: commands, the purge, the doctor and a run."""
    monkeypatch.setenv("ATTACHMENTS_URL", str(tmp_path / "root"))
    store = open_store(str(tmp_path / "root"))
    store.update_manifest(MESSAGE, lambda _: manifest())
    path, identity = tmp_path / "root" / MESSAGE / "manifest.json", tmp_path / "identity"
    identity.write_text(str(pyrage.x25519.Identity.generate()))

    def read() -> None:
        with pytest.raises(InvalidManifest):
            store.read_manifest(MESSAGE)

    readers: list[Callable[[], object]] = [
        lambda: main(["locate", MESSAGE_ID]),
        lambda: main(["verify"]),
        lambda: main(["verify", MESSAGE_ID]),
        lambda: main(["decrypt", MESSAGE_ID, "--identity", str(identity), "--to", str(tmp_path)]),
        lambda: purge(store, PurgePolicy(datetime.now(UTC)), Budget(), PurgeRate()),
        lambda: check_store(AttachmentStore(url=(tmp_path / "root").as_uri()), "default"),
        read,
        lambda: store.update_manifest(MESSAGE, lambda _: manifest()),
    ]
    for reader in readers:
        os.truncate(path, 2**30)  # sparse: it takes no disk
        tracemalloc.start()
        try:
            reader()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 3 * MAX_SIZE, reader
    assert store.read_manifest(MESSAGE) is not None
    assert "Traceback" not in "".join(capsys.readouterr())
