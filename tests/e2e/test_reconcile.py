"""Reconciliation: messages whose webhook never arrived are found, fetched and reported, once."""

import asyncio
import os
import re
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import temporary_settings
from pydantic import SecretStr

from attachments.blocks import EmailgisticsAccount
from attachments.cli.actions.schedule import SWITCHED_ON_VARIABLE, reporting_problem, switch_reconciliation
from attachments.demo.processes import free_port
from attachments.prefect_api import paging
from attachments.runs import watermarks as marking
from attachments.runs.watermarks import PREFIX
from attachments.storage import message_key
from tests.e2e.installation import FINAL, Installation, until

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


def age(running: Installation, run_ids: Sequence[str], by: timedelta) -> None:
    """Let runs be created longer ago than they were. Prefect's API cannot do that."""
    created = (datetime.now(UTC) - by).strftime("%Y-%m-%d %H:%M:%S.%f")
    with closing(sqlite3.connect(running.stack.database, timeout=60)) as database, database:
        for run_id in run_ids:
            changed = database.execute("UPDATE flow_run SET created = ? WHERE id = ?", (created, run_id))
            assert changed.rowcount == 1


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
        == f"Of {count + 1} messages in 1 mailbox {count + 1} had been missed: {count + 1} stored now."
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
    assert again["state"]["message"] == f"Of {count + 1} messages in 1 mailbox 0 had been missed."
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
    # The address is a parameter of the runs, as it is of a webhook's, and nowhere else.
    tables = {place for place, content in running.everything_kept() if box.encode() in content and "table" in place}
    assert tables <= {"table flow_run"}
    fetched = [run for run in running.tagged("reconcile") if run["parameters"].get("mailbox") == box]
    assert {run["work_queue_name"] for run in fetched} == {"backfill"}, "live mail goes first"


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_fifty_lost_webhooks(running: Installation) -> None:
    """Fifty, while the receiver is down: stored and reported, all of them; then none."""
    running.stack.receiver.stop()
    check_that_all_are_found_once(running, "fifty@road.example", 50, 600)


def test_an_event_tells_of_each(running: Installation) -> None:
    """Automations can start from it: by key. And when its files are gone the same day, it is missed once more."""
    (message,) = lost(running, "event@road.example", 1)
    run = reconcile(running, "event@road.example")
    assert run["state_type"] == "COMPLETED"
    until(lambda: bool(missed(running, message)), "the event to arrive")
    (event,) = missed(running, message)
    assert event["payload"] == {"message_key": message_key(message["id"]), "deployment": "default"}

    shutil.rmtree(running.stack.store / message_key(message["id"]))
    again = reconcile(running, "event@road.example")
    assert "1 had been missed: 1 stored now." in again["state"]["message"]
    assert len(running.files(message)) == 1


def test_a_message_that_is_gone_is_told_once_and_holds_nothing_back(running: Installation) -> None:
    """404: it stays a failure of this reconciliation; the mark moves, and the next one does not tell it again."""
    box = "gone@road.example"
    (message,) = lost(running, box, 1)
    order = running.sandbox.control.fault(
        endpoint="list", message_id=message["id"], times=None, fault={"kind": "status", "status": 404}
    )
    before = marks(running)
    first = reconcile(running, box)
    said = first["state"]["message"]
    assert first["state_type"] == "FAILED"
    assert "1 had been missed: 1 failed." in said
    assert f"Not stored: {message_key(message['id'])} (not-found)." in said
    (table,) = running.artifacts(first["id"])
    assert message_key(message["id"]) in table["data"]
    assert "failed (not-found)" in table["data"]
    (mark,) = [value for name, value in marks(running).items() if before.get(name) != value]
    assert datetime.now(UTC) - datetime.fromisoformat(mark["until"]) < timedelta(minutes=20)
    running.sandbox.control.clear_requests()
    again = reconcile(running, box)
    assert again["state_type"] == "COMPLETED"
    assert "0 had been missed. 1 had failed permanently before" in again["state"]["message"]
    assert endpoints(running) <= {"mailboxes", "report", "result"}, "it is not asked for every hour"
    running.sandbox.control.delete(f"faults/{order}").raise_for_status()


def test_what_another_run_is_at_is_left_to_it(running: Installation) -> None:
    """A webhook's run that waits, or a later attempt: no second run, nothing was missed, and its end is looked at."""
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
    before = marks(running)
    run = reconcile(running, box)
    assert "0 had been missed. 1 is under way in another run, or waits there" in run["state"]["message"]
    assert running.calls(message) == []
    (mark,) = [value for name, value in marks(running).items() if before.get(name) != value]
    assert datetime.now(UTC) - datetime.fromisoformat(mark["until"]) > timedelta(hours=23), "it is held"
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


def test_a_report_that_is_days_behind_is_no_success(running: Installation) -> None:
    """What came since is compared with nothing, hour after hour; somebody has to know."""
    box = "behind@road.example"
    cutoff = (datetime.now(UTC) - timedelta(days=2.5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    running.sandbox.control.settings(reports={"cutoff": cutoff})
    lost(running, box, 1)
    try:
        run = reconcile(running, box)
    finally:
        running.sandbox.control.settings(reset_reports=True)
    assert run["state_type"] == "FAILED"
    assert "the report's own cut-off lies more than 38 hours back" in run["state"]["message"]


def test_a_mark_stays_while_most_messages_cannot_be_fetched(running: Installation) -> None:
    """The key lacks a scope for downloads: weeks of mail must not be passed over, slice by slice. Nor held for ever."""
    box = "away@road.example"
    messages = lost(running, box, 4)
    key = running.sandbox.key
    running.sandbox.control.settings(keys=[{"key": key, "scopes": ["reporting", "messages:read"]}])
    before = marks(running)
    try:
        run = reconcile(running, box)
    finally:
        running.sandbox.control.settings(keys=[{"key": key}])
    assert run["state_type"] == "FAILED"
    assert "4 of its messages could not be fetched, and 0 could: its watermark stays" in run["state"]["message"]
    assert box not in run["state"]["message"]
    (mark,) = [value for name, value in marks(running).items() if before.get(name) != value]
    assert datetime.now(UTC) - datetime.fromisoformat(mark["until"]) > timedelta(hours=23)
    (name,) = [name for name, value in marks(running).items() if value == mark]
    running.change(f"variables/name/{name}", {"value": {**mark, "tried": [[mark["until"], mark["until"]]]}})  # as 0.1
    fetches = [run["id"] for run in running.tagged("reconcile") if run["parameters"].get("mailbox") == box]
    age(running, fetches, timedelta(days=5))
    passed = reconcile(running, box)
    assert passed["state_type"] == "FAILED", "somebody has to be told"
    assert "4 had failed before, and are tried again within a day." in passed["state"]["message"]
    assert "In 1 mailbox, messages that could not be fetched for 4 days, or that wait" in passed["state"]["message"]
    mark = marks(running)[name]
    assert datetime.now(UTC) - datetime.fromisoformat(mark["until"]) < timedelta(minutes=20)
    for fetch in fetches:  # as a person does in the UI, when the cause is gone
        running._post(f"flow_runs/{fetch}/set_state", {"state": {"type": "SCHEDULED"}, "force": True})
    for message in messages:
        running.complete_manifest(message)
    until(lambda: running.count(fetches, FINAL) == len(fetches), "the runs that fetch them to end")
    again = reconcile(running, box)
    assert again["state"]["message"] == "Of 4 messages in 1 mailbox 0 had been missed."


def test_a_second_one_at_a_time_is_not_begun(running: Installation) -> None:
    """The hourly one meets one that takes longer than an hour: it is cancelled, and says why."""
    box = "twice@road.example"
    lost(running, box, 1)
    running.sandbox.control.settings(reports={"run_seconds": 6})
    try:
        first = running.start_deployment(flow=FLOW, mailboxes=[box])
        until(lambda: running.run(first["id"])["state_type"] == "RUNNING", "the first one to begin")
        second = reconcile(running, box)
    finally:
        running.sandbox.control.settings(reset_reports=True)
    assert second["state_type"] == "CANCELLED"
    assert "concurrency limit" in second["state"]["message"]
    until(lambda: running.run(first["id"])["state_type"] in FINAL, "the first one to end")
    assert running.run(first["id"])["state_type"] == "COMPLETED"


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_killed_worker_loses_neither_messages_nor_what_is_told(running: Installation) -> None:
    """In the middle: the mark has not moved. Another worker goes on, and tells of all, also of what was done before."""
    box = "killed@road.example"
    messages = lost(running, box, 12)
    order = running.sandbox.control.fault(endpoint="download", times=None, fault={"kind": "delay", "seconds": 3})
    before = marks(running)
    run = running.start_deployment(flow=FLOW, mailboxes=[box], first_days=1)

    def done() -> int:
        return sum(running.manifest(message) is not None for message in messages)

    until(lambda: done() >= 3, "the first ones to be stored")
    running.stack.worker.kill()
    assert done() < len(messages)
    (name,) = set(marks(running)) - set(before)
    begun = datetime.fromisoformat(marks(running)[name]["until"])
    assert datetime.now(UTC) - begun > timedelta(days=1), "nothing is done so far"
    running.sandbox.control.delete(f"faults/{order}").raise_for_status()
    running.stack.worker.start()
    until(lambda: running.run(run["id"])["state_type"] in FINAL, "the reconciliation to be taken up", 300)
    ended = running.run(run["id"])
    # One that was stored when its worker died, but not told so, may not have been taken up again yet.
    told = re.fullmatch(
        r"Of 12 messages in 1 mailbox 12 had been missed: (\d+) stored now"
        r"(?:, (\d+) under way)?(?:, (\d+) waiting for a worker)?\.",
        ended["state"]["message"],
    )
    assert told is not None, ended["state"]["message"]
    assert sum(int(count or 0) for count in told.groups()) == len(messages)
    for message in messages:
        assert len(running.files(message)) == 1
        until(lambda message=message: len(missed(running, message)) == 1, "one event of it")
    assert datetime.fromisoformat(marks(running)[name]["until"]) > begun
    again = reconcile(running, box)
    assert again["state"]["message"] == "Of 12 messages in 1 mailbox 0 had been missed."


def test_a_report_that_fails_moves_no_mark(running: Installation) -> None:
    """Nothing is known of that time, so it is looked at again."""
    box = "broken@road.example"
    (message,) = lost(running, box, 1)
    running.sandbox.control.settings(reports={"ends_in_error": True})
    before = marks(running)
    try:
        run = reconcile(running, box)
        ((name, mark),) = [pair for pair in marks(running).items() if pair[0] not in before]
        reconcile(running, box, first_days=1)
    finally:
        running.sandbox.control.settings(reset_reports=True)
    assert run["state_type"] == "FAILED"
    assert "1 mailbox could not be checked completely" in run["state"]["message"]
    assert box not in run["state"]["message"]
    assert datetime.now(UTC) - datetime.fromisoformat(mark["until"]) > timedelta(days=3), "what is new begins there"
    assert marks(running)[name] == mark, "and does not move on with the time"
    assert reconcile(running, box)["state_type"] == "COMPLETED"
    assert running.files(message)


def test_an_emailgistics_that_is_away_is_left_to_the_next_hour(running: Installation) -> None:
    """It schedules no attempts of its own: each hour's run would bring nine more."""
    box = "down@road.example"
    lost(running, box, 1)
    running.sandbox.control.fault(endpoint="mailboxes", times=None, fault={"kind": "status", "status": 500})
    run = reconcile(running, box)
    running.sandbox.control.clear_faults()
    assert run["state_type"] == "FAILED"
    assert run["state"]["message"].endswith("so the next reconciliation does it. [code=server-error]")
    assert len(running.runs(mailboxes=[box])) == 1


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


def test_setup_switches_the_schedule_by_the_scopes_of_the_key(running: Installation) -> None:
    """On once the key has the scope, off when it lacks it. What somebody has switched off or added himself stays."""
    key, control = running.sandbox.key, running.sandbox.control
    deployment = running.deployment(f"{FLOW}/default")
    assert [(known["slug"], known["active"]) for known in deployment["schedules"]] == [("hourly", False)]
    assert deployment["global_concurrency_limit"]["limit"] == 1

    def schedules() -> dict[str, bool]:
        found = running.deployment(f"{FLOW}/default")["schedules"]
        return {known["slug"] or "mine": known["active"] for known in found}

    def switch(slug: str, *, active: bool) -> None:
        for known in running.deployment(f"{FLOW}/default")["schedules"]:
            if known["slug"] == slug:
                running.change(f"deployments/{deployment['id']}/schedules/{known['id']}", {"active": active})

    def switched(api_key: str = key, base_url: str = running.sandbox.base_url) -> str:
        async def ask() -> None:
            async with get_client() as client:
                account = EmailgisticsAccount(api_key=SecretStr(api_key), base_url=base_url)
                await switch_reconciliation(
                    await reporting_problem(account),
                    client,
                    lambda result, subject: told.append(f"{result}: {subject}"),
                )

        told: list[str] = []
        with temporary_settings(running.prefect_settings):
            asyncio.run(ask())
        (said,) = told
        return said

    control.settings(keys=[{"key": key, "scopes": ["messages:read", "messages:content"]}])
    try:
        assert "off. The API key lacks the scope reporting" in switched()
        assert switched("wrong").endswith("off.")  # `attachments setup` says why, once
        assert "off." in switched(base_url=f"http://127.0.0.1:{free_port()}/api/v1")
        assert schedules() == {"hourly": False}
        control.settings(keys=[{"key": key}])
        assert "updated" in switched()
        assert schedules() == {"hourly": True}
        assert "unchanged" in switched("wrong")
        assert schedules() == {"hourly": True}, "a wrong key says nothing of scopes"
        control.settings(keys=[{"key": key, "scopes": ["messages:read", "messages:content"]}])
        assert "switched off. The API key lacks the scope reporting" in switched()
        assert schedules() == {"hourly": False}
        control.settings(keys=[{"key": key}])
        assert "switched on, every hour" in switched()

        running.remove(f"variables/name/{SWITCHED_ON_VARIABLE}")  # somebody else had switched it on
        assert "every hour" in switched()
        mine = {"schedule": {"cron": "0 3 * * *"}, "active": False}  # the UI gives none a slug
        running._post(f"deployments/{deployment['id']}/schedules", [mine])
        switch("hourly", active=False)
        said = running.stack.run("attachments", "setup").stdout
        assert f"schedule of {FLOW}/default: switched off by a person" in said
        assert schedules() == {"hourly": False, "mine": False}
        assert running.deployment(f"{FLOW}/default")["concurrency_options"] == deployment["concurrency_options"]
    finally:
        control.settings(keys=[{"key": key}])
        switch("hourly", active=False)
        for known in running.deployment(f"{FLOW}/default")["schedules"]:
            if not known["slug"]:
                running.remove(f"deployments/{deployment['id']}/schedules/{known['id']}")


def test_marks_are_read_page_by_page(running: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account with many mailboxes has more Variables than Prefect tells at a time."""
    monkeypatch.setattr(paging, "PAGE", 2)
    account = f"many-{uuid4().hex[:8]}"
    now = datetime.now(UTC)
    with temporary_settings(running.prefect_settings), get_client(sync_client=True) as client:
        mine = marking.Watermarks(client, account, "default")
        for number in range(5):
            mine.advance(f"box-{number}", now - timedelta(days=number))
        known = [mark for mark in marking.read_watermarks(client) if mark.account == account]
        assert [mark.mailbox_key for mark in known] == [f"box-{number}" for number in (4, 3, 2, 1, 0)]

        mine.advance("box-0", now - timedelta(days=9))
        assert known[-1] == mine.read("box-0"), "never backwards"
        ahead = marking.Watermarks(client, account, "ahead")
        ahead.advance("box-0", now + timedelta(days=1))
        ahead.advance("box-0", now - timedelta(hours=1))
        corrected = ahead.read("box-0")
        assert corrected is not None
        assert corrected.until == now - timedelta(hours=1), "a mark in the future is put right"
