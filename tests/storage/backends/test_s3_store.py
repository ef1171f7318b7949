"""What S3 and its imitators answer when they refuse a request, or when its outcome is in doubt."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from attachments.storage import Encryption, Store, StoreError, open_store
from attachments.storage.backends.parts import PART_BYTES
from attachments.storage.backends.s3 import S3Backend
from attachments.storage.errors import AccessDenied, NotFound, OutOfSpace, StoreUnavailable, UnsupportedStore
from tests.servers.proxy import Answer, Proxy
from tests.servers.recorder import recording
from tests.storage.places import Place, Places
from tests.storage.samples import ATTACHMENT, CANARY, MESSAGE, PLACE, in_chunks

LARGE = bytes(range(256)) * (PART_BYTES // 128)
CHECKSUM = "x-amz-(checksum|sdk-checksum|trailer)"
"""The headers that B2, older Ceph and gateways to other clouds do not know."""
ONCE = {"config_kwargs": {"retries": {"max_attempts": 0}}}
UNCHECKED = {"config_kwargs": {"request_checksum_calculation": "when_required"}}


def refusal(status: int, code: str) -> Answer:
    """As S3 words it; the text names the object."""
    text = f"<Error><Code>{code}</Code><Message>not for root/{CANARY}</Message></Error>"
    return Answer(status, f'<?xml version="1.0"?>{text}'.encode())


def through(proxy: Proxy, place: Place, **options: Any) -> tuple[Store, S3Backend]:
    """The place's store through a proxy, and another of its backends."""
    assert place.server is not None
    all_options = {**place.server.options(proxy.port), **options}
    return open_store(place.url, all_options), S3Backend.at(place.url, all_options, Encryption())


REFUSALS: list[tuple[int, str, type[StoreError]]] = [
    (400, "InvalidArgument", UnsupportedStore),
    (400, "InvalidRequest", UnsupportedStore),
    (400, "KeyTooLongError", UnsupportedStore),
    (400, "MetadataTooLarge", UnsupportedStore),
    (400, "EntityTooLarge", UnsupportedStore),
    (400, "SomethingNew", UnsupportedStore),
    (411, "MissingContentLength", UnsupportedStore),
    (501, "NotImplemented", UnsupportedStore),
    (400, "ExpiredToken", AccessDenied),
    (403, "AccessDenied", AccessDenied),
    (405, "MethodNotAllowed", AccessDenied),
    (404, "NoSuchBucket", NotFound),
    (404, "NoSuchAccessPoint", NotFound),
    (400, "XMinioAdminBucketQuotaExceeded", OutOfSpace),
    (507, "XMinioStorageFull", OutOfSpace),
    (400, "RequestTimeout", StoreUnavailable),
    (400, "BadDigest", StoreUnavailable),
    (400, "IncompleteBody", StoreUnavailable),
    (400, "IDPCommunicationError", StoreUnavailable),
    (400, "KMS.ThrottlingException", StoreUnavailable),
    (500, "KMS.InternalException", StoreUnavailable),
    (400, "KMS.DisabledException", AccessDenied),
    (400, "ExpiredTokenException", AccessDenied),
    (400, "InvalidIdentityToken", AccessDenied),
    (400, "AuthFailure", AccessDenied),
    (400, "Throttling", StoreUnavailable),
    (400, "XAmzContentSHA256Mismatch", StoreUnavailable),
    (409, "OperationAborted", StoreUnavailable),
    (429, "TooManyRequests", StoreUnavailable),
    (500, "InternalError", StoreUnavailable),
    (503, "SlowDown", StoreUnavailable),
    (503, "SomethingNew", StoreUnavailable),
]


def test_a_refused_request_is_permanent_or_passes(places: Places) -> None:
    """What the same request would meet again tomorrow is not tried again for a day; nothing else is given up."""
    place = places.make("s3-moto")
    assert place.server is not None
    with Proxy(place.server.port) as proxy:
        store, _ = through(proxy, place, **ONCE)
        for status, code, kind in REFUSALS:
            proxy.order("GET", "", refusal(status, code))
            with pytest.raises(StoreError, match=code) as caught:
                store.read_manifest(MESSAGE)
            assert (type(caught.value), code) == (kind, code)
            assert CANARY not in str(caught.value)
            assert "request_checksum_calculation" not in str(caught.value)
        assert proxy.ordered == 0


@pytest.mark.parametrize(
    ("status", "code", "content"),
    [(400, "InvalidArgument", b"small"), (501, "NotImplemented", LARGE)],
    ids=["small", "in parts"],
)
def test_a_service_that_refuses_checksums_is_told_with_the_option(
    places: Places, status: int, code: str, content: bytes
) -> None:
    """As B2 answers to a header that it does not know. With the option, it stores, and only what is not there yet."""
    place = places.make("s3-moto")
    assert place.server is not None
    with Proxy(place.server.port) as proxy:
        proxy.order("PUT", "", refusal(status, code), times=10_000, header=CHECKSUM)
        proxy.order("POST", "", refusal(status, code), times=10_000, header=CHECKSUM)
        store, backend = through(proxy, place)
        for act in (
            lambda: store.write(MESSAGE, ATTACHMENT, "a.bin", in_chunks(content, 1_000_000)),
            store.probe,
            lambda: backend.is_conditional,
        ):
            with pytest.raises((StoreError, ClientError)) as caught:
                act()
            if isinstance(caught.value, StoreError):
                assert type(caught.value) is UnsupportedStore
                assert "request_checksum_calculation" in str(caught.value)
        assert place.everything() == {}
        store, backend = through(proxy, place, **UNCHECKED)
        written = store.write(MESSAGE, ATTACHMENT, "a.bin", in_chunks(content, 1_000_000))
        assert store.probe() == "works"
        assert backend.is_conditional
    assert place.open().stored(MESSAGE) == {ATTACHMENT: written}


def test_a_service_that_refuses_conditions_is_written_to_without(places: Places) -> None:
    """Only what is refused with the condition, and taken without it, is refused for the condition."""
    place = places.make("s3-moto")
    assert place.server is not None
    with Proxy(place.server.port) as proxy:
        proxy.order("PUT", "", refusal(501, "NotImplemented"), times=10_000, header="if-none-match")
        store, backend = through(proxy, place)
        written = store.write(MESSAGE, ATTACHMENT, "a.bin", [b"small"])
        assert not backend.is_conditional
    assert place.open().stored(MESSAGE) == {ATTACHMENT: written}


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint_url": "nonsense"},
        {"client_kwargs": {"nonsense": 1}},
        {"client_kwargs": 1},
        {"config_kwargs": {"nonsense": 1}},
        {"config_kwargs": ["nonsense"]},
        {"config_kwargs": {"retries": {"mode": "nonsense"}}},
        {"config_kwargs": {"request_checksum_calculation": "nonsense"}},
    ],
    ids=str,
)
def test_options_that_the_client_does_not_take_are_told_as_such(options: dict[str, Any]) -> None:
    """Before any request; they are nothing that passes by itself."""
    with pytest.raises(UnsupportedStore, match="option"):
        open_store("s3://bucket/root", {"key": "x", "secret": "x", **options}).stored(MESSAGE)


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "not finished"])
def test_giving_up_spares_the_proof_of_what_was_finished(
    places: Places, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """The answer to the completion is lost, and the service says yes to aborting, also what it has completed."""
    multipart = S3Backend.multipart

    async def doubtful(self: S3Backend, method: str, path: str, **more: Any) -> Any:
        if method == "complete_multipart_upload":
            if finished:
                await multipart(self, method, path, **more)
            raise ClientError({"Error": {"Code": "InternalError"}}, "CompleteMultipartUpload")
        if method == "abort_multipart_upload" and finished:
            return {}
        return await multipart(self, method, path, **more)

    place = places.make("s3-moto")
    with monkeypatch.context() as patch:
        patch.setattr(S3Backend, "multipart", doubtful)
        with pytest.raises(StoreUnavailable):
            place.open().write(MESSAGE, ATTACHMENT, "a.bin", in_chunks(LARGE, 1_000_000))
    assert (f"{PLACE}/a.bin" in place.visible()) == finished
    assert (list(place.open().stored(MESSAGE)) == [ATTACHMENT]) == finished
    assert place.open_uploads() == []
    written = place.open().write(MESSAGE, ATTACHMENT, "a.bin", in_chunks(LARGE, 1_000_000))
    assert place.open().stored(MESSAGE) == {ATTACHMENT: written}


def test_the_proof_of_a_writer_that_came_second_is_found_and_cleared(places: Places) -> None:
    """It died between the two: its proof lies beside another's object, whose own stays."""
    place = places.make("s3-moto")
    store = place.open()
    written = store.write(MESSAGE, ATTACHMENT, "a.bin", in_chunks(LARGE, 1_000_000))
    second = f".proofs/{MESSAGE}.{ATTACHMENT}.0011223344556677"
    place.plant(second, b"{}")
    left = list(store.orphans(older_than=timedelta(0)))
    assert [(residue.key, residue.path) for residue in left] == [(PLACE, second)]
    for residue in left:
        store.clear(residue)
    assert list(store.orphans(older_than=timedelta(0))) == []
    assert place.open().stored(MESSAGE) == {ATTACHMENT: written}


@pytest.mark.parametrize("there", [False, True], ids=["not there", "no certificate"])
def test_a_file_of_certificates_that_cannot_be_used_is_permanent(tmp_path: Path, there: bool) -> None:
    """It is read before there is a connection, and aiobotocore has one error for that and for all else."""
    file = tmp_path / f"{CANARY}.pem"
    if there:
        file.write_text("none")
    told = {"verify": str(file), "endpoint_url": "https://127.0.0.1:1"}
    store = open_store("s3://bucket/folder", {"key": "k", "secret": "s", "client_kwargs": told})
    with pytest.raises(UnsupportedStore, match="check verify in client_kwargs") as caught:
        store.read_manifest(MESSAGE)
    assert CANARY not in str(caught.value)


WORKERS = {
    "AWS_ACCESS_KEY_ID": "canary-key-id",
    "AWS_SECRET_ACCESS_KEY": "canary-secret",
    "AWS_SESSION_TOKEN": "canary-token",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
ELSEWHERE = [
    {"endpoint_url": "HOST"},
    {"client_kwargs": {"endpoint_url": "HOST"}},
    {"endpoint_url": "https://s3.amazonaws.com", "client_kwargs": {"endpoint_url": "HOST"}},
    {"endpoint_url": "HOST", "key": "own"},
    {"endpoint_url": "HOST", "secret": "own"},
    {"endpoint_url": "HOST", "token": "own"},
    {"endpoint_url": "HOST", "key": "", "secret": ""},
    {"endpoint_url": "HOST", "anon": False},
    {"endpoint_url": "HOST", "profile": "default"},
    {"endpoint_url": "HOST", "client_kwargs": {"aws_access_key_id": "own"}},
    {"endpoint_url": "HOST", "config_kwargs": {"signature_version": "s3"}},
    *(
        {"endpoint_url": endpoint}
        for endpoint in (
            "http://s3.amazonaws.com",
            "http://s3.eu-central-1.amazonaws.com",
            "https://s3.amazonaws.com.thief.example",
            "https://thief.example/s3.amazonaws.com",
            "https://s3.amazonaws.com@thief.example",
            "https://s3.amazonaws.com:444",
            "https://x.execute-api.us-east-1.amazonaws.com",
            "https://ec2-1-2-3-4.us-west-2.compute.amazonaws.com",
            "https://s3-x.us-east-1.elb.amazonaws.com",
            "https://vpce-1.vpce-svc-2.us-east-1.vpce.amazonaws.com",
            "https://s3thief.us-east-1.amazonaws.com",
            "https://notamazonaws.com",
        )
    ),
    {"config_kwargs": {"signature_version": "s3"}},
    {"config_kwargs": {"signature_version": "s3-query"}},
    {"config_kwargs": {"auth_scheme_preference": "noAuth"}},
    {"config_kwargs": {"proxies": {"https": "HOST", "http": "HOST"}}},
    {"config_kwargs": {"proxies_config": {"proxy_ca_bundle": "/tmp/ca"}}},
    {"config_kwargs": {"client_cert": "/tmp/certificate"}},
    {"config_kwargs": {"connector_args": {}}},
    {"client_kwargs": {"verify": False}},
    {"client_kwargs": {"verify": ""}},
    {"client_kwargs": {"verify": "/tmp/ca"}},
    {"client_kwargs": {"use_ssl": False}},
    {"use_ssl": False},
    {"use_ssl": None},
]


@pytest.fixture
def _workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in WORKERS.items():
        monkeypatch.setenv(name, value)


def _aimed(options: Any, url: str) -> Any:
    if isinstance(options, dict):
        return {name: _aimed(value, url) for name, value in options.items()}
    return url if options == "HOST" else options


@pytest.mark.usefixtures("_workers")
@pytest.mark.parametrize("options", ELSEWHERE, ids=str)
def test_the_workers_own_credentials_go_to_aws_alone(options: dict[str, Any]) -> None:
    """A block's options name host, proxy and signature, and their writer would get what the worker has."""
    with recording() as thief:
        with pytest.raises(UnsupportedStore, match="put key and secret into the block's options"):
            open_store("s3://bucket/root", _aimed(options, thief.url)).stored(MESSAGE)
        assert thief.whole == []


@pytest.mark.usefixtures("_workers")
@pytest.mark.parametrize(
    "own",
    [
        {"key": "own", "secret": "own"},
        {"username": "own", "password": "own"},
        {"client_kwargs": {"aws_access_key_id": "own", "aws_secret_access_key": "own"}},
        {"anon": True},
        {"anon": True, "key": "own"},
        {"anon": True, "config_kwargs": {"signature_version": "s3"}},
        {"anon": True, "config_kwargs": {"auth_scheme_preference": "sigv4"}},
        {"key": "own", "secret": "own", "config_kwargs": {"signature_version": "s3"}},
    ],
    ids=str,
)
def test_credentials_of_the_block_go_where_it_says_without_the_workers(own: dict[str, Any]) -> None:
    """Also not the worker's session token beside the block's key."""
    with recording() as service:
        with pytest.raises(StoreError):
            open_store("s3://bucket/root", {"endpoint_url": service.url, **own}).stored(MESSAGE)
        assert service.whole
        assert "canary" not in "".join(service.whole)
        assert "x-amz-security-token" not in "".join(service.whole).lower()


@pytest.mark.usefixtures("_workers")
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    "options", [{}, {"endpoint_url": "HOST"}, {"client_kwargs": {"endpoint_url": "HOST"}}], ids=str
)
def test_the_workers_environment_may_name_another_service(
    variable: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the administrator's, as the credentials are."""
    with recording() as minio:
        monkeypatch.setenv(variable, f"{minio.url}/")
        with pytest.raises(StoreError):
            open_store("s3://bucket/root", _aimed(options, minio.url)).stored(MESSAGE)
        assert "canary-token" in "".join(minio.whole)


@pytest.mark.usefixtures("_workers")
def test_every_endpoint_of_aws_may_be_named() -> None:
    """In all partitions, as botocore has them, and those of the documentation that it does not make by itself."""
    session = boto3.session.Session()
    regions = {
        name for part in session.get_available_partitions() for name in session.get_available_regions("s3", part)
    }
    hosts = {session.client("s3", region).meta.endpoint_url for region in regions}
    hosts |= {
        f"https://{host}"
        for host in (
            "s3-accelerate.dualstack.amazonaws.com",
            "s3-fips.dualstack.us-gov-west-1.amazonaws.com",
            "s3-eu-west-1.amazonaws.com/",
            "bucket.vpce-1a2b3c4d-5e6f.s3.us-east-1.vpce.amazonaws.com",
            "s3express-use1-az4.us-east-1.amazonaws.com:443",
            "s3.us-iso-east-1.c2s.ic.gov",
            "s3.us-isob-east-1.sc2s.sgov.gov",
            "s3.eu-isoe-west-1.cloud.adc-e.uk",
            "s3.us-isof-south-1.csp.hci.ic.gov",
            "s3.eusc-de-east-1.amazonaws.eu",
        )
    }
    for host in hosts:
        usual = {"client_kwargs": {"verify": True, "use_ssl": True}, "config_kwargs": {"signature_version": "s3v4"}}
        open_store("s3://bucket/root", {"endpoint_url": host, "use_ssl": True, **usual})
