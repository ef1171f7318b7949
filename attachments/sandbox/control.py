"""The control API under `/_sandbox`, with which tests set up and inspect the stand-in. JSON, without a key.

The list of messages is also for a person with curl, who gets it as text.
"""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import asdict
from http import HTTPStatus

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import model_validator

from attachments.sandbox.account import Account
from attachments.sandbox.bodies import sha256
from attachments.sandbox.delivery import Delivery, Posting, deliver, envelope
from attachments.sandbox.faults.book import Order
from attachments.sandbox.fields import BadFieldError, Document, HeaderText, Number, Text, Whole, read
from attachments.sandbox.intake import read_messages
from attachments.sandbox.messages import Message
from attachments.sandbox.payload import Payload, sample_payload, webhook_payload
from attachments.sandbox.settings import change_settings, show_settings


@web.middleware
async def explain_mistakes(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Responds 400 and says what to send instead."""
    try:
        return await handler(request)
    except BadFieldError as error:
        return web.json_response({"error": str(error)}, status=HTTPStatus.BAD_REQUEST)


class _TestButton(Document):
    url: Text
    secret: HeaderText | None = None


class _DeliveryOrder(_TestButton):
    """Of one payload; times in seconds."""

    message_id: Text | None = None
    payload: dict[Text, object] | None = None
    times: Whole = 1
    wait: bool = True
    attempts: Whole = 3
    timeout: Number = 100.0
    retry_delay: Number | None = None

    @model_validator(mode="after")
    def _has_one_payload(self) -> "_DeliveryOrder":
        if (self.message_id is None) == (self.payload is None):
            raise ValueError("send either message_id or payload")
        return self


class Control:
    """The control API of one account."""

    def __init__(self, account: Account, session: aiohttp.ClientSession) -> None:
        self._account = account
        self._session = session
        self._under_way: set[asyncio.Task[None]] = set()

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """The table of the routes."""
        return [
            web.get("/_sandbox/health", self.health),
            web.post("/_sandbox/messages", self.add_messages),
            web.get("/_sandbox/messages", self.show_messages),
            web.delete("/_sandbox/messages", self.forget_messages),
            web.post("/_sandbox/faults", self.add_fault),
            web.get("/_sandbox/faults", self.show_faults),
            web.delete("/_sandbox/faults", self.forget_faults),
            web.delete("/_sandbox/faults/{id}", self.forget_fault),
            web.get("/_sandbox/requests", self.show_requests),
            web.delete("/_sandbox/requests", self.forget_requests),
            web.get("/_sandbox/requests/summary", self.summarise_requests),
            web.post("/_sandbox/deliver", self.deliver),
            web.get("/_sandbox/deliveries", self.show_deliveries),
            web.post("/_sandbox/test-button", self.press_test_button),
            web.get("/_sandbox/settings", self.show_settings),
            web.post("/_sandbox/settings", self.change_settings),
            web.post("/_sandbox/keys/{key}/revoke", self.revoke_key),
        ]

    async def close(self) -> None:
        """Cancel the deliveries in the background."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "messages": len(self._account.messages)})

    async def add_messages(self, request: web.Request) -> web.Response:
        """Accept one message or a list; `?sha256=no` leaves out the digests, so that no body is read."""
        document = await _document(request)
        messages = read_messages(document)
        ids = [message.id for message in messages]
        taken = [known for known in ids if known in self._account.messages or ids.count(known) > 1]
        if taken:
            text = f"messages: {len(taken)} of the ids stand for a message already; delete the messages first"
            return web.json_response({"error": text}, status=HTTPStatus.CONFLICT)
        shown = await self._shown(messages, request)
        self._account.messages.add(messages)
        answer = shown[0] if isinstance(document, dict) and "messages" not in document else {"messages": shown}
        return web.json_response(answer, status=HTTPStatus.CREATED)

    async def show_messages(self, request: web.Request) -> web.Response:
        """JSON for programs that request it; for people, a line with id and subject for each message."""
        if "application/json" not in request.headers.get("Accept", ""):
            lines = (f"{_printable(message.id)}\t{_printable(message.subject)}\n" for message in self._account.messages)
            return web.Response(text="".join(lines))
        return web.json_response({"messages": await self._shown(list(self._account.messages), request)})

    async def forget_messages(self, _: web.Request) -> web.Response:
        self._account.messages.clear()
        return _nothing()

    async def add_fault(self, request: web.Request) -> web.Response:
        order = self._account.faults.add(await _document(request))
        return web.json_response({"id": order.id}, status=HTTPStatus.CREATED)

    async def show_faults(self, _: web.Request) -> web.Response:
        return web.json_response({"faults": [_shown_order(order) for order in self._account.faults.orders.values()]})

    async def forget_faults(self, _: web.Request) -> web.Response:
        self._account.faults.orders.clear()
        return _nothing()

    async def forget_fault(self, request: web.Request) -> web.Response:
        if self._account.faults.orders.pop(request.match_info["id"], None) is None:
            return _missing("There is no such fault; GET /_sandbox/faults names those that there are.")
        return _nothing()

    async def show_requests(self, _: web.Request) -> web.Response:
        return web.json_response({"requests": [vars(entry) for entry in self._account.log.entries]})

    async def summarise_requests(self, _: web.Request) -> web.Response:
        return web.json_response(self._account.log.summary())

    async def forget_requests(self, _: web.Request) -> web.Response:
        self._account.log.clear()
        return _nothing()

    async def deliver(self, request: web.Request) -> web.Response:
        """Post a webhook `times` times concurrently; without `wait`, respond 202 (see /_sandbox/deliveries)."""
        order = read(_DeliveryOrder, await _document(request), "delivery")
        posting = Posting(
            payload=self._payload(order),
            url=order.url,
            secret=order.secret,
            attempts=order.attempts,
            timeout=order.timeout,
            pause=order.retry_delay,
        )
        deliveries = [posting.begin() for _ in range(order.times)]
        self._account.deliveries.extend(deliveries)
        tasks = [asyncio.create_task(deliver(self._session, posting, delivery)) for delivery in deliveries]
        if not order.wait:
            # The loop holds its tasks only weakly.
            self._under_way.update(tasks)
            for task in tasks:
                task.add_done_callback(self._under_way.discard)
            return _shown_deliveries(deliveries, HTTPStatus.ACCEPTED)
        await asyncio.gather(*tasks)
        return _shown_deliveries(deliveries)

    async def show_deliveries(self, _: web.Request) -> web.Response:
        return _shown_deliveries(self._account.deliveries)

    async def press_test_button(self, request: web.Request) -> web.Response:
        """One attempt with the canned sample; shows status and message as Admin does (webhooks/setup)."""
        order = read(_TestButton, await _document(request), "test button")
        posting = Posting(sample_payload(), order.url, order.secret, attempts=1)
        delivery = posting.begin()
        await deliver(self._session, posting, delivery)
        answer = envelope(delivery.attempts[-1])
        return web.json_response(
            {"status": answer.get("status"), "message": answer.get("message"), "delivery": asdict(delivery)}
        )

    async def show_settings(self, _: web.Request) -> web.Response:
        return web.json_response(show_settings(self._account))

    async def change_settings(self, request: web.Request) -> web.Response:
        change_settings(self._account, await _document(request))
        return web.json_response(show_settings(self._account))

    async def revoke_key(self, request: web.Request) -> web.Response:
        if not self._account.keys.revoke(request.match_info["key"]):
            return _missing("There is no such key; GET /_sandbox/settings names those that there are.")
        return _nothing()

    def _payload(self, order: "_DeliveryOrder") -> Payload:
        if order.payload is not None:
            return order.payload
        message = self._account.messages.find(order.message_id or "")
        if message is None:
            raise BadFieldError("delivery: no message has this message_id; add the message, or send a payload")
        return webhook_payload(message)

    async def _shown(self, messages: list[Message], request: web.Request) -> list[dict[str, object]]:
        digests = request.query.get("sha256") != "no"
        return await asyncio.to_thread(lambda: [_shown_message(message, digests=digests) for message in messages])


def _shown_message(message: Message, *, digests: bool) -> dict[str, object]:
    return {
        "id": message.id,
        "attachments": [
            {
                "id": attachment.id,
                "name": attachment.name,
                "type": attachment.type,
                "bytes": attachment.body.size,
                "sha256": sha256(attachment.body) if digests else None,
            }
            for attachment in message.attachments
        ],
        "webhook": webhook_payload(message),
    }


def _printable(text: str) -> str:
    """The text on one line, without control characters."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _shown_order(order: Order) -> dict[str, object]:
    state = {"id": order.id, "matched": order.matched, "fired": order.fired, "spent": order.spent}
    return {**order.document, **state}


def _shown_deliveries(deliveries: Iterable[Delivery], status: int = HTTPStatus.OK) -> web.Response:
    return web.json_response({"deliveries": [asdict(delivery) for delivery in deliveries]}, status=status)


async def _document(request: web.Request) -> object:
    try:
        return json.loads(await request.read())
    except ValueError as error:
        raise BadFieldError(f"the body is no JSON ({error}); send a JSON object") from error


def _missing(text: str) -> web.Response:
    return web.json_response({"error": text}, status=HTTPStatus.NOT_FOUND)


def _nothing() -> web.Response:
    return web.Response(status=HTTPStatus.NO_CONTENT)
