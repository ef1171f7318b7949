"""Where an ids file may be read from: `ids_url` selects a file, never a host, a folder or credentials.

The URL is a parameter of a run, which every user of Prefect can set. So it is only compared, as text, with the folders
that an administrator has named: those that the worker's environment allows, or the folder of the block `ids_block`.
Only that folder is opened, with its own options. From the URL, only the path below it is used, and a web URL's query. A
file on the worker's machine or on a web server needs the environment: a block does not prove that its author may read
it, because blocks are written through Prefect too. Does not depend on Prefect.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import httpcore
import httpx

from attachments.domain.message_ids import NOT_FOUND_MESSAGE, FileOpener, IdsError
from attachments.storage import Store, StoreError, open_store
from attachments.storage.errors import NothingStored
from attachments.storage.local.folders import Folder
from attachments.storage.object_store import ObjectStore
from attachments.storage.urls import is_chained, local_path

ALLOWED_FOLDERS_VARIABLE = "ATTACHMENTS_IDS_ALLOWED"
"""The worker's environment variable: comma-separated URLs of folders."""
DEFAULT_ALLOWED_FOLDERS = "file:///srv/attachments-ids"
"""The folder that may be read if the variable is not set."""

_URL = "The URL of the file of ids"
_ALIASES = {"s3a": "s3", "abfss": "abfs", "az": "abfs", "gcs": "gs", "ssh": "sftp"}
_DEFAULT_PORTS = {"sftp": "22", "ftp": "21", "http": "80", "https": "443"}
_WEB = ("http", "https")
_PROTOCOLS_NO_BLOCK_OPENS = ("file", *_WEB)
"""Protocols that need the environment variable; a block does not suffice."""
_KERNEL_FILE_SYSTEMS = ("/proc", "/sys", "/dev")
_CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_BUFFER_SIZE = 1024 * 1024
_TIMEOUTS = {"connect": 10.0, "read": 60.0, "write": 60.0, "pool": 60.0}
_OK, _NOT_FOUND = 200, 404
_REDIRECTS = range(300, 400)


@dataclass(frozen=True)
class BlockFolder:
    """The folder of an Attachment Store block, which is read with the block's options."""

    name: str
    """As `attachment-store/corp`."""
    url: str
    """As in the block; the store may spell it differently."""
    store: Store


def ids_file_opener(
    url: str, block: BlockFolder | None = None, environment: Mapping[str, str] = os.environ
) -> FileOpener:
    """A function that opens the ids file at a URL or an absolute path.

    Raises IdsError if the location is not allowed or not readable, now or on opening; opening and reading may also
    raise StoreError.
    """
    place = _Location.parse(url.strip(), _URL)
    if block is not None:
        return _opener_in_block(place, block)
    for number, entry in enumerate(_allowed_folders(environment), 1):
        try:
            root = _Location.parse(entry, f"Entry {number} of the worker's {ALLOWED_FOLDERS_VARIABLE}")
        except IdsError as error:
            raise IdsError(f"{error} Correct it in the worker's environment.") from None
        if path := place.relative_to(root):
            return _opener_in_allowed_folder(place, root, entry, path)
    raise IdsError(
        f"The worker may not read ids from there. Put the file into {DEFAULT_ALLOWED_FOLDERS.removeprefix('file://')} "
        "on the worker's "
        f"machine, or into the folder of an Attachment Store block that ids_block names; or add its folder to "
        f"{ALLOWED_FOLDERS_VARIABLE} in the worker's environment."
    )


def _allowed_folders(environment: Mapping[str, str]) -> Sequence[str]:
    entries = (entry.strip() for entry in environment.get(ALLOWED_FOLDERS_VARIABLE, DEFAULT_ALLOWED_FOLDERS).split(","))
    return [entry for entry in entries if entry]


def _opener_in_block(place: _Location, block: BlockFolder) -> FileOpener:
    if place.protocol in _PROTOCOLS_NO_BLOCK_OPENS:
        raise IdsError(
            "A file on the worker's machine or on a web server is not read through a block. Remove "
            f"ids_block; {ALLOWED_FOLDERS_VARIABLE} in the worker's environment says what may be read."
        )
    for root in (block.url, block.store.url):
        if path := place.relative_to(_Location.parse(root, f"The URL of the block {block.name}")):
            return _store_opener(block.store, path)
    raise IdsError(
        f"ids_url is not in the folder of the block {block.name}, and the block's options may be used in that folder "
        "only. Begin "
        "ids_url as the block's URL, or name in ids_block one whose URL is the file's folder."
    )


def _opener_in_allowed_folder(place: _Location, root: _Location, entry: str, path: Sequence[str]) -> FileOpener:
    if root.protocol == "file":
        return lambda: _open_local_file(root, path)
    if root.protocol in _WEB:
        return lambda: _open_web_file(root, [*root.path, *path], place.query)
    try:
        return _store_opener(_cached_store(entry), path)
    except StoreError as error:
        raise IdsError(f"The worker's {ALLOWED_FOLDERS_VARIABLE} names the file's folder, but {error}.") from None


@lru_cache(maxsize=32)
def _cached_store(url: str) -> Store:
    return open_store(url)


@dataclass(frozen=True)
class _Location:
    """A parsed URL, for comparison with another one."""

    protocol: str
    authority: str
    """Host and port, or bucket, or container and account; without the protocol's own port."""
    path: tuple[str, ...]
    query: str = ""
    """Of a web URL."""

    @classmethod
    def parse(cls, url: str, what: str) -> _Location:
        """Parse a URL. Raises IdsError, whose text never contains the URL."""
        if not url:
            raise IdsError(f"{what} is empty. Write one, such as {DEFAULT_ALLOWED_FOLDERS}/ids.txt.")
        if is_chained(url):
            raise IdsError(f"{what} chains file systems with '::'. Write the URL of the file itself.")
        if _CONTROL_CHARACTERS.search(url):
            raise IdsError(f"{what} contains a control character. Type it again.")
        try:
            local = local_path(url, what)
        except ValueError as error:
            raise IdsError(f"{error}.") from None
        protocol, sign, rest = url.partition("://") if local is None else ("file", "://", local)
        protocol, authority, query = _ALIASES.get(protocol, protocol), "", ""
        if not sign:
            raise IdsError(f"{what} has no :// after its protocol. Write it as {DEFAULT_ALLOWED_FOLDERS}/ids.txt.")
        if local is None:
            authority, _, rest = rest.partition("/")
        if protocol in _WEB:
            rest, _, query = rest.partition("#")[0].partition("?")
        if local is not None or protocol == "sftp":
            rest = "/".join(filter(None, rest.split("/")))  # a file system treats // as /
        path = tuple(rest.rstrip("/").split("/")) if rest.strip("/") else ()
        if any(_is_traversal(part, is_web=protocol in _WEB) for part in path):
            raise IdsError(
                f"{what} has an empty, . or .. segment, or an escaped slash or backslash, in its path. Remove it."
            )
        return cls(protocol, _authority(protocol, authority), path, query)

    def relative_to(self, root: _Location) -> tuple[str, ...]:
        """The path below that folder; empty if this is not in it."""
        depth = len(root.path)
        is_there = (self.protocol, self.authority) == (root.protocol, root.authority)
        return self.path[depth:] if is_there and self.path[:depth] == root.path else ()


def _is_traversal(part: str, *, is_web: bool) -> bool:
    """Whether a part of a path may be more than a name to some server: some decode twice, or drop what follows `;`."""
    while is_web and (once := unquote(part)) != part:
        part = once
    name = unquote(part).partition(";")[0] if is_web else unquote(part)
    return name in {"", ".", ".."} or not {"/", "\\"}.isdisjoint(unquote(part))


def _authority(protocol: str, text: str) -> str:
    if protocol not in _DEFAULT_PORTS:  # buckets and containers
        return text
    user, at, host = text.rpartition("@")
    return f"{user}{at}{host.lower().removesuffix(f':{_DEFAULT_PORTS[protocol]}')}"


def _open_local_file(root: _Location, path: Sequence[str]) -> BinaryIO:
    """Open a regular file below a local folder. Symlinks are followed only if they stay inside that folder."""
    base = Path("/", *root.path).resolve()
    found = base.joinpath(*path).resolve()
    if not found.is_relative_to(base) or found == base:
        raise IdsError("The file of ids is a link to a file outside its folder. Put the file itself there.")
    if any(found.is_relative_to(folder) for folder in _KERNEL_FILE_SYSTEMS):
        raise IdsError("The file of ids belongs to a kernel file system. Give the URL of a regular file.")
    *folders, name = found.relative_to(base).parts
    with ExitStack() as opened:
        # Segment by segment, so that a symlink swapped in after resolving is not followed.
        folder = opened.enter_context(Folder.at(base))
        for part in folders:
            folder = opened.enter_context(folder.folder(part))
        try:
            fd = opened.enter_context(folder.opened(name, os.O_RDONLY))
        except FileExistsError:
            raise IdsError("That URL does not name a regular file. Give the URL of a file of ids.") from None
        return os.fdopen(os.dup(fd), "rb")


def _store_opener(store: Store, path: Sequence[str]) -> FileOpener:
    if not isinstance(store, ObjectStore):
        raise TypeError("a local store is read by its path")
    return lambda: _as_file(_read_object(store, "/".join(path)))


def _read_object(store: ObjectStore, path: str) -> Generator[bytes]:
    try:
        yield from store.file(path, "the file of ids")
    except NothingStored:
        raise IdsError(NOT_FOUND_MESSAGE) from None


def _open_web_file(root: _Location, path: Sequence[str], query: str) -> BinaryIO:
    return _as_file(_response_chunks(f"{root.protocol}://{root.authority}/{'/'.join(path)}{query and '?'}{query}"))


def _response_chunks(url: str) -> Generator[bytes]:
    """The body of a web server's response. Follows no redirects; uses no cookies, proxies or logins."""
    try:
        target = httpx.URL(url)  # for its percent-encoding
    except httpx.InvalidURL:
        raise IdsError(f"{_URL} cannot be read. Check that a browser can open it.") from None
    headers = [("Accept-Encoding", "identity"), ("User-Agent", "emailgistics-attachments")]
    request_url = httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path)
    context = httpx.create_ssl_context(trust_env=False) if target.scheme == "https" else None
    with (
        httpcore.ConnectionPool(ssl_context=context) as pool,
        pool.stream("GET", request_url, headers=headers, extensions={"timeout": _TIMEOUTS}) as answer,
    ):
        if answer.status in _REDIRECTS:
            raise IdsError(
                "The web server responds with a redirect, which is not followed. Write the URL that it points to; "
                f"{ALLOWED_FOLDERS_VARIABLE} in the worker's environment must allow that one too."
            )
        if answer.status == _NOT_FOUND:
            raise IdsError(NOT_FOUND_MESSAGE)
        if answer.status != _OK:
            raise IdsError(
                f"The web server responds with status {answer.status} instead of the file of ids. Check the URL and "
                "the server."
            )
        yield from answer.iter_stream()


def _as_file(blocks: Generator[bytes]) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(_ChunkReader(blocks), _BUFFER_SIZE))


class _ChunkReader(io.RawIOBase):
    """A file over chunks of bytes; closing it ends the transfer."""

    def __init__(self, blocks: Generator[bytes]) -> None:
        super().__init__()
        self._blocks = blocks
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._block = memoryview(block)
        data = self._block[: len(buffer)]
        self._block = self._block[len(data) :]
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._blocks.close()
        super().close()
