"""What S3 and its imitators answer when they refuse a request, or when its outcome is in doubt."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from attachments.storage import Encryption, Store, StoreError, open_store
from attachments.storage.backends.parts import PART_BYTES
from attachments.storage.backends.s3 import S3Backend
from attachments.storage.errors import AccessDenied, NotFound, OutOfSpace, StoreUnavailable, UnsupportedStore
from tests.servers.proxy import Answer, Proxy
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
