"""Verification: whatever is not as recorded is found, told by key, and nothing else is."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pyrage
import pytest

from attachments.storage import Encryption, Manifest, Store, attachment_key, message_key, open_store
from attachments.storage.age import decryptor
from attachments.storage.verification import Difference, Discrepancy, verify, verify_message

from .samples import ATTACHMENT, CANARY, CONTENT, MESSAGE, PLACE, entry

OWNER = pyrage.x25519.Identity.generate()
TWO = attachment_key("two")


def record(store: Store, message: str, *names: str) -> None:
    """Stores an attachment of each name, and the manifest that says so."""
    entries = []
    for name in names:
        written = store.write(message, attachment_key(name), name, [CONTENT])
        entries.append(
            entry(
                name,
                **{
                    field: getattr(written, field)
                    for field in ("key", "bytes", "sha256", "stored_at", "stored_bytes", "stored_sha256")
                },
            )
        )
    fields = {"message_id": message, "message_key": message, "updated": "2026-11-22T12:00:00Z", "attachments": entries}
    store.update_manifest(message, lambda _: Manifest.model_validate(fields))


@pytest.fixture
def filled(store: Store) -> Store:
    record(store, MESSAGE, "one.pdf", "two.pdf")
    return store


def place_of(root: Path, name: str) -> Path:
    return root / MESSAGE / attachment_key(name)


def differences(store: Store) -> list[tuple[str, Discrepancy]]:
    return [(found.key, found.problem) for found in verify_message(store, MESSAGE).differences]


def test_what_is_as_recorded_passes(filled: Store) -> None:
    """With the number of objects and bytes that were read."""
    seen: list[int] = []
    checked = verify_message(filled, MESSAGE, progress=seen.append)
    assert (checked.objects, checked.bytes, checked.differences) == (2, 2 * len(CONTENT), ())
    assert sum(seen) == 2 * len(CONTENT)


def test_a_changed_byte_is_found(filled: Store, root: Path) -> None:
    """The size is right, the time may be: only reading tells."""
    (place_of(root, "one.pdf") / "one.pdf").write_bytes(CONTENT[:-1] + b"!")
    assert differences(filled) == [(f"{MESSAGE}/{attachment_key('one.pdf')}", Discrepancy.CONTENT)]


def test_a_cut_object_is_found_without_reading_it(filled: Store, root: Path) -> None:
    """By its size."""
    (place_of(root, "two.pdf") / "two.pdf").write_bytes(CONTENT[:-1])
    assert differences(filled) == [(f"{MESSAGE}/{attachment_key('two.pdf')}", Discrepancy.SIZE)]


def test_a_missing_object_is_found(filled: Store, root: Path) -> None:
    """Somebody tidied up."""
    (place_of(root, "two.pdf") / "two.pdf").unlink()
    assert differences(filled) == [(f"{MESSAGE}/{attachment_key('two.pdf')}", Discrepancy.MISSING)]


def test_an_object_that_no_manifest_names_is_found(filled: Store) -> None:
    """A run that died between the object and the manifest; or somebody else's file."""
    filled.write(MESSAGE, TWO, "stray.pdf", [b"x"])
    assert differences(filled) == [(f"{MESSAGE}/{TWO}", Discrepancy.UNRECORDED)]


def test_a_message_without_a_manifest_is_found(store: Store) -> None:
    """Its objects are unrecorded."""
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])
    assert differences(store) == [(PLACE, Discrepancy.UNRECORDED)]


def test_a_damaged_manifest_is_found(filled: Store, root: Path) -> None:
    """It says nothing, so nothing else can be said of its message."""
    (root / MESSAGE / "manifest.json").write_text("{")
    assert differences(filled) == [(MESSAGE, Discrepancy.MANIFEST)]


def test_nothing_that_is_told_holds_a_file_name(store: Store, root: Path) -> None:
    """Differences are printed, and land in logs."""
    record(store, MESSAGE, CANARY)
    (place_of(root, CANARY) / CANARY).unlink()
    (place_of(root, CANARY) / f"x{CANARY}").write_bytes(b"x")
    told = verify_message(store, MESSAGE).differences
    assert len(told) == 2
    assert CANARY not in repr(told)


def test_encrypted_objects_are_verified_with_and_without_the_identity(root: Path) -> None:
    """Without it the ciphertext is compared; with it, what comes out as well."""
    store = open_store(str(root), encryption=Encryption(age_recipients=(str(OWNER.to_public()),)))
    record(store, MESSAGE, "one.pdf")
    unseal = decryptor(str(OWNER))
    assert verify_message(store, MESSAGE).differences == ()
    assert verify_message(store, MESSAGE, unseal=unseal).differences == ()
    path = place_of(root, "one.pdf") / "one.pdf.age"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    place = f"{MESSAGE}/{attachment_key('one.pdf')}"
    assert verify_message(store, MESSAGE).differences == (Difference(place, Discrepancy.CONTENT),)
    assert verify_message(store, MESSAGE, unseal=unseal).differences == (Difference(place, Discrepancy.CONTENT),)
    stranger = decryptor(str(pyrage.x25519.Identity.generate()))
    path.write_bytes(whole)
    assert verify_message(store, MESSAGE, unseal=stranger).differences == (Difference(place, Discrepancy.SEALED),)


def test_many_messages_are_verified_a_few_at_a_time(store: Store) -> None:
    """In the order of their keys, with no more begun than are allowed at once."""
    keys = [message_key(str(number)) for number in range(20)]
    for key in keys:
        record(store, key, "a.pdf")
    begun: list[str] = []
    threads: set[str] = set()

    def counted() -> object:
        for key in keys:
            begun.append(key)
            yield key

    checked = verify(store, counted(), at_once=3, progress=lambda _: threads.add(threading.current_thread().name))  # type: ignore[arg-type]
    assert next(checked).message_key == keys[0]
    assert len(begun) <= 7
    assert [found.message_key for found in checked] == keys[1:]
    assert len(threads) <= 3
    assert sorted(store.message_keys()) == sorted(keys)


def test_what_dead_writers_left_is_found_and_cleared(store: Store, root: Path) -> None:
    """A file that a living writer holds is not among it, however old."""
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])
    dead = root / ".incoming" / f"{MESSAGE}.{TWO}.0011223344556677"
    dead.write_bytes(b"part")

    def looking() -> object:
        yield b"x"
        assert [left.key for left in store.orphans(older_than=timedelta(0))] == [f"{MESSAGE}/{TWO}"]

    store.write(MESSAGE, attachment_key("three"), "b.pdf", looking())  # type: ignore[arg-type]
    assert list(store.orphans(older_than=timedelta(hours=1))) == []
    for left in store.orphans(older_than=timedelta(0)):
        store.clear(left)
    assert not dead.exists()
