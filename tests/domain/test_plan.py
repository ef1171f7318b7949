"""What is decided of each part of a message; tests/cli/test_preview.py has what the preview makes of it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from attachments.domain.plan import (
    is_settled,
    new_entry,
    real_attachments,
    settled_entry,
    unwanted_entry,
    why_not_final,
    with_download_name,
)
from attachments.domain.selection import Filter
from attachments.emailgistics import Attachment
from attachments.storage import Manifest, ManifestAttachment, StoredObject, attachment_key, message_key

MESSAGE = "AAMkAGI1/xyz="
NO_PROGRAMS = Filter.model_validate({"exclude": [{"names": ["*.exe"]}]})
PDFS = Filter.model_validate({"include": [{"content_types": ["application/pdf"]}]})
EXISTING = {attachment_key("a"): StoredObject("k", 3, "0" * 64, datetime.now(UTC))}


def attachment(name: str = "a.pdf", content_type: str = "application/pdf", **fields: Any) -> Attachment:
    return Attachment.model_validate({"id": "a", "name": name, "content_type": content_type, **fields})


def manifest(entry: ManifestAttachment) -> Manifest:
    return Manifest(
        message_id=MESSAGE, message_key=message_key(MESSAGE), updated=datetime.now(UTC), attachments=(entry,)
    )


@pytest.mark.parametrize(
    ("recorded", "exists", "wanted", "kind", "outcome", "forced"),
    [
        (None, False, Filter(), "fileAttachment", None, None),
        (None, False, NO_PROGRAMS, "fileAttachment", "filtered", "filtered"),
        (None, True, NO_PROGRAMS, "fileAttachment", "stored", "filtered"),
        ("stored", False, NO_PROGRAMS, "fileAttachment", "stored", "filtered"),
        ("purged", False, Filter(), "fileAttachment", "purged", None),
        ("purged", True, Filter(), "fileAttachment", "purged", None),
        ("failed", False, Filter(), "fileAttachment", None, None),
        ("filtered", False, Filter(), "fileAttachment", None, None),
        (None, False, Filter(), "itemAttachment", "unsupported", "unsupported"),
        (None, False, NO_PROGRAMS, "itemAttachment", "filtered", "filtered"),
    ],
)
def test_what_is_stored_comes_before_the_filter_and_the_filter_before_the_kind(
    recorded: Any, exists: bool, wanted: Filter, kind: str, outcome: str | None, forced: str | None
) -> None:
    """With `force`, what is stored does not count."""
    listed = attachment("setup.exe", kind=kind)
    known = manifest(new_entry(listed, outcome=recorded)) if recorded else None
    for force, expected in ((False, outcome), (True, forced)):
        entry = settled_entry(listed, wanted, known, EXISTING if exists else {}, force=force)
        assert (entry.outcome if entry else None) == expected
    assert not is_settled(known, wanted, force=True)


@pytest.mark.parametrize("nameless", ["", " ", "...", "\u200b", "/"])
@pytest.mark.parametrize(
    ("wanted", "content_type", "undecided"),
    [
        (Filter(), "application/pdf", False),
        (PDFS, "application/pdf", False),
        (PDFS, "image/png", False),
        (PDFS, "application/octet-stream", True),
        (NO_PROGRAMS, "application/pdf", True),
    ],
)
def test_without_a_name_only_what_depends_on_it_waits_for_the_download(
    nameless: str, wanted: Filter, content_type: str, undecided: bool
) -> None:
    """And the message is not settled before."""
    listed = attachment(nameless, content_type)
    assert wanted.needs_name(listed) is undecided
    assert not wanted.needs_name(attachment("a.bin", content_type))
    if undecided:
        assert settled_entry(listed, wanted, None, {}) is None
        assert not is_settled(manifest(new_entry(listed, outcome="filtered", rule="x")), wanted)
        link = settled_entry(attachment(nameless, content_type, kind="referenceAttachment"), wanted, None, {})
        assert link is not None
        assert link.outcome == "unsupported"


@pytest.mark.parametrize(
    ("file_name", "name"),
    [("setup.exe.", "setup.exe."), (None, "attachment"), ("..", "attachment"), ("", "attachment")],
)
def test_the_name_of_a_download_is_recorded_and_decides_from_then_on(file_name: str | None, name: str) -> None:
    """So that a later run neither opens the download again nor thinks that something is left to do."""
    found = with_download_name(attachment("", "application/octet-stream"), file_name)
    assert found.name == name
    for wanted, is_wanted in ((NO_PROGRAMS, "exe" not in name), (PDFS, False)):
        entry = unwanted_entry(found, wanted)
        assert (entry is None) is is_wanted
        if entry is not None:
            known = manifest(entry)
            assert is_settled(known, wanted)
            again = settled_entry(attachment("", "application/octet-stream"), wanted, known, {})
            assert again is not None
            assert (again.outcome, again.name, again.rule) == ("filtered", name, entry.rule)


def test_a_listed_name_stays() -> None:
    """It is what the filter has seen; a header that differs does not get round the filter."""
    assert with_download_name(attachment("a.pdf"), "setup.exe") == attachment("a.pdf")


@pytest.mark.parametrize(
    ("names", "has_attachments", "why", "left"),
    [
        ([], None, None, 0),
        ([], False, None, 0),
        ([], True, "not-listed", 0),
        (["a.pdf"], True, None, 1),
        (["Safe Attachments Scan In Progress"], None, "scan-in-progress", 0),
        (["a.pdf", " safe attachments scan in progress.MSG "], True, "scan-in-progress", 1),
        (["ATP Scan In Progress.eml"], False, "scan-in-progress", 0),
        (["Safe Attachments Scan In Progress Report.pdf", "scan in progress"], True, None, 2),
    ],
)
def test_a_list_is_final_when_it_neither_contradicts_the_webhook_nor_has_a_placeholder(
    names: list[str], has_attachments: bool | None, why: str | None, left: int
) -> None:
    """A placeholder is no attachment, but for `force`: a sender may name a file so."""
    listed = [attachment(name) for name in names]
    assert why_not_final(listed, has_attachments=has_attachments) == why
    assert len(real_attachments(listed)) == left
    assert len(real_attachments(listed, force=True)) == len(names)


@pytest.mark.parametrize(
    ("pending", "has_attachments", "settled"),
    [(None, None, True), (None, False, True), (None, True, False), ("not-listed", None, False), ("newer", None, False)],
)
def test_an_empty_manifest_settles_nothing_that_was_announced(
    pending: str | None, has_attachments: bool | None, settled: bool
) -> None:
    """Neither for a run whose webhook named attachments, nor for any other while the list was not final."""
    values = {"message_id": MESSAGE, "message_key": message_key(MESSAGE), "updated": datetime.now(UTC)}
    empty = Manifest.model_validate({**values, "pending": pending})
    assert is_settled(empty, Filter(), has_attachments=has_attachments) is settled
    assert empty.complete is (pending is None)
    assert Manifest.from_bytes(empty.to_bytes(), message_key=empty.message_key) == empty
    assert (b"pending" in empty.to_bytes()) is (pending is not None)
    final = empty.merged_with(manifest(new_entry(attachment(), outcome="unsupported")))
    assert (final.pending, final.complete) == (None, True)
    assert final.merged_with(empty).pending == pending
