"""What the stores expect of other packages' private names. If one of these fails, the installed version differs.

Each message names the function of `library_internals` to adapt.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from fsspec import AbstractFileSystem, get_filesystem_class
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from gcsfs import GCSFileSystem

from attachments.storage.backends.library_internals import (
    copies_objects,
    gcsfs_session,
    options_of_url,
    path_of_url,
)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("memory://folder/a", "/folder/a"),
        ("ftp://user:secret@host:2121/folder/a", "/folder/a"),
        ("http://host/folder/a", "http://host/folder/a"),
        ("hdfs://host:8020/folder/a", "/folder/a"),
    ],
)
def test_a_file_system_names_the_path_of_a_url(url: str, path: str) -> None:
    """Each in its own way, and without being opened."""
    kind = get_filesystem_class(url.partition(":")[0])
    assert path_of_url(kind, url) == path, "fsspec's hook _strip_protocol differs: adapt path_of_url"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("memory://folder/a", {}),
        ("ftp://user:secret@host:2121/a", {"host": "host", "port": 2121, "username": "user", "password": "secret"}),
        ("hdfs://host:8020/folder/a", {"host": "host", "port": 8020}),
    ],
)
def test_a_file_system_names_the_options_in_a_url(url: str, options: dict[str, Any]) -> None:
    """Without being opened."""
    kind = get_filesystem_class(url.partition(":")[0])
    found = options_of_url(kind, url)
    assert options.items() <= found.items(), "fsspec's hook _get_kwargs_from_urls differs: adapt options_of_url"


class Copying(AsyncFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """Copies as fsspec has asynchronous file systems do."""

    async def _cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Nothing."""


class Reading(AsyncFileSystem):  # type: ignore[misc]  # as above
    """Cannot copy."""


@pytest.mark.parametrize(
    ("kind", "copies"), [(MemoryFileSystem, True), (AbstractFileSystem, False), (Copying, True), (Reading, False)]
)
def test_a_class_says_whether_it_copies(kind: type[AbstractFileSystem], copies: bool) -> None:
    """By the method that it implements: `cp_file`, or `_cp_file` where it is asynchronous."""
    assert copies_objects(kind) is copies, "fsspec copies by another method: adapt copies_objects"
    opened = kind(asynchronous=True) if issubclass(kind, AsyncFileSystem) else None
    assert opened is None or hasattr(opened, "cp_file"), "cp_file is not made of _cp_file: adapt copies_objects"


def test_gcsfs_hands_out_its_session() -> None:
    """One with the option `session_kwargs`, each time the same; the public property has none before a first request."""
    fs = GCSFileSystem(token="anon", session_kwargs={"headers": {"X-Test": "1"}}, skip_instance_cache=True)
    assert fs.session is None, "gcsfs opens its session at once: gcsfs_session can go, use the property session"

    async def both() -> tuple[aiohttp.ClientSession, aiohttp.ClientSession]:
        return await gcsfs_session(fs), await gcsfs_session(fs)

    first, second = asyncio.run_coroutine_threadsafe(both(), fs.loop).result(10)
    assert isinstance(first, aiohttp.ClientSession), "gcsfs's _set_session returns no session: adapt gcsfs_session"
    assert first is second is fs.session, "gcsfs opens a session for each call: adapt gcsfs_session"
    assert first.headers["X-Test"] == "1", "gcsfs ignores session_kwargs: adapt gcsfs_session"
