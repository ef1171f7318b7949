"""The seven places in which the stores are tested, each with an independent client that inspects it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import pytest
from _pytest.mark.structures import ParameterSet
from gcsfs.core import GCSFileSystem

from attachments.storage import Encryption, Store, open_store
from tests.servers.kinds import Azurite, FakeGcs, Moto, Rclone, Sftp
from tests.servers.server import Server

from .memory import PROTOCOL as MEMORY

SERVERS: Mapping[str, type[Server]] = {
    "s3-moto": Moto,
    "s3-rclone": Rclone,
    "azure": Azurite,
    "gcs": FakeGcs,
    "sftp": Sftp,
}
KINDS = ("local", "memory", *SERVERS)
REMOTE = tuple(SERVERS)
HTTP = ("s3-moto", "s3-rclone", "azure", "gcs")


def kinds(names: Iterable[str], *soak: str) -> list[ParameterSet]:
    """These kinds of store; moto, which speaks S3 as rclone does but takes longer, and `soak` are left to the soak."""
    return [pytest.param(kind, marks=pytest.mark.soak if kind in {"s3-moto", *soak} else ()) for kind in names]


class Place:
    """A fresh root somewhere."""

    def __init__(self, kind: str, url: str, options: Mapping[str, Any], server: Server | None, name: str) -> None:
        self.kind = kind
        self.url = url
        self.options = dict(options)
        self.server = server
        self.name = name
        # What an SFTP server serves is looked at on its disk: that is quicker, and shares nothing with SSH.
        self._disk = server.folder / "data" / name / "root" if server and kind == "sftp" else None

    def open(self, *, port: int | None = None, encryption: Encryption | None = None) -> Store:
        """The store, as another process or machine would open it; through a proxy, when a port is given."""
        options = self.server.options(port) if self.server and port else self.options
        return open_store(self.url, options, encryption)

    def visible(self) -> dict[str, bytes]:
        """Every object under a final key, and what it holds."""
        return self._read(path for path in self._found() if not self._is_own(path))

    def everything(self) -> dict[str, bytes]:
        """All that a reader of the backend can see, the store's own things as well."""
        return self._read(self._found())

    def _read(self, paths: Iterable[str]) -> dict[str, bytes]:
        fs = self.eye
        root = self.root
        found: dict[str, bytes] = {}
        for path in paths:
            # What is there when it is listed may be gone when it is read: locks, files on their way in.
            try:
                found[path.removeprefix(f"{root}/")] = fs.cat_file(path)
            except FileNotFoundError:
                continue
        return found

    def sizes(self) -> dict[str, int]:
        """As `visible`, without reading."""
        fs, root = self.eye, self.root
        return {path.removeprefix(f"{root}/"): fs.size(path) for path in self._found() if not self._is_own(path)}

    def plant(self, key: str, content: bytes) -> None:
        """Puts an object there that the store did not write."""
        path = f"{self.root}/{key}"
        if self.kind in {"local", "sftp"}:
            self.eye.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.eye.pipe_file(path, content)

    def open_uploads(self) -> list[str]:
        """What writers have under way or left behind, as the backend itself tells it."""
        if self.kind.startswith("s3"):
            assert isinstance(self.server, Moto | Rclone)
            client = self.server.client()
            try:
                told = client.list_multipart_uploads(Bucket=self.name)
            except client.exceptions.NoSuchUpload:  # rclone's word for none so far
                told = {}
            return [upload["Key"] for upload in told.get("Uploads", ())] + self._orphan_proofs()
        if self.kind == "azure":
            assert isinstance(self.server, Azurite)
            blobs = list(self.server.service().get_container_client(self.name).list_blobs(include=["uncommittedblobs"]))
            committed = {blob.name for blob in self.server.service().get_container_client(self.name).list_blobs()}
            return [blob.name for blob in blobs if blob.name not in committed]
        if self.kind == "gcs":
            return []  # nobody can list sessions
        own = [key for key in self.everything() if key.startswith(".incoming/")]
        return own + self._orphan_proofs()

    @property
    def root(self) -> str:
        """The root as fsspec's file system names it."""
        path = self.url.partition("://")[2]
        if self._disk is not None:
            return str(self._disk)
        return f"/{path}" if self.kind == "memory" else path

    @property
    def eye(self) -> Any:
        """A file system of its own."""
        protocol = "file" if self._disk is not None else self.url.partition("://")[0]
        options = {} if self._disk is not None else self.options
        # Prefers what it was told once: a listing in a cache is no evidence.
        fs = _eye(protocol, tuple(sorted((name, repr(value)) for name, value in options.items())), lambda: options)
        fs.invalidate_cache()
        return fs

    def _is_own(self, path: str) -> bool:
        """Whether it is the store's own business, which no reader looks at."""
        return "/." in path.removeprefix(self.root)

    def _found(self) -> list[str]:
        for _ in range(100):
            try:
                return [str(path) for path in self.eye.find(self.root)]
            except FileNotFoundError:
                return []
            except RuntimeError:  # fsspec's memory, while another thread writes
                continue
        raise AssertionError("no listing came to its end")

    def _orphan_proofs(self) -> list[str]:
        places = {"/".join(key.split("/")[:2]) for key in self.visible()}
        proofs = [key for key in self.everything() if key.startswith(".proofs/")]
        return [key for key in proofs if "/".join(key.rpartition("/")[2].split(".")[:2]) not in places]


class _Options:
    """Equal to all others, so that a cache does not look at it."""

    def __init__(self, make: Callable[[], dict[str, Any]]) -> None:
        self.make = make

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Options)

    def __hash__(self) -> int:
        return 0


def _eye(protocol: str, key: tuple[tuple[str, str], ...], options: Callable[[], dict[str, Any]]) -> Any:
    return _opened_eye(protocol, key, _Options(options))


@cache
def _opened_eye(protocol: str, key: tuple[tuple[str, str], ...], options: _Options) -> Any:
    # gcsfs's other class asks Google by gRPC what kind of bucket it is.
    kind = GCSFileSystem if protocol == "gs" else fsspec.get_filesystem_class(protocol)
    return kind(**options.make(), skip_instance_cache=True)


class Places:
    """Makes places; starts each server when it is first asked for, and stops them all in the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: dict[str, Server] = {}

    def make(self, kind: str) -> Place:
        """A fresh place of this kind."""
        name = f"place-{uuid.uuid4().hex[:12]}"
        if kind == "local":
            root = self._folder / name / "root"
            return Place(kind, f"file://{root}", {}, None, name)
        if kind == "memory":
            return Place(kind, f"{MEMORY}://{name}/root", {}, None, name)
        server = self._servers.get(kind) or self._started(kind)
        return self.at(kind, server, name)

    @contextmanager
    def own(self, kind: str) -> Iterator[Place]:
        """A place on a server of its own, which may be killed."""
        server = SERVERS[kind](self._folder / f"{kind}-{uuid.uuid4().hex[:6]}")
        server.start()
        try:
            yield self.at(kind, server, f"place-{uuid.uuid4().hex[:12]}")
        finally:
            server.stop()

    def at(self, kind: str, server: Server, name: str) -> Place:
        """A fresh place on this server."""
        server.make_place(name)
        return Place(kind, server.url(name), server.options(), server, name)

    def stop(self) -> None:
        """Stops all servers."""
        for server in self._servers.values():
            server.stop()

    def _started(self, kind: str) -> Server:
        server = SERVERS[kind](self._folder / kind)
        server.start()
        self._servers[kind] = server
        return server
