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

from attachments.cli.actions.store_access import answer_soon, empty_store, unknown_message
from attachments.foundation.numerals import counted
from attachments.foundation.terminal_text import escaped, say
from attachments.storage import Store, StoreError
from attachments.storage.backends.base import Orphan
from attachments.storage.content import Transform
from attachments.storage.errors import InvalidManifest, NothingStored
from attachments.storage.keys import candidate_keys, may_name_key
from attachments.storage.verification import Checked, verify

DEFAULT = "download-attachments/default"
LONGEST_NAME = 400
"""Characters of a deployment's name with its flow's, as a command to paste may hold it."""
NEVER_IN_NAMES = frozenset("/%&<>")
"""What Prefect allows in no name."""
REMOVED = ", removed"


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
    keys = [answer_soon(lambda: _known_key(store, message_id))] if message_id else _all_keys(store)
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
    first = answer_soon(lambda: next(keys, None))
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
    raise unknown_message(store, named, f"There is nothing of message {keys[0]}")


def _summary(verdict: Verdict, url: str) -> str:
    what = (
        f"{counted(verdict.objects, 'object')} of {counted(verdict.messages, 'message')}, "
        f"{counted(verdict.bytes, 'byte')}"
    )
    if not verdict.messages:
        parts = [empty_store(url)]
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
