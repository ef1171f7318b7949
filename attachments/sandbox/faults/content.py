"""Faults in what is said: another status, other headers, another body."""

import gzip
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from attachments.sandbox.answers import JSON_TYPE, Answer, Headers, error_answer, json_answer
from attachments.sandbox.bodies import HeldBody
from attachments.sandbox.faults.base import CountedFault, UncountableFault
from attachments.sandbox.fields import HeaderText, Text, Whole
from attachments.sandbox.messages import ITEM
from attachments.sandbox.plan import Plan

_FRAMING_HEADERS = ("content-length", "transfer-encoding", "connection")


def _without_framing(headers: dict[str, str | None]) -> dict[str, str | None]:
    for name in headers:
        if name.casefold() in _FRAMING_HEADERS:
            raise ValueError(f"{name} cannot be set; order a fault of kind framing or wrong_length")
    return headers


_Headers = Annotated[dict[HeaderText, HeaderText | None], AfterValidator(_without_framing)]
"""Header names with their values, null for a header to be taken away."""


class Status(UncountableFault):
    """Another status: with the documented error body, or with any text (a proxy's HTML, or nothing)."""

    kind: Literal["status"]
    status: Annotated[int, Field(ge=HTTPStatus.OK, le=999)] = HTTPStatus.INTERNAL_SERVER_ERROR
    body: Text | None = None
    content_type: HeaderText | None = None
    headers: _Headers = Field(default_factory=dict)

    def apply(self, plan: Plan) -> None:
        if self.body is None:
            answer = error_answer(self.status, f"The sandbox was told to answer {self.status}.", plan.origin)
            if self.content_type is not None:
                answer = _with_headers(answer, {"Content-Type": self.content_type})
        else:
            content_type = self.content_type or "text/html; charset=utf-8"
            body = HeldBody(self.body.encode("utf-8", "surrogateescape"))
            answer = Answer(self.status, (("Content-Type", content_type),), body)
        plan.answer = _with_headers(answer, self.headers)


class Redirect(UncountableFault):
    """A redirect to any address."""

    kind: Literal["redirect"]
    location: HeaderText = "/"
    status: Whole = HTTPStatus.FOUND

    def apply(self, plan: Plan) -> None:
        plan.answer = Answer(self.status, (("Location", self.location),), HeldBody(b""))


class ChangedHeaders(CountedFault):
    """Headers added or overridden; null takes one away."""

    kind: Literal["headers"]
    headers: _Headers = Field(default_factory=dict)

    def apply(self, plan: Plan) -> None:
        plan.answer = _with_headers(plan.answer, self.headers)


class ExtraFields(CountedFault):
    """What comes unannounced: unknown fields, and an unknown attachmentType (getting-started/versioning)."""

    kind: Literal["extra_fields"]
    attachment_type: Text = "holographicAttachment"

    def apply(self, plan: Plan) -> None:
        if plan.answer.document is None:
            return
        document: dict[str, object] = {
            **plan.answer.document,
            "fieldOfTomorrow": {"nested": [1, None, "two"]},
        }
        for name, added in (("attachments", [self._unknown_attachment()]), ("mailboxes", [])):
            rows = document.get(name)
            if isinstance(rows, list):
                document[name] = [{**row, "fieldOfTomorrow": True} for row in [*rows, *added]]
        headers = tuple(header for header in plan.answer.headers if header != ("Content-Type", JSON_TYPE))
        plan.answer = json_answer(plan.answer.status, document, headers)

    def _unknown_attachment(self) -> dict[str, object]:
        return {
            "id": "AAMkUnknownType=",
            "name": "of tomorrow",
            "contentType": None,
            "size": 0,
            "attachmentType": self.attachment_type,
        }


class UnfinishedList(CountedFault):
    """A list that Exchange or a scanner has not finished: the first `keep` parts and, unless null, a placeholder.

    Microsoft Defender lists its placeholder until it has scanned the rest. With null and 0 the list is empty.
    """

    kind: Literal["unfinished_list"]
    keep: Whole = 0
    placeholder: Text | None = None
    attachment_type: Text = ITEM

    def apply(self, plan: Plan) -> None:
        document = plan.answer.document
        rows = None if document is None else document.get("attachments")
        if document is None or not isinstance(rows, list):
            return
        kept = rows[: self.keep]
        if self.placeholder is not None:
            row = {"id": "AAMkPlaceholder=", "name": self.placeholder, "contentType": None, "size": 1024}
            kept = [*kept, {**row, "attachmentType": self.attachment_type}]
        headers = tuple(header for header in plan.answer.headers if header != ("Content-Type", JSON_TYPE))
        plan.answer = json_answer(plan.answer.status, {**document, "attachments": kept}, headers)


class ContentEncoding(CountedFault):
    """The body gzipped and so labelled when the client takes gzip; with `force` even when it does not.

    The gzipped body is held in memory: meant for small ones.
    """

    kind: Literal["content_encoding"]
    encoding: Literal["gzip"] = "gzip"
    force: bool = False

    def apply(self, plan: Plan) -> None:
        if not (self.force or plan.takes_gzip):
            return
        content = gzip.compress(b"".join(plan.answer.body.pieces()), compresslevel=1, mtime=0)
        answer = replace(plan.answer, body=HeldBody(content))
        plan.answer = _with_headers(answer, {"Content-Encoding": self.encoding})


def _with_headers(answer: Answer, headers: dict[str, str | None]) -> Answer:
    changed = {name.casefold() for name in headers}
    kept: Headers = tuple(header for header in answer.headers if header[0].casefold() not in changed)
    added: Headers = tuple((name, value) for name, value in headers.items() if value is not None)
    return replace(answer, headers=kept + added)
