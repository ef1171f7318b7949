"""What time it is in a store, told by what is written there: never by the worker's own clock."""

from __future__ import annotations

import errno
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from attachments.storage.backends.base import Conflict, ObjectHeaders, ObjectStat, Version
from attachments.storage.backends.rename import RenameBackend
from attachments.storage.encryption import Encryption
from attachments.storage.errors import StoreUnavailable
from attachments.storage.object_store import ObjectStore

BEHIND = timedelta(days=300)


@pytest.fixture
def root() -> str:
    return f"/clock-{uuid4().hex}"


@pytest.fixture
def punctual(root: str) -> RenameBackend:
    """A backend whose clock is right."""
    return RenameBackend.at(f"test-memory:/{root}", {}, Encryption())


@pytest.fixture
def store(punctual: RenameBackend) -> ObjectStore:
    """Its store."""
    return ObjectStore(punctual)


@pytest.fixture
def backend(punctual: RenameBackend, monkeypatch: pytest.MonkeyPatch) -> RenameBackend:
    """The same, but its clock is far behind."""
    backend = punctual
    look = backend.stat

    def late(path: str) -> ObjectStat | None:
        standing = look(path)
        return standing and ObjectStat(standing.bytes, standing.modified - BEHIND)

    monkeypatch.setattr(backend, "stat", late)
    return backend


def is_behind(moment: datetime) -> bool:
    return abs(moment + BEHIND - datetime.now(UTC)) < timedelta(minutes=1)


def test_who_asks_while_another_does_is_told_the_stores_time(
    store: ObjectStore, backend: RenameBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has come, and removed what is its own, before we have looked."""
    look = backend.stat
    others: list[datetime] = []

    def overtaken(path: str) -> ObjectStat | None:
        if not others:
            others.append(datetime.now(UTC))
            others.append(store.clock())
        return look(path)

    monkeypatch.setattr(backend, "stat", overtaken)
    assert is_behind(store.clock())
    assert is_behind(others[1])
    assert list(backend.objects("")) == []


def test_a_store_that_shows_nothing_of_what_was_written_tells_no_time(
    store: ObjectStore, backend: RenameBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours might be ahead. It may pass, and is tried again."""
    monkeypatch.setattr(backend, "stat", lambda _: None)
    with pytest.raises(
        StoreUnavailable, match="the object that was written does not exist; this will be retried"
    ) as caught:
        store.clock()
    assert caught.value.retryable
    assert list(backend.objects("")) == []


def test_an_answer_that_was_lost_is_no_conflict(
    store: ObjectStore, backend: RenameBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that tries again by itself meets what it has written."""
    save = backend.put

    def lost(path: str, data: bytes, labels: ObjectHeaders, *, replaces: Version | None) -> None:
        save(path, data, labels, replaces=replaces)
        raise Conflict

    monkeypatch.setattr(backend, "put", lost)
    assert is_behind(store.clock())


def test_what_a_killed_asker_left_goes_when_it_is_old(
    store: ObjectStore, punctual: RenameBackend, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: another may be asking just now. Without the right to remove, the time is told all the same."""
    backend = punctual
    for name in ("young", "old", "now"):
        MemoryFileSystem().pipe_file(f"{root}/.clock/{name}", b"now")
    for name in ("old", "now"):
        MemoryFileSystem.store[f"{root}/.clock/{name}"].created = datetime.now(UTC) - timedelta(hours=2)

    def refuses(path: str) -> None:
        raise PermissionError(errno.EACCES, path)

    with monkeypatch.context() as patch:
        patch.setattr(backend, "remove", refuses)
        assert abs(store.clock() - datetime.now(UTC)) < timedelta(minutes=1)
    assert len(list(backend.objects(""))) == 4
    store.clock()
    assert ".clock/young" in [found.path for found in backend.objects("")]
    assert len(list(backend.objects(""))) == 2
