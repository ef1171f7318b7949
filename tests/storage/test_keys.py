"""Keys are the same everywhere and for ever, and nothing else can take their place."""

from __future__ import annotations

import pytest

from attachments.storage.keys import (
    attachment_key,
    attachment_path,
    candidate_keys,
    is_key,
    is_short_key,
    manifest_path,
    message_key,
)


def test_a_key_is_the_first_half_of_the_sha256_of_the_id() -> None:
    """Given an id, any SHA-256 tool finds the files."""
    assert message_key("abc") == attachment_key("abc") == "ba7816bf8f01cfea414140de5dae2223"


def test_ids_that_differ_in_case_alone_have_different_keys() -> None:
    """Graph ids are case-sensitive, where some file systems are not."""
    assert message_key("AAMkA") != message_key("AAMka")


@pytest.mark.parametrize("around", [" ", "\n", "\r\n", "\t", "\xa0", "\u2028", "\u200b", "\ufeff", " \r\n\ufeff "])
def test_what_comes_with_copying_an_id_does_not_make_it_another_message(around: str) -> None:
    """Blanks, line ends and invisible characters around it; those within it count."""
    assert message_key(f"{around}AAMkA{around}") == message_key("AAMkA")
    assert message_key(f"AAM{around}kA") != message_key("AAMkA")


KEY, PART = message_key("a message"), attachment_key("a part")


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f" {KEY.upper()}\n",
        f"/srv/attachments/{KEY}/manifest.json",
        f"/srv/attachments/{KEY}/",
        f"s3://bucket/folder/{KEY}/{PART}/Rechnung 1.pdf",
        f"{KEY}/{PART}/a.pdf",
        f"D:\\attachments\\{KEY}\\hold",
        f"emailgistics.message.{KEY}",
    ],
)
def test_a_message_may_be_named_by_anything_that_shows_its_key(text: str) -> None:
    """Paths, addresses and the resource of an event; what looks so may be an id all the same, and is tried last."""
    keys = candidate_keys(text)
    assert (keys[0], keys[-1]) == (KEY, message_key(text))


@pytest.mark.parametrize("text", [f"AAMk{KEY}", f"{KEY}=", f"A/{KEY[:31]}/b", KEY[:12], "AAMkAGI1/xyz="])
def test_anything_else_is_an_id(text: str) -> None:
    """So are digits within other characters."""
    assert candidate_keys(text) == (message_key(text),)


def test_the_name_of_a_run_is_a_short_key() -> None:
    """It is the beginning of a key, so the message cannot be told from it."""
    assert is_short_key(f" {KEY[:12].upper()}\n")
    assert not any(map(is_short_key, (KEY, KEY[:11], KEY[:13], "AAMkAGI1/xyz", "")))


def test_half_a_surrogate_pair_in_an_id_has_a_key() -> None:
    """JSON can carry such an id; it must not stop a message."""
    assert is_key(message_key("id-\ud800"))
    assert message_key("id-\ud800") != message_key("id-\ud801")


def test_paths_are_put_together_from_keys() -> None:
    """The layout that the documentation promises."""
    one, two = message_key("m"), attachment_key("a")
    assert attachment_path(one, two, "a.pdf") == f"{one}/{two}/a.pdf"
    assert manifest_path(one) == f"{one}/manifest.json"


@pytest.mark.parametrize(
    "text", ["", "AAMkAGI2", "..", "../" * 10 + "ab", "A" * 32, "a" * 31, "a" * 33, "a" * 32 + "\n"]
)
def test_what_is_no_key_never_becomes_a_path(text: str) -> None:
    """An id in a key's place could lead out of the root, so it is refused."""
    with pytest.raises(ValueError, match="not a key"):
        manifest_path(text)
    with pytest.raises(ValueError, match="not a key"):
        attachment_path(message_key("m"), text, "a.pdf")
