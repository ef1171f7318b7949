"""No customer data where it does not belong: not on the inbox's disk, not in a log, not in an answer."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from .conftest import SECRET, Receiver
from .sockets import exchange, raw_request
from .test_responses import PERSON, SAMPLE

CANARIES = [b"canary", b"Canary", b"CANARY", SECRET.encode()]


def found_in(text: bytes) -> list[bytes]:
    return [canary for canary in CANARIES if canary in text]


def test_no_customer_data_reaches_disk_log_or_answer(make: Callable[..., Receiver]) -> None:
    """Subject, sender, body, addresses and secrets, in good and bad deliveries, while entries wait and after."""
    receiver = make()
    prefect = receiver.prefect
    prefect.mood = "hung"
    receiver.process.start()
    answers = []

    def send(body: bytes, deployment: str = "default", authorization: bytes = f"Bearer {SECRET}".encode()) -> None:
        request = raw_request("POST", f"/webhooks/{deployment}", body, authorization)
        answers.append(exchange(receiver.url, request))

    def sample(**changes: object) -> bytes:
        import json

        return json.dumps({**SAMPLE, **changes}).encode()

    send(sample())
    send(sample(id="second", received="Subject canary", mailbox=PERSON, conversationId={"text": "canary"}))
    send(sample(id="third", event="CANARY"))
    send(sample(id="third", hasAttachments="canary"))
    send(sample(id=["canary"]))
    send(sample(id="canary\ncanary"))
    send(b'{"subject": "canary"')
    send(sample(), deployment="canary-deployment")
    send(sample(), deployment="default?subject=canary")
    send(sample(), authorization=b"Bearer canary-secret")
    send(b"canary" * 200_000)
    outside = sqlite3.connect(receiver.inbox)
    assert outside.execute("SELECT count(*) FROM entry").fetchone() == (3,)  # keeps the log from being folded in
    files = sorted(receiver.inbox.parent.glob("inbox.sqlite*"))
    assert Path(f"{receiver.inbox}-wal") in files
    for file in files:
        assert found_in(file.read_bytes()) == [], file.name
    outside.close()
    prefect.mood = "refusing"
    receiver.until(lambda: receiver.log.count("refused the run") >= 3, "the refusals")
    pages = [receiver.get(path).content for path in ("/health", "/ready", "/metrics")]
    assert receiver.process.stop() == 0
    for file in receiver.inbox.parent.glob("inbox.sqlite*"):
        assert found_in(file.read_bytes()) == [], file.name
    assert found_in(receiver.log.encode()) == []
    assert found_in(b"".join([*answers, *pages])) == []


def test_what_was_handed_over_is_wiped(receiver: Receiver) -> None:
    """Even an id is not kept once Prefect has it: the file holds nothing to recover after a stop."""
    message_id = "AAMk-wiped-" + "w" * 100
    assert receiver.deliver(message_id, mailbox="shared@example.com").status_code == 200
    receiver.until_empty()
    assert receiver.process.stop() == 0
    content = b"".join(file.read_bytes() for file in receiver.inbox.parent.glob("inbox.sqlite*"))
    assert b"AAMk-wiped" not in content
    assert b"shared@example.com" not in content


def test_no_request_is_logged(shared: Receiver) -> None:
    """Neither request lines nor headers, from the server or from Prefect's client; a quiet day's log is short."""
    before = len(shared.log.splitlines())
    for number in range(20):
        assert shared.deliver(f"quiet-{number}").status_code == 200
    shared.until_empty()
    assert len(shared.log.splitlines()) == before
    assert not any(word in shared.log for word in ("POST ", "GET ", "HTTP/1.1", "Authorization", "create_flow_run"))
