"""A list that is not final is read again for a while, before a run takes it as it is."""

from collections.abc import Iterable
from typing import Any

import pytest

from attachments.blocks import EmailgisticsAccount
from attachments.emailgistics import Attachment
from attachments.flows import download_attachments
from attachments.flows.download_attachments import Message
from attachments.storage import message_key

SCAN = "Safe Attachments Scan In Progress"


def read(
    monkeypatch: pytest.MonkeyPatch, lists: Iterable[list[str]], *, force: bool, is_backlog: bool = False
) -> tuple[list[str], str | None, int]:
    """The names that a run goes on with, why they may not be all, and how often it has asked."""
    asked: list[list[str]] = []
    answers = iter(lists)

    def list_attachments(*_: Any) -> tuple[Attachment, ...]:
        asked.append(next(answers, asked[-1] if asked else []))
        return tuple(Attachment(id=name, name=name) for name in asked[-1])

    monkeypatch.setattr(download_attachments, "list_attachments", list_attachments)
    monkeypatch.setattr(download_attachments, "FRESH_PAUSES", (0.0,) * 4)
    monkeypatch.setattr(download_attachments, "is_low_priority", lambda: is_backlog)
    message = Message(id="m", key=message_key("m"), has_attachments=True)
    account = EmailgisticsAccount.model_construct()
    listed, pending = download_attachments._list_until_final(message, account, force=force)
    return [attachment.name for attachment in listed], pending, len(asked)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("first", [[], [SCAN], ["a.pdf", SCAN]])
def test_a_fresh_list_is_read_again_until_it_is_final(
    monkeypatch: pytest.MonkeyPatch, first: list[str], force: bool
) -> None:
    """With `force` too: a deployment may have it for all its mail."""
    assert read(monkeypatch, [first, first, ["a.pdf", "b.pdf"]], force=force) == (["a.pdf", "b.pdf"], None, 3)


@pytest.mark.parametrize(("listed", "why"), [([], "not-listed"), (["a.pdf", SCAN], "scan-in-progress")])
def test_with_force_it_is_taken_as_it_is_in_the_end(
    monkeypatch: pytest.MonkeyPatch, listed: list[str], why: str
) -> None:
    """A sender may name a file as a scanner does, and a webhook be wrong. In a backfill nothing is waited for."""
    assert read(monkeypatch, [listed], force=True) == (listed, None, 5)
    assert read(monkeypatch, [listed], force=True, is_backlog=True) == (listed, None, 1)
    real = [name for name in listed if name != SCAN]
    assert read(monkeypatch, [listed], force=False) == (real, why, 5)
    assert read(monkeypatch, [listed], force=False, is_backlog=True) == (real, why, 1)
