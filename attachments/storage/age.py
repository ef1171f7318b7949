"""Encryption before anything leaves this machine: age, to public keys alone.

The worker holds recipients (public keys) and can't read what it has stored. The format is age v1
(https://age-encryption.org/v1): authenticated, in chunks of 64 KiB, readable with any age implementation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pyrage

from attachments.storage.content import Transform, Write
from attachments.storage.errors import CannotDecrypt, StoreError, UnsupportedStore
from attachments.storage.recipients import parsed

SUFFIX = ".age"
"""What the name of an encrypted object ends with."""

_IDENTITY = re.compile(r"AGE-SECRET-KEY-\S+", re.ASCII)


def sealer(recipients: Sequence[str]) -> Transform:
    """What encrypts a stream to all of these: `age1…`, `ssh-ed25519 …` or `ssh-rsa …`.

    Any one of their owners can decrypt it. Raises UnsupportedStore for what is no recipient, and for none at all. What
    the sealer raises of its own is a StoreError.
    """
    if not recipients:
        raise UnsupportedStore("there is no age recipient to encrypt to; name one, or do not encrypt")
    keys = parsed(recipients)

    def seal(chunks: Iterable[bytes], write: Write) -> None:
        try:
            _through(pyrage.encrypt_io, chunks, write, keys)
        except _Refused:
            pass
        else:
            return
        raise StoreError("age could not encrypt to the store's recipients; check each of them in the store's block")

    return seal


def opener(identities: str) -> Transform:
    """What decrypts a stream with any of the identities in a file's text.

    The file is one that age-keygen wrote (lines `AGE-SECRET-KEY-1…`), or an SSH private key without a passphrase.
    What the opener writes is all there, and as it was encrypted, only once it has returned. It raises CannotDecrypt;
    this raises UnsupportedStore for a file without a usable identity.
    """
    keys = _identities(identities)

    def unseal(chunks: Iterable[bytes], write: Write) -> None:
        try:
            _through(pyrage.decrypt_io, chunks, write, keys)
        except _Refused:
            problem = "it was cut or altered, it is no age file, or it was encrypted to other keys"
        else:
            return
        raise CannotDecrypt(f"it cannot be decrypted: {problem}")

    return unseal


class _Refused(Exception):
    """pyrage did not like what it read."""


class _Source:
    """Chunks as a file that pyrage reads from."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")
        self.error: BaseException | None = None

    def read(self, size: int) -> bytes:
        try:
            while not self._rest:
                chunk = next(self._chunks, None)
                if chunk is None:
                    return b""
                self._rest = memoryview(chunk)
        except BaseException as error:
            self.error = error
            raise
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)


class _Sink:
    """A function as a file that pyrage writes to."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            self._write(data)
        except BaseException as error:
            self.error = error
            raise
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here."""


def _through(work: Any, chunks: Iterable[bytes], write: Write, keys: Sequence[Any]) -> None:
    """Runs it. What `chunks` and `write` raise comes out as it is, not in pyrage's words, which would quote it."""
    source, sink = _Source(chunks), _Sink(write)
    refused = False
    try:
        work(source, sink, keys)
    except (pyrage.EncryptError, pyrage.DecryptError, OSError):
        refused = True
    except BaseException as error:
        # A panic inside age is no Exception. It would end a worker's thread, and its text is none of ours.
        if type(error).__module__ != "pyo3_runtime":
            raise
        refused = True
    own = source.error or sink.error
    if own is not None:
        raise own
    if refused:
        raise _Refused


def _identities(text: str) -> list[Any]:
    try:
        if "PRIVATE KEY-----" in text:
            return [pyrage.ssh.Identity.from_buffer(text.encode())]
        found = [pyrage.x25519.Identity.from_str(key) for key in _IDENTITY.findall(text)]
    except pyrage.IdentityError:
        found = []
    if not found:
        raise UnsupportedStore(
            "there is no usable age identity in the file; it should hold a line AGE-SECRET-KEY-1…, as age-keygen "
            "writes it, or an SSH private key without a passphrase"
        )
    return found
