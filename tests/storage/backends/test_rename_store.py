"""Any other fsspec file system: what cannot replace is refused, and writers that race leave an object and its proof."""

from __future__ import annotations

import errno
import ftplib
import gc
import importlib.util
import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import fsspec
import pyrage
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from attachments.storage import Encryption, open_store
from attachments.storage.backends.rename import RenameBackend
from attachments.storage.errors import AccessDenied, OutOfSpace, StoreError, StoreUnavailable, UnsupportedStore
from attachments.storage.verification import verify_message
from tests.storage.samples import ATTACHMENT, CANARY, CONTENT, MESSAGE, PLACE, entry, manifest

OWNER = pyrage.x25519.Identity.generate()


class Ignoring(MemoryFileSystem):
    """Does not move over what stands there, and says nothing, as WebHDFS."""

    protocol = "ignoring"

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if not self.exists(path2):
            super().mv(path1, path2)


class Refusing(MemoryFileSystem):
    """Refuses to move over what stands there, as SMB."""

    protocol = "refusing"

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if self.exists(path2):
            raise FileExistsError(17, "there is one", path2)
        super().mv(path1, path2)


class Ftp(MemoryFileSystem):
    """Refuses to move over what stands there as some FTP servers do, with an error that is no OSError."""

    protocol = "refusing-ftp"

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if self.exists(path2):
            raise ftplib.error_perm(f"550 {path2}: file exists")
        super().mv(path1, path2)


class Failing(MemoryFileSystem):
    """Fails as FTP does, with an error that is no OSError and tells the path."""

    protocol = "failing"

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        if ".incoming" not in path2:
            raise ftplib.error_perm(f"550 {path2}: no")
        super().mv(path1, path2)


class Answerless(MemoryFileSystem):
    """Moves the first attachment, and loses the answer."""

    protocol = "answerless"
    is_lost = True

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        super().mv(path1, path2)
        if self.is_lost and "/root/." not in path2:
            type(self).is_lost = False
            raise TimeoutError(errno.ETIMEDOUT, "no answer")


@pytest.fixture
def root() -> str:
    return f"//{uuid.uuid4().hex}/root"


for kind in (Ignoring, Refusing, Ftp, Failing, Answerless):
    fsspec.register_implementation(str(kind.protocol), kind, clobber=True)


@pytest.mark.parametrize("protocol", ["ignoring", "refusing", "refusing-ftp"])
def test_a_store_whose_files_cannot_be_replaced_is_refused(protocol: str, root: str) -> None:
    """Before anything is downloaded: a manifest could not be changed as one step. Nothing stays of the try."""
    store = open_store(f"{protocol}:{root}")
    with pytest.raises(UnsupportedStore, match="cannot replace a file"):
        store.write(MESSAGE, ATTACHMENT, CANARY, [CONTENT])
    with pytest.raises(UnsupportedStore, match="cannot replace a file"):
        store.update_manifest(MESSAGE, lambda current: manifest())
    assert [path for path in MemoryFileSystem.store if root.strip("/") in path] == []


def test_an_error_of_any_kind_tells_no_name(root: str) -> None:
    """What a file system raises need not be an OSError; its text stays out of ours, and out of a traceback."""
    store = open_store(f"failing:{root}")
    with pytest.raises(StoreUnavailable, match="error_perm") as caught:
        store.write(MESSAGE, ATTACHMENT, CANARY, [CONTENT])
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("error", "kind", "symbol"),
    [
        (ftplib.error_perm(f"530 {CANARY}"), AccessDenied, "530"),
        (ftplib.error_perm(f"552 {CANARY}"), OutOfSpace, "552"),
        (ftplib.error_perm(f"553 {CANARY}"), UnsupportedStore, "553"),
        (ftplib.error_perm(f"502 {CANARY}"), UnsupportedStore, "502"),
        (ftplib.error_perm(f"550 {CANARY}"), StoreUnavailable, "error_perm"),
        (ftplib.error_temp(f"451 {CANARY}"), StoreUnavailable, "error_temp"),
        (NotImplementedError(CANARY), UnsupportedStore, "NotImplementedError"),
        (ModuleNotFoundError(CANARY, name="pyarrow"), UnsupportedStore, "the package pyarrow is not installed"),
        (ImportError(CANARY), UnsupportedStore, "ImportError"),
        (OSError(errno.ENAMETOOLONG, CANARY), UnsupportedStore, "ENAMETOOLONG"),
        (OSError(errno.ETIMEDOUT, CANARY), StoreUnavailable, "ETIMEDOUT"),
    ],
)
def test_what_is_permanent_is_not_tried_again(
    root: str, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[StoreError], symbol: str
) -> None:
    """By FTP's number and by the system's; 550 says too many things to be one of them."""

    def failing(self: Any, path: str, *_: Any, **__: Any) -> None:
        raise error

    store = open_store(f"test-memory:{root}")
    monkeypatch.setattr(MemoryFileSystem, "open", failing)
    with pytest.raises(StoreError, match=symbol) as caught:
        store.read_manifest(MESSAGE)
    assert type(caught.value) is kind
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("encryption", [None, Encryption(age_recipients=(str(OWNER.to_public()),))], ids=["", "age"])
def test_an_attachment_whose_move_was_made_but_not_answered_is_found_by_the_next_try(
    root: str, monkeypatch: pytest.MonkeyPatch, encryption: Encryption | None
) -> None:
    """Its proof is kept; without it nobody could tell an encrypted one from somebody else's file."""
    monkeypatch.setattr(Answerless, "is_lost", True)
    store = open_store(f"answerless:{root}", encryption=encryption)
    with pytest.raises(StoreUnavailable, match="ETIMEDOUT"):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    (found,) = open_store(f"answerless:{root}").stored(MESSAGE).values()
    assert found.bytes == len(CONTENT)
    assert store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT]) == found
    assert store.stored(MESSAGE) == {ATTACHMENT: found}


def test_options_that_the_file_system_does_not_take_are_permanent() -> None:
    """Such as a port that is no number; nothing passes by itself, and a value may be a secret."""
    with pytest.raises(UnsupportedStore, match="options of the ftp: store") as caught:
        open_store("ftp://127.0.0.1/root", {"port": CANARY}).stored(MESSAGE)
    assert CANARY not in str(caught.value)


def test_encrypted_writers_that_race_leave_an_object_with_its_own_proof(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one whose proof was overwritten moves last; both are told what stands there, and it is as recorded."""
    first_proven, second_moved = Event(), Event()
    move = RenameBackend._move

    def in_turn(self: RenameBackend, source: str, target: str) -> None:
        if self is slow._backend and target.startswith(PLACE):  # type: ignore[attr-defined]
            first_proven.set()
            assert second_moved.wait(20)
        move(self, source, target)

    monkeypatch.setattr(RenameBackend, "_move", in_turn)
    encryption = Encryption(age_recipients=(str(OWNER.to_public()),))
    slow, fast = (open_store(f"test-memory:{root}", encryption=encryption) for _ in range(2))
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(slow.write, MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
        assert first_proven.wait(20)
        quick = fast.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
        second_moved.set()
        late = writing.result(20)
    assert quick.stored_sha256 != late.stored_sha256
    assert open_store(f"test-memory:{root}").stored(MESSAGE) == {ATTACHMENT: late}
    for told in (quick, late):
        fields = {name: getattr(told, name) for name in ("key", "bytes", "sha256", "stored_bytes", "stored_sha256")}
        fields |= {"attachment_key": ATTACHMENT, "stored_at": told.stored_at}
        recorded = manifest(entry("a.pdf", **fields))
        fast.update_manifest(MESSAGE, lambda _, recorded=recorded: recorded)  # type: ignore[misc]
        assert verify_message(fast, MESSAGE).differences == ()
    again = open_store(f"test-memory:{root}", encryption=encryption).write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert again == late


class Broken(MemoryFileSystem):
    """Cannot be made with what it is given, as fsspec's own that take other file systems."""

    protocol = "broken"

    def __init__(self, *_: Any, **__: Any) -> None:
        raise AttributeError(CANARY)


def test_what_cannot_be_made_of_a_url_is_permanent() -> None:
    """Its options are the same tomorrow."""
    fsspec.register_implementation("broken", Broken, clobber=True)
    with pytest.raises(UnsupportedStore, match="options of the broken: store") as caught:
        open_store("broken://a").read_manifest(MESSAGE)
    assert CANARY not in str(caught.value)


def test_hadoop_without_its_package_says_what_to_install() -> None:
    """fsspec imports it when the file system is first used."""
    if importlib.util.find_spec("pyarrow"):
        pytest.skip("pyarrow is installed")
    with pytest.raises(UnsupportedStore, match="the package pyarrow is not installed"):
        open_store("hdfs://nn/a").read_manifest(MESSAGE)


@pytest.mark.parametrize(
    ("url", "lacking"),
    [
        ("ftp:///a", "host"),
        ("ftp://:2121/a", "host"),
        ("webhdfs:///a", "host"),
        ("dbfs:///a", "instance and token"),
        ("jupyter://a", "url"),
    ],
)
def test_what_a_file_system_cannot_be_made_without_is_asked_for_when_the_store_is_opened(
    url: str, lacking: str
) -> None:
    """fsspec's FTP client, half made, writes a traceback when it is collected."""
    with pytest.raises(UnsupportedStore, match=f"needs {lacking}, which neither its URL"):
        open_store(url)
    gc.collect()
    if url == "ftp:///a":
        assert open_store(url, {"host": "ftp.example.com"}).url == "ftp://ftp.example.com/a"


def test_memory_is_no_store() -> None:
    """What is stored there is lost with the process, though its run is Completed."""
    with pytest.raises(UnsupportedStore, match="lost when the process ends"):
        open_store("memory://a")
