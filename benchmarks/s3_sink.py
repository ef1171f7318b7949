"""As much of S3 as an upload needs, in a process of its own; counts bytes and throws them away.

moto and rclone keep parts in memory, so what they need would be measured along with what we need, in time and room.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

from benchmarks.processes import announce

_STEP = 256 * 1024
_DATE = "Wed, 25 Nov 2026 08:00:00 GMT"


class Sink:
    """What stands there, by size alone."""

    def __init__(self) -> None:
        self.objects: dict[str, int] = {}
        self.uploads: dict[str, int] = {}

    def answer(self, method: str, path: str, query: str, size: int, *, only_new: bool) -> tuple[int, str, bytes]:
        """Status, headers and body."""
        if method in {"GET", "HEAD"}:
            return self._asked(method, path, query)
        upload = _named(query, "uploadId")
        if method == "POST" and upload is None:
            name = str(len(self.uploads))
            self.uploads[name] = 0
            told = f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            return 200, "", told.encode()
        if method == "PUT" and upload is not None:
            self.uploads[upload] += size
            return 200, 'ETag: "e"\r\n', b""
        if only_new and path in self.objects:
            return _error(412, "PreconditionFailed")
        self.objects[path] = size if upload is None else self.uploads.pop(upload)
        done = b'<CompleteMultipartUploadResult><ETag>"e"</ETag></CompleteMultipartUploadResult>'
        return 200, 'ETag: "e"\r\n', b"" if upload is None else done

    def _asked(self, method: str, path: str, query: str) -> tuple[int, str, bytes]:
        if method == "GET":
            found = b"<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>"
            return (200, "", found) if "list-type=2" in query else _error(404, "NoSuchKey")
        if path not in self.objects:
            return 404, "", b""
        return 200, f'Content-Length: {self.objects[path]}\r\nETag: "e"\r\nLast-Modified: {_DATE}\r\n', b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, target = head.split(" ", 2)[:2]
                if re.search(r"(?im)^expect:", head):
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                length = re.search(r"(?im)^content-length: *(\d+)", head)
                size = left = int(length[1]) if length else 0
                while left:
                    piece = await reader.read(min(left, _STEP))
                    if not piece:
                        return
                    left -= len(piece)
                path, _, query = target.partition("?")
                only_new = re.search(r"(?im)^if-none-match:", head) is not None
                status, headers, body = self.answer(method, path, query, size, only_new=only_new)
                if method != "HEAD":
                    headers += f"Content-Length: {len(body)}\r\n"
                writer.write(f"HTTP/1.1 {status} Told\r\n{headers}\r\n".encode() + body)
                await writer.drain()
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(Sink().serve, "127.0.0.1", 0, limit=1024 * 1024)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _named(query: str, name: str) -> str | None:
    found = re.search(rf"(?:^|&){name}=([^&]*)", query)
    return found and found[1]


def _error(status: int, code: str) -> tuple[int, str, bytes]:
    return status, "", f"<Error><Code>{code}</Code></Error>".encode()


if __name__ == "__main__":
    asyncio.run(main())
