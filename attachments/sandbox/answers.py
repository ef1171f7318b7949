"""The API's responses, before any fault changes them."""

import json
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

from attachments.sandbox.bodies import Body, HeldBody

JSON_TYPE = "application/json; charset=utf-8"
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Answer:
    """A status, headers without framing, and a body; `document` is the body's JSON, if any."""

    status: int
    headers: Headers
    body: Body
    document: dict[str, object] | None = None


@dataclass(frozen=True)
class Origin:
    """The request as repeated in an error body (getting-started/errors)."""

    href: str
    method: str


def json_answer(status: int, document: dict[str, object], headers: Headers = ()) -> Answer:
    """A response with this document."""
    body = HeldBody(json.dumps(document).encode("ascii"))
    return Answer(status, (("Content-Type", JSON_TYPE), *headers), body, document)


def error_answer(status: int, message: str, origin: Origin, headers: Headers = ()) -> Answer:
    """The documented error body; `error.code` is the status as a string (getting-started/errors)."""
    return json_answer(
        status,
        {
            "_links": {"origin": {"href": origin.href, "method": origin.method}},
            "status": "error",
            "error": {"code": str(int(status)), "message": message},
        },
        headers,
    )


def phrase(status: int) -> str:
    """The reason phrase of a status, even of an unregistered one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unregistered"


def content_disposition(name: str | None) -> str:
    """`attachment` and the name (RFC 6266): an ASCII fallback, and `filename*` if the name is not ASCII."""
    if name is None:
        return "attachment"
    plain = "".join(letter if " " <= letter <= "~" else "_" for letter in name)
    quoted = plain.replace("\\", "\\\\").replace('"', '\\"')
    header = f'attachment; filename="{quoted}"'
    if plain != name:
        whole = name.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        header += f"; filename*=UTF-8''{quote(whole, safe='')}"
    return header
