"""Any other fsspec file system: written under a temporary path, then moved to the final one.

Sound where the file system itself moves (renames) or copies an object as one step, over what stands there: memory,
HDFS, most FTP servers, object stores of other makers. That is tried once a process, and what cannot do it is refused:
SMB and WebHDFS do not replace. No such backend creates "only when nothing is there", so two machines that write one
attachment at the same moment both write it: the same bytes, under the same key. Encrypted, their bytes differ; then the
proof is made to be that of the object that stands there in the end.

```
<root>/.incoming/<message_key>.<attachment_key>.<random>      on its way in
<root>/.proofs/<message_key>.<attachment_key>.<name's hash>   what the object holds, for there are no metadata
```
"""

from __future__ import annotations

import errno
import ftplib
import hashlib
import inspect
import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from inspect import Parameter
from typing import Any, cast

from fsspec import AbstractFileSystem, get_filesystem_class
from fsspec.generic import GenericFileSystem
from fsspec.implementations.dirfs import DirFileSystem

from attachments.storage.backends.base import (
    Backend,
    Conflict,
    Failure,
    Listed,
    ObjectHeaders,
    ObjectStat,
    Orphan,
    Upload,
    Version,
)
from attachments.storage.backends.library_internals import copies_objects, options_of_url, path_of_url
from attachments.storage.checksum_objects import PROOFS, proven
from attachments.storage.encryption import Encryption
from attachments.storage.errors import StoreError, UnsupportedStore
from attachments.storage.local.errors import failure_of
from attachments.storage.manifest import MAX_READ
from attachments.storage.names import shorter_names

INCOMING = ".incoming"
_BLOCK = 1024 * 1024
_LOOKED_AT = 10_000  # attempts, a millisecond apart
_TOO_LONG = {"ENAMETOOLONG", "553"}
_FTP_REFUSED = "550"
_INDIRECT = (DirFileSystem, GenericFileSystem)
_SETTLING = 20  # reads of an object that several writers have replaced


class RenameBackend(Backend):
    """A file system that can move or copy files."""

    errors = (Exception,)  # each file system has its own errors without a common base, and their texts contain paths

    def __init__(self, kind: type[AbstractFileSystem], url: str, options: Mapping[str, Any]) -> None:
        self._kind = kind
        self._root = path_of_url(kind, url).rstrip("/")
        self._options = {**options_of_url(kind, url), **options}
        self._lock = threading.Lock()
        self._opened: AbstractFileSystem | None = None
        self._trying = threading.Lock()
        self._replaces: bool | None = None

    @classmethod
    def at(cls, url: str, options: Mapping[str, Any], encryption: Encryption) -> RenameBackend:
        """The backend at a URL of any protocol that fsspec supports. Raises UnsupportedStore for an unsuitable one."""
        protocol = url.partition(":")[0]
        if encryption.needs_service:
            raise UnsupportedStore(
                f"{encryption.needs_service} is not supported on {protocol}: stores; use age recipients instead"
            )
        try:
            kind = get_filesystem_class(protocol)
        except (ValueError, ImportError, AttributeError):  # AttributeError for adl:, which no longer exists
            # Only the protocol, because a URL may contain credentials.
            raise UnsupportedStore(
                f"no store for {protocol}: URLs; either fsspec has none, or its package is not "
                "installed. Set the store's URL to one of file:, s3:, abfs:, gs:, sftp:"
            ) from None
        if issubclass(kind, _INDIRECT):
            raise UnsupportedStore(
                f"a {protocol}: store only forwards to another one, which its options or its path name. "
                "Set the store's URL to that one's"
            )
        if not _moves(kind):
            raise UnsupportedStore(
                f"a {protocol}: store can neither move nor copy, so nothing could be written to it atomically. "
                "Set the store's URL to one of file:, s3:, abfs:, gs:, sftp:"
            )
        if protocol == "memory":
            raise UnsupportedStore(
                "a memory: store is lost when the process ends that wrote to it. "
                "Set the store's URL to one of file:, s3:, abfs:, gs:, sftp:"
            )
        backend = cls(kind, url, options)
        if lacking := _lacking(kind, backend._options):
            raise UnsupportedStore(
                f"a {protocol}: store needs {' and '.join(lacking)}, which neither its URL (such as "
                f"{protocol}://host/folder) nor its options name; add what is missing"
            )
        return backend

    @property
    def url(self) -> str:
        protocol = self._kind.protocol if isinstance(self._kind.protocol, str) else self._kind.protocol[0]
        host, port = self._options.get("host") or "", self._options.get("port")
        return f"{protocol}://{host}{f':{port}' if host and port else ''}{self._root}"

    def failure(self, error: Exception) -> Failure:
        return failure_of(error)

    def objects(self, prefix: str) -> Iterator[Listed]:
        folder = self._path(prefix.rstrip("/"))
        fs = self._fs
        with suppress(FileNotFoundError):
            fs.invalidate_cache(folder)
            for path, entry in fs.find(folder, detail=True).items():
                yield Listed(self._relative(str(path)), int(entry["size"]))

    def message_keys(self) -> Iterator[str]:
        fs = self._fs
        with suppress(FileNotFoundError):
            fs.invalidate_cache(self._root)
            for entry in fs.ls(self._root, detail=False):
                name = str(entry).rstrip("/").rpartition("/")[2]
                if not name.startswith("."):
                    yield name

    def stat(self, path: str) -> ObjectStat | None:
        info = self._info(path)
        if info is None:
            return None
        return ObjectStat(int(info["size"]), self._modified(path, info), self._proof(path))

    def read(self, path: str) -> Iterator[bytes]:
        with self._fs.open(self._path(path), "rb") as file:
            while block := file.read(_BLOCK):
                yield block

    def get(self, path: str) -> tuple[bytes, Version] | None:
        try:
            with self._fs.open(self._path(path), "rb") as file:
                data: bytes = file.read(MAX_READ)
        except FileNotFoundError:
            return None
        return data, hashlib.sha256(data).hexdigest()

    def put(self, path: str, data: bytes, labels: ObjectHeaders, *, replaces: Version | None) -> None:  # noqa: ARG002  as below
        self.check_moves()
        existing = self.get(path)
        if (existing and existing[1]) != replaces:
            raise Conflict
        temporary = self._temporary(path)
        self._make_folder(temporary)
        self._fs.pipe_file(self._path(temporary), data)
        self._move(temporary, path)

    def upload(self, path: str, labels: ObjectHeaders) -> Upload:  # noqa: ARG002  file systems keep no labels
        self.check_moves()
        return _MovingUpload(self, path)

    def remove(self, path: str) -> None:
        for each in (path, self._proof_path(path)):
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(each))

    def orphans(self) -> Iterator[Orphan]:
        for folder, what in ((INCOMING, "temporary file"), (PROOFS, "proof without its object")):
            for found in self.objects(f"{folder}/"):
                key = "/".join(found.path.rpartition("/")[2].split(".")[:2])
                if folder == INCOMING or not any(self.objects(f"{key}/")):
                    yield Orphan(what, key, found.path, self._begun(found.path))

    def clear(self, residue: Orphan) -> None:
        self.remove(residue.path)

    def check_moves(self) -> None:
        """Raise UnsupportedStore if moving a file does not replace another one. Tested once per process."""
        with self._trying:
            if self._replaces is None:
                self._replaces = self._tried()
        if not self._replaces:
            raise UnsupportedStore(
                f"a {self.url.partition(':')[0]}: store that cannot replace a file by moving another over it: a "
                "manifest could not be changed as one step. Mount it and use file:, or use s3:, abfs:, gs: or sftp:"
            )

    def _tried(self) -> bool:
        target = self._temporary("probe")
        try:
            for content in (b"one", b"two"):
                source = self._temporary("probe")
                self._make_folder(source)
                self._fs.pipe_file(self._path(source), content)
                try:
                    self._move(source, target)
                except Exception:
                    # FTP has one error for refusals and failures.
                    is_as_before = content == b"two" and self._fs.cat_file(self._path(target)) == b"one"
                    if is_as_before and self._fs.exists(self._path(source)):
                        return False
                    raise
                finally:
                    self._forget(source)
            return bool(self._fs.cat_file(self._path(target)) == b"two")
        finally:
            self._forget(target)

    def _forget(self, path: str) -> None:
        with suppress(*self.errors):
            self._fs.rm_file(self._path(path))

    def _begun(self, path: str) -> datetime | None:
        info = self._info(path)
        return self._modified(path, info) if info else None

    @property
    def _fs(self) -> AbstractFileSystem:
        """A separate instance, because fsspec's cached ones share state (transactions, listings) between threads."""
        with self._lock:
            if self._opened is None:
                try:
                    self._opened = self._kind(**self._options, skip_instance_cache=True, use_listings_cache=False)
                except (TypeError, ValueError, AttributeError, LookupError):
                    raise UnsupportedStore(
                        f"the options of the {self.url.partition(':')[0]}: store cannot be used",
                        remedy="compare them with those of its fsspec file system",
                    ) from None
            return self._opened

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _relative(self, path: str) -> str:
        whole = path_of_url(self._kind, path)
        return whole.removeprefix(self._root).lstrip("/")

    def _temporary(self, path: str) -> str:
        place = path.rpartition("/")[0].replace("/", ".")
        return f"{INCOMING}/{place}.{secrets.token_hex(8)}"

    def _proof_path(self, path: str) -> str:
        place, _, name = path.rpartition("/")
        return f"{PROOFS}/{place.replace('/', '.')}.{hashlib.sha256(name.encode()).hexdigest()[:16]}"

    def _proof(self, path: str) -> Mapping[str, str]:
        found = self.get(self._proof_path(path))
        return proven(found[0]) if found else {}

    def _info(self, path: str) -> Mapping[str, Any] | None:
        fs = self._fs
        try:
            fs.invalidate_cache(self._path(path.rpartition("/")[0]))
            info: Mapping[str, Any] = fs.info(self._path(path))
        except FileNotFoundError:
            return None
        return info if info["type"] == "file" else None

    def _modified(self, path: str, info: Mapping[str, Any]) -> datetime:
        for name in ("created", "mtime", "modified", "LastModified", "last_modified", "modify", "updated"):
            value = info.get(name)
            if isinstance(value, datetime):
                return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
            if isinstance(value, int | float):
                return datetime.fromtimestamp(value, UTC)
        try:
            value = cast("datetime", self._fs.modified(self._path(path)))
        except NotImplementedError:
            return datetime.now(UTC)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    def _make_folder(self, path: str) -> None:
        self._fs.makedirs(self._path(path).rpartition("/")[0], exist_ok=True)

    def _move(self, source: str, target: str) -> None:
        """Atomic for readers of the target: a rename, or a copy by the service itself."""
        self._make_folder(target)
        fs = self._fs
        if _renames(self._kind):
            fs.mv(self._path(source), self._path(target))
        else:
            fs.cp_file(self._path(source), self._path(target))
            fs.rm_file(self._path(source))


class _MovingUpload(Upload):
    """An upload into a temporary file."""

    def __init__(self, backend: RenameBackend, path: str) -> None:
        self._backend = backend
        self.path = path
        self._temporary = backend._temporary(path)
        self._file: Any = None
        self._ended = False

    def write(self, data: bytes) -> None:
        file = self._open()
        for _ in range(_LOOKED_AT):
            # A memory file cannot grow while another thread lists it, which takes microseconds.
            with suppress(BufferError):
                file.write(data)
                return
            time.sleep(0.001)
        raise OSError(errno.EBUSY, "polled without a pause")

    def commit(self, metadata: Mapping[str, str]) -> None:
        self._open().close()
        claim = json.dumps(dict(metadata)).encode()
        place, _, whole = self.path.rpartition("/")
        refusal: Exception | None = None
        for name in shorter_names(whole):
            self.path = f"{place}/{name}"
            try:
                self._give_name(claim)
            except (Conflict, StoreError):
                raise
            except self._backend.errors as error:
                if not self._may_be_too_long(error):
                    raise  # keep the proof, because the move may have succeeded although its response was lost
                self._backend._forget(self._backend._proof_path(self.path))
                refusal = refusal or error
            else:
                return
        raise refusal or AssertionError("a name is tried at least once")

    def _may_be_too_long(self, error: Exception) -> bool:
        """Whether the name is refused, maybe for its length: FTP servers have one response for that and many other
        reasons."""
        if failure_of(error).symbol in _TOO_LONG:
            return True
        is_refused = isinstance(error, ftplib.error_perm) and str(error).startswith(_FTP_REFUSED)
        return is_refused and self._backend._info(self.path) is None

    def _give_name(self, claim: bytes) -> None:
        backend = self._backend
        if backend._info(self.path) is not None:
            raise Conflict
        proof = backend._proof_path(self.path)
        backend._make_folder(proof)
        backend._fs.pipe_file(backend._path(proof), claim)
        backend._move(self._temporary, self.path)
        self._ended = True
        self._settle(proof, claim)

    def _settle(self, proof: str, claim: bytes) -> None:
        """Of concurrent writers, one's object remains; make sure that the proof beside it matches it."""
        backend = self._backend
        claims = {proven(claim).get("stored-sha256"): claim}
        for _ in range(_SETTLING):
            found = backend.get(proof)
            stands = found[0] if found else b""
            claimed = proven(stands).get("stored-sha256")
            if claimed in claims and len(claims) == 1:
                return
            claims.setdefault(claimed, stands)
            digest = hashlib.sha256()
            for block in backend.read(self.path):
                digest.update(block)
            right = claims.get(digest.hexdigest())
            if right is None or right == stands:
                return
            backend._fs.pipe_file(backend._path(proof), right)

    def discard(self) -> None:
        if self._ended or self._file is None:
            return
        self._ended = True
        # Closing publishes the file under a path that no reader uses.
        with suppress(*self._backend.errors):
            self._file.close()
        with suppress(*self._backend.errors):
            self._backend._fs.rm_file(self._backend._path(self._temporary))

    def _open(self) -> Any:
        if self._file is None:
            self._backend._make_folder(self._temporary)
            self._file = self._backend._fs.open(self._backend._path(self._temporary), "wb")
        return self._file


def _lacking(kind: type[AbstractFileSystem], options: Mapping[str, Any]) -> list[str]:
    """The required options of the file system that are missing."""
    _, *parameters = inspect.signature(kind.__init__).parameters.values()
    named = {Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY}
    needed = [each.name for each in parameters if each.default is Parameter.empty and each.kind in named]
    return [name for name in needed if not options.get(name)]


def _moves(kind: type[AbstractFileSystem]) -> bool:
    return copies_objects(kind) or _renames(kind)


def _renames(kind: type[AbstractFileSystem]) -> bool:
    return kind.mv is not AbstractFileSystem.mv
