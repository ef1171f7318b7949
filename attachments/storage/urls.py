"""Interprets the URLs that users write, and suggests a correction for ambiguous ones."""

from __future__ import annotations

import os
import re

from fsspec import available_protocols
from fsspec.core import split_protocol

_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")  # RFC 3986; all that fsspec knows are such
_LOCAL = re.compile(r"(file|local):(//)?(.*)", re.DOTALL)
_DRIVE = re.compile(r"(?:(?:file|local):/*|/+)?[A-Za-z]:(?:[/\\]|$)|\\\\")
_MACHINE = re.compile(r"(?:[^/:@\s]+@)?[^/:@\s]{2,}:/(?!/)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)(?::|(?=//))/*(.*)", re.DOTALL)

_MOUNTED = "file:///mnt/attachments"


def is_chained(url: str) -> bool:
    """Whether a URL chains file systems, such as ``simplecache::s3://…``."""
    # Not the colons of an IPv6 address, nor of the ARN of a multi-region access point.
    return "::" in re.sub(r"([/@])\[[0-9A-Fa-f:.]+\]|^s3a?://(?i:arn):[^/]*", r"\1", url)


def local_path(url: str, what: str) -> str | None:
    """The absolute path that a URL or a plain path names on this machine; None for a URL of another protocol.

    ``file://localhost/srv/a`` and ``/srv/a`` are one folder (RFC 8089); ``~`` is the home of the user who runs this.
    Raises ValueError for what would lead below the working directory, with what to write instead; `what` begins the
    sentence.
    """
    # fsspec takes all that comes before :// for the protocol, also in the middle of a path.
    protocol = None if _LOCAL.match(url) else split_protocol(url)[0]
    if protocol is not None and _PROTOCOL.fullmatch(protocol):
        if protocol.lower() != protocol and protocol.lower() in available_protocols():
            raise ValueError(f"{what} begins with {protocol}:, in capital letters; write it as {protocol.lower()}:")
        return None
    path, host = url, ""
    if found := _LOCAL.match(url):
        path = found[3]
        if found[2] and not path.startswith(("/", "~")):
            host, slash, rest = path.partition("/")
            path = slash + rest
            if host.lower() == "localhost" and rest:
                host = ""
    if path.startswith("~"):
        path = os.path.expanduser(path)  # noqa: PTH111  # pathlib raises where there is no such user
    if host or not path.startswith("/") or _DRIVE.match(url):
        raise ValueError(f"{what} {_advice(url)}")
    return path


def _advice(url: str) -> str:
    """The problem of a URL without an absolute path, and what was probably meant."""
    if _DRIVE.match(url):
        return (
            "names a drive or share in Windows notation; write it as the folder where it is mounted, such as "
            + _MOUNTED
        )
    scheme = _SCHEME.match(url)
    if scheme and scheme[1].lower() in available_protocols():
        protocol, rest = scheme[1].lower(), scheme[2]
        meant = f"file:///{rest}" if protocol in {"file", "local"} else f"{protocol}://{rest}"
        return f"{_wrong(url)}; write it as {_shown(meant, f'{protocol}://…')}"
    if _MACHINE.match(url):
        return (
            "names a folder of another machine; mount it here and write the folder where it is mounted, such as "
            f"{_MOUNTED}, or use sftp://host/folder"
        )
    meant = f"file:///{url.lstrip('./')}"
    return (
        f"is a path relative to the working directory; write it as {_shown(meant, 'file:///srv/attachments')}, "
        "or with the storage in front, such as s3://"
    )


def _wrong(url: str) -> str:
    if re.match(r"(file|local)://", url):
        return "names a host where its folder should begin"
    if re.match(r"(file|local):", url):
        return "is a path relative to the working directory"
    return "lacks the :// after its protocol"


def _shown(meant: str, example: str) -> str:
    """The URL itself, unless it might contain credentials or control characters."""
    return meant if meant.isprintable() and not set("@?") & set(meant) else example
