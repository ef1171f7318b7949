"""A run that somebody cancels ends within seconds, whatever it waits for, and leaves nothing behind.

One that somebody suspends goes no further until it is resumed.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from attachments.storage import message_key
from tests.e2e.installation import Installation, until

SECONDS = 60.0
"""On a busy machine; what a run waits for here would take many times as long, or never come."""
SIZE = 400_000


def by_api(running: Installation, run: dict[str, Any]) -> None:
    """As the button in the UI does."""
    state = {"type": "CANCELLING", "name": "Cancelling"}
    running._post(f"flow_runs/{run['id']}/set_state", {"state": state})


def by_command(running: Installation, run: dict[str, Any]) -> None:
    """As a person in a terminal does."""
    running.stack.run("prefect", "flow-run", "cancel", run["id"])


def cancelled_in_time(
    running: Installation,
    message: dict[str, Any],
    cancel: Callable[[Installation, dict[str, Any]], None] = by_api,
    *,
    sleeps: bool = False,
) -> None:
    """Cancel the message's only run; then nothing of it is left, and the worker is free for another message."""
    (run,) = running.runs(message_id=message["id"])
    cancel(running, run)
    asked = time.monotonic()
    until(lambda: running.ended_run(message)["state_type"] == "CANCELLED", "the run to be cancelled")
    took = time.monotonic() - asked
    print(f"cancelled after {took:.1f} s")
    assert took < SECONDS
    assert (f"{run['id']} is cancelled; its thread sleeps" in running.stack.worker.output()) is sleeps
    incoming = running.stack.store / ".incoming"

    def is_gone() -> bool:
        return not [path for path in incoming.glob("*") if message_key(message["id"]) in path.name]

    until(is_gone, "the temporary file to go", 5)
    assert running.files(message) == []
    assert running.manifest(message) is None
    calls = len(running.calls(message))
    other = running.sandbox.control.add_message(attachments=[{"name": "other.txt", "text": "other"}])
    running.send(other)
    running.complete_manifest(other)
    assert len(running.calls(message)) == calls, "no call is made for a run that was cancelled"


def begun(running: Installation, endpoint: str, fault: dict[str, Any], times: int | None = 1) -> dict[str, Any]:
    """A message whose run has met the fault, at that endpoint."""
    message = running.sandbox.control.add_message(attachments=[{"name": "large.bin", "bytes": SIZE}])
    running.sandbox.control.fault(endpoint=endpoint, message_id=message["id"], times=times, fault=fault)
    running.send(message)
    until(lambda: bool(running.calls(message, endpoint)), f"the {endpoint} call")
    return message


@pytest.mark.parametrize("cancel", [by_api, by_command])
def test_a_download_under_way_is_cut_off(
    running: Installation, cancel: Callable[[Installation, dict[str, Any]], None]
) -> None:
    """While bytes come; and a run that is made for the message afterwards stores it."""
    message = begun(running, "download", {"kind": "slow", "bytes_per_second": 1000})
    cancelled_in_time(running, message, cancel)
    again = running.run_deployment(message_id=message["id"])
    assert again["state_type"] == "COMPLETED"
    assert running.complete_manifest(message).attachments[0].sha256 == message["attachments"][0]["sha256"]


@pytest.mark.parametrize("endpoint", ["list", "download"])
@pytest.mark.parametrize("after_bytes", [0, pytest.param(10, marks=pytest.mark.soak)])
def test_a_silent_vendor_is_not_waited_for(running: Installation, endpoint: str, after_bytes: int) -> None:
    """Before the first byte of the body, and after some."""
    message = begun(running, endpoint, {"kind": "stall", "after_bytes": after_bytes, "seconds": 600})
    cancelled_in_time(running, message)


def test_a_pause_between_two_tries_is_not_waited_for(running: Installation) -> None:
    """The thread sleeps, within Prefect, and can't be woken: it is left to itself, and does nothing more."""
    message = begun(running, "download", {"kind": "status", "status": 503}, times=None)
    until(lambda: len(running.calls(message, "download")) > 2, "the third try")
    cancelled_in_time(running, message, sleeps=True)


def test_a_slot_is_not_waited_for(running: Installation) -> None:
    """While all calls of the account are held back. The worker may use a slot again that it had from before."""
    limit = "v2/concurrency_limits/emailgistics-api"
    until(lambda: running.prefect.get(limit).json()["active_slots"] == 0, "the release of all slots")
    running.change(limit, {"limit": 0})
    message = running.sandbox.control.add_message(attachments=[{"name": "a.bin", "bytes": SIZE}])
    try:
        running.send(message)
        until(lambda: [run["state_type"] for run in running.runs(message_id=message["id"])] == ["RUNNING"], "the run")
        time.sleep(1)
        (run,) = running.runs(message_id=message["id"])
        by_api(running, run)
        asked = time.monotonic()
        until(lambda: running.ended_run(message)["state_type"] == "CANCELLED", "the run to be cancelled")
        assert time.monotonic() - asked < SECONDS
    finally:
        running.change(limit, {"limit": 100_000})
    time.sleep(3)
    assert running.calls(message) == []


def test_a_suspended_run_goes_on_when_it_is_resumed(running: Installation) -> None:
    """The download that is under way ends; no task begins after it. Resumed, the run completes what was left."""
    message = begun(running, "download", {"kind": "slow", "bytes_per_second": SIZE // 6})
    (run,) = running.runs(message_id=message["id"])
    details = {"pause_timeout": (datetime.now(UTC) + timedelta(hours=1)).isoformat(), "pause_reschedule": True}
    suspended = {"type": "PAUSED", "name": "Suspended", "state_details": details}
    running._post(f"flow_runs/{run['id']}/set_state", {"state": suspended})
    until(lambda: running.files(message) != [], "the download to end")
    time.sleep(3)
    assert running.run(run["id"])["state_name"] == "Suspended"
    assert running.manifest(message) is None
    running._post(f"flow_runs/{run['id']}/resume", {})
    assert running.complete_manifest(message).attachments[0].sha256 == message["attachments"][0]["sha256"]
    assert running.ended_run(message)["state_type"] == "COMPLETED"
    assert len(running.files(message)) == 1
