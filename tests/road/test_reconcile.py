"""Reconciliation: what no webhook told of is found, fetched and told, once."""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from attachments.storage import message_key
from flows.marks import PREFIX
from tests.road.installation import Installation, until

FLOW = "reconcile-attachments"
MANY = int(os.environ.get("RECONCILE_MESSAGES", "5"))


def reconcile(running: Installation, box: str, patience: float = 120, **parameters: Any) -> dict[str, Any]:
    return running.run_deployment(flow=FLOW, patience=patience, mailboxes=[box], **parameters)


def lost(running: Installation, box: str, count: int, *, attachments: int = 1, **fields: Any) -> list[dict[str, Any]]:
    """Messages that came an hour ago, and whose webhooks nobody has seen."""
    came = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    parts = [{"name": f"canary-{box}-{number}.pdf", "bytes": 1000} for number in range(attachments)]
    asked = [{"mailbox": box, "received": came, "subject": f"canary-{box}", "attachments": parts, **fields}] * count
    return running.sandbox.control.add_messages(asked)


def endpoints(running: Installation) -> set[str]:
    return {call["endpoint"] for call in running.sandbox.control.requests()}


def marks(running: Installation) -> dict[str, Any]:
    found = running._post("variables/filter", {"limit": 200})
    return {variable["name"]: variable["value"] for variable in found if variable["name"].startswith(PREFIX)}


def missed(running: Installation, message: dict[str, Any]) -> list[dict[str, Any]]:
    return running.events("emailgistics.message.missed", f"emailgistics.message.{message_key(message['id'])}")


def check_that_all_are_found_once(running: Installation, box: str, count: int, patience: float) -> None:
    messages = lost(running, box, count)
    (bare,) = lost(running, box, 1, attachments=0)
    before = marks(running)
    found = reconcile(running, box, patience)
    assert found["state_type"] == "COMPLETED"
    assert (
        found["state"]["message"]
        == f"Of {count + 1} messages in 1 mailboxes {count + 1} had been missed: {count + 1} stored now."
    )
    for message in messages:
        manifest = running.manifest(message)
        assert manifest is not None
        assert manifest.complete
        assert manifest.mailbox == box
        assert len(running.files(message)) == 1
        assert len(running.calls(message, "download")) == 1
    manifest = running.manifest(bare)
    assert manifest is not None
    assert manifest.attachments == ()
    (mark,) = [value for name, value in marks(running).items() if before.get(name) != value]
    assert datetime.now(UTC) - datetime.fromisoformat(mark["until"]) < timedelta(minutes=20)
    (table,) = running.artifacts(found["id"])
    assert table["data"].count("stored now") == min(count + 1, 100)

    running.sandbox.control.clear_requests()
    again = reconcile(running, box, patience)
    assert again["state"]["message"] == f"Of {count + 1} messages in 1 mailboxes 0 had been missed."
    assert endpoints(running) <= {"mailboxes", "report", "result"}, "no listing, no download"
    assert running.artifacts(again["id"]) == []


def test_what_was_lost_is_found_once(running: Installation) -> None:
    """The receiver never heard of them: the next reconciliation stores and tells them, the one after costs no listing.

    A message without attachments is listed once, and settled by its manifest. Nothing of it leaks.
    """
    box = "lost@road.example"
    check_that_all_are_found_once(running, box, MANY, 120)
    leaks = {place for place, content in running.everything_kept() if f"canary-{box}".encode() in content}
    assert leaks == set()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_fifty_lost_webhooks(running: Installation) -> None:
    """Fifty, while the receiver is down: stored and reported, all of them; then none."""
    running.road.receiver.stop()
    check_that_all_are_found_once(running, "fifty@road.example", 50, 600)


def test_an_event_tells_of_each(running: Installation) -> None:
    """Automations can start from it: by key, with what became of the message."""
    (message,) = lost(running, "event@road.example", 1)
    run = reconcile(running, "event@road.example")
    assert run["state_type"] == "COMPLETED"
    until(lambda: bool(missed(running, message)), "the event to arrive")
    (event,) = missed(running, message)
    assert event["payload"] == {
        "message_key": message_key(message["id"]),
        "deployment": "default",
        "outcome": "stored now",
    }


def test_a_message_that_stays_refused_is_told_once_and_holds_nothing_back(running: Installation) -> None:
    """403: it stays a failure of this reconciliation; the mark moves, and the next one does not tell it again."""
    box = "gone@road.example"
    (message,) = lost(running, box, 1)
    order = running.sandbox.control.fault(
        endpoint="list", message_id=message["id"], times=None, fault={"kind": "status", "status": 403}
    )
    before = marks(running)
    first = reconcile(running, box)
    assert first["state_type"] == "FAILED"
    assert "1 had been missed: 1 failed." in first["state"]["message"]
    (mark,) = [value for name, value in marks(running).items() if before.get(name) != value]
    assert datetime.now(UTC) - datetime.fromisoformat(mark["until"]) < timedelta(minutes=20)
    again = reconcile(running, box)
    assert again["state_type"] == "COMPLETED"
    assert "0 had been missed. 1 had failed before" in again["state"]["message"]
    running.sandbox.control._answer(running.sandbox.control.delete(f"faults/{order}"))


def test_what_another_run_is_at_is_left_to_it(running: Installation) -> None:
    """A webhook's run that waits, or a later attempt: no second run, and nothing was missed."""
    box = "other@road.example"
    (message,) = lost(running, box, 1)
    deployment = running.deployment("download-attachments/default")
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    other = running._post(
        f"deployments/{deployment['id']}/create_flow_run",
        {
            "name": message_key(message["id"])[:12],
            "parameters": {"message_id": message["id"]},
            "state": {"type": "SCHEDULED", "state_details": {"scheduled_time": later}},
        },
    )
    run = reconcile(running, box)
    assert "0 had been missed. 1 are under way in other runs." in run["state"]["message"]
    assert running.calls(message) == []
    running.remove(f"flow_runs/{other['id']}")
    assert "1 had been missed: 1 stored now." in reconcile(running, box)["state"]["message"]


def test_the_mark_stays_where_the_reports_data_end(running: Installation) -> None:
    """The report tells of a cut-off an hour and a half ago: what came later may be in the next one."""
    box = "late@road.example"
    lost(running, box, 1)
    cutoff = (datetime.now(UTC) - timedelta(hours=1.5)).replace(microsecond=0)
    running.sandbox.control.settings(reports={"cutoff": cutoff.strftime("%Y-%m-%dT%H:%M:%SZ")})
    before = marks(running)
    try:
        reconcile(running, box)
    finally:
        running.sandbox.control.settings(reset_reports=True)
    (mark,) = [value for name, value in marks(running).items() if before.get(name) != value]
    assert datetime.fromisoformat(mark["until"]) == cutoff


def test_a_report_that_fails_moves_no_mark(running: Installation) -> None:
    """Nothing is known of that time, so it is looked at again."""
    box = "broken@road.example"
    (message,) = lost(running, box, 1)
    running.sandbox.control.settings(reports={"ends_in_error": True})
    before = marks(running)
    try:
        run = reconcile(running, box)
    finally:
        running.sandbox.control.settings(reset_reports=True)
    assert run["state_type"] == "FAILED"
    assert "1 mailboxes could not be looked at" in run["state"]["message"]
    assert box not in run["state"]["message"]
    assert marks(running) == before
    assert reconcile(running, box)["state_type"] == "COMPLETED"
    assert running.files(message)


def test_a_key_without_the_scope_and_a_mailbox_that_is_not_there(running: Installation) -> None:
    """Both are said in words that tell what to change, without the address."""
    unknown = reconcile(running, "nobody@road.example")
    assert unknown["state_type"] == "FAILED"
    assert "number 1 of mailboxes: the account has no such mailbox" in unknown["state"]["message"]
    assert "nobody@road.example" not in unknown["state"]["message"]
    key = running.sandbox.key
    running.sandbox.control.settings(keys=[{"key": key, "scopes": ["messages:read", "messages:content"]}])
    try:
        refused = reconcile(running, "lost@road.example")
    finally:
        running.sandbox.control.settings(keys=[{"key": key}])
    assert refused["state_type"] == "FAILED"
    assert "reporting" in refused["state"]["message"]


def test_setup_switches_the_schedule_on_once_the_key_has_the_scope(running: Installation) -> None:
    """Not before, and not again when somebody has switched it off; a schedule of the user's own stays."""
    key = running.sandbox.key
    deployment = running.deployment("reconcile-attachments/default")
    assert [(known["slug"], known["active"]) for known in deployment["schedules"]] == [("hourly", False)]

    def schedules() -> dict[str, bool]:
        found = running.deployment("reconcile-attachments/default")["schedules"]
        return {known["slug"] or "mine": known["active"] for known in found}

    def set_up() -> str:
        return running.road.run("attachments", "setup").stdout

    mine = {"schedule": {"cron": "0 3 * * *"}, "active": False, "slug": "mine"}
    running._post(f"deployments/{deployment['id']}/schedules", [mine])
    running.sandbox.control.settings(keys=[{"key": key, "scopes": ["messages:read", "messages:content"]}])
    try:
        assert "lacks the scope reporting" in set_up()
        assert schedules() == {"hourly": False, "mine": False}
    finally:
        running.sandbox.control.settings(keys=[{"key": key}])
    try:
        assert "switched on, every hour" in set_up()
        assert schedules() == {"hourly": True, "mine": False}
        hourly = next(
            known for known in running.deployment(f"{FLOW}/default")["schedules"] if known["slug"] == "hourly"
        )
        running.change(f"deployments/{deployment['id']}/schedules/{hourly['id']}", {"active": False})
        assert "switched off by hand" in set_up()
        assert schedules() == {"hourly": False, "mine": False}
    finally:
        for known in running.deployment(f"{FLOW}/default")["schedules"]:
            running.change(f"deployments/{deployment['id']}/schedules/{known['id']}", {"active": False})
