"""Faults in what is said, seen through httpx."""

import gzip
from typing import Any

import httpx
import pytest

from attachments.sandbox.process import Sandbox, SandboxError, running_sandbox
from tests.sandbox.conftest import download_path, list_path


@pytest.fixture
def message(sandbox: Sandbox) -> dict[str, Any]:
    return sandbox.control.add_message(attachments=[{"name": "a.pdf", "text": "true bytes"}])


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 599])
def test_a_status_comes_with_the_documented_body(sandbox: Sandbox, api: httpx.Client, message, status: int):
    """Without a body of its own the fault answers as the vendor would, with the headers it is given."""
    sandbox.control.fault(fault={"kind": "status", "status": status, "headers": {"Retry-After": "7"}})
    answer = api.get(list_path(message))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, str(status))
    assert answer.json()["_links"]["origin"]["href"] == sandbox.base_url + list_path(message)
    assert answer.headers["Retry-After"] == "7"
    assert api.get(list_path(message)).status_code == 200


@pytest.mark.parametrize(
    ("body", "content_type"), [("<html>502</html>", "text/html"), ("", None), ("{not json", "application/json")]
)
def test_a_proxy_may_answer_anything(sandbox: Sandbox, api: httpx.Client, message, body: str, content_type):
    """HTML, nothing at all, or broken JSON, under any content type."""
    sandbox.control.fault(fault={"kind": "status", "status": 502, "body": body, "content_type": content_type})
    answer = api.get(list_path(message))
    assert (answer.status_code, answer.text) == (502, body)
    assert answer.headers["Content-Type"].startswith(content_type or "text/html")
    assert int(answer.headers["Content-Length"]) == len(body)


def test_a_fault_in_front_of_the_vendor_does_not_count(sandbox: Sandbox, api: httpx.Client, message):
    """With `counted` false the rate limit never hears of the call; otherwise it does."""
    sandbox.control.settings(limit=1, window=30, reset_window=True)
    sandbox.control.fault(fault={"kind": "status", "status": 502, "counted": False})
    sandbox.control.fault(fault={"kind": "status", "status": 500})
    statuses = [api.get(list_path(message)).status_code for _ in range(3)]
    assert statuses == [502, 500, 429]
    assert [row["counted"] for row in sandbox.control.requests()] == [False, True, False]


def test_a_redirect_leads_anywhere(sandbox: Sandbox, api: httpx.Client, message):
    """The location may be another origin, whose log shows whether the key came along."""
    with running_sandbox(limit=None) as elsewhere:
        target = elsewhere.base_url + download_path(message)
        sandbox.control.fault(endpoint="download", fault={"kind": "redirect", "location": target})
        answer = api.get(download_path(message))
        assert (answer.status_code, answer.headers["Location"], answer.content) == (302, target, b"")
        httpx.get(target, headers={"Authorization": "Bearer leaked-key"}, trust_env=False)
        (row,) = elsewhere.control.requests()
    assert row["headers"]["Authorization"] == "Bearer …"
    assert (row["key"], row["status"]) == ("leaked", 401)


def test_headers_can_be_added_overridden_and_taken_away(sandbox: Sandbox, api: httpx.Client, message):
    """Names are compared without case; null takes a header away."""
    changes = {"Deprecation": "true", "content-disposition": None, "X-Content-Type-Options": "other"}
    sandbox.control.fault(endpoint="download", fault={"kind": "headers", "headers": changes})
    answer = api.get(download_path(message))
    assert answer.headers["Deprecation"] == "true"
    assert "Content-Disposition" not in answer.headers
    assert answer.headers.get_list("X-Content-Type-Options") == ["other"]
    assert answer.content == b"true bytes"


def test_a_header_may_hold_raw_utf_8(sandbox: Sandbox, raw, message):
    """As careless servers do, a name can stand unencoded in the header."""
    name = 'attachment; filename="日本.pdf"'
    fault = {"kind": "headers", "headers": {"Content-Disposition": name}}
    sandbox.control.fault(endpoint="download", fault=fault)
    assert raw(download_path(message), headers="Connection: close\r\n").header("Content-Disposition") == name


def test_what_comes_unannounced(sandbox: Sandbox, api: httpx.Client, message):
    """Unknown fields everywhere, and one attachment of an unknown type beside the known ones."""
    sandbox.control.fault(times=None, fault={"kind": "extra_fields", "attachment_type": "newAttachment"})
    listed = api.get(list_path(message)).json()
    assert set(listed) == {"attachments", "fieldOfTomorrow"}
    assert [row["attachmentType"] for row in listed["attachments"]] == ["fileAttachment", "newAttachment"]
    assert all(row["fieldOfTomorrow"] for row in listed["attachments"])
    mailboxes = api.get("/admin/mailboxes").json()["mailboxes"]
    assert mailboxes
    assert all(row["fieldOfTomorrow"] for row in mailboxes)
    assert api.get(download_path(message)).content == b"true bytes"


@pytest.mark.parametrize(
    ("fields", "listed"),
    [
        ({}, []),
        ({"keep": 1}, ["a.pdf"]),
        ({"placeholder": "Scan In Progress"}, ["Scan In Progress"]),
        ({"placeholder": "Scan In Progress", "keep": 5}, ["a.pdf", "b.pdf", "Scan In Progress"]),
    ],
)
def test_a_list_that_is_not_finished(sandbox: Sandbox, api: httpx.Client, fields: dict[str, Any], listed: list[str]):
    """Empty, or with a scanner's placeholder in place of what is still to come; the next one is whole."""
    message = sandbox.control.add_message(attachments=[{"name": "a.pdf"}, {"name": "b.pdf"}])
    sandbox.control.fault(endpoint="list", fault={"kind": "unfinished_list", **fields})
    assert [row["name"] for row in api.get(list_path(message)).json()["attachments"]] == listed
    assert [row["name"] for row in api.get(list_path(message)).json()["attachments"]] == ["a.pdf", "b.pdf"]


@pytest.mark.parametrize(("force", "accepts", "packed"), [(True, "identity", True), (False, "identity", False)])
def test_gzip_that_nobody_asked_for(sandbox: Sandbox, api: httpx.Client, message, force, accepts, packed):
    """With `force` the body is gzipped and so labelled although identity was asked for; without it, it is not."""
    fault = {"kind": "content_encoding", "encoding": "gzip", "force": force}
    sandbox.control.fault(endpoint="download", fault=fault)
    with api.stream("GET", download_path(message), headers={"Accept-Encoding": accepts}) as answer:
        body = b"".join(answer.iter_raw())
        assert answer.headers.get("Content-Encoding") == ("gzip" if packed else None)
        assert int(answer.headers["Content-Length"]) == len(body)
    assert (gzip.decompress(body) if packed else body) == b"true bytes"


def test_gzip_for_those_who_take_it(sandbox: Sandbox, api: httpx.Client, message):
    """A client that accepts gzip gets it without force, and unpacks it."""
    sandbox.control.fault(endpoint="download", fault={"kind": "content_encoding"})
    answer = api.get(download_path(message))
    assert (answer.headers["Content-Encoding"], answer.content) == ("gzip", b"true bytes")


@pytest.mark.parametrize(
    "wrong",
    [
        {"fault": {"kind": "explode"}},
        {"fault": {}},
        {},
        {"fault": {"kind": "cut", "after_byte": 3}},
        {"fault": {"kind": "cut", "after_bytes": 3, "after_fraction": 0.1}},
        {"fault": {"kind": "cut", "after_fraction": 1.5}},
        {"fault": {"kind": "cut", "framing": "none"}},
        {"fault": {"kind": "cut", "how": "gently"}},
        {"fault": {"kind": "slow", "bytes_per_second": 0}},
        {"fault": {"kind": "wrong_length"}},
        {"fault": {"kind": "status", "status": 42}},
        {"fault": {"kind": "delay", "seconds": -1}},
        {"fault": {"kind": "delay", "seconds": float("nan")}},
        {"fault": {"kind": "headers", "headers": {"Content-Length": "1"}}},
        {"fault": {"kind": "headers", "headers": {"X": "a\r\nb"}}},
        {"fault": {"kind": "drop"}, "endpoint": "upload"},
        {"fault": {"kind": "drop"}, "time": 3},
        {"fault": {"kind": "drop"}, "times": "3"},
    ],
)
def test_a_mistyped_fault_is_refused(sandbox: Sandbox, wrong: dict[str, Any]):
    """Unknown kinds, fields and values answer 400: a fault that does nothing would prove nothing."""
    with pytest.raises(SandboxError, match="400"):
        sandbox.control.fault(**wrong)
    assert sandbox.control.get("faults").json() == {"faults": []}
