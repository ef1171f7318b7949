"""The contract, kept in Google Cloud Storage: by fake-gcs-server, and by a small stand-in where that one is too lax.

fake-gcs-server 1.54 differs from the documented service in what matters here: a resumable upload forgets its
`ifGenerationMatch` (fsouza/fake-gcs-server#1967) and its Content-Disposition; asking how far it has got completes it.
The stand-in does these as the documentation has them, and is tested itself at the end.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c
import httpx
import pyrage
import pytest
from gcsfs.retry import HttpError, NonRetryableError
from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError

from attachments.storage import Store, attachment_key, open_store
from attachments.storage.backends import parts as parts_module
from attachments.storage.backends.base import Conflict, ObjectHeaders
from attachments.storage.backends.gcs import GcsBackend
from attachments.storage.backends.parts import PART_BYTES
from attachments.storage.encryption import Encryption
from attachments.storage.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    StoreError,
    StoreUnavailable,
    UnsupportedStore,
)
from attachments.storage.object_store import ObjectStore
from tests.servers.kinds import FakeGcs
from tests.servers.proxy import Answer, DropReply, Proxy, Reset
from tests.storage.contract import StoreContract
from tests.storage.samples import ATTACHMENT, CANARY, CONTENT, MESSAGE, PLACE, in_chunks, manifest, sha256

MIB = 1024 * 1024
RECIPIENT = str(pyrage.x25519.Identity.generate().to_public())
LARGE = bytes(range(256)) * (12 * MIB // 256)
KEY = f"{PLACE}/a.pdf"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here comes back by waiting."""
    monkeypatch.setattr(parts_module, "_BACK_OFF", 0.01)


def crc32c(data: bytes | bytearray) -> str:
    """As the service tells it: big-endian, in base64."""
    return base64.b64encode(google_crc32c.value(bytes(data)).to_bytes(4, "big")).decode()


def md5(data: bytes) -> str:
    """The same, of MD5."""
    return base64.b64encode(hashlib.md5(data).digest()).decode()


# The stand-in. https://docs.cloud.google.com/storage/docs/json_api/v1/objects and .../performing-resumable-uploads


@dataclass
class Object:
    data: bytes
    told: dict[str, Any]


@dataclass
class Session:
    told: dict[str, Any]
    expected: str
    data: bytearray = field(default_factory=bytearray)
    made: dict[str, Any] | None = None


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass
class StandIn:
    """One bucket, `strict`, by the book."""

    objects: dict[str, Object] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    keeps: list[int] = field(default_factory=list)
    """Bytes that are kept of the next chunks."""
    answer: tuple[int, bytes] | None = None
    """What everything is answered."""
    page: int = 1000
    """How many items a listing tells at once."""
    replaces: bytes | None = None
    """What another writer puts in an object's place as soon as its upload is finished."""
    spoils: bool = False
    """Whether a bit flips in what is uploaded in parts."""
    made: list[str] = field(default_factory=list)
    """The names of all objects that were made, again and again where one was replaced."""
    generation: int = 1000
    lock: threading.Lock = field(default_factory=threading.Lock)
    server: ThreadingHTTPServer | None = None

    @property
    def port(self) -> int:
        assert self.server is not None
        return int(self.server.server_address[1])

    def options(self, port: int | None = None) -> dict[str, Any]:
        return {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port or self.port}"}

    def open(self, port: int | None = None, encryption: Encryption | None = None) -> Store:
        return open_store("gs://strict/root", self.options(port), encryption)

    def sent(self, method: str, pattern: str = "") -> list[Request]:
        return [each for each in self.requests if each.method == method and re.search(pattern, each.path)]

    def make(self, told: Mapping[str, Any], data: bytes | bytearray) -> dict[str, Any]:
        self.generation += 1
        self.made.append(told["name"])
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + ".25Z"
        given = {key: told[key] for key in ("name", "contentType", "contentDisposition", "metadata") if key in told}
        fresh = {
            "size": str(len(data)),
            "generation": str(self.generation),
            "metageneration": "1",
            "crc32c": crc32c(data),
        }
        made = {**given, **fresh, "timeCreated": now, "updated": now}
        self.objects[told["name"]] = Object(bytes(data), made)
        return made

    def handle(self, request: Request, host: str) -> tuple[int, dict[str, str], bytes]:
        with self.lock:
            self.requests.append(request)
            if self.answer:
                return self.answer[0], {}, self.answer[1]
            if "/b/strict/o" not in request.path:
                return self._error(404, "notFound", "The specified bucket does not exist.")
            if request.path.startswith("/upload/"):
                if "upload_id" in request.query:
                    return self._session(request)
                return self._upload(request, host)
            _, _, name = request.path.partition("/b/strict/o/")
            return self._object(request, unquote(name)) if name else self._list(request)

    def _upload(self, request: Request, host: str) -> tuple[int, dict[str, str], bytes]:
        expected = request.query.get("ifGenerationMatch", "")
        named = {"name": request.query["name"]} if "name" in request.query else {}
        if request.query["uploadType"] == "resumable":
            told = {**json.loads(request.body), **named}
            if not self._is(told["name"], expected):
                return self._error(412, "conditionNotMet", "At least one of the pre-conditions did not hold.")
            identifier = uuid.uuid4().hex
            self.sessions[identifier] = Session(told, expected)
            url = f"http://{host}/upload/storage/v1/b/strict/o?uploadType=resumable&upload_id={identifier}"
            return 200, {"Location": url}, b""
        boundary = request.headers["Content-Type"].partition("boundary=")[2].encode()
        _, head, rest = request.body.split(b"--" + boundary + b"\r\n", 2)
        told = {**json.loads(head.partition(b"\r\n\r\n")[2]), **named}
        data = rest.partition(b"\r\n\r\n")[2].partition(b"\r\n--" + boundary + b"--")[0]
        if not self._is(told["name"], expected):
            return self._error(412, "conditionNotMet", "At least one of the pre-conditions did not hold.")
        if told.get("crc32c", crc32c(data)) != crc32c(data) or told.get("md5Hash", md5(data)) != md5(data):
            return self._error(400, "invalid", "What was provided does not match.")
        return self._json(self.make(told, data))

    def _session(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        session = self.sessions.get(request.query["upload_id"])
        if session is None:
            return 404, {}, b""
        if request.method == "DELETE":
            del self.sessions[request.query["upload_id"]]
            return 499, {}, b""
        if session.made:
            return self._json(session.made)
        span, _, total = request.headers["Content-Range"].removeprefix("bytes ").partition("/")
        if span != "*":
            assert int(span.partition("-")[0]) == len(session.data)
            assert total != "*" or len(request.body) % (256 * 1024) == 0
            session.data += request.body[: self.keeps.pop(0) if self.keeps else len(request.body)]
        if total == str(len(session.data)):
            if not self._is(session.told["name"], session.expected):
                return self._error(412, "conditionNotMet", "At least one of the pre-conditions did not hold.")
            session.made = self.make(session.told, bytes(session.data[:-1]) + b"?" if self.spoils else session.data)
            if self.replaces is not None:
                self.make({"name": session.told["name"]}, self.replaces)
            return self._json(session.made)
        return 308, {"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {}, b""

    def _object(self, request: Request, name: str) -> tuple[int, dict[str, str], bytes]:
        found = self.objects.get(name)
        if found is None:
            return self._error(404, "notFound", f"No such object: strict/{name}")
        known = {key: request.query.get(f"if{key.capitalize()}Match") for key in ("generation", "metageneration")}
        if any(value not in {None, found.told[key]} for key, value in known.items()):
            return self._error(412, "conditionNotMet", "At least one of the pre-conditions did not hold.")
        if request.method == "DELETE":
            del self.objects[name]
            return 204, {}, b""
        if request.query.get("alt") == "media":
            headers = {"X-Goog-Generation": found.told["generation"]}
            if at := int(request.headers.get("Range", "bytes=0-")[6:-1]):
                return 206, headers, found.data[at:]
            return 200, headers, found.data
        return self._json(found.told)

    def _list(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        prefix, delimiter = request.query.get("prefix", ""), request.query.get("delimiter")
        names = sorted(name for name in self.objects if name.startswith(prefix))
        heads = {prefix + name.removeprefix(prefix).partition("/")[0] + "/" for name in names}
        items: list[Any] = sorted(heads) if delimiter else [self.objects[name].told for name in names]
        start, size = int(request.query.get("pageToken", "0")), self.page
        page: dict[str, Any] = {"prefixes" if delimiter else "items": items[start : start + size]}
        if start + size < len(items):
            page["nextPageToken"] = str(start + size)
        return self._json(page)

    def _is(self, name: str, expected: str) -> bool:
        found = self.objects.get(name)
        return expected in {"", found.told["generation"] if found else "0"}

    def _json(self, told: Mapping[str, Any]) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()

    def _error(self, code: int, reason: str, message: str) -> tuple[int, dict[str, str], bytes]:
        error = {"code": code, "message": message, "errors": [{"reason": reason, "message": message}]}
        return code, {}, json.dumps({"error": error}).encode()


@pytest.fixture
def strict() -> Iterator[StandIn]:
    """The stand-in, on a socket."""
    stand_in = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            request = Request(self.command, parts.path, query, dict(self.headers.items()), body)
            status, headers, content = stand_in.handle(request, self.headers["Host"])
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if self.close_connection:
                self.send_header("Connection", "close")
            if status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815  http.server's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's name
            """Quiet."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Connections that break are what is tested; what is wrong here shows in the answers."""

    stand_in.server = Server(("127.0.0.1", 0), Handler)
    stand_in.server.daemon_threads = True
    thread = threading.Thread(target=stand_in.server.serve_forever, args=(0.02,))
    thread.start()
    yield stand_in
    stand_in.server.shutdown()
    thread.join()
    stand_in.server.server_close()


class TestStrictGcsStore(StoreContract):
    """All of the contract, as the documentation has the service."""

    @pytest.fixture
    def store(self, strict: StandIn) -> Store:
        self.strict = strict
        return strict.open()

    def visible(self, store: Store) -> Mapping[str, bytes]:
        with self.strict.lock:
            found = {name.removeprefix("root/"): bytes(each.data) for name, each in self.strict.objects.items()}
        return {key: data for key, data in found.items() if not key.startswith(".")}

    def pending(self, store: Store) -> list[str]:
        return [session.told["name"] for session in self.strict.sessions.values() if session.made is None]

    def plant(self, store: Store, key: str, content: bytes) -> None:
        self.strict.make({"name": f"root/{key}"}, content)


# fake-gcs-server.


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    server = FakeGcs(tmp_path_factory.mktemp("gcs"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(gcs: FakeGcs) -> str:
    name = uuid.uuid4().hex
    gcs.make_place(name)
    return name


@pytest.fixture
def store(gcs: FakeGcs, bucket: str) -> Store:
    return open_store(gcs.url(bucket), gcs.options())


def api(gcs: FakeGcs, store: Store) -> str:
    return f"http://127.0.0.1:{gcs.port}/storage/v1/b/{store.url.split('/')[2]}/o"


def described(gcs: FakeGcs, store: Store) -> dict[str, dict[str, Any]]:
    """All objects, told of by the service itself."""
    answer = httpx.get(api(gcs, store), params={"prefix": "root/"}).raise_for_status().json()
    return {told["name"].removeprefix("root/"): told for told in answer.get("items", ())}


def visible(gcs: FakeGcs, store: Store) -> dict[str, bytes]:
    return {
        key: httpx.get(f"{api(gcs, store)}/{quote('root/' + key, safe='')}?alt=media").raise_for_status().content
        for key in described(gcs, store)
        if not key.startswith(".")
    }


def plant(gcs: FakeGcs, store: Store, key: str, content: bytes) -> None:
    url = api(gcs, store).replace("/storage/", "/upload/storage/")
    query = {"uploadType": "media", "name": f"root/{key}"}
    httpx.post(url, params=query, content=content).raise_for_status()


class TestFakeGcsStore(StoreContract):
    """All of the contract, with fake-gcs-server."""

    @pytest.fixture(autouse=True)
    def served(self, gcs: FakeGcs, store: Store) -> None:
        self.gcs = gcs

    def visible(self, store: Store) -> Mapping[str, bytes]:
        return visible(self.gcs, store)

    def pending(self, store: Store) -> list[str]:
        """Sessions can't be listed, neither here nor at Google; the stand-in counts them."""
        return []

    def plant(self, store: Store, key: str, content: bytes) -> None:
        plant(self.gcs, store, key, content)

    @pytest.mark.parametrize("name", ["../../../evil", "/etc/evil", "..", "a/b", ".incoming", "x" * 200])
    def test_a_hostile_name_does_not_leave_its_place(self, store: Store, name: str) -> None:
        """All but the longest: the server keeps objects as files, and adds to their names. The stand-in takes it."""
        super().test_a_hostile_name_does_not_leave_its_place(store, name)


def test_an_object_tells_what_it_is_and_holds(gcs: FakeGcs, store: Store) -> None:
    """Type, name to save under, hashes; in one request."""
    written = store.write(MESSAGE, ATTACHMENT, "Grüße.pdf", [CONTENT], content_type="application/pdf")
    told = described(gcs, store)[written.key]
    assert told["contentType"] == "application/pdf"
    assert told["contentDisposition"] == "attachment; filename=\"Gr__e.pdf\"; filename*=UTF-8''Gr%C3%BC%C3%9Fe.pdf"
    assert told["metadata"]["attachments-stored-sha256"] == sha256(CONTENT)
    assert {name.split("-")[0] for name in told["metadata"]} == {"attachments"}


@pytest.mark.parametrize("size", [PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 12 * MIB])
def test_objects_of_any_number_of_parts_tell_what_they_hold(strict: StandIn, size: int) -> None:
    """One request for one part; for more a session and a proof, which is there before the object is."""
    written = strict.open().write(MESSAGE, ATTACHMENT, "a.pdf", in_chunks(LARGE[:size], 700_000), content_type="a/b")
    made = strict.objects[f"root/{KEY}"]
    assert made.data == LARGE[:size]
    assert written.sha256 == sha256(LARGE[:size]) == proven(strict)["sha256"]
    assert (made.told["contentType"], made.told["contentDisposition"]) == ("a/b", 'attachment; filename="a.pdf"')
    parts = -(-size // PART_BYTES)
    assert len(strict.sent("PUT")) == (0 if parts == 1 else parts)
    assert len(strict.sent("POST")) == (1 if parts == 1 else 2)
    assert strict.open().stored(MESSAGE) == {ATTACHMENT: written}


@pytest.mark.parametrize("size", [PART_BYTES, PART_BYTES + 1, 12 * MIB])
def test_every_byte_arrives(gcs: FakeGcs, store: Store, size: int) -> None:
    """At the sizes where the way of sending changes."""
    store.write(MESSAGE, ATTACHMENT, "a.pdf", in_chunks(LARGE[:size], 700_000))
    assert visible(gcs, store) == {KEY: LARGE[:size]}
    assert b"".join(store.read(KEY)) == LARGE[:size]
    assert set(store.stored(MESSAGE)) == {ATTACHMENT}


def test_a_mail_that_holds_gcsfs_boundary_survives(gcs: FakeGcs, store: Store) -> None:
    """gcsfs's own one-shot upload would cut it there."""
    mail = b"MIME-Version: 1.0\r\n\r\n--==0==\r\nContent-Type: text/plain\r\n\r\nx\r\n--==0==--\r\nrest"
    written = store.write(MESSAGE, ATTACHMENT, "a.eml", [mail], content_type="message/rfc822")
    assert visible(gcs, store) == {written.key: mail}


NAMES = ["a%2Fb.pdf", "a+b c.pdf", "a#b?c=d&e.pdf", "日本 語é.pdf", "100%.pdf", "a'(b)!*~@:$,;=.pdf"]


@pytest.mark.parametrize("name", NAMES)
def test_names_reach_the_service_as_they_are(gcs: FakeGcs, store: Store, strict: StandIn, name: str) -> None:
    """Whatever means something in a URL: written, described, read, loaded, removed."""
    for backend in (backend_at(store.url, gcs.options()), strict_backend(strict)):
        path = f"{PLACE}/{name}"
        upload = backend.upload(path, ObjectHeaders("a/b"))
        upload.write(CONTENT)
        upload.commit({"sha256": "x"})
        assert [found.path for found in backend.objects(f"{MESSAGE}/")] == [path]
        standing = backend.stat(path)
        assert standing is not None
        assert (standing.bytes, dict(standing.metadata)) == (len(CONTENT), {"sha256": "x"})
        assert b"".join(backend.read(path)) == CONTENT
        loaded = backend.get(path)
        assert loaded is not None
        backend.put(path, b"new", ObjectHeaders("a/b"), replaces=loaded[1])
        with pytest.raises(Conflict):
            backend.put(path, b"newer", ObjectHeaders("a/b"), replaces=loaded[1])
        backend.remove(path)
        backend.remove(path)
        assert backend.stat(path) is None


def proof_of(strict: StandIn) -> str:
    """Where the attachment's proof is, by the attachment's metadata."""
    proof = strict.objects[f"root/{KEY}"].told["metadata"]["attachments-proof"]
    return f"root/.proofs/{MESSAGE}.{ATTACHMENT}.{proof}"


def proven(strict: StandIn) -> Mapping[str, str]:
    """What is proven of the attachment: among its own metadata, or by the proof that they name."""
    metadata = strict.objects[f"root/{KEY}"].told["metadata"]
    if "attachments-proof" in metadata:
        return cast("Mapping[str, str]", json.loads(strict.objects[proof_of(strict)].data))
    return {name.removeprefix("attachments-"): value for name, value in metadata.items()}


def strict_backend(strict: StandIn) -> GcsBackend:
    return backend_at("gs://strict/root", strict.options())


def backend_at(url: str, options: dict[str, Any]) -> GcsBackend:
    return GcsBackend.at(url, options, Encryption())


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize("size", [1000, 12 * MIB])
def test_a_source_that_breaks_off_leaves_nothing(strict: StandIn, share: float, size: int) -> None:
    """No object, and no session."""

    def broken() -> Iterator[bytes]:
        yield from in_chunks(LARGE[: int(size * share)], 300_000)
        raise OSError("theirs")

    with pytest.raises(OSError, match="theirs"):
        strict.open().write(MESSAGE, ATTACHMENT, "a.pdf", broken())
    assert strict.objects == {}
    assert strict.sessions == {}


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_source_that_breaks_off_leaves_nothing_at_the_fake(gcs: FakeGcs, store: Store, share: float) -> None:
    """The same, with a server that is not ours."""

    def broken() -> Iterator[bytes]:
        yield from in_chunks(LARGE[: int(len(LARGE) * share)], 300_000)
        raise OSError("theirs")

    with pytest.raises(OSError, match="theirs"):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", broken())
    assert described(gcs, store) == {}


def race(stores: list[Store], content: bytes) -> list[Any]:
    barrier = threading.Barrier(len(stores))

    def source() -> Iterator[bytes]:
        yield content[:1000]
        barrier.wait(10)
        yield from in_chunks(content[1000:], MIB)

    def write(store: Store) -> Any:
        return store.write(MESSAGE, ATTACHMENT, "a.pdf", source())

    with ThreadPoolExecutor(len(stores)) as pool:
        return list(pool.map(write, stores))


@pytest.mark.parametrize("size", [1000, 12 * MIB])
def test_two_that_race_leave_one_object(strict: StandIn, size: int) -> None:
    """The slower one is refused, finds the same bytes, and calls it success."""
    one, other = race([strict.open(), strict.open()], LARGE[:size])
    assert one.sha256 == other.sha256 == sha256(LARGE[:size])
    assert strict.objects[f"root/{KEY}"].data == LARGE[:size]
    assert proven(strict)["sha256"] == one.sha256
    assert len(strict.objects) == (1 if size <= PART_BYTES else 2)  # the slower one's proof is gone
    assert strict.made.count(f"root/{KEY}") == 1


def test_two_that_race_leave_one_object_at_the_fake(gcs: FakeGcs, store: Store) -> None:
    """It lets the second one overwrite the first (see above): the same bytes either way."""
    results = race([store, open_store(store.url, gcs.options())], LARGE)
    assert {result.sha256 for result in results} == {sha256(LARGE)}
    assert visible(gcs, store) == {KEY: LARGE}


@pytest.mark.parametrize("size", [1000, 12 * MIB])
def test_a_foreign_object_stays(strict: StandIn, size: int) -> None:
    """Though it came when the upload was under way."""

    def overtaken() -> Iterator[bytes]:
        yield LARGE[: size // 2]
        strict.make({"name": f"root/{KEY}"}, b"theirs")
        yield LARGE[size // 2 : size]

    store = strict.open()
    store.stored(MESSAGE)  # so that the listing is known, and old
    with pytest.raises(AlreadyExists):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", overtaken())
    assert strict.objects[f"root/{KEY}"].data == b"theirs"
    assert {name for name, session in strict.sessions.items() if session.made} == set()


def test_a_foreign_object_stays_at_the_fake(gcs: FakeGcs, store: Store) -> None:
    """It is listed before anything is committed."""
    plant(gcs, store, KEY, b"theirs")
    with pytest.raises(AlreadyExists):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    assert visible(gcs, store) == {KEY: b"theirs"}


def test_a_session_that_is_refused_at_once_reads_the_source_all_the_same(strict: StandIn) -> None:
    """What stands there already is recognised by its content, and that takes all of it."""
    backend = strict_backend(strict)
    strict.make({"name": f"root/{KEY}"}, LARGE)
    upload = backend.upload(KEY, ObjectHeaders("a/b"))
    upload.write(LARGE)
    with pytest.raises(Conflict):
        upload.commit({})
    assert strict.sent("PUT") == []


@pytest.mark.parametrize("keeps", [[0], [256 * 1024], [PART_BYTES, 256 * 1024, 0, MIB], [PART_BYTES, PART_BYTES, 0]])
def test_what_the_service_did_not_keep_is_sent_again(strict: StandIn, keeps: list[int]) -> None:
    """It may keep less of a part than it was sent: 308, and a Range that says how much."""
    strict.keeps[:] = keeps
    written = strict.open().write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    assert strict.objects[f"root/{KEY}"].data == LARGE
    assert written.sha256 == sha256(LARGE)
    assert strict.keeps == []


def test_a_service_that_keeps_nothing_is_given_up(strict: StandIn) -> None:
    """After a few tries."""
    strict.keeps[:] = [0] * 100
    with pytest.raises(StoreUnavailable, match="retried"):
        strict.open().write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    assert strict.sessions == {}


FAULTS = [Answer(503), Answer(429), Answer(408), Reset(), Reset(after=400_000), DropReply()]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize(
    ("size", "method", "target", "skip"),
    [
        (1000, "POST", "multipart", 0),
        (1000, "GET", "/o/", 0),
        (1000, "GET", "prefix", 0),
        (12 * MIB, "POST", "resumable", 0),
        (12 * MIB, "PUT", "upload_id", 0),
        (12 * MIB, "PUT", "upload_id", 1),
        (12 * MIB, "PUT", "upload_id", 2),
        (12 * MIB, "POST", "multipart", 0),
    ],
)
def test_a_fault_on_the_way_is_survived(
    strict: StandIn, fault: Any, size: int, method: str, target: str, skip: int
) -> None:
    """At each step, be it before the service has acted or after: one object, whole, with its proof."""
    with Proxy(strict.port) as proxy:
        proxy.order(method, target, fault, skip=skip)
        written = strict.open(proxy.port).write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE[:size]])
        assert proxy.ordered == 0
        made = strict.objects[f"root/{KEY}"]
        assert made.data == LARGE[:size]
        assert strict.made.count(f"root/{KEY}") == 1
        assert len(strict.objects) == (1 if size <= PART_BYTES else 2)
        assert proven(strict)["sha256"] == written.sha256 == sha256(LARGE[:size])


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_fault_that_stays_is_reported(strict: StandIn, method: str) -> None:
    """And a later run finishes, whatever was reached."""
    with Proxy(strict.port) as proxy:
        proxy.order(method, "", Answer(503), times=100)
        with pytest.raises(StoreUnavailable, match="503") as caught:
            strict.open(proxy.port).write(MESSAGE, ATTACHMENT, CANARY, [LARGE])
        assert CANARY not in shown(caught.value)
    assert strict.open().write(MESSAGE, ATTACHMENT, CANARY, [LARGE]).sha256 == sha256(LARGE)


def test_an_object_without_its_proof_is_read_before_it_is_believed(strict: StandIn) -> None:
    """Somebody has removed it. The object stands, whole or not."""
    written = strict.open().write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    del strict.objects[proof_of(strict)]
    assert strict.open().stored(MESSAGE) == {}
    assert strict.open().write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE]) == written
    strict.objects[f"root/{KEY}"].data = LARGE[:-1] + b"?"
    with pytest.raises(AlreadyExists):
        strict.open().write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])


def test_an_object_whose_writer_never_heard_of_it_is_its_own(strict: StandIn) -> None:
    """It died, or lost its network, as the object was finished; encrypted, so that reading it would tell nothing."""
    asked = Encryption(age_recipients=(RECIPIENT,))
    with Proxy(strict.port) as proxy:
        proxy.order("PUT", "upload_id", DropReply(), skip=2, times=100)
        behind = open_store("gs://strict/root", strict.options(proxy.port), asked)
        with pytest.raises(StoreUnavailable):
            behind.write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    kept = strict.objects[f"root/{KEY}.age"].data
    written = strict.open(encryption=asked).write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    assert (written.sha256, written.stored_sha256) == (sha256(LARGE), sha256(kept))
    assert strict.open(encryption=asked).stored(MESSAGE) == {ATTACHMENT: written}


@pytest.mark.parametrize("last", ["PUT", "DELETE"])
def test_a_proof_without_its_object_is_found_and_cleared(strict: StandIn, last: str) -> None:
    """A write that fails at its last step removes its proof; one that dies there leaves it to `verify --clean`."""
    with Proxy(strict.port) as proxy:
        proxy.order("PUT", "upload_id", Answer(503), skip=2, times=100)
        if last == "DELETE":
            proxy.order("DELETE", "", Reset(), times=100)
        with pytest.raises(StoreUnavailable):
            strict.open(proxy.port).write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    store = strict.open()
    left = list(store.orphans(older_than=timedelta(0)))
    assert [each.what for each in left] == ([] if last == "PUT" else ["proof without its object"])
    for each in left:
        assert each.key == PLACE
        store.clear(each)
    assert strict.objects == {}


def test_the_proof_goes_with_its_object(strict: StandIn) -> None:
    """No orphan, and no second look for `verify`."""
    strict.open().write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    strict_backend(strict).remove(KEY)
    assert strict.objects == {}


def test_a_lost_commit_is_no_error(gcs: FakeGcs, store: Store) -> None:
    """The service has made the object, and the second request of ours is refused: that is our own."""
    with Proxy(gcs.port) as proxy:
        proxy.order("POST", "multipart", DropReply())
        behind = open_store(store.url, gcs.options(proxy.port))
        assert behind.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT]).sha256 == sha256(CONTENT)
        assert proxy.ordered == 0
    assert visible(gcs, store) == {KEY: CONTENT}


def test_a_session_that_is_gone_is_begun_anew_by_the_next_run(strict: StandIn) -> None:
    """It can't be taken up: what was sent before is not there any more."""

    def forgotten() -> Iterator[bytes]:
        yield LARGE[: 6 * MIB]
        strict.sessions.clear()
        yield LARGE[6 * MIB :]

    with pytest.raises(StoreUnavailable, match="retried"):
        strict.open().write(MESSAGE, ATTACHMENT, "a.pdf", forgotten())
    assert strict.open().write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE]).bytes == len(LARGE)


def test_a_bit_that_flips_on_the_way_is_noticed(strict: StandIn) -> None:
    """The object is not left there."""
    strict.spoils = True
    with pytest.raises(StoreUnavailable, match="retried"):
        strict.open().write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    assert strict.objects == {}


def test_an_object_that_was_replaced_at_once_is_not_called_ours(strict: StandIn) -> None:
    """Somebody else's stays."""
    store = strict.open()
    strict.replaces = b"theirs"
    with pytest.raises(StoreUnavailable):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", [LARGE])
    assert strict.objects[f"root/{KEY}"].data == b"theirs"
    assert "metadata" not in strict.objects[f"root/{KEY}"].told


@pytest.mark.parametrize("after", [0, 5 * MIB])
def test_a_read_that_is_cut_is_taken_up_again(strict: StandIn, after: int) -> None:
    """From the byte after the last one, of the same generation."""

    class Cutting(Proxy):
        """Lets one answer through as far as that."""

        async def _forward(self, head: bytes, body: Any, writer: Any, fault: Any) -> bool:
            if b"alt=media" not in head or cuts:
                return await super()._forward(head, body, writer, fault)
            cuts.append(head)
            writer.write(b"HTTP/1.1 200 OK\r\nX-Goog-Generation: 1001\r\nContent-Length: %d\r\n\r\n" % len(LARGE))
            writer.write(LARGE[:after])
            await writer.drain()
            writer.close()
            return False

    cuts: list[bytes] = []
    strict.make({"name": f"root/{KEY}"}, LARGE)
    with Cutting(strict.port) as proxy:
        assert b"".join(strict.open(proxy.port).read(KEY)) == LARGE
    taken_up = strict.sent("GET", "/o/")[-1]
    assert taken_up.query["generation"] == "1001"
    # What has come but was not taken out of the buffer yet is fetched again.
    at = int(taken_up.headers.get("Range", "bytes=0-")[6:-1])
    assert 0 < at <= after if after else at == 0


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_read_that_fails_at_first_is_made_again(strict: StandIn, fault: Any) -> None:
    """All of it comes, or an error: never a part that looks whole."""
    strict.make({"name": f"root/{KEY}"}, LARGE)
    with Proxy(strict.port) as proxy:
        proxy.order("GET", "alt=media", fault)
        assert b"".join(strict.open(proxy.port).read(KEY)) == LARGE
        assert proxy.ordered == 0
        proxy.order("GET", "alt=media", fault, times=100)
        with pytest.raises(StoreUnavailable):
            list(strict.open(proxy.port).read(KEY))


def test_a_read_of_what_is_removed_meanwhile_fails(strict: StandIn) -> None:
    """It is no missing bucket, and not nothing."""
    backend = strict_backend(strict)
    with pytest.raises(backend.errors) as caught:
        list(backend.read(KEY))
    assert backend.failure(caught.value).kind is StoreUnavailable


def test_a_read_that_is_given_up_ends_the_transfer(strict: StandIn) -> None:
    """The store goes on working."""
    strict.make({"name": f"root/{KEY}"}, LARGE)
    store = strict.open()
    blocks = cast("Any", store.read(KEY))
    assert 0 < len(next(blocks)) <= MIB
    blocks.close()
    assert b"".join(store.read(KEY)) == LARGE


def test_listings_go_over_all_pages(strict: StandIn) -> None:
    """Of objects and of messages; folders that consoles make are left out, and so is what is the store's own."""
    strict.page = 2
    keys = [f"{number:032x}" for number in range(5)]
    for key in keys:
        strict.make({"name": f"root/{key}/{ATTACHMENT}/a.pdf"}, b"x")
        strict.make({"name": f"root/{keys[0]}/{attachment_key(key)}/a.pdf"}, b"x")
    for name in ("root/", f"root/{keys[0]}/", "root/.proofs/x", "elsewhere/y/z"):
        strict.make({"name": name}, b"")
    store = strict.open()
    assert sorted(store.message_keys()) == keys
    assert len(store.objects(keys[0])) == 6
    assert ".proofs/x" in {found.path for found in strict_backend(strict).objects("")}
    assert all(not found.path.endswith("/") for found in strict_backend(strict).objects(""))


def test_the_kms_key_is_named_whenever_an_object_is_made(strict: StandIn) -> None:
    """Small, large, and manifests."""
    store = strict.open(encryption=Encryption(kms_key="projects/p/locations/l/keyRings/r/cryptoKeys/k"))
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    store.write(MESSAGE, attachment_key("large"), "a.pdf", [LARGE])
    store.update_manifest(MESSAGE, lambda current: manifest())
    made = strict.sent("POST")
    assert len(made) == 4  # the large one's proof as well
    assert {each.query["kmsKeyName"] for each in made} == {"projects/p/locations/l/keyRings/r/cryptoKeys/k"}


def test_requester_pays_is_told_with_every_request(strict: StandIn) -> None:
    """gcsfs's option, heeded though its calls are not used."""
    store = open_store("gs://strict/root", {**strict.options(), "requester_pays": "ours"})
    store.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert {each.query["userProject"] for each in strict.requests} == {"ours"}


def test_an_attachment_costs_few_requests(strict: StandIn) -> None:
    """Of a minute: a look for the marker of encryption. Of a message: a listing. Of an attachment: made, looked at."""
    store = strict.open()
    for number in range(3):
        store.write(MESSAGE, attachment_key(str(number)), "a.pdf", [CONTENT])
    assert [each.method for each in strict.requests] == ["GET", "GET", *["POST", "GET"] * 3]
    strict.requests.clear()
    store.write(MESSAGE, attachment_key("large"), "a.pdf", [LARGE])
    assert [each.method for each in strict.requests] == ["POST", "PUT", "PUT", "POST", "PUT", "GET", "GET"]


# Errors.


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


def calls(store: Store) -> Iterator[Any]:
    """Everything that asks the service for something."""
    yield lambda: store.write(MESSAGE, ATTACHMENT, CANARY, [CONTENT])
    yield lambda: store.write(MESSAGE, ATTACHMENT, CANARY, [LARGE])
    yield lambda: store.stored(MESSAGE)
    yield lambda: list(store.message_keys())
    yield lambda: list(store.read(f"{PLACE}/{CANARY}"))
    yield lambda: store.read_manifest(MESSAGE)
    yield lambda: store.update_manifest(MESSAGE, lambda current: manifest())


def fails(store: Store, kind: type[StoreError], symbol: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for call in calls(store):
        with pytest.raises(StoreError) as caught:
            call()
        assert type(caught.value) is kind
        assert symbol in str(caught.value).partition("(")[2].partition(")")[0]
        assert CANARY not in shown(caught.value)
    assert CANARY not in caplog.text


def test_a_missing_bucket_is_not_found(gcs: FakeGcs, strict: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    """Told from a missing object: by what the service says, or else by asking for the bucket's listing."""
    fails(open_store("gs://missing/root", gcs.options()), NotFound, "404", caplog)
    strict_missing = open_store("gs://missing/root", strict.options())
    fails(strict_missing, NotFound, "", caplog)


def test_what_is_missing_in_a_bucket_is_no_error(gcs: FakeGcs, store: Store, strict: StandIn) -> None:
    """Nothing stored yet."""
    for each in (store, strict.open()):
        assert each.stored(MESSAGE) == {}
        assert each.read_manifest(MESSAGE) is None
        assert list(each.message_keys()) == []
        assert list(each.orphans(older_than=timedelta(0))) == []


def test_an_unreachable_service_is_unavailable(caplog: pytest.LogCaptureFixture) -> None:
    """It fails soon, and the caller retries later."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        store = open_store("gs://some/root", {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port}"})
        started = time.monotonic()
        fails(store, StoreUnavailable, "ClientConnectorError", caplog)
        assert time.monotonic() - started < 15


@pytest.mark.parametrize("endpoint", ["nohost", "http://127.0.0.1:99999", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_none_is_permanent(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    """The same text is no address tomorrow."""
    store = open_store("gs://some/root", {"token": "anon", "endpoint_url": endpoint})
    fails(store, UnsupportedStore, "UrlClientError", caplog)


@pytest.mark.parametrize(
    ("status", "reason", "kind", "symbol"),
    [
        (401, "required", AccessDenied, "required"),
        (403, "forbidden", AccessDenied, "forbidden"),
        (403, "", AccessDenied, "403"),
        (403, "rateLimitExceeded", StoreUnavailable, "rateLimitExceeded"),
        (429, "rateLimitExceeded", StoreUnavailable, "rateLimitExceeded"),
        (400, "invalid", UnsupportedStore, "invalid"),
        (405, "", UnsupportedStore, "405"),
        (411, "", UnsupportedStore, "411"),
        (413, "uploadTooLarge", UnsupportedStore, "uploadTooLarge"),
        (501, "notImplemented", UnsupportedStore, "notImplemented"),
        (409, "conflict", StoreUnavailable, "conflict"),
        (500, "backendError", StoreUnavailable, "backendError"),
        (503, "", StoreUnavailable, "503"),
        (302, "", StoreUnavailable, "302"),
    ],
)
def test_refusals_are_told_by_reason(
    strict: StandIn, caplog: pytest.LogCaptureFixture, status: int, reason: str, kind: type[StoreError], symbol: str
) -> None:
    """The reason's word or the status, and what to do; nothing of the text, which names objects."""
    text = f"the object root/{CANARY} is invalid"
    error = {"error": {"code": status, "message": text, "errors": [{"reason": reason, "message": text}]}}
    strict.answer = (status, json.dumps(error).encode())
    fails(strict.open(), kind, symbol, caplog)


def test_what_was_damaged_on_its_way_is_tried_again(strict: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    """Google answers 400 to a checksum that does not match, with the reason of a request that is wrong for good."""
    text = 'Provided MD5 hash "x" doesn\'t match calculated MD5 hash "y".'
    error = {"error": {"code": 400, "message": text, "errors": [{"reason": "invalid", "message": text}]}}
    strict.answer = (400, json.dumps(error).encode())
    fails(strict.open(), StoreUnavailable, "damaged on its way", caplog)


def test_an_answer_that_is_no_json_is_unavailable(strict: StandIn) -> None:
    """A proxy's page, say."""
    strict.answer = (200, b"<html>sign in</html>")
    with pytest.raises(StoreUnavailable, match="retried"):
        strict.open().stored(MESSAGE)


def test_no_credentials_are_no_access(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """gcsfs would go on without any, which only a public bucket takes."""
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    store = open_store("gs://strict/root")
    with pytest.raises(AccessDenied, match="credentials"):
        store.stored(MESSAGE)
    secret = tmp_path / "key.json"
    secret.write_text('{"type": "authorized_user", "refresh_token": ')
    store = open_store("gs://strict/root", {"token": str(secret)})
    with pytest.raises(AccessDenied, match="credentials"):
        store.stored(MESSAGE)


def test_credentials_that_cannot_be_renewed_tell_why(strict: StandIn) -> None:
    """Refused for good, or nobody answered."""
    backend = strict_backend(strict)
    refused, unanswered = HttpError({"code": 401}), HttpError({"code": 401})
    unanswered.__cause__ = RefreshError("x")  # type: ignore[no-untyped-call]
    unanswered.__cause__.__cause__ = TransportError("x")  # type: ignore[no-untyped-call]
    for error in (refused, unanswered, NonRetryableError()):
        assert isinstance(error, backend.errors)
    assert backend.failure(refused).kind is AccessDenied
    assert backend.failure(unanswered).kind is StoreUnavailable
    assert backend.failure(NonRetryableError()).kind is AccessDenied


def test_opening_asks_nobody(strict: StandIn) -> None:
    """No credentials are looked for, and nothing is sent; a token that is no token is noticed at the first call."""
    for options in ({**strict.options()}, {"token": "/nowhere.json"}):
        assert open_store("gcs://strict/root/", options).url == "gs://strict/root"
    assert strict.requests == []


@pytest.mark.parametrize(
    "token", [None, "google_default", "cloud", "cache", "/etc/attachments/key.json", "ya29.secret"]
)
def test_the_workers_own_credentials_go_to_google_alone(token: str | None, strict: StandIn) -> None:
    """A block's option names the host, and would get them as they are; one that brings its own may name any."""
    told = {} if token is None else {"token": token}
    endpoints = [
        strict.options()["endpoint_url"],
        "https://storage.googleapis.com.thief.example",
        "https://thief.example/storage.googleapis.com",
        "https://storage.googleapis.com@thief.example",
        "http://storage.googleapis.com",
    ]
    for endpoint in endpoints:
        with pytest.raises(UnsupportedStore, match="would get the worker's own credentials") as caught:
            open_store("gs://bucket/x", {**told, "endpoint_url": endpoint})
        assert "secret" not in str(caught.value)
        for own in ("anon", {"type": "service_account"}):
            open_store("gs://bucket/x", {"token": own, "endpoint_url": endpoint})
    open_store("gs://bucket/x", {**told, "endpoint_url": "https://storage-psc.p.googleapis.com"})
    for name in ("proxy", "proxy_auth", "connector", "base_url"):
        with pytest.raises(UnsupportedStore, match=f"{name} in session_kwargs could show the worker's own"):
            open_store("gs://bucket/x", {**told, "session_kwargs": {name: strict.options()["endpoint_url"]}})
    open_store("gs://bucket/x", {**told, "session_kwargs": {"trust_env": True}})
    assert strict.requests == []


def test_the_workers_environment_may_name_another_service(strict: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the administrator's, as the credentials are."""
    endpoint = strict.options()["endpoint_url"]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    open_store("gs://bucket/x", {"endpoint_url": f"{endpoint}/"})
    with pytest.raises(UnsupportedStore):
        open_store("gs://bucket/x", {"endpoint_url": f"{endpoint}0"})


@pytest.mark.parametrize("token", ["anon", {}, {"type": "service_account"}, {"type": "external_account"}], ids=str)
def test_what_the_block_brings_is_not_completed_from_the_environment(
    token: Any, strict: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token without a key in it, or none: no default credentials are looked for in its stead."""
    file = tmp_path / "default.json"
    told = {"type": "authorized_user", "client_id": "canary", "client_secret": "canary", "refresh_token": "canary"}
    file.write_text(json.dumps(told))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    backend = GcsBackend.at("gs://bucket/x", {**strict.options(), "token": token}, Encryption())
    if token == "anon":
        assert backend._fs.credentials.credentials is None
    else:
        with pytest.raises(DefaultCredentialsError):
            _ = backend._fs
    assert strict.requests == []


@pytest.mark.parametrize(
    ("url", "options", "encryption", "told"),
    [
        ("gs://", {}, Encryption(), "no bucket"),
        ("gs:///folder", {}, Encryption(), "no bucket"),
        ("gs://user:secret@bucket/x", {}, Encryption(), "no bucket"),
        ("gs://bucket/x", {"tokn": "secret"}, Encryption(), "tokn"),
        ("gs://bucket/x", {"asynchronous": "secret"}, Encryption(), "asynchronous"),
        ("gs://bucket/x", {}, Encryption(s3="SSE-KMS"), "SSE-KMS"),
        ("gs://bucket/x", {}, Encryption(azure_scope="secret"), "scope"),
    ],
)
def test_what_cannot_be_right_is_refused(url: str, options: dict[str, Any], encryption: Encryption, told: str) -> None:
    """Before anything is asked, and without showing a value."""
    with pytest.raises(UnsupportedStore, match=told) as caught:
        open_store(url, options, encryption)
    assert "secret" not in shown(caught.value).replace("tests", "").partition("UnsupportedStore")[2]


def test_the_store_is_made_of_the_backend() -> None:
    """By its protocol."""
    assert isinstance(open_store("gs://bucket/x"), ObjectStore)


def test_the_stand_in_keeps_to_the_book(strict: StandIn) -> None:
    """Conditions are heeded at a session's start and at its end, and asking changes nothing."""
    with httpx.Client(base_url=f"http://127.0.0.1:{strict.port}") as client:
        where = "/upload/storage/v1/b/strict/o?uploadType=resumable&ifGenerationMatch=0"
        one, two = (client.post(where, json={"name": "x"}).headers["Location"] for _ in range(2))
        for session in (one, two):
            answer = client.put(session, content=b"0" * 262_144, headers={"Content-Range": "bytes 0-262143/*"})
            assert (answer.status_code, answer.headers["Range"]) == (308, "bytes=0-262143")
            assert client.put(session, headers={"Content-Range": "bytes */*"}).status_code == 308
        last = {"Content-Range": "bytes 262144-262144/262145"}
        assert client.put(one, content=b"1", headers=last).json()["size"] == "262145"
        assert client.put(two, content=b"1", headers=last).status_code == 412
        assert client.put(one, headers={"Content-Range": "bytes */*"}).json()["size"] == "262145"
        assert client.post(where, json={"name": "x"}).status_code == 412
        assert client.delete(two).status_code == 499
        assert client.put(two, headers={"Content-Range": "bytes */*"}).status_code == 404
        assert client.delete("/storage/v1/b/strict/o/x?ifGenerationMatch=7").status_code == 412
