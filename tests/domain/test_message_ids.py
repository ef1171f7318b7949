"""Message ids as people hand them over: every form is read, and whatever is wrong is named by line, never quoted."""

import gzip
import io
import json
import resource
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from attachments.domain.message_ids import (
    MAX_ID_LENGTH,
    MAX_LINE_LENGTH,
    MAX_RATIO,
    RATIO_CHECKED_FROM,
    FileOpener,
    Ids,
    IdsError,
    IdsLimits,
    checked_ids,
    read_ids,
)
from attachments.foundation.cancellation import CURRENT, Cancellation, RunCancelled

A, B = "AAMkAGI1/a+b_c-d==", "AAMkAGI2-B="
CANARY = "canary-7f3a91c2"


def held(content: bytes) -> FileOpener:
    return lambda: cast("BinaryIO", io.BytesIO(content))


def read(content: bytes) -> list[str]:
    return list(read_ids(held(content)))


@pytest.mark.parametrize(
    "text",
    [
        f"{A}\n{B}\n",
        f"{A}\n{B}",
        f"\ufeff{A}\r\n{B}\r\n",
        f"\n  \n\t{A} \n\r\n{B}\N{NO-BREAK SPACE}\n\n\n",
        f"messageId\n{A}\n{B}\n",
        f'"messageId"\n"{A}"\n"{B}"\n',
        f"\ufeffmessageId,subject\r\n{A},x\r\n{B},\r\n",
        f" MESSAGEID ;subject\n{A};x\n{B};y\n",
        f"subject\tmessageId\nx\t{A}\ny\t {B} \n",
        f'subject,messageId,more\n"a ""quoted"", with\na line\n\nin\rit",{A},1\nb,{B},2\n',
        f"messageId,subject\n{A},x\n\n,,\n{B}\n",
        f"messageId|subject\n{A}|x\n{B}|y\n",
        f"messageId\n---------\n{A}\n{B}\n",
        f"subject,messageId\n-------,---------\nx,{A}\ny,{B}\n",
        f" messageId | subject \n-----------+---------\n {A} | x\n {B} | y\n",
        f"| messageId | subject |\n|:----------|--------:|\n| {A} | x |\n| {B} | y |\n",
        f"\ufeff{A}\ufeff\n\u200b{B}\u200b\n",
        f'{{"messageId": "{A}"}}\n{{"other": {{}}, "messageId": "  {B}"}}\n',
        f'\ufeff \n {{"messageId": "{A}"}}\r\n\r\n{{"messageId": "{B}"}}',
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_every_form_gives_the_same_ids(text: str, packed: bool) -> None:
    """Lines, CSV with other delimiters, quotes and line breaks, JSON lines; BOM, CRLF, blanks around, blank lines."""
    content = text.encode()
    assert read(gzip.compress(content) if packed else content) == [A, B]


def test_order_and_duplicates_are_kept() -> None:
    """Duplicates are kept, and the length counts them."""
    ids = read_ids(held(f"{B}\n{A}\n{B}\n".encode()))
    assert len(ids) == 3
    assert list(ids) == [B, A, B]
    assert len(ids) == 3


def test_ids_that_look_odd_are_ids() -> None:
    """They are opaque: case and length count; a message's key is one, too. What a file may not hold, a list may."""
    odd = ["a", "A", "x" * MAX_ID_LENGTH, "-a", "a/b+c_d=", "a==", "0123456789abcdef" * 2]
    assert read("\n".join(odd).encode()) == odd
    odder = [*odd, "a@b", "a'b", "#1", "%2F", "a=b", '"a"', "b,c", "b;c", "{d}"]
    assert checked_ids(odder) == tuple(odder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \r\n\n", "is empty"),
        (b"messageId\n\n", "has a heading and no ids"),
        (f"{A}\n{CANARY} x\n".encode(), "Line 2 is not a message id: it contains a blank or a control character"),
        (f"{A}\n\n{CANARY}\x07\n".encode(), "Line 3 is not a message id"),
        (f"{A}\n{CANARY}\u202ex\n".encode(), "Line 2 is not a message id"),
        (f"{A}\n{CANARY}\x00\n".encode(), "Line 2 is not a message id"),
        (f"{A}\n{CANARY}\ufeffx\n".encode(), "Line 2 is not a message id"),
        (CANARY.encode() + b"x" * MAX_ID_LENGTH, "Line 1 is not a message id: it has over 1,024 characters"),
        (CANARY.encode() + b"x" * 200_000, "Line 1 is neither a message id nor a heading. Write one id per line"),
        (f"{A}\r{CANARY}\r".encode(), "ends its lines with CR only. Save it with LF or CRLF line ends."),
        (f"\ufeff\r\rmessageId,x\r{CANARY},y\r".encode(), "ends its lines with CR only."),
        (f'\n\n{{"messageId": "{CANARY}"}}\r{{"messageId": "{A}"}}'.encode(), "ends its lines with CR only."),
        (f"{CANARY}\r".encode() * 100_000, "ends its lines with CR only."),
        (f"<{CANARY}@example.com>\n".encode(), "Line 1 is an internetMessageId"),
        (f"id,{CANARY}\n{A},1\n".encode(), "Line 1 has several columns, and none is named messageId"),
        (f"{CANARY};b\n".encode(), "Line 1 has several columns"),
        (f"message_id\n{A}\n".encode(), "Line 1 is a heading. Name that column messageId"),
        (f'\n"Message ID"\n{A}\n'.encode(), "Line 2 is a heading"),
        (f"messageId,subject\n{A},x\n,{CANARY}\n".encode(), "Line 3 has no messageId"),
        (f"subject,messageId\nx,{A}\n{CANARY}\n".encode(), "Line 3 has no messageId"),
        (f"subject,messageId\nx,{A}\ny,{CANARY} x\n".encode(), "Line 3 is not a message id"),
        (f"messageId\n{A},{CANARY}\n".encode(), "Line 2 has more columns than the heading"),
        (f"subject,messageId\nx,{A}\nDear Sir, {CANARY},{A}\n".encode(), "Line 3 has more columns than the heading"),
        (f"subject,messageId\nDear, {CANARY},{A},\n".encode(), "Line 2 has more columns than the heading"),
        (f"subject,messageId,x\nDear,{CANARY},{A},,\n".encode(), "Line 2 has more columns than the heading"),
        (f"subject|messageId\nx|{A}|\n".encode(), "Line 2 has more columns than the heading"),
        (f"id|{CANARY}\n{A}|1\n".encode(), "Line 1 has several columns, and none is named messageId"),
        (f"{A}|{CANARY}\n".encode(), "Line 1 has several columns"),
        (b"---------\n" + A.encode(), "Line 1 is not a message id: it is a table's ruling line."),
        (f"messageId\n{A}\n---------\n".encode(), "Line 3 is not a message id: it is a table's ruling line."),
        (f"messageId,x\n{A},1\n---,---\n".encode(), "Line 3 is not a message id: it is a table's ruling line."),
        (f"{A}\n=====\n".encode(), "Line 2 is not a message id: it is a table's ruling line."),
        (b"messageId\n---------\n", "has a heading and no ids"),
        (f'messageId\n"{CANARY}\n{A}\n'.encode(), "is not valid CSV. Look for an unclosed quote"),
        (f'messageId,x\n{A},"{CANARY}\nB,x\nC,"y"\n'.encode(), "Line 4 is not valid CSV"),  # B must not be swallowed
        (f'messageId\n"{CANARY}'.encode() + b"x\n" * 100_000, "is not valid CSV. Look for an unclosed quote"),
        (f'[{{"messageId": "{CANARY}"}}]'.encode(), "Line 1 begins a JSON array"),
        (f'{{"messageId": "{A}"}}\n{{"messageid": "{CANARY}"}}\n'.encode(), "Line 2 is not a JSON object with a text"),
        (f'{{"messageId": "{A}"}}\n{{"messageId": 7}}\n'.encode(), "Line 2 is not a JSON object with a text messageId"),
        (f'{{"messageId": "{A}"}}\n{CANARY}\n'.encode(), "Line 2 is not a JSON object"),
        (f'{{"messageId": "{A}"}}\n{{"messageId": ""}}\n'.encode(), "Line 2 has no messageId"),
        (b'{"messageId": ' + b"[" * 100_000, "Line 1 is not a JSON object"),
        (f"{A}\n".encode() + b"\xff\xfe\n", "Line 2 is not UTF-8"),
        (f"{A}\n".encode("utf-16"), "is UTF-16. Save it as UTF-8."),
        (f"{A}\r\n{CANARY}\r\n".encode("utf-16-le"), "is UTF-16. Save it as UTF-8."),
        (f"{A}\r\n{CANARY}\r\n".encode("utf-16-be"), "is UTF-16. Save it as UTF-8."),
        (f"件名,messageId\r\nx,{CANARY}\r\n".encode("utf-16-le"), "is UTF-16. Save it as UTF-8."),
        (f"\r\n\r\n{CANARY}\r\n".encode("utf-16-le"), "is UTF-16. Save it as UTF-8."),
        (gzip.compress(f"{A}\r\n{CANARY}".encode("utf-16"), mtime=0), "is UTF-16. Save it as UTF-8."),
        (b"PK\x03\x04" + CANARY.encode(), "is a workbook or an archive"),
        (f"{A}\n".encode() + b"x" * MAX_LINE_LENGTH, "Line 2 is longer than"),
        (gzip.compress(f"{A}\n".encode() * 1000, mtime=0)[:-10], "cannot be decompressed to its end"),
        (gzip.compress(f"{A}\n".encode(), mtime=0) + CANARY.encode(), "cannot be decompressed to its end"),
        (gzip.compress(f"{A}\n".encode(), mtime=0)[:-1] + b"x", "cannot be decompressed to its end"),
        (b"\x1f\x8b" + CANARY.encode() * 9, "cannot be decompressed"),
        (
            f"API_KEY={CANARY}\n".encode(),
            "Line 1 is not a message id: an id consists of letters, digits and + / - _, with",
        ),
        (f"{A}\n{CANARY}===\n".encode(), "Line 2 is not a message id: an id consists of letters"),
        (f"{A}\n{CANARY}@b\n".encode(), "Line 2 is not a message id: an id consists of letters"),
        (f"{A}\n${CANARY}\n".encode(), "Line 2 is not a message id: an id consists of letters"),
        (
            f'{{"messageId": "{CANARY}:x:0"}}\n'.encode(),
            "Line 1 is not a message id: an id consists of letters, digits",
        ),
        (f"messageId\n{CANARY}=x\n".encode(), "Line 2 is not a message id: an id consists of letters"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_not_quoted(content: bytes, said: str) -> None:
    """It says where and what to do; what stands there may be anything, so that it is not repeated."""
    with pytest.raises(IdsError) as caught:
        read(content)
    assert said in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (f'"{CANARY}"', "a quotation mark"),
        (f'{{"messageId":"{CANARY}"}}', "a quotation mark"),
        (f'{{"messageId": "{CANARY}"}}', "a quotation mark"),
        (f"{{{CANARY}", "a brace"),
        (f"{CANARY}}}", "a brace"),
        (f"{CANARY},C", "a comma"),
        (f"{CANARY}, C", "a comma"),
        (f"{CANARY};C", "a semicolon"),
        (f"{CANARY}|C", "a vertical bar"),
        (f"{CANARY}\N{LATIN CAPITAL LETTER A WITH DIAERESIS}", "a character that is not ASCII"),
    ],
)
def test_a_line_of_another_form_is_no_id(line: str, what: str) -> None:
    """Each would become a run, of which the line's text is a parameter, and a call that finds nothing."""
    quoted = line.replace('"', '""')
    for form in (
        f"{A}\n\n{line}\n",
        f'subject,messageId\nx,{A}\ny,"{quoted}"\n',
        f'{{"messageId": "{A}"}}\n\n{json.dumps({"messageId": line})}\n',
    ):
        with pytest.raises(IdsError) as caught:
            read(form.encode())
        assert str(caught.value) == (
            f"Line 3 is not a message id: it contains {what}. Write one id per line, or add a heading with messageId."
        )


def test_quoted_ids_without_a_heading_are_refused_by_their_first_line() -> None:
    """An export of one column of a table."""
    with pytest.raises(IdsError, match="Line 1 is not a message id: it contains a quotation mark"):
        read(f'"{A}"\n"{B}"\n'.encode())


def test_a_list_is_checked_likewise() -> None:
    """Blanks around are no matter; the number of the wrong one is told, and not what it is."""
    assert checked_ids([f" {A}", f"{B}\n"]) == (A, B)
    for wrong in ("", "  ", f"{CANARY} x", f"{CANARY}\x00", f"{CANARY}\u2026", CANARY * MAX_ID_LENGTH):
        with pytest.raises(IdsError, match="Number 2 of the message ids") as caught:
            checked_ids([A, wrong])
        assert CANARY not in str(caught.value)


def test_a_file_is_read_once_and_closed_before_its_ids_are_used() -> None:
    """A backfill takes hours: a connection would break or a token end meanwhile, and the file may be another one."""
    opened: list[BinaryIO] = []

    def open_file() -> BinaryIO:
        opened.append(held(f"{A}\n{B}\n".encode())())
        return opened[-1]

    ids = read_ids(open_file)
    assert [file.closed for file in opened] == [True]
    assert list(ids) == [A, B]
    assert len(opened) == 1


def test_ids_are_gone_through_in_another_thread() -> None:
    """A backfill reads its messages in a thread of its own."""
    with closing(read_ids(held(f"{A}\n{B}\n".encode()))) as ids, ThreadPoolExecutor(1) as pool:
        assert pool.submit(list[str], ids).result() == [A, B]


def waiting(folder: Path) -> list[str]:
    """The ids that this process keeps in a folder, whether the file has a name or not."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            if str(descriptor.readlink()).startswith(str(folder)):
                found.append(descriptor.read_text())
    return [*found, *(path.name for path in folder.iterdir())]


def used_up(ids: Ids) -> None:
    assert list(ids) == [A, B]


def stopped_early(ids: Ids) -> None:
    going = iter(ids)
    assert next(going) == A
    ids.close()
    with pytest.raises(ValueError, match="closed file"):
        next(going)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the process's descriptors")
@pytest.mark.parametrize("end", [used_up, stopped_early, Ids.close])
def test_the_ids_go_when_nobody_reads_on(
    end: Callable[[Ids], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the disk, in a file without a name: at their end, when they are closed, and with a process that dies."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ids = read_ids(held(f"messageId\n{A}\n{B}\n".encode()))
    assert waiting(tmp_path) == [f"{A}\n{B}\n"]
    end(ids)
    assert waiting(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the process's descriptors")
def test_nothing_is_kept_of_a_file_that_is_wrong_or_of_a_run_that_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the file ends at once, and its storage is let go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(IdsError):
        read_ids(held(f"{A}\na b\n".encode()))
    cancellation = Cancellation()
    file = io.BytesIO(f"{A}\n{B}\n".encode())

    def open_file() -> BinaryIO:
        cancellation.cancel()
        return cast("BinaryIO", file)

    before = CURRENT.set(cancellation)
    try:
        with pytest.raises(RunCancelled):
            read_ids(open_file)
    finally:
        CURRENT.reset(before)
    assert file.closed
    assert waiting(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
@pytest.mark.parametrize("count", [1, 100_000])
def test_a_full_disk_is_said(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it shows while the ids are written or at their end; with what to do, and without a path."""
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(Path("/dev/full").open, "w+b"))
    with pytest.raises(IdsError, match="it is full, or not writable") as caught:
        read_ids(held(f"{CANARY}\n".encode() * count))
    assert "Make room there" in str(caught.value)
    assert CANARY not in str(caught.value)
    assert "/" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_folder_for_temporary_files_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a full disk is: Python looks for a folder that it can write."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / CANARY))
    with pytest.raises(IdsError, match="full, or not writable") as caught:
        read_ids(held(b"a\n"))
    assert CANARY not in str(caught.value)


def many(path: Path, count: int) -> Path:
    with path.open("w") as file:
        file.writelines(f"AAMkAGI1-{number:0140d}=\n" for number in range(count))
    return path


def test_a_million_lines_are_streamed(tmp_path: Path) -> None:
    """In seconds, and in memory that does not grow with them."""
    few = partial(many(tmp_path / "few.txt", 100_000).open, "rb")
    tracemalloc.start()
    assert sum(1 for _ in read_ids(few)) == 100_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000
    million = partial(many(tmp_path / "ids.txt", 1_000_000).open, "rb")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    ids = read_ids(million)
    assert len(ids) == sum(1 for _ in ids) == 1_000_000
    print(f"a million ids in {time.perf_counter() - started:.1f} s")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@pytest.mark.parametrize("times", [1, 2, 700])
@pytest.mark.parametrize("padding", [0, 1, 200_000])
def test_a_file_that_was_packed_in_pieces_is_read_whole(times: int, padding: int) -> None:
    """As pigz, bgzip and `cat a.gz b.gz` make them; tape drives add zeros."""
    piece = gzip.compress(f"{A}\n{B}\n".encode() * 100)
    assert read(piece * times + bytes(padding)) == [A, B] * 100 * times


def test_a_packed_file_is_read_in_bounded_memory() -> None:
    """However large the pieces are that it unpacks to."""
    packed = gzip.compress("".join(f"{number:032x}\n" for number in range(50_000)).encode())
    tracemalloc.start()
    with closing(read_ids(held(packed))) as ids:
        assert len(ids) == 50_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000


@pytest.mark.parametrize("pieces", [1, 40])
def test_a_bomb_is_not_unpacked(pieces: int) -> None:
    """97 KB that hold 50 million lines: after the first MiB it is plain that nobody has listed ids there."""
    bomb = gzip.compress(b"a\n" * (50_000_000 // pieces), 6) * pieces
    assert len(bomb) < 150_000
    started = time.process_time()
    with pytest.raises(IdsError) as caught:
        read(bomb)
    took = time.process_time() - started
    print(f"{len(bomb):,} bytes, {took:.2f} s")
    assert str(caught.value) == (
        "The file of ids decompresses to more than 100 times its size, unlike a list of ids. Check its content; if it "
        "is right, supply it uncompressed."
    )
    assert took < 10  # all of it would take minutes


def test_what_packs_well_is_no_bomb() -> None:
    """Ids of one mailbox share most of their letters, and a small file may be as uniform as it likes."""
    alike = "".join(f"{'A' * 120}{number * 2654435761 % 2**40:020x}AAA=\n" for number in range(20_000))
    packed = gzip.compress(alike.encode(), 9)
    assert 10 < len(alike) / len(packed) < MAX_RATIO / 4
    assert len(read(packed)) == 20_000
    uniform = f"{A}\n" * 40_000
    assert len(uniform) < RATIO_CHECKED_FROM
    assert len(gzip.compress(uniform.encode())) < len(uniform) / MAX_RATIO
    assert len(read(gzip.compress(uniform.encode()))) == 40_000


@pytest.mark.parametrize(
    ("limit", "most", "content", "said"),
    [
        ("ids", 3, b"a\n" * 4, "holds more than 3 ids. Split it"),
        ("ids", 3, b"messageId,x\n" + b"a,1\n" * 4, "holds more than 3 ids"),
        ("lines", 3, b"a\n\n\n\n", "has more than 3 lines"),
        ("lines", 3, b'messageId,x\na,"1\n2\n3"\n', "has more than 3 lines"),
        ("bytes", 2 << 30, b"", "is empty"),
        ("bytes", 1000, b"a\n" * 501, "is larger than 0 GiB. Split it."),
        ("bytes", 1000, gzip.compress(b"a\n" * 501, mtime=0), "is larger than 0 GiB. Split it."),
        (
            "members",
            3,
            gzip.compress(b"a\n", mtime=0) * 4,
            "consists of more than 3 gzip members. Compress",
        ),
    ],
)
def test_what_is_above_a_limit_is_refused(limit: str, most: int, content: bytes, said: str) -> None:
    """And what is just below it is not."""
    with pytest.raises(IdsError) as caught:
        read_ids(held(content), IdsLimits(**{limit: most}))
    assert said in str(caught.value)
    if most == 3:
        read_ids(held(content), IdsLimits(**{limit: most + 1})).close()


FORMS: dict[str, Callable[[int], bytes]] = {
    "lines": lambda count: b"".join(b"AAMk%040d=\n" % number for number in range(count)),
    "packed": lambda count: gzip.compress(b"".join(b"AAMk%040d=\n" % number for number in range(count))),
    "CSV": lambda count: b"subject,messageId\n" + b"".join(b'"a, b",AAMk%040d=\n' % number for number in range(count)),
    "JSON lines": lambda count: b"".join(b'{"messageId": "AAMk%040d="}\n' % number for number in range(count)),
    "blank lines": lambda count: b"\n" * count * 4 + b"a\n",
    "a quoted cell of lines": lambda count: b'messageId,x\na,"' + b"\n" * min(count, 100_000) + b'"\n',
    "long lines": lambda count: (b"a" * (MAX_LINE_LENGTH - 2) + b"\n") * (count // 500),
    "cells": lambda count: b"messageId" + b",x" * (count * 4) + b"\na\n",
    "JSON": lambda count: b'{"messageId": "a", "x": [' + b"1," * (count * 4) + b"1]}\n",
    "pieces": lambda count: gzip.compress(b"a\n") * (count // 2),
}


def read_or_refuse(content: bytes) -> None:
    with suppress(IdsError):
        read_ids(held(content)).close()


@pytest.mark.parametrize("form", FORMS)
def test_time_and_memory_grow_with_the_file_at_most(form: str) -> None:
    """Whatever is in it: eight times as much takes no more than some eight times as long, and no more memory."""
    figures = []
    for times in (1, 2, 4, 8):
        content = FORMS[form](2_000 * times)
        took = []
        for _ in range(3):
            started = time.process_time()
            read_or_refuse(content)
            took.append(time.process_time() - started)
        figures.append((len(content), min(took)))
    tracemalloc.start()
    read_or_refuse(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(form, *(f"{size / 1000:,.0f} kB {took * 1000:.1f} ms," for size, took in figures), f"{peak / 1e6:.1f} MB")
    assert figures[-1][1] < 2.5 * 8 * figures[0][1] + 0.02
    assert peak < 25_000_000
