"""S3 and compatible services, through s3fs's client, with its credentials and options, but not its files.

s3fs's file objects publish what they have when an exception comes half-way, and hold 50 MiB a stream. So objects are
put and committed here, with the requests that S3 offers for it:

- up to one part: PutObject, with the hash among the metadata;
- larger: a multipart upload, with a checksum object of what it holds (`checksum_objects.py`).

Both only when nothing stands there, `If-None-Match: *`, where the service knows that; AWS, Ceph, MinIO, R2 and others
do. Some ignore it silently, so it is tried once a process, on `<root>/.store`. Where it is not known, two machines that
write one attachment at the same moment both write it: the same bytes, under the same key.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import secrets
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC
from typing import Any, TypeVar, cast

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    ConnectionError,  # noqa: A004  botocore's
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    LoginError,
    MetadataRetrievalError,
    MissingDependencyException,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError
from s3fs import S3FileSystem

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
from attachments.storage.backends.own_hosts import check_host, check_transport
from attachments.storage.backends.parts import PartedUpload, is_permanent, run
from attachments.storage.checksum_objects import orphaned_proofs, proof_path, read_proof
from attachments.storage.encryption import Encryption
from attachments.storage.errors import (
    AccessDenied,
    NotFound,
    OutOfSpace,
    StoreError,
    StoreUnavailable,
    UnsupportedStore,
)
from attachments.storage.manifest import MAX_READ
from attachments.storage.names import shorter_names

_STORE = ".store"
_NOTHING = ObjectHeaders("application/octet-stream")
_OURS = "attachments-"
_BLOCK = 1024 * 1024
_CONFIG: Mapping[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "retries": {"mode": "standard", "max_attempts": 4},
    "max_pool_connections": 64,
}
# https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html
_ARN = re.compile(  # a multi-region ARN has no region
    r"arn:aws[a-z-]*:(?:s3(?:-object-lambda)?:[a-z0-9-]*:\d{12}:accesspoint[:/][A-Za-z0-9.-]+"
    r"|s3-outposts:[a-z0-9-]+:\d{12}:outpost[:/][A-Za-z0-9-]+[:/](?:accesspoint|bucket)[:/][A-Za-z0-9-]+)(?=/|$)"
)
# https://docs.aws.amazon.com/general/latest/gr/s3.html, and the partitions in botocore's partitions.json. No other
# service's hosts: behind some (API Gateway, EC2) stand customers' own programs.
_AWS = re.compile(
    r"https://([a-z0-9.-]+\.)?s3(-[a-z0-9-]+|express-[a-z0-9-]+)?(\.dualstack)?(\.[a-z]+(-[a-z]+)+-\d+)?(\.vpce)?"
    r"\.(amazonaws\.(com(\.cn)?|eu)|c2s\.ic\.gov|sc2s\.sgov\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov)(:443)?/?"
)
_BRING_OWN = (
    "put key and secret into the block's options, or name the endpoint in the worker's environment "
    "(AWS_ENDPOINT_URL_S3); docs/stores.md has more"
)
_HARMLESS_CLIENT = {"region_name", "endpoint_url", "api_version", "aws_session_token", "aws_account_id"}
_HARMLESS_CONFIG = {
    *("region_name", "connect_timeout", "read_timeout", "max_pool_connections", "retries", "tcp_keepalive", "s3"),
    *("user_agent", "user_agent_extra", "user_agent_appid", "defaults_mode", "parameter_validation"),
    *("request_checksum_calculation", "response_checksum_validation", "s3_disable_express_session_auth"),
    *("use_dualstack_endpoint", "use_fips_endpoint", "ignore_configured_endpoint_urls"),
    *("request_min_compression_size_bytes", "disable_request_compression", "warm_up_loader_caches"),
}
_SESSION_OPTIONS = {"profile", "region_name", "aws_account_id"}

T = TypeVar("T")

_ACCESS = (
    AccessDenied,
    "check the credentials, the bucket's policy and the worker's role; docs/stores.md has a policy",
)
_KMS = (AccessDenied, "check the KMS key's id, its state, and that the worker's role may use it")
_BUCKET = (
    NotFound,
    "the bucket does not exist: check its name and region, or create it; it is never created automatically",
)
_ROOM = (OutOfSpace, "free space or raise the quota, then run it again")
_PASSING = (StoreUnavailable, "the service failed; it is retried")
_REFUSED = (UnsupportedStore, "the service rejects the request; check the store's URL, options and encryption")
_TOO_LONG = (UnsupportedStore, "the folder in the store's URL is too long for the service; choose a shorter one")
_SET_CHECKSUMS = (
    "the service rejects uploads, probably because of their checksum header; set the store's option config_kwargs to "
    '{"request_checksum_calculation": "when_required"}'
)
_CHECKSUMS = (UnsupportedStore, _SET_CHECKSUMS)
_CERTIFICATES = (
    UnsupportedStore,
    "a file of certificates cannot be read; check verify in client_kwargs, and AWS_CA_BUNDLE in the environment",
)
_UNUSABLE = (UnsupportedStore, "check the bucket's name and the store's options")
_MEANINGS: Mapping[tuple[type[Any], str], str] = {
    _ACCESS: """
        AccessDenied AllAccessDisabled AccountProblem AuthFailure ExpiredToken ExpiredTokenException InvalidAccessKeyId
        InvalidIdentityToken InvalidToken InvalidSecurity SignatureDoesNotMatch RequestTimeTooSkewed NotSignedUp
        TokenRefreshRequired AuthorizationHeaderMalformed InvalidClientTokenId UnauthorizedAccess Forbidden Unauthorized
        MethodNotAllowed 401 403 405
    """,
    _BUCKET: """
        NoSuchBucket NoSuchAccessPoint NoSuchMultiRegionAccessPoint NoSuchOutpost 301 PermanentRedirect
        InvalidBucketName
    """,
    _ROOM: """
        QuotaExceeded InsufficientStorage InsufficientCapacity StorageFull XMinioStorageFull XMinioStorageBackendFull
        XMinioAdminBucketQuotaExceeded 507
    """,
    _TOO_LONG: "KeyTooLongError",
    # Transient despite their status: damaged in transit, too late, too fast, or missing parts.
    _PASSING: """
        BadDigest IDPCommunicationError IncompleteBody InvalidPart InvalidPartOrder KMS.ThrottlingException
        PriorRequestNotComplete RequestTimeout
        RequestLimitExceeded RequestThrottled RequestThrottledException SlowDown Throttling ThrottlingException
        ThrottledException TooManyRequestsException XAmzContentChecksumMismatch XAmzContentSHA256Mismatch
    """,
}
_CODES = {code: meaning for meaning, codes in _MEANINGS.items() for code in codes.split()}
_CREDENTIALS = (
    LoginError,
    NoCredentialsError,
    PartialCredentialsError,
    NoAuthTokenError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)
_CONFLICTS = {"PreconditionFailed", "ConditionalRequestConflict", "OperationAborted", "412", "409"}
_UNKNOWN_CONDITION = {"NotImplemented", "InvalidArgument", "InvalidRequest", "501", "400"}
_UNKNOWN_CHECKSUM = _UNKNOWN_CONDITION | {"InvalidDigest", "MalformedTrailerError", "MissingContentLength", "411"}
_CHECKSUMMED = {"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}
_MAY_PASS = (
    ChecksumError,
    ConnectionError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
)
"""botocore's errors that the network may have caused; the others concern its arguments."""
_UNREADABLE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ssl.SSLError)
"""Errors of a missing or empty certificate file, before any connection."""
_ABSENT = {"NoSuchKey", "404", "NotFound"}


_BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""Bucket names that botocore accepts, which excludes a URL with a password."""


def _brings_own(options: Mapping[str, Any]) -> bool:
    """Whether botocore is given credentials whole, and takes none of the worker's to them."""
    client = options.get("client_kwargs") or {}
    key = options.get("key") or options.get("username") or client.get("aws_access_key_id")
    secret = options.get("secret") or options.get("password") or client.get("aws_secret_access_key")
    return bool(options.get("anon") or (key and secret))


def _keep_to_aws(options: Mapping[str, Any]) -> None:
    client, config = options.get("client_kwargs") or {}, options.get("config_kwargs") or {}
    for settings in (options, client):
        check_host(
            "endpoint_url", settings.get("endpoint_url"), _AWS, _BRING_OWN, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        )
    ssl_alone = {"use_ssl": options["use_ssl"]} if "use_ssl" in options else {}
    check_transport("the options", ssl_alone, set(), {"use_ssl": True}, _BRING_OWN)
    check_transport("client_kwargs", client, _HARMLESS_CLIENT, {"use_ssl": True, "verify": True}, _BRING_OWN)
    check_transport("config_kwargs", config, _HARMLESS_CONFIG, {"signature_version": "s3v4"}, _BRING_OWN)


class S3Backend(Backend):
    """A bucket, or a prefix in one."""

    errors = (ClientError, BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError)
    metadata_is_proof = True
    _sends_checksums = True

    def __init__(self, url: str, options: Mapping[str, Any], encryption: Mapping[str, Any]) -> None:
        self._bucket, root = _bucket_and_root(url)
        self._root = f"{root}/" if root else ""
        self._options = options
        self._encryption = encryption
        self._lock = threading.Lock()
        self._opened: S3FileSystem | None = None
        self._asking = threading.Lock()
        self._is_conditional: bool | None = None

    @classmethod
    def at(cls, url: str, options: Mapping[str, Any], encryption: Encryption) -> S3Backend:
        """The backend at ``s3://bucket/root``; the options are s3fs's. Raises UnsupportedStore."""
        bucket, _ = _bucket_and_root(url)
        if not bucket:
            raise UnsupportedStore("the store's URL names no bucket; write it as s3://bucket/folder")
        if not bucket.startswith("arn:") and not _BUCKET_NAME.fullmatch(bucket):
            raise UnsupportedStore(
                "the store's URL has no valid name of a bucket; write it as s3://bucket/folder, with credentials "
                "and the endpoint as options: key, secret, endpoint_url"
            )
        check_options(S3FileSystem, options, "s3fs", _SESSION_OPTIONS)
        for name in ("client_kwargs", "config_kwargs", "s3_additional_kwargs"):
            if not isinstance(options.get(name) or {}, Mapping):
                raise UnsupportedStore(f'the option {name} is not a JSON object; write it as {{"name": value}}')
        if not _brings_own(options):
            _keep_to_aws(options)
        if encryption.azure_scope:
            raise UnsupportedStore("an Azure encryption scope is not supported on S3; remove it")
        asked: dict[str, Any] = {}
        if encryption.s3 == "SSE-S3":
            asked["ServerSideEncryption"] = "AES256"
        if encryption.s3 == "SSE-KMS":
            asked["ServerSideEncryption"] = "aws:kms"
        if encryption.kms_key:
            if encryption.s3 != "SSE-KMS":
                raise UnsupportedStore("a KMS key on S3 needs the encryption SSE-KMS; choose that, or remove the key")
            asked["SSEKMSKeyId"] = encryption.kms_key
        return cls(url, options, asked)

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._root}".rstrip("/")

    def failure(self, error: Exception) -> Failure:
        if isinstance(error, ClientError):
            code = _code(error)
            status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
            known = _CODES.get(code) or _CODES.get(status)
            if known is None and not is_permanent(int(status or 0)):
                known = _PASSING
            if code.startswith("KMS") and known is not _PASSING:
                known = _KMS
            known = known or self._refused(error, code)
            return Failure(known[0], code if code.replace(".", "").isalnum() else status, known[1])
        if isinstance(error, _CREDENTIALS):
            advice = "give the worker credentials: environment, profile, role, or the store's options key and secret"
            return Failure(AccessDenied, type(error).__name__, advice)
        if isinstance(error, MissingDependencyException):
            advice = "a multi-region access point needs the package awscrt; install it beside the worker"
            return Failure(UnsupportedStore, type(error).__name__, advice)
        cause = getattr(error, "kwargs", {}).get("error")
        if type(error) is HTTPClientError and isinstance(cause, _UNREADABLE):
            return Failure(_CERTIFICATES[0], type(cause).__name__, _CERTIFICATES[1])
        if isinstance(error, BotoCoreError) and not isinstance(error, _MAY_PASS):
            return Failure(_UNUSABLE[0], type(error).__name__, _UNUSABLE[1])
        return Failure(StoreUnavailable, type(error).__name__, "check network and endpoint; it is retried")

    def _refused(self, error: ClientError, code: str) -> tuple[type[StoreError], str]:
        """The meaning of a refused request: B2 and others do not support the client's checksums."""
        is_likely = self._sends_checksums and error.operation_name in _CHECKSUMMED and code in _UNKNOWN_CHECKSUM
        return _CHECKSUMS if is_likely else _REFUSED

    def objects(self, prefix: str) -> Iterator[Listed]:
        for page in self._pages("list_objects_v2", Prefix=self._root + prefix):
            for found in page.get("Contents", ()):
                path = found["Key"].removeprefix(self._root)
                if not path.endswith("/"):  # consoles create such an object for an empty folder
                    yield Listed(path, found["Size"], found["LastModified"].astimezone(UTC))

    def message_keys(self) -> Iterator[str]:
        for page in self._pages("list_objects_v2", Prefix=self._root, Delimiter="/"):
            for found in page.get("CommonPrefixes", ()):
                yield found["Prefix"].removeprefix(self._root).rstrip("/")

    def stat(self, path: str) -> ObjectStat | None:
        head = self._absent_is_none(self._call("head_object", Key=self._root + path))
        if head is None:
            return None
        ours = {
            name.lower().removeprefix(_OURS): value
            for name, value in head.get("Metadata", {}).items()
            if name.lower().startswith(_OURS)
        }
        if (proof := ours.pop("proof", None)) is not None:
            ours = dict(read_proof(self, path, proof))
        return ObjectStat(head["ContentLength"], head["LastModified"].astimezone(UTC), ours)

    def read(self, path: str) -> Iterator[bytes]:
        answer = self._run(self._call("get_object", Key=self._root + path))
        body = answer["Body"]
        try:
            while block := self._run(body.read(_BLOCK)):
                yield block
        finally:
            body.close()

    def get(self, path: str) -> tuple[bytes, Version] | None:
        return cast("tuple[bytes, Version] | None", self._absent_is_none(self._load(path)))

    def put(self, path: str, data: bytes, labels: ObjectHeaders, *, replaces: Version | None) -> None:
        condition: dict[str, str] = {"IfNoneMatch": "*"} if replaces is None else {"IfMatch": replaces}
        if not self.is_conditional:
            condition = {}
            existing = self.get(path)
            if (existing and existing[1]) != replaces:
                raise Conflict
        self._run(self.creating(self.put_object(path, data, labels, {}, condition)))

    def upload(self, path: str, labels: ObjectHeaders) -> Upload:
        return _S3Upload(self, path, labels, self._fs.loop)

    def remove(self, path: str) -> None:
        head = self._absent_is_none(self._call("head_object", Key=self._root + path))
        proof = head and head.get("Metadata", {}).get(f"{_OURS}proof")
        self._run(self._call("delete_object", Key=self._root + path))
        if proof:
            self._run(self._call("delete_object", Key=self._root + proof_path(path, proof)))

    def orphans(self) -> Iterator[Orphan]:
        yield from self._open_uploads()
        yield from orphaned_proofs(self, lambda path: self._run(self.named_proof(path)))

    def _open_uploads(self) -> Iterator[Orphan]:
        try:
            for page in self._pages("list_multipart_uploads", Prefix=self._root):
                for found in page.get("Uploads", ()):
                    path = found["Key"].removeprefix(self._root)
                    place = "/".join(path.split("/")[:2])
                    begun = found["Initiated"].astimezone(UTC)
                    yield Orphan("open multipart upload", place, path, begun, found["UploadId"])
        except ClientError as error:
            # rclone responds so for a bucket that never had one.
            if _code(error) != "NoSuchUpload":
                raise

    def clear(self, residue: Orphan) -> None:
        if residue.handle is None:
            self._run(self._call("delete_object", Key=self._root + residue.path))
            return
        with suppress(Conflict):
            self._run(
                self.creating(
                    self._call("abort_multipart_upload", Key=self._root + residue.path, UploadId=residue.handle)
                )
            )

    @property
    def is_conditional(self) -> bool:
        """Whether the service supports `If-None-Match`. Tested once."""
        with self._asking:
            if self._is_conditional is None:
                self._is_conditional = self._run(self._supports_conditions())
            return self._is_conditional

    async def creating(self, request: Any) -> Any:
        """The response to a request that creates an object. Raises Conflict if one already exists."""
        try:
            return await request
        except ClientError as error:
            # NoSuchUpload: already completed by a request whose response was lost, or aborted by another program.
            if _code(error) not in _CONFLICTS | {"NoSuchUpload", "NoSuchKey"}:
                raise
        raise Conflict

    async def put_object(
        self, path: str, data: bytes, labels: ObjectHeaders, metadata: Mapping[str, str], condition: Mapping[str, str]
    ) -> Any:
        """PutObject."""
        return await self._call(
            "put_object", Key=self._root + path, Body=io.BytesIO(data), **self.described(labels, metadata), **condition
        )

    async def stands(self, path: str) -> bool:
        """Whether an object exists."""
        try:
            await self._call("head_object", Key=self._root + path)
        except ClientError as error:
            if _code(error) in _ABSENT:
                return False
            raise
        return True

    async def named_proof(self, path: str) -> str | None:
        """The proof that an object's metadata name; None if the object or the metadata is missing."""
        try:
            head = await self._call("head_object", Key=self._root + path)
        except ClientError as error:
            if _code(error) in _ABSENT:
                return None
            raise
        return cast("str | None", head.get("Metadata", {}).get(f"{_OURS}proof"))

    async def multipart(self, method: str, path: str, **more: Any) -> Any:
        """A request about a multipart upload of this path."""
        return await self._call(method, Key=self._root + path, **more)

    def described(self, labels: ObjectHeaders, metadata: Mapping[str, str]) -> dict[str, Any]:
        """The arguments for an object's headers, metadata and encryption."""
        headers: dict[str, Any] = {
            "ContentType": labels.content_type,
            "Metadata": {f"{_OURS}{name}": value for name, value in metadata.items()},
            **self._encryption,
        }
        if labels.content_disposition:
            headers["ContentDisposition"] = labels.content_disposition
        return headers

    async def _supports_conditions(self) -> bool:
        for _ in range(2):
            try:
                await self.put_object(_STORE, b"", _NOTHING, {}, {"IfNoneMatch": "*"})
            except ClientError as error:
                if _code(error) in _CONFLICTS:
                    return True
                if _code(error) not in _UNKNOWN_CONDITION:
                    raise
                # Retry without the condition: if that is refused too, the reason is something else.
                await self.put_object(_STORE, b"", _NOTHING, {}, {})
                return False
        return False

    async def _load(self, path: str) -> tuple[bytes, Version]:
        answer = await self._call("get_object", Key=self._root + path)
        data = bytearray()
        async with answer["Body"] as body:
            # In blocks, because the size that the service reports may be wrong.
            while len(data) < MAX_READ and (block := await body.read(min(_BLOCK, MAX_READ - len(data)))):
                data += block
        return bytes(data), answer["ETag"]

    def _absent_is_none(self, request: Any) -> Any:
        try:
            return self._run(request)
        except ClientError as error:
            if _code(error) in _ABSENT:
                return None
            raise

    def _pages(self, method: str, **arguments: Any) -> Iterator[Any]:
        pages = aiter(self._paged(method, arguments))
        while (page := self._run(anext(pages, None))) is not None:
            yield page

    async def _paged(self, method: str, arguments: Mapping[str, Any]) -> AsyncIterator[Any]:
        client = await self._client()
        async for page in client.get_paginator(method).paginate(**self._arguments(client, method, arguments)):
            yield page

    async def _call(self, method: str, **arguments: Any) -> Any:
        client = await self._client()
        return await getattr(client, method)(**self._arguments(client, method, arguments))

    def _arguments(self, client: Any, method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Adds the options for each request that supports them (`s3_additional_kwargs`, `requester_pays`)."""
        operation = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[method])
        added = {**self._fs.s3_additional_kwargs, **self._fs.req_kw}
        known = {name: value for name, value in added.items() if name in operation.input_shape.members}
        return {**known, "Bucket": self._bucket, **arguments}

    async def _client(self) -> Any:
        try:
            await self._fs.set_session()
            client = await self._fs.get_s3(self._bucket)
        except (ValueError, TypeError):
            # botocore's errors for invalid options, such as an endpoint_url without a scheme.
            raise UnsupportedStore(
                "the store's options cannot be used",
                remedy="check endpoint_url (https://host), client_kwargs and config_kwargs",
            ) from None
        self._sends_checksums = client.meta.config.request_checksum_calculation != "when_required"
        return client

    def _run(self, work: Any) -> Any:
        with options_in_use("s3fs", *self.errors):
            return run(work, self._fs.loop)

    @property
    def _fs(self) -> S3FileSystem:
        """A separate instance, because fsspec's cached ones share state (transactions, listings) between threads."""
        with self._lock, options_in_use("s3fs", *self.errors):
            if self._opened is None:
                config = {**_CONFIG, **(self._options.get("config_kwargs") or {})}
                options = {**self._options, "config_kwargs": config, "use_listings_cache": False}
                self._opened = S3FileSystem(**options, skip_instance_cache=True)
            return self._opened


class _S3Upload(PartedUpload):
    """A PutObject, or a multipart upload."""

    def __init__(self, backend: S3Backend, path: str, labels: ObjectHeaders, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._backend = backend
        self.path = path
        self._labels = labels
        self._proof = secrets.token_hex(8)
        self._upload = ""
        self._sent: list[dict[str, Any]] = []

    def commit(self, metadata: Mapping[str, str]) -> None:
        self._conditional = self._backend.is_conditional
        super().commit(metadata)

    async def _whole(self, data: bytes, metadata: Mapping[str, str]) -> None:
        async def put() -> None:
            condition = await self._condition()
            await self._backend.creating(self._backend.put_object(self.path, data, self._labels, metadata, condition))

        await self._named(put)

    async def _begin(self) -> None:
        described = self._backend.described(self._labels, {"proof": self._proof})
        answer = await self._named(lambda: self._backend.multipart("create_multipart_upload", self.path, **described))
        self._upload = answer["UploadId"]

    async def _named(self, request: Callable[[], Awaitable[T]]) -> T:
        """Make the first request with the object's name, with shorter names if the service rejects its length."""
        place, _, whole = self.path.rpartition("/")
        refusal: ClientError | None = None
        for name in shorter_names(whole):
            self.path = f"{place}/{name}"
            try:
                return await request()
            except ClientError as error:
                if _CODES.get(_code(error)) is not _TOO_LONG and not _is_unexplained(error):
                    raise
                refusal = refusal or error
        raise refusal or AssertionError("a name is tried at least once")

    async def _part(self, number: int, data: bytes) -> None:
        answer = await self._backend.multipart(
            "upload_part", self.path, UploadId=self._upload, PartNumber=number, Body=io.BytesIO(data)
        )
        checksums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
        self._sent.append({"PartNumber": number, "ETag": answer["ETag"], **checksums})

    async def _complete(self, number: int, data: bytes, metadata: Mapping[str, str]) -> None:
        await self._part(number, data)
        proof = json.dumps(dict(metadata)).encode()
        await self._backend.put_object(
            proof_path(self.path, self._proof), proof, ObjectHeaders("application/json"), {}, {}
        )
        condition = await self._condition()
        await self._backend.creating(
            self._backend.multipart(
                "complete_multipart_upload",
                self.path,
                UploadId=self._upload,
                MultipartUpload={"Parts": self._sent},
                **condition,
            )
        )

    async def _abort(self) -> None:
        await self._backend.multipart("abort_multipart_upload", self.path, UploadId=self._upload)
        # The proof may already have been written, and is useless without its object. But the commit may have succeeded
        # although its response was lost, and some services accept aborting a completed upload.
        if await self._backend.named_proof(self.path) != self._proof:
            await self._backend.multipart("delete_object", proof_path(self.path, self._proof))

    async def _condition(self) -> Mapping[str, str]:
        if self._conditional:
            return {"IfNoneMatch": "*"}
        if await self._backend.stands(self.path):
            raise Conflict
        return {}


def _bucket_and_root(url: str) -> tuple[str, str]:
    """Split the bucket from the path: for an access point, S3 takes the whole ARN, which may contain slashes, as the
    bucket. Raises UnsupportedStore."""
    path = url.partition("://")[2].strip("/")
    if path[:4].lower() != "arn:":
        bucket, _, root = path.partition("/")
        return bucket, root
    found = _ARN.match(path)
    if found is None:
        raise UnsupportedStore(
            "the store's URL contains an ARN that is not an access point's; write it as s3://bucket/folder, or as "
            "s3://arn:aws:s3:region:account:accesspoint/name/folder, in small letters"
        )
    return found[0], path[found.end() + 1 :]


def _is_unexplained(error: ClientError) -> bool:
    """Whether a HEAD was refused: its response has no body, so a name that is too long looks like any other refusal."""
    return error.operation_name == "HeadObject" and _code(error) == "400"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
