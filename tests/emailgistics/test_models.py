"""What is read of a listing."""

import json
import pickle

import pytest
from pydantic import ValidationError

from attachments.emailgistics import Attachment, BadAnswer
from attachments.emailgistics.models import ID_CHARACTERS, NAME_CHARACTERS, WORD_CHARACTERS, parse_listing

FULL = {
    "id": "AAMk/AD+Q=",
    "name": "invoice.pdf",
    "contentType": "application/pdf",
    "size": 1234,
    "attachmentType": "fileAttachment",
}


def listed(**changes: object) -> Attachment:
    (attachment,) = parse_listing(json.dumps({"attachments": [{**FULL, **changes}]}).encode())
    return attachment


def test_an_attachment_is_read_as_listed() -> None:
    """All documented fields arrive, under our names."""
    assert listed() == Attachment(
        id="AAMk/AD+Q=", name="invoice.pdf", content_type="application/pdf", size=1234, kind="fileAttachment"
    )


def test_unknown_fields_are_ignored() -> None:
    """Additive changes come unannounced."""
    assert listed(isInline=True, extra={"a": []}) == listed()


@pytest.mark.parametrize(
    ("kind", "downloadable"),
    [("fileAttachment", True), ("referenceAttachment", False), ("itemAttachment", False), ("newKind", False)],
)
def test_only_files_can_be_downloaded(kind: str, downloadable: bool) -> None:
    """Any other kind, also one that is new, is kept as it is."""
    attachment = listed(attachmentType=kind)
    assert attachment.kind == kind
    assert attachment.downloadable is downloadable


@pytest.mark.parametrize("kind", [None, "", 3])
def test_one_without_a_kind_counts_as_a_file(kind: object) -> None:
    """Trying it says what it is; not trying it would lose it without a word."""
    assert listed(attachmentType=kind).downloadable


@pytest.mark.parametrize("odd", [None, 17, [], {}, True])
def test_odd_text_has_a_default(odd: object) -> None:
    """A missing name or type costs nobody the attachment."""
    attachment = listed(name=odd, contentType=odd)
    assert attachment.name == ""
    assert attachment.content_type == "application/octet-stream"


@pytest.mark.parametrize("odd", [None, "1234", -1, 1.5, True, []])
def test_an_odd_size_is_unknown(odd: object) -> None:
    """The size is metadata; when it makes no sense it is not known, which is not the same as 0."""
    assert listed(size=odd).size is None


def test_a_whole_float_is_a_size() -> None:
    """JSON has one kind of number."""
    assert listed(size=1234.0).size == 1234


def test_missing_fields_have_defaults() -> None:
    """Only the id is indispensable."""
    (attachment,) = parse_listing(b'{"attachments": [{"id": "x"}]}')
    assert attachment == Attachment(id="x")
    assert attachment.downloadable


def test_a_lone_surrogate_in_a_name_costs_one_character() -> None:
    """The name can be encoded afterwards, and the other attachments are not lost."""
    attachments = parse_listing(b'{"attachments": [{"id": "x", "name": "a\\ud800b\\ud83d\\ude00.pdf"}, {"id": "y"}]}')
    assert [each.name for each in attachments] == ["a\ufffdb\U0001f600.pdf", ""]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"[]",
        b"{}",
        b'{"attachments": null}',
        b'{"attachments": {}}',
        b'{"attachments": [null]}',
        b'{"attachments": [[]]}',
        b'{"attachments": [{}]}',
        b'{"attachments": [{"id": null}]}',
        b'{"attachments": [{"id": ""}]}',
        b'{"attachments": [{"id": 7}]}',
        b'{"attachments": [{"id": "x\\ud800"}]}',
        b"\xff\xfe\xff",
        b"[" * 200_000,
        b'{"attachments": [{"id": "x", "size": 1' + b"0" * 5000 + b"}]}",
    ],
)
def test_anything_else_is_a_bad_answer(body: bytes) -> None:
    """An answer that cannot be read is refused as a whole: it is never "no attachments"."""
    with pytest.raises(BadAnswer) as raised:
        parse_listing(body)
    assert raised.value.__cause__ is None


def test_the_name_is_not_shown() -> None:
    """Neither `repr` nor `str` nor the refusal of a bad field tells a file's name."""
    attachment = listed(name="Jane Doe.pdf")
    assert "Jane" not in repr(attachment) + str(attachment)
    with pytest.raises(ValidationError) as raised:
        Attachment(id=["Jane Doe.pdf"])  # type: ignore[arg-type]
    assert "Jane" not in str(raised.value)


def test_an_attachment_is_a_value() -> None:
    """It cannot be changed, and comes out of a pickle, or of its own JSON, as it went in."""
    attachment = listed()
    with pytest.raises(ValidationError):
        attachment.name = "other"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(attachment)) == attachment
    assert Attachment.model_validate_json(attachment.model_dump_json()) == attachment
    assert len({attachment, listed()}) == 1


def test_every_field_has_a_limit() -> None:
    """A sender may give a file a name of millions of characters; it goes into manifests, filters and answers."""
    attachment = listed(
        name="a" * 5_000_000 + ".pdf", contentType="x" * 5_000_000, attachmentType="y" * 5_000_000, size=10**4000
    )
    assert len(attachment.name) == NAME_CHARACTERS
    assert attachment.name.endswith("aaa.pdf")
    assert len(attachment.content_type) == len(attachment.kind) == WORD_CHARACTERS
    assert attachment.size is None
    with pytest.raises(BadAnswer):
        listed(id="A" * (ID_CHARACTERS + 1))
    assert len(listed(id="A" * ID_CHARACTERS).id) == ID_CHARACTERS
