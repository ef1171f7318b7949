"""Azure Blob Storage beyond the contract: what is asked of it, what its errors mean, and what becomes of dead blocks.

The contract itself runs in `test_every_store`, on Azurite like all of this. What Azurite does not do, or does otherwise
than Azure's documentation has it, is answered by `Between`, which stands before it.
"""

from __future__ import annotations

import base64
import http.client
import logging
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier
from typing import Any

import adlfs.spec
import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError
from azure.storage.blob._shared.authentication import SharedKeyCredentialPolicy

from attachments.storage import Store, attachment_key, open_store
from attachments.storage.backends import parts as parts_module
from attachments.storage.backends.azure import AzureBackend, _may_pass
from attachments.storage.backends.base import Conflict, ObjectHeaders
from attachments.storage.backends.parts import PART_BYTES
from attachments.storage.encryption import Encryption
from attachments.storage.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    OutOfSpace,
    StoreError,
    StoreUnavailable,
    UnsupportedStore,
)
from tests.servers.kinds import Azurite
from tests.servers.recorder import recording
from tests.servers.wire import Wire
from tests.storage.places import Place, Places
from tests.storage.samples import ATTACHMENT, CANARY, CONTENT, MESSAGE, PLACE, in_chunks, manifest, sha256

MIB = 1024 * 1024
LARGE = bytes(range(256)) * (12 * MIB // 256)
KEY = f"{PLACE}/a.pdf"
RUBBISH = {"attachments_rubbish": "uncommitted"}
PDF = ObjectHeaders("application/pdf", 'attachment; filename="a.pdf"')


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here comes back by waiting."""
    monkeypatch.setattr(parts_module, "_BACK_OFF", 0.01)
    for name in ("ACCOUNT_NAME", "ACCOUNT_KEY", "CONNECTION_STRING", "SAS_TOKEN", "CLIENT_ID", "CLIENT_SECRET"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)


@pytest.fixture
def place(places: Places) -> Place:
    return places.make("azure")


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


@pytest.fixture
def backend(place: Place) -> AzureBackend:
    return AzureBackend.at(place.url, place.options, Encryption())


def container(place: Place) -> Any:
    """The SDK's own client, which shares nothing with the store's."""
    assert isinstance(place.server, Azurite)
    return place.server.service().get_container_client(place.name)


def plant(place: Place, key: str, content: bytes, metadata: dict[str, str] | None = None) -> None:
    container(place).upload_blob(f"root/{key}", content, metadata=metadata)


def all_blobs(place: Place) -> list[str]:
    """Also those that have only blocks."""
    return [blob.name for blob in container(place).list_blobs(include=["uncommittedblobs"])]


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """What is answered in Azurite's place. The body is an error's, unless it is given."""

    status: int
    code: str
    body: bytes | None = None

    @property
    def content(self) -> bytes:
        text = f"<Error><Code>{self.code}</Code><Message>The blob root/{CANARY} is odd.</Message></Error>"
        return text.encode() if self.body is None else self.body


@dataclass
class Between:
    """Stands before Azurite, keeps what it is asked, and answers some of it by itself."""

    upstream: int
    requests: list[Request] = field(default_factory=list)
    replies: list[tuple[str, Reply]] = field(default_factory=list)
    port: int = 0

    def reply(self, pattern: str, status: int, code: str, body: bytes | None = None) -> None:
        """From now on, to all requests whose method and target match."""
        self.replies.append((pattern, Reply(status, code, body)))

    def sent(self, pattern: str) -> list[Request]:
        return [each for each in self.requests if re.search(pattern, f"{each.method} {each.target}")]

    def handle(self, request: Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.requests.append(request)
        for pattern, reply in self.replies:
            if re.search(pattern, f"{request.method} {request.target}"):
                headers = {"Content-Type": "application/xml"}
                return reply.status, headers | ({"x-ms-error-code": reply.code} if reply.code else {}), reply.content
        with closing(http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)) as upstream:
            upstream.request(request.method, request.target, body, request.headers)
            with upstream.getresponse() as answer:
                content = answer.read()
        dropped = _HOP_BY_HOP if request.method == "HEAD" else {*_HOP_BY_HOP, "content-length"}
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in dropped}
        return answer.status, kept, content


_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "date", "server"}


@pytest.fixture
def between(place: Place) -> Iterator[Between]:
    assert place.server is not None
    between = Between(place.server.port)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            request = Request(self.command, self.path, dict(self.headers.items()))
            status, headers, content = between.handle(request, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204 and "content-length" not in {name.lower() for name in headers}:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_DELETE = answer  # noqa: N815  http.server's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
            """Quiet."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that goes away is no fault; what is wrong here shows in the answers."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    between.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield between
    server.shutdown()
    thread.join()
    server.server_close()


def begun_and_left(place: Place, store: Store, content: bytes) -> None:
    """A writer that gets so far; the first block, if there is one, has come through."""

    def dies() -> Iterator[bytes]:
        yield from in_chunks(content, 256 * 1024)
        while len(content) > PART_BYTES and not all_blobs(place):
            time.sleep(0.01)
        raise ConnectionResetError("the vendor's")

    with pytest.raises(ConnectionResetError):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", dies())


def clear(store: Store) -> None:
    for left in list(store.orphans(older_than=timedelta(0))):
        store.clear(left)


# What a blob is given.


@pytest.mark.parametrize("size", [1000, 12 * MIB])
def test_a_blob_says_what_it_is(place: Place, size: int) -> None:
    """Its type, its name for saving, and what it holds, however it was sent; names are such as Azure takes."""
    content = LARGE[:size]
    place.open().write(MESSAGE, ATTACHMENT, "a.pdf", in_chunks(content, 100_000), content_type="application/pdf")
    told = container(place).get_blob_client(f"root/{KEY}").get_blob_properties()
    assert told.content_settings.content_type == "application/pdf"
    assert told.content_settings.content_disposition == 'attachment; filename="a.pdf"'
    writer = told.metadata.pop("attachments_writer")
    assert re.fullmatch("[0-9a-f]{16}", writer)
    assert told.metadata == {
        "attachments_sha256": sha256(content),
        "attachments_bytes": str(size),
        "attachments_stored_sha256": sha256(content),
        "attachments_stored_bytes": str(size),
    }


def test_only_our_metadata_come_back(place: Place, backend: AzureBackend) -> None:
    """With the names that they were given."""
    upload = backend.upload("ours", PDF)
    upload.write(b"x")
    upload.commit({"stored-sha256": "0" * 64, "bytes": "1"})
    plant(place, "theirs", b"x", {"sha256": "0" * 64, "attachmentsbytes": "1"})
    ours, theirs = backend.stat("ours"), backend.stat("theirs")
    assert ours is not None
    assert theirs is not None
    assert ours.metadata == {"stored-sha256": "0" * 64, "bytes": "1"}
    assert theirs.metadata == {}
    assert (ours.bytes, ours.modified.utcoffset()) == (1, timedelta(0))


@pytest.mark.parametrize(("size", "blocks"), [(0, 0), (PART_BYTES, 0), (PART_BYTES + 1, 2), (12 * MIB, 3)])
def test_up_to_one_part_is_one_request(place: Place, between: Between, size: int, blocks: int) -> None:
    """Larger ones are blocks and their list. All that creates is conditional, and every body has a checksum."""
    store = place.open(port=between.port)
    store.write(MESSAGE, ATTACHMENT, "a.pdf", in_chunks(LARGE[:size], 1_000_000))
    assert place.visible() == {KEY: LARGE[:size]}
    parts, lists = between.sent(r"PUT .*comp=block&"), between.sent("PUT .*comp=blocklist")
    creating = lists or between.sent("PUT ")
    assert (len(parts), len(lists), len(between.sent("PUT "))) == (blocks, min(blocks, 1), blocks + 1)
    assert [request.headers.get("If-None-Match") for request in creating] == ["*"]
    assert all("Content-MD5" in request.headers for request in parts or creating)
    # A look for the marker of encryption, which is asked once a minute, and a listing before; a look after.
    assert len(between.requests) == blocks + 4


def test_writers_of_one_blob_use_different_blocks_of_one_length(place: Place, between: Between) -> None:
    """Azure refuses ids of another length than those that it has, and takes equal ones for the same block."""
    for _ in range(2):
        begun_and_left(place, place.open(port=between.port), LARGE)
    sent = [re.search(r"blockid=([^&]+)", request.target) for request in between.sent(r"comp=block&")]
    ids = [found[1] for found in sent if found]
    assert len(set(ids)) == len(ids) >= 2
    assert len({len(each) for each in ids}) == 1


def test_an_encryption_scope_is_named_with_every_write(place: Place, between: Between) -> None:
    """Attachments of both sizes, manifests, and what clearing writes. Azurite ignores it, so the requests are read."""
    store = place.open(port=between.port, encryption=Encryption(azure_scope="mail-scope"))
    begun_and_left(place, store, LARGE)
    clear(store)
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    store.write(MESSAGE, attachment_key("small"), "b.pdf", [b"x"])
    store.update_manifest(MESSAGE, lambda current: manifest())
    store.update_manifest(MESSAGE, lambda current: manifest())
    puts = between.sent("PUT ")
    assert len([put for put in puts if "comp=blocklist" in put.target]) == 2
    assert len([put for put in puts if "comp=" not in put.target]) == 3
    assert {put.headers.get("x-ms-encryption-scope") for put in puts} == {"mail-scope"}


# What becomes of blocks.


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_blocks_that_were_left_are_found_and_cleared(place: Place, between: Between, share: float) -> None:
    """Nothing is committed when the source raises, and clearing leaves no blob and no block."""
    store = place.open(port=between.port)
    begun_and_left(place, store, LARGE[: int(len(LARGE) * share)])
    assert between.sent("comp=blocklist") == []
    assert place.visible() == {}
    left = list(store.orphans(older_than=timedelta(0)))
    assert [(each.what, each.key) for each in left] == ([("uncommitted blocks", PLACE)] if share else [])
    assert all_blobs(place) == ([f"root/{KEY}"] if share else [])
    assert "a.pdf" not in repr(left)
    for each in left * 2:  # gone already is fine
        store.clear(each)
    assert all_blobs(place) == []
    assert list(store.orphans(older_than=timedelta(0))) == []


def test_the_age_of_blocks_stands_in_their_ids(place: Place, between: Between) -> None:
    """Azure lists a blob that has only blocks without a Last-Modified; a writer that lives must still be let alone."""
    store = place.open(port=between.port)
    before = datetime.now(UTC).replace(microsecond=0)
    begun_and_left(place, store, LARGE)
    listed = (
        '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="c"><Blobs><Blob>'
        f"<Name>root/{KEY}</Name><Properties><Content-Length>0</Content-Length><BlobType>BlockBlob</BlobType>"
        "</Properties></Blob></Blobs><NextMarker /></EnumerationResults>"
    )
    between.reply("GET .*comp=list", 200, "", listed.encode())
    [left] = store.orphans(older_than=timedelta(0))
    assert left.begun is not None
    assert before <= left.begun <= datetime.now(UTC)
    assert list(store.orphans(older_than=timedelta(hours=1))) == []
    store.clear(left)
    assert all_blobs(place) == []


def test_blocks_of_others_are_of_unknown_age(place: Place, store: Store) -> None:
    """Their ids tell nothing, be they text or not."""
    for number, identifier in enumerate(("another tool", "\N{SNOWMAN}")):
        blob = container(place).get_blob_client(f"root/{MESSAGE}/{attachment_key(str(number))}/a.pdf")
        blob.stage_block(identifier, b"x")
    raw = base64.b64encode(b"\xff" * 16).decode()
    blob = container(place).get_blob_client(f"root/{KEY}")
    blob._client.block_blob.stage_block(block_id=raw, content_length=1, body=b"x")
    left = list(store.orphans(older_than=timedelta(days=9)))
    assert [each.begun for each in left] == [None] * 3
    clear(store)
    assert all_blobs(place) == []


def test_the_uploads_of_other_programs_are_none_of_ours(place: Place, store: Store) -> None:
    """They may be under way, in the same folder; and their names are not to be told."""
    for path in ("root/backups/Salaries.xlsx", f"root/{MESSAGE}/Salaries.xlsx", "root/Salaries.xlsx"):
        container(place).get_blob_client(path).stage_block("another tool", b"x")
    assert list(store.orphans(older_than=timedelta(0))) == []


def test_clearing_spares_what_was_committed_meanwhile(place: Place, store: Store) -> None:
    """A writer that was taken for dead and lives."""
    begun_and_left(place, store, LARGE)
    [left] = store.orphans(older_than=timedelta(0))
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    store.clear(left)
    assert place.visible() == {KEY: LARGE}


@pytest.mark.parametrize("replaced", [False, True])
def test_a_writer_whose_blocks_were_cleared_is_told_to_try_again(place: Place, store: Store, replaced: bool) -> None:
    """Its list names blocks that are gone (adlfs#462); nothing is published but what another has put there."""

    def cleared() -> Iterator[bytes]:
        yield LARGE
        clear(place.open())
        if replaced:
            place.open().write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])

    if replaced:
        assert store.write(MESSAGE, ATTACHMENT, "a.pdf", cleared()).sha256 == sha256(LARGE)
        assert place.visible() == {KEY: LARGE}
    else:
        with pytest.raises(StoreUnavailable, match="InvalidBlockList"):
            store.write(MESSAGE, ATTACHMENT, "a.pdf", cleared())
        assert all_blobs(place) in ([], [f"root/{KEY}"])
        assert place.visible() == {}
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    assert place.visible() == {KEY: LARGE}


@pytest.mark.parametrize("code", ["InvalidBlockList", "BlobImmutableDueToPolicy", "UnauthorizedBlobOverwrite"])
def test_a_refusal_because_something_stands_there_is_a_conflict(place: Place, between: Between, code: str) -> None:
    """Whatever the service checks first. Our own commit whose answer was lost is such a case: it is success."""
    status = {"InvalidBlockList": 400, "BlobImmutableDueToPolicy": 409, "UnauthorizedBlobOverwrite": 403}[code]
    first, second = (place.open(port=between.port) for _ in range(2))
    first.stored(MESSAGE)  # has seen that there is nothing
    second.write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    between.reply("PUT .*comp=blocklist", status, code)
    assert first.write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE]).sha256 == sha256(LARGE)
    assert between.sent("PUT .*comp=blocklist")
    other = place.open(port=between.port)
    with pytest.raises(AlreadyExists):
        other.write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE[:-1]])
    assert place.visible() == {KEY: LARGE}


@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["small", "large"])
def test_an_empty_blob_that_a_crash_left_is_in_nobodys_way(place: Place, store: Store, content: bytes) -> None:
    """Clearing died before its last request: nothing is listed, and a writer takes the place."""
    plant(place, KEY, b"", RUBBISH)
    assert store.stored(MESSAGE) == {}
    assert store.objects(MESSAGE) == {}
    written = store.write(MESSAGE, ATTACHMENT, "a.pdf", [content])
    assert place.visible() == {KEY: content}
    clear(store)
    assert place.open().stored(MESSAGE) == {ATTACHMENT: written}


def test_an_empty_blob_that_a_crash_left_is_found_and_cleared(place: Place, store: Store) -> None:
    """By the next who clears; an empty attachment is something else."""
    plant(place, KEY, b"", RUBBISH)
    store.write(MESSAGE, attachment_key("empty"), "b.pdf", [])
    [left] = store.orphans(older_than=timedelta(0))
    assert (left.what, left.key) == ("emptied blocks", PLACE)
    assert list(store.orphans(older_than=timedelta(hours=1))) == []
    store.clear(left)
    store.clear(left)
    assert all_blobs(place) == [f"root/{MESSAGE}/{attachment_key('empty')}/b.pdf"]


def test_two_machines_that_race_for_one_large_blob_both_succeed(place: Place) -> None:
    """The first commit discards the other's blocks. There is one blob, from the first writer."""
    barrier = Barrier(2)

    def race(_: int) -> str:
        def source() -> Iterator[bytes]:
            yield LARGE
            barrier.wait(30)

        return place.open().write(MESSAGE, ATTACHMENT, "a.pdf", source()).sha256

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(race, range(2))) == {sha256(LARGE)}
    assert place.visible() == {KEY: LARGE}
    clear(place.open())
    assert all_blobs(place) == [f"root/{KEY}"]


def test_a_foreign_blob_under_the_key_stays(place: Place) -> None:
    """Also when it comes after the listing, so that only the service can tell."""
    for content in (CONTENT, LARGE):
        store = place.open()
        store.stored(MESSAGE)
        key = f"{MESSAGE}/{attachment_key(str(len(content)))}/a.pdf"
        plant(place, key, b"theirs")
        with pytest.raises(AlreadyExists):
            store.write(MESSAGE, key.split("/")[1], "a.pdf", [content])
        assert place.visible()[key] == b"theirs"


# Small objects, listings and reading.


def test_a_small_object_is_replaced_in_its_version_only(place: Place, backend: AzureBackend) -> None:
    """Not when it is there already, was changed, or is gone."""
    backend.put("m", b"1", PDF, replaces=None)
    with pytest.raises(Conflict):
        backend.put("m", b"x", PDF, replaces=None)
    found = backend.get("m")
    assert found is not None
    backend.put("m", b"2", PDF, replaces=found[1])
    with pytest.raises(Conflict):
        backend.put("m", b"x", PDF, replaces=found[1])
    found = backend.get("m")
    assert found is not None
    assert found[0] == b"2"
    backend.remove("m")
    backend.remove("m")
    assert backend.get("m") is None
    with pytest.raises(Conflict):
        backend.put("m", b"x", PDF, replaces=found[1])
    assert all_blobs(place) == []


def test_listings_are_read_to_their_end(place: Place, backend: AzureBackend) -> None:
    """Page by page; of one level, or of all that is below."""
    for number in range(5):
        plant(place, f"{number}/x/a.pdf", b"x")
        plant(place, f"{number}/y/a.pdf", b"x")
    plant(place, "stray", b"x")
    plant(place, ".hidden/a", b"x")
    container(place).upload_blob("root2/x/y", b"x")
    backend._request = {**backend._request, "results_per_page": 2}
    assert sorted(backend.message_keys()) == ["0", "1", "2", "3", "4"]
    assert sorted(found.path for found in backend.objects("3/")) == ["3/x/a.pdf", "3/y/a.pdf"]
    assert len(list(backend.objects(""))) == 12
    assert {found.bytes for found in backend.objects("")} == {1}


def test_a_folder_is_no_object(place: Place, backend: AzureBackend) -> None:
    """Accounts with a hierarchical namespace list folders as blobs."""
    plant(place, f"{MESSAGE}", b"", {"hdi_isfolder": "true"})
    plant(place, f"{PLACE}", b"", {"Hdi_isfolder": "true"})
    plant(place, KEY, b"x")
    assert [found.path for found in backend.objects(f"{MESSAGE}/")] == [KEY]
    assert list(backend.message_keys()) == [MESSAGE]
    assert list(backend.orphans()) == []


@pytest.mark.parametrize("size", [0, 1, 4 * MIB, 4 * MIB + 1, 12 * MIB])
def test_reading_is_in_blocks(place: Place, backend: AzureBackend, size: int) -> None:
    """Of at most 4 MiB, one request each."""
    plant(place, "a", LARGE[:size])
    blocks = list(backend.read("a"))
    assert b"".join(blocks) == LARGE[:size]
    assert max(map(len, blocks), default=0) <= 4 * MIB
    assert all(blocks)


def test_closing_ends_reading(place: Place, between: Between) -> None:
    """Nothing more is asked for."""
    plant(place, "a", LARGE)
    backend = AzureBackend.at(place.url, Azurite.options(place.server, between.port), Encryption())  # type: ignore[arg-type]
    blocks = backend.read("a")
    assert len(next(blocks)) == 4 * MIB
    blocks.close()  # type: ignore[attr-defined]
    assert len(between.requests) == 1


def test_an_answer_that_is_cut_is_asked_for_again(place: Place) -> None:
    """The connection breaks in the midst of a block: no byte is lost or doubled."""
    plant(place, KEY, LARGE)
    assert place.server is not None
    with Wire(place.server.port) as wire:
        store = place.open(port=wire.port)
        wire.cut(to_client=6 * MIB)
        assert b"".join(store.read(KEY)) == LARGE
        assert wire.cuts == 0


def test_what_is_read_is_of_one_version(place: Place, store: Store) -> None:
    """An object that is replaced meanwhile is not read as a mixture."""
    plant(place, KEY, LARGE)
    blocks = store.read(KEY)
    next(iter(blocks))
    container(place).upload_blob(f"root/{KEY}", LARGE[::-1], overwrite=True)
    with pytest.raises(StoreUnavailable, match="ConditionNotMet"):
        list(blocks)


# What errors mean.


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


def fails(store: Store, kind: type[StoreError], symbol: str, caplog: pytest.LogCaptureFixture) -> None:
    """Everything that asks the service for something; no name is shown."""
    caplog.set_level(logging.DEBUG)
    calls: list[Any] = [
        lambda: store.write(MESSAGE, ATTACHMENT, CANARY, [CONTENT]),
        lambda: store.write(MESSAGE, ATTACHMENT, CANARY, [LARGE]),
        lambda: store.stored(MESSAGE),
        lambda: list(store.message_keys()),
        lambda: list(store.read(f"{PLACE}/{CANARY}")),
        lambda: store.read_manifest(MESSAGE),
        lambda: store.update_manifest(MESSAGE, lambda current: manifest()),
        lambda: list(store.orphans(older_than=timedelta(0))),
    ]
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        assert type(caught.value) is kind
        assert re.search(rf"\({symbol}\): \w", str(caught.value))
        assert CANARY not in shown(caught.value)
    assert CANARY not in caplog.text


def test_a_wrong_key_is_no_access(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Refused by the service; or by the SDK, when it is no key at all."""
    for wrong, symbol in (("AccountKey=F", "AuthorizationFailure|AuthenticationFailed|403"), ("AccountKey=", ".*")):
        connection = place.options["connection_string"].replace("AccountKey=E", wrong)
        fails(open_store(place.url, {"connection_string": connection}), AccessDenied, symbol, caplog)


def test_a_missing_container_is_not_found(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """It is told from a missing blob."""
    fails(open_store("abfs://no-such-place/root", place.options), NotFound, "ContainerNotFound", caplog)


def test_what_is_missing_in_a_container_is_no_error(store: Store) -> None:
    """Nothing stored yet."""
    assert store.stored(MESSAGE) == {}
    assert store.read_manifest(MESSAGE) is None
    assert list(store.message_keys()) == []
    assert list(store.orphans(older_than=timedelta(0))) == []


def test_an_unreachable_service_is_unavailable(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """It fails, and the caller retries later."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        fails(place.open(port=port), StoreUnavailable, "ServiceRequestError", caplog)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "InvalidAuthenticationInfo", AccessDenied),
        (401, "NoAuthenticationInformation", AccessDenied),
        (403, "AuthorizationPermissionMismatch", AccessDenied),
        (403, "InsufficientAccountPermissions", AccessDenied),
        (403, "AccountIsDisabled", AccessDenied),
        (403, "", AccessDenied),
        (404, "ContainerNotFound", NotFound),
        (409, "ContainerBeingDeleted", NotFound),
        (409, "ContainerDisabled", AccessDenied),
        (409, "BlobArchived", AccessDenied),
        (400, "InvalidUri", UnsupportedStore),
        (400, "Md5Mismatch", StoreUnavailable),
        (400, "", UnsupportedStore),
        (405, "UnsupportedHttpVerb", UnsupportedStore),
        (409, "PublicAccessNotPermitted", AccessDenied),
        (413, "RequestBodyTooLarge", UnsupportedStore),
        (501, "", UnsupportedStore),
        (412, "LeaseIdMissing", StoreUnavailable),
        (429, "", StoreUnavailable),
        (500, "OperationTimedOut", StoreUnavailable),
        (503, "ServerBusy", StoreUnavailable),
        (302, "", StoreUnavailable),
        (507, "", OutOfSpace),
    ],
)
def test_errors_are_told_by_the_services_word(
    place: Place, between: Between, caplog: pytest.LogCaptureFixture, status: int, code: str, kind: type[StoreError]
) -> None:
    """Its code, or the status; nothing of the text, which names blobs."""
    between.reply("", status, code)
    fails(place.open(port=between.port), kind, code or str(status), caplog)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (409, "BlobImmutableDueToPolicy", AccessDenied),
        (409, "BlockCountExceedsLimit", OutOfSpace),
        (400, "InvalidBlobOrBlock", UnsupportedStore),
        (409, "BlobOperationNotSupported", AlreadyExists),
    ],
)
def test_refused_writes_say_what_to_do(
    place: Place, between: Between, status: int, code: str, kind: type[StoreError]
) -> None:
    """Nothing is visible, and a write after that has been done succeeds."""
    between.reply("PUT ", status, code)
    with pytest.raises(kind, match=code):
        place.open(port=between.port).write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    between.replies.clear()
    place.open(port=between.port).write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    assert place.visible() == {KEY: LARGE}


def test_an_answer_that_is_no_xml_is_unavailable(place: Place, between: Between) -> None:
    """A proxy's page, say."""
    between.reply("", 200, "", b"<html>sign in")
    store = place.open(port=between.port)
    for call in (lambda: store.stored(MESSAGE), lambda: store.read_manifest(MESSAGE)):
        with pytest.raises(StoreUnavailable, match="retried"):
            call()


@pytest.mark.parametrize(
    "options",
    [
        {"anon": True},
        {"account_name": "mail", "client_id": "0"},
        {"connection_string": "AccountKey=canary-secret"},
    ],
)
def test_no_credentials_are_no_access(options: dict[str, Any]) -> None:
    """Nor what is none. Told at the first call, and what was given is not shown."""
    store = open_store("abfs://mail-container/root", options)
    with pytest.raises(AccessDenied, match=r"\(NoCredentials\): give the worker credentials") as caught:
        store.stored(MESSAGE)
    assert "canary-secret" not in str(caught.value)


def test_a_credential_that_fails_is_not_tried_again(backend: AzureBackend) -> None:
    """No answer of a service, so nothing passes by itself; an answer that may pass is another matter."""
    failed = ClientAuthenticationError("no token")
    assert backend.failure(failed).kind is AccessDenied
    assert not _may_pass(failed)
    assert _may_pass(ServiceRequestError("x"))
    assert _may_pass(HttpResponseError("cut"))


def test_an_answer_that_was_damaged_on_its_way_is_sent_again(place: Place, between: Between) -> None:
    """Azure compares the checksum."""
    between.reply("PUT .*comp=block&", 400, "Md5Mismatch")
    with pytest.raises(StoreUnavailable, match="Md5Mismatch"):
        place.open(port=between.port).write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    assert len(between.sent("PUT .*comp=block&")) == 5


# URLs and options.


@pytest.mark.parametrize(
    ("url", "options", "told"),
    [
        ("abfs://mail@acc.dfs.core.windows.net/in/x/", {}, "abfs://mail@acc.dfs.core.windows.net/in/x"),
        ("abfss://mail@acc.blob.core.windows.net", {}, "abfs://mail@acc.dfs.core.windows.net"),
        ("az://mail/in", {"account_name": "acc"}, "abfs://mail@acc.dfs.core.windows.net/in"),
        ("abfs://acc.dfs.core.windows.net/mail/in", {}, "abfs://mail@acc.dfs.core.windows.net/in"),
        ("abfs://mail//in", {"sas_token": "secret"}, "abfs://mail/in"),
        (
            "abfs://mail@acc.dfs.core.chinacloudapi.cn/in",
            {"account_name": "acc", "account_host": "acc.blob.core.chinacloudapi.cn"},
            "abfs://mail@acc.blob.core.chinacloudapi.cn/in",
        ),
        (
            "abfs://mail/in",
            {"account_name": "acc", "account_host": "azure.corp.example", "account_key": "c2VjcmV0"},
            "abfs://mail@azure.corp.example/in",
        ),
    ],
)
def test_opening_asks_nobody(url: str, options: dict[str, Any], told: str) -> None:
    """No credentials are looked for, and the URL is told without any."""
    backend = AzureBackend.at(url, options, Encryption())
    assert backend.url == told
    assert backend._opened is None
    assert open_store(url, options).url == told


@pytest.mark.parametrize(
    ("url", "options", "encryption", "told"),
    [
        ("abfs://", {}, Encryption(), "no container"),
        ("abfs://acc.dfs.core.windows.net/", {}, Encryption(), "no container"),
        ("abfs://[secret/x", {}, Encryption(), "is not valid"),
        ("abfs://UPPER/x", {}, Encryption(), "no container"),
        ("abfs://acc.dfs.core.chinacloudapi.cn/mail/x", {}, Encryption(), "no container"),
        ("abfs://mail@acc.dfs.core.chinacloudapi.cn/x", {}, Encryption(), "account_host"),
        ("abfs://mail/x?sig=secret", {}, Encryption(), "query"),
        ("abfs://mail:secret@acc.dfs.core.windows.net/x", {}, Encryption(), "password"),
        ("abfs://mail/x", {"account_name": "thief.example/"}, Encryption(), "the option account_name is not valid"),
        ("abfs://mail/x", {"account_name": "thief.example"}, Encryption(), "the option account_name is not valid"),
        *(
            ("abfs://mail/x", {"account_name": "acc", "account_host": host}, Encryption(), "would get the worker's own")
            for host in (
                "thief.example",
                "127.0.0.1:10000",
                "thief.example/x.blob.core.windows.net",
                "x.blob.core.windows.net@thief.example",
                "x.blob.core.windows.net.thief.example",
                "x.blob.core.windows.net:444",
            )
        ),
        ("abfs://mail/x", {"acount_key": "secret"}, Encryption(), "acount_key"),
        ("abfs://mail/x", {"asynchronous": "secret"}, Encryption(), "asynchronous"),
        ("abfs://mail/x", {}, Encryption(s3="SSE-S3"), "encryption scope"),
        ("abfs://mail/x", {}, Encryption(kms_key="secret"), "encryption scope"),
    ],
)
def test_what_cannot_be_right_is_refused(url: str, options: dict[str, Any], encryption: Encryption, told: str) -> None:
    """Before anything is asked, and without showing a value."""
    with pytest.raises(UnsupportedStore, match=told) as caught:
        open_store(url, options, encryption)
    assert "secret" not in str(caught.value)


WORKERS: list[dict[str, str]] = [
    {},
    {"ACCOUNT_KEY": "Y2FuYXJ5LWtleQ=="},
    {"SAS_TOKEN": "sv=2024-11-04&sig=canary"},
    {"ACCOUNT_KEY": "Y2FuYXJ5LWtleQ==", "SAS_TOKEN": "sv=2024-11-04&sig=canary"},
    {"CLIENT_ID": "canary", "CLIENT_SECRET": "canary", "TENANT_ID": "canary"},
    {"CONNECTION_STRING": "BlobEndpoint=http://127.0.0.1:1/acc;SharedAccessSignature=sv=2024-11-04&sig=canary"},
]


@pytest.mark.parametrize("workers", WORKERS, ids=str)
@pytest.mark.parametrize(
    "own",
    [
        {"account_key": "b3duLWtleQ=="},
        {"sas_token": "sv=2024-11-04&sig=own"},
        {"sas_token": "?sv=2024-11-04&sig=own"},
        {"account_key": "b3duLWtleQ==", "sas_token": "sv=2024-11-04&sig=own"},
        {"connection_string": "STRING;SharedAccessSignature=sv=2024-11-04&sig=own"},
        {"connection_string": "STRING"},
        {"connection_string": "STRING", "sas_token": "sv=2024-11-04&sig=own"},
        {"client_id": "own", "client_secret": "own", "tenant_id": "own"},
        {"client_secret": "own"},
        {"tenant_id": "own"},
        {"credential": "own"},
        {"anon": True},
        {"anon": False},
        {"account_key": "", "sas_token": ""},
    ],
    ids=str,
)
def test_a_foreign_host_gets_what_the_block_brings_and_nothing_of_the_workers(
    own: dict[str, Any], workers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment holds. A key of the block signs, and shows in no request itself."""
    for name, value in workers.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    signatures: set[str] = set()
    with recording() as thief:
        host = f"acc.blob.core.thief.example:{thief.url.rpartition(':')[2]}"
        options = {"account_name": "acc", "account_host": host, **own}
        if "connection_string" in own:
            options["connection_string"] = own["connection_string"].replace("STRING", f"BlobEndpoint={thief.url}/acc")
        if not {"account_key", "sas_token", "connection_string"} & {name for name in own if own[name]}:
            with pytest.raises(UnsupportedStore, match="would get the worker's own credentials; set one of"):
                AzureBackend.at("abfs://mail/x", options, Encryption())
            return
        create, find = adlfs.spec._create_aio_blob_service_client, socket.getaddrinfo
        sign = SharedKeyCredentialPolicy._add_authorization_header

        def plain(account_url: str, **more: Any) -> Any:
            return create(account_url=account_url.replace("https://", "http://"), **more)

        def nearby(name: Any, *more: Any, **named: Any) -> Any:
            return find("127.0.0.1" if name == "acc.blob.core.thief.example" else name, *more, **named)

        def signed(policy: Any, *more: Any) -> None:
            signatures.add(policy.account_key)
            sign(policy, *more)

        monkeypatch.setattr(adlfs.spec, "_create_aio_blob_service_client", plain)
        monkeypatch.setattr(socket, "getaddrinfo", nearby)
        monkeypatch.setattr(SharedKeyCredentialPolicy, "_add_authorization_header", signed)
        with pytest.raises(StoreError):
            open_store("abfs://mail/x", options).stored(MESSAGE)
        if "CONNECTION_STRING" in workers and "connection_string" not in own:
            assert thief.whole == []  # the environment's own place is asked
        else:
            assert thief.whole
        assert "canary" not in "".join(thief.whole)
        assert signatures <= {own.get("account_key")}
        if "account_key" not in own:
            assert "uthorization:" not in "".join(thief.whole)


def test_a_blob_with_snapshots_is_not_removed(place: Place) -> None:
    """They would be left without it. Azure refuses, and trying again is of no use."""
    store = place.open()
    key = store.write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"]).key
    blob = container(place).get_blob_client(f"root/{key}")
    snapshot = blob.create_snapshot()["snapshot"]
    with pytest.raises(AccessDenied, match=r"SnapshotsPresent.*delete these first"):
        store.remove(key)
    assert place.visible() == {key: b"x"}
    container(place).get_blob_client(f"root/{key}", snapshot=snapshot).delete_blob()
    store.remove(key)
    assert place.visible() == {}
