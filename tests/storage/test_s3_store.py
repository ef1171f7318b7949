"""What S3 and its imitators answer when a request's outcome is in doubt."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from attachments.storage.errors import StoreUnavailable
from attachments.storage.parts import PART_BYTES
from attachments.storage.s3 import S3Backend

from .places import Places
from .samples import ATTACHMENT, MESSAGE, PLACE, in_chunks

LARGE = bytes(range(256)) * (PART_BYTES // 128)


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
    left = list(store.residue(older_than=timedelta(0)))
    assert [(residue.key, residue.path) for residue in left] == [(PLACE, second)]
    for residue in left:
        store.clear(residue)
    assert list(store.residue(older_than=timedelta(0))) == []
    assert place.open().stored(MESSAGE) == {ATTACHMENT: written}
