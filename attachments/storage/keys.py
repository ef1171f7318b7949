"""Where things stand in a store.

``<root>/<message_key>/<attachment_key>/<safe file name>`` and ``<root>/<message_key>/manifest.json``. Ids are
hashed because a Graph id runs to 250 characters, is case-sensitive and may hold ``/``, where a path component
takes 255 bytes and some file systems ignore case.
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
"""Hex digits of a key that are enough to recognise a message in a list, as the names of runs have them."""

_KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")
_SHORT_KEY = re.compile(rf"[0-9a-f]{{{SHORT_KEY_LENGTH}}}")
_AROUND = re.compile(r"[/\\.]")
"""What stands around a key: in a path or an address, and in the resource of an event."""


_PARTS = 3
_TURNS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""What turns the direction of a line (Unicode Standard Annex 9)."""
LONGEST_PATH = 1024
"""Characters of an object's path; ours have 321 at most, in UTF-8 as well."""


def message_key(message_id: str) -> str:
    """The key of a message: the first 32 hex digits of the SHA-256 of its id, without blanks around it."""
    return _hashed(normalized(message_id))


def candidate_keys(named: str) -> tuple[str, ...]:
    """The keys that a message may have which a person names, the likeliest first.

    That is by its id, by its key, or by what shows the key: a path or an address below the store, or the resource of an
    event. A text of 32 hex digits is a key; but ids are opaque, and may look so too.
    """
    shown = filter(is_key, _AROUND.split(normalized(named).lower()))
    return tuple(dict.fromkeys((*shown, message_key(named))))


def is_short_key(named: str) -> bool:
    """Whether it looks like the beginning of a key, as the names of runs have it."""
    return _SHORT_KEY.fullmatch(normalized(named).lower()) is not None


def may_name_key(named: str) -> bool:
    """Whether a message is named by its key or the beginning of that, as far as the text's form tells."""
    return len(candidate_keys(named)) > 1 or is_short_key(named)


def attachment_key(attachment_id: str) -> str:
    """The key of an attachment within its message: the first 32 hex digits of the SHA-256 of its id."""
    return _hashed(attachment_id)


def attachment_path(message_key: str, attachment_key: str, safe_name: str) -> str:
    """The key of an attachment's object, from the store's root. Raises MalformedKey for what is no key."""
    return f"{checked_key(message_key)}/{checked_key(attachment_key)}/{safe_name}"


def manifest_path(message_key: str) -> str:
    """The key of a message's manifest, from the store's root. Raises MalformedKey for what is no key."""
    return f"{checked_key(message_key)}/{MANIFEST_NAME}"


def is_attachment_path(path: str) -> bool:
    """Whether it has the form of an attachment's: two keys and a name, with nothing that could lead out of there."""
    parts = path.split("/")
    return len(parts) == _PARTS and is_key(parts[0]) and is_key(parts[1]) and parts[2] not in {"", ".", ".."}


def is_object_path(path: str) -> bool:
    """Whether an object of ours can stand under it: no hidden file, and no name that a store might take for a path.

    It is asked of what a manifest says before anything is read or removed: others may write to the store.
    """
    name = path.rpartition("/")[2]
    return is_attachment_path(path) and is_possible(path) and not name.startswith(".") and "\\" not in name


def is_possible(path: str) -> bool:
    """Whether the text can be an object's path: safe names hold nothing that controls a line, and are not that long."""
    return len(path) <= LONGEST_PATH and all(
        unicodedata.category(character) != "Cc" and unicodedata.bidirectional(character) not in _TURNS
        for character in path
    )


def is_place_of(path: str | None, message_key: str, attachment_key: str) -> bool:
    """Whether an object of ours can stand under the path, and is this attachment's of this message.

    Anyone who can write to the store can write into a message's manifest that its files are another message's.
    """
    return path is not None and is_object_path(path) and path.split("/")[:2] == [message_key, attachment_key]


def checked_object_path(path: str) -> str:
    """The path as it is. Raises MalformedKey for what no object of ours can stand under."""
    if not is_object_path(path):
        raise MalformedKey("not an attachment's path: expected two keys and a file name")
    return path


def is_hold(name: str) -> bool:
    """Whether a file of this name beside the manifest is a hold: ``hold``, as editors may have named it as well."""
    return name.partition(".")[0].lower() == HOLD


def known_place(parts: Sequence[str]) -> str:
    """Where something stands that a writer left: those of the first two parts of its name that are keys."""
    return "/".join(filter(is_key, parts[:2]))


def is_key(text: str) -> bool:
    """Whether the text has the form of a message key or an attachment key."""
    return _KEY.fullmatch(text) is not None


def checked_key(text: str) -> str:
    """The key as it is. Raises MalformedKey for anything else: an id could lead out of the root."""
    if not is_key(text):
        raise MalformedKey(f"not a key: expected {KEY_LENGTH} hex digits, as message_key() and attachment_key() make")
    return text


def _hashed(identifier: str) -> str:
    # JSON can carry half a surrogate pair; such an id is odd, but still an id.
    return hashlib.sha256(identifier.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_LENGTH]
