"""Ids that look like Microsoft Graph's: opaque, case-sensitive, 150 to 250 characters.

Half of them use the alphabet with `-` and `_`, the other half the one with `+` and `/`; all end in `=`
(api/messages/list-attachments).
"""

import base64
import hashlib
import secrets

_SIGNS_AT = (30, 60)  # where the two signs are put, so that each id surely holds them


def message_id(content: bytes) -> str:
    """An id of 152 characters that depends on the content alone."""
    return "AAMk" + _opaque(b"message:" + content, 110)


def attachment_id(message: str, index: int) -> str:
    """An id of 204 characters that depends on the message's id and the attachment's place on it."""
    return "AAMk" + _opaque(f"attachment:{index}:{message}".encode("utf-8", "surrogatepass"), 149)


def new_message_id() -> str:
    """A new random id, so that two runs never share a message by accident."""
    return message_id(secrets.token_bytes(32))


def internet_message_id(message: str) -> str:
    """A Message-ID header (RFC 5322, 3.6.4) for a message that has none."""
    return f"<{_hex(message)[:32]}@sandbox.example>"


def conversation_id(message: str) -> str:
    """An id of 64 characters for the conversation that the message begins."""
    digest = bytes.fromhex(_hex("conversation:" + message))
    return "AAQkAGVtYWlsZ2lzdGlj" + base64.urlsafe_b64encode(digest).decode("ascii")


def _hex(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _opaque(content: bytes, length: int) -> str:
    stream = hashlib.shake_256(content).digest(length)
    if stream[0] % 2:
        encode, signs = base64.urlsafe_b64encode, "-_"
    else:
        encode, signs = base64.standard_b64encode, "+/"
    letters = list(encode(stream).decode("ascii"))
    for position, sign in zip(_SIGNS_AT, signs, strict=True):
        letters[position] = sign
    return "".join(letters)
