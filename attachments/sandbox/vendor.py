"""The API under `/api/v1`, as emailgistics-api.md has it."""

from http import HTTPStatus

from aiohttp import web

from attachments.sandbox.account import Account
from attachments.sandbox.answers import (
    Answer,
    Headers,
    Origin,
    content_disposition,
    error_answer,
    json_answer,
)
from attachments.sandbox.keys import CONTENT, READ, REPORTING, Key
from attachments.sandbox.messages import FILE, Attachment, Message, Standard
from attachments.sandbox.plan import Plan
from attachments.sandbox.refusals import NOT_FOUND, RefusedError
from attachments.sandbox.reports import mailbox_id
from attachments.sandbox.request_log import Entry
from attachments.sandbox.routes import Call, read_call
from attachments.sandbox.wire import Sent, send

_SCOPES = {
    "list": (READ,),
    "download": (CONTENT,),
    "mailboxes": (REPORTING,),
    "report": (REPORTING, READ),
    "result": (REPORTING, READ),
}


class Vendor:
    """Responds to the calls to one account.

    A call is judged in this order: key (401), faults that stand for a proxy in front of the vendor, rate
    limit (429), everything else. So a call with a bad key does not count against the limit, for it belongs
    to no account, while one that ends in 400, 403, 404 or 405 does.
    """

    def __init__(self, account: Account) -> None:
        self._account = account

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Respond to one call and log it."""
        call = read_call(request.raw_path)
        entry = self._account.log.open(
            request.method, call.endpoint, call.message_id, call.attachment_id, dict(request.headers)
        )
        try:
            body = await request.read() if request.can_read_body else b""
            return await send(request, self._plan(request, call, entry, body), entry)
        except ConnectionError:
            return Sent(keep_alive=False)
        finally:
            self._account.log.close(entry)

    def _plan(self, request: web.Request, call: Call, entry: Entry, body: bytes) -> Plan:
        account = self._account
        origin = Origin(f"{request.scheme}://{request.host}{request.raw_path}", request.method)
        key = account.keys.authenticate(request.headers.get("Authorization"))
        if key is None:
            refusal = "The API key is missing, malformed, expired or deleted."
            return Plan(error_answer(HTTPStatus.UNAUTHORIZED, refusal, origin), origin)
        takes_gzip = "gzip" in request.headers.get("Accept-Encoding", "")
        in_front = account.faults.take(call, counted=False)
        if in_front:
            plan = Plan(error_answer(HTTPStatus.BAD_GATEWAY, "Bad gateway.", origin), origin, takes_gzip)
            for fault in in_front:
                fault.apply(plan)
            return plan
        if not account.window.admit(entry.at):
            refusal = "Rate limit exceeded. Wait a minute, then try again."
            return Plan(error_answer(HTTPStatus.TOO_MANY_REQUESTS, refusal, origin), origin)
        entry.counted = True
        account.log.peak.add(entry.at, account.window.window)
        plan = Plan(self._answer(call, key, origin, body), origin, takes_gzip)
        for fault in account.faults.take(call, counted=True):
            fault.apply(plan)
        return plan

    def _answer(self, call: Call, key: Key, origin: Origin, body: bytes) -> Answer:
        try:
            return self._granted(call, key, origin, body)
        except RefusedError as refused:
            return error_answer(refused.status, refused.message, origin, refused.headers)

    def _granted(self, call: Call, key: Key, origin: Origin, body: bytes) -> Answer:
        if call.endpoint == "other":
            raise RefusedError(HTTPStatus.NOT_FOUND, NOT_FOUND)
        method = "POST" if call.endpoint == "report" else "GET"
        if origin.method != method:
            headers: Headers = (("Allow", method),)
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, f"This endpoint answers {method} only.", headers)
        if call.malformed:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The id in the path is malformed.")
        for scope in _SCOPES[call.endpoint]:
            if scope not in key.scopes:
                raise RefusedError(HTTPStatus.FORBIDDEN, f"The API key lacks the scope {scope}.")
        reports = self._account.reports
        if call.endpoint == "mailboxes":
            return self._mailboxes(key)
        if call.endpoint == "report":
            return reports.start(call.query, body, key, origin, self._account.messages, self._account.mailboxes())
        if call.endpoint == "result":
            return reports.result(call.report_id or "", call.query, key, origin)
        message = self._account.messages.find(call.message_id or "")
        if message is None or not message.visible or not key.reaches(message.mailbox):
            raise RefusedError(HTTPStatus.NOT_FOUND, NOT_FOUND)
        if call.attachment_id is None:
            return _listing(message)
        attachment = message.attachment(call.attachment_id)
        if attachment is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, NOT_FOUND)
        if attachment.type != FILE:
            raise RefusedError(HTTPStatus.FORBIDDEN, "Only a fileAttachment can be downloaded.")
        return _download(attachment)

    def _mailboxes(self, key: Key) -> Answer:
        """The mailboxes of the key's allowlist (api/mailboxes/list)."""
        return json_answer(
            HTTPStatus.OK,
            {
                "mailboxes": [
                    {
                        "mailboxId": mailbox_id(address),
                        "mailboxName": address.partition("@")[0].title(),
                        "mailboxEmail": address,
                        "active": True,
                        "timeZone": "America/Toronto",
                        "users": [],
                        "tags": [],
                    }
                    for address in self._account.mailboxes()
                    if key.reaches(address)
                ]
            },
        )


def _listing(message: Message) -> Answer:
    """The attachments of a message (api/messages/list-attachments)."""
    return json_answer(
        HTTPStatus.OK,
        {
            "attachments": [
                {
                    "id": attachment.id,
                    "name": attachment.name,
                    "contentType": attachment.content_type,
                    "size": attachment.listed_size,
                    "attachmentType": attachment.type,
                }
                for attachment in message.attachments
            ]
        },
    )


def _download(attachment: Attachment) -> Answer:
    """The bytes of an attachment (api/messages/download-attachment)."""
    headers: Headers = (
        ("Content-Type", attachment.content_type or "application/octet-stream"),
        ("X-Content-Type-Options", "nosniff"),
    )
    if isinstance(attachment.disposition, Standard):
        headers += (("Content-Disposition", content_disposition(attachment.name)),)
    elif attachment.disposition is not None:
        headers += (("Content-Disposition", attachment.disposition),)
    return Answer(HTTPStatus.OK, headers, attachment.body)
