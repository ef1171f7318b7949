"""The store that the environment configures, and its messages, for the commands that read a store."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from attachments.cli.command_boundary import CommandFailed
from attachments.foundation.timed_call import RESPONSE_TIMEOUT, NoResponse, call_with_timeout
from attachments.storage import Store, StoreError, open_store
from attachments.storage.age import decryptor
from attachments.storage.content import Transform
from attachments.storage.manifest import Manifest
from attachments.storage.store import short_key_hint

T = TypeVar("T")


@contextmanager
def configured_store() -> Iterator[Store]:
    """The store that `ATTACHMENTS_URL` and `ATTACHMENTS_STORAGE_OPTIONS` name; its errors become `CommandFailed`."""
    url = os.environ.get("ATTACHMENTS_URL")
    if not url:
        raise CommandFailed(
            "ATTACHMENTS_URL is not set. Set it to the store's URL, for example file:///srv/attachments."
        )
    try:
        options = json.loads(os.environ.get("ATTACHMENTS_STORAGE_OPTIONS") or "{}")
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise CommandFailed('ATTACHMENTS_STORAGE_OPTIONS is not a JSON object. Write one: {"option": "value"}.')
    try:
        yield open_store(url, options)
    except StoreError as error:
        raise CommandFailed(str(error)) from None


def call_store(request: Callable[[], T], timeout: float = RESPONSE_TIMEOUT) -> T:
    """Call a store with a timeout, for a person at a terminal. Raises CommandFailed if it takes too long."""
    try:
        return call_with_timeout(timeout, request)
    except NoResponse:
        raise CommandFailed(
            f"The store did not respond within {timeout:.0f} s. Check the network, and the host or endpoint "
            "in ATTACHMENTS_URL and ATTACHMENTS_STORAGE_OPTIONS."
        ) from None


def read_identity(path: Path) -> Transform:
    """A transform that decrypts with a file's identities. Raises CommandFailed, and UnsupportedStore if it has none."""
    try:
        return decryptor(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(
            f"The identity file {path} cannot be read ({type(error).__name__}). Correct the path."
        ) from None


def find_manifest(store: Store, named: str) -> tuple[str, Manifest]:
    """The key and the manifest of a message given by id or key. Raises CommandFailed if there is none."""
    key, manifest = call_store(lambda: store.find(named))
    if manifest is None and call_store(lambda: store.objects(key)):
        raise CommandFailed(
            f"Message {key} has attachments in {store.url}, but no manifest: its run has not ended, or was "
            "interrupted. Check its run in Prefect; the manifest is written when the run ends."
        )
    if manifest is None:
        raise unknown_message_error(store, named, f"There is no manifest of message {key}")
    return key, manifest


def unknown_message_error(store: Store, named: str, what: str) -> CommandFailed:
    """The error for a message that the store does not have: maybe the store is wrong or empty."""
    if hint := short_key_hint(named):
        return CommandFailed(hint)
    is_used = True
    with suppress(StoreError):  # a store that cannot be listed counts as used
        is_used = call_store(lambda: next(iter(store.message_keys()), None)) is not None
    return CommandFailed(
        f"{what} in {store.url}: the message has not been stored yet." if is_used else empty_store_message(store.url)
    )


def empty_store_message(url: str) -> str:
    return f"No message is stored in {url}. If there should be, check ATTACHMENTS_URL, and that the disk is mounted."
