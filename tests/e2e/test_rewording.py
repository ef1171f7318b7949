"""A worker that words every state otherwise, on a real Prefect: a backfill and its runs come to the same."""

from pathlib import Path

from prefect.client.schemas.objects import State

from attachments.runs.state_record import StateRecord, read_record
from tests.e2e.installation import Installation
from tests.rewording import reword

HERE = Path(__file__).parent


def test_a_backfill_counts_the_same_whatever_the_words(running: Installation) -> None:
    """Stored, not found, and failed for now with an attempt that follows: by code, and by nothing that is written."""
    worker = running.stack.worker
    environment = worker.environment
    worker.environment = {**environment, "PYTHONPATH": f"{HERE / 'rewording'}:{HERE.parents[1]}"}
    done, early = (running.sandbox.control.add_message(attachments=[{"name": "a.txt", "text": name}]) for name in "ab")
    fault = {"kind": "unfinished_list", "placeholder": "Safe Attachments Scan In Progress"}
    running.sandbox.control.fault(endpoint="list", message_id=early["id"], times=None, fault=fault)
    try:
        worker.stop()
        worker.start()
        ids = [done["id"], "AAMk-unknown", early["id"]]
        run = running.run_deployment(flow="backfill-attachments", patience=180, message_ids=ids)
    finally:
        worker.environment = environment
        worker.stop()
        worker.start()
    counts = "Of 3 messages 1 done now, 1 failed (not-found 1), 1 failed for now, to be tried again automatically."
    assert reword(run["state"]["message"]).startswith(counts)
    children = running.tagged(f"backfill:{run['id'][-8:]}")
    (attempt,) = [child for child in children if child["state_type"] == "SCHEDULED"]
    assert "attempt-2" in attempt["tags"]
    assert {
        child["parameters"]["message_id"]: read_record(State.model_validate(child["state"]))
        for child in children
        if child != attempt
    } == {
        done["id"]: StateRecord(stored=1),
        "AAMk-unknown": StateRecord(code="not-found"),
        early["id"]: StateRecord(code="scan-in-progress", next_attempt=2),
    }
    owners = {state["name"]: read_record(State.model_validate(state)).worker for state in running.states(run["id"])}
    assert owners["Pending"] is not None
    assert owners["Pending"] == owners["Running"]
    running.forget_unfinished_runs()
