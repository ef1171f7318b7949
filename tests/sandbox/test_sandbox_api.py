"""The three endpoints, their keys and their errors, as the vendor documents them."""

import socket
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlsplit

import httpx
import pytest

from attachments.sandbox.answers import content_disposition
from attachments.sandbox.process import Sandbox, SandboxError
from tests.sandbox.conftest import download_path, list_path


def test_lists_what_was_put_on_the_message(sandbox: Sandbox, api: httpx.Client):
    """Listing shows id, name, type, size and kind of every attachment, and nothing else."""
    message = sandbox.control.add_message(
        attachments=[
            {"id": "A=", "name": "a.pdf", "bytes": 12, "listed_size": 99},
            {"id": "B=", "name": "link", "type": "referenceAttachment", "content_type": None},
        ]
    )
    answer = api.get(list_path(message))
    assert answer.status_code == 200
    assert answer.json() == {
        "attachments": [
            {
                "id": "A=",
                "name": "a.pdf",
                "contentType": "application/pdf",
                "size": 99,
                "attachmentType": "fileAttachment",
            },
            {
                "id": "B=",
                "name": "link",
                "contentType": None,
                "size": 0,
                "attachmentType": "referenceAttachment",
            },
        ]
    }


def test_a_download_carries_bytes_and_documented_headers(sandbox: Sandbox, api: httpx.Client):
    """A download is the raw bytes with type, length, disposition and nosniff."""
    message = sandbox.control.add_message(attachments=[{"name": "invoice.pdf", "text": "hello"}])
    answer = api.get(download_path(message))
    assert answer.content == b"hello"
    assert answer.headers["Content-Type"] == "application/pdf"
    assert answer.headers["Content-Length"] == "5"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="invoice.pdf"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a b.pdf", 'attachment; filename="a b.pdf"'),
        ('say "hi" \\.txt', 'attachment; filename="say \\"hi\\" \\\\.txt"'),
        ("Müller.pdf", "attachment; filename=\"M_ller.pdf\"; filename*=UTF-8''M%C3%BCller.pdf"),
        ("日本.pdf", "attachment; filename=\"__.pdf\"; filename*=UTF-8''%E6%97%A5%E6%9C%AC.pdf"),
        ("a\r\nX-Evil: 1", "attachment; filename=\"a__X-Evil: 1\"; filename*=UTF-8''a%0D%0AX-Evil%3A%201"),
        ("lone\ud800.txt", "attachment; filename=\"lone_.txt\"; filename*=UTF-8''lone%EF%BF%BD.txt"),
        ("😀", "attachment; filename=\"_\"; filename*=UTF-8''%F0%9F%98%80"),
        ("Ä/b.txt", "attachment; filename=\"_/b.txt\"; filename*=UTF-8''%C3%84%2Fb.txt"),
        (None, "attachment"),
    ],
)
def test_names_any_file_as_rfc_6266_says(sandbox: Sandbox, api: httpx.Client, name: str | None, header: str):
    """The disposition has an ASCII fallback, and the whole name in `filename*` when that lost something."""
    assert content_disposition(name) == header
    message = sandbox.control.add_message(attachments=[{"name": name, "text": ""}])
    assert api.get(download_path(message)).headers["Content-Disposition"] == header
    assert api.get(list_path(message)).json()["attachments"][0]["name"] == name


def test_a_test_can_dictate_the_disposition(sandbox: Sandbox, api: httpx.Client):
    """A raw Content-Disposition goes out as given; null leaves the header out."""
    message = sandbox.control.add_message(
        attachments=[
            {"name": "a", "content_disposition": "attachment; filename=../../etc/passwd"},
            {"name": "b", "content_disposition": None},
        ]
    )
    assert api.get(download_path(message, 0)).headers["Content-Disposition"].endswith("../../etc/passwd")
    assert "Content-Disposition" not in api.get(download_path(message, 1)).headers


def test_ids_with_slash_plus_and_equals_are_found_when_encoded(sandbox: Sandbox, api: httpx.Client):
    """Ids are compared letter for letter after percent-decoding, and only then split off the path."""
    odd = "AAMk/+-_=%2F a"
    message = sandbox.control.add_message(id=odd, attachments=[{"id": "x/y+z==", "name": "a", "text": "bytes"}])
    assert api.get(download_path(message)).content == b"bytes"
    assert api.get(list_path({"id": odd.lower()})).status_code == 404


def test_a_slash_that_is_not_encoded_is_another_path(sandbox: Sandbox, raw):
    """A client that forgets to encode a slash meets 404, as at the vendor."""
    sandbox.control.add_message(id="a/b", attachments=[])
    assert raw("/messages/a/b/attachments", headers="Connection: close\r\n").status == 404
    assert raw("/messages/a%2fb/attachments", headers="Connection: close\r\n").status == 200


def test_made_up_ids_look_like_graph_ids(sandbox: Sandbox):
    """Ids are long, of both alphabets, and never the same twice."""
    rows = sandbox.control.add_messages([{"attachments": [{"name": "a"}]} for _ in range(40)])
    ids = [row["id"] for row in rows] + [row["attachments"][0]["id"] for row in rows]
    assert len(set(ids)) == 80
    assert all(150 <= len(known) <= 250 and known.endswith("=") for known in ids)
    assert any("/" in known and "+" in known for known in ids)
    assert any("-" in known and "_" in known for known in ids)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer nobody", "Basic sandbox-key", "sandbox-key"])
def test_a_call_without_a_good_key_gets_401(sandbox: Sandbox, authorization: str | None):
    """A missing, malformed or unknown key: 401 with the documented error body."""
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = httpx.get(f"{sandbox.base_url}/messages/a%2Fb/attachments?x=1", headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert answer.json() == {
        "_links": {"origin": {"href": f"{sandbox.base_url}/messages/a%2Fb/attachments?x=1", "method": "GET"}},
        "status": "error",
        "error": {"code": "401", "message": answer.json()["error"]["message"]},
    }


def test_a_key_ends_with_its_date_or_its_deletion(sandbox: Sandbox):
    """An expired or deleted key gets 401 at once; one that is still good does not."""
    now = datetime.now(UTC)
    past, future = (now - timedelta(seconds=1)).isoformat(), (now + timedelta(hours=1)).isoformat()
    sandbox.control.settings(keys=[{"key": "old", "expires": past}, {"key": "new", "expires": future}])

    def status(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{sandbox.base_url}/admin/mailboxes", headers=headers, trust_env=False).status_code

    assert (status("old"), status("new")) == (401, 200)
    sandbox.control.post("keys/new/revoke").raise_for_status()
    assert status("new") == 401
    assert sandbox.control.post("keys/new/revoke").status_code == 404


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [("reporting", "mailboxes"), ("messages:read", "list"), ("messages:content", "download")],
)
def test_each_endpoint_wants_its_scope(sandbox: Sandbox, api: httpx.Client, scope: str, allowed: str):
    """A key with one scope reaches one endpoint; the others answer 403."""
    message = sandbox.control.add_message(attachments=[{"name": "a"}])
    sandbox.control.settings(keys=[{"key": sandbox.key, "scopes": [scope]}])
    paths = {"mailboxes": "/admin/mailboxes", "list": list_path(message), "download": download_path(message)}
    answers = {endpoint: api.get(path) for endpoint, path in paths.items()}
    assert {endpoint for endpoint, answer in answers.items() if answer.status_code == 200} == {allowed}
    refused = [answer for answer in answers.values() if answer.status_code != 200]
    assert all(answer.json()["error"]["code"] == "403" for answer in refused)


def test_outside_the_allowlist_is_as_if_it_did_not_exist(sandbox: Sandbox, api: httpx.Client):
    """The 404 for a forbidden mailbox equals the one for nothing at all, but for the origin's href."""
    theirs = sandbox.control.add_message(mailbox="theirs@x.example", attachments=[{"name": "a"}])
    ours = sandbox.control.add_message(mailbox="ours@x.example", attachments=[{"name": "a"}])
    sandbox.control.settings(keys=[{"key": sandbox.key, "mailboxes": ["OURS@x.example"]}])
    assert api.get(list_path(ours)).status_code == 200
    nothing = {"id": "x" * len(theirs["id"]), "attachments": [{"id": theirs["attachments"][0]["id"]}]}
    for path in (list_path, download_path):
        hidden, missing = api.get(path(theirs)), api.get(path(nothing))
        assert hidden.status_code == missing.status_code == 404
        there, nowhere = (quote(row["id"], safe="").encode() for row in (theirs, nothing))
        assert hidden.content.replace(there, b"") == missing.content.replace(nowhere, b"")
        assert set(hidden.headers) == set(missing.headers)
    rows = api.get("/admin/mailboxes").json()["mailboxes"]
    assert [row["mailboxEmail"].lower() for row in rows] == ["ours@x.example"]


def test_mailboxes_have_the_documented_fields(sandbox: Sandbox, api: httpx.Client):
    """The mailboxes of the messages are listed, each with an id of its own."""
    sandbox.control.add_message(mailbox="billing@x.example", attachments=[])
    rows = api.get("/admin/mailboxes").json()["mailboxes"]
    assert [row["mailboxEmail"] for row in rows] == ["billing@x.example", "support@sandbox.example"]
    fields = {"mailboxId", "mailboxName", "mailboxEmail", "active", "timeZone", "users", "tags"}
    assert all(set(row) == fields for row in rows)
    assert len({row["mailboxId"] for row in rows}) == 2


@pytest.mark.parametrize("kind", ["referenceAttachment", "itemAttachment", "somethingNewAttachment"])
def test_only_a_file_can_be_downloaded(sandbox: Sandbox, api: httpx.Client, kind: str):
    """A download of anything else answers 403."""
    message = sandbox.control.add_message(attachments=[{"name": "a", "type": kind}])
    answer = api.get(download_path(message))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "403")


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_get_405(sandbox: Sandbox, api: httpx.Client, method: str):
    """Every endpoint answers GET only; a HEAD has no body, and the connection stays usable."""
    message = sandbox.control.add_message(attachments=[{"name": "a"}])
    for path in ("/admin/mailboxes", list_path(message), download_path(message)):
        answer = api.request(method, path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")
        assert answer.content == b"" if method == "HEAD" else answer.json()["error"]["code"] == "405"
    assert api.get(list_path(message)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/messages", "/messages/a", "/messages/a/attachments/", "/admin", "/reports/x"])
def test_unknown_paths_get_the_documented_404(api: httpx.Client, path: str):
    """What there is not answers 404 with the error body."""
    answer = api.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "404")


@pytest.mark.parametrize("segment", ["", "%00", "%0A", "%FF", "%C3"])
def test_a_malformed_id_gets_400(raw, segment: str):
    """An id that is empty, no UTF-8 or holds control characters answers 400."""
    answer = raw(f"/messages/{segment}/attachments", headers="Connection: close\r\n")
    assert (answer.status, answer.document["error"]["code"]) == (400, "400")


def test_a_fresh_message_is_404_until_it_has_settled(sandbox: Sandbox, api: httpx.Client):
    """With `visible_after` a message is not there at first and appears by itself."""
    added = time.monotonic()
    message = sandbox.control.add_message(visible_after=2, attachments=[{"name": "a"}])
    statuses = [api.get(list_path(message)).status_code]
    while statuses[-1] == 404:
        statuses.append(api.get(list_path(message)).status_code)
    assert statuses[0] == 404
    assert statuses[-1] == 200
    seen = sandbox.control.requests("list")
    assert seen[-1]["at"] - added >= 2


def test_one_connection_carries_many_calls(sandbox: Sandbox):
    """Answers are framed so exactly that two pipelined calls on one connection both arrive whole."""
    message = sandbox.control.add_message(attachments=[{"name": "a", "text": "one"}, {"name": "b", "text": "two"}])
    address = urlsplit(sandbox.base_url)
    call = "GET /api/v1{} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sandbox-key\r\n{}\r\n"
    both = call.format(download_path(message, 0), "") + call.format(download_path(message, 1), "Connection: close\r\n")
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(both.encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert b"\r\n\r\noneHTTP/1.1" in received
    assert received.endswith(b"\r\n\r\ntwo")


@pytest.mark.parametrize(
    "wrong",
    [
        {"atachments": []},
        {"attachments": [{"name": "a", "byte": 1}]},
        {"attachments": [{"bytes": 1}]},
        {"attachments": [{"name": "a", "bytes": 1, "text": "b"}]},
        {"attachments": [{"name": "a", "bytes": -1}]},
        {"attachments": [{"name": "a", "base64": "?"}]},
        {"attachments": [{"name": "a", "content_type": "a/b\r\nX: y"}]},
        {"attachments": [{"name": "a", "id": "same"}, {"name": "b", "id": "same"}]},
        {"visible_after": "soon"},
    ],
)
def test_a_mistyped_order_is_refused(sandbox: Sandbox, wrong: dict):
    """The control API refuses what it does not know, so that no test is green by a typing mistake."""
    with pytest.raises(SandboxError, match="400"):
        sandbox.control.add_message(**wrong)
    assert sandbox.control.get("messages").json() == {"messages": []}


@pytest.mark.parametrize(
    ("path", "wrong", "text"),
    [
        ("messages", {"atachments": []}, "message: atachments: there is no such field; leave it out"),
        ("messages", {"attachments": [{"bytes": 1}]}, "message: attachments.0.name: send this field"),
        ("messages", {"visible_after": "soon"}, "message: visible_after: Input should be a valid number"),
        ("messages", {"messages": [{"id": 1}]}, "messages: messages.0.id: send a text"),
        ("faults", {"fault": []}, "order of a fault: fault: send a JSON object"),
        ("faults", {"fault": {}}, "order of a fault: fault: send the field kind"),
        (
            "faults",
            {"fault": {"kind": "wrong_length"}},
            "order of a fault: fault.wrong_length.announce: send",
        ),
        (
            "settings",
            {"keys": [{"key": "k", "scopes": ["all"]}]},
            "settings: keys.0.scopes.0: Input should be",
        ),
        ("settings", {"reports": {"slots": True}}, "reports: slots: Input should be a valid integer"),
        ("deliver", {"url": "http://127.0.0.1"}, "delivery: send either message_id or payload"),
        ("test-button", [], "test button: send a JSON object"),
    ],
)
def test_a_refusal_says_which_field_and_what_to_send(sandbox: Sandbox, path: str, wrong: object, text: str):
    """The answer's text names the field by its place in the document."""
    answer = sandbox.control.post(path, json=wrong)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(text)


def test_an_id_is_taken_once(sandbox: Sandbox):
    """A second message under the same id is refused with 409."""
    sandbox.control.add_message(id="once")
    with pytest.raises(SandboxError, match="409"):
        sandbox.control.add_message(id="once")


def test_messages_are_shown_as_they_were_added(sandbox: Sandbox):
    """GET shows all messages in the shape in which POST answered."""
    added = [
        sandbox.control.add_message(attachments=[{"name": "a", "bytes": 5}]),
        sandbox.control.add_message(),
    ]
    shown = sandbox.control.get("messages").json()["messages"]
    for row in (*added, *shown):
        row["webhook"].pop("timestamp")
    assert shown == added


def test_the_messages_are_a_list_for_a_person_and_json_for_a_program(sandbox: Sandbox):
    """`curl` shows an id and a subject on each line, whatever the subject holds; a program asks for JSON."""
    for id_, subject in (("one=", "Invoice 7"), ("two=", "a\n\tb\x1b[31m\u202ec"), ("three=", "")):
        sandbox.control.add_message(id=id_, subject=subject, attachments=[])
    address = sandbox.base_url.replace("/api/v1", "/_sandbox/messages")
    with httpx.Client(trust_env=False) as curl:
        for accept in ("*/*", "text/html,application/xhtml+xml,*/*;q=0.8", "text/plain"):
            shown = curl.get(address, headers={"Accept": accept})
            assert shown.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert shown.text == "one=\tInvoice 7\ntwo=\ta b [31m c\nthree=\t\n"
        for accept in ("application/json", "application/json, */*"):
            rows = curl.get(address, headers={"Accept": accept}).json()["messages"]
            assert [row["id"] for row in rows] == ["one=", "two=", "three="]
