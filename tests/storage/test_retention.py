"""Retention: just what is due goes, its record stays, and a purge that died is set right by the next."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyrage import x25519

from attachments.cancelling import CURRENT, Cancellation, RunCancelled
from attachments.storage import (
    Encryption,
    Manifest,
    ManifestAttachment,
    Store,
    StoredObject,
    attachment_key,
    message_key,
    open_store,
    retention,
)
from attachments.storage.errors import AccessDenied, StoreUnavailable
from attachments.storage.retention import Counts, Policy, held_keys, purge, purge_message
from attachments.storage.verification import verify_message

from . import processes
from .samples import MESSAGE, MESSAGE_ID, manifest

NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=400)
YEAR = Policy(before=NOW - timedelta(days=365), is_real=True)


def keep(
    root: Path, store: Store, name: str, written: datetime, *, message: str = MESSAGE_ID, content: bytes = b"content"
) -> StoredObject:
    """An attachment that was stored at that moment, with its record."""
    key = message_key(message)
    made = store.write(key, attachment_key(name), name, [content])
    os.utime(root / made.key, (written.timestamp(), written.timestamp()))
    found = ManifestAttachment(
        id=name,
        attachment_key=attachment_key(name),
        name=name,
        outcome="stored",
        key=made.key,
        bytes=made.bytes,
        sha256=made.sha256,
        stored_at=written,
        stored_bytes=made.stored_bytes,
        stored_sha256=made.stored_sha256,
    )
    new = manifest(found, message_id=message, message_key=key, updated=written)
    store.update_manifest(key, lambda known: known.merged_with(new) if known else new)
    return made


def outcomes(store: Store, key: str = MESSAGE) -> dict[str, str]:
    found = store.read_manifest(key)
    return {str(entry.name): entry.outcome for entry in found.attachments} if found else {}


def test_only_what_is_due_goes_and_the_record_stays(root: Path, store: Store) -> None:
    """The older attachment of two: its file is gone, what it was stands in the manifest."""
    old, new = keep(root, store, "old.pdf", OLD), keep(root, store, "new.pdf", NOW)
    looked = purge_message(store, MESSAGE, YEAR)
    assert (looked.due, looked.purged, looked.bytes) == (1, 1, old.bytes)
    assert set(store.objects(MESSAGE)) == {new.key}
    assert outcomes(store) == {"old.pdf": "purged", "new.pdf": "stored"}
    known = store.read_manifest(MESSAGE)
    assert known is not None
    entry = known.entry(attachment_key("old.pdf"))
    assert entry is not None
    assert (entry.sha256, entry.bytes, entry.key, entry.stored_at) == (old.sha256, old.bytes, old.key, OLD)
    assert entry.purged_at is not None
    assert entry.purged_at > NOW
    assert known.complete
    assert known.settles(lambda _: True)
    assert verify_message(store, MESSAGE).differences == ()


def test_a_dry_run_counts_the_same_and_touches_nothing(root: Path, store: Store) -> None:
    """What it says is what a real one does then."""
    for number in range(5):
        keep(root, store, f"{number}.pdf", OLD, message=f"message {number}")
        keep(root, store, f"{number}-new.pdf", NOW, message=f"message {number}")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    dry = purge(store, store.message_keys(), Policy(before=YEAR.before))
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    real = purge(store, store.message_keys(), YEAR)
    assert dry == real
    assert (real.messages, real.due, real.purged) == (5, 5, 5)
    assert purge(store, store.message_keys(), YEAR).due == 0


def test_the_moment_itself_is_not_due(root: Path, store: Store) -> None:
    """Older than so many days, not as old."""
    keep(root, store, "a.pdf", YEAR.before)
    assert purge_message(store, MESSAGE, YEAR).due == 0
    assert outcomes(store) == {"a.pdf": "stored"}


def test_what_is_held_stays(root: Path, store: Store) -> None:
    """By a file beside the manifest, or by a list of ids and keys, whatever their case and blanks."""
    for name in ("file", "id", "key", "free"):
        keep(root, store, "a.pdf", OLD, message=name)
    (root / message_key("file") / "hold").touch()
    holds = held_keys(["  id\n", message_key("key").upper(), "", " "])
    counts = purge(store, store.message_keys(), Policy(before=YEAR.before, is_real=True, forgets=True, holds=holds))
    assert (counts.due, counts.held, counts.purged, counts.forgotten) == (4, 3, 1, 1)
    assert {key for key in store.message_keys() if store.objects(key)} == {
        message_key(name) for name in ("file", "id", "key")
    }


def test_what_the_store_says_was_written_later_is_left_alone(root: Path, store: Store) -> None:
    """A manifest that was altered, or a clock that was wrong, purges nothing that is young."""
    made = keep(root, store, "a.pdf", OLD)
    os.utime(root / made.key)
    looked = purge_message(store, MESSAGE, Policy(before=YEAR.before, is_real=True, forgets=True))
    assert (looked.due, looked.purged, looked.younger, looked.forgotten) == (1, 0, 1, False)
    assert store.objects(MESSAGE)
    assert outcomes(store) == {"a.pdf": "stored"}


@pytest.mark.parametrize(
    "key",
    [
        f"{MESSAGE}/manifest.json",
        f"{MESSAGE}/{attachment_key('a.pdf')}/..",
        f"../{MESSAGE}/x",
        f"{message_key('other')}/{attachment_key('a.pdf')}/a.pdf",
        f"{MESSAGE}/{attachment_key('b.pdf')}/b.pdf",
        "/etc/passwd",
        None,
    ],
)
def test_a_record_that_names_anothers_place_removes_nothing(root: Path, store: Store, key: str | None) -> None:
    """Whoever may write a manifest must not choose what is removed."""
    keep(root, store, "a.pdf", OLD)
    keep(root, store, "b.pdf", NOW)
    keep(root, store, "a.pdf", OLD, message="other")
    before = {path for path in root.rglob("*") if path.is_file() and ".locks" not in path.parts}

    def altered(known: Manifest | None) -> Manifest:
        assert known is not None
        first, *rest = known.attachments
        return known.model_copy(update={"attachments": (first.model_copy(update={"key": key}), *rest)})

    store.update_manifest(MESSAGE, altered)
    looked = purge_message(store, MESSAGE, YEAR)
    assert (looked.purged, looked.strange) == (0, 1)
    assert {path for path in root.rglob("*") if path.is_file() and ".locks" not in path.parts} == before


def test_what_is_not_what_was_recorded_is_left_alone(root: Path, store: Store) -> None:
    """Another size: somebody else's file stands there now."""
    made = keep(root, store, "a.pdf", OLD)
    (root / made.key).write_bytes(b"theirs, and longer")
    os.utime(root / made.key, (OLD.timestamp(), OLD.timestamp()))
    assert purge_message(store, MESSAGE, YEAR).strange == 1
    assert (root / made.key).read_bytes() == b"theirs, and longer"


def test_what_was_lost_and_is_not_due_is_no_purge(root: Path, store: Store) -> None:
    """A file that vanished stays recorded as stored: `verify` has to find it."""
    made = keep(root, store, "a.pdf", NOW)
    (root / made.key).unlink()
    purge_message(store, MESSAGE, YEAR)
    assert outcomes(store) == {"a.pdf": "stored"}
    assert len(verify_message(store, MESSAGE).differences) == 1


@pytest.mark.parametrize("removals", range(4))
def test_a_purge_that_is_killed_is_set_right_by_the_next(root: Path, store: Store, removals: int) -> None:
    """`kill -9` after none, one, two or all three files, before the manifest: then all are gone and recorded."""
    for name in ("a.pdf", "b.pdf", "c.pdf"):
        keep(root, store, name, OLD)
    new = keep(root, store, "new.pdf", NOW)

    def killed() -> None:
        left = [removals]
        inner = open_store(str(root))
        remove, record = inner.remove, inner.update_manifest

        def counted(key: str) -> None:
            if left[0] == 0:
                processes.kill_me()
            left[0] -= 1
            remove(key)

        inner.remove = counted  # type: ignore[method-assign]
        inner.update_manifest = lambda *_: processes.kill_me() or record(*_)  # type: ignore[method-assign, func-returns-value]
        purge_message(inner, MESSAGE, YEAR)

    assert processes.ended(processes.start(killed)) == -9
    assert len(store.objects(MESSAGE)) == 4 - removals
    assert purge_message(store, MESSAGE, YEAR).purged == 3
    assert set(store.objects(MESSAGE)) == {new.key}
    assert outcomes(store) == {"a.pdf": "purged", "b.pdf": "purged", "c.pdf": "purged", "new.pdf": "stored"}


def test_one_that_cannot_be_removed_leaves_a_true_record_of_the_others(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is gone and recorded as purged, the second stands and is recorded as stored."""
    keep(root, store, "a.pdf", OLD)
    second = keep(root, store, "b.pdf", OLD)
    remove = store.remove

    def refusing(key: str) -> None:
        if key == second.key:
            raise AccessDenied("could not remove it", key=MESSAGE)
        remove(key)

    monkeypatch.setattr(store, "remove", refusing)
    with pytest.raises(AccessDenied):
        purge_message(store, MESSAGE, YEAR)
    assert outcomes(store) == {"a.pdf": "purged", "b.pdf": "stored"}
    counts = purge(store, [MESSAGE], YEAR)
    assert counts.failures == {"access-denied": 1}


def test_a_store_that_is_away_ends_the_purge(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a million failures: after some in a row it is the store. One that is refused among others is not."""
    monkeypatch.setattr(retention, "PAUSES", (0.0,))
    asked: list[str] = []

    def failing(key: str) -> None:
        asked.append(key)
        raise StoreUnavailable("the store does not answer", key=key)

    monkeypatch.setattr(store, "read_manifest", failing)
    with pytest.raises(StoreUnavailable):
        purge(store, (message_key(str(number)) for number in range(100_000)), YEAR, at_once=4)
    assert len(asked) < 100
    assert len(set(asked)) < len(asked), "what can pass is tried again"


def test_a_damaged_manifest_is_counted_and_left(root: Path, store: Store) -> None:
    """Nothing of that message is touched; the others are."""
    made = keep(root, store, "a.pdf", OLD, message="damaged")
    keep(root, store, "a.pdf", OLD, message="sound")
    (root / message_key("damaged") / "manifest.json").write_text("{")
    counts = purge(store, store.message_keys(), YEAR)
    assert (counts.purged, counts.failures) == (1, {"invalid-manifest": 1})
    assert (root / made.key).exists()


def test_forgetting_removes_the_record_of_what_is_over(root: Path, store: Store) -> None:
    """When nothing of the message is left: purged just now, long ago, or never stored. Not of one that is young."""
    policy = Policy(before=YEAR.before, is_real=True, forgets=True)
    keep(root, store, "a.pdf", OLD, message="over")
    keep(root, store, "a.pdf", OLD, message="partly")
    keep(root, store, "b.pdf", NOW, message="partly")
    keep(root, store, "a.pdf", OLD, message="purged")
    purge_message(store, message_key("purged"), YEAR)
    for name, updated in (("nothing", OLD), ("nothing yet", NOW)):
        key = message_key(name)
        empty = manifest(message_id=name, message_key=key, updated=updated)
        store.update_manifest(key, lambda _, empty=empty: empty)  # type: ignore[misc]
    counts = purge(store, list(store.message_keys()), policy)
    assert counts.forgotten == 3
    assert set(store.message_keys()) == {message_key("partly"), message_key("nothing yet")}
    assert outcomes(store, message_key("partly")) == {"a.pdf": "purged", "b.pdf": "stored"}


def test_a_run_that_knew_the_object_before_does_not_bring_its_record_back(root: Path, store: Store) -> None:
    """A download that read the manifest before the purge and writes it after: purged stays purged."""
    keep(root, store, "a.pdf", OLD)
    stale = store.read_manifest(MESSAGE)
    assert stale is not None
    purge_message(store, MESSAGE, YEAR)
    store.update_manifest(MESSAGE, lambda known: known.merged_with(stale) if known else stale)
    assert outcomes(store) == {"a.pdf": "purged"}


def test_what_is_fetched_again_on_purpose_is_stored_again(root: Path, store: Store) -> None:
    """And it has its whole time before it is due."""
    keep(root, store, "a.pdf", OLD)
    purge_message(store, MESSAGE, YEAR)
    keep(root, store, "a.pdf", NOW)
    assert outcomes(store) == {"a.pdf": "stored"}
    assert purge_message(store, MESSAGE, YEAR).due == 0


def test_what_is_stored_again_meanwhile_is_not_recorded_as_purged(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the removal and the record: the manifest is looked at again, as it stands then."""
    keep(root, store, "a.pdf", OLD)
    remove = store.remove

    def overtaken(key: str) -> None:
        remove(key)
        keep(root, store, "a.pdf", NOW)

    monkeypatch.setattr(store, "remove", overtaken)
    purge_message(store, MESSAGE, YEAR)
    assert outcomes(store) == {"a.pdf": "stored"}
    assert len(store.objects(MESSAGE)) == 1


def test_an_encrypted_store(root: Path) -> None:
    """What stands there is longer than the attachment, and its name ends in `.age`."""
    recipient = str(x25519.Identity.generate().to_public())
    store = open_store(str(root), {}, Encryption(age_recipients=(recipient,)))
    made = keep(root, store, "a.pdf", OLD)
    assert made.key.endswith(".age")
    assert purge_message(store, MESSAGE, YEAR).purged == 1
    assert store.objects(MESSAGE) == {}


def test_memory_does_not_grow_with_the_messages(store: Store) -> None:
    """Keys are taken as there is use for them: a few more than are looked at at a time."""
    taken = [0]

    def keys() -> Iterator[str]:
        for number in range(1000):
            taken[0] += 1
            yield message_key(str(number))

    ahead: list[int] = []

    def tell(counts: Counts) -> None:
        ahead.append(taken[0] - counts.messages)

    assert purge(store, keys(), YEAR, at_once=4, tell=tell).messages == 1000
    assert max(ahead) <= 2 * 4


def test_removals_are_paced(root: Path, store: Store) -> None:
    """So many objects a second, over all threads."""
    for number in range(6):
        keep(root, store, "a.pdf", OLD, message=str(number))
    started = datetime.now(UTC)
    purge(store, store.message_keys(), Policy(before=YEAR.before, is_real=True, per_second=10))
    assert datetime.now(UTC) - started >= timedelta(seconds=0.5)


def test_cancelling_ends_a_purge(root: Path, store: Store) -> None:
    """Before the next message; what was done is recorded."""
    keep(root, store, "a.pdf", OLD)
    wish = Cancellation()
    wish.ask()
    CURRENT.set(wish)
    try:
        with pytest.raises(RunCancelled):
            purge(store, store.message_keys(), YEAR)
    finally:
        CURRENT.set(None)
    assert outcomes(store) == {"a.pdf": "stored"}
