"""Encryption with age, to public keys only, before data leaves this machine.

The worker has only recipients (public keys), and cannot decrypt what it has stored. The format is age v1
(https://age-encryption.org/v1): authenticated, in chunks of 64 KiB, readable with any age implementation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pyrage

from attachments.storage.content import Transform, Write
from attachments.storage.errors import CannotDecrypt, StoreError, UnsupportedStore
from attachments.storage.recipients import parse_recipients

SUFFIX = ".age"
"""The suffix of an encrypted object's name."""

_IDENTITY = re.compile(r"AGE-SECRET-KEY-\S+", re.ASCII)


def encryptor(recipients: Sequence[str]) -> Transform:
    """A transform that encrypts a stream to all of these recipients: `age1…`, `ssh-ed25519 …` or `ssh-rsa …`.

    Any one of their owners can decrypt it. Raises UnsupportedStore for an invalid recipient, and for an empty list. The
    transform raises StoreError.
    """
    if not recipients:
        raise UnsupportedStore("there is no age recipient to encrypt to; add one, or do not encrypt")
    keys = parse_recipients(recipients)

    def seal(chunks: Iterable[bytes], write: Write) -> None:
        try:
            _run_age(pyrage.encrypt_io, chunks, write, keys)
        except _AgeError:
            pass
        else:
            return
        raise StoreError("age could not encrypt to the store's recipients; check each of them in the store's block")

    return seal


def decryptor(identities: str) -> Transform:
    """A transform that decrypts a stream with any of the identities in a file's text.

    The file is one that age-keygen wrote (lines `AGE-SECRET-KEY-1…`), or an SSH private key without a passphrase.
    The transform's output is complete and authentic only once it has returned; it raises CannotDecrypt. This function
    raises UnsupportedStore for a file without a usable identity.
    """
    keys = _identities(identities)

    def unseal(chunks: Iterable[bytes], write: Write) -> None:
        try:
            _run_age(pyrage.decrypt_io, chunks, write, keys)
        except _AgeError:
            problem = "it was truncated or altered, is not an age file, or was encrypted to other keys"
        else:
            return
        raise CannotDecrypt(f"it cannot be decrypted: {problem}")

    return unseal


class _AgeError(Exception):
    """pyrage rejected its input."""


class _Source:
    """A file over chunks, from which pyrage reads."""

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
    """A file over a function, to which pyrage writes."""

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
        """Nothing is buffered here."""


def _run_age(work: Any, chunks: Iterable[bytes], write: Write, keys: Sequence[Any]) -> None:
    """Run pyrage. Errors of `chunks` and `write` are raised unchanged, without pyrage's text, which would quote
    them."""
    source, sink = _Source(chunks), _Sink(write)
    refused = False
    try:
        work(source, sink, keys)
    except (pyrage.EncryptError, pyrage.DecryptError, OSError):
        refused = True
    except BaseException as error:
        # A panic in age is not an Exception; it would end a worker's thread.
        if type(error).__module__ != "pyo3_runtime":
            raise
        refused = True
    own = source.error or sink.error
    if own is not None:
        raise own
    if refused:
        raise _AgeError


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
