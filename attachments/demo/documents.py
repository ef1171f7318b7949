"""Generates the demo's attachments, byte for byte the same everywhere.

Nothing is compressed, because the output of zlib differs between its versions.
"""

import hashlib
import io
import struct
import wave
import zipfile
import zlib
from collections.abc import Sequence
from xml.sax.saxutils import escape

SIDE = 96  # pixels
RATE = 44_100  # samples a second
CHANNELS, SAMPLE = 2, 2  # stereo, 16 bits
_SPREADSHEETML = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'


def pdf(lines: Sequence[str]) -> bytes:
    """One A4 page with these lines, the first of them as a heading (PDF 1.4)."""
    heading, *rest = (_pdf_text(line) for line in lines)
    page = b"BT /F1 18 Tf 72 770 Td (%s) Tj /F1 11 Tf 0 -34 Td 16 TL" % heading
    page += b"".join(b" (%s) Tj T*" % line for line in rest) + b" ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources 6 0 R >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(page), page),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Font << /F1 5 0 R >> >>",
    ]
    document = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(document))
        document += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = len(document)
    document += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    document += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    document += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
    return bytes(document)


def png() -> bytes:
    """A round logo (PNG, 8 bits RGB)."""
    rows = b"".join(b"\0" + b"".join(_colour(x, y) for x in range(SIDE)) for y in range(SIDE))
    # One stored block of deflate (RFC 1951, section 3.2.4) in a zlib stream (RFC 1950).
    block = b"\1" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows
    stream = b"\x78\x01" + block + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")


def xlsx(rows: Sequence[Sequence[str | int]]) -> bytes:
    """A workbook with one sheet (ECMA-376, Office Open XML)."""
    cells = "".join(
        f'<row r="{number}">{"".join(_cell(value, f"{chr(65 + at)}{number}") for at, value in enumerate(row))}</row>'
        for number, row in enumerate(rows, start=1)
    )
    types = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{types}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{types}.worksheet+xml"/></Types>',
        "_rels/.rels": _relationship("officeDocument", "xl/workbook.xml"),
        "xl/workbook.xml": f'<workbook xmlns="{_SPREADSHEETML}" xmlns:r="{_OFFICE}">'
        '<sheets><sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": _relationship("worksheet", "worksheets/sheet1.xml"),
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{_SPREADSHEETML}"><sheetData>{cells}</sheetData></worksheet>',
    }
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name, text in parts.items():
            entry = zipfile.ZipInfo(name, date_time=(2026, 11, 16, 9, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o600 << 16
            archive.writestr(entry, _XML + text)
    return whole.getvalue()


def wav(size: int) -> bytes:
    """Noise of about so many bytes (RIFF/WAVE, 44.1 kHz, 16 bits, stereo)."""
    whole = io.BytesIO()
    with wave.open(whole, "wb") as sound:
        sound.setnchannels(CHANNELS)
        sound.setsampwidth(SAMPLE)
        sound.setframerate(RATE)
        sound.writeframes(hashlib.shake_256(b"a worn compressor").digest(size - size % (CHANNELS * SAMPLE)))
    return whole.getvalue()


def _pdf_text(line: str) -> bytes:
    return line.encode("cp1252").replace(b"\\", rb"\\").replace(b"(", rb"\(").replace(b")", rb"\)")


def _colour(x: int, y: int) -> bytes:
    dx, dy = x - SIDE // 2, y - SIDE // 2
    distance = dx * dx + dy * dy
    if distance > (SIDE // 2 - 4) ** 2:
        return b"\xff\xff\xff"
    return bytes((20, 60 + distance // 16, 120)) if (dx * dy) % 7 else b"\xf0\xf4\xf8"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _cell(value: str | int, place: str) -> str:
    if isinstance(value, int):
        return f'<c r="{place}"><v>{value}</v></c>'
    return f'<c r="{place}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'


def _relationship(kind: str, target: str) -> str:
    return (
        f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_OFFICE}/{kind}" Target="{target}"/></Relationships>'
    )
