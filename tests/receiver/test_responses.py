"""What a sender is answered: every answer is the vendor's envelope (webhooks/response-envelope)."""

import json
import socket
from typing import Any
from uuid import uuid4

import httpx
import pytest

from .conftest import SECRET, Receiver, client
from .sockets import exchange, raw_request

SUCCESS = "success"
# What Admin's test button posts looks like a real message (webhooks/setup); every documented field is there.
PERSON = {"emailAddress": {"name": "Ada Canary", "address": "ada@canary.example"}}
SAMPLE = {
    "id": "AAMkSAMPLE=",
    "event": "received",
    "internetMessageId": "<canary-internet-id@example.com>",
    "received": "2026-11-22T10:00:00Z",
    "mailbox": "shared@example.com",
    "sender": PERSON,
    "from": PERSON,
    "to": [PERSON],
    "cc": [],
    "subject": "Subject canary",
    "hasAttachments": True,
    "timestamp": "2026-11-22T10:00:01Z",
    "conversationId": "AAQk=",
    "bodyText": "Body canary",
    "customFields": {"customer": "Field canary"},
}
BODY = json.dumps(SAMPLE).encode()
VALID = f"Bearer {SECRET}".encode()


def check(answer: httpx.Response, status: int, word: str, said: str = "") -> None:
    """The status, and an envelope of exactly status and message."""
    document = answer.json()
    assert answer.status_code == status, document
    assert document.keys() == {"status", "message"}
    assert document["status"] == word
    assert said in document["message"]


def fresh_id() -> str:
    return f"AAMk{uuid4().hex}="


def test_a_delivery_is_accepted(shared: Receiver) -> None:
    """200 and success, and a run of the deployment with the message's parameters is made."""
    message_id = fresh_id()
    answer = shared.post({**SAMPLE, "id": message_id})
    check(answer, 200, SUCCESS, "download-attachments/default")
    shared.until(lambda: message_id in shared.prefect.message_ids, "the run")
    (run,) = [run for run in shared.prefect.runs.values() if run["parameters"]["message_id"] == message_id]
    assert run["parameters"] == {
        "message_id": message_id,
        "mailbox": "shared@example.com",
        "received": "2026-11-22T10:00:00+00:00",
        "conversation_id": "AAQk=",
        "has_attachments": True,
    }


def test_admins_test_button_gets_a_success(shared: Receiver) -> None:
    """The sample event, with the secret, is answered with `status` and `message`."""
    check(shared.post(SAMPLE), 200, SUCCESS)


def test_another_deployment_of_the_flow_is_known_by_its_name(shared: Receiver) -> None:
    """The path chooses the deployment."""
    message_id = fresh_id()
    check(shared.deliver(message_id, "pdfs"), 200, SUCCESS, "download-attachments/pdfs")
    shared.until(lambda: message_id in shared.prefect.message_ids, "the run")
    (run,) = [run for run in shared.prefect.runs.values() if run["parameters"]["message_id"] == message_id]
    assert run["deployment_id"] == shared.prefect.deployments["pdfs"]


@pytest.mark.parametrize(
    "fields",
    [
        {"hasAttachments": False},
        {"event": "closed"},
        {"event": "something.new", "attachments": [1, {"deep": [None]}]},
    ],
)
def test_what_asks_for_no_download_is_a_success(shared: Receiver, fields: dict[str, Any]) -> None:
    """No attachments, or an event of another kind: nothing to do, and no run."""
    message_id = fresh_id()
    check(shared.deliver(message_id, **fields), 200, SUCCESS, "Nothing to do")
    assert message_id not in shared.prefect.message_ids


def test_unknown_fields_are_tolerated(shared: Receiver) -> None:
    """The vendor adds fields without notice (getting-started/versioning)."""
    check(shared.deliver(fresh_id(), newField={"a": [1, 2]}, another=None, bodyText="x" * 500_000), 200, SUCCESS)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "text/json", "", None])
def test_json_may_be_declared_in_many_ways(shared: Receiver, content_type: str | None) -> None:
    """What is plainly JSON is taken, also when nothing is declared."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    body = json.dumps({"id": fresh_id(), "event": "received"}).encode()
    check(shared.post(content=body, headers=headers), 200, SUCCESS)


@pytest.mark.parametrize("token", [SECRET, "next-secret-of-two", f"{SECRET}, next-secret-of-two,nächstes-wort-davon"])
def test_every_current_secret_opens(shared: Receiver, token: str) -> None:
    """While it is rotated, the old secret and the new one are both valid; so is the whole, which may be one secret."""
    check(shared.post(SAMPLE, headers={"Authorization": f"Bearer {token}".encode()}), 200, SUCCESS)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_a_secret_may_hold_any_letter(shared: Receiver, encoding: str) -> None:
    """Whichever way a sender encodes its header."""
    request = raw_request("POST", "/webhooks/default", BODY, "Bearer nächstes-wort-davon".encode(encoding))
    assert exchange(shared.url, request).startswith(b"HTTP/1.1 200 ")


WRONG = {
    "missing": None,
    "wrong": b"Bearer wrong-canary-secret",
    "empty": b"Bearer ",
    "another scheme": b"Basic " + SECRET.encode(),
    "bare": SECRET.encode(),
    "prefix": VALID[:-1],
    "all at once": VALID + b", next-secret-of-two",
    "not ASCII": b"Bearer \xfc\xff",
}


@pytest.mark.parametrize("header", WRONG.values(), ids=WRONG.keys())
def test_without_a_valid_secret_the_answer_is_401(shared: Receiver, header: bytes | None) -> None:
    """And says so in the envelope."""
    answer = exchange(shared.url, raw_request("POST", "/webhooks/default", BODY, header))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"www-authenticate: Bearer" in head
    document = json.loads(body)
    assert document.keys() == {"status", "message"}
    assert document["status"] == "error"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/webhooks/default"),
        ("POST", "/webhooks/no-such-deployment"),
        ("POST", "/no/such/path"),
        ("GET", "/"),
        ("GET", "/webhooks/default"),
        ("DELETE", "/webhooks/default"),
        ("OPTIONS", "/webhooks/default"),
        ("BREW", "/webhooks/default"),
        ("POST", "/health"),
        ("PUT", "/metrics"),
        ("DELETE", "/ready"),
        ("GET", "/health/"),
        ("GET", "//metrics"),
        ("GET", "http://receiver//metrics"),
        ("GET", "/webhooks/../metrics"),
        ("GET", "/docs"),
    ],
)
def test_401_comes_before_anything_else_is_looked_at(shared: Receiver, method: str, path: str) -> None:
    """Neither paths, methods nor deployments can be told apart without the secret."""
    request = raw_request(method, path, b"not json", b"Bearer wrong")
    answer = exchange(shared.url, request)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.endswith(b"Set the receiver's secret in Admin.\"}")


@pytest.mark.parametrize("length", [2 * 1024 * 1024, 10**15])
def test_401_comes_before_the_size(shared: Receiver, length: int) -> None:
    """A body of any declared size, not yet sent, is not waited for."""
    head = f"POST /webhooks/default HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()
    assert exchange(shared.url, head).startswith(b"HTTP/1.1 401 ")


def test_a_websocket_needs_the_secret_too(shared: Receiver) -> None:
    """A request to upgrade is a request like any other."""
    upgrade = (
        b"GET /webhooks/default HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert exchange(shared.url, upgrade).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"id": ""}',
        b'{"id": 7}',
        b'{"id": "a\\u0000"}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_json_object_with_an_id_is_400(shared: Receiver, body: bytes) -> None:
    """The envelope says what is missing and quotes nothing."""
    check(shared.post(content=body, headers={"Content-Type": "application/json"}), 400, "error")


def test_an_id_that_no_message_can_have_is_400(shared: Receiver) -> None:
    """2,048 characters are taken, one more is not."""
    check(shared.deliver("é" * 2048), 200, SUCCESS)
    check(shared.deliver("é" * 2049), 400, "error", "2048")


def test_an_unknown_deployment_is_404(shared: Receiver) -> None:
    """A name that Prefect does not know under the flow."""
    for name in ("no-such", "a%2Fb", "%00", "%F0%9F%93%8E", "x" * 4000, "DEFAULT"):
        check(shared.deliver(fresh_id(), name), 404, "error")
    check(shared.deliver(fresh_id(), "no-such"), 404, "error", "no deployment download-attachments/no-such.")


@pytest.mark.parametrize(
    "target",
    [
        "http://receiver/webhooks/pdfs",
        "HTTPS://receiver.example:8443/webhooks/pdfs/?region=c1",
        "/webhooks/pdfs/",
        "//webhooks//pdfs//",
        "/webhooks/pdfs?",
        "/webhooks/pdfs?a=/b/&c=%2F",
        "/%77ebhooks/%70dfs",
    ],
)
def test_every_spelling_of_the_path_is_accepted(shared: Receiver, target: str) -> None:
    """Absolute form, slashes too many, percent-encoding and a query: the sender would give up for good at a 404."""
    message_id = fresh_id()
    body = json.dumps({**SAMPLE, "id": message_id}).encode()
    answer = exchange(shared.url, raw_request("POST", target, body, VALID))
    assert answer.startswith(b"HTTP/1.1 200 ")
    shared.until(lambda: message_id in shared.prefect.message_ids, "the run")
    (run,) = [run for run in shared.prefect.runs.values() if run["parameters"]["message_id"] == message_id]
    assert run["deployment_id"] == shared.prefect.deployments["pdfs"]


@pytest.mark.parametrize(("target", "status"), [("http://receiver/health", 200), ("http://receiver", 401), ("*", 401)])
def test_monitors_may_use_the_absolute_form(shared: Receiver, target: str, status: int) -> None:
    """RFC 9112, section 3.2.2, holds for every path; a target without a path opens nothing."""
    method = "OPTIONS" if target == "*" else "GET"
    request = f"{method} {target} HTTP/1.1\r\nHost: receiver\r\n\r\n".encode()
    assert exchange(shared.url, request).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("path", ["/", "/webhooks", "/webhooks/", "/webhook/default", "/webhooks/default/more"])
def test_an_unknown_path_is_404(shared: Receiver, path: str) -> None:
    """The envelope names the path that webhooks go to."""
    answer = client.post(shared.url + path, json=SAMPLE, headers={"Authorization": f"Bearer {SECRET}"})
    check(answer, 404, "error", "/webhooks/default")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method_is_405(shared: Receiver, method: str) -> None:
    """And `Allow` names the one that there is."""
    url = f"{shared.url}/webhooks/default"
    answer = client.request(method, url, headers={"Authorization": f"Bearer {SECRET}"})
    check(answer, 405, "error", "POST")
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_another_content_type_is_415(shared: Receiver, headers: dict[str, str]) -> None:
    """Forms and compressed bodies are not what the vendor sends."""
    check(shared.post(content=json.dumps(SAMPLE).encode(), headers=headers), 415, "error")


def padded(size: int) -> bytes:
    head = b'{"id": "%s", "event": "received", "pad": "' % fresh_id().encode()
    return head + b"x" * (size - len(head) - 2) + b'"}'


def test_a_payload_of_just_one_mebibyte_is_taken(shared: Receiver) -> None:
    """The limit is 1 MiB inclusive, declared or streamed."""
    check(shared.post(content=padded(1024 * 1024)), 200, SUCCESS)
    check(shared.post(content=iter([padded(1024 * 1024)])), 200, SUCCESS)


def test_a_payload_that_is_declared_too_large_is_413_before_it_is_sent(shared: Receiver) -> None:
    """Nothing of it is waited for."""
    head = (
        f"POST /webhooks/default HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {1024 * 1024 + 1}\r\n\r\n"
    )
    answer = exchange(shared.url, head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"status":"error"' in answer


def test_a_streamed_payload_is_413_once_it_is_too_large(shared: Receiver) -> None:
    """A chunked body that never ends is not read to its end."""
    head = (
        f"POST /webhooks/default HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    answer = exchange(shared.url, head.encode() + chunk + b"1\r\n \r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_breaks_off_is_no_delivery(shared: Receiver) -> None:
    """Half a body and a closed connection leave nothing behind, and the next delivery is answered."""
    request = raw_request("POST", "/webhooks/default", padded(1000), VALID)
    shared.until_empty()
    before = shared.prefect.posts
    host, port = shared.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(request[:-200])
    message_id = fresh_id()
    check(shared.deliver(message_id), 200, SUCCESS)
    shared.until(lambda: message_id in shared.prefect.message_ids, "the next delivery's run")
    assert shared.prefect.posts == before + 1


def test_ids_are_told_apart_by_case(shared: Receiver) -> None:
    """Graph ids are case-sensitive: two such messages are two runs."""
    stem = uuid4().hex
    for message_id in (f"{stem}AbC", f"{stem}aBc"):
        check(shared.deliver(message_id), 200, SUCCESS)
    shared.until(lambda: {f"{stem}AbC", f"{stem}aBc"} <= set(shared.prefect.message_ids), "both runs")


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_monitors_need_no_secret(shared: Receiver, path: str) -> None:
    """Neither for GET nor for HEAD."""
    assert shared.get(path).status_code == 200
    head = client.head(shared.url + path)
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\x00" * 100],
    ids=["TLS", "no target", "NUL"],
)
def test_what_is_no_http_is_400(shared: Receiver, garbage: bytes) -> None:
    """A port scanner gets a 400, and no traceback is logged."""
    assert exchange(shared.url, garbage).startswith(b"HTTP/1.1 400 ")
    assert "Traceback" not in shared.log


def test_endless_headers_are_cut_off(shared: Receiver) -> None:
    """A request whose headers do not end is not collected in memory."""
    endless = b"GET / HTTP/1.1\r\n" + b"A: " + b"b" * 200_000
    assert exchange(shared.url, endless)[:13] in (b"HTTP/1.1 400 ", b"")
    check(shared.post(SAMPLE), 200, SUCCESS)


def test_two_authorization_headers_do_not_add_up(shared: Receiver) -> None:
    """The first one counts: nobody smuggles a second one past a proxy that looked at the first."""
    request = raw_request("POST", "/webhooks/default", BODY, b"Bearer wrong")
    doubled = request.replace(b"\r\n\r\n", b"\r\nAuthorization: " + VALID + b"\r\n\r\n", 1)
    assert exchange(shared.url, doubled).startswith(b"HTTP/1.1 401 ")


def test_pipelined_requests_are_each_answered(shared: Receiver) -> None:
    """Two deliveries in one packet: two answers, in order."""
    requests = [raw_request("POST", "/webhooks/default", BODY, header) for header in (VALID, b"Bearer wrong")]
    answer = exchange(shared.url, b"".join(requests), until=b"in Admin.")
    assert answer.index(b"HTTP/1.1 200 ") < answer.index(b"HTTP/1.1 401 ")
