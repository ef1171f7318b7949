"""What a connection leaves behind when it has ended: nothing that waits for the garbage collector."""

import asyncio
import gc
import socket
import ssl
from asyncio import sslproto
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from attachments.receiver.limits import ReceiverLimits
from attachments.receiver.listener import Listener
from attachments.receiver.protocol import ReceiverProtocol
from attachments.receiver.unauthenticated import UnauthenticatedConnections
from tests.servers.certificates import make_certificate

from .sockets import unverified_context


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


ENDINGS = ["cut off", "no TLS", "too slow", "handshake only", "malformed", "refused", "evicted"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_buffers_of_an_encrypted_connection_are_freed_with_it(ending: str, tmp_path: Path) -> None:
    """A quarter of a megabyte each. In a large process the collector comes too late for a thousand of them."""
    certificate = make_certificate(tmp_path / "certificate.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    limits = ReceiverLimits(handshake_timeout=0.3)
    if ending == "evicted":
        limits = replace(limits, max_unauthenticated=1, eviction_grace=0.0)
    gc.collect()
    gc.disable()
    try:
        asyncio.run(provoke(ending, context, limits))
    finally:
        gc.enable()


async def provoke(ending: str, context: ssl.SSLContext, limits: ReceiverLimits) -> None:
    config = uvicorn.Config(refuse, http="h11", lifespan="off", log_config=None)
    config.load()

    def make_protocol(strangers: UnauthenticatedConnections) -> asyncio.Protocol:
        return ReceiverProtocol(strangers, config, ServerState(), {})

    with socket.create_server(("127.0.0.1", 0)) as server:
        listening = Listener(server, context, make_protocol, limits)
        port = server.getsockname()[1]
        await asyncio.gather(*(asyncio.to_thread(connect, port, ending) for _ in range(5)))
        async with asyncio.timeout(120):
            while buffers():
                await asyncio.sleep(0.05)
        listening.close()
        await listening.wait_closed()


def connect(port: int, ending: str) -> None:
    """A client that ends like this."""
    with socket.create_connection(("127.0.0.1", port), 20) as plain:
        if ending in ("cut off", "no TLS", "too slow", "evicted"):
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n" if ending == "no TLS" else b"\x16")
            if ending == "cut off":
                plain.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                plain.recv(100)  # until the server has closed it
            return
        with unverified_context().wrap_socket(plain) as connection:
            request = {"malformed": b"\x00\xff\r\n\r\n", "refused": b"GET / HTTP/1.1\r\nHost: receiver\r\n\r\n"}
            if ending in request:
                connection.sendall(request[ending])
                connection.recv(1000)


def buffers() -> int:
    """How many of the server's TLS connections are in memory."""
    return sum(isinstance(one, sslproto.SSLProtocol) for one in gc.get_objects())
