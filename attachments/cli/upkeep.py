"""`attachments verify` and `attachments decrypt`: what an operator does with a store that is in use."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from attachments.foundation.numerals import counted
from attachments.foundation.terminal_text import escaped, say
from attachments.foundation.timed_call import PATIENCE, NoResponse, call_with_timeout
from attachments.storage import Store, StoreError, open_store
from attachments.storage.age import SUFFIX, opener
from attachments.storage.backends.base import Orphan
from attachments.storage.content import Transform
from attachments.storage.errors import CannotDecrypt, InvalidManifest, NothingStored
from attachments.storage.keys import candidate_keys, may_name_key
from attachments.storage.manifest import Manifest, ManifestAttachment
from attachments.storage.names import safe_name, shortened
from attachments.storage.store import short_key
from attachments.storage.verification import Checked, unsealed, verify

DEFAULT = "download-attachments/default"
LONGEST_NAME = 400
"""Characters of a deployment's name with its flow's, as a command to paste may hold it."""
NEVER_IN_NAMES = frozenset("/%&<>")
"""What Prefect allows in no name."""
REMOVED = ", removed"

T = TypeVar("T")


class UpkeepError(Exception):
    """It cannot be done; the text says what to change."""


def store_of(environment: Mapping[str, str]) -> Store:
    """The store that `ATTACHMENTS_URL` and `ATTACHMENTS_STORAGE_OPTIONS` name. Raises UpkeepError, StoreError."""
    url = environment.get("ATTACHMENTS_URL")
    if not url:
        raise UpkeepError("ATTACHMENTS_URL is not set. Set it to the store's URL, for example file:///srv/attachments.")
    try:
        options = json.loads(environment.get("ATTACHMENTS_STORAGE_OPTIONS") or "{}")
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise UpkeepError('ATTACHMENTS_STORAGE_OPTIONS is no JSON object. Write one: {"option": "value"}.')
    return open_store(url, options)


def soon(ask: Callable[[], T]) -> T:
    """What a store answers first, for somebody who waits at a terminal. Raises UpkeepError, and what it raises."""
    try:
        return call_with_timeout(PATIENCE, ask)
    except NoResponse:
        raise UpkeepError(
            f"The store does not answer within {PATIENCE:.0f} s. Check the network, and the host or endpoint in "
            "ATTACHMENTS_URL and ATTACHMENTS_STORAGE_OPTIONS."
        ) from None


def identity_of(path: Path) -> Transform:
    """What decrypts with the identities in a file. Raises UpkeepError, and UnsupportedStore when there are none."""
    try:
        return opener(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UpkeepError(f"The identity file cannot be read ({type(error).__name__}): {path}") from None


@dataclass
class Verdict:
    """What a verification has found in all."""

    messages: int = 0
    objects: int = 0
    bytes: int = 0
    differences: int = 0
    left: int = 0
    cleared: int = 0

    def add(self, checked: Checked) -> None:
        """Counts one message."""
        self.messages += 1
        self.objects += checked.objects
        self.bytes += checked.bytes
        self.differences += len(checked.differences)


def verify_store(
    store: Store, message_id: str | None, *, unseal: Transform | None, at_once: int, clean: bool, older_than: timedelta
) -> Verdict:
    """Compare what stands in the store with what is recorded, print what differs, and say in a line how it went.

    With `clean`, remove what writers have left behind that is older than that. Raises StoreError.
    """
    verdict = Verdict()
    keys = [soon(lambda: _known_key(store, message_id))] if message_id else _all_keys(store)
    with _progress() as (count, advance):
        for checked in verify(store, count(keys), unseal=unseal, at_once=at_once, progress=advance):
            verdict.add(checked)
            for difference in checked.differences:
                say(f"{difference.key}  {difference.problem}")
            for deployment in checked.to_run:
                say(f"  {_download_again(store, checked.message_key, message_id, deployment)}")
    for residue in store.orphans(older_than=older_than):
        ending = _cleared(store, residue) if clean else ""
        verdict.cleared += ending == REMOVED
        verdict.left += ending != REMOVED
        say(f"{residue.key or 'unknown place'}  {residue.what}{ending}")
    say(_summary(verdict, store.url))
    return verdict


def _cleared(store: Store, orphan: Orphan) -> str:
    try:
        store.clear(orphan)
    except StoreError as error:
        if error.retryable:
            raise
        return f", not removed: {error}"
    return REMOVED


def _download_again(store: Store, key: str, named: str | None, deployment: str | None) -> str:
    """The command that runs a message's download again, as it can be pasted; a message is fetched by its id.

    By the deployment that has recorded it: another one may store elsewhere, or take something else of the message.
    """
    deployment = deployment or DEFAULT
    if not _is_deployment(deployment):  # others may write to the store, and a person pastes what is printed
        return (
            "The manifest names a deployment that cannot be one: it was altered. Run the message's download again with "
            f"the deployment that stores into this store, with force: {key}"
        )
    if named is not None and not may_name_key(named):
        message_id = named
    else:
        try:
            message_id = store.message_id(key)
        except (NothingStored, InvalidManifest):
            return f"To run its download again, its id is needed, which only its manifest would tell: {key}"
    arguments = ("--param", f"message_id={json.dumps(message_id)}", "--param", "force=true")
    return shlex.join(("prefect", "deployment", "run", deployment, *arguments))


def _is_deployment(name: str) -> bool:
    flow, _, deployment = name.partition("/")
    parts = (flow.strip(), deployment.strip())
    return (
        len(name) <= LONGEST_NAME
        and escaped(name) == name
        and not any(character in NEVER_IN_NAMES for character in flow + deployment)
        and all(part and not part.startswith("-") for part in parts)
    )


def _all_keys(store: Store) -> Iterator[str]:
    keys = iter(store.message_keys())
    first = soon(lambda: next(keys, None))
    return keys if first is None else chain([first], keys)


def _known_key(store: Store, named: str) -> str:
    keys = candidate_keys(named)
    for key in keys:
        try:
            known = store.read_manifest(key) is not None
        except InvalidManifest:
            known = True
        if known or store.objects(key):
            return key
    raise _unknown(store, named, f"There is nothing of message {keys[0]}")


def found_manifest(store: Store, named: str) -> tuple[str, Manifest]:
    """The key of the message that a person names, and its manifest. Raises UpkeepError when there is none."""
    key, manifest = soon(lambda: store.find(named))
    if manifest is None and soon(lambda: store.objects(key)):
        raise UpkeepError(
            f"Message {key} has attachments in {store.url}, but no manifest: its run has not ended, or was "
            "interrupted. Look at the run in Prefect; a run that ends writes the manifest."
        )
    if manifest is None:
        raise _unknown(store, named, f"There is no manifest of message {key}")
    return key, manifest


def _unknown(store: Store, named: str, what: str) -> UpkeepError:
    """What to tell of a message that the store does not have: perhaps it is the wrong store, or none."""
    if told := short_key(named):
        return UpkeepError(told)
    is_used = True
    with suppress(StoreError):  # what may not be listed is told as it is
        is_used = soon(lambda: next(iter(store.message_keys()), None)) is not None
    return UpkeepError(f"{what} in {store.url}: nothing of it has been stored yet." if is_used else _empty(store.url))


def _empty(url: str) -> str:
    return f"No message is stored in {url}. If there should be: is ATTACHMENTS_URL right, is the disk mounted?"


def decrypt_message(store: Store, message_id: str, unseal: Transform, folder: Path) -> int:
    """Decrypt a message's attachments into `<folder>/<message_key>/<attachment_key>/`, and print where they are.

    A file has its name only when all of it is there and has the hash that is recorded. Returns how many there are.
    Raises StoreError, UpkeepError.
    """
    key, manifest = found_manifest(store, message_id)
    sealed = [entry for entry in manifest.attachments if entry.outcome == "stored" and entry.stored_sha256]
    for entry in sealed:
        try:
            say(str(_decrypted(store, key, entry, unseal, folder)))
        except CannotDecrypt:
            raise UpkeepError(
                f"Attachment {key}/{entry.attachment_key} cannot be decrypted: it was encrypted to other keys, or it "
                f"was cut or altered. `attachments verify {key} --identity FILE` tells which."
            ) from None
        except OSError as error:
            raise UpkeepError(f"Cannot write into {folder} ({error.strerror}).") from None
    return len(sealed)


def _decrypted(store: Store, message_key: str, entry: ManifestAttachment, unseal: Transform, folder: Path) -> Path:
    # The manifest is read from the store, where others may write: its key is not believed, and `unsealed` refuses it
    # unless it is this attachment's. What the file is called comes from its own name all the same.
    name = (entry.key or "").rpartition("/")[2].removesuffix(SUFFIX)
    target = folder / message_key / entry.attachment_key / safe_name(name)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = target.parent / f".{secrets.token_hex(8)}"
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123  # a descriptor
        try:
            unsealed(store, message_key, entry, unseal, file.write)
            file.flush()
            os.fsync(file.fileno())
            target = _renamed(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return target


def _renamed(partial: Path, target: Path) -> Path:
    """Gives a file its name, or a shorter one where its folder's file system allows no longer ones."""
    for name in shortened(target.name):
        try:
            return partial.rename(target.with_name(name))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _summary(verdict: Verdict, url: str) -> str:
    what = (
        f"{counted(verdict.objects, 'object')} of {counted(verdict.messages, 'message')}, "
        f"{counted(verdict.bytes, 'byte')}"
    )
    if not verdict.messages:
        parts = [_empty(url)]
    elif verdict.differences:
        parts = [f"Checked {what}: {counted(verdict.differences, 'differs', 'differ')}, see above."]
    else:
        parts = [f"Checked {what}: all as recorded."]
    if verdict.left:
        left = counted(verdict.left, "thing")
        parts.append(f"Writers have left {left} behind; `attachments verify --clean` removes what they left.")
    if verdict.cleared:
        parts.append(f"Removed {counted(verdict.cleared, 'thing')} that writers had left behind.")
    return " ".join(parts)


@contextmanager
def _progress() -> Iterator[tuple[Callable[[Iterable[str]], Iterator[str]], Callable[[int], None]]]:
    """A bar on the terminal: messages begun, and bytes read. Nothing where there is no terminal."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        messages = bar.add_task("messages", total=None)
        read = bar.add_task("MB read", total=None)

        def counted(keys: Iterable[str]) -> Iterator[str]:
            if console.is_terminal:  # somebody wants to know how far it is; elsewhere memory does not grow with it
                keys = list(keys)
                bar.update(messages, total=len(keys))
            for key in keys:
                yield key
                bar.advance(messages)

        yield counted, lambda size: bar.advance(read, size / 1_000_000)
