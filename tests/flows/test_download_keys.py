"""A run of `download-attachments` may name its message by the key."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.domain.selection import Filter
from attachments.flows.backfill_attachments import named as backfilled
from attachments.flows.download_attachments import Message, download_attachments, resolve_message
from attachments.runs.child_runs import DownloadDeployment
from attachments.storage import Manifest, message_key, open_store

ID = "AAMkAGI1/xyz="


def named(text: str) -> Message:
    return Message(id=text, key=message_key(text))


def test_the_manifest_of_a_key_tells_the_id(tmp_path: Path) -> None:
    """In either case; an id is left as it is, and so is what no manifest knows: it may be an id that looks so."""
    store = AttachmentStore(url=tmp_path.as_uri())
    key = message_key(ID)
    manifest = Manifest(message_id=ID, message_key=key, updated=datetime.now(UTC))
    store.store().update_manifest(key, lambda _: manifest)
    assert resolve_message(named(key), store) == resolve_message(named(key.upper()), store) == named(ID)
    assert resolve_message(named(ID), store) == named(ID)
    unknown = message_key("never seen")
    assert resolve_message(named(unknown), store) == named(unknown)


def test_a_backfill_takes_a_message_by_its_key(tmp_path: Path) -> None:
    """It then knows its manifest, and skips what that settles; what no manifest knows is left to the message's run."""
    store = open_store(tmp_path.as_uri())
    key = message_key(ID)
    manifest = Manifest(message_id=ID, message_key=key, updated=datetime.now(UTC))
    store.update_manifest(key, lambda _: manifest)
    account = EmailgisticsAccount.model_construct()
    target = DownloadDeployment("backfill", uuid4(), None, None, Filter(), account, store)
    for text in (ID, key, key.upper()):
        assert backfilled(text, target).key == key
    unknown = message_key("never seen")
    assert backfilled(unknown, target).message_id == unknown


def test_a_manifest_that_was_altered_sends_a_run_to_no_other_message(tmp_path: Path) -> None:
    """Others may write to the store."""
    store = AttachmentStore(url=tmp_path.as_uri())
    key = message_key(ID)
    manifest = Manifest(message_id="another", message_key=key, updated=datetime.now(UTC))
    store.store().update_manifest(key, lambda _: manifest)
    assert resolve_message(named(key), store) == named(key)


@pytest.mark.parametrize("text", ["AAMkAGI1\u2026", "AAMk AGI1", "AAMk\nAGI1"])
def test_an_id_that_was_badly_copied_is_refused_before_anything_is_asked(text: str) -> None:
    """Emailgistics would answer 404, and a new message's run asks it again for half a minute."""
    state = download_attachments.fn(text)
    assert state.is_failed()
    assert (state.message or "").startswith("message_id is not a message id: it c")
