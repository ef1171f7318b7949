"""The durable inbox on a real file."""

import asyncio
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from attachments.emailgistics import Delivery
from attachments.foundation.timestamps import parse_timestamp
from attachments.receiver.inbox import RESERVE_SIZE, Inbox, InboxUnavailable

KNOWN = {"default": "1", "pdfs": "2"}
# As version 0.1 made it.
FIRST_COLUMNS = "deployment, message_key, message_id, mailbox, received, conversation_id, accepted"
FIRST_SCHEMA = """
PRAGMA application_id = 1701668705;
PRAGMA user_version = 1;
CREATE TABLE entry (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    deployment TEXT NOT NULL,
    message_key TEXT NOT NULL,
    message_id TEXT NOT NULL,
    mailbox TEXT, received TEXT, conversation_id TEXT,
    accepted REAL NOT NULL,
    UNIQUE (deployment, message_key));
CREATE TABLE deployment (name TEXT PRIMARY KEY, id TEXT NOT NULL);
CREATE TABLE probe (id INTEGER PRIMARY KEY CHECK (id = 1), at REAL NOT NULL);
"""


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Inbox]:
    inbox = Inbox(path, **options)
    try:
        yield inbox
    finally:
        inbox.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inbox.sqlite"


@pytest.fixture
def inbox(path: Path) -> Iterator[Inbox]:
    with opened(path) as inbox:
        yield inbox


def append(inbox: Inbox, message_id: str, deployment: str = "default", **fields: Any) -> bool:
    return asyncio.run(inbox.append(deployment, Delivery(message_id=message_id, **fields)))


def waiting(inbox: Inbox, limit: int = 100, **options: Any) -> list[str]:
    entries = asyncio.run(inbox.waiting(limit, **{"of": KNOWN, **options}))
    return [entry.message_id for entry in entries]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process's exclusive transaction, as a backup tool or a curious operator has it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()


def test_what_was_written_is_there_after_a_restart(path: Path) -> None:
    """With all that the flow needs."""
    with opened(path) as inbox:
        fields = {"mailbox": "shared@example.com", "received": "2026-11-22T11:00:00+01:00", "conversation_id": "AAQk="}
        assert append(inbox, "AAMk=", has_attachments=True, timestamp="2026-11-22T10:00:01Z", **fields)
        asyncio.run(inbox.remember_deployments(KNOWN))
    with opened(path) as inbox:
        (entry,) = asyncio.run(inbox.waiting(10, of=KNOWN))
        assert (entry.message_id, entry.deployment) == ("AAMk=", "default")
        assert (entry.mailbox, entry.conversation_id) == ("shared@example.com", "AAQk=")
        assert entry.received == datetime(2026, 11, 22, 10, tzinfo=UTC)
        assert (entry.has_attachments, entry.timestamp) == (True, "2026-11-22T10:00:01Z")
        assert asyncio.run(inbox.deployments()) == KNOWN


def test_an_older_versions_inbox_is_taken_over_and_it_can_take_it_back(path: Path) -> None:
    """What waited at an upgrade is dispatched, and what came after it also by a version that is put back."""
    with sqlite3.connect(path) as old:
        old.executescript(FIRST_SCHEMA)
        old.execute(
            f"INSERT INTO entry ({FIRST_COLUMNS}) VALUES ('default', 'key', 'a', 'm@example.com', NULL, 'c', 1)"
        )
    old.close()
    with opened(path) as inbox:
        assert append(inbox, "b", has_attachments=False)
        entries = asyncio.run(inbox.waiting(10, of=KNOWN))
    assert [(entry.message_id, entry.mailbox, entry.has_attachments) for entry in entries] == [
        ("a", "m@example.com", None),
        ("b", None, False),
    ]
    with sqlite3.connect(path) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (1,)
        assert old.execute(f"SELECT {FIRST_COLUMNS} FROM entry ORDER BY seq").fetchall()[1][2] == "b"
        old.execute(f"INSERT INTO entry ({FIRST_COLUMNS}) VALUES ('default', 'k', 'd', NULL, NULL, NULL, 2)")
    old.close()
    with opened(path) as inbox:
        assert waiting(inbox) == ["a", "b", "d"]


def test_the_same_message_waits_once_for_each_deployment(inbox: Inbox) -> None:
    """A redelivery collapses; another deployment's does not."""
    assert append(inbox, "a")
    assert not append(inbox, "a")
    assert append(inbox, "a", "pdfs")
    assert append(inbox, "A")
    assert waiting(inbox) == ["a", "a", "A"]


def test_a_message_can_come_again_once_it_was_handed_over(inbox: Inbox) -> None:
    """Collapsing ends with the hand-over: a later redelivery is a new entry, under a later number."""
    append(inbox, "a")
    (first,) = asyncio.run(inbox.waiting(1, of=KNOWN))
    asyncio.run(inbox.remove(first))
    assert append(inbox, "a")
    (second,) = asyncio.run(inbox.waiting(1, of=KNOWN))
    assert second.seq > first.seq


def test_the_oldest_come_first_and_nobody_else_is_offered(inbox: Inbox) -> None:
    """In the order of their arrival, without those under way or resting, and without strays."""
    append(inbox, "stray", "no-such-deployment")
    for message_id in "abcd":
        append(inbox, message_id)
    first = asyncio.run(inbox.waiting(1, of=KNOWN))[0]
    assert waiting(inbox, 2, besides=[first.seq]) == ["b", "c"]
    assert asyncio.run(inbox.depth_by_deployment()) == {"default": 4, "no-such-deployment": 1}


def test_any_number_of_entries_may_rest(inbox: Inbox) -> None:
    """More than SQLite takes as variables of one statement."""
    append(inbox, "a")
    assert waiting(inbox, besides=range(10, 300_000)) == ["a"]


def test_deliveries_at_once_are_all_kept(inbox: Inbox) -> None:
    """A thousand at once: each is written, each duplicate is told from the first."""

    async def burst() -> list[bool]:
        deliveries = [Delivery(message_id=str(number % 500)) for number in range(1000)]
        return list(await asyncio.gather(*(inbox.append("default", delivery) for delivery in deliveries)))

    assert sum(asyncio.run(burst())) == 500
    assert asyncio.run(inbox.depth()).entries == 500


def test_the_depth_tells_the_age_of_the_oldest(inbox: Inbox) -> None:
    """Zero when nothing waits."""
    assert asyncio.run(inbox.depth()).oldest_seconds == 0
    append(inbox, "a")
    depth = asyncio.run(inbox.depth())
    assert depth.entries == 1
    assert 0 <= depth.oldest_seconds < 60


def test_a_commit_waits_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`synchronous` is FULL (2) and the log a WAL: what is acknowledged outlives a power cut."""
    seen: list[sqlite3.Connection] = []

    class Seen(sqlite3.Connection):
        def __init__(self, *values: Any, **options: Any) -> None:
            super().__init__(*values, **options)
            seen.append(self)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Seen))
    with opened(path) as inbox:
        append(inbox, "a")
        assert seen[-1].execute("PRAGMA synchronous").fetchone() == (2,)
        assert seen[-1].execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_file_is_its_owners_alone(path: Path, inbox: Inbox) -> None:
    """Message ids are nobody else's business; what stands beside it has the same rights."""
    append(inbox, "a")
    assert {file.stat().st_mode & 0o077 for file in path.parent.iterdir()} == {0}


@pytest.mark.parametrize("suffix", ["-reserve", "-wal", "-shm", ""])
@pytest.mark.parametrize("has_target", [True, False])
def test_a_link_that_somebody_has_put_there_is_not_followed(path: Path, suffix: str, has_target: bool) -> None:
    """In a folder that others may write to, such as /tmp: what it leads to is neither made nor changed."""
    target = path.parent / "somebody's"
    if has_target:
        target.write_bytes(b"theirs" * 50_000)
    path.with_name(f"{path.name}{suffix}").symlink_to(target)
    try:
        with opened(path) as inbox:
            append(inbox, "a")
            assert asyncio.run(inbox.depth()).entries == 1
    except InboxUnavailable:
        assert suffix != "-reserve"
    assert target.exists() == has_target
    if has_target:
        assert target.read_bytes() == b"theirs" * 50_000


@pytest.mark.parametrize("kind", ["link", "hard link", "shorter"])
def test_a_reserve_that_is_not_ours_is_replaced(path: Path, inbox: Inbox, kind: str) -> None:
    """Room that somebody else holds cannot be given up when the disk is full."""
    reserve, others = path.with_name(f"{path.name}-reserve"), path.parent / "somebody's"
    others.write_bytes(bytes(RESERVE_SIZE))
    if kind == "shorter":
        reserve.write_bytes(b"too short")
    else:
        (reserve.symlink_to if kind == "link" else reserve.hardlink_to)(others)
    append(inbox, "a")
    status = reserve.lstat()
    assert (stat.S_ISREG(status.st_mode), status.st_size, status.st_nlink) == (True, RESERVE_SIZE, 1)
    assert others.read_bytes() == bytes(RESERVE_SIZE)


def test_a_probe_writes_once_in_some_seconds(path: Path) -> None:
    """Anyone may ask for one. A delivery that was just written is as good, and one that was refused is told again."""
    with opened(path, lock_timeout=0.0, probe_interval=1000.0) as inbox:
        asyncio.run(inbox.check_writable())
        before = probed(path)
        for _ in range(20):
            asyncio.run(inbox.check_writable())
        assert probed(path) == before
    with opened(path, probe_interval=0.0) as inbox:
        asyncio.run(inbox.check_writable())
        asyncio.run(inbox.check_writable())
        assert probed(path) > before

    with opened(path, lock_timeout=0.0, probe_interval=1000.0) as inbox:
        with locked(path), pytest.raises(InboxUnavailable):
            append(inbox, "a")
        with pytest.raises(InboxUnavailable, match="locked"):
            asyncio.run(inbox.check_writable())
        append(inbox, "a")
        asyncio.run(inbox.check_writable())


def probed(path: Path) -> float:
    """When the last probe wrote."""
    with closing(sqlite3.connect(path)) as database:
        (at,) = database.execute("SELECT at FROM probe").fetchone()
    return float(at)


def test_a_lock_from_outside_is_waited_for(path: Path, inbox: Inbox) -> None:
    """A delivery during another's exclusive transaction is written when that ends."""
    with locked(path):
        done: list[bool] = []
        writer = threading.Thread(target=lambda: done.append(append(inbox, "a")))
        writer.start()
        writer.join(0.5)
        assert done == []
    writer.join(10)
    assert done == [True]


def test_a_lock_that_stays_is_an_error_in_time(path: Path) -> None:
    """The sender is told in time to try again, however many wait; once the lock is gone all is well."""

    async def burst() -> list[Any]:
        deliveries = [Delivery(message_id=str(number)) for number in range(300)]
        writes = (inbox.append("default", delivery) for delivery in deliveries)
        async with asyncio.timeout(10):
            return list(await asyncio.gather(*writes, return_exceptions=True))

    with opened(path, lock_timeout=0.3) as inbox:
        with locked(path):
            results = asyncio.run(burst())
        assert {type(result) for result in results} == {InboxUnavailable}
        assert "locked" in str(results[0])
        assert append(inbox, "a")


def test_closing_does_not_wait_for_a_lock(path: Path) -> None:
    """A stop is not held up by another process; what could not be written was never acknowledged."""

    async def write_and_close() -> None:
        write = asyncio.create_task(inbox.append("default", Delivery(message_id="a")))
        await asyncio.sleep(0)  # the task has handed its job to the inbox's thread
        inbox.close()
        with pytest.raises(InboxUnavailable, match="locked"):
            await write

    inbox = Inbox(path, lock_timeout=600)
    with locked(path):
        asyncio.run(asyncio.wait_for(write_and_close(), 10))


def test_one_defective_write_leaves_its_neighbours_alone(path: Path, inbox: Inbox) -> None:
    """In one transaction with good ones, only the bad one fails, and the thread lives on.

    A name that no text of SQLite's can hold stands for a defect of ours, a missing one for a constraint of the table.
    """

    async def together() -> list[Any]:
        with locked(path):  # so that all are in one batch
            tasks = [
                asyncio.create_task(work)
                for work in (
                    inbox.append("default", Delivery(message_id="a")),
                    inbox.append("\udcff", Delivery(message_id="canary")),
                    inbox.append(cast("str", None), Delivery(message_id="canary")),
                    inbox.append("default", Delivery(message_id="b")),
                )
            ]
            await asyncio.sleep(0.2)
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    first, defect, constraint, last = asyncio.run(together())
    assert (first, last) == (True, True)
    assert isinstance(defect, InboxUnavailable)
    assert isinstance(constraint, InboxUnavailable)
    assert waiting(inbox) == ["a", "b"]


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("with_log", [True, False])
def test_a_file_that_is_taken_away_is_replaced(path: Path, moved: bool, with_log: bool) -> None:
    """What is acknowledged after an operator moved or deleted the file is on the disk, with what waited before."""
    with opened(path) as inbox:
        append(inbox, "before")
        files = [path, Path(f"{path}-wal"), Path(f"{path}-shm")]
        for file in files if with_log else files[:1]:
            if moved:
                file.rename(file.with_name(f"moved-{file.name}"))
            else:
                file.unlink()
        append(inbox, "after")
        assert waiting(inbox) == ["before", "after"]
    with opened(path) as inbox:
        assert waiting(inbox) == ["before", "after"]


def test_a_folder_that_is_gone_is_an_error_until_it_is_back(path: Path) -> None:
    """An unmounted disk: nothing is acknowledged, nothing that waited is lost once it is there again."""
    folder = path.parent / "disk"
    folder.mkdir()
    with opened(folder / "inbox.sqlite") as inbox:
        append(inbox, "before")
        folder.rename(path.parent / "unmounted")
        for _ in range(2):
            with pytest.raises(InboxUnavailable, match="No such file"):
                append(inbox, "meanwhile")
        folder.mkdir()
        append(inbox, "after")
        assert waiting(inbox) == ["before", "after"]


def _directory(path: Path) -> None:
    path.mkdir()


def _garbage(path: Path) -> None:
    path.write_bytes(b"not a database at all " * 1000)


def _anothers(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()


def _newer(path: Path) -> None:
    Inbox(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def _damaged(path: Path) -> None:
    with opened(path) as inbox:
        for number in range(200):
            append(inbox, f"{number:050}")
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 6] = b"\xaa" * 4096 * 5
    path.write_bytes(content)


def _under_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("a file where the folder should be")


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_dangling, "link to a file that does not exist"),
        (_directory, "folder"),
        (_garbage, "not a database"),
        (_anothers, "another program"),
        (_newer, "newer version"),
        (_damaged, "damaged|malformed"),
        (_under_a_file, "exists|Not a directory"),
    ],
)
def test_a_file_that_cannot_be_an_inbox_is_refused_and_left_alone(
    path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    """The error names the file, the reason and the way out."""
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(InboxUnavailable, match=reason) as raised:
        Inbox(path)
    assert str(path) in str(raised.value)
    assert "ATTACHMENTS_INBOX" in str(raised.value)
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-11-22T10:00:00Z", "2026-11-22T10:00:00+00:00"),
        ("2026-11-22T10:00:00.1234567Z", "2026-11-22T10:00:00.123456+00:00"),
        ("2026-11-22T10:00:00", "2026-11-22T10:00:00+00:00"),
        ("2026-11-22T11:00:00+01:00", "2026-11-22T10:00:00+00:00"),
        ("2026-11-22T10:00:00+00:00:30", "2026-11-22T09:59:30+00:00"),
        ("2026-11-22 10:00", "2026-11-22T10:00:00+00:00"),
        ("0001-01-01T00:00:00+14:00", None),
        ("2026-02-30T10:00:00Z", None),
        ("yesterday", None),
        ("Subject canary", None),
        ("1763805600", None),
        ("", None),
        (None, None),
    ],
)
def test_a_time_is_understood_or_left_out(text: str | None, meant: str | None) -> None:
    """What the webhook calls `received` may be anything; what goes on is a date-time of RFC 3339 in UTC."""
    found = parse_timestamp(text)
    assert (found and found.isoformat()) == meant
