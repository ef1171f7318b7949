"""Old mail: many messages by ids, a file or a report, each by a run of its own; and again, at no cost."""

import gzip
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from attachments.runs.run_labels import ORIGIN
from attachments.runs.state_record import FAILED_FOR_NOW
from tests.e2e.installation import FINAL, Installation, until

FLOW = "backfill-attachments"
CANARY = "canary-b4ckf111"
MANY = 12


def backfill(running: Installation, patience: float = 120, **parameters: Any) -> dict[str, Any]:
    return running.run_deployment(flow=FLOW, patience=patience, **parameters)


def added(running: Installation, count: int, **fields: Any) -> list[dict[str, Any]]:
    messages = [
        {"subject": CANARY, "attachments": [{"name": f"{CANARY}-{n}.txt", "text": f"{CANARY} {n}"}], **fields}
        for n in range(count)
    ]
    return running.sandbox.control.add_messages(messages)


def tag_of(run: dict[str, Any]) -> str:
    return f"backfill:{run['id'][-8:]}"


def test_many_messages_are_done_once_and_again_costs_no_call(running: Installation) -> None:
    """A dozen, one named twice and one unknown: all are stored, the rest is told by code; then nothing is asked.

    And whatever Prefect keeps or prints of it holds neither a name nor a subject.
    """
    messages = added(running, MANY)
    ids = [message["id"] for message in messages]
    run = backfill(running, message_ids=[*ids[:8], f" {ids[3]} ", "AAMk-unknown", *ids[8:]])
    said = run["state"]["message"]
    assert run["state_type"] == "FAILED"
    assert said.startswith(f"Of {MANY + 2} messages {MANY} done now, 1 named twice, 1 failed (not-found 1). ")
    assert f"they have the tag {tag_of(run)}" in said
    for message in messages:
        assert len(running.files(message)) == 1
        assert len(running.calls(message, "download")) == 1
        assert len(running.calls(message, "list")) == 1
    children = running.tagged(tag_of(run))
    assert len(children) == MANY + 1
    assert {(child["work_queue_name"], "backfill" in child["tags"]) for child in children} == {("backfill", True)}

    shown = {artifact["type"]: artifact for artifact in running.artifacts(run["id"])}
    assert float(shown["progress"]["data"]) == 100
    assert f"{MANY + 2} of {MANY + 2} messages" in shown["progress"]["description"]
    assert "| `not-found` | 1 |" in shown["markdown"]["data"]

    running.sandbox.control.clear_requests()
    again = backfill(running, message_ids=ids)
    assert again["state"]["message"] == f"Of {MANY} messages {MANY} done before."
    assert again["state_type"] == "COMPLETED"
    assert running.sandbox.control.requests() == []
    assert running.tagged(tag_of(again)) == []
    leaks = {place for place, content in running.everything_kept() if CANARY.encode() in content}
    assert leaks == set()


def test_a_file_of_ids_is_taken_in_each_form(running: Installation) -> None:
    """Lines, packed CSV with other columns, and JSON lines: whichever it is, the same messages are done."""
    messages = added(running, 3)
    ids = [message["id"] for message in messages]
    (running.stack.ids / "ids.txt").write_text("\ufeff" + "\r\n".join(ids) + "\r\n\r\n")
    rows = "".join(f'"{CANARY}, a subject",{one}\n' for one in ids)
    (running.stack.ids / "ids.csv.gz").write_bytes(gzip.compress(f"subject,messageId\n{rows}".encode()))
    (running.stack.ids / "ids.jsonl").write_text("".join(json.dumps({"messageId": one}) + "\n" for one in ids))
    said = [
        backfill(running, ids_url=(running.stack.ids / name).as_uri())["state"]["message"]
        for name in ("ids.txt", "ids.csv.gz", "ids.jsonl")
    ]
    assert said == ["Of 3 messages 3 done now.", *["Of 3 messages 3 done before."] * 2]
    assert all(len(running.files(message)) == 1 for message in messages)


def test_what_a_mailbox_received_in_a_span_is_done(running: Installation) -> None:
    """By its address or its id, from `start` on and before `end`; what the report tells is recorded."""
    box = f"box-{uuid4().hex[:8]}@example.com"
    inside = added(running, 3, mailbox=box, received="2026-01-10T08:00:00Z")
    outside = added(running, 1, mailbox=box, received="2026-02-10T08:00:00Z")
    span = {"start": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00Z"}
    run = backfill(running, mailbox=box.upper(), **span)
    assert run["state"]["message"] == "Of 3 messages 3 done now."
    assert all(len(running.files(message)) == 1 for message in inside)
    assert running.files(outside[0]) == []
    manifest = running.manifest(inside[0])
    assert manifest is not None
    assert manifest.mailbox == box
    running.sandbox.control.settings(reports={"cutoff": "2026-01-10T12:00:00Z"})
    try:
        short = backfill(running, mailbox=box, start="2026-01-10T00:00:00Z", end="2026-01-11T00:00:00Z")
    finally:
        running.sandbox.control.settings(reset_reports=True)
    assert short["state_type"] == "FAILED"
    assert "Emailgistics' report reaches only until 2026-01-10T12:00+00:00. Run this again" in short["state"]["message"]
    unknown = backfill(running, mailbox="nobody@example.com", **span)
    assert "The account has no such mailbox, or the API key may not see it" in unknown["state"]["message"]


def test_an_attempt_that_follows_goes_on_with_the_same_runs(running: Installation) -> None:
    """Emailgistics was away: with `force`, all that was done would else be done again, five minutes later."""
    running.sandbox.control.fault(endpoint="mailboxes", times=None, fault={"kind": "status", "status": 500})
    now = datetime.now(UTC)
    span = {"start": (now - timedelta(days=1)).isoformat(), "end": now.isoformat()}
    run = running.run_deployment(flow=FLOW, mailbox="away@road.example", **span)
    running.sandbox.control.clear_faults()
    assert run["state_name"] == FAILED_FOR_NOW
    (attempt,) = [one for one in running.runs(mailbox="away@road.example") if one["id"] != run["id"]]
    running.remove(f"flow_runs/{attempt['id']}")
    assert attempt["labels"][ORIGIN] == run["id"]


def test_bad_input_is_refused_before_anything_is_done(running: Installation) -> None:
    """Must show 5: one clear sentence, and no run was made and no call."""
    (message,) = added(running, 1)
    (running.stack.ids / "wrong.csv").write_text(f"subject,id\n{CANARY},{message['id']}\n")
    (running.stack.ids / "late.txt").write_text(f"{message['id']}\n{CANARY} b\n")
    span = {"mailbox": "claims@example.com", "start": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00Z"}
    running.sandbox.control.clear_requests()
    asked: list[tuple[dict[str, Any], str]] = [
        ({}, "Set one of message_ids, ids_url, and mailbox"),
        ({"message_ids": [message["id"], "a b"]}, "Number 2 of the message ids is not a message id"),
        ({"ids_url": str(running.stack.ids / "wrong.csv")}, "none is named messageId"),
        ({"ids_url": str(running.stack.ids / "late.txt")}, "Line 2 is not a message id"),
        ({"ids_url": str(running.stack.ids / "missing.txt")}, "There is no file of ids at that URL"),
        ({"ids_url": "/etc/hostname"}, "The worker may not read ids from there"),
        ({**span, "start": "2026-01-01"}, "start is a date without a time"),
        ({**span, "end": "2025-02-01T00:00:00Z"}, "end is not after start"),
        (
            {"message_ids": [message["id"]], "deployment": "nosuch"},
            "There is no deployment download-attachments/nosuch",
        ),
    ]
    started = [(running.start_deployment(flow=FLOW, **parameters)["id"], said) for parameters, said in asked]
    for run_id, said in started:
        until(lambda run_id=run_id: running.run(run_id)["state_type"] in FINAL, "the run to be refused")
        run = running.run(run_id)
        assert run["state_type"] == "FAILED"
        assert said in run["state"]["message"]
        assert CANARY not in run["state"]["message"]
        assert running.tagged(tag_of(run)) == []
    assert running.sandbox.control.requests() == []


@pytest.mark.soak
def test_cancelling_takes_along_what_has_not_started(running: Installation) -> None:
    """Its own runs that wait are cancelled; what is under way ends by itself; both are told."""
    messages = added(running, 20)
    slow = {"kind": "delay", "seconds": 4}
    order = running.sandbox.control.fault(endpoint="download", times=None, fault=slow)
    run = running.start_deployment(flow=FLOW, message_ids=[message["id"] for message in messages])
    tag = tag_of(run)

    def begun() -> bool:
        states = [child["state_type"] for child in running.tagged(tag)]
        return len(states) == 20 and states.count("RUNNING") == 4

    until(begun, "four of its runs to be under way")
    running._post(f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    until(lambda: all(child["state_type"] in FINAL for child in running.tagged(tag)), "all of its runs to end")
    running.sandbox.control.delete(f"faults/{order}").raise_for_status()
    states = sorted(child["state_type"] for child in running.tagged(tag))
    assert set(states) == {"CANCELLED", "COMPLETED"}
    assert states.count("CANCELLED") >= 4
    ended = running.run(run["id"])
    assert ended["state_type"] == "CANCELLED"
    print(ended["state"]["message"])


@pytest.mark.soak
def test_a_pool_without_a_worker_is_reported(running: Installation) -> None:
    """After two minutes, with the pool's name; the next attempt continues with the same run."""
    (message,) = added(running, 1)
    pool = f"nobody-{uuid4().hex[:8]}"
    running._post("work_pools/", {"name": pool, "type": "warm"})
    known = running.deployment("download-attachments/default")
    fields = ("flow_id", "entrypoint", "parameter_openapi_schema", "pull_steps")
    running._post("deployments/", {**{field: known[field] for field in fields}, "name": pool, "work_pool_name": pool})
    run = backfill(running, 300, message_ids=[message["id"]], deployment=pool)
    assert run["state_name"] == FAILED_FOR_NOW
    said = run["state"]["message"]
    assert said.startswith("1 run waits, and no worker has started one for minutes.")
    assert f"Check that a worker serves the work pool {pool} and has a free slot" in said
    assert said.endswith("[code=starved, next_attempt=2]")
    (attempt,) = [one for one in running.runs(deployment=pool) if one["id"] != run["id"]]
    running.remove(f"flow_runs/{attempt['id']}")
    assert attempt["labels"][ORIGIN] == run["id"]
    assert [child["state_type"] for child in running.tagged(tag_of(run))] == ["SCHEDULED"]
