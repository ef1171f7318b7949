"""What the receiver survives. The numbers are those of the list of faults that the project keeps."""

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import aiohttp
import httpx
import pytest

from attachments.demo.processes import wait_for

from .conftest import SECRET, Receiver
from .prefect_stub import PrefectStub
from .sockets import connect, raw_request

Make = Callable[..., Receiver]
VALID = f"Bearer {SECRET}".encode()


def rows(inbox: Path) -> list[str]:
    """The message ids on the disk, as another process reads them."""
    connection = sqlite3.connect(inbox)
    try:
        return [row[0] for row in connection.execute("SELECT message_id FROM entry ORDER BY seq")]
    finally:
        connection.close()


def test_killed_before_the_sync_there_was_no_answer(make: Make, prefect: PrefectStub) -> None:
    """Fault 1: the sender sees a broken connection and tries again; then there is one run."""
    dying = make(tuning={"kill": "before-sync"})
    dying.process.start()
    with pytest.raises(httpx.TransportError):
        dying.deliver("a")
    assert dying.process.wait(100) == -signal.SIGKILL
    assert rows(dying.inbox) == []
    again = make()
    again.process.start()
    assert again.deliver("a").status_code == 200
    again.until_empty()
    assert prefect.message_ids == ["a"]


def test_what_denies_attachments_is_handed_on_when_that_is_wanted(make: Make, prefect: PrefectStub) -> None:
    """`hasAttachments` does not count inline parts: with --list-all the run lists what is there. Off by default."""
    receiver = make(options=("--list-all",))
    receiver.process.start()
    assert receiver.deliver("inline", hasAttachments=False).json()["message"].startswith("Accepted")
    assert receiver.deliver("other", event="closed").json()["message"].startswith("Nothing to do")
    receiver.until(lambda: prefect.message_ids == ["inline"], "the run")
    (run,) = prefect.runs.values()
    assert run["parameters"]["has_attachments"] is False


def test_killed_after_the_sync_the_redelivery_collapses(make: Make, prefect: PrefectStub) -> None:
    """Fault 2: the delivery is on the disk although no answer left; with its redelivery it makes one run."""
    prefect.mood = "hung"
    dying = make(tuning={"kill": "after-sync"})
    dying.process.start()
    with pytest.raises(httpx.TransportError):
        dying.deliver("a")
    assert dying.process.wait(100) == -signal.SIGKILL
    assert rows(dying.inbox) == ["a"]
    again = make()
    again.process.start()
    assert again.deliver("a").status_code == 200
    assert again.depth == 1
    prefect.mood = "well"
    again.until_empty()
    assert prefect.message_ids == ["a"]


def storm(url: str, name: str, acknowledged: set[str]) -> None:
    """Post deliveries until the receiver is gone, and note the ids of those that got a 200."""
    with httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {SECRET}"}, timeout=10) as client:
        for number in count():
            message_id = f"{name}-{number}"
            try:
                answer = client.post(f"{url}/webhooks/default", json={"id": message_id, "event": "received"})
            except httpx.TransportError:
                return
            if answer.status_code == 200:
                acknowledged.add(message_id)


def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(make: Make, prefect: PrefectStub) -> None:
    """Faults 1 and 2, at random moments of a storm: every 200 is a run in the end, and one only."""
    acknowledged: set[str] = set()
    for life in range(2):
        receiver = make()
        receiver.process.start()
        enough = len(acknowledged) + 50 * (life + 1)
        with ThreadPoolExecutor(4) as pool:
            storms = [pool.submit(storm, receiver.url, f"{life}-{worker}", acknowledged) for worker in range(4)]
            wait_for(partial(reached, acknowledged, enough), "some answers", 20)
            receiver.process.kill()
            for one in storms:
                one.result()
    last = make()
    last.process.start()
    last.until_empty()
    assert acknowledged <= set(prefect.message_ids)
    assert len(prefect.message_ids) == len(set(prefect.message_ids))


def reached(acknowledged: set[str], enough: int) -> bool:
    return len(acknowledged) >= enough


def test_prefect_may_be_away_while_webhooks_come(make: Make, prefect: PrefectStub) -> None:
    """Fault 3: 200s go on; when it is back, the inbox drains, each message once."""
    receiver = make(tuning={"max_retry_delay": 1})
    receiver.process.start()
    prefect.stop()
    ids = [f"message-{number}" for number in range(60)]
    for message_id in ids * 2:
        assert receiver.deliver(message_id).status_code == 200
    assert receiver.is_ready()
    assert receiver.depth == 60
    receiver.until(lambda: receiver.log.count("Prefect is unavailable") >= 4, "the pauses to grow")
    prefect.start()
    receiver.until_empty()
    assert sorted(prefect.message_ids) == sorted(ids)


def test_prefect_may_hang_while_webhooks_come(make: Make, prefect: PrefectStub) -> None:
    """Fault 4: its connections are taken and say nothing; 200s go on, and the inbox drains when it speaks again."""
    receiver = make(
        tuning={
            "create_timeout": 1,
            "max_retry_delay": 1,
        }
    )
    receiver.process.start()
    receiver.until(lambda: len(rows_of_deployments(receiver.inbox)) == 1, "the list of deployments")
    prefect.mood = "hung"
    ids = [f"message-{number}" for number in range(30)]
    for message_id in ids:
        assert receiver.deliver(message_id).status_code == 200
    receiver.until(lambda: receiver.log.count("Prefect is unavailable") >= 4, "all four slots to have failed")
    assert receiver.depth == 30
    prefect.mood = "well"
    receiver.until_empty()
    assert sorted(prefect.message_ids) == sorted(ids)


def test_a_reply_that_is_lost_with_the_receiver_makes_no_second_run(make: Make, prefect: PrefectStub) -> None:
    """Faults 2 and 5 together: Prefect has acted, its reply is lost and the receiver killed; still one run."""
    first = make()
    first.process.start()
    first.until(lambda: len(rows_of_deployments(first.inbox)) == 1, "the list of deployments")
    prefect.mood = "forgetful"
    assert first.deliver("a").status_code == 200
    first.until(lambda: prefect.posts >= 1, "Prefect to have acted")
    first.process.kill()
    prefect.mood = "well"
    second = make()
    second.process.start()
    second.until_empty()
    assert prefect.message_ids == ["a"]


def rows_of_deployments(inbox: Path) -> list[str]:
    connection = sqlite3.connect(inbox)
    try:
        return [row[0] for row in connection.execute("SELECT name FROM deployment")]
    finally:
        connection.close()


@pytest.mark.soak
def test_prefect_may_hang_for_minutes(receiver: Receiver) -> None:
    """Fault 4 with the figures of production, long enough for every deadline and pause to have passed."""
    receiver.until(lambda: len(rows_of_deployments(receiver.inbox)) == 1, "the list of deployments")
    receiver.prefect.mood = "hung"
    ids = [f"message-{number}" for number in range(300)]
    for message_id in ids:
        assert receiver.deliver(message_id).status_code == 200
    receiver.until(lambda: receiver.log.count("Prefect is unavailable") >= 8, "several rounds of failures", 280)
    receiver.prefect.mood = "well"
    receiver.until_empty(30)
    assert sorted(receiver.prefect.message_ids) == sorted(ids)


def test_a_burst_of_a_thousand_is_answered(shared: Receiver) -> None:
    """Fault 6: 1,000 deliveries in some 5 s all get 200, and each is one run in the end."""
    shared.until_empty()
    shared.prefect.mood = "hung"  # the burst is about answers; Prefect need not keep up
    seconds: list[float] = []
    statuses: list[int] = []

    async def burst() -> None:
        headers = {"Authorization": f"Bearer {SECRET}"}
        pad = "x" * 8_000

        async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one(number: int) -> None:
                await asyncio.sleep(number / 200)
                started = time.perf_counter()
                payload = {"id": f"burst-{number}", "event": "received", "bodyText": pad}
                async with session.post(f"{shared.url}/webhooks/default", json=payload) as answer:
                    statuses.append(answer.status)
                    await answer.read()
                seconds.append(time.perf_counter() - started)

            await asyncio.gather(*(one(number) for number in range(1000)))

    asyncio.run(burst())
    seconds.sort()
    median, p99, worst = (seconds[rank] * 1000 for rank in (500, 989, 999))
    print(f"burst: median {median:.1f} ms, p99 {p99:.1f} ms, worst {worst:.1f} ms")
    assert statuses == [200] * 1000
    assert shared.depth == 1000
    shared.prefect.mood = "well"
    shared.until_empty()
    assert {f"burst-{number}" for number in range(1000)} <= set(shared.prefect.message_ids)


def test_all_at_once_are_answered(shared: Receiver) -> None:
    """Fault 6, sharper: 300 connections in the same moment."""

    async def burst() -> list[int]:
        headers = {"Authorization": f"Bearer {SECRET}"}
        async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one(number: int) -> int:
                payload = {"id": f"at-once-{number}", "event": "received"}
                async with session.post(f"{shared.url}/webhooks/default", json=payload) as answer:
                    return answer.status

            return list(await asyncio.gather(*(one(number) for number in range(300))))

    assert asyncio.run(burst()) == [200] * 300
    shared.until_empty()
    assert {f"at-once-{number}" for number in range(300)} <= set(shared.prefect.message_ids)


def test_a_locked_inbox_is_waited_for(make: Make, prefect: PrefectStub) -> None:
    """Fault 7: behind a short lock the answer is 200."""
    receiver = make(tuning={"lock_timeout": 1000, "inbox_timeout": 0.3})
    receiver.process.start()
    outside = sqlite3.connect(receiver.inbox, isolation_level=None, check_same_thread=False)
    outside.execute("BEGIN EXCLUSIVE")
    with ThreadPoolExecutor(8) as pool:
        short = [pool.submit(receiver.deliver, f"short-{number}") for number in range(8)]
        receiver.until(lambda: receiver.get("/ready").status_code == 503, "readiness to be red")
        assert not any(delivery.done() for delivery in short)
        outside.execute("ROLLBACK")
        assert [delivery.result().status_code for delivery in short] == [200] * 8
        receiver.until(lambda: receiver.get("/ready").status_code == 200, "readiness to be green")
    outside.close()


def test_a_long_lock_of_the_inbox_is_a_refusal(make: Make, prefect: PrefectStub) -> None:
    """Fault 7: the answer is 503, loud and red, until it ends."""
    receiver = make(tuning={"lock_timeout": 1, "inbox_timeout": 0.3, "max_retry_delay": 0.5})
    receiver.process.start()
    outside = sqlite3.connect(receiver.inbox, isolation_level=None, check_same_thread=False)
    with ThreadPoolExecutor(8) as pool:
        outside.execute("BEGIN EXCLUSIVE")
        long = [pool.submit(receiver.deliver, f"long-{number}") for number in range(8)]
        assert {delivery.result().status_code for delivery in long} == {503}
        assert {delivery.result().json()["status"] for delivery in long} == {"error"}
        assert "CRITICAL attachments.receiver  A delivery was refused with 503" in receiver.log
        outside.close()
    for number in range(8):
        assert receiver.deliver(f"long-{number}").status_code == 200
    receiver.until_empty()
    assert len(prefect.runs) == 8


def can_mount() -> bool:
    probe = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("who", ["somebody", "Prefect"])
def test_a_full_disk_is_503_until_there_is_room(make: Make, prefect: PrefectStub, tmp_path: Path, who: str) -> None:
    """Fault 8: what cannot be written is refused aloud; what was acknowledged is kept; room heals it by itself.

    Room comes from outside, or from Prefect's return: the full disk is full of the inbox itself.
    """
    if not can_mount():
        pytest.skip("needs the right to mount a tmpfs in a namespace of its own")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=1m none {disk} && head -c 350000 /dev/zero > {disk}/ballast && exec "$@"'
    receiver = make(before=("unshare", "-m", "sh", "-c", mount, "sh"), options=("--inbox", str(disk / "inbox.sqlite")))
    prefect.stop()
    receiver.process.start()
    acknowledged: list[str] = []
    while (answer := receiver.deliver(f"{len(acknowledged)}-" + "x" * 1500)).status_code == 200:
        acknowledged.append(f"{len(acknowledged)}-" + "x" * 1500)
    assert acknowledged
    assert answer.status_code == 503
    assert answer.json() == {"status": "error", "message": "The inbox cannot be written. Please try again."}
    assert "CRITICAL attachments.receiver  A delivery was refused with 503" in receiver.log
    receiver.until(lambda: receiver.get("/ready").status_code == 503, "readiness to be red")
    assert receiver.get("/health").status_code == 200

    if who == "somebody":
        Path(f"/proc/{receiver.process.pid}/root{disk}/ballast").unlink()
    else:
        prefect.start()
    receiver.until(lambda: receiver.get("/ready").status_code == 200, "readiness to be green again")
    assert receiver.deliver("last").status_code == 200
    if who == "somebody":
        prefect.start()
    receiver.until_empty()
    assert sorted(prefect.message_ids) == sorted([*acknowledged, "last"])


def test_a_rotated_secret_is_refused_after_the_restart(make: Make, tmp_path: Path) -> None:
    """Fault 9: old and new are valid while both are set; then the old one gets 401. No secret is in the log."""
    both = make(secret="old-canary-secret,new-canary-secret")
    both.process.start()
    for secret, status in (("old-canary-secret", 200), ("new-canary-secret", 200), ("wrong-canary-secret", 401)):
        assert both.post({"id": "a"}, headers={"Authorization": f"Bearer {secret}"}).status_code == status
    assert both.process.stop() == 0
    new = make(secret="new-canary-secret")
    new.process.start()
    for secret, status in (("old-canary-secret", 401), ("new-canary-secret", 200)):
        assert new.post({"id": "a"}, headers={"Authorization": f"Bearer {secret}"}).status_code == status
    assert "refused" in new.log
    assert "canary" not in new.log


def test_strangers_do_not_fill_the_log(shared: Receiver) -> None:
    """Hundreds of wrong secrets are counted, not each written down; neither are attempts to upgrade."""
    lines = len(shared.log.splitlines())
    before = unauthorized(shared)
    with httpx.Client(trust_env=False) as client:
        for _ in range(300):
            assert client.post(f"{shared.url}/webhooks/default").status_code == 401
            headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
            assert client.get(f"{shared.url}/webhooks/default", headers=headers).status_code == 401
    assert unauthorized(shared) == before + 600
    assert len(shared.log.splitlines()) <= lines + 3


def unauthorized(receiver: Receiver) -> float:
    """How many requests were refused for their secret."""
    name = 'attachments_deliveries_total{outcome="unauthorized"} '
    found = [line.removeprefix(name) for line in receiver.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(found[0]) if found else 0.0


@pytest.mark.parametrize(("ending", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stop_answers_what_is_under_way(receiver: Receiver, ending: signal.Signals, status: int) -> None:
    """Fault 22: a request that has begun is finished and answered, idle connections are closed; 130 after Ctrl-C."""
    request = raw_request("POST", "/webhooks/default", b'{"id": "a", "event": "received"}', VALID)
    with connect(receiver.url) as under_way, connect(receiver.url) as idle:
        under_way.sendall(request[:-5])
        assert receiver.get("/health").status_code == 200  # so the receiver has read what was sent before
        os.kill(receiver.process.pid, ending)
        assert idle.recv(1) == b""
        receiver.until(lambda: "Waiting for connections to close" in receiver.log, "the stop to wait")
        under_way.sendall(request[-5:])
        assert under_way.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert receiver.process.wait(100) == status
    assert "Traceback" not in receiver.log
    assert rows(receiver.inbox) == ["a"] or receiver.prefect.message_ids == ["a"]


def test_a_stop_keeps_its_deadline_whatever_hangs(make: Make, prefect: PrefectStub) -> None:
    """Fault 22: a sender that stalls, Prefect that hangs and a lock on the inbox together: 0, soon after the deadline.

    Each of them would hold it up for longer than this test may take.
    """
    receiver = make(
        tuning={
            "drain_timeout": 2,
            "body_timeout": 1000,
            "create_timeout": 1000,
            "lock_timeout": 1000,
        }
    )
    receiver.process.start()
    assert receiver.deliver("kept").status_code == 200
    receiver.until_empty()
    prefect.mood = "hung"
    assert receiver.deliver("waits").status_code == 200
    request = raw_request("POST", "/webhooks/default", b'{"id": "stalled", "event": "received"}', VALID)
    outside = sqlite3.connect(receiver.inbox, isolation_level=None)
    outside.execute("BEGIN EXCLUSIVE")
    with connect(receiver.url) as stalled, connect(receiver.url) as locked_out:
        stalled.sendall(request[:-5])
        locked_out.sendall(request)
        assert receiver.get("/health").status_code == 200
        os.kill(receiver.process.pid, signal.SIGTERM)
        assert receiver.process.wait(100) == 0
    outside.close()
    assert "Traceback" not in receiver.log
    assert rows(receiver.inbox) == ["waits"]


STALLED = raw_request("POST", "/webhooks/default", b'{"id": "slow", "event": "received"}', VALID)
SHAPES = [
    b"",
    b"P",
    STALLED[:40],
    STALLED[:-5],
    raw_request("POST", "/webhooks/default", b"x" * 1000, b"Bearer wrong")[:-900],
]
"""Connections on which no whole request comes."""


@contextmanager
def half_open(receiver: Receiver) -> Iterator[list[socket.socket]]:
    """Hundreds of such connections."""
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(receiver.url)) for _ in range(500)]
        for number, connection in enumerate(slow):
            connection.sendall(SHAPES[number % len(SHAPES)])
        yield slow


def test_half_open_connections_block_nobody(make: Make, prefect: PrefectStub) -> None:
    """Hundreds that send nothing, half a header or half a body, for longer than this test takes: others are served."""
    receiver = make(tuning=dict.fromkeys(("first_byte_timeout", "idle_timeout", "body_timeout"), 1000))
    receiver.process.start()
    with half_open(receiver):
        assert receiver.deliver("quick").status_code == 200
    assert "Traceback" not in receiver.log


def test_half_open_connections_are_closed_in_the_end(make: Make, prefect: PrefectStub) -> None:
    """Without an answer, or with the one that they have come far enough for."""
    receiver = make(tuning={"first_byte_timeout": 0.5, "idle_timeout": 0.5, "body_timeout": 1})
    receiver.process.start()
    with half_open(receiver) as slow:
        endings = [drained(connection) for connection in slow]
    assert {ending[:13] for ending in endings[3::5]} == {b"HTTP/1.1 503 "}
    assert {ending[:13] for ending in endings[4::5]} == {b"HTTP/1.1 401 "}
    assert {ending for number, ending in enumerate(endings) if number % 5 < 3} == {b""}
    assert "Traceback" not in receiver.log


def drained(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    connection.settimeout(120)
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def test_a_sender_that_takes_its_time_is_waited_for(shared: Receiver) -> None:
    """A body that comes in many small pieces is a delivery like any other."""
    request = raw_request("POST", "/webhooks/default", b'{"id": "slow", "event": "received"}', VALID)
    with connect(shared.url) as connection:
        for index in range(0, len(request), 7):
            connection.sendall(request[index : index + 7])
            time.sleep(0.01)  # what is tested is a sender that pauses
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_two_receivers_may_share_an_inbox(make: Make, prefect: PrefectStub) -> None:
    """While one replaces the other, each message is still one run."""
    first, second = make(), make()
    threads = [threading.Thread(target=one.process.start) for one in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(40):
        assert (first, second)[number % 2].deliver(f"message-{number // 2}").status_code == 200
    first.until_empty()
    assert sorted(prefect.message_ids) == sorted(f"message-{number}" for number in range(20))
    assert "CRITICAL" not in first.log + second.log
