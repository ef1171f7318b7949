"""The local store's root folder: when it is created, and when it must not be.

It is made at the first write, with the folders above it, if it did not exist when the store was opened. A
root that did exist is never created again, nor is ``.incoming`` in a root that had it: that is what a vanished
disk or mount looks like, and what is written then would land on the disk below. Such a root raises
NotFound until it is back, or until the store is opened again. (A place to mount on that was empty before
the first write can't be told from a new store: mount before starting.)
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from attachments.storage.errors import NotFound
from attachments.storage.local.folders import Folder, make_with_parents
from attachments.storage.local.staging import INCOMING


class Root:
    """Opens the root. Raises NotFound if it has vanished, and OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Path.is_dir() raises for an inaccessible folder; the first use reports that.
        self._existed = os.path.isdir(path)  # noqa: PTH112
        self._was_a_store = os.path.isdir(path / INCOMING)  # noqa: PTH112

    def opened(self, until: ExitStack) -> Folder | None:
        """The root, or None if the store does not exist yet; open until the stack is closed."""
        # Read this first, because another thread may be creating the store.
        existed, was_a_store = self._existed, self._was_a_store
        try:
            root = until.enter_context(Folder.at(self._path))
        except FileNotFoundError:
            if not existed:
                return None
        else:
            if root.has(INCOMING):
                self._existed = self._was_a_store = True
                return root
            if not was_a_store:
                return root
        raise NotFound(
            "the store's root folder is gone or empty; mount it again, or, if you have emptied it on "
            "purpose, start the worker again"
        )

    def made(self, until: ExitStack) -> Folder:
        """The root, created if the store does not exist yet; open until the stack is closed."""
        root = self.opened(until)
        if root is None:
            make_with_parents(self._path)
            root = until.enter_context(Folder.at(self._path))
        if not self._was_a_store:
            with root.made(INCOMING):
                root.sync()
            self._existed = self._was_a_store = True
        return root
