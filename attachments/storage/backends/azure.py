"""Azure Blob Storage, through adlfs's client: its credentials and options, but not its files.

adlfs's file objects publish what they have when an exception comes half-way. So blobs are put and committed here:

- up to one part: Put Blob;
- larger: blocks, and then the list of them, which makes the blob. Both carry the hash among the metadata, and both
  only create (`If-None-Match: *`).

Blocks that were never committed are invisible and go by themselves after a week. There is no request that drops them,
so `clear` takes the one way that there is: it commits an empty list, marked as rubbish, and deletes that blob. Such a
blob that a crash left counts as nothing: it is not listed, a writer replaces it, and the next `clear` deletes it.

Azure does not tell when a block came, so its id does: all ids are of one length, as they must be, and begin with the
time. Requests are not logged: the SDK's log lines hold paths.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from adlfs import AzureBlobFileSystem
from azure.core import MatchConditions
from azure.core.credentials import AzureSasCredential
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.storage.blob import BlobBlock, ContentSettings
from fsspec.utils import infer_storage_options

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
    check_options,
    options_in_use,
)
from attachments.storage.backends.own_hosts import check_host
from attachments.storage.backends.parts import PASSING_STATUS, PartedUpload, is_permanent, retry_transient, run
from attachments.storage.encryption import Encryption
from attachments.storage.errors import (
    AccessDenied,
    AlreadyExists,
    NotFound,
    OutOfSpace,
    StoreError,
    StoreUnavailable,
    UnsupportedStore,
)
from attachments.storage.manifest import MAX_READ

_OURS = "attachments_"
_RUBBISH = {"attachments_rubbish": "uncommitted"}
_BLOCK = 4 * 1024 * 1024
_CONTAINER = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_ACCOUNT = re.compile(r"[a-z0-9][a-z0-9-]*")  # whatever else stands there would become a part of the host's name
# https://learn.microsoft.com/azure/storage/common/storage-account-overview#storage-account-endpoints, and other clouds
_MICROSOFT = re.compile(
    r"[a-z0-9.-]+\.(blob|dfs)\.(core\.(windows\.net|chinacloudapi\.cn|usgovcloudapi\.net)|storage\.azure\.net)(:443)?"
)
_OWN_CREDENTIALS = ("account_key", "sas_token", "connection_string")
_BLOCK_ID = re.compile(r"([0-9a-f]{8})[0-9a-f]{16}-\d{6}")

# Five tries with our pauses end within 40 s when nobody answers.
_PATIENCE: Mapping[str, Any] = {"connection_timeout": 5, "read_timeout": 60}
_REQUEST: Mapping[str, Any] = {"retry_total": 0, "logger": logging.Logger("silent", logging.CRITICAL)}

_ABSENT: Mapping[str, Any] = {"match_condition": MatchConditions.IfMissing}
_BAD, _OUT_OF_RANGE, _CHANGED, _INSUFFICIENT_STORAGE = 400, 416, 412, 507

# https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes
_TAKEN = {"BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet", "ResourceTypeMismatch"}
"""Answers to what only creates, or only replaces what it names."""
_TAKEN_PERHAPS = {
    "InvalidBlockList",  # another's commit discards our blocks (adlfs#462), and so does ours whose answer was lost
    "UnauthorizedBlobOverwrite",  # a SAS that may only create
    "BlobImmutableDueToPolicy",
    "BlobImmutableDueToLegalHold",
    "BlobOperationNotSupported",
}
"""The same when something stands there, and an error when not."""
_DAMAGED_ON_ITS_WAY = {"Md5Mismatch", "Crc64Mismatch"}
_AGAIN = {*_DAMAGED_ON_ITS_WAY, "InvalidBlockList"}
_CREDENTIALS = "check the credentials and their role; docs/stores.md lists the permissions that are needed"
_IMMUTABLE = "a policy forbids replacing it, which manifests need: choose a container without such a policy"
_ARCHIVED = "it was moved to the archive tier: restore it, and exclude this folder from the lifecycle rules"
_SNAPSHOTS = "it has snapshots: delete these first, or let a lifecycle rule delete them"
_BLOCKED = "uncommitted blocks are in the way: run `attachments verify --clean`, or wait a week"
_GONE = "the container does not exist: check the account and the name, or create it; it is never created automatically"
_MEANINGS: Mapping[str, tuple[type[StoreError], str]] = {
    "ContainerNotFound": (NotFound, _GONE),
    "ContainerBeingDeleted": (NotFound, _GONE),
    "ContainerDisabled": (AccessDenied, _CREDENTIALS),
    "PublicAccessNotPermitted": (AccessDenied, _CREDENTIALS),
    "BlobImmutableDueToPolicy": (AccessDenied, _IMMUTABLE),
    "BlobImmutableDueToLegalHold": (AccessDenied, _IMMUTABLE),
    "SnapshotsPresent": (AccessDenied, _SNAPSHOTS),
    "BlobArchived": (AccessDenied, _ARCHIVED),
    "BlobBeingRehydrated": (AccessDenied, _ARCHIVED),
    "BlockCountExceedsLimit": (OutOfSpace, _BLOCKED),
    "InvalidBlobOrBlock": (UnsupportedStore, _BLOCKED),
    "BlobOperationNotSupported": (AlreadyExists, "something else exists there; move it away, then run it again"),
}

T = TypeVar("T")


class NoCredentials(ClientAuthenticationError):
    """adlfs has found none, or no account; or what it was given is none."""


class AzureBackend(Backend):
    """A container, or a part of one."""

    # adlfs wraps what it meets in RuntimeError; the SDK raises ValueError for answers that lack a header.
    errors = (AzureError, OSError, RuntimeError, ValueError)
    metadata_is_proof = True

    def __init__(self, url: str, options: Mapping[str, Any], scope: str | None) -> None:
        self._container, root = _container_and_root(url)
        self._root = f"{root}/" if root else ""
        self._options = {**_account_of(url), **options}
        self._scope: Mapping[str, Any] = {"encryption_scope": scope} if scope else {}
        timeouts = {
            name: options[name] for name in ("connection_timeout", "read_timeout", "timeout") if options.get(name)
        }
        self._request: Mapping[str, Any] = {**_PATIENCE, **timeouts, **_REQUEST}
        self._lock = threading.Lock()
        self._opened: AzureBlobFileSystem | None = None

    @classmethod
    def at(cls, url: str, options: Mapping[str, Any], encryption: Encryption) -> AzureBackend:
        """The backend at ``abfs://container@account…/root``; the options are adlfs's. Raises UnsupportedStore."""
        check_options(AzureBlobFileSystem, options, "adlfs")
        if wrong := sorted({"asynchronous", "loop", "self", "kwargs"} & set(options)):
            raise UnsupportedStore(f"adlfs's option {', '.join(wrong)} cannot be set here; remove it")
        try:
            parts = urlsplit(url)
        except ValueError:
            raise UnsupportedStore("the store's URL is not valid") from None
        if "?" in url or parts.password is not None:
            raise UnsupportedStore(
                "the store's URL contains a query or a password; give credentials as options, such as sas_token"
            )
        if not _CONTAINER.fullmatch(_container_and_root(url)[0]):
            raise UnsupportedStore(
                "the store's URL names no container; write it as abfs://container@account.dfs.core.windows.net/folder"
            )
        known = _account_of(url)
        if parts.username and not known and not {"account_host", "connection_string"} & set(options):
            # adlfs would leave the host out, and ask an account of Azure's public cloud.
            raise UnsupportedStore(
                "the host in the store's URL is not in the form account.dfs.core.windows.net; for another cloud set "
                "the options account_name and account_host"
            )
        known |= options
        if not _ACCOUNT.fullmatch(str(known.get("account_name") or "none")):
            raise UnsupportedStore(
                "the option account_name is not valid: an account's name has only letters, digits and hyphens"
            )
        host = str(known.get("account_host") or "")
        if not any(known.get(name) for name in _OWN_CREDENTIALS):
            check_host("account_host", host, _MICROSOFT, f"set one of the options {', '.join(_OWN_CREDENTIALS)}")
        if encryption.s3 or encryption.kms_key:
            raise UnsupportedStore("SSE-S3, SSE-KMS and KMS keys are not supported on Azure; use an encryption scope")
        return cls(url, options, encryption.azure_scope)

    @property
    def url(self) -> str:
        account = self._options.get("account_name")
        host = self._options.get("account_host") or (f"{account}.dfs.core.windows.net" if account else "")
        return f"abfs://{self._container}{host and '@'}{host}/{self._root}".rstrip("/")

    def failure(self, error: Exception) -> Failure:
        code, status = _code(error), _status(error)
        symbol = code or str(status or type(error).__name__)
        if code in _MEANINGS:
            kind, advice = _MEANINGS[code]
            return Failure(kind, symbol, advice)
        if isinstance(error, NoCredentials):
            advice = "give the worker credentials and the account's name: environment, managed identity, or options"
            return Failure(AccessDenied, symbol, advice)
        if status in {401, 403} or (isinstance(error, ClientAuthenticationError) and status not in PASSING_STATUS):
            return Failure(AccessDenied, symbol, _CREDENTIALS)
        if status == _INSUFFICIENT_STORAGE:
            return Failure(OutOfSpace, symbol, "free space or raise the quota, then run it again")
        if status and is_permanent(status) and code not in _AGAIN:
            advice = "Azure rejects the request; check the URL, the options and the encryption scope"
            return Failure(UnsupportedStore, symbol, advice)
        return Failure(StoreUnavailable, symbol, "check network and account if this persists; it is retried")

    def objects(self, prefix: str) -> Iterator[Listed]:
        for blob in self._listed(prefix, include=["metadata"]):
            if not _is_folder(blob) and not _is_rubbish(blob):
                yield Listed(self._path(blob.name), blob.size, blob.last_modified.astimezone(UTC))

    def message_keys(self) -> Iterator[str]:
        whole = {"name_starts_with": self._root, "delimiter": "/", **self._request}
        for found in self._pages(lambda: self._client.walk_blobs(**whole)):
            name = self._path(found.name)
            if name.endswith("/") and not name.startswith("."):
                yield name.rstrip("/")

    def stat(self, path: str) -> ObjectStat | None:
        blob = self._run(lambda: self._properties(path))
        if blob is None or _is_rubbish(blob):
            return None
        ours = {
            name.removeprefix(_OURS).replace("_", "-"): value
            for name, value in (blob.metadata or {}).items()
            if name.startswith(_OURS)
        }
        return ObjectStat(blob.size, blob.last_modified.astimezone(UTC), ours)

    def read(self, path: str) -> Iterator[bytes]:
        """One request a block, of one and the same version."""
        at, size = 0, 1
        match: Mapping[str, Any] = {}

        async def block() -> tuple[bytes, Version, int]:
            try:
                stream = await self._blob(path).download_blob(offset=at, length=_BLOCK, **match, **self._request)
            except HttpResponseError as error:
                if at == 0 and _status(error) == _OUT_OF_RANGE:
                    return b"", "", 0  # an empty blob has no range
                raise
            data = await stream.readall()
            if not data:
                raise IncompleteReadError("no bytes came")
            return data, stream.properties.etag, int(stream.properties.content_range.rpartition("/")[2])

        while at < size:
            data, etag, size = self._run(block)
            at += len(data)
            match = {"match_condition": MatchConditions.IfNotModified, "etag": etag}
            if data:
                yield data

    def get(self, path: str) -> tuple[bytes, Version] | None:
        async def load() -> tuple[bytes, Version] | None:
            stream = await self._absent_is_none(self._blob(path).download_blob(**self._request))
            # The first request fetches 32 MiB at most, and `read` no more than it is asked for.
            return None if stream is None else (await stream.read(MAX_READ), stream.properties.etag)

        return self._run(load)

    def put(self, path: str, data: bytes, labels: ObjectHeaders, *, replaces: Version | None) -> None:
        if replaces is None:
            return self._run(lambda: self.create(path, data, labels, {}))
        match = {"match_condition": MatchConditions.IfNotModified, "etag": replaces}

        async def replace() -> None:
            try:
                await self._put(path, data, labels, {}, match)
            except HttpResponseError as error:
                gone = isinstance(error, ResourceNotFoundError) and _code(error) not in _MEANINGS
                if not gone and not _is_taken(error):
                    raise
            else:
                return
            raise Conflict

        return self._run(replace)

    def upload(self, path: str, labels: ObjectHeaders) -> Upload:
        return _AzureUpload(self, path, labels, self._fs.loop)

    def remove(self, path: str) -> None:
        self._run(lambda: self._absent_is_none(self._blob(path).delete_blob(**self._request)))

    def orphans(self) -> Iterator[Orphan]:
        for blob in self._listed("", include=["metadata", "uncommittedblobs"]):
            path = self._path(blob.name)
            place = "/".join(path.split("/")[:2])
            if _is_rubbish(blob):
                yield Orphan("emptied blocks", place, path, blob.last_modified.astimezone(UTC))
            # Azure tells no Last-Modified and no ETag of a blob that has only blocks; Azurite tells both. So whatever
            # has no bytes is asked for: it is there, or it has only blocks.
            elif not blob.size and not _is_folder(blob) and self._run(partial(self._properties, path)) is None:
                yield Orphan("uncommitted blocks", place, path, self._run(partial(self._begun, path)))

    def clear(self, residue: Orphan) -> None:
        self._run(lambda: self._absent_is_none(self._emptied(residue.path)))

    async def create(self, path: str, data: bytes, labels: ObjectHeaders, metadata: Mapping[str, str]) -> None:
        """Put Blob, where none stands. Raises Conflict."""
        await self._creating(path, lambda match: self._put(path, data, labels, metadata, match))

    async def stage(self, path: str, block: str, data: bytes) -> None:
        """Put Block."""
        body = io.BytesIO(data)
        await self._blob(path).stage_block(
            block, body, length=len(data), validate_content=True, **self._scope, **self._request
        )

    async def commit(self, path: str, blocks: list[str], labels: ObjectHeaders, metadata: Mapping[str, str]) -> None:
        """Put Block List, where no blob stands. Raises Conflict."""
        listed = [BlobBlock(block) for block in blocks]
        described = self._described(labels, metadata)
        await self._creating(
            path, lambda match: self._blob(path).commit_block_list(listed, **match, **described, **self._request)
        )

    async def retry_transient(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What a request answers, tried again where that may help. The SDK's own retries begin with 15 s of waiting."""
        return await retry_transient(ask, (ServiceRequestError, ServiceResponseError, HttpResponseError), _may_pass)

    async def _put(
        self, path: str, data: bytes, labels: ObjectHeaders, metadata: Mapping[str, str], match: Mapping[str, Any]
    ) -> None:
        await self._blob(path).upload_blob(
            io.BytesIO(data),
            length=len(data),
            overwrite=True,  # the condition says when
            max_concurrency=1,
            validate_content=True,
            **self._described(labels, metadata),
            **match,
            **self._request,
        )

    async def _creating(self, path: str, request: Callable[[Mapping[str, Any]], Awaitable[Any]]) -> None:
        """Makes a request that creates a blob. Raises Conflict when one stands there that is no rubbish."""
        try:
            await request(_ABSENT)
        except HttpResponseError as error:
            if not _is_taken(error) and _code(error) not in _TAKEN_PERHAPS:
                raise
            existing = await self._properties(path)
            if existing is None:
                raise
        else:
            return
        if _is_rubbish(existing):
            await request({"match_condition": MatchConditions.IfNotModified, "etag": existing.etag})
            return
        raise Conflict

    async def _emptied(self, path: str) -> None:
        """Drops the blocks that were never committed, and the blob that this takes."""
        try:
            await self._blob(path).commit_block_list([], metadata=_RUBBISH, **_ABSENT, **self._scope, **self._request)
        except HttpResponseError as error:
            if not _is_taken(error):
                raise
        existing = await self._properties(path)
        if existing is None or not _is_rubbish(existing):
            return  # deleted or committed meanwhile
        try:
            await self._blob(path).delete_blob(
                match_condition=MatchConditions.IfNotModified, etag=existing.etag, **self._request
            )
        except HttpResponseError as error:
            if not _is_taken(error):  # replaced meanwhile
                raise

    async def _begun(self, path: str) -> datetime | None:
        """When the youngest of the blocks' writers began; None when they are not ours."""
        blocks: list[Any] = []
        with suppress(UnicodeDecodeError, ResourceNotFoundError):  # ids of others that are no text; committed meanwhile
            _, blocks = await self._blob(path).get_block_list("uncommitted", **self._request)
        ids = [_BLOCK_ID.fullmatch(block.id) for block in blocks]
        return max((datetime.fromtimestamp(int(found[1], 16), UTC) for found in ids if found), default=None)

    def _described(self, labels: ObjectHeaders, metadata: Mapping[str, str]) -> dict[str, Any]:
        """The arguments that say what a blob is, and how it is encrypted."""
        settings = ContentSettings(content_type=labels.content_type, content_disposition=labels.content_disposition)
        # Azure takes names as C# has them: no hyphens.
        named = {f"{_OURS}{name.replace('-', '_')}": value for name, value in metadata.items()}
        return {"content_settings": settings, "metadata": named, **self._scope}

    async def _properties(self, path: str) -> Any:
        """What Azure tells of a blob; None when there is none."""
        return await self._absent_is_none(self._blob(path).get_blob_properties(**self._request))

    async def _absent_is_none(self, request: Awaitable[T]) -> T | None:
        try:
            return await request
        except ResourceNotFoundError as error:
            if _code(error) in _MEANINGS:
                raise
            return None

    def _listed(self, prefix: str, *, include: list[str]) -> Iterator[Any]:
        return self._pages(
            lambda: self._client.list_blobs(name_starts_with=self._root + prefix, include=include, **self._request)
        )

    def _pages(self, begin: Callable[[], Any]) -> Iterator[Any]:
        """The items of a listing. A page that failed is asked for again."""
        token: str | None = ""

        async def page() -> tuple[list[Any], str | None]:
            pages = begin().by_page(token or None)
            items = [item async for item in await anext(pages)]
            return items, pages.continuation_token

        while token is not None:
            items, token = self._run(page)
            yield from items
            token = token or None

    def _run(self, ask: Callable[[], Awaitable[T]]) -> T:
        loop = self._fs.loop  # before there is a coroutine that nobody awaits: there may be no credentials
        with options_in_use("adlfs", *self.errors):
            return run(self.retry_transient(ask), loop)

    def _blob(self, path: str) -> Any:
        return self._client.get_blob_client(self._root + path)

    def _path(self, name: str) -> str:
        return name.removeprefix(self._root)

    @property
    def _client(self) -> Any:
        return self._fs.service_client.get_container_client(self._container)

    @property
    def _fs(self) -> AzureBlobFileSystem:
        """Our own instance: fsspec's shared ones carry state (transactions, listings) between threads."""
        with self._lock:
            if self._opened is None:
                options = {**self._options, "use_listings_cache": False, "asynchronous": False}
                if options.get("sas_token") and not (options.get("account_key") or options.get("connection_string")):
                    # Before it, adlfs would take an account's key from the environment, and sign for any host.
                    options["credential"] = AzureSasCredential(str(options["sas_token"]))
                try:
                    self._opened = AzureBlobFileSystem(**options, skip_instance_cache=True)
                except ValueError:
                    raise NoCredentials from None
            return self._opened


class _AzureUpload(PartedUpload):
    """A Put Blob, or blocks and their list."""

    def __init__(
        self, backend: AzureBackend, path: str, labels: ObjectHeaders, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(loop)
        self._backend = backend
        self.path = path
        self._labels = labels
        # No two writers may use the same block ids.
        self._writer = f"{int(time.time()):08x}{secrets.token_hex(8)}"
        self._blocks: list[str] = []

    async def _whole(self, data: bytes, metadata: Mapping[str, str]) -> None:
        await self._backend.retry_transient(lambda: self._backend.create(self.path, data, self._labels, metadata))

    async def _begin(self) -> None:
        """Blocks need no beginning."""

    async def _part(self, number: int, data: bytes) -> None:
        block = f"{self._writer}-{number:06}"
        await self._backend.retry_transient(lambda: self._backend.stage(self.path, block, data))
        self._blocks.append(block)

    async def _complete(self, number: int, data: bytes, metadata: Mapping[str, str]) -> None:
        await self._part(number, data)
        await self._backend.retry_transient(
            lambda: self._backend.commit(self.path, self._blocks, self._labels, metadata)
        )

    async def _abort(self) -> None:
        """Nothing drops blocks; see the module's first lines."""


def _container_and_root(url: str) -> tuple[str, str]:
    """As adlfs reads it: the container is the user's part, or the host, or the path's first part below an account."""
    parts = infer_storage_options(url)
    host = parts.get("host", "")
    container = parts.get("username") or ("" if ".dfs.core.windows.net" in host else host)
    container, _, root = f"{container}{parts['path']}".strip("/").partition("/")
    return container, root.strip("/")


def _account_of(url: str) -> dict[str, str]:
    """The option that the host of a URL stands for, if it is one of Azure's public cloud."""
    found = re.match(r"(.+)\.(dfs|blob)\.core\.windows\.net", infer_storage_options(url).get("host", ""))
    return {"account_name": found[1]} if found else {}


def _is_folder(blob: Any) -> bool:
    """Whether it is a folder, which accounts with a hierarchical namespace list among the blobs."""
    return any(name.lower() == "hdi_isfolder" for name in blob.metadata or {})  # some are capitalized (adlfs#440)


def _is_rubbish(blob: Any) -> bool:
    return (blob.metadata or {}).items() >= _RUBBISH.items()


def _is_taken(error: HttpResponseError) -> bool:
    code = _code(error)
    return code in _TAKEN or (not code and error.status_code == _CHANGED)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, ClientAuthenticationError) and _status(error) is None:
        return False
    status = _status(error)
    return status is None or status < _BAD or status in PASSING_STATUS or _code(error) in _DAMAGED_ON_ITS_WAY


def _status(error: Exception) -> int | None:
    return error.status_code if isinstance(error, HttpResponseError) else None


def _code(error: Exception) -> str:
    """The service's word for it: a text, or a member of an enumeration when the SDK knows it."""
    code = getattr(error, "error_code", None)
    code = str(getattr(code, "value", code) or "")
    return code if code.isascii() and code.isalnum() else ""
