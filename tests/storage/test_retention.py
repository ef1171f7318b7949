"""Retention: what is due goes, nothing else does, and the record says so, whatever dies on the way."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pyrage
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from attachments.foundation.cancellation import CURRENT, Cancellation, RunCancelled
from attachments.storage import Encryption, Manifest, ManifestAttachment, Store, attachment_key, message_key, open_store
from attachments.storage import retention as retention_module
from attachments.storage.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidManifest,
    NotFound,
    StoreError,
    StoreUnavailable,
)
from attachments.storage.local.store import LocalStore
from attachments.storage.retention import (
    MAX_FAILURES_IN_A_ROW,
    Budget,
    Holds,
    PurgePolicy,
    PurgeRate,
    PurgeResult,
    PurgeTally,
    RemovedAttachment,
    purge,
    purge_message,
    retention_cutoff,
)
from attachments.storage.store import Inventory
from attachments.storage.verification import Discrepancy, verify_message
from tests.storage.local import test_crashes
from tests.storage.local.test_crashes import killed_at

from .places import Places
from .processes import ended, running
from .samples import ATTACHMENT, CANARY, CONTENT, MESSAGE, MESSAGE_ID, PLACE, entry, manifest, objects

NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=400)
YEAR = NOW - timedelta(days=365)
ALL = NOW + timedelta(days=1)
"""Everything was stored before tomorrow."""
QUICK = PurgeRate(concurrency=4, per_second=100_000)


def stored_entry(store: Store, message: str, name: str, at: datetime | None = None) -> ManifestAttachment:
    """Stores an attachment; `at` is when the manifest is to say that it was."""
    written = store.write(message, attachment_key(name), name, [CONTENT])
    told = {field: getattr(written, field) for field in ("key", "bytes", "sha256", "stored_bytes", "stored_sha256")}
    return entry(name, **told, stored_at=at or written.stored_at)


def record(store: Store, message: str, *entries: ManifestAttachment) -> Manifest:
    """Writes the manifest that names these."""
    made = manifest(*entries, message_key=message, updated=OLD)
    return store.update_manifest(message, lambda _: made)


def age(store: Store, entry: ManifestAttachment, at: datetime) -> None:
    """Makes the store say that an object came at that moment."""
    assert entry.key is not None
    if store.url.startswith("test-memory"):
        MemoryFileSystem.store[f"{store.url.removeprefix('test-memory://')}/{entry.key}"].created = at
    else:
        os.utime(Path(store.url.removeprefix("file://")) / entry.key, (at.timestamp(), at.timestamp()))


def fill(store: Store, message: str, *names: str) -> Manifest:
    """A message whose attachments have been there for longer than a year."""
    made = record(store, message, *(stored_entry(store, message, name, OLD) for name in names))
    for each in made.attachments:
        age(store, each, OLD)
    return made


def done(store: Store, policy: PurgePolicy | None = None, *, most: int | None = None, **more: object) -> PurgeTally:
    """One run over all of the store, for real unless the policy says otherwise."""
    return purge(store, policy or PurgePolicy(YEAR, dry_run=False), Budget(most), QUICK, **more)  # type: ignore[arg-type]


def outcomes(store: Store, message: str = MESSAGE) -> dict[str | None, str]:
    found = store.read_manifest(message)
    assert found is not None
    return {each.name: each.outcome for each in found.attachments}


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, places: Places) -> Store:
    return places.make(request.param).open()


def key_number(number: int) -> str:
    return message_key(f"message {number}")


def test_what_is_due_goes_and_nothing_else(store: Store) -> None:
    """Of two messages with an old and a new file each, the old ones; their record says what they were and when."""
    for message in (MESSAGE, key_number(1)):
        old, new = stored_entry(store, message, "old.pdf", OLD), stored_entry(store, message, "new.pdf")
        record(store, message, old, new, entry("logo.png", "filtered"), entry("bad.pdf", "failed"))
        age(store, old, OLD)
    tally = done(store)
    assert (tally.messages, tally.due, tally.purged, tally.purged_messages) == (2, 2, 2, 2)
    assert tally.bytes == 2 * len(CONTENT)
    assert not tally.failed
    for message in (MESSAGE, key_number(1)):
        assert list(store.inventory(message).objects) == [f"{message}/{attachment_key('new.pdf')}/new.pdf"]
        found = store.read_manifest(message)
        assert found is not None
        assert [each.outcome for each in found.attachments] == ["purged", "stored", "filtered", "failed"]
        purged, was = found.attachments[0], old.model_copy(update={"key": old.key and message + old.key[32:]})
        assert purged.purged_at is not None
        assert NOW - timedelta(seconds=60) < purged.purged_at < datetime.now(UTC)
        assert purged == was.as_purged(purged.purged_at)


def test_a_second_run_finds_nothing_to_do(store: Store) -> None:
    """And writes nothing."""
    fill(store, MESSAGE, "a.pdf")
    done(store)
    before = store.read_manifest(MESSAGE)
    tally = done(store)
    assert (tally.messages, tally.due, tally.purged) == (1, 0, 0)
    assert store.read_manifest(MESSAGE) == before


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and folder of the store, with its time and content, but for the store's own."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
        if not path.relative_to(root).parts[0].startswith(".")
    }


@pytest.mark.parametrize("forget", [False, True])
def test_a_dry_run_says_what_a_real_one_does_and_does_nothing(tmp_path: Path, forget: bool) -> None:
    """The same counts, over everything that can be met; not a byte, not a time of the store has changed."""
    root = tmp_path / "root"
    store = open_store(str(root))
    for number in range(5):
        fill(store, key_number(number), "a.pdf", "b.pdf")
    (root / key_number(0) / "hold").touch()
    fill(store, key_number(6), "old.pdf")
    old = stored_entry(store, key_number(7), "moved.pdf", OLD)
    record(store, key_number(7), old, entry("evil.pdf", key=f"../{PLACE}/x", stored_at=OLD))
    store.write(key_number(8), ATTACHMENT, "stray.pdf", [b"x"])
    record(store, key_number(9))
    before = snapshot(root)
    holds = ["message 6", "no such message"]

    listed: dict[bool, list[RemovedAttachment]] = {True: [], False: []}
    dry = done(
        store,
        PurgePolicy(YEAR, forget=forget, holds=Holds(holds)),
        on_message=lambda one: listed[True].extend(one.gone),
    )
    assert snapshot(root) == before
    real = done(
        store,
        PurgePolicy(YEAR, dry_run=False, forget=forget, holds=Holds(holds)),
        on_message=lambda one: listed[False].extend(one.gone),
    )
    assert dry == real
    assert listed[True] == listed[False]
    assert [gone.stored_at for gone in listed[True]] == [OLD] * real.purged
    assert sum(gone.bytes for gone in listed[True]) == real.bytes > 0
    # By key alone: these go to Prefect, and may hold no file name.
    assert all(re.fullmatch("[0-9a-f]{32}/[0-9a-f]{32}", gone.place) for gone in listed[True])
    assert (real.messages, real.purged, real.held, real.younger, real.refused) == (9, 8, 2, 1, 1)
    assert (real.unrecorded, real.forgotten) == (1, 5 if forget else 0)
    assert real.due == 2 * 5 + 1 + 2


def test_the_later_of_manifest_and_store_counts(store: Store) -> None:
    """A manifest that was altered or written by a wrong clock removes nothing that is young; nor does an old file."""
    young, fresh, old = (stored_entry(store, MESSAGE, name, OLD) for name in ("young", "fresh", "old"))
    fresh = fresh.model_copy(update={"stored_at": NOW})
    record(store, MESSAGE, young, fresh, old)
    age(store, fresh, OLD)
    age(store, old, OLD)
    tally = done(store)
    assert outcomes(store) == {"young": "stored", "fresh": "stored", "old": "purged"}
    assert (tally.due, tally.purged, tally.younger) == (2, 1, 1)


def test_a_clock_that_is_ahead_removes_nothing_too_soon(root: Path) -> None:
    """Of the store's clock and ours the earlier counts."""

    class Behind(LocalStore):
        behind = timedelta(days=300)

        def clock(self) -> datetime:
            return super().clock() - self.behind

    store = Behind(root)
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])
    day = timedelta(days=1)
    assert abs(retention_cutoff(day, store) - (datetime.now(UTC) - timedelta(days=301))) < timedelta(minutes=1)
    store.behind = -timedelta(days=300)
    assert abs(retention_cutoff(day, store) - (datetime.now(UTC) - day)) < timedelta(minutes=1)


def test_what_was_lost_and_is_not_due_is_not_called_purged(store: Store) -> None:
    """A missing file is for `verify` to report, until its time has come."""
    lost, due = stored_entry(store, MESSAGE, "lost"), stored_entry(store, MESSAGE, "due", OLD)
    record(store, MESSAGE, lost, due)
    for each in (lost, due):
        store.remove(each.key or "")
    assert done(store).purged == 1
    assert outcomes(store) == {"lost": "stored", "due": "purged"}


def test_an_entry_that_does_not_say_when_it_was_stored_stays(store: Store) -> None:
    """Nothing is guessed."""
    record(store, MESSAGE, stored_entry(store, MESSAGE, "a").model_copy(update={"stored_at": None}))
    assert done(store, PurgePolicy(ALL, dry_run=False)).due == 0
    assert outcomes(store) == {"a": "stored"}


OTHER = message_key("another message")


@pytest.mark.parametrize(
    "key",
    [
        f"{OTHER}/{ATTACHMENT}/a.pdf",
        f"{OTHER}/manifest.json",
        f"{MESSAGE}/manifest.json",
        f"{MESSAGE}/hold",
        f"{MESSAGE}/{attachment_key('neighbour')}/neighbour",
        f"{PLACE}/../{attachment_key('neighbour')}/neighbour",
        f"{PLACE}/.proof",
        f"../../../{CANARY}",
        f"/etc/{CANARY}",
        "",
        None,
    ],
)
def test_a_manifest_cannot_make_it_remove_anything_else(store: Store, key: str | None) -> None:
    """It is refused and told by key; what is due beside it goes."""
    fill(store, OTHER, "a.pdf")
    neighbour, due = stored_entry(store, MESSAGE, "neighbour"), stored_entry(store, MESSAGE, "due", OLD)
    age(store, due, OLD)
    evil = entry(CANARY, attachment_key=ATTACHMENT, key=key, stored_at=OLD)
    record(store, MESSAGE, evil, neighbour, due)
    seen: list[PurgeResult] = []
    tally = done(store, PurgePolicy(YEAR, dry_run=False, holds=Holds(["another message"])), on_message=seen.append)
    assert (tally.purged, tally.refused, tally.held) == (1, 1, 1)
    assert [place for looked in seen for place in looked.misplaced] == [PLACE]
    assert outcomes(store) == {CANARY: "stored", "neighbour": "stored", "due": "purged"}
    assert (len(store.inventory(OTHER).objects), len(store.inventory(MESSAGE).objects)) == (1, 1)
    assert outcomes(store, OTHER) == {"a.pdf": "stored"}


def test_a_refusal_repeats_nothing_that_a_manifest_says(store: Store) -> None:
    """Not even where an attachment's key should be: it may be a file name."""
    altered = entry("x", key=f"{MESSAGE}/{CANARY}/x", stored_at=OLD).model_copy(update={"attachment_key": CANARY})
    record(store, MESSAGE, altered)
    with pytest.raises(InvalidManifest) as caught:
        purge_message(store, MESSAGE, PurgePolicy(YEAR), Budget())
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        MESSAGE_ID,
        f"  {MESSAGE_ID}\n",
        MESSAGE,
        MESSAGE.upper(),
        f"{MESSAGE}/{ATTACHMENT}",
        f"/srv/attachments/{MESSAGE}",
        f"s3://bucket/root/{MESSAGE}/manifest.json",
        f"D:\\attachments\\{MESSAGE}\\hold",
        f"emailgistics.message.{MESSAGE}",
    ],
    ids=["id", "id with blanks", "key", "capitals", "key and more", "path", "address", "Windows path", "resource"],
)
def test_a_message_is_held_by_id_or_key(store: Store, text: str) -> None:
    """As people copy them; the others go."""
    fill(store, MESSAGE, "a.pdf")
    fill(store, OTHER, "a.pdf")
    holds = Holds([text, "", " "])
    tally = done(store, PurgePolicy(YEAR, dry_run=False, forget=True, holds=holds))
    assert (tally.held, tally.purged, tally.forgotten, holds.unmatched_count) == (1, 1, 1, 0)
    assert outcomes(store) == {"a.pdf": "stored"}
    assert store.read_manifest(OTHER) is None


def test_a_hold_that_names_no_message_is_told(store: Store) -> None:
    """A typing error would hold nothing, and nobody would know."""
    fill(store, MESSAGE, "a.pdf")
    holds = Holds([MESSAGE_ID, "AAMk-misspelt", "0" * 32])
    done(store, PurgePolicy(YEAR, holds=holds))
    assert holds.unmatched_count == 2


def test_a_hold_file_holds_until_it_is_gone(root: Path) -> None:
    """Files and record, also from --forget."""
    store = open_store(str(root))
    fill(store, MESSAGE, "a.pdf")
    hold = root / MESSAGE / "hold"
    hold.write_text("case 4711")
    policy = PurgePolicy(YEAR, dry_run=False, forget=True)
    assert (done(store, policy).held, outcomes(store)) == (1, {"a.pdf": "stored"})
    hold.unlink()
    assert (done(store, policy).held, objects(root)) == (0, {})


def test_an_object_that_no_manifest_names_is_left_alone_and_counted(store: Store) -> None:
    """Beside a manifest, and without one."""
    fill(store, MESSAGE, "a.pdf")
    for message in (MESSAGE, OTHER):
        store.write(message, attachment_key("stray"), "stray", [b"x"])
    tally = done(store, PurgePolicy(ALL, dry_run=False, forget=True))
    assert (tally.purged, tally.unrecorded, tally.forgotten) == (1, 2, 0)
    assert all(len(store.inventory(message).objects) == 1 for message in (MESSAGE, OTHER))


def test_encrypted_attachments_go_as_well(tmp_path: Path) -> None:
    """A purge needs no identity; the recorded bytes are those of the stored object."""
    recipient = str(pyrage.x25519.Identity.generate().to_public())
    root = tmp_path / "root"
    store = open_store(str(root), encryption=Encryption(age_recipients=(recipient,)))
    made = record(store, MESSAGE, stored_entry(store, MESSAGE, "a.pdf", OLD))
    age(store, made.attachments[0], OLD)
    (key,) = store.inventory(MESSAGE).objects
    assert key.endswith("a.pdf.age")
    tally = done(open_store(str(root)))
    assert (tally.purged, tally.bytes) == (1, made.attachments[0].stored_bytes)
    assert list(objects(root)) == [f"{MESSAGE}/manifest.json"]


# What happens beside it


def test_a_run_that_read_the_manifest_before_does_not_bring_the_entry_back() -> None:
    """Its "stored" is outdated. An attachment that was stored again since, with `force`, is not."""
    was = entry("a", key=f"{PLACE}/a", bytes=1, sha256="0" * 64, stored_at=OLD)
    purged = was.as_purged(NOW)
    assert purged.replaced_by(was) == purged
    assert purged.replaced_by(entry("a", "filtered")).outcome == "purged"
    assert purged.replaced_by(entry("a", "failed")).outcome == "purged"
    anew = was.model_copy(update={"stored_at": NOW})
    assert purged.replaced_by(anew) == anew
    assert manifest(purged).merged_with(manifest(was)).attachments[0].outcome == "purged"
    assert manifest(purged).complete
    assert manifest(purged).settles(lambda _: True)
    assert Manifest.from_bytes(manifest(purged).to_bytes(), message_key=MESSAGE).attachments[0] == purged
    assert b"purged_at" not in manifest(anew).to_bytes()


@pytest.mark.parametrize("changed", [{"stored_at": NOW}, {"key": f"{PLACE}/b"}], ids=["later", "elsewhere"])
def test_a_run_that_read_the_manifest_before_it_was_stored_anew_does_not_call_it_purged(
    changed: dict[str, object],
) -> None:
    """Else the file would stand there for ever: no purge looks at what is purged."""
    was = entry("a", key=f"{PLACE}/a", bytes=1, sha256="0" * 64, stored_at=OLD)
    purged, anew = was.as_purged(NOW), was.model_copy(update=changed)
    assert anew.replaced_by(purged) == anew
    assert manifest(anew).merged_with(manifest(purged)).attachments[0].outcome == "stored"
    assert anew.replaced_by(anew.as_purged(NOW)).outcome == "purged"


class Interrupted(LocalStore):
    """Somebody else comes in once an object has been removed, before that is recorded."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def remove(self, key: str, *, stored_before: datetime | None = None) -> bool:
        is_gone = super().remove(key, stored_before=stored_before)
        self.meanwhile()
        return is_gone


def test_what_is_stored_anew_meanwhile_stays_stored(root: Path) -> None:
    """A download with `force` between the removing and the recording: its file and its entry stand."""
    store = Interrupted(root)
    fill(store, MESSAGE, "a.pdf")
    anew: list[ManifestAttachment] = []

    def force() -> None:
        anew.append(stored_entry(store, MESSAGE, "a.pdf"))
        store.update_manifest(MESSAGE, lambda known: known.merged_with(manifest(*anew)) if known else manifest(*anew))

    store.meanwhile = force
    done(store, PurgePolicy(YEAR, dry_run=False, forget=True))
    found = store.read_manifest(MESSAGE)
    assert found is not None
    assert found.attachments[0].stored_at == anew[0].stored_at
    assert outcomes(store) == {"a.pdf": "stored"}
    assert verify_message(store, MESSAGE).differences == ()


class Overtaken(LocalStore):
    """Somebody else comes in once the store has said what stands there, before anything is removed."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def inventory(self, message_key: str) -> Inventory:
        found = super().inventory(message_key)
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return found


@pytest.mark.parametrize("stood", [True, False], ids=["in its place", "where nothing stood"])
def test_what_is_stored_anew_before_it_is_removed_stays(root: Path, stood: bool) -> None:
    """A download with `force`, or somebody who restores a file: what stands there now is young, and stays."""
    store = Overtaken(root)
    fill(store, MESSAGE, "a.pdf", "b.pdf")
    found = store.read_manifest(MESSAGE)
    assert found is not None
    key = found.attachments[0].key or ""
    if not stood:
        store.remove(key)

    def restore() -> None:
        store.remove(key)
        stored_entry(store, MESSAGE, "a.pdf")

    store.meanwhile = restore
    tally = done(store, most=2)
    assert (tally.due, tally.purged, tally.younger, tally.is_spent) == (2, 1, 1, False)
    assert outcomes(store) == {"a.pdf": "stored", "b.pdf": "purged"}
    assert verify_message(store, MESSAGE).differences == ()


@pytest.mark.parametrize("data", [None, b"{"], ids=["removed", "damaged"])
def test_a_manifest_that_is_lost_meanwhile_is_a_failure(root: Path, data: bytes | None) -> None:
    """No record is made up of what cannot be read."""
    store = Interrupted(root)
    fill(store, MESSAGE, "a.pdf")
    path = root / MESSAGE / "manifest.json"
    store.meanwhile = path.unlink if data is None else lambda: path.write_bytes(data)
    tally = done(store)
    assert (tally.failed, tally.purged) == ({"invalid-manifest": 1}, 0)
    assert isinstance(tally.first, InvalidManifest)
    assert (path.read_bytes() if path.exists() else None) == data


def test_two_purges_at_once_end_as_one(store: Store) -> None:
    """Each may come second everywhere."""
    for number in range(30):
        fill(store, key_number(number), "a.pdf", "b.pdf")
    tallies: list[PurgeTally] = []
    threads = [threading.Thread(target=lambda: tallies.append(done(store))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tallies) == 3
    assert not any(tally.failed for tally in tallies)
    for number in range(30):
        assert set(outcomes(store, key_number(number)).values()) == {"purged"}
        assert not store.inventory(key_number(number)).objects


# Records that go too


@pytest.mark.parametrize(
    ("more", "goes"),
    [
        ((), True),
        ((entry("x", "filtered"), entry("y", "unsupported")), True),
        ((entry("x", "failed"),), False),
        ((entry("x", "purged", stored_at=OLD, purged_at=NOW),), True),
        ((entry("x", "purged", stored_at=NOW, purged_at=NOW),), False),
    ],
    ids=["alone", "left out", "failed", "purged before", "purged, but young"],
)
def test_a_record_goes_when_nothing_is_left_of_its_message(
    store: Store, more: tuple[ManifestAttachment, ...], goes: bool
) -> None:
    """What failed is still to come, and what is younger has its own time."""
    old = stored_entry(store, MESSAGE, "a.pdf", OLD)
    record(store, MESSAGE, old, *more)
    age(store, old, OLD)
    tally = done(store, PurgePolicy(YEAR, dry_run=False, forget=True))
    assert (tally.purged, tally.forgotten) == (1, int(goes))
    assert (store.read_manifest(MESSAGE) is None) == goes


def test_old_records_without_files_go_too_and_young_ones_stay(store: Store) -> None:
    """A message that had nothing on it, and one that was purged by an earlier run."""
    record(store, MESSAGE)
    young = manifest(message_key=OTHER, updated=NOW)
    store.update_manifest(OTHER, lambda _: young)
    fill(store, key_number(1), "a.pdf")
    done(store)
    tally = done(store, PurgePolicy(YEAR, dry_run=False, forget=True))
    assert (tally.purged, tally.forgotten) == (0, 2)
    assert store.read_manifest(OTHER) == young


def test_nothing_of_a_forgotten_message_is_left_on_the_disk(root: Path) -> None:
    """No folder either, and what is not ours stays."""
    store = open_store(str(root))
    fill(store, MESSAGE, "a.pdf", "b.pdf")
    fill(store, OTHER, "a.pdf")
    (root / OTHER / "notes.txt").write_text("somebody's")
    done(store, PurgePolicy(YEAR, dry_run=False, forget=True))
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if ".incoming" not in str(path)) == sorted(
        [".locks", *(f".locks/{path.name}" for path in (root / ".locks").iterdir()), OTHER, f"{OTHER}/notes.txt"]
    )


# What breaks


def kills(tmp_path: Path, policy: PurgePolicy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The roots of stores, each left by a purge that was killed one step later; the last one was not."""
    steps = ["open", "unlink", "rmdir", "replace", "fsync", "write", "mkdir"]
    monkeypatch.setattr(test_crashes, "STEPS", steps)
    for step in range(1000):
        root = tmp_path / str(step)
        store = open_store(str(root))
        fill(store, MESSAGE, "a.pdf", "b.pdf")
        young = stored_entry(store, OTHER, "young")
        record(store, OTHER, young)
        was_killed = killed_at(step, partial(_purge_in_line, store, policy))
        yield root
        if not was_killed:
            return


def _purge_in_line(store: Store, policy: PurgePolicy) -> None:
    """Without threads, so that the steps come in order."""
    for key in (MESSAGE, OTHER):
        assert purge_message(store, key, policy, Budget()).failure is None


@pytest.mark.parametrize("forget", [False, True])
def test_a_purge_may_be_killed_at_every_step(tmp_path: Path, forget: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No entry says purged whose file stands, what is not due is untouched, and the next run ends as if alone."""
    policy = PurgePolicy(YEAR, dry_run=False, forget=forget)
    roots = halves = 0
    for root in kills(tmp_path, policy, monkeypatch):
        roots += 1
        store = open_store(str(root))
        standing = {key.split("/")[1] for key in store.inventory(MESSAGE).objects}
        found = store.read_manifest(MESSAGE)
        recorded = {each.attachment_key: each.outcome for each in found.attachments} if found else {}
        assert not [key for key in standing if recorded.get(key) != "stored"]
        halves += any(outcome == "stored" and key not in standing for key, outcome in recorded.items())
        assert verify_message(store, OTHER).differences == ()

        assert not done(store, policy).failed
        left = {f"{OTHER}/{attachment_key('young')}/young", f"{OTHER}/manifest.json"}
        assert set(objects(root)) == (left if forget else left | {f"{MESSAGE}/manifest.json"})
        assert outcomes(store, OTHER) == {"young": "stored"}
        assert forget or outcomes(store) == {"a.pdf": "purged", "b.pdf": "purged"}
    assert roots > 30
    assert halves > 5


@pytest.mark.parametrize("seed", range(4))
def test_a_purge_may_be_killed_at_any_moment(seed: int, root: Path) -> None:
    """From outside, with all its threads, again and again; in the end all that was due is gone, and nothing else."""
    store = open_store(str(root))
    for number in range(60):
        fill(store, key_number(number), "a.pdf")
    record(store, OTHER, stored_entry(store, OTHER, "young"))
    dice = random.Random(seed)

    def purging(tell: int) -> None:
        done(open_store(str(root)), on_message=lambda _: os.write(tell, b"."))
        signal.pause()

    for _ in range(3):
        told, tell = os.pipe()
        with running(partial(purging, tell)) as child:
            for _ in range(dice.randrange(1, 25)):
                os.read(told, 1)
            os.kill(child, signal.SIGKILL)
            assert ended(child) == -signal.SIGKILL
        os.close(told)
        os.close(tell)
        for number in range(60):
            differences = verify_message(store, key_number(number)).differences
            assert {found.problem for found in differences} <= {Discrepancy.MISSING}
    assert not done(store).failed
    assert len(objects(root)) == 62
    assert all(outcomes(store, key_number(number)) == {"a.pdf": "purged"} for number in range(60))
    assert all(verify_message(store, key).differences == () for key in store.message_keys())


def test_a_run_removes_no_more_than_it_may(store: Store) -> None:
    """To the file, whatever the threads; the next run goes on."""
    for number in range(6):
        fill(store, key_number(number), "a", "b", "c")
    purged = []
    while True:
        tally = done(store, most=5)
        purged.append(tally.purged)
        assert sum(len(store.inventory(key_number(number)).objects) for number in range(6)) == 18 - sum(purged)
        if not tally.purged:
            break
    assert purged == [5, 5, 5, 3, 0]
    assert all(set(outcomes(store, key_number(number)).values()) == {"purged"} for number in range(6))


def test_one_message_that_fails_does_not_stop_the_others(root: Path) -> None:
    """A symlink in a file's place, damaged manifests, a date that no calendar has: each is told by its code."""
    store = open_store(str(root))
    for number in range(10):
        fill(store, key_number(number), "a.pdf")
    victim = root.parent / "victim"
    victim.write_text("precious")
    planted = root / key_number(0) / attachment_key("a.pdf") / "a.pdf"
    planted.unlink()
    planted.symlink_to(victim)
    (root / key_number(1) / "manifest.json").write_bytes(b'{"schema": 1')
    (root / key_number(2) / "manifest.json").write_bytes(b'{"schema": 2}')
    third = root / key_number(3) / "manifest.json"
    third.write_text(third.read_text().replace(f"{OLD:%Y-%m-%d}", "0001-01-01").replace("Z", "+23:59"))
    (root / key_number(99)).write_text("no folder")
    tally = done(store)
    assert tally.purged == 6
    assert tally.failed == {"already-exists": 2, "invalid-manifest": 2, "newer-manifest": 1}
    assert victim.read_text() == "precious"
    assert not tally.gave_up
    assert CANARY not in str(tally.first)


@pytest.mark.parametrize("levels", [350, 750])
def test_a_manifest_that_could_not_be_written_again_loses_no_file(store: Store, levels: int) -> None:
    """Somebody has nested a field of it too deep: it is damaged before anything goes, and the others are purged."""
    fill(store, MESSAGE, "a.pdf")
    fill(store, OTHER, "a.pdf")
    made = store.read_manifest(MESSAGE)
    assert made is not None
    # Not by the store, which would refuse it.
    path, extra = f"{MESSAGE}/manifest.json", b'{"a":' * levels + b"0" + b"}" * levels
    data = made.to_bytes().rstrip()[:-1] + b', "extra": ' + extra + b"}"
    if store.url.startswith("test-memory"):
        MemoryFileSystem().pipe_file(f"{store.url.removeprefix('test-memory://')}/{path}", data)
    else:
        (Path(store.url.removeprefix("file://")) / path).write_bytes(data)
    tally = done(store)
    assert (tally.purged, tally.failed) == (1, {"invalid-manifest": 1})
    assert len(store.inventory(MESSAGE).objects) == 1


class Odd(LocalStore):
    """Fails at one message as nobody has thought of."""

    error: Exception = RecursionError(CANARY)

    def inventory(self, message_key: str) -> Inventory:
        if message_key == MESSAGE:
            raise self.error
        return super().inventory(message_key)


def test_what_nobody_thought_of_fails_one_message(root: Path) -> None:
    """By its type and place, for its text may hold a file name; the others go, and the run is no success."""
    store = Odd(root)
    for message in (MESSAGE, OTHER, key_number(1)):
        fill(store, message, "a.pdf")
    tally = done(store)
    assert (tally.messages, tally.purged, tally.failed, tally.permanent_failures) == (3, 2, {"store-error": 1}, 1)
    assert f"could not purge message {MESSAGE} (RecursionError in inventory, line " in str(tally.first)
    assert CANARY not in str(tally.first)


def test_a_cancelled_run_is_not_a_message_that_failed(root: Path) -> None:
    """Whether it is told so, or something breaks because of it."""
    store = Odd(root)
    fill(store, MESSAGE, "a.pdf")
    store.error = RunCancelled()
    with pytest.raises(RunCancelled):
        done(store)
    cancellation = Cancellation()

    class Breaking(Odd):
        def inventory(self, message_key: str) -> Inventory:
            cancellation.cancel()
            raise ValueError

    token = CURRENT.set(cancellation)
    try:
        with pytest.raises(RunCancelled):
            done(Breaking(root))
    finally:
        CURRENT.reset(token)


def test_a_folder_that_is_a_symlink_leads_nowhere(root: Path) -> None:
    """Whatever stands at its end stays."""
    store = open_store(str(root))
    made = fill(store, MESSAGE, "a.pdf")
    folder = root / MESSAGE / attachment_key("a.pdf")
    outside = root.parent / "outside"
    folder.rename(outside)
    folder.symlink_to(outside)
    with pytest.raises(AlreadyExists):
        store.remove(made.attachments[0].key or "")
    assert (outside / "a.pdf").read_bytes() == CONTENT


class Ailing(LocalStore):
    """Refuses some of what it is asked."""

    error: type[StoreError] = StoreUnavailable
    removals = 0
    refuses: Callable[[str, int], bool] = staticmethod(lambda key, number: True)

    def remove(self, key: str, *, stored_before: datetime | None = None) -> bool:
        self.removals += 1
        if self.refuses(key, self.removals):
            raise self.error(f"could not remove attachment {key.rpartition('/')[0]} (TEST): test", key=None)
        return super().remove(key, stored_before=stored_before)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "BACK_OFF", 0.001)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("error", "tries"), [(StoreUnavailable, retention_module.MAX_ATTEMPTS), (AccessDenied, 2)])
def test_a_store_that_is_away_ends_the_run_early(root: Path, error: type[StoreError], tries: int) -> None:
    """After some messages in a row, not after a million; each was tried as often as makes sense.

    A refusal may be of one file alone, so the other one of the message is tried as well.
    """
    store = Ailing(root)
    store.error = error
    for number in range(MAX_FAILURES_IN_A_ROW * 3):
        fill(store, key_number(number), "a.pdf", "b.pdf")
    tally = done(store)
    assert (tally.gave_up, tally.purged, set(tally.failed)) == (True, 0, {error.outcome_code})
    assert MAX_FAILURES_IN_A_ROW <= tally.failed.total() <= MAX_FAILURES_IN_A_ROW + 2 * QUICK.concurrency
    assert store.removals == tally.failed.total() * tries
    assert tally.permanent_failures == (0 if error.retryable else tally.failed.total())


@pytest.mark.usefixtures("hasty")
def test_a_store_that_stumbles_is_asked_again(root: Path) -> None:
    """Every second call fails, and all is done."""
    store = Ailing(root)
    store.refuses = staticmethod(lambda key, number: number % 2 == 1)  # type: ignore[assignment]
    for number in range(8):
        fill(store, key_number(number), "a.pdf")
    tally = purge(store, PurgePolicy(YEAR, dry_run=False), Budget(), PurgeRate(1, 100_000))
    assert (tally.purged, tally.failed) == (8, {})


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("error", "third"), [(AccessDenied, "purged"), (StoreUnavailable, "stored")])
def test_what_has_gone_beside_a_failure_is_recorded(root: Path, error: type[StoreError], third: str) -> None:
    """The second of three files cannot be removed: others are recorded, and what failed does not use up the most.

    A file that may not be removed is perhaps under a legal hold, and keeps no other; a store that is away keeps all.
    """
    store = Ailing(root)
    store.error = error
    store.refuses = staticmethod(lambda key, number: "/b.pdf" in key)  # type: ignore[assignment]
    fill(store, MESSAGE, "a.pdf", "b.pdf", "c.pdf")
    tally = done(store, most=3)
    assert (tally.failed, tally.is_spent) == ({error.outcome_code: 1}, False)
    assert outcomes(store) == {"a.pdf": "purged", "b.pdf": "stored", "c.pdf": third}


@pytest.mark.usefixtures("hasty")
def test_legal_holds_do_not_end_the_run(root: Path) -> None:
    """Files that may not be removed fail every night; what lies behind them is purged all the same."""
    store = Ailing(root)
    store.error = AccessDenied
    store.refuses = staticmethod(lambda key, number: "/kept.pdf" in key)  # type: ignore[assignment]
    for number in range(MAX_FAILURES_IN_A_ROW + 5):
        fill(store, key_number(2 * number), "kept.pdf")
        store.write(key_number(2 * number + 1), ATTACHMENT, "young.pdf", [b"x"])
        record(store, key_number(2 * number + 1))
    fill(store, "f" * 32, "last.pdf")
    tally = purge(store, PurgePolicy(YEAR, dry_run=False), Budget(), PurgeRate(1, 100_000))
    assert (tally.purged, tally.failed, tally.gave_up) == (1, {"access-denied": MAX_FAILURES_IN_A_ROW + 5}, False)


def test_a_disk_that_is_gone_is_noticed_at_once(root: Path) -> None:
    """An unmounted store is not one in which nothing is due."""
    store = open_store(str(root))
    fill(store, MESSAGE, "a.pdf")
    root.rename(root.parent / "elsewhere")
    tally = done(store)
    assert (tally.messages, tally.failed, tally.gave_up) == (0, {"store-not-found": 1}, True)


def test_a_store_that_is_not_there_is_told(root: Path) -> None:
    """Not called empty: the URL may be a typing error, or the disk away. And it is not made for the asking."""
    store = open_store(str(root))
    with pytest.raises(NotFound, match="exist; check its URL, and that its disk is mounted"):
        retention_cutoff(timedelta(days=1), store)
    assert done(store) == PurgeTally()
    assert not root.exists()


def test_an_empty_store_has_nothing_to_purge(store: Store) -> None:
    """A service knows no other; of a folder that is there nobody can tell whether something ought to be in it."""
    if store.url.startswith("file://"):
        Path(store.url.removeprefix("file://")).mkdir(parents=True)
    retention_cutoff(timedelta(days=1), store)
    assert done(store) == PurgeTally()


class Endless(LocalStore):
    """As many messages as anybody asks for; nothing stands of them."""

    taken = 0

    def message_keys(self) -> Iterator[str]:
        for number in range(20_000):
            self.taken += 1
            yield f"{number:032x}"

    def read_manifest(self, message_key: str) -> Manifest | None:
        return manifest(message_key=message_key)


def test_keys_are_read_as_they_are_needed(root: Path) -> None:
    """However many there are, only a few are under way."""
    store = Endless(root)
    ahead = 0

    def look(_: PurgeResult) -> None:
        nonlocal ahead, seen
        seen += 1
        ahead = max(ahead, store.taken - seen)

    seen = 0
    done(store, on_message=look)
    assert seen == 20_000
    assert ahead <= 2 * QUICK.concurrency


def test_no_more_messages_begin_in_a_second_than_may(root: Path) -> None:
    """Even where a thread would have time for more."""
    for number in range(30):
        fill(open_store(str(root)), key_number(number), "a.pdf")
    begun = time.monotonic()
    purge(open_store(str(root)), PurgePolicy(YEAR), Budget(), PurgeRate(8, 20))
    assert time.monotonic() - begun > 29 / 20


def test_a_run_that_is_cancelled_records_what_has_gone(root: Path) -> None:
    """It ends before the next file, and the manifest says what the disk says."""
    store = Interrupted(root)
    for number in range(3):
        fill(store, key_number(number), "a.pdf", "b.pdf", "c.pdf")
    cancellation = Cancellation()
    store.meanwhile = cancellation.cancel
    token = CURRENT.set(cancellation)
    try:
        with pytest.raises(RunCancelled):
            purge(store, PurgePolicy(YEAR, dry_run=False), Budget(), PurgeRate(1, 100_000))
    finally:
        CURRENT.reset(token)
    assert sum(len(store.inventory(key_number(number)).objects) for number in range(3)) == 8
    for number in range(3):
        assert verify_message(store, key_number(number)).differences == ()


def test_verify_knows_what_was_purged(root: Path) -> None:
    """A purged file is no difference; one that is back is."""
    store = open_store(str(root))
    made = fill(store, MESSAGE, "a.pdf")
    done(store)
    assert verify_message(store, MESSAGE).differences == ()
    back = root / (made.attachments[0].key or "")
    back.parent.mkdir()
    back.write_bytes(CONTENT)
    (difference,) = verify_message(store, MESSAGE).differences
    assert (difference.key, difference.problem) == (made.attachments[0].key.rpartition("/")[0], Discrepancy.PURGED)  # type: ignore[union-attr]
