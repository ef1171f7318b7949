"""Where a file of ids may be read from: `ids_url` chooses a file, and never a host, a folder or a credential.

The URL is a parameter of a run, which everybody with Prefect can set. So it is only compared, as text, with folders
that others have named: those that the worker's environment allows, or the one folder of the block `ids_block`. What is
opened is that folder, with its own options, and of the URL nothing but the path below it is used. A file on the
worker's machine or on a web server needs the environment: a block is no proof that its author may read them, since
blocks too are written through Prefect. Knows no Prefect.
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

from attachments.domain.message_ids import NOT_THERE, IdsError, Open
from attachments.storage import Store, StoreError, open_store
from attachments.storage.errors import NothingStored
from attachments.storage.local.folders import Folder
from attachments.storage.object_store import ObjectStore
from attachments.storage.urls import is_chained, local_path

ALLOWED = "ATTACHMENTS_IDS_ALLOWED"
"""The worker's variable: URLs of folders, comma-separated."""
DEFAULT = "file:///srv/attachments-ids"
"""What may be read where the variable is not set."""

_URL = "The URL of the file of ids"
_ALIASES = {"s3a": "s3", "abfss": "abfs", "az": "abfs", "gcs": "gs", "ssh": "sftp"}
_PORTS = {"sftp": "22", "ftp": "21", "http": "80", "https": "443"}
_WEB = ("http", "https")
_BY_ENVIRONMENT = ("file", *_WEB)
"""What no block opens."""
_KERNEL = ("/proc", "/sys", "/dev")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_BLOCK = 1024 * 1024
_TIMEOUTS = {"connect": 10.0, "read": 60.0, "write": 60.0, "pool": 60.0}
_OK, _NOT_FOUND = 200, 404
_REDIRECTS = range(300, 400)


@dataclass(frozen=True)
class BlockFolder:
    """The folder of an Attachment Store block, from which its own options read."""

    name: str
    """As `attachment-store/corp`."""
    url: str
    """As the block has it, which may be another spelling than the store's."""
    store: Store


def opener(url: str, block: BlockFolder | None = None, environment: Mapping[str, str] = os.environ) -> Open:
    """Opens the file of ids at a URL, or at an absolute path, from its beginning.

    Raises IdsError, now and then, also for what may not be read; and StoreError when it is opened and read.
    """
    place = _Place.of(url.strip(), _URL)
    if block is not None:
        return _in_block(place, block)
    for number, entry in enumerate(_entries(environment), 1):
        try:
            root = _Place.of(entry, f"Entry {number} of the worker's {ALLOWED}")
        except IdsError as error:
            raise IdsError(f"{error} Correct it in the worker's environment.") from None
        if path := place.below(root):
            return _in_folder(place, root, entry, path)
    raise IdsError(
        f"The worker may not read ids from there. Put the file into {DEFAULT.removeprefix('file://')} on the worker's "
        f"machine, or into the folder of an Attachment Store block that ids_block names; or add its folder to "
        f"{ALLOWED} in the worker's environment, if that has to be."
    )


def _entries(environment: Mapping[str, str]) -> Sequence[str]:
    entries = (entry.strip() for entry in environment.get(ALLOWED, DEFAULT).split(","))
    return [entry for entry in entries if entry]


def _in_block(place: _Place, block: BlockFolder) -> Open:
    if place.protocol in _BY_ENVIRONMENT:
        raise IdsError(
            "No block is needed for a file on the worker's machine or on a web server, nor does one allow it. Remove "
            f"ids_block; {ALLOWED} in the worker's environment says what may be read."
        )
    for root in (block.url, block.store.url):
        if path := place.below(_Place.of(root, f"The URL of the block {block.name}")):
            return _of_store(block.store, path)
    raise IdsError(
        f"ids_url is not in the folder of the block {block.name}, and its options are for that folder alone. Begin "
        "ids_url as the block's URL, or name in ids_block one whose URL is the file's folder."
    )


def _in_folder(place: _Place, root: _Place, entry: str, path: Sequence[str]) -> Open:
    if root.protocol == "file":
        return lambda: _local(root, path)
    if root.protocol in _WEB:
        return lambda: _of_web(root, [*root.path, *path], place.query)
    try:
        return _of_store(_opened(entry), path)
    except StoreError as error:
        raise IdsError(f"The worker's {ALLOWED} names the file's folder, but {error}.") from None


@lru_cache(maxsize=32)
def _opened(url: str) -> Store:
    return open_store(url)


@dataclass(frozen=True)
class _Place:
    """What a URL names, as far as two of them can be compared."""

    protocol: str
    authority: str
    """Host and port, or bucket, or container and account; without the protocol's own port."""
    path: tuple[str, ...]
    query: str = ""
    """Of a web server's."""

    @classmethod
    def of(cls, url: str, what: str) -> _Place:
        """Raises IdsError, with what to write instead, and never the URL."""
        if not url:
            raise IdsError(f"{what} is empty. Write one, such as {DEFAULT}/ids.txt.")
        if is_chained(url):
            raise IdsError(f"{what} chains file systems with '::'. Write the URL of the file itself.")
        if _UNPRINTABLE.search(url):
            raise IdsError(f"{what} holds a control character. Type it again.")
        try:
            local = local_path(url, what)
        except ValueError as error:
            raise IdsError(f"{error}.") from None
        protocol, sign, rest = url.partition("://") if local is None else ("file", "://", local)
        protocol, authority, query = _ALIASES.get(protocol, protocol), "", ""
        if not sign:
            raise IdsError(f"{what} has no :// behind its protocol. Write it as {DEFAULT}/ids.txt.")
        if local is None:
            authority, _, rest = rest.partition("/")
        if protocol in _WEB:
            rest, _, query = rest.partition("#")[0].partition("?")
        if local is not None or protocol == "sftp":
            rest = "/".join(filter(None, rest.split("/")))  # to a file system // is /
        path = tuple(rest.rstrip("/").split("/")) if rest.strip("/") else ()
        if any(_leads_elsewhere(part, is_web=protocol in _WEB) for part in path):
            raise IdsError(f"{what} has a . or .. or nothing between two slashes. Write its path without.")
        return cls(protocol, _authority(protocol, authority), path, query)

    def below(self, root: _Place) -> tuple[str, ...]:
        """The path from that folder on; nothing when this is not in it."""
        depth = len(root.path)
        is_there = (self.protocol, self.authority) == (root.protocol, root.authority)
        return self.path[depth:] if is_there and self.path[:depth] == root.path else ()


def _leads_elsewhere(part: str, *, is_web: bool) -> bool:
    """Whether a part of a path may be more than a name to some server: some decode twice, or drop what follows `;`."""
    while is_web and (once := unquote(part)) != part:
        part = once
    name = unquote(part).partition(";")[0] if is_web else unquote(part)
    return name in {"", ".", ".."} or not {"/", "\\"}.isdisjoint(unquote(part))


def _authority(protocol: str, text: str) -> str:
    if protocol not in _PORTS:  # buckets and containers
        return text
    user, at, host = text.rpartition("@")
    return f"{user}{at}{host.lower().removesuffix(f':{_PORTS[protocol]}')}"


def _local(root: _Place, path: Sequence[str]) -> BinaryIO:
    """A regular file below a folder of this machine, wherever links on the way lead to."""
    base = Path("/", *root.path).resolve()
    found = base.joinpath(*path).resolve()
    if not found.is_relative_to(base) or found == base:
        raise IdsError("The file of ids is a link that leads out of its folder. Put the file itself there.")
    if any(found.is_relative_to(folder) for folder in _KERNEL):
        raise IdsError("The file of ids is none that anybody has written. Give the URL of a regular file.")
    *folders, name = found.relative_to(base).parts
    with ExitStack() as opened:
        # Part by part: what is exchanged for a link since it was resolved is not followed.
        folder = opened.enter_context(Folder.at(base))
        for part in folders:
            folder = opened.enter_context(folder.folder(part))
        try:
            fd = opened.enter_context(folder.opened(name, os.O_RDONLY))
        except FileExistsError:
            raise IdsError("What is at that URL is no regular file. Give the URL of a file of ids.") from None
        return os.fdopen(os.dup(fd), "rb")


def _of_store(store: Store, path: Sequence[str]) -> Open:
    if not isinstance(store, ObjectStore):
        raise TypeError("a local store is read by its path")
    return lambda: _file(_of_object(store, "/".join(path)))


def _of_object(store: ObjectStore, path: str) -> Generator[bytes]:
    try:
        yield from store.file(path, "the file of ids")
    except NothingStored:
        raise IdsError(NOT_THERE) from None


def _of_web(root: _Place, path: Sequence[str], query: str) -> BinaryIO:
    return _file(_answer(f"{root.protocol}://{root.authority}/{'/'.join(path)}{query and '?'}{query}"))


def _answer(url: str) -> Generator[bytes]:
    """The body that a web server answers with. Redirects, cookies, proxies and logins are no part of it."""
    try:
        target = httpx.URL(url)  # for its percent-encoding
    except httpx.InvalidURL:
        raise IdsError(f"{_URL} cannot be read. Compare it with one that a browser opens.") from None
    headers = [("Accept-Encoding", "identity"), ("User-Agent", "emailgistics-attachments")]
    asked = httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path)
    context = httpx.create_ssl_context(trust_env=False) if target.scheme == "https" else None
    with (
        httpcore.ConnectionPool(ssl_context=context) as pool,
        pool.stream("GET", asked, headers=headers, extensions={"timeout": _TIMEOUTS}) as answer,
    ):
        if answer.status in _REDIRECTS:
            raise IdsError(
                "The web server answers with a redirect, which is not followed. Write the URL that it leads to; "
                f"{ALLOWED} in the worker's environment must name that one too."
            )
        if answer.status == _NOT_FOUND:
            raise IdsError(NOT_THERE)
        if answer.status != _OK:
            raise IdsError(f"The web server answers {answer.status} instead of the file of ids. Look there.")
        yield from answer.iter_stream()


def _file(blocks: Generator[bytes]) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(_Blocks(blocks), _BLOCK))


class _Blocks(io.RawIOBase):
    """Blocks as a file; closing it ends their transfer."""

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
