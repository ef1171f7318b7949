"""Reads a call to the API out of the raw path.

Ids may hold `/`, so the path is split before it is decoded: a client that forgets to encode a slash meets
the 404 that it would meet at the vendor.
"""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes, urlsplit

Endpoint = Literal["list", "download", "mailboxes", "report", "result", "other"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Call:
    """Which endpoint is meant, for which message, attachment or report; `malformed` when an id cannot be read."""

    endpoint: Endpoint
    message_id: str | None = None
    attachment_id: str | None = None
    malformed: bool = False
    report_id: str | None = None
    query: str = ""


def read_call(raw_path: str) -> Call:
    """Identify the documented endpoint; everything else is `other`."""
    path = urlsplit(raw_path).path if "://" in raw_path else raw_path.partition("?")[0]
    query = raw_path.partition("?")[2]
    match path.split("/"):
        case ["", "api", "v1", "messages", message, "attachments"]:
            return _call("list", message, None)
        case ["", "api", "v1", "messages", message, "attachments", attachment, "download"]:
            return _call("download", message, attachment)
        case ["", "api", "v1", "admin", "mailboxes"]:
            return Call("mailboxes")
        case ["", "api", "v1", "reports", "receivedMessageDetail"]:
            return Call("report", query=query)
        case ["", "api", "v1", "reports", "results", report]:
            return Call("result", report_id=report, query=query)
        case _:
            return Call("other")


def _call(endpoint: Endpoint, message: str, attachment: str | None) -> Call:
    message_id = _decoded(message)
    attachment_id = None if attachment is None else _decoded(attachment)
    malformed = message_id is None or (attachment is not None and attachment_id is None)
    return Call(endpoint, message_id, attachment_id, malformed)


def _decoded(segment: str) -> str | None:
    """The id in a path segment; None if it is empty, not UTF-8 or contains control characters."""
    try:
        text = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeError:
        return None
    return text if text and not _CONTROL.search(text) else None
