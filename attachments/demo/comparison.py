"""Compares the stored files with the mail's attachments."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from attachments.demo.originals import File, Original
from attachments.storage import Manifest, ManifestAttachment

BLOCK = 1024 * 1024


class Verdict(Enum):
    """The result of comparing one file."""

    EQUAL = "equal"
    DIFFERENT = "DIFFERENT"
    MISSING = "MISSING"
    UNEXPECTED = "UNEXPECTED"
    NOT_WANTED = "–"

    @property
    def is_fine(self) -> bool:
        """Whether this is the expected result."""
        return self in (Verdict.EQUAL, Verdict.NOT_WANTED)


@dataclass(frozen=True)
class Row:
    """One attachment: its outcome in the manifest, its path from the store's root, and the verdict."""

    subject: str
    name: str
    outcome: str
    bytes: int | None
    where: str
    verdict: Verdict


def compare(original: Original, root: Path, message_key: str) -> tuple[Row, ...]:
    """A row for each attachment of the mail, and for each unexpected file in the store."""
    manifest = root / message_key / "manifest.json"
    known = Manifest.from_bytes(manifest.read_bytes(), message_key=message_key) if manifest.exists() else None
    named = {entry.name: entry for entry in known.attachments} if known else {}
    rows = [_row(original.subject, file, named.get(file.name), root) for file in original.files]
    if not original.files:
        rows = [Row(original.subject, "", "nothing to do", None, "", Verdict.NOT_WANTED)]
    explained = {row.where for row in rows}
    return *rows, *(
        Row(original.subject, Path(where).name, "?", (root / where).stat().st_size, where, Verdict.UNEXPECTED)
        for where in sorted(set(_stored(root, message_key)) - explained)
    )


def _row(subject: str, file: File, entry: ManifestAttachment | None, root: Path) -> Row:
    where = (entry.key if entry else None) or ""
    outcome = entry.outcome if entry else "nothing recorded"
    return Row(subject, file.name, outcome, file.bytes, where, _verdict(file, entry, root))


def _verdict(file: File, entry: ManifestAttachment | None, root: Path) -> Verdict:
    if file.sha256 is None:  # an attached mail, which is recorded but not stored
        return Verdict.NOT_WANTED if entry is not None and entry.outcome == "unsupported" else Verdict.MISSING
    if entry is None or entry.key is None or not (root / entry.key).is_file():
        return Verdict.MISSING
    found = root / entry.key
    same = found.stat().st_size == file.bytes == entry.bytes and sha256_of(found) == file.sha256 == entry.sha256
    return Verdict.EQUAL if same else Verdict.DIFFERENT


def _stored(root: Path, message_key: str) -> Iterator[str]:
    for path in (root / message_key).rglob("*"):
        if path.is_file() and path != root / message_key / "manifest.json":
            yield path.relative_to(root).as_posix()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
