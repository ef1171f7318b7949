"""As much of the documented API as a download needs, as fast as the system can send.

The project's sandbox is the better stand-in, but makes and checks every byte in Python, so that it would be what is
measured. This one hands the same 16 MiB to `sendfile` over and over. An attachment's id is its size in bytes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import threading

from benchmarks.processes import announce

BLOCK_BYTES = 16 * 1024 * 1024
ONE_GB = 1_000_000_000
_LIST = re.compile(rb"GET /api/v1/messages/[^/ ]+/attachments HTTP/1.1")
_DOWNLOAD = re.compile(rb"GET /api/v1/messages/[^/ ]+/attachments/(\d+)/download HTTP/1.1")


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}/api/v1"


def download_url(port: int, size: int) -> str:
    return f"{url(port)}/messages/bench/attachments/{size}/download"


def serve() -> None:
    with tempfile.TemporaryFile() as block, socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        block.write(os.urandom(BLOCK_BYTES))
        block.flush()
        announce(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_converse, args=(connection, block.fileno()), daemon=True).start()


def _converse(connection: socket.socket, block: int) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as requests:
        try:
            while asked := requests.readline():
                while requests.readline().strip():
                    pass
                if download := _DOWNLOAD.match(asked):
                    size = int(download[1])
                    connection.sendall(_head("200 OK", "application/octet-stream", size))
                    _send(connection, block, size)
                elif _LIST.match(asked):
                    _send_json(connection, "200 OK", {"attachments": [_attachment()]})
                else:
                    _send_json(connection, "404 Not Found", {"error": "not found"})
        except ConnectionError:
            return  # a contender that has seen enough


def _send(connection: socket.socket, block: int, size: int) -> None:
    sent = 0
    while sent < size:
        place = sent % BLOCK_BYTES
        sent += os.sendfile(connection.fileno(), block, place, min(BLOCK_BYTES - place, size - sent))


def _send_json(connection: socket.socket, status: str, document: object) -> None:
    body = json.dumps(document).encode()
    connection.sendall(_head(status, "application/json", len(body)) + body)


def _head(status: str, content_type: str, length: int) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n".encode()


def _attachment() -> dict[str, object]:
    return {
        "id": str(ONE_GB),
        "name": "large.bin",
        "contentType": "application/octet-stream",
        "size": ONE_GB,
        "attachmentType": "fileAttachment",
    }


if __name__ == "__main__":
    serve()
