"""An event is announced when Prefect can show it, however often it has to be sent."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.events import Event
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.domain.plan import stored_entry
from attachments.domain.selection import Filter
from attachments.emailgistics import Attachment
from attachments.flows import download_attachments
from attachments.flows.download_attachments import AttachmentOutcome, Message
from attachments.foundation.numerals import counted
from attachments.runs import announcements, artifacts
from attachments.runs.announcements import announce, event, send
from attachments.storage import attachment_key, message_key


class Prefect(ThreadingHTTPServer):
    """The two requests that matter, of a server that may lose what it has taken, as one that is killed does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.sent: list[str] = []
        """Ids, as they were taken."""
        self.kept: dict[str, dict[str, Any]] = {}
        self.loses = 0
        """How many of the next requests it takes and forgets."""
        self.largest_page = 0

    def take(self, events: list[dict[str, Any]]) -> None:
        self.sent += [each["id"] for each in events]
        if self.loses:
            self.loses -= 1
        else:
            self.kept.update({each["id"]: each for each in events})

    def page(self, asked: dict[str, Any]) -> dict[str, Any]:
        ids = asked["filter"]["id"]["id"]
        self.largest_page = max(self.largest_page, asked["limit"])
        found = [{**self.kept[one], "received": self.kept[one]["occurred"]} for one in ids if one in self.kept]
        return {"events": found[: asked["limit"]], "total": len(found), "next_page": None}


class _Answers(BaseHTTPRequestHandler):
    server: Prefect

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/events":
            self.server.take(body)
            self.send_response(204)
            self.end_headers()
            return
        assert self.path == "/api/events/filter"
        content = json.dumps(self.server.page(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        """Prefect's client asks for a token against forged requests; this is how a server says that it wants none."""
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Prefect]:
    monkeypatch.setattr(announcements, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(announcements, "LONGEST_PAUSE", 0.01)
    with Prefect() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        with temporary_settings({PREFECT_API_URL: url}), disable_run_logger():
            yield server
        server.shutdown()
        thread.join()


def an_event(event_id: UUID | None = None) -> Event:
    return event("example", about="message", subject="a", event_id=event_id or uuid4(), payload={})


def test_an_event_is_sent_once_and_read_back(prefect: Prefect) -> None:
    """One request is enough where Prefect keeps what it takes."""
    one = an_event()
    announce([one])
    assert prefect.sent == [str(one.id)]
    assert prefect.kept[str(one.id)]["resource"]["prefect.resource.id"] == "emailgistics.message.a"


def test_what_prefect_took_and_lost_is_sent_again(prefect: Prefect) -> None:
    """A server that is killed loses what it had not written; the same id makes it the same event."""
    prefect.loses = 2
    one = an_event()
    assert announce([one])
    assert prefect.sent == [str(one.id)] * 3
    assert str(one.id) in prefect.kept


def test_what_may_have_been_sent_before_is_looked_for_first(prefect: Prefect) -> None:
    """Only what Prefect does not have is sent, so that automations start once."""
    old, new = an_event(), an_event()
    send([old])
    announce([old, new], look_first=True)
    assert prefect.sent == [str(old.id), str(new.id)]


def test_many_events_are_looked_for_page_by_page(prefect: Prefect) -> None:
    """Prefect shows fifty at a time, and refuses to be asked for more."""
    events = [an_event() for _ in range(101)]
    announce(events)
    assert prefect.sent == [str(each.id) for each in events]
    assert prefect.largest_page == 50


def test_a_prefect_that_never_shows_an_event_does_not_hold_the_run_for_ever(prefect: Prefect) -> None:
    """Its persister may be off: it has taken the event several times, and the run goes on."""
    prefect.loses = 100
    assert not announce([an_event()])
    assert len(prefect.sent) == -(-announcements.LOOKS // announcements.SEND_AGAIN)


@pytest.mark.parametrize("damage", [Path.unlink, lambda manifest: manifest.write_text("{")], ids=["lost", "damaged"])
def test_what_a_lost_manifest_had_announced_is_looked_for_first(
    prefect: Prefect, damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored still proves what was announced: the manifest is rebuilt, and no automation starts again."""
    store = AttachmentStore(url=tmp_path.as_uri())
    message = Message(id="m", key=message_key("m"))
    listed = (Attachment(id="1", name="a.txt", size=1),)

    def fetched(missing: list[Attachment], *_: object) -> list[AttachmentOutcome]:
        stored = (store.store().write(message.key, attachment_key(one.id), "a.txt", [b"a"]) for one in missing)
        return [AttachmentOutcome(entry=stored_entry(*pair)) for pair in zip(missing, stored, strict=True)]

    for task in ("read_manifest", "write_manifest", "record_announcement"):
        monkeypatch.setattr(download_attachments, task, getattr(download_attachments, task).fn)
    monkeypatch.setattr(download_attachments, "list_attachments", lambda *_: listed)
    monkeypatch.setattr(download_attachments, "download_attachment", SimpleNamespace(map=fetched))
    monkeypatch.setattr(download_attachments, "_collect_outcome", lambda _, outcome: outcome)
    monkeypatch.setattr(artifacts, "_publish_table", lambda _: None)
    account = EmailgisticsAccount.model_construct()
    for _ in range(2):
        state = download_attachments._process_message(message, Filter(), account, store, force=False)
        assert state.is_completed()
        damage(tmp_path / message.key / "manifest.json")
    assert len(prefect.kept) == 1
    assert len(prefect.sent) == 1


def test_nothing_is_sent_of_nothing(prefect: Prefect) -> None:
    """No request is made for an empty list."""
    announce([])
    announce([], look_first=True)
    send([])
    assert prefect.sent == []
    assert prefect.largest_page == 0


def test_a_count_agrees_with_its_noun() -> None:
    """One attachment, and several."""
    assert [counted(n, "attachment") for n in (0, 1, 2, 1234)] == [
        "0 attachments",
        "1 attachment",
        "2 attachments",
        "1,234 attachments",
    ]
    assert counted(1, "mailbox", "mailboxes") == "1 mailbox"
    assert counted(2, "mailbox", "mailboxes") == "2 mailboxes"
