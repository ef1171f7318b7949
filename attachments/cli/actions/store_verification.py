"""Compares the stored objects with what their manifests record, and prints what differs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from attachments.cli.actions.store_access import call_store, empty_store_message, unknown_message_error
from attachments.foundation.numerals import counted
from attachments.foundation.terminal_text import escaped, say
from attachments.storage import Store, StoreError
from attachments.storage.backends.base import Orphan
from attachments.storage.content import Transform
from attachments.storage.errors import InvalidManifest, NothingStored
from attachments.storage.keys import candidate_keys, may_name_key
from attachments.storage.verification import VerificationResult, verify

DEFAULT = "download-attachments/default"
MAX_NAME_LENGTH = 400
"""Maximum length of `flow/deployment` in a printed command."""
FORBIDDEN_IN_NAMES = frozenset("/%&<>")
"""Characters that Prefect does not allow in names."""
REMOVED = ", removed"


@dataclass
class VerificationSummary:
    """The totals of a verification."""

    messages: int = 0
    objects: int = 0
    bytes: int = 0
    differences: int = 0
    left: int = 0
    cleared: int = 0

    def add(self, checked: VerificationResult) -> None:
        """Add the result for one message."""
        self.messages += 1
        self.objects += checked.objects
        self.bytes += checked.bytes
        self.differences += len(checked.differences)


def verify_store(
    store: Store, message_id: str | None, *, unseal: Transform | None, at_once: int, clean: bool, older_than: timedelta
) -> VerificationSummary:
    """Compare the stored objects with their manifests, and print the differences and a summary.

    With `clean`, remove leftovers of crashed writers older than `older_than`. Raises StoreError.
    """
    verdict = VerificationSummary()
    keys = [call_store(lambda: _known_key(store, message_id))] if message_id else _all_keys(store)
    with _progress() as (count, advance):
        for checked in verify(store, count(keys), unseal=unseal, at_once=at_once, progress=advance):
            verdict.add(checked)
            for difference in checked.differences:
                say(f"{difference.key}  {difference.problem}")
            for deployment in checked.deployments_to_run:
                say(f"  {_download_command(store, checked.message_key, message_id, deployment)}")
    for residue in store.orphans(older_than=older_than):
        ending = _clear_orphan(store, residue) if clean else ""
        verdict.cleared += ending == REMOVED
        verdict.left += ending != REMOVED
        say(f"{residue.key or 'unknown place'}  {residue.what}{ending}")
    say(_summary(verdict, store.url))
    return verdict


def _clear_orphan(store: Store, orphan: Orphan) -> str:
    try:
        store.clear(orphan)
    except StoreError as error:
        if error.retryable:
            raise
        return f", not removed: {error}"
    return REMOVED


def _download_command(store: Store, key: str, named: str | None, deployment: str | None) -> str:
    """The command that runs a message's download again, ready to be pasted.

    With the deployment that recorded it, because another one may have another store or filter.
    """
    deployment = deployment or DEFAULT
    if not _is_deployment(deployment):  # others may write to the store, and a person may paste this
        return (
            "The manifest names an impossible deployment, so it was altered. Run the message's "
            "download again with the deployment that uses this store, with force: {key}"
        )
    if named is not None and not may_name_key(named):
        message_id = named
    else:
        try:
            message_id = store.message_id(key)
        except (NothingStored, InvalidManifest):
            return f"Running its download again needs the message's id, which only the missing manifest has: {key}"
    arguments = ("--param", f"message_id={json.dumps(message_id)}", "--param", "force=true")
    return shlex.join(("prefect", "deployment", "run", deployment, *arguments))


def _is_deployment(name: str) -> bool:
    flow, _, deployment = name.partition("/")
    parts = (flow.strip(), deployment.strip())
    return (
        len(name) <= MAX_NAME_LENGTH
        and escaped(name) == name
        and not any(character in FORBIDDEN_IN_NAMES for character in flow + deployment)
        and all(part and not part.startswith("-") for part in parts)
    )


def _all_keys(store: Store) -> Iterator[str]:
    keys = iter(store.message_keys())
    first = call_store(lambda: next(keys, None))
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
    raise unknown_message_error(store, named, f"There is nothing of message {keys[0]}")


def _summary(verdict: VerificationSummary, url: str) -> str:
    what = (
        f"{counted(verdict.objects, 'object')} of {counted(verdict.messages, 'message')}, "
        f"{counted(verdict.bytes, 'byte')}"
    )
    if not verdict.messages:
        parts = [empty_store_message(url)]
    elif verdict.differences:
        parts = [f"Checked {what}: {counted(verdict.differences, 'differs', 'differ')}, see above."]
    else:
        parts = [f"Checked {what}: all as recorded."]
    if verdict.left:
        left = counted(verdict.left, "thing")
        parts.append(f"Crashed writers left {left} behind; `attachments verify --clean` removes the leftovers.")
    if verdict.cleared:
        parts.append(f"Removed {counted(verdict.cleared, 'leftover')} of crashed writers.")
    return " ".join(parts)


@contextmanager
def _progress() -> Iterator[tuple[Callable[[Iterable[str]], Iterator[str]], Callable[[int], None]]]:
    """A progress bar on the terminal: messages and bytes read. Without a terminal, it shows nothing."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        messages = bar.add_task("messages", total=None)
        read = bar.add_task("MB read", total=None)

        def counted(keys: Iterable[str]) -> Iterator[str]:
            if console.is_terminal:  # the total is needed only there; otherwise memory must not grow with it
                keys = list(keys)
                bar.update(messages, total=len(keys))
            for key in keys:
                yield key
                bar.advance(messages)

        yield counted, lambda size: bar.advance(read, size / 1_000_000)
