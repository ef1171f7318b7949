"""The durable inbox: what got a 200 stands here until Prefect has said yes.

One SQLite file in WAL mode with `synchronous=FULL`: a commit is on the disk before the answer leaves, so a
`kill -9` at any moment loses nothing that was acknowledged (https://www.sqlite.org/pragma.html#pragma_synchronous).
One thread owns the connection and commits all that waits in one transaction (group commit): a burst costs
one sync for many deliveries.

Only what the flow needs is kept: ids, the shared mailbox's address, three timestamps and a flag. Subject, sender and
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from attachments.emailgistics import Delivery
from attachments.receiver.limits import LOCK_PATIENCE, PROBE_INTERVAL
from attachments.receiver.safe_traceback import where
from attachments.storage import message_key

logger = logging.getLogger("attachments.inbox")
T = TypeVar("T")
BATCH = 1024
LOCK_STEP = 100  # milliseconds between looks at whether we are to stop meanwhile
CHECKPOINT = 32  # pages of 4 KiB; SQLite's own 1,000 let the log grow to 4 MB on a disk that may be small
RESERVE = 256 * 1024  # bytes; more than SQLite's log holds between two checkpoints
FREE_PAGES = 8  # enough for an ordinary batch

# "emga" in ASCII: what tells our file from another program's (https://www.sqlite.org/pragma.html#pragma_application_id).
APPLICATION = 0x656D6761
VERSION = 1
SCHEMA = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
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
ADDED = {"has_attachments": "INTEGER", "timestamp": "TEXT"}
"""Columns that an inbox of an older version lacks. It knows no NOT NULL: the older version may take the file back."""
COLUMNS = (
    "deployment, message_key, message_id, mailbox, received, conversation_id, accepted, has_attachments, timestamp"
)


class InboxUnavailable(Exception):
    """The inbox's disk does not take the delivery: full, locked, broken or gone."""


@dataclass(frozen=True)
class Entry:
    """One delivery that waits for its flow run. `accepted` is in seconds since the epoch."""

    seq: int
    deployment: str
    message_key: str
    message_id: str
    mailbox: str | None
    received: datetime | None
    conversation_id: str | None
    accepted: float
    has_attachments: bool | None = None
    """What the webhook said."""
    timestamp: str | None = None
    """When the vendor made the webhook, as it wrote it."""


@dataclass(frozen=True)
class Depth:
    """How many entries wait, and for how many seconds the oldest has."""

    entries: int
    oldest_seconds: float


class Inbox:
    """Deliveries on disk, each once for a deployment and a message.

    Every method that touches the disk raises `InboxUnavailable` when the disk does not do it, or when another
    process has held its lock for `lock_patience` seconds.
    """

    def __init__(
        self, path: Path, *, lock_patience: float = LOCK_PATIENCE, probe_interval: float = PROBE_INTERVAL
    ) -> None:
        self.path = path
        self._reserve = path.parent / f"{path.name}-reserve"
        self._lock_patience = lock_patience
        self._probe_interval = probe_interval
        self._closing = False
        self._last_write: tuple[float, str | None] | None = None
        """When something was last added, and why it could not be, None when it was."""
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = _connect(path, lock_patience)
            self._file: tuple[int, int] | None = _identity(path)
        except (OSError, sqlite3.Error) as error:
            raise InboxUnavailable(
                f"The inbox {path} cannot be opened ({_reason(error)}). Give ATTACHMENTS_INBOX a path on a local disk "
                "that this user may write. If the file is damaged, move it away and keep it: what waited in it has to "
                "be started by hand."
            ) from None
        self._thread = threading.Thread(target=self._serve, name="inbox", daemon=True)
        self._thread.start()

    async def append(self, deployment: str, delivery: Delivery) -> bool:
        """Write a delivery; the disk has it when this returns. False: the same one waits already."""
        received = moment(delivery.received)
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
        """The oldest entries of these deployments first, without those in `besides`."""
        query = (
            f"SELECT seq, {COLUMNS} FROM entry"  # noqa: S608  names of our own
            " WHERE deployment IN (SELECT value FROM json_each(?)) AND seq NOT IN (SELECT value FROM json_each(?))"
            " ORDER BY seq LIMIT ?"
        )
        values = (json.dumps(list(of)), json.dumps(list(besides)), limit)
        return await self._run(lambda db: [_entry(*row) for row in db.execute(query, values)])

    async def remove(self, entry: Entry) -> None:
        """Forget an entry that Prefect has taken."""
        await self._run(lambda db: db.execute("DELETE FROM entry WHERE seq = ?", (entry.seq,)))

    async def depth(self) -> Depth:
        """Count what waits."""

        def count(db: sqlite3.Connection) -> Depth:
            entries, oldest = db.execute("SELECT count(*), min(accepted) FROM entry").fetchone()
            return Depth(entries, max(0.0, time.time() - oldest) if oldest else 0.0)

        return await self._run(count)

    async def depths(self) -> dict[str, int]:
        """Count what waits, by deployment."""
        return await self._run(
            lambda db: dict(db.execute("SELECT deployment, count(*) FROM entry GROUP BY deployment").fetchall())
        )

    async def probe(self) -> None:
        """Raises when the disk would refuse a delivery now.

        Writes something unless there was a write within `probe_interval`, which has shown how it is.
        """

        def write(db: sqlite3.Connection) -> None:
            if self._recent_write() is None:
                db.execute(
                    "INSERT INTO probe VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET at = excluded.at", (time.time(),)
                )

        recent = self._recent_write()
        if recent is not None and recent[1] is not None:
            raise InboxUnavailable(recent[1])
        await self._run(write, adds=True)

    async def remember_deployments(self, deployments: Mapping[str, str]) -> None:
        """Keep the known deployments (name to id), for a start while Prefect is away."""

        def replace(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM deployment")
            db.executemany("INSERT INTO deployment VALUES (?, ?)", deployments.items())

        await self._run(replace)

    async def deployments(self) -> dict[str, str]:
        """The deployments that were known last, name to id."""
        return await self._run(lambda db: dict(db.execute("SELECT name, id FROM deployment").fetchall()))

    def close(self) -> None:
        """Finish what is queued and close the file; a lock that another process holds is no longer waited for."""
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
        while batch[-1] is not None and len(batch) < BATCH:
            try:
                batch.append(self._jobs.get_nowait())
            except queue.Empty:
                break
        return batch

    def _commit(self, jobs: "list[_Job[Any]]", *, is_last_try: bool = False) -> None:
        """Run the jobs in one transaction; no future is answered before the commit is on the disk.

        When the transaction fails, each job gets one of its own: a large one must not keep a small one from a disk
        that is nearly full, nor a defective one its neighbours.
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
                self._keep_reserve()
            before = self._connection.total_changes
            results = [job.work(self._connection) for job in jobs]
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  this thread must outlive everything; it is the outermost loop
            self._roll_back()
            if not is_last_try:
                for job in jobs:
                    self._commit([job], is_last_try=True)
            elif isinstance(error, OSError | sqlite3.Error):
                self._refuse(jobs, _reason(error))
            else:
                logger.critical("The inbox stumbled over a defect of ours. Please report this: %s", where(error))
                self._refuse(jobs, "a defect of ours")
        else:
            if self._connection.total_changes > before:
                self._last_write = (time.monotonic(), None)
            for job, result in zip(jobs, results, strict=True):
                job.answer(result)

    def _begin(self) -> None:
        """Take the write lock, for which another process may make us wait."""
        if not self._is_in_place():
            self._take_new_file()
        end = time.monotonic() + self._lock_patience
        while True:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                is_locked = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not is_locked or self._closing or time.monotonic() > end:
                    raise
            else:
                return

    def _is_in_place(self) -> bool:
        try:
            return _identity(self.path) == self._file
        except FileNotFoundError:
            return False

    def _take_new_file(self) -> None:
        """The file was moved or deleted under us: what is written to it now would be gone with this process."""
        if self._file is not None:
            logger.critical(
                "The inbox %s was moved or deleted while the receiver ran. A new one takes over what waited in it; "
                "stop the receiver before you touch its inbox.",
                self.path,
            )
            # Two files with the log of one would damage each other: let go of the old one first.
            rescued = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            self._connection.backup(rescued)
            self._connection.close()
            self._connection, self._file = rescued, None
        fresh = _connect(self.path, self._lock_patience)
        _carry_over(self._connection, fresh)
        self._connection.close()
        self._connection, self._file = fresh, _identity(self.path)

    def _keep_reserve(self) -> None:
        """Nothing is added unless there is room left to remove it again. Raises OSError when there is none.

        On a disk without any, SQLite's log could neither grow nor be folded into the file, and the inbox would
        stay full for good. The reserve is given up when a write fails, and taken again when there is room. Free
        pages within the file are as good.
        """
        try:
            if not _is_reserve(self._reserve):
                self._reserve.unlink(missing_ok=True)
                with open(_create(self._reserve), "wb") as file:
                    file.write(os.urandom(RESERVE))  # not zeros, which some file systems do not store
        except OSError:
            with suppress(OSError):  # another user's, in a folder that both may write
                self._reserve.unlink(missing_ok=True)
            (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            if free < FREE_PAGES:
                raise

    def _refuse(self, jobs: "list[_Job[Any]]", reason: str) -> None:
        text = f"The inbox cannot write ({reason})."
        if any(job.adds for job in jobs):
            self._last_write = (time.monotonic(), text)
        for job in jobs:
            job.answer(error=InboxUnavailable(text))

    def _recent_write(self) -> tuple[float, str | None] | None:
        recent = self._last_write
        return recent if recent is not None and time.monotonic() - recent[0] < self._probe_interval else None

    def _roll_back(self) -> None:
        """Leave the failed transaction; give up the reserve and start SQLite's log anew, for the disk may be full."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            logger.error("The inbox cannot roll back (%s); the next write tries again.", _reason(error))
        with suppress(OSError, sqlite3.Error):  # the next write tells
            self._reserve.unlink(missing_ok=True)
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)")


class _Job(Generic[T]):
    """Work for the inbox's thread, and the future that waits for it."""

    def __init__(self, work: Callable[[sqlite3.Connection], T], *, adds: bool) -> None:
        self.work = work
        self.adds = adds
        self.future: Future[T] = Future()

    def answer(self, result: T | None = None, error: Exception | None = None) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)  # type: ignore[arg-type]  # what work returned


def moment(text: str | None) -> datetime | None:
    """The point in time that a webhook's `received` names, in UTC; None when it names none.

    A time without a zone is taken for UTC. Prefect refuses a run whose parameter is no date-time (RFC 3339).
    """
    try:
        found = datetime.fromisoformat(text or "")
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _insert(db: sqlite3.Connection, row: tuple[Any, ...]) -> bool:
    """Whether the entry is new."""
    statement = f"INSERT INTO entry ({COLUMNS}) VALUES ({', '.join('?' * len(row))}) ON CONFLICT DO NOTHING"  # noqa: S608  our own
    return db.execute(statement, row).rowcount == 1


def _carry_over(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    new.execute("BEGIN IMMEDIATE")
    for row in old.execute(f"SELECT {COLUMNS} FROM entry ORDER BY seq"):  # noqa: S608  names of our own
        _insert(new, row)
    new.executemany("INSERT OR IGNORE INTO deployment VALUES (?, ?)", old.execute("SELECT name, id FROM deployment"))
    new.execute("COMMIT")


def _entry(seq: int, *columns: Any) -> Entry:
    deployment, key, message_id, mailbox, received, conversation_id, accepted, has_attachments, timestamp = columns
    has = None if has_attachments is None else bool(has_attachments)
    return Entry(seq, deployment, key, message_id, mailbox, moment(received), conversation_id, accepted, has, timestamp)


def _connect(path: Path, lock_patience: float) -> sqlite3.Connection:
    """Open the file, and make it when it is missing. Raises OSError and sqlite3.Error."""
    if path.is_dir():
        raise IsADirectoryError(None, "it is a folder")
    if not path.exists():
        try:
            os.close(_create(path))
        except FileExistsError:
            if path.is_symlink():
                raise FileExistsError(None, "it is a link to a file that does not exist") from None
        _sync(path.parent)
    connection = sqlite3.connect(path, timeout=lock_patience, isolation_level=None, check_same_thread=False)
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
    if tables and found != APPLICATION:
        raise sqlite3.DatabaseError("it is another program's database")
    if version > VERSION:
        raise sqlite3.DatabaseError("a newer version of this program made it")
    (health,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if health != "ok":
        raise sqlite3.DatabaseError("it is damaged")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA secure_delete = ON")
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}")
    if not tables:
        db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
    columns = {column[1] for column in db.execute("PRAGMA table_info(entry)")}
    for name, kind in ADDED.items():
        if name not in columns:
            db.execute(f"ALTER TABLE entry ADD COLUMN {name} {kind}")
    db.execute(f"PRAGMA busy_timeout = {LOCK_STEP}")


def _create(path: Path) -> int:
    """A descriptor of a new file that nobody else may read. Raises FileExistsError, also for a link that leads nowhere.

    Otherwise anyone who may write to the folder could put a link there, and we would write to its target.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def _is_reserve(path: Path) -> bool:
    """Whether a file is a reserve of ours that is whole: neither a link nor another user's file."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_nlink == 1
    return is_ours and status.st_size == RESERVE


def _sync(folder: Path) -> None:
    """Put the folder's entry of a new file on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _reason(error: OSError | sqlite3.Error) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
