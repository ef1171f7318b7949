"""What the sandbox remembers of the calls it got."""

from datetime import datetime

import httpx

from attachments.sandbox.process import Sandbox
from tests.sandbox.conftest import download_path, list_path


def test_every_call_is_logged_without_its_key(sandbox: Sandbox, api: httpx.Client):
    """Endpoint, ids, status and bytes are there; of the key only the first letters."""
    message = sandbox.control.add_message(attachments=[{"name": "a", "bytes": 12}])
    api.get(list_path(message))
    api.get(download_path(message), headers={"X-Mine": "yes"})
    api.get("/nothing", headers={"Authorization": "Bearer unknown-key"})
    api.post("/admin/mailboxes")
    rows = sandbox.control.requests()
    shown = ("endpoint", "method", "status", "counted", "complete", "under_way")
    assert [tuple(row[name] for name in shown) for row in rows] == [
        ("list", "GET", 200, True, True, False),
        ("download", "GET", 200, True, True, False),
        ("other", "GET", 401, False, True, False),
        ("mailboxes", "POST", 405, True, True, False),
    ]
    assert [row["n"] for row in rows] == list(range(rows[0]["n"], rows[0]["n"] + 4))
    assert rows[1]["message_id"] == message["id"]
    assert rows[1]["attachment_id"] == message["attachments"][0]["id"]
    assert rows[1]["bytes_sent"] == 12
    assert rows[1]["headers"]["X-Mine"] == "yes"
    assert [row["key"] for row in rows] == ["sandbo", "sandbo", "unknow", "sandbo"]
    assert all(row["headers"]["Authorization"] == "Bearer …" for row in rows)
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    assert datetime.fromisoformat(rows[0]["time"]).tzinfo is not None
    assert "unknown-key" not in sandbox.control.get("requests").text
    assert sandbox.control.requests("download") == [rows[1]]


def test_the_summary_counts_by_endpoint_and_status(sandbox: Sandbox, api: httpx.Client):
    """Counts, and the most calls that any window granted, until the log is cleared."""
    for _ in range(3):
        api.get("/admin/mailboxes")
    api.get("/nothing")
    assert sandbox.control.summary() == {
        "calls": 4,
        "endpoints": {"mailboxes": {"200": 3}, "other": {"404": 1}},
        "most_granted_in_a_window": 4,
    }
    sandbox.control.clear_requests()
    assert sandbox.control.requests() == []
    assert sandbox.control.summary() == {"calls": 0, "endpoints": {}, "most_granted_in_a_window": 0}


def test_the_control_api_is_not_logged(sandbox: Sandbox):
    """Only calls to the vendor's API are."""
    sandbox.control.get("health").raise_for_status()
    assert sandbox.control.requests() == []


def test_a_secret_in_another_scheme_stays_out_too(sandbox: Sandbox):
    """Whatever the Authorization header holds, only the scheme and six letters are kept."""
    values = ["Basic dXNlcjpwYXNzd29yZA==", "naked-secret-key", "bearer  spaced-secret-key", "Bearer"]
    for name, value in zip(["Authorization", "authorization", "AUTHORIZATION", "authorization"], values, strict=True):
        httpx.get(f"{sandbox.base_url}/x", headers={name: value}, trust_env=False)
    text = sandbox.control.get("requests").text
    assert not [secret for secret in ("dXNlcjpw", "naked-s", "spaced-") if secret in text]
    assert [row["key"] for row in sandbox.control.requests()] == ["dXNlcj", "naked-", "spaced", "Bearer"]
