"""The stand-in's reports are as the vendor documents them."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from attachments.sandbox.process import Sandbox

START = "/reports/receivedMessageDetail"
BOX = "billing@x.example"


@pytest.fixture(autouse=True)
def no_reports(sandbox: Sandbox) -> Iterator[None]:
    """No runs before and after."""
    sandbox.control.settings(reset_reports=True)
    yield
    sandbox.control.settings(reset_reports=True)


def parameters(api: httpx.Client, **changed: Any) -> dict[str, Any]:
    boxes = api.get("/admin/mailboxes").json()["mailboxes"]
    asked = {
        "mailboxId": next((box["mailboxId"] for box in boxes if box["mailboxEmail"] == BOX), "none"),
        "activityType": "received",
        "activityStart": "2026-05-01T00:00:00Z",
        "activityEnd": "2026-05-02T00:00:00",
    }
    return {name: value for name, value in {**asked, **changed}.items() if value is not None}


def add(sandbox: Sandbox, count: int) -> list[str]:
    asked = [{"mailbox": BOX, "received": f"2026-05-01T00:{number:02}:00Z"} for number in range(count)]
    return [message["id"] for message in sandbox.control.add_messages(asked)]


def begun(api: httpx.Client, rows: int = 50, **changed: Any) -> dict[str, Any]:
    answer = api.post(f"{START}?fieldGroup=basic&max={rows}", json={"parameters": parameters(api, **changed)})
    assert answer.status_code == 200, answer.text
    envelope: dict[str, Any] = answer.json()
    return envelope


def test_a_run_answers_at_once_and_is_done_later(sandbox: Sandbox, api: httpx.Client) -> None:
    """`running` with a link to itself; after a while `done` with the rows and how many there are."""
    ids = add(sandbox, 3)
    sandbox.control.settings(reports={"run_seconds": 0.3})
    envelope = begun(api)
    assert (envelope["status"], "result" in envelope) == ("running", False)
    assert envelope["_links"]["origin"]["body"] == {"parameters": parameters(api)}
    href = envelope["_links"]["self"]["href"]
    while (envelope := api.get(href).json())["status"] == "running":
        pass
    assert (envelope["status"], envelope["progress"], envelope["result"]["total"]) == ("done", 100, 3)
    assert [row["messageId"] for row in envelope["result"]["data"]] == ids
    assert all(row["id"] for row in envelope["result"]["data"])
    assert "next" not in envelope["_links"]


def test_pages_follow_one_another_both_ways(sandbox: Sandbox, api: httpx.Client) -> None:
    """`next` until there is none, and `prev` leads back."""
    ids = add(sandbox, 25)
    page = begun(api, rows=10)
    found = [row["messageId"] for row in page["result"]["data"]]
    first = page["result"]["data"]
    while "next" in page["_links"]:
        page = api.get(page["_links"]["next"]["href"]).json()
        found += [row["messageId"] for row in page["result"]["data"]]
    assert found == ids
    for _ in range(2):
        page = api.get(page["_links"]["prev"]["href"]).json()
    assert page["result"]["data"] == first


@pytest.mark.parametrize(
    "changed",
    [
        {"activityStart": "2026-05-01"},
        {"activityEnd": "2026-05-01T00:00:00.5Z"},
        {"activityEnd": "2026-02-31T00:00:00Z"},
        {"activityEnd": "2026-04-01T00:00:00Z"},
        {"activityStart": None},
        {"activityType": "everything"},
        {"mailboxId": None},
    ],
)
def test_what_is_malformed_gets_400(sandbox: Sandbox, api: httpx.Client, changed: dict[str, Any]) -> None:
    """A bare date above all."""
    add(sandbox, 1)
    assert api.post(START, json={"parameters": parameters(api, **changed)}).status_code == 400


@pytest.mark.parametrize("most", ["0", "501", "ten", "-1"])
def test_pages_hold_500_rows_at_most(sandbox: Sandbox, api: httpx.Client, most: str) -> None:
    """More, or no number, is refused."""
    add(sandbox, 1)
    assert api.post(f"{START}?max={most}", json={"parameters": parameters(api)}).status_code == 400


def test_the_body_may_be_made_to_have_one_shape(sandbox: Sandbox, api: httpx.Client) -> None:
    """Which one the vendor takes is not documented."""
    add(sandbox, 1)
    wrapped, bare = {"parameters": parameters(api)}, parameters(api)
    statuses = {}
    for shape in ("either", "wrapped", "bare"):
        sandbox.control.settings(reports={"body": shape})
        statuses[shape] = [api.post(START, json=body).status_code for body in (wrapped, bare)]
    assert statuses == {"either": [200, 200], "wrapped": [200, 400], "bare": [400, 200]}


def test_a_fourth_run_gets_429(sandbox: Sandbox, api: httpx.Client) -> None:
    """Three at a time; one that is done makes room."""
    add(sandbox, 1)
    sandbox.control.settings(reports={"run_seconds": 60})
    asked = parameters(api)
    statuses = [api.post(START, json=asked).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert sandbox.control.settings()["reports"]["started"] == 3


def test_a_run_can_end_in_error_and_a_result_expire(sandbox: Sandbox, api: httpx.Client) -> None:
    """`error` in the envelope; 404 once it has expired, by time or after so many pages."""
    add(sandbox, 3)
    sandbox.control.settings(reports={"ends_in_error": True})
    assert (begun(api)["status"], begun(api)["error"]["code"]) == ("error", "report_failed")
    sandbox.control.settings(reports={"ends_in_error": False, "expires_after": 0})
    assert api.get(begun(api)["_links"]["self"]["href"]).status_code == 404
    sandbox.control.settings(reports={"expires_after": 60, "pages": 1})
    href = begun(api)["_links"]["self"]["href"]
    assert [api.get(href).status_code for _ in range(2)] == [200, 404]


def test_a_result_belongs_to_the_key_that_started_it(sandbox: Sandbox, api: httpx.Client) -> None:
    """Another key gets 404, also one of the same account."""
    add(sandbox, 1)
    sandbox.control.settings(keys=[{"key": sandbox.key}, {"key": "other"}])
    href = begun(api)["_links"]["self"]["href"]
    assert httpx.get(href, headers={"Authorization": "Bearer other"}, trust_env=False).status_code == 404
    assert api.get(href).status_code == 200


def test_scopes_and_mailboxes_of_the_key(sandbox: Sandbox, api: httpx.Client) -> None:
    """Both scopes are needed; a mailbox outside the allowlist is as one that is not there."""
    add(sandbox, 1)
    asked = parameters(api)
    for scopes in (["reporting"], ["messages:read"], ["messages:content"]):
        sandbox.control.settings(keys=[{"key": sandbox.key, "scopes": scopes}])
        assert api.post(START, json=asked).status_code == 403
    sandbox.control.settings(keys=[{"key": sandbox.key, "mailboxes": ["other@x.example"]}])
    assert api.post(START, json=asked).status_code == 404
    assert api.post(START, json={**asked, "mailboxId": "nobody"}).status_code == 404


def test_every_call_counts_and_the_method_is_checked(sandbox: Sandbox, api: httpx.Client) -> None:
    """Start, looks and pages are calls as any other; a GET of the start and a POST of a result get 405."""
    add(sandbox, 1)
    asked = parameters(api)
    sandbox.control.settings(limit=2, reset_window=True)
    href = api.post(START, json=asked).json()["_links"]["self"]["href"]
    assert [api.get(href).status_code for _ in range(2)] == [200, 429]
    sandbox.control.settings(limit=None)
    assert (api.get(START).status_code, api.get(START).headers["Allow"]) == (405, "POST")
    assert api.post(href).status_code == 405


def test_the_cut_off_is_told(sandbox: Sandbox, api: httpx.Client) -> None:
    """And absent when there is none."""
    add(sandbox, 1)
    assert "dataCutoffTimestamp" not in begun(api)["result"]
    sandbox.control.settings(reports={"cutoff": "2026-05-01T00:00:30Z", "bare_rows": True})
    result = begun(api)["result"]
    assert result["dataCutoffTimestamp"] == "2026-05-01T00:00:30Z"
    assert [set(row) for row in result["data"]] == [{"id", "messageId"}]


def test_a_start_can_fail_although_the_run_was_begun(sandbox: Sandbox, api: httpx.Client) -> None:
    """The caller gets a 500, and one of the three is occupied."""
    add(sandbox, 1)
    asked = parameters(api)
    sandbox.control.settings(reports={"run_seconds": 60, "slots": 1})
    sandbox.control.fault(endpoint="report", times=1, fault={"kind": "status", "status": 500})
    assert [api.post(START, json=asked).status_code for _ in range(2)] == [500, 429]
    assert sandbox.control.settings()["reports"]["started"] == 1
