"""Attachments of any size, generated while they are sent."""

import hashlib
import os
import time
from pathlib import Path

import httpx

from attachments.sandbox.bodies import GeneratedBody, sha256
from attachments.sandbox.process import Sandbox
from tests.sandbox.conftest import download_path, list_path


def content(body: GeneratedBody) -> bytes:
    return b"".join(body.pieces())


def test_generated_bytes_depend_on_the_seed_alone():
    """The same seed gives the same bytes, another seed others; sizes are exact down to nothing."""
    for size in (0, 1, 31, 32, 33, 262_144, 262_145, 17_000_000):
        body = content(GeneratedBody("seed", size))
        assert len(body) == size
        assert body == content(GeneratedBody("seed", size))
        assert sha256(GeneratedBody("seed", size)) == hashlib.sha256(body).hexdigest()
    assert content(GeneratedBody("a", 8)) != content(GeneratedBody("b", 8))


def test_parts_put_together_in_the_wrong_order_show():
    """No two 5 MiB parts of a long body are alike, so a swapped or repeated part changes the digest."""
    part = 5 * 1024**2
    body = content(GeneratedBody("parts", 12 * part))
    assert len({body[start : start + part] for start in range(0, len(body), part)}) == 12


def test_the_announced_digest_is_that_of_the_download(sandbox: Sandbox, api: httpx.Client):
    """What POST says of size and SHA-256 is what a download delivers, in bytes, text and base64."""
    message = sandbox.control.add_message(
        attachments=[
            {"name": "a", "bytes": 3_000_000},
            {"name": "b", "text": "Grüße"},
            {"name": "c", "base64": "AAEC/w=="},
            {"name": "d", "bytes": 0},
            {"name": "e", "bytes": 100, "seed": "mine"},
            {"name": "f", "bytes": 100, "seed": "mine"},
        ]
    )
    bodies = [api.get(download_path(message, index)).content for index in range(6)]
    for body, row in zip(bodies, message["attachments"], strict=True):
        assert (len(body), hashlib.sha256(body).hexdigest()) == (row["bytes"], row["sha256"])
    assert bodies[1:3] == ["Grüße".encode(), b"\x00\x01\x02\xff"]
    assert bodies[4] == bodies[5] != bodies[0][:100]


def test_digests_can_be_left_out(sandbox: Sandbox):
    """Adding without digests reads no body, so even a petabyte is added at once."""
    row = sandbox.control.add_messages([{"attachments": [{"name": "a", "bytes": 10**15}]}], digests=False)[0]
    assert row["attachments"][0] | {"id": ""} == {
        "id": "",
        "name": "a",
        "type": "fileAttachment",
        "bytes": 10**15,
        "sha256": None,
    }


def resident_peak(pid: int) -> int:
    """The most memory that a process has held so far, in bytes (proc(5), VmHWM)."""
    line = next(row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has taken, as `time.process_time` of the own one (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_gigabyte_takes_no_memory_and_little_time(sandbox: Sandbox, api: httpx.Client):
    """Memory does not grow with the size of an attachment, neither for its digest nor for its download."""
    small = sandbox.control.add_message(attachments=[{"name": "small", "bytes": 20_000_000}])
    assert len(api.get(download_path(small)).content) == 20_000_000
    before = resident_peak(sandbox.pid)
    large = sandbox.control.add_message(attachments=[{"name": "large", "bytes": 10**9}])
    received, began = 0, time.process_time() + processor_time(sandbox.pid)
    with api.stream("GET", download_path(large)) as answer:
        for piece in answer.iter_raw():
            received += len(piece)
    assert received == 10**9
    assert resident_peak(sandbox.pid) - before < 16 * 1024**2
    assert time.process_time() + processor_time(sandbox.pid) - began < 10


def test_a_client_that_reads_slowly_holds_up_nobody(sandbox: Sandbox, api: httpx.Client):
    """While one download waits for its reader, memory stays and other calls are answered."""
    large = sandbox.control.add_message(attachments=[{"name": "large", "bytes": 10**9}])
    before = resident_peak(sandbox.pid)
    with api.stream("GET", download_path(large)) as answer:
        pieces = answer.iter_raw()  # kept: httpx ends the download with its iterator
        next(pieces)
        assert api.get(list_path(large)).status_code == 200
        row = sandbox.control.requests("download")[-1]
        assert row["under_way"]
        assert row["bytes_sent"] < 10**8
    assert resident_peak(sandbox.pid) - before < 16 * 1024**2
    while sandbox.control.requests("download")[-1]["under_way"]:
        pass
    assert not sandbox.control.requests("download")[-1]["complete"]
