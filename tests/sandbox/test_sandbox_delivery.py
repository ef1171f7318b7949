"""Webhooks: posted as the vendor does, three times at most, judged by the envelope."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from attachments.sandbox.process import Sandbox, SandboxError
from tests.sandbox.conftest import SUCCESS, Receiver


@pytest.fixture
def deliver(sandbox: Sandbox, receiver: Receiver):
    """Delivers one message by a script and tells outcome and statuses."""

    def run(*script: Any, **fields: Any) -> tuple[str, list[int | None]]:
        receiver.script = list(script) or [SUCCESS]
        message = sandbox.control.add_message(attachments=[{"name": "a"}])
        order = {"message_id": message["id"], "url": receiver.url, "retry_delay": 0.01, **fields}
        (row,) = sandbox.control.deliver(**order)
        return row["outcome"], [attempt["status"] for attempt in row["attempts"]]

    return run


def test_the_payload_has_the_documented_fields(sandbox: Sandbox, receiver: Receiver):
    """One POST with the secret as bearer token and the message as JSON, as POST /messages showed it."""
    message = sandbox.control.add_message(
        id="A/=", mailbox="m@x.example", sender="Zoë <z@x.example>", subject="Grüße \ud800", body_text="hi",
        conversation_id="C", received="2026-11-22T10:00:00Z", attachments=[{"name": "a"}],
    )  # fmt: skip
    (delivery,) = sandbox.control.deliver(message_id="A/=", url=receiver.url, secret="s3cret")
    ((headers, payload, _),) = receiver.posts
    assert headers["Authorization"] == "Bearer s3cret"
    assert headers["Content-Type"] == "application/json"
    assert payload | {"timestamp": ""} == message["webhook"] | {"timestamp": ""}
    assert payload.pop("timestamp")
    assert payload.pop("internetMessageId")
    sender = {"emailAddress": {"name": "Zoë", "address": "z@x.example"}}
    assert payload == {
        "id": "A/=",
        "event": "received",
        "received": "2026-11-22T10:00:00Z",
        "mailbox": "m@x.example",
        "sender": sender,
        "from": sender,
        "to": [{"emailAddress": {"name": "", "address": "m@x.example"}}],
        "cc": [],
        "subject": "Grüße \ud800",
        "hasAttachments": True,
        "conversationId": "C",
        "bodyText": "hi",
    }
    assert delivery["outcome"] == "success"
    assert delivery["attempts"][0]["body"] == SUCCESS[2].decode()


def test_inline_parts_do_not_count_as_attachments(sandbox: Sandbox, receiver: Receiver):
    """As in Microsoft Graph: a PDF in the text is listed, and the webhook says that there is nothing."""
    message = sandbox.control.add_message(attachments=[{"name": "in-text.pdf", "inline": True}])
    sandbox.control.deliver(message_id=message["id"], url=receiver.url)
    assert receiver.posts[0][1]["hasAttachments"] is False


def test_without_a_secret_there_is_no_authorization(sandbox: Sandbox, receiver: Receiver):
    """No secret was set: the header is absent; no attachments: the payload says so; no text: no bodyText."""
    message = sandbox.control.add_message()
    sandbox.control.deliver(message_id=message["id"], url=receiver.url)
    headers, payload, _ = receiver.posts[0]
    assert "Authorization" not in headers
    assert payload["hasAttachments"] is False
    assert "bodyText" not in payload


@pytest.mark.parametrize("broken", [(500, {}, b""), (503, {}, b"busy"), (599, {}, b"{}"), None])
def test_connection_errors_and_5xx_are_retried_twice(deliver, broken: Any):
    """Three attempts at most; a success among them counts."""
    seen = broken and broken[0]
    assert deliver(broken) == ("failed", [seen] * 3)
    assert deliver(broken, SUCCESS) == ("success", [seen, 200])
    assert deliver(broken, broken, SUCCESS) == ("success", [seen, seen, 200])
    assert deliver(broken, broken, broken, SUCCESS) == ("failed", [seen] * 3)


def test_nobody_listens(sandbox: Sandbox):
    """A refused connection is tried three times, and told."""
    message = sandbox.control.add_message()
    (row,) = sandbox.control.deliver(message_id=message["id"], url="http://127.0.0.1:1/x")
    assert row["outcome"] == "failed"
    assert len(row["attempts"]) == 3
    assert all(attempt["status"] is None and "Connect" in attempt["error"] for attempt in row["attempts"])


def test_a_time_out_is_retried(deliver, receiver: Receiver):
    """An answer that does not come in time is a connection error."""
    assert deliver(30.0, 30.0, SUCCESS, timeout=0.2) == ("success", [None, None, 200])


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429])
def test_a_4xx_ends_it_at_once(deliver, status: int):
    """No second attempt after a 4xx, nor after a 429 without Retry-After."""
    assert deliver((status, {}, b"{}"), SUCCESS) == ("failed", [status])


@pytest.mark.parametrize("status", [201, 202, 204, 301, 307])
def test_neither_success_nor_retry(deliver, status: int):
    """Another 2xx, and a redirect, which is not followed, are failures that end it."""
    assert deliver((status, {"Location": "/"}, b""), SUCCESS) == ("failed", [status])


def test_429_with_retry_after_is_waited_for(deliver, receiver: Receiver):
    """Retry-After in seconds or as a date is honoured, within the three attempts."""
    assert deliver((429, {"Retry-After": "0"}, b"{}")) == ("failed", [429] * 3)
    receiver.posts.clear()
    assert deliver((429, {"Retry-After": "1"}, b"{}"), SUCCESS) == ("success", [429, 200])
    assert receiver.posts[1][2] - receiver.posts[0][2] >= 1
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    assert deliver((429, {"Retry-After": past}, b"{}"), SUCCESS) == ("success", [429, 200])
    assert deliver((429, {"Retry-After": "soon"}, b"{}"), SUCCESS) == ("failed", [429])


def test_retry_after_is_honoured_up_to_ten_seconds():
    """A longer Retry-After is cut to ten seconds."""
    from attachments.sandbox.delivery import Attempt, Posting, pause_before_retry

    posting, attempt = Posting({}, "http://x"), Attempt(429, None, 0.0, "")
    assert [pause_before_retry(posting, attempt, value, 0) for value in ("9", "10", "11", "86400")] == [9, 10, 10, 10]
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert pause_before_retry(posting, attempt, later, 0) == 10


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"status": "success"}', "success"),
        (b'{"status": "error", "message": "no"}', "error"),
        (b'{"status": "Success"}', "failed"),
        (b'{"status": "ok"}', "failed"),
        (b'{"state": "success"}', "failed"),
        (b'["success"]', "failed"),
        (b"success", "failed"),
        (b"", "failed"),
    ],
)
def test_the_envelope_decides_and_is_never_retried(deliver, body: bytes, outcome: str):
    """A 200 ends it; only the word `success` in the envelope is success."""
    assert deliver((200, {}, body), SUCCESS) == (outcome, [200])


def test_many_at_once(sandbox: Sandbox, receiver: Receiver):
    """`times` posts identical deliveries side by side: none is answered before all have come."""
    message = sandbox.control.add_message()
    receiver.script = [60.0]
    receiver.release_after = 20
    rows = sandbox.control.deliver(message_id=message["id"], url=receiver.url, times=20)
    assert [row["outcome"] for row in rows] == ["success"] * 20
    assert len({json.dumps(payload) for _, payload, _ in receiver.posts}) == 1


def test_without_waiting(sandbox: Sandbox, receiver: Receiver):
    """With `wait` false the order returns at once; the outcome shows among the deliveries later."""
    message = sandbox.control.add_message()
    receiver.script = [30.0]
    (row,) = sandbox.control.deliver(message_id=message["id"], url=receiver.url, wait=False)
    assert (row["outcome"], row["attempts"]) == (None, [])
    receiver.released.set()

    def last() -> dict[str, Any]:
        return sandbox.control.get("deliveries").json()["deliveries"][-1]

    while last()["outcome"] is None:
        pass
    assert (last()["message_id"], last()["outcome"]) == (message["id"], "success")


def test_any_payload_can_be_delivered(sandbox: Sandbox, receiver: Receiver):
    """A payload of one's own goes out as it is; retry_delay sets the pause, attempts their number."""
    receiver.script = [(500, {}, b"")]
    (row,) = sandbox.control.deliver(payload={"event": "of tomorrow"}, url=receiver.url, attempts=2, retry_delay=0.3)
    assert len(row["attempts"]) == 2
    assert [payload for _, payload, _ in receiver.posts] == [{"event": "of tomorrow"}] * 2
    assert receiver.posts[1][2] - receiver.posts[0][2] >= 0.3


@pytest.mark.parametrize(
    "wrong", [{}, {"message_id": "nobody"}, {"message_id": "a", "payload": {}}, {"payload": [1]}, {"payloads": {}}]
)
def test_a_mistyped_delivery_is_refused(sandbox: Sandbox, receiver: Receiver, wrong: dict[str, Any]):
    """Nothing is posted when it is unclear what."""
    with pytest.raises(SandboxError, match="400"):
        sandbox.control.deliver(url=receiver.url, **wrong)
    assert receiver.posts == []


def test_the_test_button(sandbox: Sandbox, receiver: Receiver):
    """One canned event with the secret, whose message does not exist; shows status and message."""
    answer = sandbox.control.post("test-button", json={"url": receiver.url, "secret": "s"}).json()
    ((headers, payload, _),) = receiver.posts
    assert (answer["status"], answer["message"]) == ("success", "ok")
    assert answer["delivery"]["outcome"] == "success"
    assert headers["Authorization"] == "Bearer s"
    assert payload["event"] == "received"
    message = sandbox.control.add_message()
    assert set(payload) == set(message["webhook"])
    receiver.script = [(500, {}, b"")]
    assert sandbox.control.post("test-button", json={"url": receiver.url}).json()["status"] is None
    assert len(receiver.posts) == 2
