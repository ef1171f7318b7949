"""Mail from disk, served as Exchange would show it and byte for byte as the standard library decodes it."""

import email.policy
import hashlib
import json
import mailbox
from collections.abc import Iterator
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path

import httpx
import pytest
import test.test_email

from attachments.sandbox.bodies import Spool
from attachments.sandbox.mail import parse_mail, read_mail
from attachments.sandbox.messages import FILE, Message
from attachments.sandbox.payload import webhook_payload
from attachments.sandbox.process import running_sandbox
from tests.sandbox.conftest import download_path, list_path

CPYTHON_MAIL = sorted((Path(test.test_email.__file__).parent / "data").glob("msg_*.txt"))


@pytest.fixture
def spool() -> Iterator[Spool]:
    spool = Spool()
    yield spool
    spool.close()


def content(message: Message, index: int = 0) -> bytes:
    return b"".join(message.attachments[index].body.pieces())


def leaves(mail) -> Iterator:
    """The parts without parts, none out of an attached message: written apart from the product's rule."""
    if mail.get_content_maintype() == "message":
        return
    if mail.is_multipart():
        for part in mail.get_payload():
            yield from leaves(part)
    else:
        yield mail


def test_cpythons_own_mail_is_served_byte_for_byte(tmp_path: Path):
    """Every named or non-text part of CPython's test messages has exactly the bytes that `email` decodes."""
    assert len(CPYTHON_MAIL) > 45
    expected = []
    for file in CPYTHON_MAIL:
        (tmp_path / file.name).with_suffix(".eml").write_bytes(file.read_bytes())
        mail = BytesParser(policy=email.policy.default).parsebytes(file.read_bytes())
        expected.append(
            [
                hashlib.sha256(part.get_payload(decode=True)).hexdigest()
                for part in leaves(mail)
                if part.get_filename() or part.get_content_maintype() not in ("text", "multipart")
            ]
        )
    with running_sandbox(mail=tmp_path, limit=None) as sandbox, httpx.Client(trust_env=False) as api:
        api.headers["Authorization"] = f"Bearer {sandbox.key}"
        messages = sandbox.control.get("messages").json()["messages"]
        served = []
        for message in messages:
            listed = api.get(sandbox.base_url + list_path(message)).json()["attachments"]
            digests = []
            for index, row in enumerate(listed):
                if row["attachmentType"] == FILE:
                    answer = api.get(sandbox.base_url + download_path(message, index))
                    assert answer.status_code == 200
                    digests.append(hashlib.sha256(answer.content).hexdigest())
                    assert row["size"] != len(answer.content)
            served.append(digests)
    assert served == expected
    assert sum(len(digests) for digests in served) > 10


def test_binary_files_survive_the_mail(spool: Spool):
    """Pictures and sounds, attached in base64, come out as they went in."""
    files = sorted(file for file in CPYTHON_MAIL[0].parent.iterdir() if file not in CPYTHON_MAIL)
    mail = EmailMessage()
    for file in files:
        mail.add_attachment(file.read_bytes(), maintype="application", subtype="x", filename=file.name)
    message = parse_mail(mail.as_bytes(), spool)
    assert [row.name for row in message.attachments] == [file.name for file in files]
    assert [content(message, index) for index in range(len(files))] == [file.read_bytes() for file in files]


@pytest.mark.parametrize("file", CPYTHON_MAIL, ids=lambda file: file.stem)
def test_malformed_mail_makes_a_clean_payload(file: Path, spool: Spool):
    """Whatever a message holds, its payload and its names can be written as UTF-8."""
    message = parse_mail(file.read_bytes(), spool)
    json.dumps(webhook_payload(message), ensure_ascii=False).encode("utf-8")
    for attachment in message.attachments:
        assert (attachment.name or "").encode("utf-8")


def test_kinds_of_parts(spool: Spool):
    """Files and inline images are files, an attached message is an item, the texts are the body."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Cc"] = "Ann <ann@x.example>", "shop@x.example", "bob@x.example"
    mail["Subject"], mail["Date"] = "Grüße", "Mon, 02 Nov 2026 10:00:00 +0100"
    mail["Message-ID"] = "<1@x.example>"
    mail.set_content("text")
    mail.add_alternative("<img src='cid:1'>", subtype="html")
    mail.get_payload()[1].add_related(b"\x89PNG", "image", "png", cid="<1>")
    mail.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="Rechnung Ü.pdf")
    mail.add_attachment("a,b", filename="table.csv", subtype="csv")
    inner = EmailMessage()
    inner["Subject"] = "the inner one"
    inner.add_attachment(b"hidden", maintype="application", subtype="zip", filename="hidden.zip")
    mail.add_attachment(inner)
    message = parse_mail(mail.as_bytes(), spool)
    assert [(row.name, row.content_type, row.type) for row in message.attachments] == [
        ("ATT00001.png", "image/png", "fileAttachment"),
        ("Rechnung Ü.pdf", "application/pdf", "fileAttachment"),
        ("table.csv", "text/csv", "fileAttachment"),
        ("the inner one", "message/rfc822", "itemAttachment"),
    ]
    assert [content(message, index) for index in range(3)] == [b"\x89PNG", b"%PDF", b"a,b\n"]
    payload = webhook_payload(message)
    assert payload["subject"] == "Grüße"
    assert payload["received"] == "2026-11-02T09:00:00Z"
    assert payload["internetMessageId"] == "<1@x.example>"
    assert payload["from"] == {"emailAddress": {"name": "Ann", "address": "ann@x.example"}}
    assert payload["cc"] == [{"emailAddress": {"name": "", "address": "bob@x.example"}}]


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        (b"Content-Type: application/pdf", b"%PDF", b"%PDF"),
        (b"Content-Type: application/x; name*=unknown-9''%FF", b"x", b"x"),
        (b'Content-Type: text/plain; charset=klingon; name="\xff\xfe.txt"', b"\xff", b"\xff"),
        (
            b"Content-Type: application/x\r\nContent-Transfer-Encoding: base64",
            b"!!!notbase64",
            b"!!!notbase64",
        ),
        (b"Content-Type: application/x\r\nContent-Transfer-Encoding: x-magic", b"asis", b"asis"),
        (b"Content-Type: application/x\r\nContent-Transfer-Encoding: x-uuencode", b"no begin", b"no begin"),
        (b"Content-Type: message/rfc822; name=x", b"", None),
        (b"Content-Type: message/delivery-status", b"A: b\r\n\r\nC: d", None),
        (b"Content-Disposition: attachment", b"just text", b"just text"),
        (b"Content-Type: multipart/mixed\r\nContent-Disposition: attachment", b"no boundary", b"no boundary"),
        (b"Content-Type: image/png; x=\r\n\tFrom: <<<>>>@@,", b"x", b"x"),
    ],
)
def test_broken_parts_survive(spool: Spool, headers: bytes, body: bytes, expected: bytes | None):
    """A part of unknown charset or encoding, with a broken header or no structure is still one attachment."""
    message = parse_mail(b"Subject: \xff\xfe\r\nDate: never\r\nFrom: \xff <@\r\n" + headers + b"\r\n\r\n" + body, spool)
    (attachment,) = message.attachments
    if expected is None:
        assert attachment.type == "itemAttachment"
    else:
        assert content(message) == expected
    assert "\udcff" not in f"{attachment.name}{message.subject}{message.sender}"


@pytest.mark.parametrize("half", [b"=?utf-8?q?=ED=A0=80x?=", b"=?utf-7?q?+2AA-x?=", b"\xed\xa0\x80x"])
def test_half_a_character_is_replaced(spool: Spool, half: bytes):
    """Lone surrogates, which `email` lets through in UTF-7, come out of no header; in names as U+FFFD."""
    headers = b"Subject: %b\r\nFrom: %b <a@x.example>\r\nContent-Type: image/x; name*=utf-7''+2AA-x\r\n\r\n"
    message = parse_mail(headers % (half, half), spool)
    (attachment,) = message.attachments
    assert attachment.name == "\ufffdx"
    for text in (message.subject, message.sender):
        assert not [letter for letter in text if "\ud800" <= letter <= "\udfff"]


def test_ids_come_from_the_content(spool: Spool, tmp_path: Path):
    """The same file has the same ids everywhere, another file others; copies of a message are one message."""
    one, two = (file.read_bytes() for file in CPYTHON_MAIL[:2])
    for folder, names in {"a": ["x.eml", "y.eml"], "b": ["z.eml"]}.items():
        (tmp_path / folder).mkdir()
        for name, mail in zip(names, (one, two), strict=False):
            (tmp_path / folder / name).write_bytes(mail)
    ids = {folder: [message.id for message in read_mail(tmp_path / folder, spool)] for folder in "ab"}
    assert ids["a"][0] == ids["b"][0] != ids["a"][1]
    with running_sandbox(mail=tmp_path, limit=None) as sandbox:
        assert sandbox.control.get("health").json() == {"status": "ok", "messages": 2}


def test_an_mbox_and_a_single_file_are_read_too(spool: Spool, tmp_path: Path):
    """`--mail` takes a folder, one message, or an mbox with many."""
    box = mailbox.mbox(tmp_path / "box")
    for file in CPYTHON_MAIL[:5]:
        box.add(file.read_bytes())
    box.close()
    (tmp_path / "one.eml").write_bytes(b"Content-Type: image/gif\n\nGIF")
    assert len(list(read_mail(tmp_path / "box", spool))) == 5
    (message,) = read_mail(tmp_path / "one.eml", spool)
    assert content(message) == b"GIF"
    with pytest.raises(OSError, match="nowhere"):
        list(read_mail(tmp_path / "nowhere", spool))
