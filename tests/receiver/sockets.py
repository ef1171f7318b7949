"""HTTP by hand, for what a well-behaved client would not send."""

import socket
import ssl
from urllib.parse import urlsplit


def raw_request(method: str, path: str, body: bytes, authorization: bytes | None) -> bytes:
    """A request with a JSON body."""
    head = [
        f"{method} {path} HTTP/1.1".encode(),
        b"Host: receiver",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
    ]
    if authorization is not None:
        head.append(b"Authorization: " + authorization)
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def connect(url: str, seconds: float = 30) -> socket.socket:
    """A connection to the receiver."""
    address = urlsplit(url)
    assert address.hostname is not None
    return socket.create_connection((address.hostname, address.port or 80), seconds)


def unverified_context() -> ssl.SSLContext:
    """TLS of a client that accepts any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def exchange(url: str, request: bytes, *, until: bytes = b"}") -> bytes:
    """Send the bytes, and read until the answer holds `until` or the connection ends, however it does."""
    with connect(url) as connection:
        connection.sendall(request)
        received = b""
        while until not in received.partition(b"\r\n\r\n")[2]:
            try:
                piece = connection.recv(65536)
            except ConnectionResetError:  # it closed before it had read all that was sent
                break
            if not piece:
                break
            received += piece
    return received
