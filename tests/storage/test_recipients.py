"""Age recipients: what is no key, or one that protects nothing, is refused by its number, before it is encrypted to."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attachments.storage import Encryption, open_store
from attachments.storage.age import encryptor
from attachments.storage.content import pour
from attachments.storage.errors import StoreError, UnsupportedStore
from attachments.storage.recipients import MAX_RECIPIENTS, parse_recipients, split

from .samples import CONTENT

RECIPIENT = str(pyrage.x25519.Identity.generate().to_public())
OTHER = str(pyrage.x25519.Identity.generate().to_public())
LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
PRIME = 2**255 - 19
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
LOW_ORDER = [0, 1, PRIME - 1, *ORDER_8, PRIME, PRIME + 1]
"""The last two are other ways to write the first two."""
ED25519_LOW_ORDER = [1, PRIME - 1, 0]
"""As y-coordinates: points of order 1, 2 and 4; those of order 8 are found below."""


def bech32(data: bytes) -> str:
    """An `age1…` text with a right checksum (BIP 173), written separately so that it shares nothing with the code."""

    def checksum(values: Iterable[int]) -> int:
        state = 1
        for value in values:
            top, state = state >> 25, (state & 0x1FFFFFF) << 5 ^ value
            for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
                state ^= generator if top >> bit & 1 else 0
        return state

    number = int.from_bytes(data, "big") << 4
    values = [number >> 5 * place & 31 for place in range(51, -1, -1)]
    prefix = [*(ord(letter) >> 5 for letter in "age"), 0, *(ord(letter) & 31 for letter in "age")]
    check = checksum([*prefix, *values, 0, 0, 0, 0, 0, 0]) ^ 1
    values += [check >> 5 * place & 31 for place in range(5, -1, -1)]
    return "age1" + "".join(LETTERS[value] for value in values)


def ssh(kind: str, *fields: bytes) -> str:
    """A line as in `authorized_keys`."""
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in (kind.encode(), *fields))
    return f"{kind} {base64.b64encode(blob).decode()} me@host"


def ed25519_of_order_8() -> int:
    """The y of the points whose u-coordinate is that of order 8: y = (u - 1) / (u + 1)."""
    return (ORDER_8[0] - 1) * pow(ORDER_8[0] + 1, PRIME - 2, PRIME) % PRIME


def test_the_tests_own_encoder_agrees_with_age() -> None:
    """Else what follows would be refused for its checksum."""
    assert str(pyrage.x25519.Recipient.from_str(bech32(bytes(range(32))))) == bech32(bytes(range(32)))


@pytest.mark.parametrize("text", ["", " ", "\t", "\n", "\xa0"], ids=repr)
def test_a_blank_recipient_is_refused(text: str) -> None:
    """It would encrypt to fewer owners than was meant; alone, to nobody."""
    with pytest.raises(UnsupportedStore, match="age recipient 2 is blank"):
        parse_recipients([RECIPIENT, text])
    with pytest.raises(UnsupportedStore, match="age recipient 1 is blank"):
        open_store("test-memory://x/root", encryption=Encryption(age_recipients=(text,)))


@pytest.mark.parametrize("number", LOW_ORDER, ids=str)
@pytest.mark.parametrize("top", [0, 2**255], ids=["", "with the bit that does not count"])
def test_a_point_of_low_order_is_refused(number: int, top: int) -> None:
    """Its checksum is right, and the secret that it makes is known to all. age panics over it, which ends a thread."""
    if number + top >= 2**256:
        pytest.skip("has no 32 bytes")
    text = bech32((number + top).to_bytes(32, "little"))
    pyrage.x25519.Recipient.from_str(text)
    with pytest.raises(UnsupportedStore, match=r"age recipient 2 is a point of low order.*write a public key"):
        parse_recipients([RECIPIENT, text])


@pytest.mark.parametrize("y", [*ED25519_LOW_ORDER, ed25519_of_order_8()], ids=["1", "2", "4", "8"])
@pytest.mark.parametrize("sign", [0, 2**255], ids=["", "of the other sign"])
def test_an_ssh_key_of_low_order_is_refused(y: int, sign: int) -> None:
    """age encrypts to it silently, and anyone who has the file can decrypt it."""
    text = ssh("ssh-ed25519", (y + sign).to_bytes(32, "little"))
    with pytest.raises(UnsupportedStore, match="age recipient 1 "):
        parse_recipients([text])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RECIPIENT[:-1] + ("q" if RECIPIENT[-1] != "q" else "p"), "is mistyped or incomplete: its checksum is wrong"),
        (RECIPIENT[:-5], "is mistyped or incomplete"),
        (RECIPIENT + RECIPIENT, "is mistyped or incomplete"),
        (f"{RECIPIENT} {OTHER}", "is mistyped or incomplete"),
        ("age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t", "of a kind that is not supported"),
        ("age1pq1" + "q" * 1900, "of a kind that is not supported"),
        (ssh("ecdsa-sha2-nistp256", b"nistp256", b"\x04" + bytes(64)), "of a kind that is not supported"),
        (ssh("sk-ssh-ed25519@openssh.com", bytes(32), b"ssh:"), "of a kind that is not supported"),
        (ssh("ssh-dss", b"\1", b"\1", b"\1", b"\1"), "of a kind that is not supported"),
        ("ssh-ed25519 AAAA", "is not a public key|of a kind"),
        ("AGE-SECRET-KEY-1QQ", "is a private key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "is a private key"),
        ("nonsense\x1b[2J", "is not a public key that can be used"),
    ],
    ids=range(13),
)
def test_an_unusable_recipient_is_refused_by_its_number(text: str, said: str) -> None:
    """With what is wrong, and without its text: it may be a private key."""
    with pytest.raises(UnsupportedStore, match=f"age recipient 3 .*({said})") as caught:
        parse_recipients([RECIPIENT, OTHER, text])
    assert text not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("bits", [1024, 8192])
def test_an_rsa_key_that_is_too_short_or_too_long_is_refused(bits: int) -> None:
    """age takes 2,048 to 4,096 bits."""
    modulus = (1 << bits - 1 | 1).to_bytes(bits // 8 + 1, "big")
    with pytest.raises(UnsupportedStore, match=r"age recipient 1 .*RSA key below 2,048 or above 4,096 bits"):
        parse_recipients([ssh("ssh-rsa", b"\1\0\1", modulus)])


def test_usable_keys_of_each_kind_are_taken() -> None:
    """With blanks around them, in capitals, with a comment; and one that is named twice counts once."""
    key = rsa.generate_private_key(65537, 2048).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert len(parse_recipients([f" {RECIPIENT}\n", OTHER.upper(), f"{key.decode()} me@host", RECIPIENT])) == 3
    with pytest.raises(UnsupportedStore, match="64 at most"):
        parse_recipients([RECIPIENT] * (MAX_RECIPIENTS + 1))


def test_a_panic_inside_age_is_a_store_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever key it may be that we do not know of: the worker's thread survives, and the text is ours."""
    monkeypatch.setattr("attachments.storage.recipients._LOW_ORDER", frozenset())
    seal = encryptor([bech32(bytes(32))])
    with pytest.raises(StoreError, match="age could not encrypt to the store's recipients"):
        pour([CONTENT], lambda _: None, seal)


def test_nothing_is_encrypted_to_nobody() -> None:
    """A caller that has lost its recipients is told."""
    with pytest.raises(UnsupportedStore, match="there is no age recipient"):
        encryptor([])


SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAUA me@host"


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        (RECIPIENT, [RECIPIENT]),
        (f" {RECIPIENT},{OTHER} ", [RECIPIENT, OTHER]),
        (f"{RECIPIENT}, {OTHER}", [RECIPIENT, OTHER]),
        (f"{RECIPIENT} {OTHER}", [RECIPIENT, OTHER]),
        (f"# ours\n{RECIPIENT}\n\n  # theirs\n{SSH}\n", [RECIPIENT, SSH]),
        (f"{SSH} {RECIPIENT} {SSH}", [SSH, RECIPIENT, SSH]),
        (f"{RECIPIENT},,{OTHER}", [RECIPIENT, "", OTHER]),
        (f"{RECIPIENT},", [RECIPIENT, ""]),
        (",", ["", ""]),
        ("", []),
        (" \n ", []),
        ("# nothing\n", []),
    ],
    ids=range(12),
)
def test_a_variable_holds_several_recipients(text: str, entries: list[str]) -> None:
    """Separated by commas, line breaks or blanks. What a variable lost that was put into this one is noticed."""
    assert split(text) == entries
