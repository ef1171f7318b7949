# ruff: noqa: E501  tables of tokens
"""The readers of untrusted bytes, what each promises, and inputs to begin with.

A check hands an input to a reader. It returns a short label of what came of it; whatever escapes that is not one of
the reader's typed errors, and every broken promise, is a finding.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import re
import socket
import string
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from attachments.blocks import AttachmentStore
from attachments.domain.message_ids import IdsError, checked_ids, read_ids
from attachments.domain.selection import Filter, Rule, describe_errors
from attachments.emailgistics import Delivery, EmailgisticsError, InvalidDelivery, authenticate, parse_delivery
from attachments.emailgistics.content_disposition import HEADER_CHARACTERS, filename_of
from attachments.emailgistics.envelopes import parse_envelope
from attachments.emailgistics.errors import BadAnswer, NotFound
from attachments.emailgistics.models import NAME_CHARACTERS, parse_listing
from attachments.emailgistics.reports import ReceivedMessages
from attachments.receiver.app import MAX_BODY, build_app
from attachments.receiver.inbox import Depth
from attachments.receiver.metrics import Metrics
from attachments.sandbox.bodies import Spool
from attachments.sandbox.mail import read_mail
from attachments.sandbox.payload import webhook_payload
from attachments.storage import Manifest, StoreError, message_key, open_store
from attachments.storage.errors import InvalidManifest, NewerManifest
from attachments.storage.keys import is_key
from attachments.storage.names import MAX_BYTES, safe_name

SECRETS = ("s3cret", "with,comma", "wörter")
MESSAGE = "AAMkAGI2=="
KEY = message_key(MESSAGE)


@dataclass(frozen=True)
class Reader:
    """One reader: its check, inputs to begin with, and what its syntax is made of.

    `largest` is the most bytes worth trying.
    """

    check: Callable[[bytes], str]
    seeds: Callable[[], Sequence[bytes]]
    tokens: Sequence[bytes]
    largest: int = 64 * 1024


# --- Content-Disposition


def check_content_disposition(data: bytes) -> str:
    """The name is text or None; made safe, it is one component of a path; RFC 8187 is read back letter for letter."""
    label = "none"
    for header in {data.decode("latin-1"), data.decode("utf-8", "surrogateescape")}:
        name = filename_of(header)
        if name is not None:
            assert name, "an empty name"
            name.encode()
            is_one_component(safe_name(name))
            label = "extended" if "*" in header else "encoded" if "=?" in header else "plain"
    name = data.decode("utf-8", "ignore")[:500]
    header = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
    if name and len(header) <= HEADER_CHARACTERS:
        assert filename_of(header) == name, "what RFC 8187 encodes is not what is decoded"
    return label


def is_one_component(name: str) -> None:
    """Asserts what `safe_name` promises."""
    assert name not in {"", ".", ".."}
    assert not set(name) & set('/\\\0<>:"|?*#%[]')
    assert len(name.encode()) <= MAX_BYTES
    assert name == name.strip() == name.rstrip(". ")
    assert unicodedata.is_normalized("NFC", name)
    assert safe_name(name) == name, "safe only the second time"


def content_dispositions() -> Sequence[bytes]:
    return [
        b'attachment; filename="invoice.pdf"',
        b"attachment; filename*=UTF-8''%e2%82%ac%20rates.pdf; filename=rates.pdf",
        b"attachment; filename*0=\"a\"; filename*1*=UTF-8''%20b; filename*2=.pdf",
        b'attachment; filename="=?UTF-8?B?UmVjaG51bmc=?= =?iso-8859-1*en?Q?_=FC.pdf?="',
        b'inline; filename="a;b;c.pdf" ; x="\\"" ;',
        "attachment; filename=Größe.pdf".encode(),
        b"attachment; filename=../../etc/passwd\x00",
        b"attachment; filename*=unicode_escape''%5cud800; filename*=idna''xn--",
    ]


# --- Webhooks: the first line is Authorization, the second the path, the third Content-Type, then comes the body


class _Inbox:
    """Takes everything and keeps nothing."""

    async def append(self, deployment: str, delivery: Delivery) -> bool:
        assert deployment in {"default", "backfill"}
        return is_key(message_key(delivery.message_id))

    async def depth(self) -> Depth:
        return Depth(0, 0.0)

    async def probe(self) -> None:
        pass


_metrics = Metrics()


async def _knows(name: str) -> bool:
    """As the dispatcher, of the deployments that Prefect has."""
    return name in {"default", "backfill"}


_app = build_app(
    _Inbox(),  # type: ignore[arg-type]
    SimpleNamespace(knows=_knows, is_synced=True, wake=lambda: None),  # type: ignore[arg-type]
    _metrics,
    SECRETS,
)
_loop = asyncio.new_event_loop()


def check_webhook(data: bytes) -> str:
    """A status of the documented ones, never 500; only a secret opens; the same message has one key."""
    lines = data.split(b"\n", 3)
    authorization, path, content_type, body = lines + [b""] * (4 - len(lines))
    offered = authorization.decode("latin-1")
    if authenticate(offered, SECRETS):
        assert offered.split(None, 1)[1].strip() in SECRETS
        assert offered.split(None, 1)[0].lower() == "bearer"
    label = ""
    for text in (data, body):
        try:
            delivery = parse_delivery(text)
        except InvalidDelivery as error:
            label += str(error)[:30]
            continue
        label += "parsed"
        assert 0 < len(delivery.message_id) <= 2048
        assert is_key(message_key(delivery.message_id))
        payload = {
            "id": f"\r\n {delivery.message_id}\t",
            "event": delivery.event,
            "mailbox": delivery.mailbox,
            "received": delivery.received,
            "conversationId": delivery.conversation_id,
            "hasAttachments": delivery.has_attachments,
        }
        assert parse_delivery(json.dumps(payload).encode()) == delivery, "read back, it is another delivery"
    status = _loop.run_until_complete(_posted(authorization, path, content_type, body))
    return f"{label} {status}"


async def _posted(authorization: bytes, path: bytes, content_type: bytes, body: bytes) -> int:
    """Posts to the app as a server would; a header has no control characters by then."""
    headers = [(b"authorization", _header(authorization)), (b"content-type", _header(content_type))]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path.decode("utf-8", "replace"),
        "raw_path": path,
        "query_string": b"",
        "root_path": "",
        "headers": [header for header in headers if header[1]] + [(b"content-length", str(len(body)).encode())],
    }
    sent: list[Any] = []
    rest = [body[:1000], body[1000:]]

    async def receive() -> Any:
        return {"type": "http.request", "body": rest.pop(0), "more_body": bool(rest)}

    async def send(message: Any) -> None:
        sent.append(message)

    await _app(scope, receive, send)
    status: int = sent[0]["status"]
    assert status in {200, 400, 401, 404, 413, 415}, status
    answer = json.loads(b"".join(message.get("body", b"") for message in sent[1:]))
    assert answer["status"] == ("success" if status == 200 else "error")
    return status


def _header(value: bytes) -> bytes:
    return bytes(byte for byte in value if byte >= 0x20 and byte != 0x7F).strip()


def webhooks() -> Sequence[bytes]:
    payload = {
        "id": MESSAGE,
        "event": "received",
        "received": "2026-11-02T09:00:00Z",
        "mailbox": "shop@x.example",
        "subject": "Gr\u00fc\u00dfe",
        "hasAttachments": True,
        "conversationId": "AAQk",
        "to": [{"emailAddress": {"name": "", "address": "a@x.example"}}],
    }
    body = json.dumps(payload).encode()
    return [
        b"Bearer s3cret\n/webhooks/default\napplication/json\n" + body,
        b"bearer  with,comma \n/webhooks/default/\napplication/x+json; charset=utf-8\n\xef\xbb\xbf" + body,
        b"Bearer with\nhttp://host/webhooks/backfill\n\n" + body,
        b'Bearer s3cret\n/webhooks/none\n\n{"id": " ", "hasAttachments": false}',
        b'Bearer s3cret\n/webhooks/default\n\n{"id": "\\ud800\\udc00", "event": 1e999, "mailbox": ["\\u0000"]}',
        b"Bearer w\xc3\xb6rter\n/webhooks/default\n\n" + b"[" * 2000,
        b'Bearer s3cret\n/webhooks/default\n\n{"id": "' + b"9" * 2048 + b'", "x": ' + b"9" * 5000 + b"}",
    ]


# --- Id files


def check_ids(data: bytes) -> str:
    """Each id is plain ASCII without blanks, as many as counted; written one a line, they are read back."""
    said = ""
    try:
        with_ids = read_ids(lambda: io.BytesIO(data))
    except IdsError as error:
        said = str(error)
    else:
        count, ids = len(with_ids), list(with_ids)
        assert len(ids) == count > 0
        for id_ in ids:
            assert id_.isascii()
            assert id_.isprintable()
            assert id_
            assert not set(id_) - set(string.ascii_letters + string.digits + "+/-_=")
            assert "=" not in id_.rstrip("=")
            assert len(id_) <= 1024
        again = read_ids(lambda: io.BytesIO("\n".join(["messageId", *ids]).encode()))
        assert list(again) == ids, "written one a line, they are others"
    assert "CANARY" not in said, "an error that quotes the file"
    try:
        for id_ in checked_ids(data.decode("utf-8", "surrogateescape").split("\n")):
            assert id_ == id_.strip() != ""
            assert is_key(message_key(id_))
    except IdsError:
        pass
    return said.translate(_NO_DIGITS)[:40]


_NO_DIGITS = str.maketrans("", "", string.digits)


def id_files() -> Sequence[bytes]:
    ids = "AAMkAGI2-_=\nAAMkAGI3+/==\n"
    table = 'Date,messageId,Subject\n2026-11-02,AAMk1=,"a, b"\n2026-11-03,AAMk2=,\n'
    return [
        ids.encode(),
        b"\xef\xbb\xbfmessageId\r\n\r\n" + ids.encode(),
        table.encode(),
        table.replace(",", ";").encode(),
        table.replace(",", "\t").encode(),
        b'{"messageId": "AAMk1=", "x": [1]}\n\n{"messageId": "AAMk2="}\n',
        b'messageId,Subject\nAAMk1=,"never closed\nAAMk2=,x\n',
        b"messageId|Subject\n---------|-------\nAAMk1=|x\n",
        gzip.compress(ids.encode(), mtime=0),
        gzip.compress(b"A" * 100_000 + b"\n", mtime=0),
        ids.encode("utf-16"),
        ids.encode("utf-16-le"),
        b"PK\x03\x04",
        b"CANARY\n\0CANARY\n",
    ]


# --- Manifests


def check_manifest(data: bytes) -> str:
    """What is read can be written and is the same when it is read again; merging forgets nothing and can be written."""
    try:
        manifest = Manifest.from_bytes(data, message_key=KEY)
    except (InvalidManifest, NewerManifest) as error:
        return type(error).__name__
    written = manifest.to_bytes()
    again = Manifest.from_bytes(written, message_key=KEY)
    assert again == manifest, "read back, it is another manifest"
    assert again.to_bytes() == written, "written again, it is another file"
    assert "CANARY" not in f"{manifest!r} {manifest} {manifest.attachments}"
    base = Manifest.from_bytes(manifests()[0], message_key=KEY)
    for merged in (base.merged_with(manifest), manifest.merged_with(base), manifest.merged_with(manifest)):
        assert Manifest.from_bytes(merged.to_bytes(), message_key=KEY) == merged
        assert {entry.attachment_key for entry in merged.attachments} >= {
            entry.attachment_key for entry in manifest.attachments
        }
    manifest.settles(lambda entry: entry.outcome != "filtered")
    return f"{len(manifest.attachments)} {manifest.complete}"


def manifests() -> Sequence[bytes]:
    stored = {
        "id": "AAMkA=", "attachment_key": "0" * 32, "name": "CANARY.pdf", "content_type": "application/pdf",
        "listed_size": 12, "kind": "fileAttachment", "outcome": "stored", "key": f"{KEY}/{'0' * 32}/x.pdf", "bytes": 12,
        "sha256": "f" * 64, "stored_at": "2026-11-02T09:00:00Z",
    }  # fmt: skip
    whole = {
        "schema": 1, "message_id": MESSAGE, "message_key": KEY, "mailbox": "CANARY@x.example", "received": None,
        "updated": "2026-11-02T09:00:00+01:00", "complete": True, "attachments": [stored],
    }  # fmt: skip
    purged = {**stored, "outcome": "purged", "purged_at": "2026-12-02T09:00:00Z", "attachment_key": "1" * 32}
    failed = {**stored, "outcome": "failed", "code": "x", "name": "\ud800\u202e", "more": {"deep": [[None]]}}
    return [
        json.dumps(whole).encode(),
        json.dumps({**whole, "attachments": [purged, failed], "later": {"a": [1.5, 1e300, "x"]}}).encode(),
        json.dumps({**whole, "schema": 2}).encode(),
        json.dumps({**whole, "schema": True, "updated": 1e10}).encode(),
        json.dumps({**whole, "updated": "0001-01-01T00:00:00+14:00"}).encode(),
        b'{"schema": 1, "x": ' + b"[" * 200 + b"]" * 200 + b"}",
        json.dumps(whole)[:-1].encode() + b', "n": ' + b"9" * 5000 + b', "f": NaN, "g": -0.0}',
    ]


# --- Listed names: an input is the name that a sender gave an attachment


def check_listed_name(data: bytes) -> str:
    """Any text is a name and stays as it is, but for the middle of a long one; a scanner's placeholder is short."""
    name = data.decode("utf-8", "replace")
    (listed,) = parse_listing(json.dumps({"attachments": [{"id": "a", "name": name}]}).encode())
    half = NAME_CHARACTERS // 2
    assert listed.name == (name if len(name) <= NAME_CHARACTERS else name[:half] + name[-half:])
    assert not listed.is_placeholder or len(name) <= 200
    return "placeholder" if listed.is_placeholder else "name"


PADDED = b"ATP Scan In Progress" + b" " * 20 + b"x"
"""The first one, in the middle of which tokens are repeated."""


def listed_names() -> Sequence[bytes]:
    return [
        PADDED,
        b"ATP Scan In Progress",
        b"Safe Attachments Scan In Progress.eml",
        b" " * 20 + b"ATP scan in progress .",
    ]


# --- Report pages: an input is the answers one after the other, divided by a line of two dashes


def check_report(data: bytes) -> str:
    """Each answer is a page or a BadAnswer; the rows of a report come once each, with an id, and end."""
    pages, label = [], ""
    for answer in data.split(b"\n--\n"):
        try:
            envelope = parse_envelope(answer)
        except BadAnswer:
            label += "x"
            continue
        label += f"{'d' if envelope.is_done else '-'}{'f' if envelope.is_failed else '-'}{len(envelope.rows)}"
        for row in envelope.rows:
            assert row.message_id
            row.message_id.encode()
            assert row.received is None or row.received.tzinfo is not None
            assert is_key(message_key(row.message_id))
        if envelope.is_done or envelope.is_failed:  # else it would be asked again in two seconds
            pages.append(answer)
    calls = iter(pages)

    def exchange(method: str, href: str, action: str, content: bytes | None = None) -> bytes:
        for answer in calls:
            return answer
        raise NotFound("no more answers")  # anything that can pass by itself would be waited for

    start = datetime(2026, 11, 1, tzinfo=UTC)
    report = ReceivedMessages(exchange, "m", start, datetime(2026, 11, 1, 12, tzinfo=UTC), on_wait=lambda _: None)
    seen: set[str] = set()
    try:
        for message in report:
            assert message.message_id not in seen, "a message twice"
            seen.add(message.message_id)
    except EmailgisticsError as error:
        label += type(error).__name__
    assert report.covered_until >= start
    return label[:60]


def report_pages() -> Sequence[bytes]:
    row = {"id": "1", "messageId": "AAMk1=", "received": "2026-11-01T09:00:00+14:00", "hasAttachments": True}
    done = {
        "_links": {
            "self": {"href": "https://x.example/r/1"},
            "next": {"href": "https://x.example/r/1?starting_after=1"},
        },
        "status": "done",
        "progress": 100,
        "result": {"data": [row, {**row, "messageId": "AAMk2="}], "total": None, "dataCutoffTimestamp": "2026-11-01"},
    }
    last = {**done, "_links": {}, "result": {"data": [{"id": 7}, None, {"messageId": "\ud800"}]}}
    pages = [json.dumps(page).encode() for page in (done, last)]
    return [
        b"\n--\n".join(pages),
        pages[0],
        pages[1],
        json.dumps({**done, "status": "running"}).encode(),
        json.dumps({**done, "status": "running", "result": {"data": 5}}).encode(),
        json.dumps({"status": "error", "error": {"code": 5}}).encode(),
        json.dumps({**last, "result": {"data": [], "dataCutoffTimestamp": "0001-01-01T00:00:00"}}).encode(),
        json.dumps({**last, "result": {"data": [], "dataCutoffTimestamp": "9999-12-31T23:59:59-14:00"}}).encode(),
        b'{"status": "done", "result": {"data": ' + b"[" * 2000 + b"}",
        b"\n--\n".join([json.dumps({"status": "error"}).encode(), *pages]),
    ]


# --- Filters: the first line is the filter, then name, content type and size of an attachment


@dataclass(frozen=True)
class _Attachment:
    name: str | None
    content_type: str | None
    size: int | None


def check_filter(data: bytes) -> str:
    """A filter or a ValidationError in words; `*` and `?` mean what they say; the raw and the safe name are judged."""
    lines = data.split(b"\n")
    text, name, content_type, size = (lines + [b""] * (4 - len(lines)))[:4]
    attachment = _Attachment(
        name.decode("utf-8", "surrogateescape") or None,
        content_type.decode("utf-8", "surrogateescape") or None,
        len(size) or None,
    )
    try:
        found = Filter.model_validate(json.loads(text))
    except ValidationError as error:
        str(error)
        describe_errors(error)
        return "invalid"
    except (ValueError, RecursionError):
        return "not JSON"
    decision = found.decide(attachment)
    assert decision.wanted == (decision.rule is None)
    found.may_want(attachment)
    assert Filter.model_validate(found.model_dump(mode="python")) == found
    rule: Rule
    for rule in found.include + found.exclude:
        for pattern in rule.names:
            expected = any(
                _is_match(_folded(pattern.strip()), _folded(each[:1024] + each[1024:][-1024:]))
                for each in {attachment.name or "", safe_name(attachment.name)}
            )
            assert Rule(names=(pattern,)).matches(attachment) == expected, "not what * and ? say"
    return f"{decision.wanted} {(decision.rule or '')[:12]} {len(found.include)} {len(found.exclude)}"


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _is_match(pattern: str, text: str) -> bool:
    """Whether the text matches a pattern of `*` and `?`: letter by letter, going back to the last star."""
    at = place = 0
    star, kept = -1, 0
    while place < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, kept, at = at, place, at + 1
        elif at < len(pattern) and pattern[at] in {"?", text[place]}:
            at, place = at + 1, place + 1
        elif star >= 0:
            kept += 1
            at, place = star + 1, kept
        else:
            return False
    return not pattern[at:].strip("*")


def filters() -> Sequence[bytes]:
    return [
        b'{"include": [{"content_types": ["application/pdf", "image/*"]}]}\nInvoice.PDF\napplication/x-pdf; a=b\n12',
        b'{"exclude": [{"names": ["*.exe", "[Draft]*", "scan?1?.pdf"]}]}\nsetup.exe\xe2\x80\x8b\n\n',
        b'{"include": [{"names": ["scan[1].pdf"], "min_size": 1, "max_size": 99}], "exclude": []}\nscan[1].pdf\n\n1',
        '{"include": [{"names": ["*\u00fc*"]}]}\nRechnung u\u0308.pdf\nbinary/octet-stream\n5'.encode(),
        b'{"include": [{"content_types": ["*.pdf"]}]}\n\n\n',
        b'{"include": [{"names": "*.pdf", "size": 1}], "excludes": null}',
        b'{"include": [{"names": ["\\ud800*"]}]}\n\xff\xfe\n\n',
        b'{"include": [{"names": ["' + b"*a" * 40 + b'"]}]}\n' + b"a" * 300 + b"\n\n",
        b'{"include": [{"min_size": 1e400, "max_size": true}]}',
    ]


# --- Store URLs: the first line is the URL, the second the options as JSON


def check_store_url(data: bytes) -> str:
    """A store or a StoreError, from the block a ValidationError; nothing is connected to, no password is shown."""
    line, _, rest = data.partition(b"\n")
    url = line.decode("utf-8", "surrogateescape")
    try:
        options = json.loads(rest or b"{}")
    except (ValueError, RecursionError):
        options = {}
    said = []
    with _offline():
        for given in ({}, options) if isinstance(options, dict) and options else ({},):
            try:
                store = open_store(url, given)
            except StoreError as error:
                said.append(str(error))
            else:
                said.append(store.url)
                if store.url.startswith("file:"):
                    assert store.url.startswith("file:///")
                    assert open_store(store.url).url == store.url, "its own URL is another store"
        try:
            AttachmentStore(url=url, options=options)
        except ValidationError as error:
            said.append(str(error))
    # It may be the name of a host, a folder or an option as well: these are told.
    names = "".join(options) if isinstance(options, dict) else ""
    if "CANARY" not in _PASSWORD.sub("", url, count=1) + names:
        assert "CANARY" not in "".join(said), "a password is shown"
    return " ".join(text[:20] for text in said)


_PASSWORD = re.compile(r"^[a-z0-9]+://[^/?#:@]*:CANARY@")


@contextmanager
def _offline() -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection while a URL is read")

    kept = socket.socket.connect, socket.getaddrinfo
    socket.socket.connect = socket.getaddrinfo = refuse  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        socket.socket.connect, socket.getaddrinfo = kept  # type: ignore[method-assign]


def store_urls() -> Sequence[bytes]:
    return [
        b"file:///srv/attachments",
        b"/srv/attachments",
        b"file://localhost/srv/a%20b",
        b'file://srv/attachments\n{"auto_mkdir": true}',
        b's3://bucket/folder\n{"key": "k", "secret": "CANARY", "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}',
        b"s3://arn:aws:s3:us-east-1:123456789012:accesspoint/my-ap/folder",
        b"s3a://arn:aws:s3-outposts:us-east-1:123456789012:outpost/op-1/accesspoint/ap/x?versionId=1",
        b'abfs://container@account.dfs.core.windows.net/folder\n{"account_key": "CANARY"}',
        b"az://container/folder",
        b"abfss://container@account.blob.core.windows.net",
        b"gs://bucket/folder",
        b'sftp://user:CANARY@host:22/folder\n{"host_key": "ssh-ed25519 AAAA", "pkey": "CANARY"}',
        b"ssh://[::1]:2222/folder",
        b"memory://folder",
        b"simplecache::s3://bucket",
        b"ftp://user:CANARY@host/folder",
        b"github://org:repo@main/x",
        b"adl://store/folder",
        b"http://[::1/x",
        b"dir://x",
        b"smb://user:CANARY@host/share",
    ]


# --- Mail: the whole input is a file, under each name that is read in its own way


def check_mail(data: bytes) -> str:
    """Every file is some messages; each makes a clean payload and has what its attachments' sizes say."""
    label = ""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.eml", "b.emlx", "mbox", "cur"):
            place = Path(folder, name)
            if name == "cur":
                place.mkdir()
                place /= "1.host:2,S"
            place.write_bytes(data)
            spool = Spool()
            try:
                count = 0
                for message in read_mail(place.parent if name == "cur" else place, spool):
                    count += 1
                    json.dumps(webhook_payload(message), ensure_ascii=False).encode()
                    assert message.id.isascii()
                    for attachment in message.attachments:
                        assert attachment.name
                        attachment.name.encode()
                        assert attachment.content_type
                        assert attachment.content_type.isascii()
                        size = sum(len(piece) for piece in attachment.body.pieces())
                        assert size == attachment.body.size <= len(data) + 1
                    label += f"{len(message.attachments)},"
                assert count or name == "cur", "a file of mail without a message"
            finally:
                spool.close()
            label += " "
    return label[:40]


def mails() -> Sequence[bytes]:
    mail = (
        b"From: Ann <ann@x.example>\nTo: shop@x.example, =?utf-8?q?B=C3=B6b?= <bob@x.example>\nSubject: =?utf-8?b?R3LDvMOfZQ==?=\n"
        b"Date: Mon, 02 Nov 2026 10:00:00 +0100\nMessage-ID: <1@x.example>\nMIME-Version: 1.0\n"
        b'Content-Type: multipart/mixed; boundary="b"\n\n--b\nContent-Type: text/plain\n\ntext\n--b\n'
        b"Content-Type: application/pdf; name*0=a; name*1*=utf-8''%20b.pdf\nContent-Disposition: attachment\n"
        b"Content-Transfer-Encoding: base64\n\nJVBERg==\n--b\nContent-Type: message/rfc822\n\nSubject: inner\n\nx\n--b--\n"
    )
    separator = b"From ann@x.example Mon Nov  2 10:00:00 2026\n"
    return [
        mail,
        separator + mail + b"\n" + separator + mail,
        b"\xef\xbb\xbf\n" + separator + mail.replace(b"\n", b"\r\n"),
        b"%d\n%b<?xml version='1.0'?>" % (len(mail), mail),
        b"Content-Type: multipart/report; boundary=x\n\n--x\nContent-Type: message/delivery-status\n\nA: b\n\nC: d\n--x--",
        b"Content-Transfer-Encoding: x-uuencode\nContent-Type: image/x; name=u\n\nbegin 644 u\n#86)C\n`\nend\n",
        b"Content-Transfer-Encoding: quoted-printable\nContent-Type: text/x; charset=klingon; name=q\n\n=3D=\n=ZZ",
        b"Subject: \xff\xfe\nDate: never\nFrom: \xff <@\nContent-Type: image/png; x=\r\n\tFrom: <<<>>>@@,\n\nx",
        b"Received: x\n" * 50 + b"\n" + b"--b\n" * 50,
    ]


JSON_TOKENS = [
    b'{"', b'": ', b'", "', b"[", b"]", b"{", b"}", b"null", b"true", b"1e999", b"-0.0", b"NaN", b'"\\ud800"',
    b'"\\udc00\\ud800"', b'"\\u0000"', b'"\\u202e"', b"9" * 4301, b"0.1", b'\xef\xbb\xbf', b"\\",
]  # fmt: skip
TEXT_TOKENS = [
    b"\0",
    b"\n",
    b"\r",
    b"\r\n",
    b"\t",
    b" ",
    b"\xc2\x85",
    b"\xe2\x80\x8b",
    b"\xcc\x81\xcc\xa3",
    b"\xff",
    b"\x7f",
]

READERS = {
    "content-disposition": Reader(
        check_content_disposition,
        content_dispositions,
        [
            b"filename=", b"filename*=", b"filename*0=", b"filename*1*=", b"UTF-8''", b"attachment", b"inline", b";", b'"',
            b"'", b"=", b"*", b"%", b"%e2%82%ac", b"\\", b"\\\"", b"=?utf-8?q?", b"=?utf-8?b?", b"?=", b"../", b"C:\\",
            b"=?utf-8?b?YQ==?=", b"=?utf-8?q?a?= ", b"a.pdf", *TEXT_TOKENS,
        ],
        HEADER_CHARACTERS,
    ),
    "webhook": Reader(
        check_webhook,
        webhooks,
        [b"Bearer ", b"/webhooks/", b"http://", b"%2f", b'"id"', b'"event"', b'"hasAttachments"', *JSON_TOKENS, *TEXT_TOKENS],
        MAX_BODY,
    ),
    "ids": Reader(
        check_ids,
        id_files,
        [b"messageId", b"AAMk1=", b",", b";", b"|", b'"', b"---", b'{"messageId": "', b'"}', b"\x1f\x8b", b"\xff\xfe", b"CANARY",
         *TEXT_TOKENS],
    ),
    "manifest": Reader(
        check_manifest,
        manifests,
        [b'"attachments"', b'"outcome"', b'"stored"', b'"failed"', b'"purged"', b'"filtered"', b'"unsupported"', b'"updated"',
         b'"complete"', b'"schema"', b'"computed"', b'"9999-12-31T23:59:59-14:00"', b'"0001-01-01T00:00:00+14:00"',
         b'"schema_"', b'"message_id"', *JSON_TOKENS],
    ),
    "listed-name": Reader(
        check_listed_name,
        listed_names,
        [b" ", b"Safe Attachments ", b"ATP ", b"Scan In Progress", b".msg", b".", b"x", *TEXT_TOKENS],
    ),
    "report": Reader(
        check_report,
        report_pages,
        [b"\n--\n", b'"status"', b'"done"', b'"error"', b'"running"', b'"result"', b'"data"', b'"_links"', b'"next"', b'"href"',
         b'"messageId"', b'"received"', b'"dataCutoffTimestamp"', b'"0001-01-01T00:00:00+23:59"', b'"2026-W01"', *JSON_TOKENS],
    ),
    "filter": Reader(
        check_filter,
        filters,
        [b'"include"', b'"exclude"', b'"names"', b'"content_types"', b'"min_size"', b'"max_size"', b"*", b"?", b"*a", b"[!", b"[",
         b"]", b"application/", b"/*", b"; x=", b".pdf", b"\xef\xac\x81", b"\xc4\xb0", b"\xce\x90", *JSON_TOKENS, *TEXT_TOKENS],
    ),
    "store-url": Reader(
        check_store_url,
        store_urls,
        [b"://", b"::", b":", b"@", b"/", b"?", b"#", b"%2f", b"..", b"[::1]", b"file:", b"s3:", b"arn:aws:s3:", b"abfs:", b"az:",
         b"adl:", b"gs:", b"sftp:", b"memory:", b"localhost", b".dfs.core.windows.net", b"CANARY", b":99999", b"~",
         b'"host"', b'"port"', b'"endpoint_url"', *JSON_TOKENS, *TEXT_TOKENS],
        4096,
    ),
    "mail": Reader(
        check_mail,
        mails,
        [b"From ", b"From: ", b"Subject: ", b"Content-Type: ", b"multipart/mixed; boundary=b", b"--b", b"--b--", b"message/rfc822",
         b"Content-Transfer-Encoding: ", b"base64", b"quoted-printable", b"x-uuencode", b"begin 644 x\n", b"Content-Disposition: ",
         b"attachment", b"filename=", b"filename*0*=", b"utf-8''", b"=?utf-8?b?", b"=?utf-8?q?", b"?=", b"<", b">", b"(", b")", b"@",
         b",", b";", b'"', b"\xef\xbb\xbf", b"Mon Nov  2 10:00:00 2026", b"To: ", b"a@x.example, ", b"Date: ", *TEXT_TOKENS],
        16 * 1024,
    ),
}  # fmt: skip
