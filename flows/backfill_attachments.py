"""Stores many messages: from a list, a file, or a mailbox and time span. Repeating it does only what is missing."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from pydantic import WithJsonSchema

from attachments.domain.backfill_request import BackfillRequest, IdFile, IdList, InvalidRequest, Window, checked_order
from attachments.domain.message_ids import IdsError, read_ids
from attachments.domain.message_ids_source import BlockFolder, ids_file_opener
from attachments.domain.progress import Counts
from attachments.emailgistics import EmailgisticsClient, ReceivedMessages
from attachments.foundation.terminal_text import escaped_line
from attachments.rate_limit.priority import low_priority
from attachments.runs.artifacts import failed_state
from attachments.runs.backfill_progress import Total, progress
from attachments.runs.block_loader import load_store
from attachments.runs.continuation import Lineage
from attachments.runs.errors import OUR_ERRORS, NotConfigured, flow_boundary
from attachments.runs.fan_out import BACKFILL, DownloadDeployment, FanOutCancelled, MessageRef, run_children
from attachments.storage import StoreError

# A string, so that the message about a bare date is ours; a picker for date and time in the UI.
Moment = Annotated[str | None, WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]})]


MIN_FRACTION_READ = 0.02
"""The fraction of a time span that must be read before the total is estimated."""


@dataclass(frozen=True)
class Messages:
    """The selected messages as a stream, and how many there are, or may be."""

    stream: Iterable[MessageRef]
    total: Total
    missing: Callable[[], str] = lambda: ""
    """What is missing from the stream, as a sentence, once it has been read; nothing as a rule."""


@flow(name="backfill-attachments", persist_result=False)
def backfill_attachments(
    message_ids: list[str] | None = None,
    ids_url: str | None = None,
    ids_block: str | None = None,
    mailbox: str | None = None,
    start: Moment = None,
    end: Moment = None,
    deployment: str = BACKFILL,
    force: bool = False,
) -> State[None]:
    """Put the attachments of many messages into storage. Set one of message_ids, ids_url, and mailbox.

    Args:
        message_ids: The messages' ids. For more than some thousands use a file.
        ids_url: The URL of a file of ids, such as file:///srv/attachments-ids/ids.txt, which the worker may read, or
            s3://bucket/folder/ids.csv, in the folder of ids_block. One id a line, or CSV with a column messageId, or
            JSON lines with messageId; also packed as .gz.
        ids_block: The name of an Attachment Store block in whose folder ids_url is; its options are used to read it.
        mailbox: The address or the id of a shared mailbox; set start and end with it.
        start: Messages received from this moment on, with its zone, such as 2026-01-31T00:00:00Z.
        end: Messages received before this moment, with its zone.
        deployment: The deployment of download-attachments that does it, with its account, store and filter.
        force: Do every message again although its manifest says that it is done.
    """
    labels: dict[str, str] = {}
    try:
        with flow_boundary():
            try:
                request = checked_order(
                    message_ids=message_ids,
                    ids_url=ids_url,
                    ids_block=ids_block,
                    mailbox=mailbox,
                    start=start,
                    end=end,
                )
                lineage = Lineage.current()
                labels = lineage.labels
                return _backfill(request, DownloadDeployment.load(deployment), lineage, force=force)
            except (InvalidRequest, IdsError) as error:
                return Failed(message=escaped_line(str(error)))
            except FanOutCancelled as cancelled:
                return Cancelled(message=str(cancelled))
    except OUR_ERRORS as error:
        return failed_state(error, labels)


def _backfill(request: BackfillRequest, target: DownloadDeployment, lineage: Lineage, *, force: bool) -> State[None]:
    tag = f"{BACKFILL}:{lineage.short}"
    with (
        low_priority(),
        _messages(request, target) as messages,
        progress(lineage.run.id, messages.total, tag) as shown,
    ):

        def on_progress(counts: Counts) -> None:
            shown.show(counts)
            if counts.succeeded:
                lineage.reset_counts()

        counts = run_children(
            messages.stream,
            target,
            key_prefix=f"{BACKFILL}/{lineage.origin}",
            tags=(BACKFILL, tag),
            force=force,
            on_progress=on_progress,
        )
        shown.show(counts, is_last=True)
    return _final_state(counts, tag, messages.missing())


@contextmanager
def _messages(request: BackfillRequest, target: DownloadDeployment) -> Iterator[Messages]:
    """The selected messages. All IDs, or the mailbox, are checked before anything is done."""
    match request:
        case IdList(ids):
            yield Messages((named(id_, target) for id_ in ids), lambda _: len(ids))
        case IdFile(url, block):
            with closing(read_ids(ids_file_opener(url, _folder(block)))) as kept:
                yield Messages((named(id_, target) for id_ in kept), lambda _: len(kept))
        case Window():
            received = _Received(request, target.account.client())
            yield Messages(received, received.total, received.missing)


def named(text: str, target: DownloadDeployment) -> MessageRef:
    """The message of this ID, or of this key if the store has its manifest."""
    with suppress(StoreError):  # its own run reads the manifest again, and says what is wrong
        return MessageRef(message_id=target.store.message_id(text))
    return MessageRef(message_id=text)


def _folder(block: str | None) -> BlockFolder | None:
    """The folder of the block that contains the file of IDs."""
    if block is None:
        return None
    found = load_store(block)
    return BlockFolder(f"attachment-store/{block}", found.url, found.store())


class _Received:
    """What a mailbox received according to the report, as a stream, and an estimate of how many messages there are."""

    def __init__(self, window: Window, client: EmailgisticsClient) -> None:
        self._window = window
        self._client = client
        self._latest = window.start
        self._rows: ReceivedMessages | None = None
        name = window.mailbox
        found = [box for box in client.mailboxes() if name == box.id or name.casefold() == box.address.casefold()]
        if not found:
            raise NotConfigured(
                "The account has no such mailbox, or the API key may not see it: Emailgistics does not say which. "
                "Check the address or id in mailbox, and the mailboxes on the key's allowlist."
            )
        self._mailbox = found[0]

    def __iter__(self) -> Iterator[MessageRef]:
        window = self._window
        on_wait = get_run_logger().info
        self._rows = self._client.received_messages(self._mailbox.id, window.start, window.end, on_wait=on_wait)
        for message in self._rows:
            if message.received is not None:
                self._latest = max(self._latest, min(message.received, window.end))
            yield MessageRef(
                message_id=message.message_id,
                mailbox=self._mailbox.address or None,
                received=message.received,
                conversation_id=message.conversation_id,
            )

    def missing(self) -> str:
        """What the report did not cover, as a sentence; nothing when it was complete."""
        rows, sentences = self._rows, []
        if rows is not None and rows.covered_until < self._window.end:
            reach = rows.covered_until.isoformat(timespec="minutes")
            sentences.append(f"Emailgistics' report reaches only until {reach}.")
        if rows is not None and rows.skipped:
            sentences.append(f"{rows.skipped:,} of its rows name no message.")
        return " ".join(sentences)

    def total(self, counts: Counts) -> int | None:
        """An estimate from how much of the window has been read; None while that is too little."""
        window = self._window
        read = (self._latest - window.start) / (window.end - window.start)
        return int(counts.seen / read) if read >= MIN_FRACTION_READ else None


def _final_state(counts: Counts, tag: str, missing: str) -> State[None]:
    if counts.is_success and not missing:
        return Completed(message=f"{counts}.")
    sentences = [f"{counts}."]
    if not counts.is_success:
        sentences.append(f"The messages' own runs say why: they have the tag {tag}.")
    if missing:
        sentences.append(missing)
    when = "when the cause is gone" if not counts.is_success else "later"
    return Failed(message=" ".join([*sentences, f"Run this again {when}; it does only what is missing."]))
