"""What breaks a write, in every store: the final key holds all bytes or does not exist, and a retry ends well.

Faults 14 to 18 and 21 of the list of faults, at every step of an upload, small and in parts.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pyrage
import pytest

from attachments.storage import Encryption, Store, StoreError, attachment_key
from attachments.storage.age import decryptor
from attachments.storage.backends.parts import PART_BYTES
from attachments.storage.content import pour
from attachments.storage.errors import AccessDenied, CannotDecrypt, NotFound, NothingStored, StoreUnavailable
from attachments.storage.object_store import ObjectStore
from attachments.storage.verification import Discrepancy, verify_message
from tests.servers.proxy import Answer, DropReply, Fault, Proxy, Reset
from tests.storage.places import HTTP, KINDS, REMOTE, Place, Places, kinds

from .samples import ATTACHMENT, CANARY, MESSAGE, PLACE

MIB = 1024 * 1024
LARGE = 2 * PART_BYTES + 12_345
"""Bytes: three parts, the last one short."""

DURABLE = [kind for kind in KINDS if kind != "memory"]
"""Those that processes share."""

SPAWN = multiprocessing.get_context("spawn")


def noise(size: int) -> bytes:
    """The same at each call, with no two blocks alike."""
    return random.Random(size).randbytes(size)


def chunked(content: bytes, step: int = 256 * 1024) -> Iterator[bytes]:
    for at in range(0, len(content), step):
        yield content[at : at + step]


def clear(store: Store) -> None:
    """As `attachments verify --clean --older-than 0`."""
    for left in list(store.orphans(older_than=timedelta(0))):
        store.clear(left)


def eventually_written(store: Store, content: bytes) -> None:
    """As a task does: tried again as long as the error says that it may help, from the source's start."""
    for attempt in range(8):
        try:
            store.write(MESSAGE, ATTACHMENT, "a.pdf", chunked(content))
        except StoreError as error:
            if not error.retryable:
                raise
            time.sleep(0.1 * attempt)
        else:
            return
    raise AssertionError("eight tries were not enough")


def is_there_once(place: Place, content: bytes) -> None:
    """All bytes, one object, and nothing that `verify --clean` would leave."""
    assert {key: hashlib.sha256(data).hexdigest() for key, data in place.visible().items()} == {
        f"{PLACE}/a.pdf": hashlib.sha256(content).hexdigest()
    }
    clear(place.open())
    assert place.open_uploads() == []


@pytest.fixture(params=kinds(KINDS))
def place(request: pytest.FixtureRequest, places: Places) -> Place:
    return places.make(request.param)


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES], ids=str)
def test_every_size_is_stored_whole(place: Place, size: int) -> None:
    """Nothing, one byte, exactly one part, one byte more, exactly two parts."""
    content = noise(size)
    store = place.open()
    written = store.write(MESSAGE, ATTACHMENT, "a.pdf", chunked(content), content_type="application/pdf")
    assert (written.bytes, written.sha256) == (size, hashlib.sha256(content).hexdigest())
    assert b"".join(store.read(written.key)) == content
    assert store.objects(MESSAGE) == {written.key: size}
    assert place.open().stored(MESSAGE) == {ATTACHMENT: written}
    is_there_once(place, content)


@pytest.mark.parametrize("place", kinds(KINDS, "memory", "azure", "gcs", "sftp"), indirect=True)
def test_200_mb_are_stored_whole(place: Place) -> None:
    """Forty parts; read back in blocks."""
    block = noise(MIB)
    store = place.open()
    written = store.write(MESSAGE, ATTACHMENT, "a.pdf", (block for _ in range(200)))
    expected = hashlib.sha256(block * 200).hexdigest()
    assert (written.bytes, written.sha256) == (200 * MIB, expected)
    digest = hashlib.sha256()
    for piece in store.read(written.key):
        digest.update(piece)
    assert digest.hexdigest() == expected
    assert place.sizes() == {written.key: 200 * MIB}


@pytest.mark.parametrize("size", [100_000, LARGE])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99, 1.0], ids=["at once", "half", "99 %", "at close"])
def test_a_source_that_fails_publishes_nothing(place: Place, part: float, size: int) -> None:
    """Its error comes out, no reader sees anything, and nothing is left that `--clean` would not find."""
    content = noise(size)

    def failing() -> Iterator[bytes]:
        yield from chunked(content[: int(size * part)])
        raise ConnectionResetError("the vendor's")

    store = place.open()
    with pytest.raises(ConnectionResetError, match="the vendor's"):
        store.write(MESSAGE, ATTACHMENT, "a.pdf", failing())
    assert place.visible() == {}
    if place.kind != "azure":  # where nothing drops blocks but a week, or `--clean`
        assert place.open_uploads() == []
    clear(store)
    assert place.open_uploads() == []
    assert place.visible() == {}
    store.write(MESSAGE, ATTACHMENT, "a.pdf", chunked(content))
    is_there_once(place, content)


NAMES = [
    "a.pdf",
    "\N{LATIN SMALL LETTER E WITH ACUTE}t\N{LATIN SMALL LETTER E WITH ACUTE}.pdf",
    "日本語の請求書.pdf",
    "\N{FACE WITH TEARS OF JOY}.png",
    "100% sure?.pdf",
    "a+b&c=d;e,f@g!$'()~.pdf",
    "a  b.pdf",
    "#hash.pdf",
    "scan[1].pdf",
    "{x}*.pdf",
    "../../etc/passwd",
    "NUL.pdf",
    ".hidden",
    "manifest.json",
    "n" * 300 + ".pdf",
    "語" * 200 + ".pdf",
    'quote".pdf',
    "back\\slash.pdf",
    "line\nbreak.pdf",
    "\N{RIGHT-TO-LEFT OVERRIDE}fdp.exe",
]


def test_names_of_all_kinds_are_all_there(place: Place) -> None:
    """Each in its own place, found by listing, read and verified; none leads out of its place."""
    store = place.open()
    written = {
        attachment_key(name): store.write(MESSAGE, attachment_key(name), name, [name.encode()]) for name in NAMES
    }
    assert dict(place.open().stored(MESSAGE)) == written
    for name in NAMES:
        assert b"".join(store.read(written[attachment_key(name)].key)) == name.encode()
    visible = place.visible()
    assert visible == {written[attachment_key(name)].key: name.encode() for name in NAMES}
    assert all(key.count("/") == 2 for key in visible)
    assert list(store.message_keys()) == [MESSAGE]


def _write_at(place: Place, content: bytes, name: str, start: float) -> str:
    store = place.open()
    time.sleep(max(0.0, start - time.time()))
    return store.write(MESSAGE, ATTACHMENT, name, chunked(content)).key


@pytest.mark.parametrize("kind", kinds(DURABLE))
def test_two_machines_that_race_leave_one_object(places: Places, kind: str) -> None:
    """Fault 17: two processes that share nothing but the store write one attachment at once; both succeed."""
    place = places.make(kind)
    content = noise(LARGE)
    server, place.server = place.server, None  # a process is no luggage
    try:
        with SPAWN.Pool(2) as pool:
            start = time.time() + 3.0
            keys = pool.starmap(_write_at, [(place, content, "a.pdf", start)] * 2)
    finally:
        place.server = server
    assert set(keys) == {f"{PLACE}/a.pdf"}
    is_there_once(place, content)


def _write_for_ever(place: Place, content: bytes) -> None:
    place.open().write(MESSAGE, ATTACHMENT, "a.pdf", slowly(content))


def slowly(content: bytes) -> Iterator[bytes]:
    for chunk in chunked(content, 128 * 1024):
        yield chunk
        time.sleep(0.005)


def kill_at_random_moments(place: Place, times: int) -> None:
    """`kill -9` of a writer again and again; then one writer that lives."""
    content = noise(LARGE)
    server, place.server = place.server, None
    try:
        for _ in range(times):
            writer = SPAWN.Process(target=_write_for_ever, args=(place, content))
            writer.start()
            # A new interpreter and the imports take a second or two; the write itself about half a second.
            writer.join(random.uniform(0.8, 3.5))
            if writer.pid is not None and writer.is_alive():
                os.kill(writer.pid, signal.SIGKILL)
            writer.join()
            assert place.visible() in ({}, {f"{PLACE}/a.pdf": content})
    finally:
        place.server = server
    eventually_written(place.open(), content)
    is_there_once(place, content)


@pytest.mark.parametrize("kind", kinds(DURABLE))
def test_a_writer_that_is_killed_leaves_nothing_that_shows(places: Places, kind: str) -> None:
    """Fault 14: whatever it was doing; and `--clean` finds what it left."""
    kill_at_random_moments(places.make(kind), 2)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", DURABLE)
def test_thirty_writers_that_are_killed_leave_nothing_that_shows(places: Places, kind: str) -> None:
    """The same, thirty times in one place."""
    kill_at_random_moments(places.make(kind), 30)


@pytest.mark.parametrize("kind", kinds(REMOTE))
def test_a_server_that_dies_in_mid_write_comes_back(places: Places, kind: str) -> None:
    """The write fails in a way that may be tried again, or rides it out; afterwards the same store writes all of it."""
    content = noise(LARGE)
    with places.own(kind) as place:
        server = place.server
        assert server is not None
        store = place.open()
        store.write(MESSAGE, attachment_key("before"), "b.pdf", [b"b"])

        def interrupted() -> Iterator[bytes]:
            for number, chunk in enumerate(chunked(content, MIB)):
                if number == 6:
                    server.kill()
                    restarter.start()
                yield chunk

        def back() -> None:
            time.sleep(0.5)
            server.start()
            if not server.keeps_data:
                server.make_place(place.name)

        restarter = threading.Thread(target=back)
        # What the server has forgotten with its memory is gone: the upload, and for a while the bucket.
        with suppress(StoreUnavailable, NotFound):
            store.write(MESSAGE, ATTACHMENT, "a.pdf", interrupted())
        restarter.join()
        assert place.visible().get(f"{PLACE}/a.pdf") in (None, content)
        eventually_written(store, content)
        assert place.visible()[f"{PLACE}/a.pdf"] == content
        clear(store)
        assert place.open_uploads() == []


STEPS: dict[str, dict[str, tuple[str, str]]] = {
    "s3": {
        "list": ("GET", r"list-type=2"),
        "small put": ("PUT", r"/root/[0-9a-f]{32}/[0-9a-f]{32}/a\.pdf(\?x-id=PutObject)?$"),
        "create": ("POST", r"[?&]uploads"),
        "first part": ("PUT", r"partNumber=1\b"),
        "middle part": ("PUT", r"partNumber=2\b"),
        "last part": ("PUT", r"partNumber=3\b"),
        "complete": ("POST", r"uploadId="),
        "stat": ("HEAD", r"a\.pdf"),
    },
    "azure": {
        "list": ("GET", r"comp=list"),
        "small put": ("PUT", r"a\.pdf(\?timeout=\d+)?$"),
        "first part": ("PUT", r"comp=block&.*LTAwMDAwM|comp=block&blockid=[^&]*"),
        "complete": ("PUT", r"comp=blocklist"),
        "stat": ("HEAD", r"a\.pdf"),
    },
    "gcs": {
        "list": ("GET", r"/o\?.*prefix="),
        "small put": ("POST", r"uploadType=multipart"),
        "create": ("POST", r"uploadType=resumable"),
        "first part": ("PUT", r"upload_id|/upload/"),
        "stat": ("GET", r"a\.pdf"),
    },
}
SMALL_STEPS = {"list", "small put", "stat"}
FAULTS: dict[str, Fault] = {
    "500": Answer(500),
    "503": Answer(503),
    "429": Answer(429),
    "reset": Reset(),
    "reset in mid-body": Reset(after=1000),
    "reply lost": DropReply(),
}
ALIKE = {"500", "429"}
"""Told apart from 503 by nobody on the way: they are left to the soak."""
MATRIX = [
    pytest.param(kind, step, fault, marks=pytest.mark.soak if fault in ALIKE or kind == "s3-moto" else ())
    for kind in HTTP
    for step in STEPS[kind.partition("-")[0]]
    for fault in FAULTS
    # Nothing to be cut where nothing is sent.
    if fault != "reset in mid-body" or "put" in step or "part" in step
]


@pytest.mark.parametrize(("kind", "step", "fault"), MATRIX)
def test_a_fault_at_any_step_leaves_one_correct_object(places: Places, kind: str, step: str, fault: str) -> None:
    """Faults 15 and 16: the request is refused, broken, or done with its answer lost; once, at that step."""
    place = places.make(kind)
    assert place.server is not None
    content = noise(1000 if step in SMALL_STEPS else LARGE)
    method, target = STEPS[kind.partition("-")[0]][step]
    with Proxy(place.server.port) as proxy:
        if kind == "gcs":
            place.server.announce(proxy.port)  # type: ignore[attr-defined]
        proxy.order(method, target, FAULTS[fault])
        try:
            eventually_written(place.open(port=proxy.port), content)
        finally:
            if kind == "gcs":
                place.server.announce(place.server.port)  # type: ignore[attr-defined]
        assert proxy.ordered == 0, f"no request was a {step}: {proxy.requests}"
    is_there_once(place, content)


@pytest.mark.parametrize("kind", ["s3-rclone", "azure"])  # with the SDK's patience, and with ours
def test_a_store_that_is_down_says_so_and_is_tried_again(places: Places, kind: str) -> None:
    """It answers 503 for longer than any patience; the error may be tried again, and names no file."""
    place = places.make(kind)
    assert place.server is not None
    with Proxy(place.server.port) as proxy:
        for method in ("GET", "PUT", "POST", "HEAD"):
            proxy.order(method, "", Answer(503), times=1000)
        with pytest.raises(StoreUnavailable) as caught:
            place.open(port=proxy.port).write(MESSAGE, ATTACHMENT, CANARY, [b"x"])
    assert CANARY not in str(caught.value)


WRONG: dict[str, Callable[[dict[str, object]], dict[str, object]]] = {
    "s3-rclone": lambda options: {**options, "secret": "not the secret"},
    "azure": lambda options: {
        **options,
        "connection_string": str(options["connection_string"]).replace("AccountKey=E", "AccountKey=F"),
    },
    "sftp": lambda options: {**options, "password": "not the password"},
}


@pytest.mark.parametrize("kind", ["s3-rclone", "azure", "sftp"])  # the others let everybody in
def test_a_wrong_key_is_told_as_such(places: Places, kind: str) -> None:
    """Fault 21: not tried again, with what to look at; neither the key nor a file's name is shown."""
    place = places.make(kind)
    place.options = WRONG[kind](place.options)
    with pytest.raises(AccessDenied) as caught:
        place.open().write(MESSAGE, ATTACHMENT, CANARY, [b"x"])
    assert CANARY not in str(caught.value)
    assert "not the" not in str(caught.value)


@pytest.mark.parametrize("kind", kinds(HTTP))
def test_a_bucket_that_is_gone_is_told_as_such(places: Places, kind: str) -> None:
    """Fault 21: it is not created, because it may be a typing error."""
    place = places.make(kind)
    place.url = place.url.replace(place.name, "no-such-place")
    with pytest.raises(NotFound, match="create it; it is never created automatically"):
        place.open().write(MESSAGE, ATTACHMENT, "a.pdf", [b"x"])


def test_verification_sees_what_was_changed_behind_our_back(place: Place) -> None:
    """In every store: another byte, another size, gone, and one too many."""
    from .test_verification import record

    names = ["same.pdf", "other.pdf", "size.pdf", "gone.pdf"]
    store = place.open()
    record(store, MESSAGE, *names)
    assert verify_message(store, MESSAGE).differences == ()
    keys = {name: f"{MESSAGE}/{attachment_key(name)}" for name in [*names, "more.pdf"]}
    content = place.visible()[f"{keys['other.pdf']}/other.pdf"]
    place.plant(f"{keys['other.pdf']}/other.pdf", b"x" + content[1:])
    place.plant(f"{keys['size.pdf']}/size.pdf", content + b"x")
    place.plant(f"{keys['more.pdf']}/more.pdf", b"x")
    place.eye.rm_file(f"{place.root}/{keys['gone.pdf']}/gone.pdf")
    found = {(difference.key, difference.problem) for difference in verify_message(place.open(), MESSAGE).differences}
    assert found == {
        (keys["other.pdf"], Discrepancy.CONTENT),
        (keys["size.pdf"], Discrepancy.SIZE),
        (keys["gone.pdf"], Discrepancy.MISSING),
        (keys["more.pdf"], Discrepancy.UNRECORDED),
    }


def test_what_is_encrypted_cannot_be_read_from_the_store(place: Place) -> None:
    """The raw bytes tell nothing, the owner gets the same bytes back, and a run again recognises what stands there."""
    owner = pyrage.x25519.Identity.generate()
    store = place.open(encryption=Encryption(age_recipients=(str(owner.to_public()),)))
    content = b"canary contents " * (LARGE // 16)
    written = store.write(MESSAGE, ATTACHMENT, "a.pdf", chunked(content))
    raw = place.visible()[f"{PLACE}/a.pdf.age"]
    assert raw.startswith(b"age-encryption.org/v1\n")
    assert b"canary" not in raw
    assert (written.sha256, written.stored_sha256) == tuple(hashlib.sha256(each).hexdigest() for each in (content, raw))
    out = bytearray()
    pour(place.open().read(written.key), out.extend, decryptor(str(owner)))
    assert out == content
    again = place.open(encryption=Encryption(age_recipients=(str(owner.to_public()),)))
    assert again.write(MESSAGE, ATTACHMENT, "a.pdf", chunked(content)) == written
    assert place.visible() == {written.key: raw}
    for damaged in (raw[:-1], raw[:-1] + bytes([raw[-1] ^ 1])):
        with pytest.raises(CannotDecrypt):
            pour([damaged], lambda _: None, decryptor(str(owner)))


def test_one_listing_a_message(places: Places) -> None:
    """Thirty attachments are stored after a single listing, counted where it is paid for."""
    place = places.make("s3-moto")
    assert place.server is not None
    with Proxy(place.server.port) as proxy:
        store = place.open(port=proxy.port)
        store.stored(MESSAGE)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: store.write(MESSAGE, attachment_key(str(n)), "a.pdf", [b"x"]), range(30)))
        listings = [request for request in proxy.requests if "list-type=2" in request]
        assert len(listings) == 1
        # And for each attachment a PUT and a look; the rest is asked once.
        assert len(proxy.requests) <= 1 + 2 * 30 + 4
    assert len(place.visible()) == 30


@pytest.mark.parametrize("kind", kinds(kind for kind in KINDS if kind != "local"))
def test_what_somebody_else_has_put_below_the_root_is_read(kind: str, places: Places) -> None:
    """A file of ids, say: all of it, in blocks. Nothing, and a folder, are said without their names."""
    place = places.make(kind)
    content = noise(2 * MIB + 7)
    place.plant(f"in/{CANARY}", content)
    place.plant("empty", b"")
    store = place.open()
    assert isinstance(store, ObjectStore)
    blocks = list(store.file(f"in/{CANARY}", "the file of ids"))
    assert b"".join(blocks) == content
    assert max(map(len, blocks)) <= 4 * MIB
    assert b"".join(store.file("empty", "the file of ids")) == b""
    for path in (f"{CANARY}/x", "in", f"in/{CANARY}/x"):
        with pytest.raises(NothingStored, match="could not read the file of ids") as caught:
            list(store.file(path, "the file of ids"))
        assert CANARY not in str(caught.value)
