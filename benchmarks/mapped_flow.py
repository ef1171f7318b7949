"""The peer of a backfill's own runs: one flow run that maps a task over all of the messages.

`python mapped_flow.py IDS AT_ONCE REPORT` writes the seconds that it took to REPORT.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from prefect import flow, task, unmapped
from prefect.task_runners import ThreadPoolTaskRunner

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.domain.plan import settled_entry
from attachments.domain.selection import Filter
from attachments.flows import download_attachments as job
from attachments.rate_limit.priority import low_priority
from attachments.runs.block_loader import load_account, load_store
from attachments.storage import message_key


@task(persist_result=False)
def fetch(message_id: str, account: EmailgisticsAccount, store: AttachmentStore) -> None:
    """One message, without a run of its own: the same steps, as plain functions."""
    message = job.Message(id=message_id, key=message_key(message_id))
    if job.read_manifest.fn(message, store) is not None:
        return
    wanted, outcomes = Filter(), []
    for attachment in job.list_attachments.fn(message, account):
        entry = settled_entry(attachment, wanted, None, {})
        downloaded = job.download_attachment.fn(attachment, message, wanted, account, store) if entry is None else None
        outcomes.append(downloaded or job.AttachmentOutcome(entry=entry))
    job.write_manifest.fn(message, outcomes, store, None)


def backfill(ids: list[str], at_once: int) -> None:
    """All of them, as tasks of one flow run."""

    @flow(name="mapped-backfill", persist_result=False, task_runner=ThreadPoolTaskRunner(max_workers=at_once))
    def mapped() -> None:
        account, store = load_account("default"), load_store("default")
        with low_priority():
            fetch.map(ids, unmapped(account), unmapped(store)).wait()

    mapped()


if __name__ == "__main__":
    ids = Path(sys.argv[1]).read_text().split()
    started = time.monotonic()
    backfill(ids, int(sys.argv[2]))
    Path(sys.argv[3]).write_text(str(time.monotonic() - started))
