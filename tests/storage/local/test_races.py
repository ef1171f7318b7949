"""Processes that want the same thing at the same time."""

from __future__ import annotations

import fcntl
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from attachments.storage import Manifest, Store, open_store
from attachments.storage.errors import AlreadyExists, StoreUnavailable
from attachments.storage.local.folders import Folder
from attachments.storage.local.locks import locked
from tests.storage.processes import ended, start
from tests.storage.samples import ATTACHMENT, CONTENT, MESSAGE, PLACE, entry, leftovers, manifest, objects

together = multiprocessing.get_context("fork")


def race(root: Path, contents: list[bytes]) -> list[int]:
    """One process for each content, all at their last byte before any commits. Hands back their exit codes."""
    barrier = together.Barrier(len(contents))

    def write(number: int, content: bytes) -> None:
        def source() -> Iterator[bytes]:
            yield content
            barrier.wait(10)

        try:
            open_store(str(root)).write(MESSAGE, ATTACHMENT, f"{number}.pdf", source())
        except AlreadyExists:
            raise SystemExit from None

    children = [start(lambda n=n, c=c: write(n, c)) for n, c in enumerate(contents)]  # type: ignore[misc]
    return [ended(child) for child in children]


@pytest.mark.parametrize("existed", [True, False])
def test_two_processes_store_one_object(root: Path, existed: bool) -> None:
    """Two runs for one message both succeed, and one object stands, also when they make the store itself."""
    for number in range(5):
        place = root / str(number)
        if existed:
            place.mkdir(parents=True)
        assert race(place, [CONTENT] * 2) == [0, 0]
        assert list(objects(place).values()) == [CONTENT]
        assert leftovers(place) == []


def test_of_two_that_differ_one_is_told(root: Path) -> None:
    """The second writer gets an error that another object exists; nothing is mixed or lost."""
    assert sorted(race(root, [b"one" * 1000, b"two" * 1000])) == [0, 1]
    (standing,) = objects(root).values()
    assert standing in (b"one" * 1000, b"two" * 1000)


def test_changes_from_many_processes_are_all_kept(store: Store, root: Path) -> None:
    """Reading, changing and writing a manifest is one step against other processes."""

    def add(number: int) -> None:
        def change(current: Manifest | None) -> Manifest:
            new = manifest(entry(f"{number}-{len(current.attachments) if current else 0}"))
            return current.merged_with(new) if current else new

        for _ in range(10):
            open_store(str(root)).update_manifest(MESSAGE, change)

    children = [start(lambda number=number: add(number)) for number in range(4)]  # type: ignore[misc]
    assert [ended(child) for child in children] == [0] * 4
    found = store.read_manifest(MESSAGE)
    assert found is not None
    assert len(found.attachments) == 40


def test_a_sweep_between_making_and_locking_a_file_does_no_harm(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has yet to be locked looks like a dead writer's; when it is taken, another is made."""
    lock = fcntl.flock
    swept: list[str] = []

    def sweep_first(fd: int, operation: int) -> None:
        if not swept:
            swept.extend(leftovers(root))
            for name in swept:
                (root / ".incoming" / name).unlink()
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert len(swept) == 1
    assert objects(root) == {f"{PLACE}/a.pdf": CONTENT}
    assert leftovers(root) == []


def test_nobody_waits_for_ever(root: Path) -> None:
    """A stopped process that holds a lock is reported after a while, and the call may be tried again."""
    root.mkdir()
    with Folder.at(root) as folder, locked(folder, MESSAGE):
        with (
            pytest.raises(StoreUnavailable, match="has held the lock") as caught,
            locked(folder, MESSAGE, patience=0.05),
        ):
            pass
        assert caught.value.key == MESSAGE
        with locked(folder, "0" + MESSAGE[1:]):
            pass


def test_a_pile_of_foreign_files_is_still_compared(store: Store, root: Path) -> None:
    """When several objects stand in one place and one of them is ours, that one is it."""
    folder = root / PLACE
    folder.mkdir(parents=True)
    (folder / "a.pdf").write_bytes(b"foreign")
    (folder / "b.pdf").write_bytes(CONTENT)
    assert store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT]).key == f"{PLACE}/b.pdf"


def test_what_desktops_leave_behind_is_no_object(store: Store, root: Path) -> None:
    """A Finder that looked into a folder must not keep an attachment out of it."""
    folder = root / PLACE
    folder.mkdir(parents=True)
    (folder / ".DS_Store").write_bytes(b"x")
    assert store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT]).key == f"{PLACE}/a.pdf"
