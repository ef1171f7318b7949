"""The durable inbox: keeps each acknowledged delivery until Prefect has confirmed its run.

One SQLite file in WAL mode with `synchronous=FULL`: a commit is on the disk before the response is sent, so a
`kill -9` at any moment loses nothing that was acknowledged (https://www.sqlite.org/pragma.html#pragma_synchronous).
One thread owns the connection and commits all queued jobs in one transaction (group commit), so a burst needs one sync
for many deliveries.

It holds only what the flow needs: ids, the shared mailbox's address, three timestamps and a flag. Subject, sender and
body never reach the disk.
"""

import asyncio
import json
import logging
import os
import queue
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from attachments.emailgistics import Delivery
from attachments.foundation.timestamps import parse_timestamp
from attachments.receiver.limits import LOCK_TIMEOUT, PROBE_INTERVAL
from attachments.receiver.safe_traceback import safe_traceback
from attachments.storage import message_key

logger = logging.getLogger("attachments.inbox")
T = TypeVar("T")
MAX_BATCH = 1024
LOCK_POLL_MILLISECONDS = 100  # milliseconds between checks for `close` while waiting for the lock
CHECKPOINT_PAGES = (
    32  # pages of 4 KiB; with SQLite's default of 1,000, the log grows to 4 MB on a disk that may be small
)
RESERVE_SIZE = 256 * 1024  # bytes; more than SQLite's log holds between two checkpoints
MIN_FREE_PAGES = 8  # enough for an ordinary batch

# "emga" in ASCII: distinguishes this file from another program's
# (https://www.sqlite.org/pragma.html#pragma_application_id).
APPLICATION_ID = 0x656D6761
SCHEMA_VERSION = 1
SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE IF NOT EXISTS entry (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    deployment TEXT NOT NULL,
    message_key TEXT NOT NULL,
    message_id TEXT NOT NULL,
    mailbox TEXT, received TEXT, conversation_id TEXT,
    accepted REAL NOT NULL,
    has_attachments INTEGER, timestamp TEXT,
    UNIQUE (deployment, message_key));
CREATE TABLE IF NOT EXISTS deployment (name TEXT PRIMARY KEY, id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS probe (id INTEGER PRIMARY KEY CHECK (id = 1), at REAL NOT NULL);
"""
ADDED_COLUMNS = {"has_attachments": "INTEGER", "timestamp": "TEXT"}
"""Columns that an older version's inbox lacks. They have no NOT NULL, so that the older version can still use the
file."""
COLUMNS = (
    "deployment, message_key, message_id, mailbox, received, conversation_id, accepted, has_attachments, timestamp"
)


class InboxUnavailable(Exception):
    """The inbox cannot be used: the disk is full or broken, or the file is locked or gone."""


@dataclass(frozen=True)
class Entry:
    """One delivery waiting for its flow run. `accepted` is in seconds since the epoch."""

    seq: int
    deployment: str
    message_key: str
    message_id: str
    mailbox: str | None
    received: datetime | None
    conversation_id: str | None
    accepted: float
    has_attachments: bool | None = None
    """As the webhook says."""
    timestamp: str | None = None
    """When the vendor created the webhook, in the vendor's notation."""


@dataclass(frozen=True)
class Depth:
    """The number of waiting entries, and the age of the oldest in seconds."""

    entries: int
    oldest_seconds: float


class Inbox:
    """Deliveries on disk, one for each deployment and message.

    Every method that uses the disk raises `InboxUnavailable` when the disk fails, or when another process holds the
    lock for `lock_timeout` seconds.
    """

    def __init__(
        self, path: Path, *, lock_timeout: float = LOCK_TIMEOUT, probe_interval: float = PROBE_INTERVAL
    ) -> None:
        self.path = path
        self._reserve_path = path.parent / f"{path.name}-reserve"
        self._lock_timeout = lock_timeout
        self._probe_interval = probe_interval
        self._closing = False
        self._last_write: tuple[float, str | None] | None = None
        """The time of the last attempt to add something, and the reason why it failed, or None."""
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = _connect(path, lock_timeout)
            self._file_identity: tuple[int, int] | None = _file_id(path)
        except (OSError, sqlite3.Error) as error:
            raise InboxUnavailable(
                f"The inbox {path} cannot be opened ({_reason(error)}). Give ATTACHMENTS_INBOX a path on a local disk "
                "that this user may write. If the file is damaged, move it away and keep it; start the runs of the "
                "messages in it by hand."
            ) from None
        self._thread = threading.Thread(target=self._serve, name="inbox", daemon=True)
        self._thread.start()

    async def append(self, deployment: str, delivery: Delivery) -> bool:
        """Write a delivery to the disk. False: one for the same message is already waiting."""
        received = parse_timestamp(delivery.received)
        row = (
            deployment,
            message_key(delivery.message_id),
            delivery.message_id,
            delivery.mailbox,
            received.isoformat() if received else None,
            delivery.conversation_id,
            time.time(),
            delivery.has_attachments,
            delivery.timestamp,
        )
        return await self._run(lambda db: _insert(db, row), adds=True)

    async def waiting(self, limit: int, *, of: Collection[str], besides: Collection[int] = ()) -> list[Entry]:
        """The oldest entries of these deployments, without the sequence numbers in `besides`."""
        query = (
            f"SELECT seq, {COLUMNS} FROM entry"  # noqa: S608  names of our own
            " WHERE deployment IN (SELECT value FROM json_each(?)) AND seq NOT IN (SELECT value FROM json_each(?))"
            " ORDER BY seq LIMIT ?"
        )
        values = (json.dumps(list(of)), json.dumps(list(besides)), limit)
        return await self._run(lambda db: [_entry(*row) for row in db.execute(query, values)])

    async def remove(self, entry: Entry) -> None:
        """Delete an entry whose run Prefect has confirmed."""
        await self._run(lambda db: db.execute("DELETE FROM entry WHERE seq = ?", (entry.seq,)))

    async def depth(self) -> Depth:
        """Count the waiting entries."""

        def count(db: sqlite3.Connection) -> Depth:
            entries, oldest = db.execute("SELECT count(*), min(accepted) FROM entry").fetchone()
            return Depth(entries, max(0.0, time.time() - oldest) if oldest else 0.0)

        return await self._run(count)

    async def depth_by_deployment(self) -> dict[str, int]:
        """Count the waiting entries by deployment."""
        return await self._run(
            lambda db: dict(db.execute("SELECT deployment, count(*) FROM entry GROUP BY deployment").fetchall())
        )

    async def check_writable(self) -> None:
        """Raise `InboxUnavailable` if a delivery could not be written now.

        Writes a row, unless the result of a write within `probe_interval` is known.
        """

        def write(db: sqlite3.Connection) -> None:
            if self._last_write_if_recent() is None:
                db.execute(
                    "INSERT INTO probe VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET at = excluded.at", (time.time(),)
                )

        recent = self._last_write_if_recent()
        if recent is not None and recent[1] is not None:
            raise InboxUnavailable(recent[1])
        await self._run(write, adds=True)

    async def remember_deployments(self, deployments: Mapping[str, str]) -> None:
        """Store the known deployments (name to id), for a start while Prefect is unavailable."""

        def replace(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM deployment")
            db.executemany("INSERT INTO deployment VALUES (?, ?)", deployments.items())

        await self._run(replace)

    async def deployments(self) -> dict[str, str]:
        """The last known deployments, name to id."""
        return await self._run(lambda db: dict(db.execute("SELECT name, id FROM deployment").fetchall()))

    def close(self) -> None:
        """Finish the queued jobs and close the file, without waiting for another process's lock."""
        self._closing = True
        self._jobs.put(None)
        self._thread.join()

    async def _run(self, work: Callable[[sqlite3.Connection], T], *, adds: bool = False) -> T:
        job = _Job(work, adds=adds)
        self._jobs.put(job)
        return await asyncio.wrap_future(job.future)

    # ---- the inbox's own thread ----

    def _serve(self) -> None:
        batch: list[_Job[Any] | None] = []
        while not batch or batch[-1] is not None:
            batch = self._next_batch()
            self._commit([job for job in batch if job is not None])
        self._connection.close()

    def _next_batch(self) -> "list[_Job[Any] | None]":
        batch = [self._jobs.get()]
        while batch[-1] is not None and len(batch) < MAX_BATCH:
            try:
                batch.append(self._jobs.get_nowait())
            except queue.Empty:
                break
        return batch

    def _commit(self, jobs: "list[_Job[Any]]", *, is_last_try: bool = False) -> None:
        """Run the jobs in one transaction, and resolve their futures once the commit is on the disk.

        If the transaction fails, each job gets its own: a large job must not block a small one on a nearly full disk,
        nor a failing job the others.
        """
        if not jobs:
            return
        try:
            self._begin()
        except (OSError, sqlite3.Error) as error:
            self._refuse(jobs, _reason(error))
            return
        try:
            if any(job.adds for job in jobs):
                self._ensure_reserve()
            before = self._connection.total_changes
            results = [job.work(self._connection) for job in jobs]
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  the thread's outermost loop, which must continue
            self._roll_back()
            if not is_last_try:
                for job in jobs:
                    self._commit([job], is_last_try=True)
            elif isinstance(error, OSError | sqlite3.Error):
                self._refuse(jobs, _reason(error))
            else:
                logger.critical("Internal error in the inbox. Please report this: %s", safe_traceback(error))
                self._refuse(jobs, "internal error")
        else:
            if self._connection.total_changes > before:
                self._last_write = (time.monotonic(), None)
            for job, result in zip(jobs, results, strict=True):
                job.resolve(result)

    def _begin(self) -> None:
        """Take the write lock, waiting while another process holds it."""
        if not self._is_file_unchanged():
            self._replace_moved_file()
        end = time.monotonic() + self._lock_timeout
        while True:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                is_locked = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not is_locked or self._closing or time.monotonic() > end:
                    raise
            else:
                return

    def _is_file_unchanged(self) -> bool:
        try:
            return _file_id(self.path) == self._file_identity
        except FileNotFoundError:
            return False

    def _replace_moved_file(self) -> None:
        """Create a new file in place of one that was moved or deleted, and copy the waiting entries to it."""
        if self._file_identity is not None:
            logger.critical(
                "The inbox %s was moved or deleted while the receiver ran. The waiting deliveries were copied to a new "
                "file. Stop the receiver before you move its inbox.",
                self.path,
            )
            # Two files that share a log would damage each other, so close the old one first.
            rescued = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            self._connection.backup(rescued)
            self._connection.close()
            self._connection, self._file_identity = rescued, None
        fresh = _connect(self.path, self._lock_timeout)
        _copy_entries(self._connection, fresh)
        self._connection.close()
        self._connection, self._file_identity = fresh, _file_id(self.path)

    def _ensure_reserve(self) -> None:
        """Make sure that the disk has room for removing entries again. Raises OSError if it has none.

        On a full disk, SQLite's log could neither grow nor be checkpointed, so the inbox would stay full for ever. A
        failed write deletes the reserve file; it is created again when there is room. Free pages within the database
        serve as well.
        """
        try:
            if not _is_reserve(self._reserve_path):
                self._reserve_path.unlink(missing_ok=True)
                with open(_create(self._reserve_path), "wb") as file:
                    file.write(os.urandom(RESERVE_SIZE))  # random, because some file systems do not store zeros
        except OSError:
            with suppress(OSError):  # another user's file, in a folder that both may write
                self._reserve_path.unlink(missing_ok=True)
            (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            if free < MIN_FREE_PAGES:
                raise

    def _refuse(self, jobs: "list[_Job[Any]]", reason: str) -> None:
        text = f"The inbox cannot write ({reason})."
        if any(job.adds for job in jobs):
            self._last_write = (time.monotonic(), text)
        for job in jobs:
            job.resolve(error=InboxUnavailable(text))

    def _last_write_if_recent(self) -> tuple[float, str | None] | None:
        recent = self._last_write
        return recent if recent is not None and time.monotonic() - recent[0] < self._probe_interval else None

    def _roll_back(self) -> None:
        """Roll back the failed transaction. The disk may be full, so delete the reserve and restart SQLite's log."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            logger.error("The inbox cannot roll back (%s); the next write tries again.", _reason(error))
        with suppress(OSError, sqlite3.Error):  # the next write reports it
            self._reserve_path.unlink(missing_ok=True)
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)")


class _Job(Generic[T]):
    """A function for the inbox's thread, and the future of its result."""

    def __init__(self, work: Callable[[sqlite3.Connection], T], *, adds: bool) -> None:
        self.work = work
        self.adds = adds
        self.future: Future[T] = Future()

    def resolve(self, result: T | None = None, error: Exception | None = None) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)  # type: ignore[arg-type]  # what work returned


def _insert(db: sqlite3.Connection, row: tuple[Any, ...]) -> bool:
    """Insert an entry; False if its message is already waiting."""
    statement = f"INSERT INTO entry ({COLUMNS}) VALUES ({', '.join('?' * len(row))}) ON CONFLICT DO NOTHING"  # noqa: S608  our own
    return db.execute(statement, row).rowcount == 1


def _copy_entries(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    new.execute("BEGIN IMMEDIATE")
    for row in old.execute(f"SELECT {COLUMNS} FROM entry ORDER BY seq"):  # noqa: S608  names of our own
        _insert(new, row)
    new.executemany("INSERT OR IGNORE INTO deployment VALUES (?, ?)", old.execute("SELECT name, id FROM deployment"))
    new.execute("COMMIT")


def _entry(seq: int, *columns: Any) -> Entry:
    deployment, key, message_id, mailbox, received, conversation_id, accepted, has_attachments, timestamp = columns
    has = None if has_attachments is None else bool(has_attachments)
    return Entry(
        seq, deployment, key, message_id, mailbox, parse_timestamp(received), conversation_id, accepted, has, timestamp
    )


def _connect(path: Path, lock_timeout: float) -> sqlite3.Connection:
    """Open the file, creating it if it is missing. Raises OSError and sqlite3.Error."""
    if path.is_dir():
        raise IsADirectoryError(None, "it is a folder")
    if not path.exists():
        try:
            os.close(_create(path))
        except FileExistsError:
            if path.is_symlink():
                raise FileExistsError(None, "it is a link to a file that does not exist") from None
        _sync_folder(path.parent)
    connection = sqlite3.connect(path, timeout=lock_timeout, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _prepare(db: sqlite3.Connection) -> None:
    (found,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and found != APPLICATION_ID:
        raise sqlite3.DatabaseError("it is another program's database")
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError("a newer version of this program made it")
    (health,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if health != "ok":
        raise sqlite3.DatabaseError("it is damaged")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = ON")
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    if not tables:
        db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
    columns = {column[1] for column in db.execute("PRAGMA table_info(entry)")}
    for name, kind in ADDED_COLUMNS.items():
        if name not in columns:
            db.execute(f"ALTER TABLE entry ADD COLUMN {name} {kind}")
    db.execute(f"PRAGMA busy_timeout = {LOCK_POLL_MILLISECONDS}")


def _create(path: Path) -> int:
    """Create a file that only this user may read, and return its descriptor. Raises FileExistsError, also for a
    dangling symlink.

    Otherwise anyone who may write to the folder could plant a symlink, and this program would write to its target.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def _is_reserve(path: Path) -> bool:
    """Whether a file is a complete reserve file of this user, and not a link."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1
    return is_ours and status.st_size == RESERVE_SIZE


def _sync_folder(folder: Path) -> None:
    """Sync the folder, so that a new file's entry is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_id(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _reason(error: OSError | sqlite3.Error) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
