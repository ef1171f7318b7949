"""The paths of objects in a store.

``<root>/<message_key>/<attachment_key>/<safe file name>`` and ``<root>/<message_key>/manifest.json``. Ids are hashed
because a Graph id may have 250 characters, is case-sensitive and may contain ``/``, while a path component takes 255
bytes and some file systems ignore case.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from attachments.foundation.message_id import normalized
from attachments.storage.errors import MalformedKey

KEY_LENGTH = 32
"""Hex digits in a key: 128 bits of SHA-256."""

MANIFEST_NAME = "manifest.json"

HOLD = "hold"
"""The name of a file beside the manifest that keeps the message from being purged."""

SHORT_KEY_LENGTH = 12
"""Hex digits of a key that suffice to recognise a message in a list; runs are named by them."""

_KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")
_SHORT_KEY = re.compile(rf"[0-9a-f]{{{SHORT_KEY_LENGTH}}}")
_KEY_DELIMITERS = re.compile(r"[/\\.]")
"""Characters next to a key in a path, a URL, or the resource of an event."""


_PATH_DEPTH = 3
_DIRECTION_CONTROLS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""Unicode classes that change the direction of a line (Unicode Standard Annex 9)."""
MAX_PATH_LENGTH = 1024
"""Characters of an object's path; this project's have at most 321, also in UTF-8 bytes."""


def message_key(message_id: str) -> str:
    """The key of a message: the first 32 hex digits of the SHA-256 of its id, without surrounding blanks."""
    return _hash(normalized(message_id))


def candidate_keys(named: str) -> tuple[str, ...]:
    """The possible keys of the message that a person means, the likeliest first.

    The person may give its id, its key, or a text with the key: a path or URL below the store, or the resource of an
    event. A text of 32 hex digits is a key, but ids are opaque and may look the same.
    """
    shown = filter(is_key, _KEY_DELIMITERS.split(normalized(named).lower()))
    return tuple(dict.fromkeys((*shown, message_key(named))))


def is_short_key(named: str) -> bool:
    """Whether it looks like the beginning of a key, which is the name of a run."""
    return _SHORT_KEY.fullmatch(normalized(named).lower()) is not None


def may_name_key(named: str) -> bool:
    """Whether the text looks like a message's key or its beginning."""
    return len(candidate_keys(named)) > 1 or is_short_key(named)


def attachment_key(attachment_id: str) -> str:
    """The key of an attachment within its message: the first 32 hex digits of the SHA-256 of its id."""
    return _hash(attachment_id)


def attachment_path(message_key: str, attachment_key: str, safe_name: str) -> str:
    """The key of an attachment's object, from the store's root. Raises MalformedKey for what is no key."""
    return f"{checked_key(message_key)}/{checked_key(attachment_key)}/{safe_name}"


def manifest_path(message_key: str) -> str:
    """The key of a message's manifest, from the store's root. Raises MalformedKey for what is no key."""
    return f"{checked_key(message_key)}/{MANIFEST_NAME}"


def is_attachment_path(path: str) -> bool:
    """Whether it has the form of an attachment's path: two keys and a name, and cannot leave the store."""
    parts = path.split("/")
    return len(parts) == _PATH_DEPTH and is_key(parts[0]) and is_key(parts[1]) and parts[2] not in {"", ".", ".."}


def is_object_path(path: str) -> bool:
    """Whether an attachment can have this path: not a hidden file, and no name that a store might treat as a path.

    Checked for each path in a manifest before it is read or removed, because others may write to the store.
    """
    name = path.rpartition("/")[2]
    return is_attachment_path(path) and is_possible(path) and not name.startswith(".") and "\\" not in name


def is_possible(path: str) -> bool:
    """Whether the text can be an object's path: safe names contain no control characters and are short enough."""
    return len(path) <= MAX_PATH_LENGTH and all(
        unicodedata.category(character) != "Cc" and unicodedata.bidirectional(character) not in _DIRECTION_CONTROLS
        for character in path
    )


def is_place_of(path: str | None, message_key: str, attachment_key: str) -> bool:
    """Whether the path can be that of this attachment of this message.

    Anyone who can write to the store can put another message's paths into a manifest.
    """
    return path is not None and is_object_path(path) and path.split("/")[:2] == [message_key, attachment_key]


def checked_object_path(path: str) -> str:
    """The path unchanged. Raises MalformedKey if no attachment can have it."""
    if not is_object_path(path):
        raise MalformedKey("not an attachment's path: expected two keys and a file name")
    return path


def is_hold(name: str) -> bool:
    """Whether a file of this name beside the manifest is a hold: ``hold``, as editors may have named it as well."""
    return name.partition(".")[0].lower() == HOLD


def key_prefix(parts: Sequence[str]) -> str:
    """The keys at the beginning of a path: those of its first two parts that are keys."""
    return "/".join(filter(is_key, parts[:2]))


def is_key(text: str) -> bool:
    """Whether the text has the form of a message key or an attachment key."""
    return _KEY.fullmatch(text) is not None


def checked_key(text: str) -> str:
    """The key unchanged. Raises MalformedKey for anything else, because an id could lead out of the root."""
    if not is_key(text):
        raise MalformedKey(f"not a key: expected {KEY_LENGTH} hex digits, as from message_key() and attachment_key()")
    return text


def _hash(identifier: str) -> str:
    # JSON may contain a lone surrogate; such an id is unusual but valid.
    return hashlib.sha256(identifier.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_LENGTH]
