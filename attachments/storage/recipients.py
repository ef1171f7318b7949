"""Age recipients: the public keys that a store encrypts to, and what must never be taken for one.

A key that anybody can decrypt to is worse than none. On Curve25519 these are the points of low order (RFC 7748,
section 6.1): the shared secret is then known to everyone. age panics over one in `age1…`, and encrypts to one in
`ssh-ed25519 …` without a word.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any

import pyrage

from attachments.storage.errors import UnsupportedStore

MAX_RECIPIENTS = 64
"""Recipients of a store. Each adds about 100 bytes to every file."""

_EXPECTED = "write a public key there: age1…, ssh-ed25519 … or ssh-rsa …"
_PRIME = 2**255 - 19
_COORDINATE = 2**255 - 1
"""The bits of 32 bytes that count; the highest is ignored (RFC 7748, section 5)."""
_LOW_ORDER = frozenset(
    {
        0,
        1,
        _PRIME - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)
"""The u-coordinates of all points of low order on Curve25519 and its twist."""
_LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"  # of Bech32 (BIP 173), by value
_X25519 = re.compile(r"(?i)age1[02-9ac-hj-np-z]{58}")
_CHECKSUM = 6  # letters
_KEY_BYTES = 32

_PRIVATE = re.compile(r"(?i)AGE-SECRET-KEY|PRIVATE KEY")
_OTHER_KINDS = re.compile(
    r"age1(?:pq|tag|tagpq|yubikey|se|tpm|fido2-hmac)1|(?!ssh-(?:ed25519|rsa)\s)(?:ssh|ecdsa|sk)-[a-z0-9@.-]+(?=\s)"
)
"""What is a public key of another kind: age's plugins and post-quantum keys, and SSH's other algorithms."""


def split(text: str) -> list[str]:
    """The recipients in a variable: separated by commas, line breaks, or blanks before `age1` or `ssh-`.

    A line that begins with `#` is a comment, as in age's own files. Two commas in a row hold a blank entry between
    them, which `parse_recipients` refuses: a variable that was empty when this one was put together.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    parts = [part for line in lines for part in line.split(",")]
    return [entry.strip() for part in parts for entry in re.split(r"\s+(?=age1|ssh-)", part.strip())]


def parse_recipients(recipients: Sequence[str]) -> list[Any]:
    """The keys, as pyrage takes them. Raises UnsupportedStore that names the first unusable entry by its number."""
    if len(recipients) > MAX_RECIPIENTS:
        raise UnsupportedStore(f"there are {len(recipients)} age recipients; a store takes {MAX_RECIPIENTS} at most")
    # A recipient that is entered twice counts once.
    return [_recipient(text, number) for text, number in _each_once(recipients).items()]


def _each_once(recipients: Sequence[str]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for number, text in enumerate(recipients, 1):
        numbers.setdefault(text.strip(), number)
    return numbers


def _recipient(text: str, number: int) -> Any:
    """The parsed key. No error quotes its text, because it may be a private key by mistake."""
    if not text:
        raise UnsupportedStore(f"age recipient {number} is blank; remove the entry, or {_EXPECTED}")
    if _PRIVATE.search(text):
        raise UnsupportedStore(
            f"age recipient {number} is a private key, which must stay with its owner; enter its public key instead"
        )
    is_x25519 = text[:4].lower() == "age1"
    try:
        key = (pyrage.x25519 if is_x25519 else pyrage.ssh).Recipient.from_str(text)
    except pyrage.RecipientError:
        key = None
    if key is None:
        raise UnsupportedStore(f"age recipient {number} {_fault(text)}; {_EXPECTED}")
    if (_x25519_coordinate(text) if is_x25519 else _ed25519_coordinate(text)) in _LOW_ORDER:
        raise UnsupportedStore(
            f"age recipient {number} is a point of low order, so anyone could decrypt what is encrypted to it; "
            f"{_EXPECTED}"
        )
    return key


def _fault(text: str) -> str:
    if _OTHER_KINDS.match(text):
        return "is of a kind that is not supported"
    if text[:4].lower() == "age1":
        return "is mistyped or incomplete: its checksum is wrong"
    return "is not a public key that can be used (mistyped, incomplete, or an RSA key below 2,048 or above 4,096 bits)"


def _x25519_coordinate(text: str) -> int | None:
    """The u-coordinate of an `age1…` key; None for any other text."""
    if not _X25519.fullmatch(text):
        return None
    bits = 0
    for letter in text.lower()[4:-_CHECKSUM]:
        bits = bits << 5 | _LETTERS.index(letter)
    # 52 letters of 5 bits, the last 4 of which are padding.
    return (int.from_bytes((bits >> 4).to_bytes(_KEY_BYTES, "big"), "little") & _COORDINATE) % _PRIME


def _ed25519_coordinate(text: str) -> int | None:
    """The u-coordinate that age derives from an `ssh-ed25519` key (RFC 7748, section 4.1); None for other keys."""
    kind, _, rest = text.partition(" ")
    if kind != "ssh-ed25519":
        return None
    try:
        blob = base64.b64decode(rest.split()[0], validate=True)
    except (binascii.Error, IndexError):
        return None
    y = (int.from_bytes(blob[-_KEY_BYTES:], "little") & _COORDINATE) % _PRIME
    # For y = 1, the neutral element, this is 0 too.
    return (1 + y) * pow(1 - y, _PRIME - 2, _PRIME) % _PRIME
