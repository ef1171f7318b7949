"""fsspec's file system in memory, under a protocol that a store may have: `memory:` itself is refused."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

PROTOCOL = "test-memory"


class TestMemory(MemoryFileSystem):
    """It can move over what stands there, and knows nothing else of a real store."""

    __test__ = False
    protocol = PROTOCOL

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(super()._strip_protocol(str(path).removeprefix(f"{PROTOCOL}:").removeprefix("//")))


fsspec.register_implementation(PROTOCOL, TestMemory, clobber=True)
