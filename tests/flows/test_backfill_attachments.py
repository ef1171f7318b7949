"""A backfill of what a mailbox received: which mailbox is meant, what is handed on, and how much there may be."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prefect.logging import disable_run_logger

from attachments.domain.backfill_request import Window
from attachments.domain.progress import Counts
from attachments.emailgistics import EmailgisticsClient
from attachments.flows.backfill_attachments import _Received
from attachments.runs.errors import NotConfigured
from attachments.runs.fan_out import MessageRef

START = datetime(2026, 1, 1, tzinfo=UTC)
BOX = SimpleNamespace(id="box-1", address="Claims@Example.com", name="Claims", active=True)


class Reports:
    """The vendor's client, as far as a backfill asks it."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def mailboxes(self) -> Sequence[Any]:
        return [SimpleNamespace(id="box-0", address="other@example.com", name="", active=True), BOX]

    def received_messages(
        self, mailbox_id: str, start: datetime, end: datetime, *, on_wait: Any = None
    ) -> Iterator[Any]:
        self.asked.append((mailbox_id, start, end))
        for day in range(10):
            received = None if day == 3 else start + timedelta(days=day)
            yield SimpleNamespace(message_id=f"m{day}", received=received, conversation_id=f"c{day}")


def received(mailbox: str) -> tuple[_Received, Reports]:
    reports = Reports()
    return _Received(Window(mailbox, START, START + timedelta(days=20)), cast("EmailgisticsClient", reports)), reports


@pytest.mark.parametrize("mailbox", ["box-1", "claims@example.com", "CLAIMS@EXAMPLE.COM"])
def test_a_mailbox_is_known_by_its_id_or_its_address(mailbox: str) -> None:
    """Ids are case-sensitive, addresses are not. What the report tells is handed on."""
    stream, reports = received(mailbox)
    with disable_run_logger():
        found = list(stream)
    assert reports.asked == [("box-1", START, START + timedelta(days=20))]
    assert found[1] == MessageRef(
        message_id="m1", mailbox="Claims@Example.com", received=START + timedelta(days=1), conversation_id="c1"
    )
    assert len(found) == 10


@pytest.mark.parametrize("mailbox", ["BOX-1", "nobody@example.com"])
def test_an_unknown_mailbox_is_refused_before_a_report_is_run(mailbox: str) -> None:
    """With both causes, since the vendor does not tell which; and without the address."""
    with pytest.raises(NotConfigured, match=r"no such mailbox, or the API key may not see it") as caught:
        received(mailbox)
    assert mailbox not in str(caught.value)


def test_how_many_there_may_be_follows_from_the_span_that_is_read() -> None:
    """Nothing is said at first; nine days of twenty read, and nine messages: twenty."""
    stream, _ = received("box-1")
    assert stream.total(Counts(seen=0)) is None
    with disable_run_logger():
        list(stream)
    assert stream.total(Counts(seen=9)) == 20
