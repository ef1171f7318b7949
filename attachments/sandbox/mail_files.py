"""Finds the messages in files and folders of mail programs.

- `.eml`: one message (RFC 5322); `.emlx` (Apple Mail): its length, the message, then what Apple knows of it.
- mbox (RFC 4155): messages, each after a line `From sender date`. Apple exports one as a folder `Name.mbox` with
  a file `mbox` in it.
- Maildir: a file for each message, of any name, in the folders `cur` and `new`; MH: a number as the name.

Links to folders are followed, and no folder is read twice.
"""

import os
import re
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO

FORMATS = ".eml and .emlx files, mbox files, Maildir and MH folders"

_HEAD_BYTES = 64 * 1024
_MAC_COPY = "._"  # beside a file x that macOS copies elsewhere, it puts ._x, which holds no mail
_NOTHING = re.compile(rb"(?:\xef\xbb\xbf|[ \t]*[\r\n])*")
"""What editors and exports write before a file's first line."""
_HEADER = re.compile(rb"[!-9;-~]+[ \t]*:")
_DATED = re.compile(rb"From .*[A-Z][a-z]{2} [A-Z][a-z]{2} +\d{1,2} \d{1,2}:\d\d")
_TIMED = re.compile(rb"From .*\d:\d\d.*\n")
"""A date in any other form, such as 2026-11-02T10:00:00Z."""
_PADDED = 20  # digits: more than any mail program's numbers have
_LENGTH = re.compile(rb"[ \t]*(\d{1,15})[ \t]*\r?\n")


def raw_messages(path: Path) -> Iterator[bytes]:
    """The messages of a file, or of all mail files in a folder and its folders, in the order of their paths.

    Raises OSError when something there cannot be read.
    """
    if not path.is_dir():
        yield from _messages_of(path)
        return
    for file in sorted(_files(path.resolve()), key=_order):
        if _is_mail(file):
            yield from _messages_of(file)


def _files(folder: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for inner, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        status = Path(inner).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (file for name in names if (file := Path(inner, name)).is_file())


def _order(file: Path) -> tuple[str, ...]:
    """The sort key: by path, and by number for numeric names."""
    return tuple(part.zfill(_PADDED) if _is_number(part) else part for part in file.parts)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _raise(error: OSError) -> None:
    raise error


def _is_mail(file: Path) -> bool:
    if file.name.startswith(_MAC_COPY):
        return False
    if file.suffix.lower() in (".eml", ".emlx"):
        return True
    with file.open("rb") as opened:
        head = opened.read(_HEAD_BYTES)
    head = head[_start(head) :]
    if file.parent.name in ("cur", "new") or _is_number(file.name):
        return head.startswith(b"From ") or _HEADER.match(head) is not None
    if "mbox" in (file.name.lower(), file.suffix.lower().removeprefix(".")):
        return head.startswith(b"From ")
    timed = _TIMED.match(head)
    return _DATED.match(head) is not None or (timed is not None and _HEADER.match(head, timed.end()) is not None)


def _messages_of(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        head = opened.read(_HEAD_BYTES)
        opened.seek(_start(head))
        if head[_start(head) :].startswith(b"From "):
            yield from _split(opened)
            return
        content = opened.read()
    length = _LENGTH.match(content) if file.suffix.lower() == ".emlx" else None
    yield content[length.end() :][: int(length[1])] if length else content


def _start(head: bytes) -> int:
    """The position of the first non-blank line."""
    found = _NOTHING.match(head)
    return found.end() if found else 0


def _split(file: BinaryIO) -> Iterator[bytes]:
    """The messages of an mbox that begins here, without the lines `From ` and the blank lines that end them."""
    lines: list[bytes] | None = None
    for line, following in pairwise(chain(file, [b""])):
        if lines is None or _separates(line, following):
            if lines is not None:
                yield _joined(lines)
            lines = []
        else:
            lines.append(line)
    if lines is not None:
        yield _joined(lines)


def _separates(line: bytes, following: bytes) -> bool:
    """Whether a line begins the next message: a sentence may begin with `From ` too."""
    return line.startswith(b"From ") and bool(_DATED.match(line) or _HEADER.match(following))


def _joined(lines: list[bytes]) -> bytes:
    if lines and not lines[-1].strip(b"\r\n"):
        lines.pop()
    return b"".join(lines)
