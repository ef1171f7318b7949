"""Encryption to age recipients: what stands in a store is of no use without the identity."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest

from attachments.storage import Encryption, Store, open_store
from attachments.storage.age import decryptor, encryptor
from attachments.storage.content import pour
from attachments.storage.errors import AlreadyExists, CannotDecrypt, UnsupportedStore

from .samples import ATTACHMENT, CONTENT, MESSAGE, PLACE, in_chunks, objects, sha256

OWNER = pyrage.x25519.Identity.generate()
OTHER = pyrage.x25519.Identity.generate()
RECIPIENT, IDENTITY = str(OWNER.to_public()), f"# created: 2026\n# public key\n{OWNER}\n"
SIZES = [0, 1, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 1_000_003]


@pytest.fixture
def sealed(root: Path) -> Store:
    return open_store(str(root), encryption=Encryption(age_recipients=(RECIPIENT, str(OTHER.to_public()))))


def ciphertext(content: bytes, *recipients: str) -> bytes:
    out = bytearray()
    pour(in_chunks(content, 7919), out.extend, encryptor(recipients or [RECIPIENT]))
    return bytes(out)


def decrypted(content: bytes, identity: str = IDENTITY) -> bytes:
    out = bytearray()
    pour(in_chunks(content, 7919), out.extend, decryptor(identity))
    return bytes(out)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_encrypted_decrypts_to_the_same_bytes(size: int) -> None:
    """At every boundary of age's chunks of 64 KiB, however the bytes are cut on the way."""
    content = os.urandom(size)
    assert decrypted(ciphertext(content)) == content


@pytest.mark.parametrize("size", SIZES)
def test_any_age_program_reads_it(size: int) -> None:
    """The owner needs nothing of ours: here age's own one-shot call."""
    content = os.urandom(size)
    assert pyrage.decrypt(ciphertext(content), [OWNER]) == content


def test_each_recipient_can_decrypt_it_and_nobody_else() -> None:
    """Several owners, for instance one whose key lies in a safe."""
    both = ciphertext(CONTENT, RECIPIENT, str(OTHER.to_public()))
    assert decrypted(both) == decrypted(both, str(OTHER)) == CONTENT
    with pytest.raises(CannotDecrypt):
        decrypted(both, str(pyrage.x25519.Identity.generate()))


@pytest.mark.parametrize("kept", [0, 1, 100, 64 * 1024, 65536 + 300, 130_000, -1, -17])
def test_a_truncated_ciphertext_is_refused(kept: int) -> None:
    """Also when it was cut between two of age's chunks, each of which is authentic."""
    with pytest.raises(CannotDecrypt, match="it was truncated or altered"):
        decrypted(ciphertext(bytes(200_000))[:kept])


@pytest.mark.parametrize("at", [0, 30, 150, 400, 70_000, -1])
def test_an_altered_ciphertext_is_refused(at: int) -> None:
    """One bit, in the header or anywhere else."""
    whole = bytearray(ciphertext(bytes(200_000)))
    whole[at] ^= 1
    with pytest.raises(CannotDecrypt):
        decrypted(bytes(whole))


@pytest.mark.parametrize("error", [OSError("theirs"), KeyboardInterrupt(), ValueError("theirs")])
@pytest.mark.parametrize("side", ["source", "sink"])
def test_what_goes_wrong_on_either_side_comes_out_as_it_is(error: BaseException, side: str) -> None:
    """A broken connection stays a broken connection, which can be tried again."""

    def source() -> Iterator[bytes]:
        yield bytes(300_000)
        if side == "source":
            raise error
        yield bytes(300_000)

    def write(data: bytes) -> None:
        if side == "sink" and len(data) > 1000:
            raise error

    with pytest.raises(type(error)) as caught:
        pour(source(), write, encryptor([RECIPIENT]))
    assert caught.value is error


def test_the_raw_bytes_in_the_store_tell_nothing(sealed: Store, root: Path) -> None:
    """Neither the contents nor a part of them stand there; the name says what it is."""
    content = b"canary contents " * 10_000
    written = sealed.write(MESSAGE, ATTACHMENT, "a.pdf", in_chunks(content))
    assert written.key == f"{PLACE}/a.pdf.age"
    (raw,) = objects(root).values()
    assert b"canary" not in raw
    assert raw.startswith(b"age-encryption.org/v1\n")
    assert (written.bytes, written.sha256) == (len(content), sha256(content))
    assert (written.stored_bytes, written.stored_sha256) == (len(raw), sha256(raw))
    assert decrypted(raw) == content
    with pytest.raises(CannotDecrypt):
        decrypted(raw, str(pyrage.x25519.Identity.generate()))


def test_the_longest_name_keeps_its_extensions(sealed: Store) -> None:
    """`.age` is part of the 255 bytes that a name may have."""
    name = sealed.write(MESSAGE, ATTACHMENT, "n" * 400 + ".pdf", [b"x"]).key.rpartition("/")[2]
    assert len(name) == 255
    assert name.endswith("n.pdf.age")


def test_writing_the_same_again_is_recognised(sealed: Store, root: Path) -> None:
    """Every encryption differs, but what was encrypted is the same: nothing is stored twice."""
    first = sealed.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    before = objects(root)
    assert sealed.write(MESSAGE, ATTACHMENT, "b.pdf", [CONTENT]) == first
    assert sealed.stored(MESSAGE) == {ATTACHMENT: first}
    assert objects(root) == before
    with pytest.raises(AlreadyExists):
        sealed.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT + b"x"])


def test_what_was_stored_before_encryption_began_is_recognised(sealed: Store, root: Path) -> None:
    """And the other way round: recipients may come and go."""
    plain = open_store(str(root))
    first = plain.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT])
    assert sealed.write(MESSAGE, ATTACHMENT, "a.pdf", [CONTENT]) == first
    other = "0" * 32
    second = sealed.write(MESSAGE, other, "a.pdf", [CONTENT])
    allowed = open_store(str(root), encryption=Encryption(allow_plaintext=True))
    assert allowed.write(MESSAGE, other, "a.pdf", [CONTENT]) == second


@pytest.mark.parametrize("text", ["", "x", "AGE-SECRET-KEY-1X", "age1x", "ssh-ed25519 x", str(OWNER)], ids=range(6))
def test_what_is_no_public_key_is_refused(text: str) -> None:
    """Also a private key, which must not even be shown: it has no business here."""
    with pytest.raises(UnsupportedStore, match="recipient 2") as caught:
        encryptor([RECIPIENT, text])
    assert len(text) < 6 or text not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "nothing", "AGE-SECRET-KEY-1X", RECIPIENT, "-----BEGIN PRIVATE KEY-----\nx"], ids=range(5)
)
def test_what_is_no_identity_is_refused(text: str) -> None:
    """With what the file should hold."""
    with pytest.raises(UnsupportedStore, match="no usable age identity"):
        decryptor(text)


def test_an_ssh_key_serves_as_well(tmp_path: Path) -> None:
    """An SSH key works as a recipient."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    ssh, raw, none = serialization.PrivateFormat.OpenSSH, serialization.Encoding.PEM, serialization.NoEncryption()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    assert decrypted(ciphertext(CONTENT, public.decode()), key.private_bytes(raw, ssh, none).decode()) == CONTENT
