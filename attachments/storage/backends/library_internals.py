"""Every private name of another package that the stores use. A test checks that there are none elsewhere.

Each has its reason, the public alternative that was tried, and the upstream issue where there is one. What is expected
of each is stated in `tests/storage/backends/test_library_internals.py`: a version that differs fails there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem

if TYPE_CHECKING:  # it takes a second and a half to load
    import aiohttp
    from gcsfs import GCSFileSystem


def path_of_url(kind: type[AbstractFileSystem], url: str) -> str:
    """The path that a URL names in a file system of this kind, without opening the file system.

    `_strip_protocol` is a hook that each file system implements for itself: HDFS drops the host, HTTP keeps all of it.
    The public `fsspec.core.url_to_fs` opens the file system, and that of FTP then connects, while a store's URL is only
    being checked. https://github.com/fsspec/filesystem_spec/issues/1461
    """
    return str(kind._strip_protocol(url))


def options_of_url(kind: type[AbstractFileSystem], url: str) -> Mapping[str, Any]:
    """The options that a URL holds for a file system of this kind, such as host and port.

    `_get_kwargs_from_urls` is a hook like `_strip_protocol`, with the same public alternative.
    https://github.com/fsspec/filesystem_spec/issues/1461
    """
    return dict(kind._get_kwargs_from_urls(url))


def copies_objects(kind: type[AbstractFileSystem]) -> bool:
    """Whether file systems of this kind copy an object by themselves, without the bytes passing through here.

    An asynchronous file system implements `_cp_file`, and only an opened one has the public `cp_file` made of it.
    fsspec has no public way to ask a class, nor an issue about it.
    """
    if issubclass(kind, AsyncFileSystem):
        return kind._cp_file is not AsyncFileSystem._cp_file
    return kind.cp_file is not AbstractFileSystem.cp_file


async def gcsfs_session(fs: GCSFileSystem) -> aiohttp.ClientSession:
    """The HTTP session of gcsfs, with the option `session_kwargs` and with google-auth's client certificate, if any.

    The public property `session` is None until gcsfs has made a request of its own, which logs the name of the object.
    A session of our own would have to load the client certificate (mutual TLS) in gcsfs's place. No upstream issue.
    """
    session: aiohttp.ClientSession = await fs._set_session()
    return session
