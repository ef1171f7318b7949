"""What a probe of a store says when something is wrong with it; that it leaves nothing is in the contract."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from attachments.storage import open_store
from attachments.storage.backends.rename import RenameBackend
from attachments.storage.encryption import Encryption
from attachments.storage.errors import AccessDenied, NotFound, StoreError, StoreUnavailable
from attachments.storage.healthcheck import PATH
from attachments.storage.local.staging import INCOMING
from attachments.storage.object_store import ObjectStore
from tests.storage.processes import answer, without_rights


@pytest.fixture
def backend() -> RenameBackend:
    return RenameBackend.at(f"test-memory://probe-{uuid4().hex}", {}, Encryption())


@pytest.fixture
def store(backend: RenameBackend) -> ObjectStore:
    """The backend's store."""
    return ObjectStore(backend)


def refuses(*_: object, **__: object) -> None:
    raise PermissionError(errno.EACCES, "a-path-that-must-not-show")


def test_a_store_without_the_right_to_remove_says_so(
    store: ObjectStore, backend: RenameBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It works for downloads; and however often it is probed, one small object is left."""
    monkeypatch.setattr(backend, "remove", refuses)
    assert [store.probe() for _ in range(3)] == ["kept"] * 3
    assert [found.path for found in backend.objects("")] == [PATH]
    monkeypatch.undo()
    assert store.probe() == "works"
    assert list(backend.objects("")) == []


@pytest.mark.parametrize("method", ["get", "put"])
def test_a_store_that_refuses_is_told_without_paths(
    store: ObjectStore, backend: RenameBackend, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Wrong credentials, or rights that lack something."""
    monkeypatch.setattr(backend, method, refuses)
    with pytest.raises(AccessDenied, match=r"^could not probe the store \(EACCES\): ") as caught:
        store.probe()
    assert "must-not-show" not in str(caught.value)


@pytest.mark.parametrize("loaded", [None, (b"something else", "1")])
def test_a_store_that_loses_what_it_took_is_told(
    store: ObjectStore, backend: RenameBackend, monkeypatch: pytest.MonkeyPatch, loaded: Any
) -> None:
    """After some tries: another prober may have been in between."""
    monkeypatch.setattr(backend, "put", lambda *_, **__: None)
    monkeypatch.setattr(backend, "get", lambda _: loaded)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(StoreUnavailable, match="does not return what was written"):
        store.probe()


def test_the_workers_own_folder_is_tried_as_well(tmp_path: Path) -> None:
    """Where every file of a local store comes in; it may belong to another user than the root."""
    (tmp_path / INCOMING).mkdir(mode=0o755)
    for folder in tmp_path.parents[:3]:
        folder.chmod(0o755)  # pytest's own folders are closed to other users
    tmp_path.chmod(0o777)
    store = open_store(tmp_path.as_uri())
    assert store.probe() == "works"
    assert isinstance(answer(without_rights(store.probe)), AccessDenied)
    (tmp_path / INCOMING).chmod(0o777)
    assert answer(without_rights(store.probe)) == "works"
    assert [path.name for path in tmp_path.rglob("*")] == [INCOMING]


def test_a_store_whose_disk_is_gone_is_told(tmp_path: Path) -> None:
    """It is not created again, which could be on the wrong disk."""
    root = tmp_path / "root"
    root.mkdir()
    store = open_store(root.as_uri())
    assert store.probe() == "works"
    root.rmdir()
    with pytest.raises(NotFound):
        store.probe()
    assert not root.exists()
    unreachable = open_store("/proc/no-such-folder/root")
    assert isinstance(answer(without_rights(unreachable.probe)), StoreError)
