"""Writes the demo's mail. The small messages are in the repository; the large one is generated when the demo runs.

`python -m attachments.demo.make_mail` rewrites the small ones after a change here.

The bytes are put together by hand, not with `email`, which differs between versions of Python, and because
mail programs write names in more ways than it does: RFC 2231 in one piece and in several, RFC 2047 in `name`.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from attachments.demo.documents import pdf, png, wav, xlsx

SHIPPED = Path(__file__).with_name("mail")
LARGE = 40_000_000  # bytes
MAILBOX = "service@example.com"
PDF = "application/pdf"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
PIECE = 5  # characters of a name in one line; none is split, because not every reader joins its bytes again


@dataclass(frozen=True)
class MailPart:
    """One part of a mail, with its raw header."""

    head: str
    content: bytes


def invoice() -> bytes:
    """A PDF, and a picture in the text."""
    lines = ["Invoice 2026-1187", "Harbour Pumps", "2 x impeller, bronze   184.00", "Freight   12.50", "Due in 14 days"]
    return _mail(
        "Harbour Pumps <harbour-pumps@example.com>",
        "Invoice 2026-1187",
        "Mon, 16 Nov 2026 08:12:40 +0000",
        "Please find our invoice attached. Kind regards, Harbour Pumps",
        _file(PDF, 'filename="Invoice 2026-1187.pdf"', pdf(lines)),
        _file("image/png", 'filename="logo.png"', png(), disposition="inline", more="Content-ID: <logo@example.com>"),
    )


def order_list() -> bytes:
    """A spreadsheet."""
    rows: list[list[str | int]] = [["Item", "Pieces"], ["Impeller, bronze", 2], ["Shaft seal", 6], ["Gasket set", 4]]
    return _mail(
        "Northgate Waterworks <purchasing@example.com>",
        "Order list, week 47",
        "Mon, 16 Nov 2026 09:30:02 +0000",
        "Our order for next week.",
        _file(XLSX, 'filename="Order list week 47.xlsx"', xlsx(rows)),
    )


def report_in_german() -> bytes:
    """A name with umlauts, as RFC 2231 says; `name` has the encoded word (RFC 2047) that mail programs add."""
    name = "Prüfbericht Kühlanlage – Halle 3.pdf"
    return _mail(
        f"{_word('Kältetechnik Süd')} <kaeltetechnik@example.com>",
        _word("Prüfbericht Kühlanlage"),
        "Tue, 17 Nov 2026 07:05:19 +0100",
        "Anbei der Prüfbericht. Mit freundlichen Grüßen",
        _file(
            f'{PDF};\r\n name="{_word(name)}"',
            f"filename*=utf-8''{quote(name, safe='')}",
            pdf(["Prüfbericht", "Kühlanlage, Halle 3", "Dichtheit: in Ordnung", "Nächste Prüfung: November 2027"]),
        ),
    )


def quotation_in_japanese() -> bytes:
    """A long Japanese name, in the several lines that RFC 2231 allows."""
    rows: list[list[str | int]] = [["品名", "数量", "金額"], ["冷却ポンプ", 3, 540000], ["取付工事", 1, 120000]]
    return _mail(
        f"{_word('港ポンプ工業')} <minato-pump@example.com>",
        _word("お見積書の送付"),
        "Wed, 18 Nov 2026 10:44:00 +0900",
        "お見積書をお送りいたします。ご確認ください。",
        _file(XLSX, _in_pieces("冷却ポンプ交換工事 御見積書 2026年11月.xlsx"), xlsx(rows)),
    )


def forwarded_complaint() -> bytes:
    """A mail within the mail, which Emailgistics lists and does not let anybody download, beside a file."""
    inner = _mail(
        "Hill Street Bakery <bakery@example.com>",
        "Pump delivered with a dent",
        "Wed, 18 Nov 2026 15:20:11 +0000",
        "The pump came with a dent in its casing. What now?",
    )
    return _mail(
        "Harbour Pumps <harbour-pumps@example.com>",
        "Fwd: Pump delivered with a dent",
        "Thu, 19 Nov 2026 08:01:55 +0000",
        "Could you take care of this? The delivery note is attached.",
        MailPart("Content-Type: message/rfc822\r\nContent-Disposition: attachment", inner),
        _file(PDF, 'filename="Delivery note 88213.pdf"', pdf(["Delivery note 88213", "1 x circulation pump, 24 V"])),
    )


def question() -> bytes:
    """Text alone."""
    return _mail(
        "Northgate Waterworks <purchasing@example.com>",
        "When does the fitter come?",
        "Thu, 19 Nov 2026 11:37:48 +0000",
        "Could you tell us when the fitter will be here?",
    )


def recording() -> bytes:
    """A sound file of 40 MB."""
    return _mail(
        "Hill Street Bakery <bakery@example.com>",
        "Recording of the noise",
        "Fri, 20 Nov 2026 06:15:30 +0000",
        "This is what the compressor sounds like since Monday.",
        _file("audio/x-wav", 'filename="compressor noise.wav"', wav(LARGE)),
    )


SMALL: dict[str, Callable[[], bytes]] = {
    "1-invoice.eml": invoice,
    "2-order-list.eml": order_list,
    "3-report-in-german.eml": report_in_german,
    "4-quotation-in-japanese.eml": quotation_in_japanese,
    "5-forwarded-complaint.eml": forwarded_complaint,
    "6-question.eml": question,
}


def write_small(folder: Path) -> None:
    """Write the messages that the project ships."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in SMALL.items():
        (folder / name).write_bytes(make())


def write_all(folder: Path) -> None:
    """Write all of the demo's mail: what the project ships, as it was shipped, and the large message."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SMALL:
        (folder / name).write_bytes((SHIPPED / name).read_bytes())
    (folder / "7-recording.eml").write_bytes(recording())


def _mail(sender: str, subject: str, date: str, text: str, *parts: MailPart) -> bytes:
    head = [
        f"From: {sender}",
        f"To: Service <{MAILBOX}>",
        f"Subject: {subject}",
        f"Date: {date}",
        # A Message-ID that nothing else has, and that stays (RFC 5322, section 3.6.4).
        f"Message-ID: <{date[5:25].replace(' ', '-').replace(':', '')}@mail.example.com>",
        "MIME-Version: 1.0",
    ]
    body = MailPart(
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit", f"{text}\r\n".encode()
    )
    if not parts:
        return _lines(*head) + _as_bytes(body)
    divider = b"--part-of-this-mail"
    pieces = b"".join(divider + b"\r\n" + _as_bytes(part) for part in (body, *parts))
    start = _lines(*head, 'Content-Type: multipart/mixed; boundary="part-of-this-mail"', "")
    return start + pieces + divider + b"--\r\n"


def _file(content_type: str, name: str, content: bytes, *, disposition: str = "attachment", more: str = "") -> MailPart:
    head = f"Content-Type: {content_type}\r\nContent-Disposition: {disposition};\r\n {name}\r\n"
    head += f"{more}\r\n" if more else ""
    return MailPart(head + "Content-Transfer-Encoding: base64", base64.encodebytes(content).replace(b"\n", b"\r\n"))


def _as_bytes(part: MailPart) -> bytes:
    return part.head.encode() + b"\r\n\r\n" + part.content + (b"" if part.content.endswith(b"\r\n") else b"\r\n")


def _lines(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode()


def _word(text: str) -> str:
    """An encoded word (RFC 2047, section 2)."""
    return f"=?utf-8?B?{base64.b64encode(text.encode()).decode()}?="


def _in_pieces(name: str) -> str:
    """The name as continuations (RFC 2231, section 3)."""
    pieces = [quote(name[at : at + PIECE], safe="") for at in range(0, len(name), PIECE)]
    pieces[0] = f"utf-8''{pieces[0]}"
    return ";\r\n ".join(f"filename*{number}*={piece}" for number, piece in enumerate(pieces))


if __name__ == "__main__":
    write_small(SHIPPED)
