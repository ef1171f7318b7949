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


MAIL = b"Subject: %b\nContent-Type: image/gif; name=x.gif\n\nGIF\n"
FROM = b"From sam@x.example Mon Nov  2 10:00:00 2026\n"


def subjects(path: Path, spool: Spool) -> list[str]:
    messages = list(read_mail(path, spool))
    assert all(len(message.attachments) == 1 and content(message).rstrip() == b"GIF" for message in messages)
    return [message.subject for message in messages]


@pytest.mark.parametrize("name", ["a.EML", "a.Eml", "a.eml"])
def test_the_suffix_of_a_mail_may_be_upper_case(tmp_path: Path, spool: Spool, name: str):
    """Windows and Outlook write `.EML`."""
    (tmp_path / name).write_bytes(MAIL % b"one")
    assert subjects(tmp_path, spool) == ["one"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("start", [b"", b"\n", b"\n \n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_blank_lines_and_a_byte_order_mark_at_the_start_cost_nothing(
    tmp_path: Path, spool: Spool, start: bytes, end: bytes
):
    """Neither the first message of an mbox nor the attachments of a single mail."""
    box = start + b"\n".join(FROM + MAIL % subject for subject in (b"one", b"two", b"three"))
    (tmp_path / "box").write_bytes(box.replace(b"\n", end))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "box.mbox").write_bytes(box.replace(b"\n", end))
    (tmp_path / "one.eml").write_bytes((start + MAIL % b"one").replace(b"\n", end))
    assert subjects(tmp_path / "box", spool) == ["one", "two", "three"]
    assert subjects(tmp_path / "folder", spool) == ["one", "two", "three"]
    assert subjects(tmp_path / "one.eml", spool) == ["one"]


def test_an_mbox_is_split_as_the_standard_library_splits_it(tmp_path: Path, spool: Spool):
    """The same messages, byte for byte, so that an export of a mail and the mail itself are one message."""
    box = mailbox.mbox(tmp_path / "box")
    for file in CPYTHON_MAIL:
        box.add(file.read_bytes())
    box.flush()
    expected = [parse_mail(box.get_bytes(key), spool).id for key in box.iterkeys()]
    box.close()
    assert [message.id for message in read_mail(tmp_path / "box", spool)] == expected


def test_a_sentence_that_begins_with_from_does_not_split_a_message(tmp_path: Path, spool: Spool):
    """Some writers of an mbox do not quote it; a separator has a date, or a header below."""
    text = b"\nFrom now on, all is well.\n\nFrom 10:00 to 11:00 we are closed.\n\n"
    (tmp_path / "box").write_bytes(FROM + MAIL % b"one" + text + b"From sam\n" + MAIL % b"two" + b"\n" + FROM + b"\n")
    first, second, third = read_mail(tmp_path / "box", spool)
    assert (content(first), content(second)) == (b"GIF\n" + text[:-1], b"GIF\n")
    assert (first.subject, second.subject, third.subject) == ("one", "two", "")


def test_a_maildir_is_read(tmp_path: Path, spool: Spool):
    """Read and unread mail, and that of its folders; not what is still being delivered, nor the server's own files."""
    names = {"cur/1.M5P6.host:2,S": b"one", "new/2.M5P6.host": b"two", ".Sent/cur/3.M7P8.host:2,RS": b"three"}
    names |= {"tmp/4.M9P1.host": b"unfinished"}
    for name, subject in names.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(MAIL % subject)
    (tmp_path / "dovecot-uidlist").write_bytes(b"3 V1 N5\n1 :1.M5P6.host\n")
    (tmp_path / "cur" / "index").write_bytes(b"\0\1\2")
    assert sorted(subjects(tmp_path, spool)) == ["one", "three", "two"]
    assert subjects(tmp_path / "new", spool) == ["two"]


@pytest.mark.parametrize(
    "separator",
    [
        "From sam@x.example Thu Jan 1 10:00:00 2026",
        "From sam@x.example Thu Jan  1 9:00:00 2026",
        "From sam@x.example 2026-01-01T10:00:00Z",
        "From sam@x.example 2026-01-01 10:00:00 +0100",
        "From - Thu, 1 Jan 2026 10:00:00 +0000",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_an_mbox_without_a_suffix_is_known_by_its_first_lines(tmp_path: Path, spool: Spool, separator: str, end: str):
    """Programs write the date in several forms."""
    box = b"\n".join(separator.encode() + b"\n" + MAIL % subject for subject in (b"one", b"two"))
    (tmp_path / "Inbox").write_bytes(box.replace(b"\n", end.encode()))
    assert subjects(tmp_path, spool) == ["one", "two"]


def test_an_mh_folder_is_read(tmp_path: Path, spool: Spool):
    """A file for each message, called by its number; not what was removed, nor the program's own files."""
    box = mailbox.MH(tmp_path / "inbox")
    for number in range(1, 12):
        box.add(MAIL % str(number).encode())
    box.add_folder("old").add(MAIL % b"old")
    box.close()
    (tmp_path / "inbox" / ",3").write_bytes(MAIL % b"removed")
    (tmp_path / "inbox" / "99").write_bytes(b"\0\1\2")
    assert subjects(tmp_path, spool) == [*map(str, range(1, 12)), "old"]


def test_links_to_folders_are_followed_once(tmp_path: Path, spool: Spool):
    """Mail is often kept on another disk; a link to a folder above does not go on for ever."""
    kept = tmp_path / "disk" / "old"
    kept.mkdir(parents=True)
    (kept / "one.eml").write_bytes(MAIL % b"one")
    mail = tmp_path / "mail"
    mail.mkdir()
    (mail / "two.eml").write_bytes(MAIL % b"two")
    (mail / "a").symlink_to(kept, target_is_directory=True)
    (mail / "b").symlink_to(kept, target_is_directory=True)
    (kept / "up").symlink_to(mail, target_is_directory=True)
    assert sorted(subjects(mail, spool)) == ["one", "two"]
    (tmp_path / "link").symlink_to(mail, target_is_directory=True)
    assert sorted(subjects(tmp_path / "link", spool)) == ["one", "two"]


def test_the_mailboxes_of_apple_mail_are_read(tmp_path: Path, spool: Spool):
    """An exported mailbox is a folder with a file `mbox`; one that is in use has a file `.emlx` for each message."""
    (tmp_path / "Shop.mbox").mkdir()
    (tmp_path / "Shop.mbox" / "mbox").write_bytes(FROM + MAIL % b"one" + b"\n" + FROM + MAIL % b"two")
    (tmp_path / "Shop.mbox" / "table_of_contents").write_bytes(b"\0\0\0\1From")
    kept = tmp_path / "INBOX.mbox" / "4F2A" / "Data" / "Messages"
    kept.mkdir(parents=True)
    mail = MAIL % b"three"
    (kept / "7.emlx").write_bytes(b"%-10d\n%b<?xml version='1.0'?><plist></plist>" % (len(mail), mail))
    assert subjects(tmp_path / "Shop.mbox", spool) == ["one", "two"]
    assert subjects(tmp_path / "INBOX.mbox", spool) == ["three"]
    assert sorted(subjects(tmp_path, spool)) == ["one", "three", "two"]


def test_what_is_no_mail_is_passed_over_in_a_folder(tmp_path: Path, spool: Spool):
    """Other files, a folder named like a mail, a broken link, and what macOS leaves beside a copy."""
    (tmp_path / "folder.eml").mkdir()
    (tmp_path / "lost.eml").symlink_to(tmp_path / "nowhere.eml")
    (tmp_path / "._one.eml").write_bytes(b"\0\5\x16\7")
    (tmp_path / "notes.txt").write_bytes(b"From: me\nSubject: notes\n")
    (tmp_path / "letter.txt").write_bytes(b"From the desk of Sam\n\nHello\n")
    (tmp_path / "hours.txt").write_bytes(b"From 10:00 to 11:00 we are closed.\n\nSam\n")
    (tmp_path / "2026").write_bytes(b"In numbers\n")
    assert subjects(tmp_path, spool) == []


@pytest.mark.parametrize(
    "header", ["Content-Type: text/x; name=", "To: ", "Content-Disposition: attachment; filename="]
)
@pytest.mark.parametrize("text", ["(", '"', ";"])
def test_a_header_that_the_standard_library_does_not_take_is_read_all_the_same(spool: Spool, header: str, text: str):
    """Nested comments exceed Python's recursion limit, and some parsers take quadratic time."""
    mail = f"Subject: one\n{header}{text * 100_000}\nContent-Disposition: attachment\n\nbody"
    message = parse_mail(mail.encode(), spool)
    assert message.subject == "one"
    assert content(message) == b"body"


def test_a_name_in_no_known_charset_leaves_the_address(spool: Spool):
    """Bytes that no charset explains are shown as such; the address beside them is read."""
    message = parse_mail(b"From: \xff\xfe <a@example.com>\n\nbody", spool)
    assert "a@example.com" in message.sender


def test_parts_that_are_nested_without_end_leave_the_message_its_headers(spool: Spool):
    """The standard library's parser gives such a mail up; its headers are read."""
    nested = "".join(f'Content-Type: multipart/mixed; boundary="{level}"\n\n--{level}\n' for level in range(2000))
    assert parse_mail(f"Subject: one\n{nested}".encode(), spool).subject == "one"
