"""The disk is full, the rights are gone, the mount has vanished: a typed error, nothing lost, and a retry finishes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attachments.storage import Store, open_store
from attachments.storage.errors import AccessDenied, NotFound, OutOfSpace, StoreError, StoreUnavailable
from tests.storage.processes import answer, without_rights
from tests.storage.samples import ATTACHMENT, CANARY, CONTENT, MESSAGE, PLACE, entry, leftovers, manifest, objects

# Mounts a small disk where only its own children see it, then runs a test's script with it.
CAN_MOUNT = (
    sys.platform == "linux"
    and os.geteuid() == 0
    and shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0
)
needs_mounts = pytest.mark.skipif(not CAN_MOUNT, reason="mounting needs root and Linux namespaces")

PREAMBLE = """
import os, subprocess, sys
from attachments.storage import *
from attachments.storage.errors import *
from tests.storage.samples import *
root = sys.argv[1]
def run(*command): subprocess.run(command, check=True)
def raised(act):
    try: act()
    except StoreError as error: return type(error).__name__
one, two = attachment_key("one"), attachment_key("two")
"""


def on_a_small_disk(tmp_path: Path, script: str) -> str:
    """What a script prints that has a disk of 1 MiB as its root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"mount -t tmpfs -o size=1m tmpfs {disk} && exec {sys.executable} -c '{PREAMBLE}{script}' {disk}"
    repository = Path(__file__).parents[3]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, check=False, cwd=repository
    )
    assert done.stderr == ""
    return done.stdout.strip()


@needs_mounts
def test_a_full_disk_keeps_what_it_has(tmp_path: Path) -> None:
    """OutOfSpace for what does not fit; the rest stays, nothing partial, and it goes on once there is room."""
    shown = on_a_small_disk(
        tmp_path,
        """
store = open_store(root)
first = store.write(MESSAGE, one, "a", [b"x" * 500_000])
store.update_manifest(MESSAGE, lambda current: manifest(entry("a")))
print(raised(lambda: store.write(MESSAGE, two, "b", [b"y" * 100_000] * 9)))
print(leftovers(Path(root)), store.stored(MESSAGE) == {one: first})
filler = Path(root, "filler"); filler.touch()
try: filler.write_bytes(b"z" * 2_000_000)
except OSError: pass
print(raised(lambda: store.update_manifest(MESSAGE, lambda current: manifest(*[entry(str(n)) for n in range(999)]))))
print(len(store.read_manifest(MESSAGE).attachments), leftovers(Path(root)))
filler.unlink()
print(store.write(MESSAGE, two, "b", [b"y"]).bytes)
""",
    )
    assert shown.splitlines() == ["OutOfSpace", "[] True", "OutOfSpace", "1 []", "1"]


@needs_mounts
def test_a_disk_that_vanishes_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    """After an unmount nothing lands in the mount's empty folder, and after a mount all goes on."""
    shown = on_a_small_disk(
        tmp_path,
        """
store = open_store(root)
store.write(MESSAGE, one, "a", [b"x"])
run("mount", "-t", "tmpfs", "tmpfs", root)
for act in (
    lambda: store.write(MESSAGE, two, "b", [b"x"]),
    lambda: store.update_manifest(MESSAGE, lambda current: manifest()),
    lambda: store.read_manifest(MESSAGE),
    lambda: store.stored(MESSAGE),
): print(raised(act), os.listdir(root))
run("umount", root)
print(store.write(MESSAGE, two, "b", [b"x"]).bytes, len(store.stored(MESSAGE)))
""",
    )
    assert shown.splitlines() == ["NotFound []"] * 4 + ["1 2"]


@needs_mounts
def test_a_read_only_disk_can_be_read(tmp_path: Path) -> None:
    """What stands there is found, and writing is denied."""
    shown = on_a_small_disk(
        tmp_path,
        """
store = open_store(root)
store.write(MESSAGE, one, "a", [b"x"])
run("mount", "-o", "remount,ro", root)
print(raised(lambda: store.write(MESSAGE, two, "b", [b"x"])))
print(raised(lambda: store.update_manifest(MESSAGE, lambda current: manifest())))
print(len(store.stored(MESSAGE)), store.read_manifest(MESSAGE))
""",
    )
    assert shown.splitlines() == ["AccessDenied", "AccessDenied", "1 None"]


def test_lost_rights_are_told_and_a_retry_finishes(store: Store, root: Path) -> None:
    """AccessDenied, by key, while they last; what was stored stays."""
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    before = objects(root)
    calls: list[Callable[[], object]] = [
        lambda: store.write(MESSAGE, ATTACHMENT, CANARY, [CONTENT]),
        lambda: store.update_manifest(MESSAGE, lambda current: manifest()),
        lambda: store.stored(MESSAGE),
        lambda: open_store(str(root)).write(MESSAGE, ATTACHMENT, CANARY, [CONTENT]),
    ]
    mode = stat.S_IMODE(root.stat().st_mode)
    root.chmod(0)
    try:
        for call in calls:
            error = answer(without_rights(call))
            assert type(error) is AccessDenied
            assert error.key in (PLACE, MESSAGE)
            assert not error.retryable
    finally:
        root.chmod(mode)
    assert objects(root) == before
    for call in calls:
        call()


@pytest.mark.parametrize("below", ["", "/a/b"])
def test_a_root_that_is_deleted_is_not_made_anew(root: Path, below: str) -> None:
    """A running worker reports it until it is back; a store that is opened afresh starts afresh."""
    place = Path(f"{root}{below}")
    place.mkdir(parents=True)
    store = open_store(str(place))
    shutil.rmtree(root)
    with pytest.raises(NotFound, match="gone or empty"):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert not root.exists()
    place.mkdir(parents=True)
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    shutil.rmtree(place)
    with pytest.raises(NotFound):
        store.read_manifest(MESSAGE)
    open_store(str(place)).write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])


def test_only_the_owner_may_read(store: Store, root: Path) -> None:
    """Attachments are confidential, whatever the umask of the worker."""
    old = os.umask(0)
    try:
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
        store.update_manifest(MESSAGE, lambda current: manifest())
    finally:
        os.umask(old)
    for path in (root, *root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def failing(number: int) -> Callable[..., Any]:
    def call(*args: Any, **more: Any) -> Any:
        raise OSError(number, os.strerror(number), CANARY)

    return call


@pytest.mark.parametrize("name", ["open", "mkdir", "write", "fsync", "link", "listdir", "fstat", "stat"])
@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, OutOfSpace), (errno.EDQUOT, OutOfSpace), (errno.EIO, StoreUnavailable)]
)
def test_whatever_call_fails_a_write_leaves_nothing_and_tells_nothing(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, kind: type[StoreError]
) -> None:
    """A full disk may show only in fsync; each way the error is ours, by key, without a path, and a retry works."""
    with monkeypatch.context() as patched:
        patched.setattr(os, name, failing(number))
        with pytest.raises(StoreError) as caught:
            store.write(MESSAGE, ATTACHMENT, CANARY, [CONTENT])
    assert type(caught.value) is kind
    assert caught.value.key == PLACE
    shown = "".join(traceback.format_exception(caught.value))
    assert CANARY not in shown
    assert str(root) not in shown
    assert objects(root) == {} if root.exists() else True
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert objects(root) == {f"{PLACE}/a.pdf": CONTENT}
    assert leftovers(root) == []


@pytest.mark.parametrize("name", ["open", "mkdir", "write", "fsync", "replace"])
def test_a_manifest_that_can_not_be_written_leaves_the_old_one(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """And the error is ours."""
    before = store.update_manifest(MESSAGE, lambda current: manifest(entry("a")))
    with monkeypatch.context() as patched:
        patched.setattr(os, name, failing(errno.ENOSPC))
        with pytest.raises(OutOfSpace):
            store.update_manifest(MESSAGE, lambda current: manifest(entry("b")))
    assert store.read_manifest(MESSAGE) == before
    assert leftovers(root) == []


def test_a_failure_to_tidy_up_hides_nothing(store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object stands, so the write succeeded; the fragment is for the next sweep."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", failing(errno.EIO))
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert len(leftovers(root)) == 1
    assert store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT]) == store.stored(MESSAGE)[ATTACHMENT]
    assert leftovers(root) == []


def test_a_write_that_takes_only_a_part_is_gone_on_with(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """write() may take fewer bytes than it is given."""
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, bytes(data)[:7]))
    written = store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT[:1000]])
    assert written.bytes == 1000
    monkeypatch.undo()
    assert store.stored(MESSAGE) == {ATTACHMENT: written}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_links_works_too(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """exFAT and some mounts have none; one object, no fragment, and the same answer to a second writer."""
    monkeypatch.setattr(os, "link", failing(number))
    first = store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert store.write(MESSAGE, ATTACHMENT, "b.pdf", [CONTENT]) == first
    assert objects(root) == {f"{PLACE}/a.pdf": CONTENT}
    assert leftovers(root) == []


def test_a_file_system_without_locks_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks two writers could both commit, so there it does not pretend to work."""
    import fcntl

    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with pytest.raises(StoreError, match="no file locks") as caught:
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert caught.value.outcome_code == "unsupported-store"


def test_a_file_system_that_can_not_sync_folders_works_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems answer EINVAL for folders, and keep names by themselves."""
    sync = os.fsync

    def only_files(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no")
        sync(fd)

    monkeypatch.setattr(os, "fsync", only_files)
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])


def test_everything_is_synced_before_it_is_believed(store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before it has its name, then each folder on the way to it, those newly made included."""
    order: list[str] = []
    sync, link = os.fsync, os.link

    def noted_sync(fd: int) -> None:
        order.append(str(Path(f"/proc/self/fd/{fd}").readlink()) if sys.platform == "linux" else "?")
        sync(fd)

    def noted_link(*args: Any, **more: Any) -> None:
        order.append("named")
        link(*args, **more)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "link", noted_link)
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    if sys.platform != "linux":
        return
    named = order.index("named")
    assert order[named - 1].startswith(f"{root}/.incoming/")
    assert set(order[:named]) >= {str(root.parent), str(root)}
    assert order[named + 1 :] == [f"{root}/{PLACE}", f"{root}/{MESSAGE}", str(root)]
