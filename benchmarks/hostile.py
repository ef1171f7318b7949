"""Webhooks while strangers hold a thousand connections: how long an answer takes, and what the receiver's memory is.

20 webhooks a second, each on a connection of its own as Emailgistics opens them, at times that do not depend on the
answers. Beside them 1,000 connections of one kind: silent, slow (a byte a second), malformed, or complete but without
the secret. Each is opened again when it ends; the last two kinds after a pause. Strangers have a process of their own.
ATTACHMENTS_BENCH_CODE names the folder of another version's code, for a comparison.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from attachments.demo.processes import free_port, wait_for
from benchmarks.figures import Figure
from benchmarks.latency import percentile
from tests.receiver.prefect_stub import PrefectStub
from tests.servers.certificates import make_certificate

HERE = Path(__file__).parents[1]
KINDS = ("none", "silent", "slow", "malformed", "unauthenticated")
STRANGERS = 1000
SETTLING = 8.0
"""Seconds that the strangers get before the first webhook."""
WEBHOOKS = 400
RATE = 20.0
"""Webhooks a second."""
PAUSE = 5.0
"""Seconds until a stranger whose connection was answered opens another one."""
PATIENCE = 100.0
"""Seconds that Emailgistics waits for an answer (webhooks/delivery)."""
SECRET = "correct-horse-battery"  # noqa: S105  of a receiver that ends with the benchmark
MIB = 1024


@dataclass(frozen=True)
class Result:
    """The seconds of each answered webhook, how many got none, and the receiver's memory at most in MiB."""

    seconds: list[float]
    failed: int
    memory: float
    log_lines: int


def measure() -> list[Figure]:
    _allow_many_connections()
    figures = []
    for scheme in ("http", "https"):
        for kind in KINDS:
            result = _under(kind, scheme)
            what = f"{scheme}, {STRANGERS if kind != 'none' else 0} strangers, {kind}"
            name = f"hostile.{scheme}_{kind}"
            answered = result.seconds or [PATIENCE]
            figures += [
                Figure(f"{name}_p50_ms", round(median(answered) * 1000, 1), "ms", f"answer to a webhook: {what}"),
                Figure(f"{name}_p99_ms", round(percentile(answered, 99) * 1000, 1), "ms", "the slowest of a hundred"),
                Figure(f"{name}_failed", result.failed, f"of {WEBHOOKS}", "without an answer of 200"),
                Figure(f"{name}_memory_mib", round(result.memory, 1), "MiB", "the receiver's resident memory at most"),
                Figure(f"{name}_log_lines", result.log_lines, "", "that the receiver has written meanwhile"),
            ]
            print(f"{name}: {figures[-5].value} {figures[-4].value} {result.failed} {result.memory:.0f}", flush=True)
    return figures


def _under(kind: str, scheme: str) -> Result:
    stub = PrefectStub()
    stub.start()
    with tempfile.TemporaryDirectory() as folder, _receiver(Path(folder), stub, scheme) as (port, process, log):
        command = [sys.executable, "-m", "benchmarks.hostile", kind, scheme, str(port)]
        strangers = subprocess.Popen(command, cwd=HERE) if kind != "none" else None  # noqa: S603  our own
        try:
            time.sleep(SETTLING)
            lines = len(log.read_bytes().splitlines())
            seconds = asyncio.run(_webhooks(port, _context(scheme)))
            status = Path(f"/proc/{process.pid}/status").read_text()
            (peak,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
            written = len(log.read_bytes().splitlines()) - lines
        finally:
            if strangers is not None:
                strangers.terminate()
                strangers.wait()
    stub.stop()
    return Result([value for value in seconds if value is not None], seconds.count(None), int(peak) / MIB, written)


@contextmanager
def _receiver(folder: Path, stub: PrefectStub, scheme: str) -> Iterator[tuple[int, subprocess.Popen[bytes], Path]]:
    """Its port, process and log."""
    code = Path(os.environ.get("ATTACHMENTS_BENCH_CODE", HERE))
    port = free_port()
    command = [sys.executable, "-m", "attachments.cli", "receive", "--port", str(port)]
    if scheme == "https":
        certificate = str(make_certificate(folder / "receiver.pem"))
        command += ["--tls-certificate", certificate, "--tls-key", certificate]
        if (code / "attachments/receiver/monitoring.py").exists():
            command += ["--monitoring-address", "127.0.0.1:0"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(code),
        "PREFECT_API_URL": stub.url,
        "PREFECT_HOME": str(folder / "prefect"),
        "EMAILGISTICS_WEBHOOK_SECRET": SECRET,
        "ATTACHMENTS_INBOX": str(folder / "inbox.sqlite"),
        "NO_PROXY": "*",
        "DO_NOT_TRACK": "1",
    }
    log = folder / "receiver.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=code, env=environment, stdout=output, stderr=output)  # noqa: S603  our own
    try:
        wait_for(lambda: b"Listening on" in log.read_bytes(), "the receiver", 90)
        yield port, process, log
    finally:
        process.kill()
        process.wait()


async def _webhooks(port: int, context: ssl.SSLContext | None) -> list[float | None]:
    began = time.monotonic()

    async def one(number: int) -> float | None:
        due = began + number / RATE
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        body = json.dumps({"id": f"message-{number}", "event": "received"}).encode()
        request = (
            f"POST /webhooks/default HTTP/1.1\r\nHost: receiver\r\nAuthorization: Bearer {SECRET}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode()
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                writer.write(request + body)
                answer = await reader.read()
                writer.close()
        except (OSError, TimeoutError):
            return None
        return time.monotonic() - due if answer.startswith(b"HTTP/1.1 200 ") else None

    return list(await asyncio.gather(*(one(number) for number in range(WEBHOOKS))))


def _context(scheme: str) -> ssl.SSLContext | None:
    if scheme == "http":
        return None
    return ssl._create_unverified_context()  # type: ignore[no-untyped-call]  # noqa: S323  a certificate made just now


def _allow_many_connections() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# ---- the strangers, in their own process ----


async def _strangers(kind: str, scheme: str, port: int) -> None:
    context = _context(scheme)

    async def stranger(number: int) -> None:
        await asyncio.sleep(number * SETTLING / 2 / STRANGERS)
        while True:
            with suppress(OSError):
                await (_silent(port) if kind == "silent" else _talking(kind, port, context))
            await asyncio.sleep(PAUSE if kind in ("malformed", "unauthenticated") else 0.1)

    await asyncio.gather(*(stranger(number) for number in range(STRANGERS)))


async def _silent(port: int) -> None:
    """TCP alone: over HTTPS, no handshake."""
    with socket.socket() as connection:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", port))
        await loop.sock_recv(connection, 1)


async def _talking(kind: str, port: int, context: ssl.SSLContext | None) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        if kind == "slow":
            for byte in b"POST /webhooks/default HTTP/1.1\r\nHost: receiver\r\n" + b"X: y\r\n" * 100:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)
        elif kind == "malformed":
            writer.write(b"GET\x00 nothing\r\n\r\n")
        else:
            writer.write(b"POST /webhooks/default HTTP/1.1\r\nHost: receiver\r\nContent-Length: 2\r\n\r\n{}")
        await reader.read(1)
    finally:
        writer.transport.abort()


if __name__ == "__main__":
    _allow_many_connections()
    asyncio.run(_strangers(sys.argv[1], sys.argv[2], int(sys.argv[3])))
