"""Retention from end to end: what is purged is fetched again by nobody who has not asked for it."""

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any

from attachments.storage import message_key
from tests.road.installation import Installation

OLD = datetime.now(UTC) - timedelta(days=400)
CANARY = "canary-pur9e"


def purge(running: Installation, **parameters: Any) -> dict[str, Any]:
    return running.run_deployment(flow="purge-attachments", older_than_days=365, **parameters)


def stored_long_ago(running: Installation, name: str) -> dict[str, Any]:
    """A message that was stored, then set back in time: its manifest, and the file itself."""
    message = running.sandbox.control.add_message(attachments=[{"name": f"{CANARY}-{name}.pdf", "bytes": 1000}])
    running.send(message)
    running.complete_manifest(message)
    running.ended_run(message)
    for file in running.files(message):
        os.utime(file, (OLD.timestamp(), OLD.timestamp()))
    path = running.road.store / message_key(message["id"]) / "manifest.json"
    record = json.loads(path.read_bytes())
    for entry in record["attachments"]:
        entry["stored_at"] = OLD.isoformat()
    path.write_text(json.dumps(record))
    return message


def test_what_is_purged_stays_away_unless_it_is_asked_for(running: Installation) -> None:
    """A dry run, a real one with a message on hold, then a webhook, a backfill and `force`."""
    due, held = stored_long_ago(running, "due"), stored_long_ago(running, "held")
    young = running.sandbox.control.add_message(attachments=[{"name": "young.pdf", "bytes": 10}])
    running.send(young)
    running.complete_manifest(young)

    dry = purge(running)
    assert dry["state_type"] == "COMPLETED"
    assert dry["state"]["message"].startswith("Dry run: nothing was removed. ")
    assert "2 have attachments that are due; 2 attachments would be purged, 2,000 bytes" in dry["state"]["message"]
    assert [len(running.files(message)) for message in (due, held, young)] == [1, 1, 1]

    real = purge(running, dry_run=False, hold=[held["id"]])
    assert "1 attachments purged, 1,000 bytes; 1 on hold" in real["state"]["message"]
    assert [len(running.files(message)) for message in (due, held, young)] == [0, 1, 1]
    manifest = running.manifest(due)
    assert manifest is not None
    assert [entry.outcome for entry in manifest.attachments] == ["purged"]

    running.sandbox.control.clear_requests()
    running.send(due)
    again = running.run_deployment(message_id=due["id"])
    assert again["state"]["message"].startswith("Nothing to do")
    backfill = running.run_deployment(flow="backfill-attachments", message_ids=[due["id"]])
    assert backfill["state"]["message"] == "Of 1 messages 1 done before."
    assert running.sandbox.control.requests() == []
    assert running.files(due) == []

    running.run_deployment(message_id=due["id"], force=True)
    assert len(running.files(due)) == 1
    assert purge(running)["state"]["message"].count(" 1 attachments would be purged") == 1, "the held one alone"
    for where, kept in running.everything_kept():
        assert CANARY.encode() not in kept, where


def test_an_age_that_cannot_be_meant_is_refused(running: Installation) -> None:
    """No days, or fewer than one: nothing is looked at."""
    for parameters in ({"older_than_days": 0}, {"older_than_days": -1}):
        answer = running.refused("purge-attachments/default", parameters)
        assert answer.status_code in (409, 422), answer.text
