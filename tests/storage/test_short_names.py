"""Stores whose file systems allow fewer than 255 bytes a name: 143 with eCryptfs and encrypted Synology shares."""

from __future__ import annotations

import errno
import ftplib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pyrage
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from attachments.cli.actions.decryption import decrypt_message
from attachments.domain.selection import Filter
from attachments.emailgistics import Attachment
from attachments.storage import Encryption, Store, open_store
from attachments.storage.age import decryptor
from attachments.storage.errors import UnsupportedStore
from attachments.storage.verification import verify_message
from tests.servers.proxy import Answer, Proxy
from tests.storage.backends.test_sftp_store import Faulty, Spot, faulty  # noqa: F401  a fixture

from .places import Places
from .samples import ATTACHMENT, CONTENT, MESSAGE, MESSAGE_ID, PLACE, entry, manifest, message_key, objects

LIMIT = 143
LONG = "n" * 300 + ".pdf"
SHORT = "n" * (LIMIT - 4) + ".pdf"
OWNER = pyrage.x25519.Identity.generate()
SEALED = Encryption(age_recipients=(str(OWNER.to_public()),))


def is_too_long(path: Any, limit: int) -> bool:
    return any(len(part) > limit for part in os.fsencode(path).split(b"/"))


@pytest.fixture(params=["told", "not told"])
def short_names(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's file systems take 143 bytes a name, and say so, or say 255 as some C libraries always do."""

    def limited(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*paths: Any, **more: Any) -> Any:
            if any(is_too_long(path, LIMIT) for path in paths if isinstance(path, str | bytes | os.PathLike)):
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            return call(*paths, **more)

        return checked

    for name in ("open", "mkdir", "link", "rename", "replace", "stat", "lstat", "unlink"):
        monkeypatch.setattr(os, name, limited(getattr(os, name)))
    told = LIMIT if request.param == "told" else 255
    monkeypatch.setattr(os, "pathconf", lambda _, name: told if name == "PC_NAME_MAX" else 0)


@pytest.fixture
def short_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An SFTP server that refuses names over 143 bytes, in one of the ways that servers have."""

    def limited(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(self: Any, path: bytes, *more: Any) -> Any:
            if any(is_too_long(one, LIMIT) for one in (path, *more) if isinstance(one, bytes)):
                raise request.param
            return call(self, path, *more)

        return checked

    for name in ("open", "mkdir", "rename", "lstat", "stat"):
        monkeypatch.setattr(Faulty, name, limited(getattr(Faulty, name)))


def stores_a_long_name(open_: Callable[[Encryption | None], Store]) -> str:
    """It is stored completely, found by later readers, recorded and verified; its key is returned."""
    store = open_(None)
    written = store.write(MESSAGE, ATTACHMENT, LONG, [CONTENT])
    name = written.key.rpartition("/")[2]
    assert len(name.encode()) <= LIMIT
    assert name.endswith(".pdf")
    assert b"".join(store.read(written.key)) == CONTENT
    for again in (store, open_(None)):
        assert again.write(MESSAGE, ATTACHMENT, LONG, [CONTENT]) == written
        assert dict(again.objects(MESSAGE)) == {written.key: len(CONTENT)}
        assert again.read_manifest(MESSAGE) is None
    recorded = entry(LONG, attachment_key=ATTACHMENT, key=written.key, bytes=written.bytes, sha256=written.sha256)
    store.update_manifest(MESSAGE, lambda _: manifest(recorded))
    assert verify_message(store, MESSAGE).differences == ()
    assert store.probe() == "works"
    other = message_key("sealed")
    sealed = open_(SEALED).write(other, ATTACHMENT, LONG, [CONTENT])
    assert sealed.key.endswith(".pdf.age")
    assert len(sealed.key.rpartition("/")[2].encode()) <= LIMIT
    return written.key


@pytest.mark.usefixtures("short_names")
def test_a_local_file_system_with_short_names(root: Path) -> None:
    """By what it says of itself, or by what it refuses; the name is as long as it may be."""
    key = stores_a_long_name(lambda encryption: open_store(str(root), encryption=encryption))
    assert key == f"{PLACE}/{SHORT}"


@pytest.mark.usefixtures("short_names")
@pytest.mark.parametrize("encryption", [None, SEALED], ids=["plain", "sealed"])
@pytest.mark.parametrize("name", ["x" * 139 + ".exe" + "._" * 70, "x" * 135 + ".exe____", "x" * 247 + ".exe____"])
def test_no_program_gets_past_a_filter_by_a_name_that_is_cut_later(
    name: str, encryption: Encryption | None, root: Path, tmp_path: Path
) -> None:
    """The filter took it for none, and it is stored and decrypted as none."""
    excluding = Filter.model_validate({"exclude": [{"names": ["*.exe"]}]})
    assert excluding.decide(Attachment(id="a", name=name, attachmentType="fileAttachment", size=1)).wanted
    store = open_store(str(root), encryption=encryption)
    told = store.write(MESSAGE, ATTACHMENT, name, [CONTENT])
    assert not told.key.removesuffix(".age").endswith(".exe")
    if encryption:
        fields = {each: getattr(told, each) for each in ("key", "bytes", "sha256", "stored_bytes", "stored_sha256")}
        recorded = manifest(entry(name, **{**fields, "attachment_key": ATTACHMENT}))
        store.update_manifest(MESSAGE, lambda _: recorded)
        decrypt_message(store, MESSAGE_ID, decryptor(str(OWNER)), tmp_path / "out")
        (decrypted,) = objects(tmp_path / "out")
        assert not decrypted.endswith(".exe")


@pytest.mark.usefixtures("short_names")
def test_what_is_decrypted_gets_a_short_name_as_well(root: Path, tmp_path: Path) -> None:
    """The store may allow longer names than the folder of the person who decrypts."""
    store = open_store(str(root), encryption=SEALED)
    told = store.write(MESSAGE, ATTACHMENT, "n" * 300 + ".pdf", [CONTENT])
    fields = {name: getattr(told, name) for name in ("key", "bytes", "sha256", "stored_bytes", "stored_sha256")}
    long_key = f"{PLACE}/{'n' * 200}.pdf.age"
    recorded = manifest(entry(LONG, **{**fields, "attachment_key": ATTACHMENT, "key": long_key}))
    store.update_manifest(MESSAGE, lambda _: recorded)

    class Elsewhere:
        """The store as it would be with longer names."""

        find = store.find

        def read(self, key: str) -> Iterator[bytes]:
            assert key == long_key
            return store.read(told.key)

    decrypt_message(Elsewhere(), MESSAGE_ID, decryptor(str(OWNER)), tmp_path / "out")  # type: ignore[arg-type]
    assert objects(tmp_path / "out") == {f"{PLACE}/{SHORT}": CONTENT}


@pytest.mark.parametrize(
    "short_server",
    [
        asyncssh.SFTPBadMessage("Bad message"),
        asyncssh.SFTPFailure("Failure"),
        asyncssh.SFTPFailure("File name too long"),
    ],
    ids=["OpenSSH", "no reason", "words"],
    indirect=True,
)
@pytest.mark.usefixtures("short_server")
def test_an_sftp_server_with_short_names(faulty: Spot) -> None:  # noqa: F811  the fixture
    """No request asks how long a name may be; whatever the server answers, a shorter one is tried."""
    key = stores_a_long_name(lambda encryption: open_store(faulty.url, faulty.server.options(), encryption))
    assert key == f"{PLACE}/{SHORT}"


@pytest.mark.parametrize(
    ("calls", "refusal"),
    [
        (("mv", "cp_file", "pipe_file", "info", "cat_file"), OSError(errno.ENAMETOOLONG, "too long")),
        (("mv",), ftplib.error_perm("553 File name not allowed")),
        (("mv",), ftplib.error_perm("550 Rename failed")),
    ],
    ids=["system", "FTP 553", "FTP 550"],
)
def test_any_other_file_system_with_short_names(
    calls: tuple[str, ...], refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is whole by then, and is moved under a shorter name; FTP servers may not say why they refuse one."""

    def limited(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(self: Any, path: str, *more: Any, **named: Any) -> Any:
            if any(is_too_long(one, LIMIT) for one in (path, *more) if isinstance(one, str)):
                raise refusal
            return call(self, path, *more, **named)

        return checked

    for name in calls:
        monkeypatch.setattr(MemoryFileSystem, name, limited(getattr(MemoryFileSystem, name)))
    url = f"test-memory://{uuid.uuid4().hex}/root"
    key = stores_a_long_name(lambda encryption: open_store(url, {}, encryption))
    assert key == f"{PLACE}/{SHORT}"


@pytest.mark.parametrize("size", [10, 6_000_000], ids=["small", "in parts"])
def test_a_service_on_a_file_system_with_short_names(places: Places, size: int) -> None:
    """As MinIO answers there; nothing is downloaded twice for it."""
    place = places.make("s3-moto")
    assert place.server is not None
    refused = Answer(400, b"<Error><Code>KeyTooLongError</Code><Message>x</Message></Error>")
    with Proxy(place.server.port) as proxy:
        for method in ("PUT", "POST"):
            proxy.order(method, f"n{{{LIMIT}}}", refused, times=100)
        store = open_store(place.url, place.server.options(proxy.port))
        written = store.write(MESSAGE, ATTACHMENT, LONG, iter([bytes(size)]))
        assert written.key == f"{PLACE}/{SHORT}"
        assert store.write(MESSAGE, ATTACHMENT, LONG, [bytes(size)]) == written
    assert place.sizes() == {written.key: size}
    assert place.open_uploads() == []


def test_a_service_without_conditions_on_a_file_system_with_short_names(places: Places) -> None:
    """It is first asked whether the object is there, and an answer to HEAD cannot say what is wrong."""
    place = places.make("s3-moto")
    assert place.server is not None
    with Proxy(place.server.port) as proxy:
        proxy.order(
            "PUT", "", Answer(501, b"<Error><Code>NotImplemented</Code></Error>"), times=10_000, header="if-none-match"
        )
        proxy.order("HEAD", f"n{{{LIMIT}}}", Answer(400), times=100)
        store = open_store(place.url, place.server.options(proxy.port))
        written = store.write(MESSAGE, ATTACHMENT, LONG, [CONTENT])
        assert written.key == f"{PLACE}/{SHORT}"
        assert store.write(MESSAGE, ATTACHMENT, LONG, [CONTENT]) == written
    assert place.sizes() == {written.key: len(CONTENT)}


def test_no_name_of_the_store_s_own_is_longer_than_82_bytes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files on their way in, locks, manifests: whatever the attachment is called."""
    names: set[str] = set()

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*paths: Any, **more: Any) -> Any:
            names.update(path for path in paths if isinstance(path, str) and "/" not in path)
            return call(*paths, **more)

        return checked

    for name in ("open", "mkdir", "link", "rename", "replace"):
        monkeypatch.setattr(os, name, noted(getattr(os, name)))
    store = open_store(str(root))
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    store.update_manifest(MESSAGE, lambda _: manifest())
    assert store.probe() == "works"
    store.clock()
    assert max(len(name.encode()) for name in names) == 82


def test_a_file_system_that_is_too_short_for_the_store_s_own_names_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing passes by itself, and the message says how long names must be."""

    def refusing(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENAMETOOLONG, "too long")

    monkeypatch.setattr(os, "mkdir", refusing)
    with pytest.raises(UnsupportedStore, match="82 bytes a name"):
        open_store(str(root)).write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
