"""Opens the store at a URL."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from attachments.storage.age import SUFFIX, encryptor
from attachments.storage.encryption import Encryption
from attachments.storage.errors import UnsupportedStore
from attachments.storage.names import first_invisible
from attachments.storage.object_store import ObjectStore
from attachments.storage.store import Store
from attachments.storage.urls import is_chained, local_path

_BACKENDS = {
    "s3": "s3:S3Backend",
    "s3a": "s3:S3Backend",
    "abfs": "azure:AzureBackend",
    "abfss": "azure:AzureBackend",
    "az": "azure:AzureBackend",
    "gs": "gcs:GcsBackend",
    "gcs": "gcs:GcsBackend",
    "sftp": "sftp:SftpBackend",
    "ssh": "sftp:SftpBackend",
}
"""Module and class by protocol, imported on first use, because their libraries take a second to load."""

_OTHERS = "rename:RenameBackend"


def open_store(url: str, options: Mapping[str, Any] | None = None, encryption: Encryption | None = None) -> Store:
    """The store at an fsspec URL or a plain absolute path; surrounding blanks are removed.

    Nothing is asked of it, and no credentials are looked for, before the first call. Raises UnsupportedStore for a
    URL, an option or an encryption that cannot be right.
    """
    url = url.strip()
    path = _local_path(url)
    asked = encryption or Encryption()
    seal, suffix = (encryptor(asked.age_recipients), SUFFIX) if asked.age_recipients else (None, "")
    if path is not None:
        _refuse_for_local(options, asked)
        # Not at the top: this module is imported on Windows too, where the local store's imports fail.
        from attachments.storage.local.store import LocalStore  # noqa: PLC0415

        local = LocalStore(Path(path), seal=seal, suffix=suffix, allow_plaintext=asked.allow_plaintext)
        return _checked(local)
    module, _, name = _BACKENDS.get(url.partition(":")[0], _OTHERS).partition(":")
    backend = getattr(import_module(f"attachments.storage.backends.{module}"), name)
    try:
        opened = backend.at(url, dict(options or {}), asked)
    except (ValueError, TypeError):  # from the package's own parser; its text quotes the URL
        raise UnsupportedStore("the store's URL is not valid; docs/stores.md shows the form of each") from None
    return _checked(
        ObjectStore(
            opened,
            seal=seal,
            suffix=suffix,
            allow_plaintext=asked.allow_plaintext,
            recheck_interval=asked.recheck_interval,
        )
    )


def _checked(store: Store) -> Store:
    """The store, whose own URL leads to it again. Raises UnsupportedStore."""
    if store.url != store.url.strip():
        raise UnsupportedStore(
            "the store's folder has a name that ends with a blank, which is lost when its URL is copied; "
            "give the folder a name without it"
        )
    return store


def _refuse_for_local(options: Mapping[str, Any] | None, asked: Encryption) -> None:
    if options:
        raise UnsupportedStore(
            f"the local store takes no options; remove {', '.join(sorted(options))} from the store's options"
        )
    if asked.needs_service:
        raise UnsupportedStore(
            f"{asked.needs_service} is not supported on a local folder; use age recipients, or an encrypted file system"
        )
    if sys.platform == "win32":
        raise UnsupportedStore(
            "the local store needs POSIX file locks, which Windows lacks; run this on Linux, macOS or in WSL"
        )


def _local_path(url: str) -> str | None:
    """The path of a local store, None for a service."""
    if not url:
        raise UnsupportedStore("the store's URL is empty; set it to a path such as file:///srv/attachments")
    if any("\ud800" <= character <= "\udfff" for character in url):  # messages and blocks cannot contain them
        raise UnsupportedStore("the store's URL contains bytes that are not UTF-8 text; type it again")
    if (character := first_invisible(url)) is not None:
        raise UnsupportedStore(
            f"the store's URL contains an invisible character (U+{ord(character):04X}), perhaps pasted with it, and "
            "would "
            "lead to another folder; type it again"
        )
    if is_chained(url):
        raise UnsupportedStore(
            "the store's URL chains file systems with '::', which cannot be written to atomically; "
            "set it to a single one, such as s3://bucket/attachments or file:///srv/attachments"
        )
    try:
        return local_path(url, "the store's URL")
    except ValueError as error:
        raise UnsupportedStore(str(error)) from None
