"""What the storage tests store, and how they look at what is there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attachments.storage import Manifest, ManifestAttachment, attachment_key, message_key

MESSAGE_ID = "AAMkAGI2/with+odd=characters"
MESSAGE = message_key(MESSAGE_ID)
ATTACHMENT_ID = "AAMkAGI2-attachment"
ATTACHMENT = attachment_key(ATTACHMENT_ID)
PLACE = f"{MESSAGE}/{ATTACHMENT}"

# Put together here, so that a traceback's source lines don't show it.
CANARY = "-".join(("Kanarienvogel", "Gehaltsliste")) + ".pdf"

CONTENT = b"%PDF-1.7 " + bytes(range(256)) * 400


def in_chunks(content: bytes, size: int = 1000) -> Iterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def objects(root: Path) -> dict[str, bytes]:
    """Everything in the store that a reader can see, by key."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.relative_to(root).parts[0].startswith(".")
    }


def leftovers(root: Path) -> list[str]:
    """Files on their way in."""
    return sorted(path.name for path in (root / ".incoming").iterdir())


def entry(name: str = "a.pdf", outcome: str = "stored", **more: Any) -> ManifestAttachment:
    identifier = more.pop("id", name)
    fields = {"id": identifier, "attachment_key": attachment_key(identifier), "name": name, "outcome": outcome}
    return ManifestAttachment.model_validate({**fields, **more})


def manifest(*entries: ManifestAttachment, **more: Any) -> Manifest:
    fields = {
        "message_id": MESSAGE_ID,
        "message_key": MESSAGE,
        "deployment": "download-attachments/default",
        "updated": datetime(2026, 11, 22, 12, 0, tzinfo=UTC),
        "attachments": entries,
    }
    return Manifest.model_validate({**fields, **more})
