"""Keys are the same everywhere and for ever, and nothing else can take their place."""

from __future__ import annotations

import pytest

from attachments.storage.keys import attachment_key, attachment_path, is_key, manifest_path, message_key


def test_a_key_is_the_first_half_of_the_sha256_of_the_id() -> None:
    """Whoever knows an id can find the files with any SHA-256 tool."""
    assert message_key("abc") == attachment_key("abc") == "ba7816bf8f01cfea414140de5dae2223"


def test_ids_that_differ_in_case_alone_have_different_keys() -> None:
    """Graph ids are case-sensitive, where some file systems are not."""
    assert message_key("AAMkA") != message_key("AAMka")


@pytest.mark.parametrize("around", [" ", "\n", "\r\n", "\t", "\xa0", "\u2028", "\u200b", "\ufeff", " \r\n\ufeff "])
def test_what_comes_with_copying_an_id_does_not_make_it_another_message(around: str) -> None:
    """Blanks, line ends and invisible characters around it; those within it count."""
    assert message_key(f"{around}AAMkA{around}") == message_key("AAMkA")
    assert message_key(f"AAM{around}kA") != message_key("AAMkA")


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
