"""`attachments preview`: what it judges, how it shows it, and what it says when it cannot; tests/e2e has the rest."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import SecretStr

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.cli.actions.message_preview import Preview, ResolvedDeployment, StoredRecord, build_preview, to_lines
from attachments.cli.main import main
from attachments.domain.selection import Filter
from attachments.emailgistics import Attachment
from attachments.storage import Manifest, ManifestAttachment, StoredObject, attachment_key, message_key

MESSAGE = "AAMkAGI1/xyz="
KEY = message_key(MESSAGE)
PICKY = Filter.model_validate({"exclude": [{"content_types": ["image/*"], "max_size": 20000}]})
HOSTILE = "inv\u202efdp.exe\x1b[2J"


def attachment(identifier: str, **fields: Any) -> Attachment:
    values = {"id": identifier, "name": identifier, "contentType": "application/pdf", "size": 1234, **fields}
    return Attachment.model_validate({"attachmentType": "fileAttachment", **values})


def manifest(*entries: tuple[str, str]) -> Manifest:
    attachments = [
        ManifestAttachment.model_validate({"id": name, "attachment_key": attachment_key(name), "outcome": outcome})
        for name, outcome in entries
    ]
    return Manifest(message_id=MESSAGE, message_key=KEY, updated=datetime.now(UTC), attachments=tuple(attachments))


def found(
    listed: list[Attachment], recorded: Any = "none", wanted: Filter = PICKY, *, force: bool = False, **existing: Any
) -> Preview:
    record = StoredRecord(recorded, {attachment_key(name): stored for name, stored in existing.items()})
    return build_preview(MESSAGE, "download-attachments/default", listed, record, wanted, force=force)


def test_each_attachment_is_judged_as_a_run_would() -> None:
    """What stands or was purged comes before the filter, and the filter before what cannot be downloaded."""
    listed = [
        attachment("a.pdf"),
        attachment("logo.png", contentType="image/png", size=300),
        attachment("link", attachmentType="referenceAttachment"),
        attachment("stored.png", contentType="image/png", size=300),
        attachment("purged.pdf"),
        attachment("failed.pdf"),
        attachment("a.pdf"),
    ]
    entries = [("stored.png", "stored"), ("purged.pdf", "purged"), ("failed.pdf", "failed")]
    preview = found(listed, manifest(*entries))
    assert [(one.name, one.action) for one in preview.attachments] == [
        ("a.pdf", "take"),
        ("logo.png", "drop"),
        ("link", "cannot"),
        ("stored.png", "stored"),
        ("purged.pdf", "purged"),
        ("failed.pdf", "take"),
    ]
    assert [one.rule for one in preview.attachments if one.rule] == [
        "exclude[0]: content_types image/*, max_size 20000"
    ]
    assert preview.manifest == "incomplete"
    assert preview.nothing_to_do is False


def test_an_object_that_exists_without_a_manifest_is_stored() -> None:
    """A run does not download it again, whatever its filter says; and the manifest does not settle the message."""
    object_ = StoredObject(f"{KEY}/{attachment_key('logo')}/logo.png", 300, "0" * 64, datetime.now(UTC))
    listed = [attachment("logo", contentType="image/png", size=300), attachment("a.pdf")]
    preview = found(listed, logo=object_)
    assert [one.action for one in preview.attachments] == ["stored", "take"]
    assert (preview.manifest, preview.nothing_to_do) == ("none", False)


SCAN = "Safe Attachments Scan In Progress"


def test_a_message_that_a_scanner_holds_back_is_not_said_to_have_no_attachments() -> None:
    """Its placeholder is none, and tells that there are some: a run would wait, and end without all of them."""
    alone = found([attachment("1", name=SCAN, size=1)])
    assert (alone.pending, alone.attachments) == ("scan-in-progress", ())
    wait = "A scanner's placeholder is listed, so an attachment is still to come. Run this again in a minute."
    assert list(to_lines(alone))[1:] == [wait]
    beside = found([attachment("a.pdf"), attachment("1", name=SCAN, size=1)])
    assert list(to_lines(beside))[2:] == ["Of 1 attachment: 1 to take.", wait]
    forced = found([attachment("1", name=SCAN, size=1)], force=True)
    assert (forced.pending, list(to_lines(forced))[-1]) == (None, "Of 1 attachment: 1 to take.")


def test_an_empty_list_that_contradicts_what_a_run_was_told_is_not_final() -> None:
    """A manifest says that the list was not final: a run would read an empty one again."""
    unfinished = manifest().model_copy(update={"pending": "not-listed"})
    preview = found([], unfinished)
    assert preview.pending == "not-listed"
    assert list(to_lines(preview))[1:] == [
        "The webhook says that there are attachments, and Emailgistics lists none yet. Run this again in a minute."
    ]
    assert list(to_lines(found([])))[1:] == ["It has no attachments."]


def test_a_deployment_that_forces_takes_what_is_stored_and_what_was_purged() -> None:
    """And never has nothing to do. The filter still counts."""
    listed = [attachment("a"), attachment("b"), attachment("logo", contentType="image/png", size=300)]
    object_ = StoredObject(f"{KEY}/{attachment_key('a')}/a.pdf", 300, "0" * 64, datetime.now(UTC))
    recorded = manifest(("a", "stored"), ("b", "purged"), ("logo", "filtered"))
    forced, usual = (found(listed, recorded, force=force, a=object_) for force in (True, False))
    assert [one.action for one in forced.attachments] == ["take", "take", "drop"]
    assert [one.action for one in usual.attachments] == ["stored", "purged", "drop"]
    assert (forced.force, forced.nothing_to_do) == (True, False)
    assert next(to_lines(forced)).endswith(
        "; manifest: complete; force: stored attachments are downloaded again and compared."
    )


@pytest.mark.parametrize(
    ("recorded", "state", "is_done"),
    [
        ("none", "none", False),
        ("unreadable", "unreadable", False),
        (manifest(("a.pdf", "stored")), "complete", True),
        (manifest(("a.pdf", "failed")), "incomplete", False),
    ],
)
def test_a_run_with_nothing_to_do_is_told(recorded: Any, state: str, is_done: bool) -> None:
    """That is: the manifest settles what this filter wants, so that the message is not even listed."""
    preview = found([attachment("a.pdf")], recorded)
    assert (preview.manifest, preview.nothing_to_do) == (state, is_done)
    assert ("A run would do nothing" in list(to_lines(preview))[-1]) == is_done


def test_a_hostile_name_cannot_fool_the_terminal() -> None:
    """Neither can a content type; the name stands at the end of its own line."""
    listed = [
        attachment(HOSTILE, contentType="image/png\n\x1b[31m\u202e", size=3),
        attachment("nothing.pdf", name=None, size=None),
    ]
    lines = list(to_lines(found(listed)))
    kind, rule = r"image/png\n\x1b[31m\u202e", "exclude[0]: content_types image/*, max_size 20000"
    dropped = f"drop                3  {kind}  [{rule}]"
    assert lines == [
        f"Message {KEY}, as download-attachments/default sees it; manifest: none.",
        f'{dropped}  "inv\\u202efdp.exe\\x1b[2J"',
        'take                ?  application/pdf  ""',
        "Of 2 attachments: 1 to take, 1 dropped by the filter.",
    ]
    assert list(to_lines(found([])))[-1] == "It has no attachments."
    document = json.dumps(found(listed).model_dump(mode="json"))
    assert document.isascii()
    assert document.isprintable()


@pytest.mark.parametrize("named", [KEY, KEY.upper()])
def test_a_key_without_a_manifest_is_told_as_it_is(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the key that the person knows, not a key of the key."""
    target = ResolvedDeployment(
        deployment="default",
        filter=PICKY,
        account=EmailgisticsAccount(api_key=SecretStr("k" * 20)),
        store=AttachmentStore(url=tmp_path.as_uri()),
    )
    monkeypatch.setattr("attachments.cli.actions.message_preview._resolve_deployment", lambda _: target)
    assert main(["preview", named]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{KEY} has the form of a message key, and the store has no manifest")
    assert main(["preview", named[:12]]) == 1
    assert capsys.readouterr().err.startswith(f"{KEY[:12]} is the beginning of a message key")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (None, "PREFECT_API_URL is not set."),
        ("http://127.0.0.1:9/api", "Prefect does not respond"),
        ("http://127.0.0.1:4200api", "PREFECT_API_URL is not a valid URL."),
    ],
)
def test_without_prefect_it_says_so(url: str | None, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, with status 1."""
    with temporary_settings({PREFECT_API_URL: url}):
        assert main(["preview", MESSAGE]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert text in told.err
    assert len(told.err.splitlines()) == 1
