"""Retention: remove attachments that have been stored for long enough, and keep their records. A new run continues."""

from collections import Counter
from datetime import timedelta
from typing import Annotated, Any

import httpx
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import Field

from attachments.foundation.numerals import counted
from attachments.runs.artifacts import failed_state
from attachments.runs.block_loader import load_store
from attachments.runs.delayed_retry import failed_for_now
from attachments.runs.errors import OUR_ERRORS, flow_boundary
from attachments.storage.retention import (
    Budget,
    Holds,
    PurgePolicy,
    PurgeRate,
    PurgeResult,
    PurgeTally,
    purge,
    retention_cutoff,
)

MAX_LISTED = 1000
"""Attachments that an artifact lists by key; all are counted."""
MAX_LOG_LINES = 50
"""Log lines of each kind; all are counted."""

Days = Annotated[int, Field(ge=1, le=36_500)]
AtOnce = Annotated[int, Field(ge=1, le=32)]
PerSecond = Annotated[int, Field(ge=1, le=1000)]
Most = Annotated[int, Field(ge=1)]


@flow(name="purge-attachments", persist_result=False)
def purge_attachments(
    older_than_days: Days,
    store: str = "default",
    dry_run: bool = True,
    hold: list[str] | None = None,
    forget: bool = False,
    at_once: AtOnce = 8,
    per_second: PerSecond = 100,
    most: Most | None = None,
) -> State[None]:
    """Remove attachments that have been stored for long enough, and record when they were removed.

    A message with a file named `hold` beside its manifest is left alone.

    Args:
        older_than_days: Remove attachments stored for more than so many days.
        store: The name of the Attachment Store block.
        dry_run: Only report what would be removed. Switch it off to remove.
        hold: Messages to leave alone: their ids, their keys of 32 digits, or where they are stored.
        forget: Also remove a message's record once all its attachments are removed. Without its record, a message is
        fetched again when it is redelivered, backfilled or reconciled.
        at_once: How many messages to process at a time.
        per_second: How many messages to start per second, at most.
        most: How many attachments to remove in this run, at most; all if left out.
    """
    try:
        with flow_boundary():
            where = load_store(store).store()
            policy = PurgePolicy(
                stored_before=retention_cutoff(timedelta(days=older_than_days), where),
                dry_run=dry_run,
                forget=forget,
                holds=Holds(hold or ()),
            )
            log = _Log(policy)
            pace = PurgeRate(concurrency=at_once, per_second=per_second)
            tally = purge(where, policy, Budget(most), pace, on_message=log.message, on_progress=log.progress)
            _show(tally, policy)
            log.show()
            return _finish(tally, policy)
    except OUR_ERRORS as error:
        return failed_state(error)


class _Log:
    """Logs problems by key, and the run's progress."""

    def __init__(self, policy: PurgePolicy) -> None:
        self._policy = policy
        self._lines: Counter[str] = Counter()
        self._listed: list[dict[str, Any]] = []

    def message(self, looked: PurgeResult) -> None:
        for gone in looked.gone:
            self._list(gone.place, gone.bytes, f"{gone.stored_at:%Y-%m-%d}" if gone.stored_at else "")
        if looked.manifest_removed:
            self._list(f"{looked.message_key}/manifest.json")
        for place in looked.misplaced:
            self._warn(
                "refused", "Attachment %s was left alone: its manifest entry has another attachment's path.", place
            )
        if looked.failure is not None:
            self._warn("failed", "%s", str(looked.failure))

    def progress(self, tally: PurgeTally) -> None:
        get_run_logger().info("So far: %s.", _counts(tally, self._policy))

    def show(self) -> None:
        """Publish the list of removed attachments, by key. File names stay in the manifests."""
        if self._listed:
            what = "What would be removed" if self._policy.dry_run else "What was removed"
            more = f": the first {MAX_LISTED:,}" if len(self._listed) == MAX_LISTED else ""
            _make_table("purge-list", f"{what}, by key{more}", self._listed)

    def _list(self, key: str, size: int | None = None, stored: str = "") -> None:
        if len(self._listed) < MAX_LISTED:
            self._listed.append({"key": key, "bytes": size, "stored": stored})

    def _warn(self, kind: str, text: str, value: str) -> None:
        self._lines[kind] += 1
        if self._lines[kind] <= MAX_LOG_LINES:
            get_run_logger().warning(text, value)
        if self._lines[kind] == MAX_LOG_LINES:
            get_run_logger().warning('Further messages of the kind "%s" are counted, but no longer logged.', kind)


def _finish(tally: PurgeTally, policy: PurgePolicy) -> State[None]:
    parts = [f"{_counts(tally, policy)}."]
    if not tally.messages and not tally.failed:
        parts = ["The store has no messages. If it should, check its URL, and that its disk is mounted."]
    if policy.dry_run:
        parts.insert(0, "Dry run: nothing was removed.")
        if tally.purged or tally.forgotten:
            parts.append("The artifact purge-list lists what would be removed.")
    if tally.is_spent:
        parts.append("Stopped at the limit for one run (`most`): run it again for what is left, if anything is.")
    if policy.holds.unmatched_count and tally.is_spent:
        unmet = counted(policy.holds.unmatched_count, "of the messages to hold was", "of the messages to hold were")
        parts.append(f"{unmet} not found so far: a dry run without `most` shows whether all of them are in the store.")
    elif policy.holds.unmatched_count and not tally.gave_up:
        unmet = counted(policy.holds.unmatched_count, "of the messages to hold is", "of the messages to hold are")
        parts.append(f"{unmet} not in the store: check for typing mistakes.")
    if tally.refused:
        refused = counted(tally.refused, "attachment was", "attachments were")
        parts.append(
            f"{refused} refused, because the manifest has another attachment's path, so it was altered. The log has "
            "the keys; `attachments verify` lists all differences."
        )
    failed = tally.failed.total()
    if not failed and not tally.refused:
        return Completed(message=" ".join(parts))
    if failed:
        codes = ", ".join(f"{count} {code}" for code, count in tally.failed.most_common())
        parts.append(f"{failed} failed ({codes}). First failure: {tally.first}.")
    if tally.gave_up:
        parts.append("The rest was left for another run, because it would have failed too.")
    if tally.permanent_failures or tally.refused:
        return Failed(message=f"{' '.join(parts)} Correct the cause, and run it again.")
    return failed_for_now(" ".join(parts))


def _counts(tally: PurgeTally, policy: PurgePolicy) -> str:
    was, were = ("would be",) * 2 if policy.dry_run else ("was", "were")
    text = (
        f"Of {counted(tally.messages, 'message')} {tally.purged_messages:,} had attachments to purge: {tally.purged:,} "
        f"of {counted(tally.due, 'that is due', 'that are due')} {was if tally.purged == 1 else were} removed, "
        f"{counted(tally.bytes, 'byte')}"
    )
    more = {
        ("message is on hold", "messages are on hold"): tally.held,
        (
            "attachment is younger in the store than in its manifest, and stays",
            "attachments are younger in the store than in their manifests, and stay",
        ): tally.younger,
        (
            "object that no manifest records was left alone",
            "objects that no manifest records were left alone",
        ): tally.unrecorded,
        (f"record {was} removed", f"records {were} removed"): tally.forgotten,
    }
    return "; ".join([text, *(counted(count, *words) for words, count in more.items() if count)])


def _show(tally: PurgeTally, policy: PurgePolicy) -> None:
    """Publish the counts in the UI."""
    would = " (would be)" if policy.dry_run else ""
    rows = {
        "messages checked": tally.messages,
        "attachments due": tally.due,
        f"attachments removed{would}": tally.purged,
        f"bytes removed{would}": tally.bytes,
        f"records removed{would}": tally.forgotten,
        "messages on hold": tally.held,
        "attachments younger in the store": tally.younger,
        "attachments refused": tally.refused,
        "objects that no manifest records": tally.unrecorded,
        **{f"messages failed: {code}": count for code, count in tally.failed.most_common()},
    }
    table = [{"what": what, "count": count} for what, count in rows.items()]
    _make_table("purge", f"Stored before {policy.stored_before:%Y-%m-%d %H:%M} UTC", table)


def _make_table(key: str, description: str, table: list[dict[str, Any]]) -> None:
    """Publish an artifact. A failure is only logged, because the work itself is done."""
    try:
        create_table_artifact(key=key, description=description, table=table)
    except httpx.HTTPError as error:
        get_run_logger().warning("Prefect did not store the artifact %s of this run (%s).", key, type(error).__name__)
