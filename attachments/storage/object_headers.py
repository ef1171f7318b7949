"""HTTP headers of an object: its media type, and the file name for downloads."""

from __future__ import annotations

import re
from urllib.parse import quote

from attachments.storage.backends.base import ObjectHeaders

_UNKNOWN = "application/octet-stream"

# RFC 9110, section 8.3.1, with the lengths of RFC 6838, section 4.2. Parameters are left out: they may hold names.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")


def headers_for(name: str, content_type: str | None) -> ObjectHeaders:
    """The labels of an attachment of this safe name.

    It is always to be saved, never to be shown in place: a browser would run the scripts of an attached HTML file
    with the rights of the store's host. The name is written as RFC 6266 and RFC 8187 have it.
    """
    plain = (content_type or "").partition(";")[0].strip()
    media_type = plain.lower() if _MEDIA_TYPE.fullmatch(plain) else _UNKNOWN
    fallback = "".join(char if char.isascii() and char.isprintable() and char not in '"\\' else "_" for char in name)
    disposition = f'attachment; filename="{fallback}"'
    if fallback != name:
        disposition += f"; filename*=UTF-8''{quote(name, safe='')}"
    return ObjectHeaders(media_type, disposition)
