"""Faults in what is said: another status, other headers, another body."""

import gzip
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import ClassVar, Self

from attachments.sandbox.answers import JSON_TYPE, Answer, Headers, error_answer, json_answer
from attachments.sandbox.bodies import HeldBody
from attachments.sandbox.fields import BadFieldError, Fields
from attachments.sandbox.messages import ITEM
from attachments.sandbox.plan import Plan

_FRAMING_HEADERS = ("content-length", "transfer-encoding", "connection")


@dataclass(frozen=True)
class Status:
    """Another status: with the documented error body, or with any text (a proxy's HTML, or nothing)."""

    status: int
    body: str | None
    content_type: str | None
    headers: dict[str, str | None]
    counted: bool

    @classmethod
    def read(cls, fields: Fields) -> Self:
        status = fields.whole("status", HTTPStatus.INTERNAL_SERVER_ERROR)
        if not HTTPStatus.OK <= status <= 999:  # noqa: PLR2004  (the last number of three digits)
            raise BadFieldError("fault: status must be a number from 200 to 999")
        return cls(
            status=status,
            body=fields.text_or_none("body"),
            content_type=fields.header_or_none("content_type"),
            headers=_headers(fields),
            counted=fields.flag("counted", default=True),
        )

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


@dataclass(frozen=True)
class Redirect:
    """A redirect to any address."""

    location: str
    status: int
    counted: bool

    @classmethod
    def read(cls, fields: Fields) -> Self:
        return cls(
            location=fields.header_or_none("location") or "/",
            status=fields.whole("status", HTTPStatus.FOUND),
            counted=fields.flag("counted", default=True),
        )

    def apply(self, plan: Plan) -> None:
        plan.answer = Answer(self.status, (("Location", self.location),), HeldBody(b""))


@dataclass(frozen=True)
class ChangedHeaders:
    """Headers added or overridden; null takes one away."""

    headers: dict[str, str | None]
    counted: ClassVar[bool] = True

    @classmethod
    def read(cls, fields: Fields) -> Self:
        return cls(_headers(fields))

    def apply(self, plan: Plan) -> None:
        plan.answer = _with_headers(plan.answer, self.headers)


@dataclass(frozen=True)
class ExtraFields:
    """What comes unannounced: unknown fields, and an unknown attachmentType (getting-started/versioning)."""

    attachment_type: str
    counted: ClassVar[bool] = True

    @classmethod
    def read(cls, fields: Fields) -> Self:
        return cls(fields.text_or_none("attachment_type") or "holographicAttachment")

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


@dataclass(frozen=True)
class UnfinishedList:
    """A list that Exchange or a scanner has not finished: the first `keep` parts and, unless null, a placeholder.

    Microsoft Defender lists its placeholder until it has scanned the rest. With null and 0 the list is empty.
    """

    keep: int
    placeholder: str | None
    attachment_type: str
    counted: ClassVar[bool] = True

    @classmethod
    def read(cls, fields: Fields) -> Self:
        return cls(
            keep=fields.whole("keep", 0),
            placeholder=fields.text_or_none("placeholder"),
            attachment_type=fields.text_or_none("attachment_type") or ITEM,
        )

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


@dataclass(frozen=True)
class ContentEncoding:
    """The body gzipped and so labelled when the client takes gzip; with `force` even when it does not.

    The gzipped body is held in memory: meant for small ones.
    """

    encoding: str
    force: bool
    counted: ClassVar[bool] = True

    @classmethod
    def read(cls, fields: Fields) -> Self:
        return cls(fields.choice("encoding", ("gzip",), "gzip"), fields.flag("force", default=False))

    def apply(self, plan: Plan) -> None:
        if not (self.force or plan.takes_gzip):
            return
        content = gzip.compress(b"".join(plan.answer.body.pieces()), compresslevel=1, mtime=0)
        answer = replace(plan.answer, body=HeldBody(content))
        plan.answer = _with_headers(answer, {"Content-Encoding": self.encoding})


def _headers(fields: Fields) -> dict[str, str | None]:
    headers = fields.headers("headers")
    for name in headers:
        if name.casefold() in _FRAMING_HEADERS:
            raise BadFieldError(f"fault: {name} cannot be set; order a fault of kind framing or wrong_length")
    return headers


def _with_headers(answer: Answer, headers: dict[str, str | None]) -> Answer:
    changed = {name.casefold() for name in headers}
    kept: Headers = tuple(header for header in answer.headers if header[0].casefold() not in changed)
    added: Headers = tuple((name, value) for name, value in headers.items() if value is not None)
    return replace(answer, headers=kept + added)
