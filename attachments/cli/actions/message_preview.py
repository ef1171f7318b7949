"""What a deployment would do with a message, without downloading anything.

It prints file names on purpose, but only to the caller's terminal.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from pydantic import BaseModel, ConfigDict, ValidationError

from attachments.blocks import AttachmentStore, EmailgisticsAccount
from attachments.cli.command_boundary import CommandFailed
from attachments.doctor.blocks import load_blocks
from attachments.doctor.probe import (
    PREFECT_ERRORS,
    RESPONSE_TIMEOUT,
    NoResponse,
    call_with_timeout,
    describe_error,
    prefect_client,
    request_json,
)
from attachments.domain.plan import NOT_FINAL, is_settled, real_attachments, settled_entry, why_not_final
from attachments.domain.selection import Filter, describe_errors
from attachments.emailgistics import Attachment, EmailgisticsError
from attachments.foundation.numerals import counted
from attachments.foundation.terminal_text import escaped, quoted
from attachments.prefect_api.url_path import path_part
from attachments.rate_limit.errors import PacingError
from attachments.runs.download_runs import FLOW
from attachments.storage import (
    Manifest,
    ManifestAttachment,
    Store,
    StoredObject,
    StoreError,
    attachment_key,
    message_key,
)
from attachments.storage.errors import InvalidManifest, NothingStored
from attachments.storage.keys import candidate_keys
from attachments.storage.manifest import Outcome, Pending

LIST_TIMEOUT = 150.0  # seconds for the call, which may wait a minute for a free slot

Action = Literal["take", "drop", "cannot", "stored", "purged"]
ACTION_LABELS: dict[Action, str] = {
    "take": "to take",
    "drop": "dropped by the filter",
    "cannot": "not downloadable (links and nested items)",
    "stored": "stored already",
    "purged": "purged earlier",
}


class ResolvedDeployment(BaseModel):
    """A deployment's parameters, with its blocks loaded."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    deployment: str
    filter: Filter
    account: EmailgisticsAccount
    store: AttachmentStore
    force: bool = False


class Preview(BaseModel):
    """A message's attachments, and what a run would do with each."""

    model_config = ConfigDict(frozen=True)

    message_key: str
    deployment: str
    manifest: Literal["none", "unreadable", "incomplete", "complete"]
    force: bool = False
    """Whether the deployment's runs ignore the manifest and download again."""
    nothing_to_do: bool
    """Whether the manifest leaves nothing to do for this filter, so that a run would not even list the message."""
    pending: Pending | None = None
    """Why the list is not final, so that a run would read it again; None if it is final."""
    attachments: tuple["AttachmentPreview", ...]


class AttachmentPreview(BaseModel):
    """One attachment. `size` in bytes, as listed; `rule` is the one that drops it."""

    model_config = ConfigDict(frozen=True)

    attachment_key: str
    action: Action
    name: str | None
    content_type: str | None
    size: int | None
    kind: str
    rule: str | None = None


def preview_message(message_id: str, deployment: str) -> Preview:
    """List a message, and decide on each attachment as a run of the deployment would. Raises `CommandFailed`."""
    target = _resolve_deployment(deployment.removeprefix(f"{FLOW}/"))
    named = message_id
    key = candidate_keys(named)[0]
    try:
        message_id = call_with_timeout(RESPONSE_TIMEOUT, lambda: target.store.store().message_id(named))
        key = message_key(message_id)
        recorded = call_with_timeout(RESPONSE_TIMEOUT, lambda: read_record(target.store.store(), key))
        listed = call_with_timeout(LIST_TIMEOUT, lambda: target.account.client().list_attachments(message_id))
    except NothingStored as error:  # its text names the key without a manifest
        raise CommandFailed(str(error)) from None
    except (StoreError, EmailgisticsError, PacingError) as error:
        raise CommandFailed(f"Message {key}: {error}") from None
    except NoResponse:
        raise CommandFailed(
            "Timed out: the store or Emailgistics does not respond, or all slots of the rate limit are taken. Run "
            "`attachments doctor` to see which, then try again."
        ) from None
    return build_preview(message_id, target.deployment, listed, recorded, target.filter, force=target.force)


@dataclass(frozen=True)
class StoredRecord:
    """The store's manifest and objects of a message."""

    manifest: Manifest | Literal["none", "unreadable"] = "none"
    existing: Mapping[str, StoredObject] = field(default_factory=dict)


def read_record(store: Store, key: str) -> StoredRecord:
    """The store's manifest and objects of a message. Raises `StoreError`."""
    existing = store.stored(key)
    try:
        return StoredRecord(store.read_manifest(key) or "none", existing)
    except InvalidManifest:
        return StoredRecord("unreadable", existing)


def build_preview(
    message_id: str,
    deployment: str,
    listed: Sequence[Attachment],
    recorded: StoredRecord,
    wanted: Filter,
    *,
    force: bool = False,
) -> Preview:
    """The preview, decided by `attachments.domain.plan` as in a run."""
    manifest = recorded.manifest
    known = manifest if isinstance(manifest, Manifest) else None
    state: Literal["none", "unreadable", "incomplete", "complete"]
    state = manifest if not isinstance(manifest, Manifest) else "complete" if manifest.complete else "incomplete"
    # A run that recorded a list as not final had been told of attachments.
    why = why_not_final(listed, has_attachments=known is not None and known.pending is not None)
    once = {attachment.id: attachment for attachment in real_attachments(listed, force=force)}.values()
    return Preview(
        message_key=message_key(message_id),
        deployment=deployment,
        manifest=state,
        force=force,
        nothing_to_do=is_settled(known, wanted, force=force),
        pending=None if force else why,
        attachments=tuple(
            _preview_attachment(attachment, settled_entry(attachment, wanted, known, recorded.existing, force=force))
            for attachment in once
        ),
    )


def to_lines(found: Preview) -> Iterator[str]:
    """The lines for a terminal; the file name comes last, so that it cannot be mistaken for another field."""
    force = "; force: stored attachments are downloaded again and compared" if found.force else ""
    yield f"Message {found.message_key}, as {found.deployment} sees it; manifest: {found.manifest}{force}."
    for one in found.attachments:
        size = f"{one.size:,}" if one.size is not None else "?"
        kind = one.content_type or one.kind
        rule = f"  [{quoted(one.rule)[1:-1]}]" if one.rule else ""
        yield f"{one.action:<7}{size:>14}  {quoted(kind)[1:-1]}{rule}  {quoted(one.name or '')}"
    counts = Counter(one.action for one in found.attachments)
    parts = [f"{counts[action]} {words}" for action, words in ACTION_LABELS.items() if counts[action]]
    listed = counted(len(found.attachments), "attachment")
    if parts:
        yield f"Of {listed}: {', '.join(parts)}."
    elif found.pending is None:
        yield "It has no attachments."
    if found.nothing_to_do:
        yield "A run would do nothing: all attachments that this filter selects are done, as the manifest shows."
    elif found.pending is not None:
        yield f"{NOT_FINAL[found.pending]} Run this again in a minute."


_ACTIONS: dict[Outcome, Action] = {
    "filtered": "drop",
    "unsupported": "cannot",
    "stored": "stored",
    "purged": "purged",
}


def _preview_attachment(attachment: Attachment, entry: ManifestAttachment | None) -> AttachmentPreview:
    action = _ACTIONS[entry.outcome] if entry else "take"
    return AttachmentPreview(
        attachment_key=attachment_key(attachment.id),
        action=action,
        name=attachment.name,
        content_type=attachment.content_type,
        size=attachment.size,
        kind=attachment.kind,
        rule=entry.rule if entry and action == "drop" else None,
    )


def _resolve_deployment(name: str) -> ResolvedDeployment:
    if not PREFECT_API_URL.value():
        raise CommandFailed(
            "PREFECT_API_URL is not set. Set it to your server's API, such as http://127.0.0.1:4200/api."
        )
    try:
        return call_with_timeout(RESPONSE_TIMEOUT, lambda: _read_deployment(name))
    except NoResponse:
        raise CommandFailed(f"Prefect does not answer within {RESPONSE_TIMEOUT:.0f} s. Check its server.") from None
    except PREFECT_ERRORS as error:
        raise CommandFailed(" ".join(describe_error(error))) from None


def _read_deployment(name: str) -> ResolvedDeployment:
    with prefect_client() as client:
        try:
            deployment = client.read_deployment_by_name(f"{FLOW}/{path_part(name)}")
        except ObjectNotFound:
            request_json(client, "GET", "/health")  # raises if the 404 did not come from Prefect's API
            raise CommandFailed(
                f"There is no deployment {FLOW}/{quoted(name)[1:-1]}. `prefect deployment ls` lists the existing ones; "
                "`attachments setup` creates the default one."
            ) from None
        account, store = (str(deployment.parameters.get(kind) or "default") for kind in ("account", "store"))
        accounts = load_blocks(EmailgisticsAccount, [account], client)
        stores = load_blocks(AttachmentStore, [store], client)
    problems = [one for one in (*accounts.findings, *stores.findings) if one.status == "failed"]
    if problems:
        raise CommandFailed(f"Block {problems[0].subject}: {problems[0].text} {problems[0].remedy}")
    try:
        return ResolvedDeployment(
            deployment=f"{FLOW}/{name}",
            filter=deployment.parameters.get("filter") or {},
            account=accounts.blocks[account],
            store=stores.blocks[store],
            force=deployment.parameters.get("force") or False,
        )
    except ValidationError as error:
        raise CommandFailed(
            f"The parameters of {FLOW}/{quoted(name)[1:-1]} are not valid, so its runs fail: "
            f"{escaped(describe_errors(error))}. Correct them in the Prefect UI, or in its prefect.yaml."
        ) from None
