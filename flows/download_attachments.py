"""One message: list → select → download → manifest → event. A repeated run fetches only what is missing."""

import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from prefect import flow, runtime, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.domain.plan import (
    is_settled,
    new_entry,
    real_attachments,
    settled_entry,
    stored_entry,
    unwanted_entry,
    why_not_final,
    with_download_name,
)
from attachments.domain.selection import Filter
from attachments.emailgistics import Attachment
from attachments.emailgistics.errors import InvalidArgument, NotFound
from attachments.foundation import cancellation
from attachments.foundation.cancellation import RunCancelled
from attachments.foundation.message_id import mistake_in, normalized
from attachments.foundation.timestamps import in_utc
from attachments.rate_limit.priority import is_low_priority, low_priority
from attachments.runs.artifacts import MessageResult, announce_stored, failed_state, finish, nothing_to_do_state
from attachments.runs.block_loader import load_account, load_store
from attachments.runs.errors import (
    FRESH_PAUSES,
    OUR_ERRORS,
    RETRYING,
    error_boundary,
    error_code,
    flow_boundary,
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
from attachments.storage.store import short_key_hint

MAX_CONCURRENT_DOWNLOADS = 4
BACKFILL = "backfill"
"""The tag of low-priority runs, which let live mail go first."""


def _parse_or_none(received: object) -> object:
    """An unreadable date in an event becomes None, so that it does not stop the download."""
    try:
        return _datetime_adapter.validate_python(received or None)
    except (ValidationError, OverflowError):
        return None


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment and in_utc(moment)


_datetime_adapter: TypeAdapter[datetime | None] = TypeAdapter(Annotated[datetime | None, AfterValidator(_in_utc)])
ReceivedTime = Annotated[datetime | None, BeforeValidator(_parse_or_none)]


class Message(BaseModel):
    """A run's message, with the webhook's information about it."""

    model_config = ConfigDict(frozen=True)

    id: str
    key: str
    mailbox: str | None = None
    received: datetime | None = None
    conversation_id: str | None = None
    has_attachments: bool | None = None


class AttachmentOutcome(BaseModel):
    """The outcome of one attachment in this run; `seconds` is how long its download took."""

    model_config = ConfigDict(frozen=True)

    entry: ManifestAttachment
    seconds: float | None = None
    error: str | None = None
    retryable: bool = False


@task(name="read-manifest", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=is_transient, **RETRYING)
def read_manifest(message: Message, store: AttachmentStore) -> Manifest | None:
    """The message's manifest; None if it is missing or damaged, because it is then rebuilt."""
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
    """The message's attachments, in the vendor's order, each id once."""
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
) -> AttachmentOutcome:
    """Stream one attachment into the store: all of it or nothing.

    An attachment without a listed name gets that of its download; if the filter then drops it, no byte of it is read.
    """
    started = time.monotonic()
    with (
        error_boundary(),
        account.client().download(message.id, attachment.id, listed_size=attachment.size) as download,
    ):
        attachment = with_download_name(attachment, download.file_name)
        if unwanted := unwanted_entry(attachment, wanted):
            return AttachmentOutcome(entry=unwanted)
        stored = store.store().write(
            message.key,
            attachment_key(attachment.id),
            safe_name(attachment.name),
            download,
            content_type=attachment.content_type,
        )
    return AttachmentOutcome(entry=stored_entry(attachment, stored), seconds=time.monotonic() - started)


@task(name="write-manifest", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=is_transient, **RETRYING)
def write_manifest(
    message: Message,
    outcomes: Sequence[AttachmentOutcome],
    store: AttachmentStore,
    deployment: str | None,
    pending: str | None = None,
) -> Manifest:
    """Merge this run's attachments and outcomes into the manifest."""
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
                f"the manifest of message {manifest.message_key} was removed or damaged during the run; "
                "run its download again to rebuild it",
                key=manifest.message_key,
            )
        return now.as_announced(announcement)

    with error_boundary():
        store.store().update_manifest(manifest.message_key, announced)


@flow(
    name="download-attachments",
    task_runner=ThreadPoolTaskRunner(max_workers=MAX_CONCURRENT_DOWNLOADS),  # type: ignore[arg-type]  # generic in its future
    persist_result=False,
)
def download_attachments(
    message_id: str,
    mailbox: str | None = None,
    received: ReceivedTime = None,
    conversation_id: str | None = None,
    has_attachments: bool | None = None,
    filter: Filter | None = None,  # noqa: A002  the name that users know it by
    account: str = "default",
    store: str = "default",
    force: bool = False,
) -> State[None]:
    """Put the attachments of one message into storage: complete, checksummed, once.

    Args:
        message_id: The message's id: a webhook's id, or a report's messageId. Its key of 32 hex digits also works if
        the store has its manifest.
        mailbox: The shared mailbox's address; recorded in the manifest.
        received: When the message was received; recorded in the manifest.
        conversation_id: The conversation it belongs to; recorded in the manifest.
        has_attachments: Whether the webhook reported attachments; if so, an empty list is read again, now and later.
        filter: Which attachments to download; all if left out.
        account: The name of the Emailgistics Account block.
        store: The name of the Attachment Store block.
        force: Download again even if the manifest says that it is done. Existing files are compared, never overwritten.
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
            raise InvalidArgument(f"message_id is not a message id: {mistake}. Copy the whole id")
        with flow_boundary(), low_priority() if BACKFILL in runtime.flow_run.tags else nullcontext():
            return _process_message(message, filter or Filter(), load_account(account), load_store(store), force=force)
    except OUR_ERRORS as error:
        if isinstance(error, NotFound) and may_name_key(message_id):
            key = candidate_keys(message_id)[0]
            error = NothingStored(
                short_key_hint(message_id)
                or (
                    f"{key} looks like a message key, but the store has no manifest with the message's "
                    "id, and Emailgistics does not have such an id; give the id itself"
                )
            )
        return failed_state(error)


def resolve_message(message: Message, store: AttachmentStore) -> Message:
    """The message with its id, if the run was given its key."""
    with suppress(NothingStored):  # it may be an id that looks like a key
        message_id = store.store().message_id(message.id)
        return message.model_copy(update={"id": message_id, "key": message_key(message_id)})
    return message


def _process_message(
    message: Message, wanted: Filter, account: EmailgisticsAccount, store: AttachmentStore, *, force: bool
) -> State[None]:
    message = resolve_message(message, store)
    recorded = None if force else read_manifest(message, store)
    if recorded is not None and is_settled(recorded, wanted, has_attachments=message.has_attachments):
        _announce(recorded, store, look_first=True)
        return nothing_to_do_state(recorded)
    if recorded is not None and recorded.pending is not None:
        message = message.model_copy(
            update={"has_attachments": True}
        )  # the run that recorded it had been told of attachments

    listed, not_final = _list_until_final(message, account, force=force)
    existing = {} if force else store.store().stored(message.key)
    settled = [settled_entry(attachment, wanted, recorded, existing, force=force) for attachment in listed]
    missing = [attachment for attachment, entry in zip(listed, settled, strict=True) if entry is None]

    shared = map(unmapped, (message, wanted, account, store))
    downloads = download_attachment.map(missing, *shared)
    fetched = iter([_collect_outcome(*pair) for pair in zip(missing, downloads, strict=True)])
    outcomes = [AttachmentOutcome(entry=entry) if entry is not None else next(fetched) for entry in settled]

    manifest = write_manifest(message, outcomes, store, _deployment_name(), not_final)
    # An earlier run whose manifest was lost, or this run before its worker died, may have sent the event.
    may_be_sent = force or recorded is not None or bool(existing) or runtime.flow_run.run_count > 1
    _announce(manifest, store, look_first=may_be_sent)
    return finish(MessageResult(message_key=message.key, outcomes=outcomes, pending=not_final))


def _announce(manifest: Manifest, store: AttachmentStore, *, look_first: bool) -> None:
    """Send the event about the stored attachments, unless Prefect has it. If a run dies before this, the next one sends
    it."""
    if manifest.is_announced or (announcement := manifest.announcement) is None:
        return
    url = store.store().manifest_url(manifest.message_key)
    if announce_stored(manifest, url, announcement, look_first=look_first):
        record_announcement(manifest, announcement, store)


def _list_until_final(
    message: Message, account: EmailgisticsAccount, *, force: bool
) -> tuple[Sequence[Attachment], Pending | None]:
    """The attachments, and why the list is not final, or None. A list that is not final is read again for half a
    minute.

    A backfill does not wait, because its mail is old. With `force`, the last list is accepted as final.
    """
    pauses = iter(() if is_low_priority() else FRESH_PAUSES)
    while True:
        listed = list_attachments(message, account)
        why = why_not_final(listed, has_attachments=message.has_attachments)
        pause = next(pauses, None)
        if why is None or pause is None:
            return real_attachments(listed, force=force), None if force else why
        cancellation.sleep(pause)


def _collect_outcome(attachment: Attachment, download: PrefectFuture[AttachmentOutcome]) -> AttachmentOutcome:
    """The outcome of one download. A failure is recorded and does not affect the other attachments."""
    result = download.result(raise_on_failure=False)
    if isinstance(result, AttachmentOutcome):
        return result
    if isinstance(result, RunCancelled):
        raise result
    return AttachmentOutcome(
        entry=new_entry(attachment, outcome="failed", code=error_code(result)),
        error=str(result),
        retryable=is_retryable(result),
    )


def _deployment_name() -> str | None:
    name = retry_until_available(lambda: runtime.deployment.name)
    return f"{runtime.flow_run.flow_name}/{name}" if name else None
