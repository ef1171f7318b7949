"""Retention over real processes: what is due goes, and nobody fetches it again unless told to."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from attachments.storage import message_key
from tests.e2e.installation import Installation, until

NAME = "-".join(("Purged", "Payslip")) + ".pdf"
LONG_AGO = datetime.now(UTC) - timedelta(days=400)


def made_old(store: Path, message: dict[str, Any]) -> None:
    """As it will be in more than a year: the manifest says so, and the disk."""
    path = store / message_key(message["id"]) / "manifest.json"
    manifest = json.loads(path.read_text())
    for entry in filter(lambda entry: entry["key"], manifest["attachments"]):
        entry["stored_at"] = LONG_AGO.isoformat()
        os.utime(store / entry["key"], (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
    path.write_text(json.dumps(manifest))


def listed(running: Installation, run: dict[str, Any], key: str = "purge-list") -> list[dict[str, Any]]:
    """The rows of an artifact of a run."""
    (found,) = (found for found in running.artifacts(run["id"]) if found["key"] == key)
    return list(json.loads(found["data"]))


def test_what_is_due_is_purged_once_and_for_all(running: Installation) -> None:
    """A dry run removes nothing, a real one just what is due; deliveries and runs leave it so, `force` does not."""
    store = running.stack.folder / "aged"
    running.save_blocks(f'AttachmentStore(url="{store.as_uri()}").save("aged", overwrite=True)')
    running.deploy("aged", store="aged")
    old, forgotten, held, young = (
        running.sandbox.control.add_message(
            attachments=[{"name": NAME, "bytes": 2000 + number}, {"name": NAME, "bytes": 9}]
        )
        for number in range(4)
    )

    def download(message: dict[str, Any], **more: Any) -> str:
        return str(running.run_deployment("aged", message_id=message["id"], **more)["state"]["message"])

    def purge(**more: Any) -> dict[str, Any]:
        return running.run_deployment(flow="purge-attachments", older_than_days=365, store="aged", **more)

    def files(message: dict[str, Any]) -> list[int]:
        folder = store / message_key(message["id"])
        return sorted(path.stat().st_size for path in folder.rglob("*.pdf"))

    mixed = running.sandbox.control.add_message(
        attachments=[{"name": NAME, "bytes": 7}, {"name": "a.txt", "text": "a"}]
    )
    with ThreadPoolExecutor(5) as pool:
        filtered = pool.submit(download, mixed, filter={"include": [{"names": ["*.pdf"]}]})
        list(pool.map(download, (old, forgotten, held, young)))
        filtered.result()
    for message in (old, forgotten, held, mixed):
        made_old(store, message)
    (store / message_key(held["id"]) / "hold").touch()

    dry = purge(hold=[forgotten["id"]])
    assert dry["state"]["message"] == (
        "Dry run: nothing was removed. Of 5 messages 2 had attachments to purge: 3 of 7 that are due would be "
        "removed, 2,016 bytes; 2 messages are on hold. The artifact purge-list lists what would be removed."
    )
    going = listed(running, dry)
    assert {(row["key"].partition("/")[0], row["bytes"], row["stored"]) for row in going} == {
        (message_key(message["id"]), size, f"{LONG_AGO:%Y-%m-%d}")
        for message, size in ((old, 2000), (old, 9), (mixed, 7))
    }
    assert all(len(list((store / row["key"]).iterdir())) == 1 for row in going)
    assert [files(message) for message in (old, forgotten, held, young)] == [[9, 2000 + number] for number in range(4)]

    few = purge(most=1, hold=["no such message"])["state"]["message"]
    assert "run it again for what is left" in few
    assert "1 of the messages to hold was not found so far" in few

    real = purge(dry_run=False, hold=[forgotten["id"]])
    assert real["state_type"] == "COMPLETED"
    assert "3 of 7 that are due were removed, 2,016 bytes; 2 messages are on hold." in real["state"]["message"]
    assert [files(message) for message in (old, forgotten, held, young)] == [[], [9, 2001], [9, 2002], [9, 2003]]
    assert {row["what"]: row["count"] for row in listed(running, real, "purge")}["attachments removed"] == 3
    assert listed(running, real) == going
    assert NAME not in str(running.artifacts(real["id"])) + str(running.artifacts(dry["id"])) + str(real)

    running.sandbox.control.clear_requests()
    running.send(old, "aged")
    until(running.is_idle, "the inbox to be empty")
    with ThreadPoolExecutor(2) as pool:
        settled, rest = pool.map(download, (old, mixed))
    assert settled.startswith(
        "Nothing to do: everything is done according to the manifest. Of 2 attachments 2 purged earlier"
    )
    assert "1 stored, 1 purged earlier" in rest
    assert (running.calls(old), files(old)) == ([], [])
    assert len(running.calls(mixed, "download")) == 1
    assert " 2 stored" in download(old, force=True)
    assert files(old) == [9, 2000]

    gone = purge(dry_run=False, forget=True, hold=[old["id"], "no such message"])
    assert "1 record was removed" in gone["state"]["message"]
    assert "1 of the messages to hold is not in the store" in gone["state"]["message"]
    assert not (store / message_key(forgotten["id"])).exists()
    assert " 2 stored" in download(forgotten)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"older_than_days": 0}, {"older_than_days": None}, {"older_than_days": 9, "at_once": 1000}],
    ids=str,
)
def test_a_purge_that_is_not_clear_is_refused_before_it_begins(
    running: Installation, parameters: dict[str, Any]
) -> None:
    """No age, or one that would take everything: Prefect's form and its command line say so at once."""
    found = running.prefect.get("deployments/name/purge-attachments/default").json()
    answer = running.prefect.post(f"deployments/{found['id']}/create_flow_run", json={"parameters": parameters})
    assert answer.status_code in {httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY}


def test_a_store_without_messages_is_said(running: Installation) -> None:
    """One that is there is perhaps new; one that is not there is a wrong URL, or a disk that is away: no success."""
    store = running.stack.folder / "bare"
    running.save_blocks(f'AttachmentStore(url="{store.as_uri()}").save("bare", overwrite=True)')
    run = running.run_deployment(flow="purge-attachments", older_than_days=1, store="bare")
    assert run["state_type"] == "FAILED"
    assert "root folder does not exist; check its URL, and that its disk is mounted." in run["state"]["message"]
    assert not store.exists()
    store.mkdir()
    run = running.run_deployment(flow="purge-attachments", older_than_days=1, store="bare")
    assert run["state_type"] == "COMPLETED"
    assert run["state"]["message"] == (
        "Dry run: nothing was removed. The store has no messages. If it should, check its URL, and that its disk is "
        "mounted."
    )


def test_a_store_that_is_not_configured_is_said(running: Installation) -> None:
    """And so is one that is away: in words that say what to do."""
    run = running.run_deployment(flow="purge-attachments", older_than_days=1, store="none-such")
    assert run["state_type"] == "FAILED"
    assert "There is no block attachment-store/none-such." in run["state"]["message"]
