"""Retention: what has been stored for long enough goes, and its record says so."""

import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import Field

from attachments.cancelling import RunCancelled
from attachments.storage.retention import Counts, Policy, held_keys, purge
from flows.configured import load_store
from flows.failures import OUR_ERRORS, contained, patiently

TELL = 30.0
"""Seconds between words of progress."""


@flow(name="purge-attachments", persist_result=False)
def purge_attachments(
    older_than_days: Annotated[int, Field(ge=1, le=36_500)],
    dry_run: bool = True,
    store: str = "default",
    hold: list[str] | None = None,
    forget: bool = False,
    at_once: Annotated[int, Field(ge=1, le=64)] = 8,
    per_second: Annotated[int, Field(ge=1, le=1000)] = 50,
) -> State[None]:
    """Remove attachments from a store that were stored long ago. Their manifests stay, and say that they are purged.

    Args:
        older_than_days: What was stored longer ago than so many days is due.
        dry_run: Remove nothing, and say what would be removed. Switch it off to purge.
        store: The name of the Attachment Store block.
        hold: Messages that are left alone, by id or key. So are those with a file named hold beside their manifest.
        forget: Remove the manifests too. A redelivery, backfill or reconciliation would fetch such a message again.
        at_once: Messages at a time.
        per_second: Objects that are removed in a second, at the most.
    """
    policy = Policy(
        before=datetime.now(UTC) - timedelta(days=older_than_days),
        is_real=not dry_run,
        forgets=forget,
        holds=held_keys(hold or ()),
        per_second=per_second,
    )
    try:
        with contained():
            kept = load_store(store).store()
            return _ended(purge(kept, kept.message_keys(), policy, at_once=at_once, tell=_Telling()), policy)
    except RunCancelled:
        raise Abort("The run was cancelled.") from None  # whoever cancelled it says so to Prefect
    except OUR_ERRORS as error:
        return Failed(message=f"{error} What was purged until then stays so; run it again when the cause is gone.")


class _Telling:
    """Logs now and then how far it is."""

    def __init__(self) -> None:
        self._next = time.monotonic() + TELL
        self._logger = get_run_logger()

    def __call__(self, counts: Counts) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + TELL
            self._logger.info("%s messages looked at, %s attachments due so far.", counts.messages, counts.due)


def _ended(counts: Counts, policy: Policy) -> State[None]:
    rows = _rows(counts, policy)
    patiently(
        lambda: create_table_artifact(
            key="purge",
            table=rows,
            description="What a purge has removed." if policy.is_real else "What a purge would remove (dry run).",
        )
    )
    verb = "purged" if policy.is_real else "would be purged"
    told = (
        f"{'' if policy.is_real else 'Dry run: nothing was removed. '}Of {counts.messages:,} messages "
        f"{counts.due_messages:,} have attachments that are due; {counts.purged:,} attachments {verb}, "
        f"{counts.bytes:,} bytes; {counts.held:,} on hold."
    )
    left = counts.younger + counts.strange
    if left:
        told += f" {left:,} left alone, see the table."
    failures = sum(counts.failures.values())
    if failures:
        codes = ", ".join(f"{number} {code}" for code, number in sorted(counts.failures.items()))
        return Failed(message=f"{told} {failures:,} messages failed ({codes}): run it again when the cause is gone.")
    return Completed(message=told)


def _rows(counts: Counts, policy: Policy) -> list[dict[str, Any]]:
    done = "purged" if policy.is_real else "to be purged"
    rows = {
        "messages looked at": counts.messages,
        "messages with something due": counts.due_messages,
        "attachments due": counts.due,
        f"attachments {done}": counts.purged,
        f"bytes {done}": counts.bytes,
        "attachments on hold": counts.held,
        "left alone: written later than recorded": counts.younger,
        "left alone: not what is recorded": counts.strange,
        f"records {'forgotten' if policy.is_real else 'to be forgotten'}": counts.forgotten,
        **{f"messages that failed: {code}": number for code, number in sorted(counts.failures.items())},
    }
    return [{"what": what, "count": count} for what, count in rows.items()]
