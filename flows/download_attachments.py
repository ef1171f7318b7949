"""One message: list → select → download → manifest → event. A run again, however often, does only what is missing."""

import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from prefect import flow, runtime, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.domain.plan import (
    is_settled,
    named,
    new_entry,
    settled_entry,
    stored_entry,
    unwanted_entry,
    why_not_final,
    without_placeholders,
)
from attachments.domain.selection import Filter
from attachments.emailgistics import Attachment
from attachments.emailgistics.errors import InvalidArgument, NotFound
from attachments.foundation import cancellation
from attachments.foundation.cancellation import RunCancelled
from attachments.foundation.message_id import mistake_in, normalized
from attachments.rate_limit.priority import is_low_priority, low_priority
from attachments.runs.artifacts import Report, already_stored, announce_stored, failed_state, finish
from attachments.runs.block_loader import load_account, load_store
from attachments.runs.errors import (
    FRESH_PAUSES,
    OUR_ERRORS,
    RETRYING,
    error_boundary,
    error_code,
    is_retryable,
    is_transient,
    is_transient_or_fresh,
    retry_until_available,
)
from attachments.storage import (
    Manifest,
    ManifestAttachment,
    attachment_key,
    message_key,
    safe_name,
)
from attachments.storage.errors import InvalidManifest, NothingStored
from attachments.storage.keys import candidate_keys, may_name_key
from attachments.storage.manifest import Pending
from attachments.storage.store import short_key

DOWNLOADS_AT_ONCE = 4
BACKFILL = "backfill"
"""The tag of runs that let live mail go first."""


def _readable(received: object) -> object:
    """What an event says may be no date at all; that is no reason to leave the attachments where they are."""
    try:
        return _moment.validate_python(received or None)
    except (ValidationError, OverflowError):
        return None


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment and (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


_moment: TypeAdapter[datetime | None] = TypeAdapter(Annotated[datetime | None, AfterValidator(_in_utc)])
Received = Annotated[datetime | None, BeforeValidator(_readable)]


class Message(BaseModel):
    """The message that a run is about, and what is known of it from the webhook."""

    model_config = ConfigDict(frozen=True)

    id: str
    key: str
    mailbox: str | None = None
    received: datetime | None = None
    conversation_id: str | None = None
    has_attachments: bool | None = None


class Outcome(BaseModel):
    """What became of one attachment in this run; `seconds` is how long its download took."""

    model_config = ConfigDict(frozen=True)

    entry: ManifestAttachment
    seconds: float | None = None
    error: str | None = None
    retryable: bool = False


@task(name="read-manifest", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=is_transient, **RETRYING)
def read_manifest(message: Message, store: AttachmentStore) -> Manifest | None:
    """What is recorded of the message; nothing when the record is missing or damaged, for then it is rebuilt."""
    with error_boundary():
        try:
            return store.store().read_manifest(message.key)
        except InvalidManifest:
            return None


@task(
    name="list-attachments",
    cache_policy=NO_CACHE,
    persist_result=False,
    retry_condition_fn=is_transient_or_fresh,
    **RETRYING,
)
def list_attachments(message: Message, account: EmailgisticsAccount) -> tuple[Attachment, ...]:
    """What is on the message, in the vendor's order, each id once."""
    with error_boundary():
        listed = account.client().list_attachments(message.id)
        return tuple({attachment.id: attachment for attachment in listed}.values())


@task(
    name="download-attachment",
    cache_policy=NO_CACHE,
    persist_result=False,
    retry_condition_fn=is_transient_or_fresh,
    **RETRYING,
)
def download_attachment(
    attachment: Attachment, message: Message, wanted: Filter, account: EmailgisticsAccount, store: AttachmentStore
) -> Outcome:
    """Stream one attachment into the store: all of it or nothing.

    One without a name in the list gets that of its download; if the filter then leaves it out, no byte of it is read.
    """
    started = time.monotonic()
    with (
        error_boundary(),
        account.client().download(message.id, attachment.id, listed_size=attachment.size) as download,
    ):
        attachment = named(attachment, download.file_name)
        if unwanted := unwanted_entry(attachment, wanted):
            return Outcome(entry=unwanted)
        stored = store.store().write(
            message.key,
            attachment_key(attachment.id),
            safe_name(attachment.name),
            download,
            content_type=attachment.content_type,
        )
    return Outcome(entry=stored_entry(attachment, stored), seconds=time.monotonic() - started)


@task(name="write-manifest", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=is_transient, **RETRYING)
def write_manifest(
    message: Message,
    outcomes: Sequence[Outcome],
    store: AttachmentStore,
    deployment: str | None,
    pending: str | None = None,
) -> Manifest:
    """Record what was on the message and what became of each part, beside what other runs have recorded."""
    with error_boundary():
        found = Manifest(
            message_id=message.id,
            message_key=message.key,
            mailbox=message.mailbox,
            received=message.received,
            conversation_id=message.conversation_id,
            deployment=deployment,
            flow_run_id=runtime.flow_run.id,
            updated=datetime.now(UTC),
            announced=(),
            pending=pending,
            encryption="age" if store.store().encrypts else "none",
            attachments=tuple(outcome.entry for outcome in outcomes),
        )
        return store.store().update_manifest(message.key, lambda known: known.merged_with(found) if known else found)


@task(
    name="record-announcement",
    cache_policy=NO_CACHE,
    persist_result=False,
    retry_condition_fn=is_transient,
    **RETRYING,
)
def record_announcement(manifest: Manifest, announcement: UUID, store: AttachmentStore) -> None:
    """Record that Prefect has the event, so that no later run sends it again."""

    def announced(now: Manifest | None) -> Manifest:
        if now is None:
            raise InvalidManifest(
                f"the manifest of message {manifest.message_key} was removed or damaged while its run was under way; "
                "run its download again to rebuild it",
                key=manifest.message_key,
            )
        return now.as_announced(announcement)

    with error_boundary():
        store.store().update_manifest(manifest.message_key, announced)


@flow(
    name="download-attachments",
    task_runner=ThreadPoolTaskRunner(max_workers=DOWNLOADS_AT_ONCE),  # type: ignore[arg-type]  # generic in its future
    persist_result=False,
)
def download_attachments(
    message_id: str,
    mailbox: str | None = None,
    received: Received = None,
    conversation_id: str | None = None,
    has_attachments: bool | None = None,
    filter: Filter | None = None,  # noqa: A002  the name that users know it by
    account: str = "default",
    store: str = "default",
    force: bool = False,
) -> State[None]:
    """Put the attachments of one message into storage: complete, checksummed, once.

    Args:
        message_id: The message's id: a webhook's id, or a report's messageId. Where the store has its manifest, its
            key of 32 hex digits does as well.
        mailbox: The shared mailbox's address; recorded in the manifest.
        received: When the message came in; recorded in the manifest.
        conversation_id: The conversation it belongs to; recorded in the manifest.
        has_attachments: Whether the webhook named attachments; if so, an empty list is read again, now and later.
        filter: Which attachments to take; all when left out.
        account: The name of the Emailgistics Account block.
        store: The name of the Attachment Store block.
        force: Do it again although the manifest says that it is done. What stands is compared, never overwritten.
    """
    message = Message(
        id=normalized(message_id),
        key=message_key(message_id),
        mailbox=mailbox,
        received=received,
        conversation_id=conversation_id,
        has_attachments=has_attachments,
    )
    try:
        if (mistake := mistake_in(message.id)) is not None:
            raise InvalidArgument(f"message_id is no message id: {mistake}. Copy the whole id")
        with error_boundary(), low_priority() if BACKFILL in runtime.flow_run.tags else nullcontext():
            return _download(message, filter or Filter(), load_account(account), load_store(store), force=force)
    except RunCancelled:
        raise Abort("The run was cancelled.") from None  # whoever cancelled it says so to Prefect
    except OUR_ERRORS as error:
        if isinstance(error, NotFound) and may_name_key(message_id):
            key = candidate_keys(message_id)[0]
            error = NothingStored(
                short_key(message_id)
                or f"{key} looks like a message key, but the store has no manifest of it that tells the message's id, "
                "and Emailgistics knows no such id; give the id itself"
            )
        return failed_state(error)


def identified(message: Message, store: AttachmentStore) -> Message:
    """The message with its id, where the run names it by its key."""
    with suppress(NothingStored):  # then it may be an id that looks like a key
        message_id = store.store().message_id(message.id)
        return message.model_copy(update={"id": message_id, "key": message_key(message_id)})
    return message


def _download(
    message: Message, wanted: Filter, account: EmailgisticsAccount, store: AttachmentStore, *, force: bool
) -> State[None]:
    message = identified(message, store)
    known = None if force else read_manifest(message, store)
    if known is not None and is_settled(known, wanted, has_attachments=message.has_attachments):
        _announce(known, store, look_first=True)
        return already_stored(known)
    if known is not None and known.pending is not None:
        message = message.model_copy(update={"has_attachments": True})  # whoever recorded it knew of some

    listed, not_final = _final_list(message, account, force=force)
    existing = {} if force else store.store().stored(message.key)
    decided = [settled_entry(attachment, wanted, known, existing, force=force) for attachment in listed]
    missing = [attachment for attachment, entry in zip(listed, decided, strict=True) if entry is None]

    shared = map(unmapped, (message, wanted, account, store))
    downloads = download_attachment.map(missing, *shared)
    fetched = iter([_outcome(*pair) for pair in zip(missing, downloads, strict=True)])
    outcomes = [Outcome(entry=entry) if entry is not None else next(fetched) for entry in decided]

    manifest = write_manifest(message, outcomes, store, _deployment(), not_final)
    # An earlier run, whose manifest may be lost since, or this one before its worker died, may have sent it.
    may_be_sent = force or known is not None or bool(existing) or runtime.flow_run.run_count > 1
    _announce(manifest, store, look_first=may_be_sent)
    return finish(Report(message_key=message.key, outcomes=outcomes, pending=not_final))


def _announce(manifest: Manifest, store: AttachmentStore, *, look_first: bool) -> None:
    """Send the event of what is stored unless Prefect has it. A run that died before it leaves that to the next one."""
    if manifest.is_announced or (announcement := manifest.announcement) is None:
        return
    url = store.store().manifest_url(manifest.message_key)
    if announce_stored(manifest, url, announcement, look_first=look_first):
        record_announcement(manifest, announcement, store)


def _final_list(
    message: Message, account: EmailgisticsAccount, *, force: bool
) -> tuple[Sequence[Attachment], Pending | None]:
    """What is on the message, and why that may not be all. A list that is not final is read again for half a minute.

    Not in a backfill, whose mail is old; and with `force` it is taken as it is in the end.
    """
    pauses = iter(() if is_low_priority() else FRESH_PAUSES)
    while True:
        listed = list_attachments(message, account)
        why = why_not_final(listed, has_attachments=message.has_attachments)
        pause = next(pauses, None)
        if why is None or pause is None:
            return without_placeholders(listed, force=force), None if force else why
        cancellation.sleep(pause)


def _outcome(attachment: Attachment, download: PrefectFuture[Outcome]) -> Outcome:
    """What became of a download. One attachment's failure is recorded, and is not its neighbours'."""
    result = download.result(raise_on_failure=False)
    if isinstance(result, Outcome):
        return result
    if isinstance(result, RunCancelled):
        raise result
    return Outcome(
        entry=new_entry(attachment, outcome="failed", code=error_code(result)),
        error=str(result),
        retryable=is_retryable(result),
    )


def _deployment() -> str | None:
    name = retry_until_available(lambda: runtime.deployment.name)
    return f"{runtime.flow_run.flow_name}/{name}" if name else None
