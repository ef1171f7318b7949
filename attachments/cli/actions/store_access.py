"""The store that the environment names, and the messages in it, for the commands that read a store."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from attachments.cli.command_boundary import CommandFailed
from attachments.foundation.timed_call import PATIENCE, NoResponse, call_with_timeout
from attachments.storage import Store, StoreError, open_store
from attachments.storage.age import opener
from attachments.storage.content import Transform
from attachments.storage.manifest import Manifest
from attachments.storage.store import short_key

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
        raise CommandFailed('ATTACHMENTS_STORAGE_OPTIONS is no JSON object. Write one: {"option": "value"}.')
    try:
        yield open_store(url, options)
    except StoreError as error:
        raise CommandFailed(str(error)) from None


def answer_soon(request: Callable[[], T]) -> T:
    """The first answer of a store, for a person at a terminal. Raises CommandFailed when it takes too long."""
    try:
        return call_with_timeout(PATIENCE, request)
    except NoResponse:
        raise CommandFailed(
            f"The store does not answer within {PATIENCE:.0f} s. Check the network, and the host or endpoint in "
            "ATTACHMENTS_URL and ATTACHMENTS_STORAGE_OPTIONS."
        ) from None


def read_identity(path: Path) -> Transform:
    """What decrypts with the identities in a file. Raises CommandFailed, and UnsupportedStore when there are none."""
    try:
        return opener(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"The identity file cannot be read ({type(error).__name__}): {path}") from None


def find_manifest(store: Store, named: str) -> tuple[str, Manifest]:
    """The key of the message that a person names, and its manifest. Raises CommandFailed when there is none."""
    key, manifest = answer_soon(lambda: store.find(named))
    if manifest is None and answer_soon(lambda: store.objects(key)):
        raise CommandFailed(
            f"Message {key} has attachments in {store.url}, but no manifest: its run has not ended, or was "
            "interrupted. Look at the run in Prefect; a run that ends writes the manifest."
        )
    if manifest is None:
        raise unknown_message(store, named, f"There is no manifest of message {key}")
    return key, manifest


def unknown_message(store: Store, named: str, what: str) -> CommandFailed:
    """What to tell of a message that the store does not have: perhaps it is the wrong store, or none."""
    if told := short_key(named):
        return CommandFailed(told)
    is_used = True
    with suppress(StoreError):  # what may not be listed is told as it is
        is_used = answer_soon(lambda: next(iter(store.message_keys()), None)) is not None
    return CommandFailed(
        f"{what} in {store.url}: nothing of it has been stored yet." if is_used else empty_store(store.url)
    )


def empty_store(url: str) -> str:
    return f"No message is stored in {url}. If there should be: is ATTACHMENTS_URL right, is the disk mounted?"
