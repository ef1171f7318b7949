"""Message ids as people hand them over: a list, or a file (`message_ids_source` says from where).

A file has one id a line, or is CSV with a column `messageId`, or JSON lines with that name. Which one it is shows in
its first line. It is read once, as a stream, and its ids wait in a file on the local disk until they are used: its
length does not matter, nor what becomes of it or its storage meanwhile. Nothing that a file holds gets into an error's
text: what stands in the wrong place may be anything. Nor does it get any further: only what can be an id of Microsoft
Graph's, or a message key, is taken from it. Knows no Prefect.
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
from typing import IO, Any, BinaryIO, cast

from attachments.foundation import cancellation
from attachments.foundation.message_id import mistake_in, normalized
from attachments.storage.errors import StoreError

COLUMN = "messageId"
LONGEST = 1024  # characters of an id; Microsoft Graph's have up to 250
LONGEST_LINE = 1024 * 1024  # bytes
MOST_IDS = 2_000_000  # a backfill works on them for 46 days
MOST_LINES = 10_000_000
MOST_BYTES = 1024 * 1024 * 1024  # of a file, and of what it unpacks to
MOST_RATIO = 100  # bytes for each packed one; ids of one mailbox, which share most of their letters, reach 15
RATIO_FROM = 1024 * 1024  # bytes that are unpacked before the ratio counts
MOST_MEMBERS = 100_000  # of a packed file, one behind the other; bgzip makes one for each 64 KiB
READ = 1024 * 1024  # bytes at a time
PACKED = 64 * 1024  # the same of what is packed
GRAPH_ID = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
"""base64, in either alphabet (api/messages/list-attachments)."""
DELIMITERS = ",;\t|"
HEADINGS = frozenset({"id", "ids", "message", "message_id", "message-id", "message id", "internetmessageid", "key"})
"""First lines that are no ids, but the heading of a column with another name."""
GZIP, ZIP, BOM = b"\x1f\x8b", b"PK\x03\x04", b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
NEVER = {
    '"': "a quotation mark",
    ",": "a comma",
    ";": "a semicolon",
    "|": "a vertical bar",
    "{": "a brace",
    "}": "a brace",
}
"""What stands in a file of another form, and in no id: Microsoft Graph's are base64."""
RULE = frozenset("-=_+|:*~# \t")
NOT_UTF8 = "The file of ids is UTF-16. Save it as UTF-8."
NOT_THERE = "There is no file of ids at that URL, or what holds it does not answer the worker. Check host and path."
ONE_A_LINE = f"Give the file one id a line, or a heading with {COLUMN}."


class IdsError(Exception):
    """What was handed over cannot be used; the text says where, and what to write."""


Open = Callable[[], BinaryIO]


def listed_ids(ids: Iterable[str]) -> tuple[str, ...]:
    """The ids of a list, without blanks around them. Raises IdsError."""
    return tuple(_checked(normalized(one), f"Number {n} of the message ids") for n, one in enumerate(ids, 1))


class Ids:
    """The ids of a file, in its order, duplicates too. Any thread may go through them, once.

    They wait in a file without a name, which goes after the last one, when this is closed, or when the process dies.
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
        """Whoever still goes through them gets a ValueError."""
        self._file.close()


def read_ids(open_file: Open) -> Ids:
    """Reads and checks all of a file. To be closed by the caller.

    Raises:
        IdsError: The first line that is wrong, a file that cannot be read or is too large, or no room for its ids.
        StoreError: The store that holds it does not hand it out.
        RunCancelled: The run was cancelled meanwhile.
    """
    try:
        with ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile())
            count = 0
            for id_ in stack.enter_context(closing(_read(open_file))):
                cancellation.raise_if_cancelled()
                file.write(f"{id_}\n".encode())
                count += 1
                if count > MOST_IDS:
                    raise IdsError(
                        f"The file holds more than {MOST_IDS:,} ids. Split it, and start a backfill for each."
                    )
            if not count:
                raise IdsError("The file of ids has a heading and no ids.")
            file.seek(0)
            stack.pop_all()
            return Ids(file, count)
    except OSError:  # of the temporary file alone: those of the storage are IdsError already
        raise IdsError(
            "The ids cannot be kept in the worker's folder for temporary files: it is full, or may not be written. "
            "Make room there, or set the worker's TMPDIR to another folder. Then run this again."
        ) from None


def _read(open_file: Open) -> Generator[str]:
    with _readable(), open_file() as file:
        lines = _Lines(file)
        first = next(lines, None)
        if first is None:
            raise IdsError("The file of ids is empty. Write one message id a line.")
        yield from _ids(first, lines)


def _ids(first: str, lines: _Lines) -> Iterator[str]:
    """The ids, by the form that the first line shows."""
    if first.lstrip().startswith("{"):
        return _from_json(first, lines)
    if first.lstrip().startswith("["):
        raise IdsError('Line 1 begins a JSON array. Write an object a line instead: {"messageId": "…"}')
    for delimiter in DELIMITERS:
        try:
            row = next(csv.reader([first], delimiter=delimiter))
        except csv.Error:  # longer than a cell may be
            raise IdsError(f"Line {lines.number} is neither a message id nor a heading. {ONE_A_LINE}") from None
        heads = [head.strip().casefold() for head in row]
        if COLUMN.casefold() in heads:
            return _from_csv(lines, heads, delimiter)
    if any(delimiter in first.strip() for delimiter in DELIMITERS):
        raise IdsError(f"Line 1 has several columns, and none is named {COLUMN}. Name the column with the ids so.")
    if first.strip().strip('"').casefold() in HEADINGS:
        raise IdsError(f"Line {lines.number} is a heading. Name that column {COLUMN}, or leave the heading out.")
    return _from_lines(first, lines)


def _is_rule(line: str) -> bool:
    """Whether the line is a rule, such as `-----+-----`, which database clients draw under the heading."""
    return RULE.issuperset(line)


def _from_lines(first: str, lines: _Lines) -> Iterator[str]:
    yield _of_line(first, lines.number)
    for line in lines:
        yield _of_line(line, lines.number)


def _from_csv(lines: _Lines, heads: Sequence[str], delimiter: str) -> Iterator[str]:
    column = heads.index(COLUMN.casefold())
    # Strict: a quote that is never closed would swallow the lines behind it.
    rows = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    is_first = True
    try:
        for row in rows:
            if not any(cell.strip() for cell in row) or (is_first and _is_rule("".join(row))):
                continue
            is_first = False
            if len(row) > len(heads):
                raise IdsError(
                    f"Line {lines.number} has more columns than the heading, so nobody knows which holds the id. Put "
                    "values that hold the delimiter into quotation marks, and one id alone into a row."
                )
            yield _of_line(row[column] if column < len(row) else "", lines.number)
    except csv.Error:
        raise IdsError(f"Line {lines.number} is no CSV. Look for a quote that is not closed, before it.") from None


def _from_json(first: str, lines: _Lines) -> Iterator[str]:
    line: str | None = first
    while line is not None:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        id_ = found.get(COLUMN) if isinstance(found, dict) else None
        if not isinstance(id_, str):
            raise IdsError(f'Line {lines.number} is no JSON object with a text {COLUMN}: {{"{COLUMN}": "…"}}')
        yield _of_line(id_, lines.number)
        line = next(lines, None)


def _of_line(text: str, number: int) -> str:
    """The id on a line of a file, without blanks around it. Raises IdsError.

    Stricter than for a list: a file is easily the wrong one, and each of its lines would become a run.
    """
    id_ = normalized(text)
    for letter, name in NEVER.items():
        if letter in id_:
            raise IdsError(f"Line {number} is no message id: it holds {name}. {ONE_A_LINE}")
    if id_ and _is_rule(id_):
        raise IdsError(f"Line {number} is no message id: it is a rule, as of a table. {ONE_A_LINE}")
    if not id_.isascii():
        raise IdsError(f"Line {number} is no message id: it holds a character that is not ASCII. {ONE_A_LINE}")
    checked = _checked(id_, f"Line {number}")
    if not GRAPH_ID.fullmatch(checked):
        raise IdsError(
            f"Line {number} is no message id: that is letters and digits, with + / - _ among them and = at most at its "
            f"end. {ONE_A_LINE}"
        )
    return checked


def _checked(id_: str, where: str) -> str:
    """The id as it is. Raises IdsError for what cannot be one."""
    if id_.isascii() and id_.isprintable() and " " not in id_ and 0 < len(id_) <= LONGEST:
        if id_[0] == "<" and "@" in id_:
            raise IdsError(f"{where} is an internetMessageId. Emailgistics wants its own {COLUMN}.")
        return id_
    if not id_:
        raise IdsError(f"{where} has no {COLUMN}. Write one, or remove it.")
    if len(id_) > LONGEST:
        raise IdsError(f"{where} is no message id: it has over {LONGEST:,} characters.")
    mistake = mistake_in(id_)
    if mistake is not None:
        raise IdsError(f"{where} is no message id: {mistake}.")
    return id_


class _Lines(Iterator[str]):
    """The lines of a file that are not blank, without their ends; `number` is the last one's, from 1."""

    def __init__(self, file: BinaryIO) -> None:
        self.number = 0
        self._is_begun = False
        start = file.read(len(ZIP))
        whole = cast("BinaryIO", io.BufferedReader(_Rest(start, file), READ))
        if start.startswith(ZIP):
            raise IdsError("The file of ids is a workbook or an archive. Save it as text or CSV.")
        if start.startswith(UTF16):
            raise IdsError(NOT_UTF8)
        # By content and not by name: some web servers unpack what they send.
        if start.startswith(GZIP):
            whole = cast("BinaryIO", io.BufferedReader(_Unpacked(whole), READ))
        self._file = whole

    def __next__(self) -> str:
        while raw := self._file.readline(LONGEST_LINE):
            self.number += 1
            if self.number > MOST_LINES:
                raise IdsError(
                    f"The file of ids has more than {MOST_LINES:,} lines. Split it, or leave blank ones out."
                )
            if not self._is_begun and b"\0" in raw:
                raise IdsError(NOT_UTF8)
            # The first line alone: a later one of a CSV may have it in a quoted cell.
            if not self._is_begun and b"\r" in raw.strip():
                raise IdsError("The file of ids has line ends of CR alone. Save it with LF or CRLF line ends.")
            if len(raw) >= LONGEST_LINE:
                raise IdsError(
                    f"Line {self.number} is longer than {LONGEST_LINE:,} bytes. Write one message id a line."
                )
            try:
                line = (raw.removeprefix(BOM) if self.number == 1 else raw).decode().rstrip("\r\n")
            except UnicodeDecodeError:
                raise IdsError(f"Line {self.number} is not UTF-8 text. Save the file of ids as UTF-8.") from None
            if line and not line.isspace():
                self._is_begun = True
                return line
        raise StopIteration


class _Rest(io.RawIOBase):
    """A file of which the start has been read already, whole again, up to so many bytes."""

    def __init__(self, start: bytes, file: BinaryIO) -> None:
        super().__init__()
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
        if self._bytes > MOST_BYTES:
            raise IdsError(f"The file of ids is larger than {MOST_BYTES >> 30} GiB. Split it.")
        return len(data)


class _Unpacked(io.RawIOBase):
    """What a file unpacks to that gzip has packed, once or several times one behind the other.

    Not by Python's `gzip`, which does not tell how much of the file it has used up for what it gives.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._packed = b""
        self._member = zlib.decompressobj(zlib.MAX_WBITS | 16)  # gzip's header and check sum
        self._members = 1
        self._used = 0
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises EOFError when the file is cut, and zlib.error when it is damaged."""
        while True:
            self._packed = self._packed or self._file.read(PACKED)
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
        """Whether another one follows; zeros after the last one are padding."""
        while self._packed and not self._packed.lstrip(b"\0"):
            self._packed = self._file.read(PACKED)
        self._packed = self._packed.lstrip(b"\0")
        if not self._packed:
            return False
        self._member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._members += 1
        if self._members > MOST_MEMBERS:
            raise IdsError(f"The file of ids is packed in more than {MOST_MEMBERS:,} pieces. Pack it as one.")
        return True

    def _check(self) -> None:
        if self._bytes > MOST_BYTES:
            raise IdsError(f"The file of ids unpacks to more than {MOST_BYTES >> 30} GiB. Split it.")
        if self._bytes > max(RATIO_FROM, MOST_RATIO * self._used):
            raise IdsError(
                f"The file of ids unpacks to more than {MOST_RATIO} times its size, which lists of ids do not. Look "
                "what is in it; if it is right, give it unpacked."
            )


@contextmanager
def _readable() -> Iterator[None]:
    """One error for whatever a storage, its library or a damaged file raises. Their texts may quote a password."""
    try:
        yield
    except (IdsError, StoreError, GeneratorExit):
        raise
    except ImportError:
        raise IdsError("Nothing here reads such a URL of ids: a Python package for its storage is missing.") from None
    except FileNotFoundError:
        raise IdsError(NOT_THERE) from None
    except (EOFError, zlib.error):
        raise IdsError("The file of ids is damaged: it cannot be unpacked to its end. Make it again.") from None
    except Exception as error:  # noqa: BLE001  every fsspec library has errors of its own
        raise IdsError(
            f"The file of ids cannot be read ({type(error).__name__}). "
            "Check the URL, and the rights of the worker's user."
        ) from None
