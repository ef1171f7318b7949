"""Azure Blob Storage, through adlfs's client: its credentials and options, but not its files.

adlfs's file objects publish what they have when an exception comes half-way. So blobs are put and committed here:

- up to one part: Put Blob;
- larger: blocks, and then the list of them, which makes the blob. Both carry the hash among the metadata, and both
  only create (`If-None-Match: *`).

Blocks that were never committed are invisible and go by themselves after a week. There is no request that drops them,
so `clear` takes the one way that there is: it commits an empty list, marked as rubbish, and deletes that blob.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import UTC
from functools import partial
from typing import Any, TypeVar

from adlfs import AzureBlobFileSystem
from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.storage.blob import BlobBlock, ContentSettings

from attachments.storage.backend import (
    Backend,
    Conflict,
    Failure,
    Labels,
    Listed,
    Residue,
    Standing,
    Upload,
    Version,
    check_options,
)
from attachments.storage.encryption import Encryption
from attachments.storage.errors import AccessDenied, NotFound, OutOfSpace, StoreUnavailable, UnsupportedStore
from attachments.storage.parts import PASSING_STATUS, PartedUpload, patiently, run

_OURS = "attachments_"
_RUBBISH = {"attachments_rubbish": "uncommitted"}
_TIMEOUTS: Mapping[str, Any] = {"connection_timeout": 10, "read_timeout": 60, "retry_total": 0}
_CONTAINER_GONE = {"ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled", "AccountIsDisabled"}

T = TypeVar("T")


class AzureBackend(Backend):
    """A container, or a part of one."""

    errors = (AzureError, OSError, RuntimeError, ValueError)
    metadata_is_proof = True

    def __init__(self, url: str, options: Mapping[str, Any], scope: str | None) -> None:
        whole = str(AzureBlobFileSystem._strip_protocol(url)).strip("/")
        self._container, _, root = whole.partition("/")
        self._root = f"{root}/" if root else ""
        self._options = {**AzureBlobFileSystem._get_kwargs_from_urls(url), **options}
        self._scope: Mapping[str, Any] = {"encryption_scope": scope} if scope else {}
        self._lock = threading.Lock()
        self._opened: AzureBlobFileSystem | None = None

    @classmethod
    def at(cls, url: str, options: Mapping[str, Any], encryption: Encryption) -> AzureBackend:
        """The backend at ``abfs://container@account…/root``; the options are adlfs's. Raises UnsupportedStore."""
        if not AzureBlobFileSystem._strip_protocol(url).strip("/"):
            raise UnsupportedStore(
                "the store's URL names no container; write it as abfs://container@account.dfs.core.windows.net/folder"
            )
        check_options(AzureBlobFileSystem, options, "adlfs")
        if encryption.s3 or encryption.kms_key:
            raise UnsupportedStore("SSE-S3, SSE-KMS and KMS keys are nothing that Azure knows; use an encryption scope")
        return cls(url, options, encryption.azure_scope)

    @property
    def url(self) -> str:
        account = self._options.get("account_name")
        host = f"@{account}.dfs.core.windows.net" if account else ""
        return f"abfs://{self._container}{host}/{self._root}".rstrip("/")

    def failure(self, error: Exception) -> Failure:
        symbol = _code(error) or str(_status(error) or type(error).__name__)
        if symbol in _CONTAINER_GONE:
            advice = "the container is not there: check account and container, or make it; it is never made by itself"
            return Failure(NotFound, symbol, advice)
        if isinstance(error, ClientAuthenticationError) or _status(error) in {401, 403}:
            advice = "check the credentials and the role that they have; docs/stores.md has the least that is needed"
            return Failure(AccessDenied, symbol, advice)
        if isinstance(error, ValueError):
            advice = "give the worker credentials and the account's name: environment, managed identity, or options"
            return Failure(AccessDenied, symbol, advice)
        if "Quota" in symbol or _status(error) == 507:  # noqa: PLR2004  Insufficient Storage
            return Failure(OutOfSpace, symbol, "make room or raise the quota, then run it again")
        return Failure(StoreUnavailable, symbol, "check network and account if this goes on; it is tried again")

    def objects(self, prefix: str) -> Iterator[Listed]:
        for blob in self._listed(prefix, include=["metadata"]):
            # Accounts with a hierarchical namespace list folders as well.
            if not (blob.metadata or {}).get("hdi_isfolder") and not _is_rubbish(blob):
                yield Listed(self._path(blob.name), blob.size, blob.last_modified.astimezone(UTC))

    def message_keys(self) -> Iterator[str]:
        names = self._pages(lambda: self._client.walk_blobs(name_starts_with=self._root, delimiter="/", **_TIMEOUTS))
        for found in names:
            if found.name.endswith("/"):
                yield self._path(found.name).rstrip("/")

    def look(self, path: str) -> Standing | None:
        blob = self._run(lambda: self._absent_is_none(self._blob(path).get_blob_properties(**_TIMEOUTS)))
        if blob is None or _is_rubbish(blob):
            return None
        ours = {
            name.removeprefix(_OURS).replace("_", "-"): value
            for name, value in (blob.metadata or {}).items()
            if name.startswith(_OURS)
        }
        return Standing(blob.size, blob.last_modified.astimezone(UTC), ours)

    def read(self, path: str) -> Iterator[bytes]:
        stream = self._run(lambda: self._blob(path).download_blob(**_TIMEOUTS))
        blocks: AsyncIterator[bytes] = aiter(stream.chunks())
        while block := run(_next(blocks), self._fs.loop):
            yield block

    def load(self, path: str) -> tuple[bytes, Version] | None:
        async def load() -> tuple[bytes, Version] | None:
            stream = await self._absent_is_none(self._blob(path).download_blob(**_TIMEOUTS))
            return None if stream is None else (await stream.readall(), stream.properties.etag)

        return self._run(load)

    def save(self, path: str, data: bytes, labels: Labels, *, replaces: Version | None) -> None:
        match: dict[str, Any] = {"match_condition": MatchConditions.IfMissing}
        if replaces is not None:
            match = {"match_condition": MatchConditions.IfNotModified, "etag": replaces}
        self._run(lambda: self.put(path, data, labels, {}, match))

    def upload(self, path: str, labels: Labels) -> Upload:
        return _AzureUpload(self, path, labels, self._fs.loop)

    def remove(self, path: str) -> None:
        self._run(lambda: self._absent_is_none(self._blob(path).delete_blob(**_TIMEOUTS)))

    def residue(self) -> Iterator[Residue]:
        for blob in self._listed("", include=["metadata", "uncommittedblobs"]):
            path = self._path(blob.name)
            place = "/".join(path.split("/")[:2])
            begun = blob.last_modified and blob.last_modified.astimezone(UTC)
            if _is_rubbish(blob):
                yield Residue("emptied blocks", place, path, begun)
            elif not blob.size and not self._run(partial(self._stands, path)):
                # Listed with no bytes, and not there when asked for: no state but blocks.
                yield Residue("uncommitted blocks", place, path, begun)

    def clear(self, residue: Residue) -> None:
        async def clear() -> None:
            blob = self._blob(residue.path)
            try:
                done = await blob.commit_block_list(
                    [], metadata=_RUBBISH, match_condition=MatchConditions.IfMissing, **_TIMEOUTS
                )
                etag = done["etag"]
            except (ResourceExistsError, ResourceModifiedError):
                found = await blob.get_blob_properties(**_TIMEOUTS)
                if not _is_rubbish(found):
                    return  # committed meanwhile
                etag = found.etag
            await blob.delete_blob(match_condition=MatchConditions.IfNotModified, etag=etag, **_TIMEOUTS)

        self._run(lambda: self._absent_is_none(clear()))

    async def put(
        self, path: str, data: bytes, labels: Labels, metadata: Mapping[str, str], match: Mapping[str, Any]
    ) -> None:
        """Put Blob. Raises Conflict."""
        await _creating(
            self._blob(path).upload_blob(
                io.BytesIO(data),
                length=len(data),
                overwrite=True,  # the condition says when
                max_concurrency=1,
                validate_content=True,
                **self.described(labels, metadata),
                **match,
                **_TIMEOUTS,
            )
        )

    async def stage(self, path: str, block: str, data: bytes) -> None:
        """Put Block."""
        body = io.BytesIO(data)
        await self._blob(path).stage_block(
            block, body, length=len(data), validate_content=True, **self._scope, **_TIMEOUTS
        )

    async def commit(self, path: str, blocks: list[str], labels: Labels, metadata: Mapping[str, str]) -> None:
        """Put Block List, where no blob stands. Raises Conflict."""
        listed = [BlobBlock(block) for block in blocks]
        try:
            await _creating(
                self._blob(path).commit_block_list(
                    listed,
                    match_condition=MatchConditions.IfMissing,
                    **self.described(labels, metadata),
                    **_TIMEOUTS,
                )
            )
        except HttpResponseError as error:
            # Another writer's commit discards our blocks; so does our own, when its answer was lost.
            if _code(error) != "InvalidBlockList" or not await self._stands(path):
                raise
        else:
            return
        raise Conflict

    def described(self, labels: Labels, metadata: Mapping[str, str]) -> dict[str, Any]:
        """The arguments that say what a blob is, and how it is encrypted."""
        settings = ContentSettings(content_type=labels.content_type, content_disposition=labels.content_disposition)
        # Azure takes names as C# has them: no hyphens.
        named = {f"{_OURS}{name.replace('-', '_')}": value for name, value in metadata.items()}
        return {"content_settings": settings, "metadata": named, **self._scope}

    async def patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What a request answers, tried again where that may help. The SDK's own retries begin with 15 s of waiting."""
        return await patiently(ask, (ServiceRequestError, ServiceResponseError, HttpResponseError), _may_pass)

    async def _stands(self, path: str) -> bool:
        return await self._absent_is_none(self._blob(path).get_blob_properties(**_TIMEOUTS)) is not None

    async def _absent_is_none(self, request: Awaitable[T]) -> T | None:
        try:
            return await request
        except ResourceNotFoundError as error:
            if _code(error) in _CONTAINER_GONE:
                raise
            return None

    def _listed(self, prefix: str, *, include: list[str]) -> Iterator[Any]:
        return self._pages(
            lambda: self._client.list_blobs(name_starts_with=self._root + prefix, include=include, **_TIMEOUTS)
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
        return run(self.patiently(ask), loop)

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
                self._opened = AzureBlobFileSystem(**options, skip_instance_cache=True)
            return self._opened


class _AzureUpload(PartedUpload):
    """A Put Blob, or blocks and their list."""

    def __init__(self, backend: AzureBackend, path: str, labels: Labels, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._backend = backend
        self._path = path
        self._labels = labels
        self._writer = secrets.token_hex(8)  # no two writers may use the same block ids
        self._blocks: list[str] = []

    async def _whole(self, data: bytes, metadata: Mapping[str, str]) -> None:
        match = {"match_condition": MatchConditions.IfMissing}
        await self._backend.patiently(lambda: self._backend.put(self._path, data, self._labels, metadata, match))

    async def _begin(self) -> None:
        """Blocks need no beginning."""

    async def _part(self, number: int, data: bytes) -> None:
        block = f"{self._writer}-{number:06}"
        await self._backend.patiently(lambda: self._backend.stage(self._path, block, data))
        self._blocks.append(block)

    async def _complete(self, number: int, data: bytes, metadata: Mapping[str, str]) -> None:
        await self._part(number, data)
        await self._backend.patiently(lambda: self._backend.commit(self._path, self._blocks, self._labels, metadata))

    async def _abort(self) -> None:
        """Nothing drops blocks; see the module's first lines."""


async def _next(blocks: AsyncIterator[bytes]) -> bytes:
    return await anext(blocks, b"")


async def _creating(request: Awaitable[Any]) -> None:
    try:
        await request
    except (ResourceExistsError, ResourceModifiedError):
        pass
    else:
        return
    raise Conflict


def _is_rubbish(blob: Any) -> bool:
    return (blob.metadata or {}).items() >= _RUBBISH.items()


def _may_pass(error: Exception) -> bool:
    status = _status(error)
    return status is None or status in PASSING_STATUS


def _status(error: Exception) -> int | None:
    return error.status_code if isinstance(error, HttpResponseError) else None


def _code(error: Exception) -> str:
    code = str(getattr(error, "error_code", "") or "")
    return code.rpartition(".")[2] if code.replace(".", "").isalnum() else ""
