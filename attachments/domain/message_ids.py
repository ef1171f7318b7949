"""Message ids as a user supplies them: a list, or a file (`message_ids_source` says from where).

A file has one id a line, or is CSV with a column `messageId`, or JSON lines with that name. The first line shows which.
It is read once, as a stream, and its ids are kept in a local temporary file until they are used, so neither its length
nor a later change of the file or its storage matters. No error text quotes the file, because it may be the wrong file
and contain anything. Only what can be an id of Microsoft Graph, or a message key, is accepted. Does not depend on
Prefect.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

from attachments.foundation import cancellation
from attachments.foundation.message_id import mistake_in, normalized
from attachments.storage.errors import StoreError

COLUMN = "messageId"
MAX_ID_LENGTH = 1024  # characters of an id; those of Microsoft Graph have up to 250
MAX_LINE_LENGTH = 1024 * 1024  # bytes
MAX_RATIO = (
    100  # decompressed bytes per compressed byte; ids of one mailbox, which share most of their letters, reach 15
)
RATIO_CHECKED_FROM = 1024 * 1024  # decompressed bytes from which the ratio is checked
BUFFER_SIZE = 1024 * 1024  # bytes
COMPRESSED_BUFFER_SIZE = 64 * 1024  # bytes
GRAPH_ID = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
"""base64, in either alphabet (api/messages/list-attachments)."""
DELIMITERS = ",;\t|"
HEADINGS = frozenset({"id", "ids", "message", "message_id", "message-id", "message id", "internetmessageid", "key"})
"""First lines that are not ids, but the heading of a column with another name."""
GZIP, ZIP, BOM = b"\x1f\x8b", b"PK\x03\x04", b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
FORBIDDEN_CHARACTERS = {
    '"': "a quotation mark",
    ",": "a comma",
    ";": "a semicolon",
    "|": "a vertical bar",
    "{": "a brace",
    "}": "a brace",
}
"""Characters of other file formats that no id contains: those of Microsoft Graph are base64."""
RULE_CHARACTERS = frozenset("-=_+|:*~# \t")
UTF16_MESSAGE = "The file of ids is UTF-16. Save it as UTF-8."
NOT_FOUND_MESSAGE = (
    "There is no file of ids at that URL, or its server does not respond to the worker. Check host and path."
)
FORMAT_HINT = f"Write one id per line, or add a heading with {COLUMN}."


class IdsError(Exception):
    """The ids cannot be used; the text says where the problem is, and what to write."""


@dataclass(frozen=True)
class IdsLimits:
    """The largest file of ids that is read."""

    ids: int = 2_000_000
    """A backfill of so many takes 46 days."""
    lines: int = 10_000_000
    bytes: int = 1024 * 1024 * 1024
    """Of the file, also when decompressed."""
    members: int = 100_000
    """Concatenated gzip members of a file; bgzip writes one for each 64 KiB."""


FileOpener = Callable[[], BinaryIO]


def checked_ids(ids: Iterable[str]) -> tuple[str, ...]:
    """The ids of a list, without surrounding blanks. Raises IdsError."""
    return tuple(_check(normalized(one), f"Number {n} of the message ids") for n, one in enumerate(ids, 1))


class Ids:
    """The ids of a file, in its order, with duplicates. Any thread may iterate over them, once.

    They are kept in a nameless temporary file, which is deleted after the last id, on `close`, or when the process
    dies.
    """

    def __init__(self, file: IO[bytes], count: int) -> None:
        self._file = file
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        with self._file:
            for line in self._file:
                yield line.decode().removesuffix("\n")

    def close(self) -> None:
        """Close the file; a thread that is still iterating gets a ValueError."""
        self._file.close()


def read_ids(open_file: FileOpener, limits: IdsLimits | None = None) -> Ids:
    """Read and check a whole file. The caller closes the result.

    Raises:
        IdsError: A line is wrong, the file cannot be read or is too large, or there is no room for its ids.
        StoreError: The store that holds the file cannot be read.
        RunCancelled: The run was cancelled.
    """
    limits = limits or IdsLimits()
    try:
        with ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile())
            count = 0
            for id_ in stack.enter_context(closing(_read(open_file, limits))):
                cancellation.raise_if_cancelled()
                file.write(f"{id_}\n".encode())
                count += 1
                if count > limits.ids:
                    raise IdsError(
                        f"The file holds more than {limits.ids:,} ids. Split it, and start a backfill for each."
                    )
            if not count:
                raise IdsError("The file of ids has a heading and no ids.")
            file.seek(0)
            stack.pop_all()
            return Ids(file, count)
    except OSError:  # of the temporary file only: those of the storage are IdsError already
        raise IdsError(
            "The ids cannot be written to the worker's folder for temporary files: it is full, or not writable. Make "
            "room there, or set the worker's TMPDIR to another folder. Then run this again."
        ) from None


def _read(open_file: FileOpener, limits: IdsLimits) -> Generator[str]:
    with _translated_errors(), open_file() as file:
        lines = _Lines(file, limits)
        first = next(lines, None)
        if first is None:
            raise IdsError("The file of ids is empty. Write one message id per line.")
        yield from _ids(first, lines)


def _ids(first: str, lines: _Lines) -> Iterator[str]:
    """The ids, parsed in the format that the first line shows."""
    if first.lstrip().startswith("{"):
        return _from_json(first, lines)
    if first.lstrip().startswith("["):
        raise IdsError('Line 1 begins a JSON array. Write one object per line instead: {"messageId": "…"}')
    for delimiter in DELIMITERS:
        try:
            row = next(csv.reader([first], delimiter=delimiter))
        except csv.Error:  # the line is the line is longer than a cell may be
            raise IdsError(f"Line {lines.number} is neither a message id nor a heading. {FORMAT_HINT}") from None
        heads = [head.strip().casefold() for head in row]
        if COLUMN.casefold() in heads:
            return _from_csv(lines, heads, delimiter)
    if any(delimiter in first.strip() for delimiter in DELIMITERS):
        raise IdsError(f"Line 1 has several columns, and none is named {COLUMN}. Give that name to the column of ids.")
    if first.strip().strip('"').casefold() in HEADINGS:
        raise IdsError(f"Line {lines.number} is a heading. Name that column {COLUMN}, or leave the heading out.")
    return _from_lines(first, lines)


def _is_rule(line: str) -> bool:
    """Whether the line is a rule, such as `-----+-----`, which database clients draw under the heading."""
    return RULE_CHARACTERS.issuperset(line)


def _from_lines(first: str, lines: _Lines) -> Iterator[str]:
    yield _parse_line(first, lines.number)
    for line in lines:
        yield _parse_line(line, lines.number)


def _from_csv(lines: _Lines, heads: Sequence[str], delimiter: str) -> Iterator[str]:
    column = heads.index(COLUMN.casefold())
    # Strict: otherwise an unclosed quote would swallow the lines after it.
    rows = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    is_first = True
    try:
        for row in rows:
            if not any(cell.strip() for cell in row) or (is_first and _is_rule("".join(row))):
                continue
            is_first = False
            if len(row) > len(heads):
                raise IdsError(
                    f"Line {lines.number} has more columns than the heading, so it is unclear which one is the id. "
                    "Quote values that contain the delimiter, and write one id per row."
                )
            yield _parse_line(row[column] if column < len(row) else "", lines.number)
    except csv.Error:
        raise IdsError(f"Line {lines.number} is not valid CSV. Look for an unclosed quote before it.") from None


def _from_json(first: str, lines: _Lines) -> Iterator[str]:
    line: str | None = first
    while line is not None:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        id_ = found.get(COLUMN) if isinstance(found, dict) else None
        if not isinstance(id_, str):
            raise IdsError(f'Line {lines.number} is not a JSON object with a text {COLUMN}: {{"{COLUMN}": "…"}}')
        yield _parse_line(id_, lines.number)
        line = next(lines, None)


def _parse_line(text: str, number: int) -> str:
    """The id on a line of a file, without surrounding blanks. Raises IdsError.

    Stricter than for a list: someone may give the wrong file, and each of its lines would become a run.
    """
    id_ = normalized(text)
    for letter, name in FORBIDDEN_CHARACTERS.items():
        if letter in id_:
            raise IdsError(f"Line {number} is not a message id: it contains {name}. {FORMAT_HINT}")
    if id_ and _is_rule(id_):
        raise IdsError(f"Line {number} is not a message id: it is a table's ruling line. {FORMAT_HINT}")
    if not id_.isascii():
        raise IdsError(f"Line {number} is not a message id: it contains a character that is not ASCII. {FORMAT_HINT}")
    checked = _check(id_, f"Line {number}")
    if not GRAPH_ID.fullmatch(checked):
        raise IdsError(
            f"Line {number} is not a message id: an id consists of letters, digits and + / - _, with = only at its "
            f"end. {FORMAT_HINT}"
        )
    return checked


def _check(id_: str, where: str) -> str:
    """The id unchanged. Raises IdsError if it cannot be one."""
    if id_.isascii() and id_.isprintable() and " " not in id_ and 0 < len(id_) <= MAX_ID_LENGTH:
        if id_[0] == "<" and "@" in id_:
            raise IdsError(f"{where} is an internetMessageId. Use the {COLUMN} of Emailgistics instead.")
        return id_
    if not id_:
        raise IdsError(f"{where} has no {COLUMN}. Write one, or remove it.")
    if len(id_) > MAX_ID_LENGTH:
        raise IdsError(f"{where} is not a message id: it has over {MAX_ID_LENGTH:,} characters.")
    mistake = mistake_in(id_)
    if mistake is not None:
        raise IdsError(f"{where} is not a message id: {mistake}.")
    return id_


class _Lines(Iterator[str]):
    """The non-blank lines of a file, without line ends; `number` is that of the last line, from 1."""

    def __init__(self, file: BinaryIO, limits: IdsLimits) -> None:
        self.number = 0
        self._max_lines = limits.lines
        self._is_begun = False
        start = file.read(len(ZIP))
        whole = cast("BinaryIO", io.BufferedReader(_CountedReader(start, file, limits), BUFFER_SIZE))
        if start.startswith(ZIP):
            raise IdsError("The file of ids is a workbook or an archive. Save it as text or CSV.")
        if start.startswith(UTF16):
            raise IdsError(UTF16_MESSAGE)
        # By content and not by name: some web servers decompress what they send.
        if start.startswith(GZIP):
            whole = cast("BinaryIO", io.BufferedReader(_GzipReader(whole, limits), BUFFER_SIZE))
        self._file = whole

    def __next__(self) -> str:
        while raw := self._file.readline(MAX_LINE_LENGTH):
            self.number += 1
            if self.number > self._max_lines:
                raise IdsError(
                    f"The file of ids has more than {self._max_lines:,} lines. Split it, or leave blank ones out."
                )
            if not self._is_begun and b"\0" in raw:
                raise IdsError(UTF16_MESSAGE)
            # Only in the first line: a later line of a CSV may have it in a quoted cell.
            if not self._is_begun and b"\r" in raw.strip():
                raise IdsError("The file of ids ends its lines with CR only. Save it with LF or CRLF line ends.")
            if len(raw) >= MAX_LINE_LENGTH:
                raise IdsError(
                    f"Line {self.number} is longer than {MAX_LINE_LENGTH:,} bytes. Write one message id per line."
                )
            try:
                line = (raw.removeprefix(BOM) if self.number == 1 else raw).decode().rstrip("\r\n")
            except UnicodeDecodeError:
                raise IdsError(f"Line {self.number} is not UTF-8 text. Save the file of ids as UTF-8.") from None
            if line and not line.isspace():
                self._is_begun = True
                return line
        raise StopIteration


class _CountedReader(io.RawIOBase):
    """A file including the start that was already read. Raises IdsError beyond the limit of bytes."""

    def __init__(self, start: bytes, file: BinaryIO, limits: IdsLimits) -> None:
        super().__init__()
        self._max_bytes = limits.bytes
        self._start = start
        self._file = file
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._start or self._file.read(len(buffer))
        self._start = b""
        buffer[: len(data)] = data
        self._bytes += len(data)
        if self._bytes > self._max_bytes:
            raise IdsError(f"The file of ids is larger than {self._max_bytes >> 30} GiB. Split it.")
        return len(data)


class _GzipReader(io.RawIOBase):
    """The decompressed content of a gzip file, which may have several members.

    Not Python's `gzip`, which does not report how many compressed bytes it has consumed.
    """

    def __init__(self, file: BinaryIO, limits: IdsLimits) -> None:
        super().__init__()
        self._limits = limits
        self._file = file
        self._packed = b""
        self._member = zlib.decompressobj(zlib.MAX_WBITS | 16)  # gzip's header and check sum
        self._members = 1
        self._used = 0
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises EOFError if the file is truncated, and zlib.error if it is damaged."""
        while True:
            self._packed = self._packed or self._file.read(COMPRESSED_BUFFER_SIZE)
            if self._member.eof and not self._next_member():
                return 0
            is_all = not self._packed
            data = self._member.decompress(self._packed, len(buffer))
            rest = self._member.unconsumed_tail or self._member.unused_data
            self._used += len(self._packed) - len(rest)
            self._packed = rest
            if data:
                self._bytes += len(data)
                self._check()
                buffer[: len(data)] = data
                return len(data)
            if is_all and not self._member.eof:
                raise EOFError

    def _next_member(self) -> bool:
        """Start the next member. False if there is none; zeros after the last one are padding."""
        while self._packed and not self._packed.lstrip(b"\0"):
            self._packed = self._file.read(COMPRESSED_BUFFER_SIZE)
        self._packed = self._packed.lstrip(b"\0")
        if not self._packed:
            return False
        self._member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._members += 1
        if self._members > self._limits.members:
            raise IdsError(
                f"The file of ids consists of more than {self._limits.members:,} gzip members. Compress it as one."
            )
        return True

    def _check(self) -> None:
        if self._bytes > self._limits.bytes:
            raise IdsError(f"The decompressed file of ids is larger than {self._limits.bytes >> 30} GiB. Split it.")
        if self._bytes > max(RATIO_CHECKED_FROM, MAX_RATIO * self._used):
            raise IdsError(
                f"The file of ids decompresses to more than {MAX_RATIO} times its size, unlike a list of ids. Check "
                "its content; if it is right, supply it uncompressed."
            )


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Translate the errors of storage libraries and damaged files into IdsError. Their texts may quote a password."""
    try:
        yield
    except (IdsError, StoreError, GeneratorExit):
        raise
    except ImportError:
        raise IdsError(
            "The URL of the ids cannot be read here: the Python package for its storage is missing. Install it for the "
            "worker."
        ) from None
    except FileNotFoundError:
        raise IdsError(NOT_FOUND_MESSAGE) from None
    except (EOFError, zlib.error):
        raise IdsError("The file of ids is damaged: it cannot be decompressed to its end. Create it again.") from None
    except Exception as error:  # noqa: BLE001  every fsspec library has its own errors
        raise IdsError(
            f"The file of ids cannot be read ({type(error).__name__}). "
            "Check the URL, and the permissions of the worker's user."
        ) from None
