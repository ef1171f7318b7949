"""Reports: runs that take time, and results in pages (api/reports, concepts/result-envelope)."""

import itertools
import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Literal
from urllib.parse import parse_qs, urlencode

from attachments.sandbox.answers import Answer, Origin, json_answer
from attachments.sandbox.fields import Document, Number, Text, Whole
from attachments.sandbox.keys import Key
from attachments.sandbox.messages import Message
from attachments.sandbox.refusals import NOT_FOUND, RefusedError

_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z?", re.ASCII)
_ACTIVITIES = ("received", "replied", "closed")
_ROWS, _MAX_ROWS = 50, 500
"""Rows of a page: by default, and at most (api/reports/received-message-detail)."""


def mailbox_id(address: str) -> str:
    """The id of the mailbox with this address; case does not count."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"mailto:{address.casefold()}"))


class Behaviour(Document):
    """How the next runs behave; times in seconds.

    `body` is the shape of the request's body, which is not documented. `bare_rows` leaves out all of a row but its two
    documented fields. `pages` is after how many pages a result expires too early; None for never.
    """

    slots: Whole = 3
    run_seconds: Number = 0.0
    ends_in_error: bool = False
    expires_after: Number = 24 * 3600.0
    pages: Whole | None = None
    cutoff: Text | None = None
    body: Literal["either", "wrapped", "bare"] = "either"
    bare_rows: bool = False


@dataclass
class _Run:
    """One run, with its rows at the time of its start."""

    id: str
    owner: str
    parameters: Mapping[str, object]
    most: int
    rows: list[dict[str, object]]
    ready_at: float
    expires_at: float
    fails: bool
    cutoff: str | None
    pages_left: int | None

    @property
    def is_running(self) -> bool:
        return time.monotonic() < self.ready_at


@dataclass
class Reports:
    """All runs of the account, and how the next ones behave."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    started: int = 0
    _runs: dict[str, _Run] = field(default_factory=dict)

    def start(
        self, query: str, body: bytes, key: Key, origin: Origin, messages: Iterable[Message], addresses: Iterable[str]
    ) -> Answer:
        """Begin a run, as `POST /reports/receivedMessageDetail` does; `addresses` are the account's mailboxes."""
        most = _most(query)
        parameters = self._parameters(body)
        address, begin, end = _asked(parameters, addresses)
        if address is None or not key.reaches(address):
            raise RefusedError(HTTPStatus.NOT_FOUND, NOT_FOUND)
        if sum(run.is_running for run in self._runs.values()) >= self.behaviour.slots:
            text = "Too many reports are running. Wait until one of them is done."
            raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, text)
        self.started += 1
        received = (
            [message for message in messages if _is_within(message, address, begin, end)]
            if parameters["activityType"] == "received"
            else []
        )
        ready_at = time.monotonic() + self.behaviour.run_seconds
        run = _Run(
            id=uuid.uuid4().hex,
            owner=key.secret,
            parameters=parameters,
            most=most,
            rows=[self._row(number, message) for number, message in enumerate(received, 1)],
            ready_at=ready_at,
            expires_at=ready_at + self.behaviour.expires_after,
            fails=self.behaviour.ends_in_error,
            cutoff=self.behaviour.cutoff,
            pages_left=self.behaviour.pages,
        )
        self._runs[run.id] = run
        return self._shown(run, origin, {})

    def result(self, run_id: str, query: str, key: Key, origin: Origin) -> Answer:
        """A run's state, or a page of its result."""
        run = self._runs.get(run_id)
        # A result belongs to the key that started it.
        if run is None or run.owner != key.secret or time.monotonic() >= run.expires_at:
            raise RefusedError(HTTPStatus.NOT_FOUND, NOT_FOUND)
        cursor = {name: values[-1] for name, values in parse_qs(query).items()}
        if not run.is_running and not run.fails:
            if run.pages_left == 0:
                raise RefusedError(HTTPStatus.NOT_FOUND, NOT_FOUND)
            if run.pages_left is not None:
                run.pages_left -= 1
        return self._shown(run, origin, cursor)

    def _parameters(self, body: bytes) -> Mapping[str, object]:
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The body is no JSON object.")
        wrapped = document.get("parameters")
        is_wrapped = isinstance(wrapped, dict)
        if self.behaviour.body != "either" and is_wrapped != (self.behaviour.body == "wrapped"):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "The parameters are missing.")
        return wrapped if isinstance(wrapped, dict) else document

    def _row(self, number: int, message: Message) -> dict[str, object]:
        row: dict[str, object] = {"id": f"row-{number}", "messageId": message.id}
        if not self.behaviour.bare_rows:
            # Not documented, and surely there: what people look at in such a report.
            row |= {"subject": message.subject, "sender": message.sender, "received": message.received}
        return row

    def _shown(self, run: _Run, origin: Origin, cursor: Mapping[str, str]) -> Answer:
        root = origin.href.partition("/api/v1/")[0]
        address = f"{root}/api/v1/reports/results/{run.id}"

        def link(**position: str) -> dict[str, str]:
            return {"href": f"{address}?{urlencode(position)}" if position else address, "method": "GET"}

        links: dict[str, object] = {
            "self": link(**cursor),
            "origin": {
                "href": f"{root}/api/v1/reports/receivedMessageDetail",
                "method": "POST",
                "body": {"parameters": run.parameters},
            },
        }
        envelope: dict[str, object] = {"_links": links, "status": "running", "progress": 40}
        if not run.is_running and run.fails:
            envelope |= {"status": "error", "error": {"code": "report_failed", "message": "The report failed."}}
        elif not run.is_running:
            page, position = _page(run, cursor)
            if position + len(page) < len(run.rows):
                links["next"] = link(starting_after=str(page[-1]["id"]))
            if position and page:
                links["prev"] = link(ending_before=str(page[0]["id"]))
            result: dict[str, object] = {"data": page, "total": len(run.rows)}
            if run.cutoff is not None:
                result["dataCutoffTimestamp"] = run.cutoff
            envelope |= {"status": "done", "progress": 100, "result": result}
        return json_answer(HTTPStatus.OK, envelope)


def _most(query: str) -> int:
    """Rows per page. Raises RefusedError for a value that the documentation excludes."""
    asked = parse_qs(query).get("max", [str(_ROWS)])[-1]
    if not asked.isascii() or not asked.isdigit() or not 1 <= int(asked) <= _MAX_ROWS:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"max must be a number from 1 to {_MAX_ROWS}.")
    return int(asked)


def _asked(parameters: Mapping[str, object], addresses: Iterable[str]) -> tuple[str | None, datetime, datetime]:
    """The mailbox's address (None if there is none with that id) and the span of time."""
    asked = parameters.get("mailboxId")
    if not isinstance(asked, str) or parameters.get("activityType") not in _ACTIVITIES:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "mailboxId or activityType is missing or malformed.")
    begin, end = (_moment(parameters.get(name)) for name in ("activityStart", "activityEnd"))
    if end < begin:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "activityEnd is before activityStart.")
    return next((address for address in addresses if mailbox_id(address) == asked), None), begin, end


def _moment(value: object) -> datetime:
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        raise RefusedError(HTTPStatus.BAD_REQUEST, "A moment is written as YYYY-MM-DDTHH:MM:SSZ.")
    try:
        return datetime.fromisoformat(value.removesuffix("Z")).replace(tzinfo=UTC)
    except ValueError:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "There is no such moment.") from None


def _is_within(message: Message, address: str, begin: datetime, end: datetime) -> bool:
    """Whether the mailbox received it then; whether the last second counts is not documented, and it does here."""
    if message.mailbox.casefold() != address.casefold():
        return False
    try:
        received = datetime.fromisoformat(message.received)
    except ValueError:
        return False
    return begin <= (received if received.tzinfo else received.replace(tzinfo=UTC)) <= end


def _page(run: _Run, cursor: Mapping[str, str]) -> tuple[list[dict[str, object]], int]:
    """The rows after or before a cursor, and how many come before them."""
    ids = [row["id"] for row in run.rows]
    try:
        if "starting_after" in cursor:
            position = ids.index(cursor["starting_after"]) + 1
        elif "ending_before" in cursor:
            position = max(0, ids.index(cursor["ending_before"]) - run.most)
        else:
            position = 0
    except ValueError:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "There is no such row.") from None
    return list(itertools.islice(run.rows, position, position + run.most)), position
