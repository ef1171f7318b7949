"""Google Cloud Storage, through gcsfs's credentials and session, but not its files or its uploads.

gcsfs's one-shot upload has a fixed MIME boundary, `==0==`, which an attached message may contain. So objects are sent
by the JSON API (https://cloud.google.com/storage/docs/json_api/v1), and only where nothing stands
(`ifGenerationMatch=0`):

- up to one part: one request, with the hash among the metadata;
- larger: a resumable upload. Its metadata are fixed when it begins, before the hash is known; they name a proof, as on
  S3 (`sidecars.py`).

gcsfs's own calls are not used: their retries log the names of objects, and their errors lose the service's reason.

What Google says that it has received (CRC32C) is compared with what was sent. Upload sessions that were given up are
invisible, cost nothing, cannot be listed, and go by themselves after a week.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar, cast
from urllib.parse import quote

import aiohttp
import google_crc32c
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError, NonRetryableError
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError

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
from attachments.storage.backends.library_internals import gcsfs_session
from attachments.storage.backends.own_hosts import check_host, check_transport
from attachments.storage.backends.parts import PASSING_STATUS, PartedUpload, is_permanent, retry_transient, run
from attachments.storage.checksum_objects import orphaned_proofs, proof_path, read_proof
from attachments.storage.encryption import Encryption
from attachments.storage.errors import AccessDenied, NotFound, StoreError, StoreUnavailable, UnsupportedStore
from attachments.storage.manifest import MAX_READ

_OURS = "attachments-"
_BLOCK = 1024 * 1024
_SLICE = 256 * 1024
_REQUEST = aiohttp.ClientTimeout(total=120, sock_connect=10, sock_read=60)  # five of them are within parts.PATIENCE
_TRANSFER = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
_ABSENT, _GONE, _CHANGED, _GIVEN_UP, _MULTIPLE, _RESUME = 404, 410, 412, 499, 300, 308
_NO_BUCKET, _NO_OBJECT, _DAMAGED = "no bucket", "no object", "damaged on its way"
_GOOGLE = re.compile(r"https://[a-z0-9.-]+\.googleapis\.com(:443)?/?")
_BRING_OWN = (
    "set the option token to anon, or to the key of a service account as a JSON object (docs/stores.md has what the "
    "worker's environment may name)"
)
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")

T = TypeVar("T")


class _Refused(Exception):
    """An answer that is no success. Its text holds the status alone."""

    def __init__(self, status: int, reason: str = "") -> None:
        super().__init__(str(status))
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def resource(self) -> dict[str, Any]:
        try:
            return cast("dict[str, Any]", json.loads(self.body))
        except (ValueError, RecursionError):
            raise _Refused(self.status, "unreadable") from None


class GcsBackend(Backend):
    """A bucket, or a part of one."""

    errors = (_Refused, aiohttp.ClientError, GoogleAuthError, HttpError, NonRetryableError, OSError)
    metadata_is_proof = True

    def __init__(self, url: str, options: Mapping[str, Any], kms_key: str | None) -> None:
        self._bucket, root = _bucket_and_root(url)
        self._root = f"{root}/" if root else ""
        self._options = options
        self._key = {"kmsKeyName": kms_key} if kms_key else {}
        self._lock = threading.Lock()
        self._opened: GCSFileSystem | None = None

    @classmethod
    def at(cls, url: str, options: Mapping[str, Any], encryption: Encryption) -> GcsBackend:
        """The backend at ``gs://bucket/root``; the options are gcsfs's. Raises UnsupportedStore."""
        if not _BUCKET_NAME.fullmatch(_bucket_and_root(url)[0]):
            raise UnsupportedStore("the store's URL names no bucket; write it as gs://bucket/folder")
        check_options(GCSFileSystem, options, "gcsfs")
        if "asynchronous" in options or "loop" in options:
            raise UnsupportedStore("gcsfs's options asynchronous and loop cannot be set here; remove them")
        brings_own = options.get("token") == "anon" or isinstance(options.get("token"), Mapping)
        session = options.get("session_kwargs") or {}
        if not isinstance(session, Mapping):
            raise UnsupportedStore('the option session_kwargs is not a JSON object; write it as {"name": value}')
        if not brings_own:
            check_host("endpoint_url", options.get("endpoint_url"), _GOOGLE, _BRING_OWN, ("STORAGE_EMULATOR_HOST",))
            check_transport("session_kwargs", session, {"trust_env", "headers"}, {}, _BRING_OWN)
        if encryption.s3 or encryption.azure_scope:
            raise UnsupportedStore(
                "SSE-S3, SSE-KMS and encryption scopes are not supported on Google Cloud; set only the KMS key"
            )
        return cls(url, options, encryption.kms_key)

    @property
    def url(self) -> str:
        return f"gs://{self._bucket}/{self._root}".rstrip("/")

    def failure(self, error: Exception) -> Failure:
        if isinstance(error, _Refused):
            symbol = f"{error.status} {error.reason}".strip()
            if error.status == _ABSENT:  # an object that is not there is no error
                advice = "the bucket does not exist: check its name, or create it; it is never created automatically"
                return Failure(NotFound, symbol, advice)
            if error.status in {401, 403} and "Limit" not in error.reason and "quota" not in error.reason:
                advice = "check the credentials and their roles; docs/stores.md lists the permissions that are needed"
                return Failure(AccessDenied, symbol, advice)
            if is_permanent(error.status) and not self.may_pass(error):
                return Failure(UnsupportedStore, symbol, "check the bucket's name, the KMS key and the store's options")
            return Failure(StoreUnavailable, symbol, "the service failed; it is retried")
        symbol = type(error).__name__
        if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
            kind: type[StoreError] = UnsupportedStore
            advice = "check the option endpoint_url, such as https://host:port, and STORAGE_EMULATOR_HOST"
        elif isinstance(error, GoogleAuthError | HttpError | NonRetryableError) and not _is_transport(error):
            kind, advice = AccessDenied, "give the worker credentials: environment, service account, or options"
        else:
            kind, advice = StoreUnavailable, "check network and endpoint if this persists; it is retried"
        return Failure(kind, symbol, advice)

    def objects(self, prefix: str) -> Iterator[Listed]:
        for page in self._pages(prefix=self._root + prefix, fields="nextPageToken,items(name,size,timeCreated)"):
            for found in page.get("items", ()):
                if not found["name"].endswith("/"):  # what consoles make for an empty folder
                    yield Listed(self._path(found["name"]), int(found["size"]), _moment(found["timeCreated"]))

    def message_keys(self) -> Iterator[str]:
        for page in self._pages(prefix=self._root, delimiter="/", fields="nextPageToken,prefixes"):
            for found in page.get("prefixes", ()):
                if not (key := self._path(found).rstrip("/")).startswith("."):
                    yield key

    def stat(self, path: str) -> ObjectStat | None:
        wanted = {"fields": "size,timeCreated,metadata"}
        answer = self._absent_is_none(lambda: self.ask("GET", self._object(path), params=wanted))
        if answer is None:
            return None
        resource = answer.resource
        ours = _ours(resource)
        if (proof := ours.pop("proof", None)) is not None:
            ours = dict(read_proof(self, path, proof))
        # Not `updated`, which changes with the metadata.
        return ObjectStat(int(resource["size"]), _moment(resource["timeCreated"]), ours)

    def read(self, path: str) -> Iterator[bytes]:
        loop = self._fs.loop
        blocks = self._blocks(path)
        try:
            while (block := run(anext(blocks, None), loop)) is not None:
                yield block
        finally:
            run(blocks.aclose(), loop)

    def get(self, path: str) -> tuple[bytes, Version] | None:
        answer = self._absent_is_none(lambda: self.ask("GET", self._object(path), params={"alt": "media"}))
        return None if answer is None else (answer.body, answer.headers["x-goog-generation"])

    def put(self, path: str, data: bytes, labels: ObjectHeaders, *, replaces: Version | None) -> None:
        self._run(lambda: self.put_object(path, data, labels, {}, replaces or "0"))

    def upload(self, path: str, labels: ObjectHeaders) -> Upload:
        return _GcsUpload(self, path, labels, self._fs.loop)

    def remove(self, path: str) -> None:
        proof = self._named_proof(path)
        self._delete(path)
        if proof:
            self._delete(proof_path(path, proof))

    def orphans(self) -> Iterator[Orphan]:
        """Proofs alone: sessions cannot be listed, and cost nothing."""
        return orphaned_proofs(self, self._named_proof)

    def _named_proof(self, path: str) -> str | None:
        """The proof that an object names; None without one, or without an object."""
        wanted = {"fields": "metadata"}
        answer = self._absent_is_none(lambda: self.ask("GET", self._object(path), params=wanted))
        return None if answer is None else _ours(answer.resource).get("proof")

    def clear(self, residue: Orphan) -> None:
        self._delete(residue.path)

    async def put_object(
        self, path: str, data: bytes, labels: ObjectHeaders, metadata: Mapping[str, str], generation: Version
    ) -> None:
        """The whole object in one request, in the place of that generation; 0 is none. Raises Conflict."""
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()  # Google compares it
        resource = json.dumps({**_described(labels, metadata), "md5Hash": md5}).encode()
        boundary = secrets.token_hex(16).encode()
        while boundary in data:
            boundary = secrets.token_hex(16).encode()
        parts = (
            b"--%b\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n%b\r\n" % (boundary, resource),
            b"--%b\r\nContent-Type: %b\r\n\r\n" % (boundary, labels.content_type.encode()),
            data,
            b"\r\n--%b--\r\n" % boundary,
        )
        await self.ask(
            "POST",
            self._upload_url,
            params={"uploadType": "multipart", "ifGenerationMatch": generation, **self._named(path)},
            headers={"Content-Type": f"multipart/related; boundary={boundary.decode()}"},
            data=b"".join(parts),
        )

    async def begin(self, path: str, labels: ObjectHeaders, proof: str) -> str:
        """A session for a resumable upload, as its address. Raises Conflict."""
        answer = await self.ask(
            "POST",
            self._upload_url,
            params={"uploadType": "resumable", "ifGenerationMatch": "0", **self._named(path)},
            headers={"Content-Type": "application/json", "X-Upload-Content-Type": labels.content_type},
            data=json.dumps(_described(labels, {"proof": proof})).encode(),
        )
        return answer.headers["Location"]

    async def prove(self, path: str, proof: str, metadata: Mapping[str, str]) -> None:
        """Writes the proof of an object that is about to be finished."""
        resource = json.dumps(dict(metadata)).encode()
        # A conflict is our own, of a request whose answer was lost: no two writers take one name.
        with suppress(Conflict):
            await self.put_object(proof_path(path, proof), resource, ObjectHeaders("application/json"), {}, "0")

    async def disprove(self, path: str, proof: str, *, is_given_up: bool) -> None:
        """Removes the proof of an object that will never be finished: it was given up, or another stands there.

        What was given up may have been finished before, though nobody heard of it.
        """
        try:
            existing = await self.ask("GET", self._object(path), params={"fields": "metadata"})
        except _Refused as error:
            if error.status != _ABSENT or not is_given_up:
                return
        else:
            if _ours(existing.resource).get("proof") == proof:
                return
        await self.ask("DELETE", self._object(proof_path(path, proof)))

    async def forget(self, path: str, resource: Mapping[str, Any]) -> None:
        """Removes the object that was just made."""
        await self.ask("DELETE", self._object(path), params={"ifGenerationMatch": str(resource["generation"])})

    async def ask(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | memoryview = b"",
    ) -> _Answer:
        """One request. Raises Conflict for 412, and _Refused for what else is no success (308 is one).

        Of a longer answer, the first `MAX_READ` bytes.
        """
        async with self._asked(method, url, params, headers, data) as response:
            body = await _beginning(response)
            if response.status == _CHANGED:
                raise Conflict
            if response.status >= _MULTIPLE and response.status != _RESUME:
                raise _Refused(response.status, _reason(body))
            return _Answer(response.status, response.headers, body)

    async def retry_transient(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What a request answers, tried again where that may help."""
        return await retry_transient(ask, self.errors, self.may_pass)

    def may_pass(self, error: Exception) -> bool:
        """Whether the same request may succeed in a moment."""
        if isinstance(error, _Refused):
            is_passing = error.status in PASSING_STATUS or error.reason == _DAMAGED
            return is_passing or "Limit" in error.reason or "quota" in error.reason
        return self.failure(error).kind is StoreUnavailable

    @asynccontextmanager
    async def _asked(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        data: bytes | memoryview,
        timeout: aiohttp.ClientTimeout = _REQUEST,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        fs = self._fs
        session = await gcsfs_session(fs)
        whole = {**(headers or {}), "Content-Length": str(len(data)), "Accept-Encoding": "identity"}
        # In a thread: it may fetch a new token, and the loop serves all streams.
        await asyncio.to_thread(fs.credentials.apply, whole)
        async with session.request(
            method,
            url,
            params={**(params or {}), **self._payer},
            headers=whole,
            data=_slices(data) if data else None,
            timeout=timeout,
            allow_redirects=False,
        ) as response:
            yield response

    async def _blocks(self, path: str) -> AsyncGenerator[bytes, None]:
        """All of one generation; what is cut is taken up where it was."""
        at = 0
        params = {"alt": "media"}
        blocks: AsyncGenerator[bytes, None]

        async def next_block() -> bytes | None:
            nonlocal blocks
            try:
                return await anext(blocks, None)
            except self.errors as error:
                # One that failed has ended, and would seem to be through.
                blocks = self._transfer(path, params, at)
                if isinstance(error, _Refused) and error.status == _ABSENT and not await self._bucket_is_missing(error):
                    raise _Refused(_GONE, "removed meanwhile") from None
                raise

        blocks = self._transfer(path, params, at)
        try:
            while (block := await self.retry_transient(next_block)) is not None:
                at += len(block)
                yield block
        finally:
            await blocks.aclose()

    async def _transfer(self, path: str, params: dict[str, str], at: int) -> AsyncGenerator[bytes, None]:
        headers = {"Range": f"bytes={at}-"} if at else None
        async with self._asked("GET", self._object(path), params, headers, b"", _TRANSFER) as response:
            if response.status != (206 if at else 200):
                raise _Refused(response.status, _reason(await response.read()))
            params["generation"] = response.headers["X-Goog-Generation"]
            async for block in response.content.iter_chunked(_BLOCK):
                yield block

    def _pages(self, **params: str) -> Iterator[dict[str, Any]]:
        url = f"{self._fs.base}b/{quote(self._bucket, safe='')}/o"
        token: str | None = ""
        while token is not None:
            page = self._run(self._asking(url, {**params, **({"pageToken": token} if token else {})})).resource
            yield page
            token = page.get("nextPageToken")

    def _asking(self, url: str, params: Mapping[str, str]) -> Callable[[], Awaitable[_Answer]]:
        return lambda: self.ask("GET", url, params=params)

    def _absent_is_none(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        try:
            return self._run(ask)
        except _Refused as error:
            refused = error
        if refused.status != _ABSENT or self._run(lambda: self._bucket_is_missing(refused)):
            raise refused
        return None

    async def _bucket_is_missing(self, refused: _Refused) -> bool:
        """Whether that is why: it has the same status as an object's absence, and stand-ins tell no more."""
        if refused.reason in {_NO_BUCKET, _NO_OBJECT}:
            return refused.reason == _NO_BUCKET
        url = f"{self._fs.base}b/{quote(self._bucket, safe='')}/o"
        params = {"prefix": self._root, "maxResults": "1", "fields": "kind"}
        try:
            await self.ask("GET", url, params=params)
        except _Refused as error:
            if error.status != _ABSENT:
                raise
            return True
        return False

    def _run(self, ask: Callable[[], Awaitable[T]]) -> T:
        loop = self._fs.loop  # before there is a coroutine that nobody awaits: there may be no credentials
        with options_in_use("gcsfs", *self.errors):
            return run(self.retry_transient(ask), loop)

    def _delete(self, path: str) -> None:
        self._absent_is_none(lambda: self.ask("DELETE", self._object(path)))

    def _object(self, path: str) -> str:
        return f"{self._fs.base}b/{quote(self._bucket, safe='')}/o/{quote(self._root + path, safe='')}"

    @property
    def _upload_url(self) -> str:
        base = self._fs.base.removesuffix("storage/v1/")
        return f"{base}upload/storage/v1/b/{quote(self._bucket, safe='')}/o"

    @property
    def _payer(self) -> Mapping[str, str]:
        """The project that pays for a request, where the option `requester_pays` is true or names one."""
        payer = self._fs.requester_pays
        return {"userProject": payer if isinstance(payer, str) else self._fs.project} if payer else {}

    def _named(self, path: str) -> dict[str, str]:
        return {"name": self._root + path, **self._key}

    def _path(self, name: str) -> str:
        return name.removeprefix(self._root)

    @property
    def _fs(self) -> GCSFileSystem:
        """Our own instance, made when it is needed: making it looks for credentials."""
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> GCSFileSystem:
        options = {**self._options, "use_listings_cache": False}
        try:
            fs = GCSFileSystem(**options, skip_instance_cache=True)
        except GoogleAuthError:
            raise
        except (ValueError, LookupError, TypeError, PermissionError):
            # What gcsfs makes of a token that is none. Its text may hold the token.
            raise DefaultCredentialsError from None
        if fs.credentials.credentials is None and self._options.get("token") != "anon":
            # gcsfs goes on without any, for good, though the metadata server may have been out for a moment only.
            raise DefaultCredentialsError
        return fs


class _GcsUpload(PartedUpload):
    """One request, or a resumable upload."""

    def __init__(self, backend: GcsBackend, path: str, labels: ObjectHeaders, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._backend = backend
        self.path = path
        self._labels = labels
        self._session: str | None = None
        self._proof = secrets.token_hex(8)
        self._is_proven = False
        self._sent = 0
        self._sum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call]

    async def _whole(self, data: bytes, metadata: Mapping[str, str]) -> None:
        await self._backend.retry_transient(
            lambda: self._backend.put_object(self.path, data, self._labels, metadata, "0")
        )

    async def _begin(self) -> None:
        # A conflict is told by the commit, when the source has been read and can be compared.
        with suppress(Conflict):
            self._session = await self._backend.retry_transient(
                lambda: self._backend.begin(self.path, self._labels, self._proof)
            )

    async def _part(self, number: int, data: bytes) -> None:  # noqa: ARG002  sessions count bytes
        if self._session is None:
            return
        try:
            ended = await self._go_on(self._session, data, last=False)
        except Conflict:
            self._session = None
            return
        if ended is not None:
            raise _Refused(200, "ended early")

    async def _complete(self, number: int, data: bytes, metadata: Mapping[str, str]) -> None:  # noqa: ARG002  sessions count bytes
        if self._session is None:
            raise Conflict
        self._is_proven = True
        await self._backend.retry_transient(lambda: self._backend.prove(self.path, self._proof, metadata))
        resource = await self._go_on(self._session, data, last=True)
        if resource is None:
            raise _Refused(_RESUME, "not ended")
        # Some stand-ins tell no checksum.
        if resource.get("crc32c", self._told_sum()) != self._told_sum():
            await self._backend.forget(self.path, resource)
            await self._backend.disprove(self.path, self._proof, is_given_up=True)
            raise _Refused(200, "checksum")

    async def _abort(self) -> None:
        if self._session is None:
            return
        is_given_up = False
        try:
            await self._backend.ask("DELETE", self._session)
        except _Refused as error:
            is_given_up = error.status == _GIVEN_UP
        if self._is_proven:
            await self._backend.disprove(self.path, self._proof, is_given_up=is_given_up)

    async def _go_on(self, session: str, data: bytes, *, last: bool) -> dict[str, Any] | None:
        """Sends what comes next, however often it takes; the finished object, or None when more is to come.

        After a broken request Google is asked how far it came, and may have kept only a part of what it was sent.
        """
        self._sum.update(data)
        start, end = self._sent, self._sent + len(data)
        total = str(end) if last else "*"
        at: int | None = start

        async def once() -> dict[str, Any] | None:
            nonlocal at
            while True:
                # None until it is answered: after a failure Google is asked first.
                before, at = at, None
                if before is None or before == end:
                    answer = await self._put(session, b"", f"bytes */{total}")
                else:
                    left = memoryview(data)[before - start :]
                    answer = await self._put(session, left, f"bytes {before}-{end - 1}/{total}")
                if answer.status != _RESUME:
                    return answer.resource
                at = _kept(answer)
                if not start <= at <= end:
                    raise _Refused(_RESUME, "range")
                if at == end and not last:
                    return None
                if before is not None and at <= before:
                    raise _Refused(503, "nothing kept")  # again, after a pause

        resource = await self._backend.retry_transient(once)
        self._sent = end
        return resource

    async def _put(self, session: str, data: bytes | memoryview, content_range: str) -> _Answer:
        headers = {"Content-Range": content_range, "Content-Type": self._labels.content_type}
        try:
            return await self._backend.ask("PUT", session, headers=headers, data=data)
        except _Refused as error:
            if error.status in {_ABSENT, _GONE}:
                raise _Refused(_GONE, "session gone") from None
            raise

    def _told_sum(self) -> str:
        return base64.b64encode(self._sum.digest()).decode()


def _bucket_and_root(url: str) -> tuple[str, str]:
    bucket, _, root = url.partition("://")[2].rstrip("/").partition("/")
    return bucket, root


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """The body, as far as any reader takes it."""
    body = bytearray()
    while len(body) < MAX_READ and (block := await response.content.read(min(_BLOCK, MAX_READ - len(body)))):
        body += block
    return bytes(body)


def _ours(resource: Mapping[str, Any]) -> dict[str, str]:
    """What we said of an object, by Google's resource."""
    metadata = resource.get("metadata", {})
    return {name.removeprefix(_OURS): value for name, value in metadata.items() if name.startswith(_OURS)}


def _described(labels: ObjectHeaders, metadata: Mapping[str, str]) -> dict[str, Any]:
    resource: dict[str, Any] = {"contentType": labels.content_type}
    if labels.content_disposition:
        resource["contentDisposition"] = labels.content_disposition
    if metadata:
        resource["metadata"] = {f"{_OURS}{name}": value for name, value in metadata.items()}
    return resource


def _kept(answer: _Answer) -> int:
    """How many bytes of the session Google has, by the header `Range: bytes=0-41`; without one, none."""
    found = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("Range", ""))
    return int(found[1]) + 1 if found else 0


def _is_transport(error: BaseException | None) -> bool:
    """Whether credentials failed for want of an answer. gcsfs and google-auth wrap the cause more than once."""
    while error is not None:
        if isinstance(error, TransportError) or (isinstance(error, GoogleAuthError) and error.retryable):
            return True
        error = error.__cause__
    return False


async def _slices(data: bytes | memoryview) -> AsyncIterator[memoryview]:
    """As a whole aiohttp would warn of it: copying it holds up the loop."""
    view = memoryview(data)
    for at in range(0, len(view), _SLICE):
        yield view[at : at + _SLICE]


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _reason(body: bytes) -> str:
    """Google's own word for it, and nothing else of the answer: its text may hold names."""
    if (b"bucket does not exist" in body) != (b"No such object" in body):
        return _NO_OBJECT if b"No such object" in body else _NO_BUCKET
    if b"doesn't match calculated" in body:  # an MD5 or CRC32C, for which Google has no reason of its own
        return _DAMAGED
    try:
        reason = json.loads(body)["error"]["errors"][0]["reason"]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError):
        return ""
    return reason if isinstance(reason, str) and reason.isalnum() else ""
