"""A user who can write into the store's folder cannot make us write, or read, outside it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from attachments.storage import Store, attachment_key, open_store
from attachments.storage.errors import AlreadyExists
from attachments.storage.verification import Discrepancy, verify
from tests.storage.samples import ATTACHMENT, CONTENT, MESSAGE, PLACE, manifest, objects
from tests.storage.test_verification import record

Plant = Callable[[Path], None]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(manifest().to_bytes())
    (folder / "precious").write_bytes(CONTENT)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("planted", [MESSAGE, PLACE, ".incoming", ".locks"])
def test_a_symlink_in_a_folders_place_is_not_followed(root: Path, outside: Path, planted: str) -> None:
    """It is an error, and what it points to is not touched."""
    (root / planted).parent.mkdir(parents=True, exist_ok=True)
    (root / planted).symlink_to(outside)
    before = contents(outside)
    with pytest.raises(AlreadyExists):
        open_store(str(root)).write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert contents(outside) == before


@pytest.mark.parametrize("planted", [MESSAGE, ".incoming", ".locks"])
def test_no_manifest_is_written_through_a_symlink(root: Path, outside: Path, planted: str) -> None:
    """Nor read through one."""
    root.mkdir()
    (root / planted).symlink_to(outside)
    before = contents(outside)
    store = open_store(str(root))
    with pytest.raises(AlreadyExists):
        store.update_manifest(MESSAGE, lambda current: manifest())
    assert contents(outside) == before
    if planted == MESSAGE:
        for look in (store.read_manifest, store.stored):
            with pytest.raises(AlreadyExists):
                look(MESSAGE)


@pytest.mark.parametrize("target", ["precious", "missing"])
def test_a_symlink_in_a_files_place_is_not_followed(store: Store, root: Path, outside: Path, target: str) -> None:
    """Not even when what it points to is just what we would write."""
    (root / PLACE).mkdir(parents=True)
    (root / PLACE / "a.pdf").symlink_to(outside / target)
    before = contents(outside)
    assert store.stored(MESSAGE) == {}
    with pytest.raises(AlreadyExists):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert contents(outside) == before
    assert (root / PLACE / "a.pdf").is_symlink()


def test_a_symlink_in_a_manifests_place_is_not_followed(store: Store, root: Path, outside: Path) -> None:
    """Reading and writing are refused, and the link stays for somebody to look at."""
    (root / MESSAGE).mkdir(parents=True)
    (root / MESSAGE / "manifest.json").symlink_to(outside / "manifest.json")
    before = contents(outside)
    with pytest.raises(AlreadyExists):
        store.read_manifest(MESSAGE)
    with pytest.raises(AlreadyExists):
        store.update_manifest(MESSAGE, lambda current: manifest())
    assert contents(outside) == before


def test_a_symlink_in_a_locks_place_is_not_followed(store: Store, root: Path, outside: Path) -> None:
    """No file is made where it points."""
    (root / ".locks").mkdir(parents=True)
    (root / ".locks" / MESSAGE[:2]).symlink_to(outside / "lock")
    before = contents(outside)
    with pytest.raises(AlreadyExists):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert contents(outside) == before


def test_the_sweep_follows_nothing_and_takes_only_files(store: Store, root: Path, outside: Path) -> None:
    """What is planted among the incoming files is at worst in the way."""
    incoming = root / ".incoming"
    incoming.mkdir(parents=True)
    (incoming / "link").symlink_to(outside / "precious")
    (incoming / "folder").mkdir()
    os.mkfifo(incoming / "pipe")
    before = contents(outside)
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert contents(outside) == before
    assert sorted(path.name for path in incoming.iterdir()) == ["folder", "link", "pipe"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket"])
def test_what_is_no_file_neither_blocks_nor_counts(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A pipe in an attachment's place would hold a reader for ever."""
    place = root / PLACE
    place.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(place / "a.pdf")
    elif kind == "folder":
        (place / "a.pdf").mkdir()
    else:
        monkeypatch.chdir(place)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("a.pdf")
    assert store.stored(MESSAGE) == {}
    with pytest.raises(AlreadyExists):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])


@pytest.mark.parametrize("planted", [MESSAGE, PLACE, ".incoming", ".locks"])
def test_a_file_in_a_folders_place_is_left_alone(root: Path, planted: str) -> None:
    """Something else stands under the key."""
    (root / planted).parent.mkdir(parents=True, exist_ok=True)
    (root / planted).write_bytes(b"precious")
    store = open_store(str(root))
    with pytest.raises(AlreadyExists):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert (root / planted).read_bytes() == b"precious"


def test_the_root_itself_may_be_a_symlink(root: Path, tmp_path: Path) -> None:
    """The user configured it, so that is the user's choice."""
    (tmp_path / "disk").mkdir()
    root.symlink_to(tmp_path / "disk")
    open_store(str(root)).write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert objects(tmp_path / "disk") == {f"{PLACE}/a.pdf": CONTENT}


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to("/etc")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("plant", [link, fifo, folder])
@pytest.mark.parametrize("place", ["{key}", "{key}/manifest.json", f"{{key}}/{'0' * 32}", ".incoming/x"])
def test_what_is_planted_hides_no_other_difference(store: Store, root: Path, place: str, plant: Plant) -> None:
    """Verification names the message whose place cannot be read, and goes on to what was altered elsewhere."""
    record(store, MESSAGE, "a.pdf")
    (root / MESSAGE / attachment_key("a.pdf") / "a.pdf").write_bytes(b"x" * len(CONTENT))
    planted = root / place.format(key="0" * 32)
    planted.parent.mkdir(exist_ok=True)
    plant(planted)
    found = {checked.message_key: checked.differences for checked in verify(store, store.message_keys())}
    assert [difference.problem for difference in found.pop(MESSAGE)] == [Discrepancy.CONTENT]
    assert all(
        difference.problem in {Discrepancy.UNREADABLE, Discrepancy.UNRECORDED}
        for differences in found.values()
        for difference in differences
    )
    assert list(store.orphans(older_than=timedelta(0))) == []
