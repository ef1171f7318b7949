"""What a deployment would do with a message, without downloading anything.

It contains file names: it is shown to the person at the terminal, and goes nowhere else.
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
    PATIENCE,
    PREFECT_ERRORS,
    NoResponse,
    asked,
    call_with_timeout,
    describe_error,
    prefect,
)
from attachments.domain.plan import NOT_FINAL, is_settled, settled_entry, why_not_final, without_placeholders
from attachments.domain.selection import Filter, problem
from attachments.emailgistics import Attachment, EmailgisticsError
from attachments.foundation.numerals import counted
from attachments.foundation.terminal_text import escaped, printable
from attachments.prefect_api.url_path import path_part
from attachments.rate_limit.errors import PacingError
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

FLOW = "download-attachments"
A_TURN = 150.0  # seconds for the one call; it may have to wait for a minute until a slot comes free

Action = Literal["take", "drop", "cannot", "stored", "purged"]
WORDS: dict[Action, str] = {
    "take": "to take",
    "drop": "dropped by the filter",
    "cannot": "not downloadable (links and nested items)",
    "stored": "stored already",
    "purged": "purged earlier",
}


class Target(BaseModel):
    """What a deployment runs with."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    deployment: str
    filter: Filter
    account: EmailgisticsAccount
    store: AttachmentStore
    force: bool = False


class Preview(BaseModel):
    """What is on a message, and what would become of each part."""

    model_config = ConfigDict(frozen=True)

    message_key: str
    deployment: str
    manifest: Literal["none", "unreadable", "incomplete", "complete"]
    force: bool = False
    """Whether the deployment's runs do again what the manifest says is done."""
    nothing_to_do: bool
    """Whether the manifest settles all for this filter, so that a run would not even list the message."""
    pending: Pending | None = None
    """Why the list is not final, so that a run would read it again; None when it is."""
    attachments: tuple["Previewed", ...]


class Previewed(BaseModel):
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
    """List a message, and judge each attachment as a run of the deployment would. Raises `CommandFailed`."""
    target = _target(deployment.removeprefix(f"{FLOW}/"))
    named = message_id
    key = candidate_keys(named)[0]
    try:
        message_id = call_with_timeout(PATIENCE, lambda: target.store.store().message_id(named))
        key = message_key(message_id)
        recorded = call_with_timeout(PATIENCE, lambda: read_record(target.store.store(), key))
        listed = call_with_timeout(A_TURN, lambda: target.account.client().list_attachments(message_id))
    except NothingStored as error:  # it says itself which key has no manifest
        raise CommandFailed(str(error)) from None
    except (StoreError, EmailgisticsError, PacingError) as error:
        raise CommandFailed(f"Message {key}: {error}") from None
    except NoResponse:
        raise CommandFailed(
            "There was no answer in time: the store or Emailgistics hangs, or all slots of the pacing limit are "
            "taken. `attachments doctor` says which; then try again."
        ) from None
    return judged(message_id, target.deployment, listed, recorded, target.filter, force=target.force)


@dataclass(frozen=True)
class Record:
    """What the store has of a message."""

    manifest: Manifest | Literal["none", "unreadable"] = "none"
    existing: Mapping[str, StoredObject] = field(default_factory=dict)


def read_record(store: Store, key: str) -> Record:
    """What the store has of a message. Raises `StoreError`."""
    existing = store.stored(key)
    try:
        return Record(store.read_manifest(key) or "none", existing)
    except InvalidManifest:
        return Record("unreadable", existing)


def judged(
    message_id: str,
    deployment: str,
    listed: Sequence[Attachment],
    recorded: Record,
    wanted: Filter,
    *,
    force: bool = False,
) -> Preview:
    """What a run would do, as `attachments.domain.plan` decides it for both."""
    manifest = recorded.manifest
    known = manifest if isinstance(manifest, Manifest) else None
    state: Literal["none", "unreadable", "incomplete", "complete"]
    state = manifest if not isinstance(manifest, Manifest) else "complete" if manifest.complete else "incomplete"
    # The run that recorded a list as not final knew of attachments.
    why = why_not_final(listed, has_attachments=known is not None and known.pending is not None)
    once = {attachment.id: attachment for attachment in without_placeholders(listed, force=force)}.values()
    return Preview(
        message_key=message_key(message_id),
        deployment=deployment,
        manifest=state,
        force=force,
        nothing_to_do=is_settled(known, wanted, force=force),
        pending=None if force else why,
        attachments=tuple(
            _previewed(attachment, settled_entry(attachment, wanted, known, recorded.existing, force=force))
            for attachment in once
        ),
    )


def to_lines(found: Preview) -> Iterator[str]:
    """The lines for a terminal; the file name comes last, where it can be taken for nothing else."""
    force = "; force: what is stored is downloaded again and compared" if found.force else ""
    yield f"Message {found.message_key}, as {found.deployment} sees it; manifest: {found.manifest}{force}."
    for one in found.attachments:
        size = f"{one.size:,}" if one.size is not None else "?"
        kind = one.content_type or one.kind
        rule = f"  [{printable(one.rule)[1:-1]}]" if one.rule else ""
        yield f"{one.action:<7}{size:>14}  {printable(kind)[1:-1]}{rule}  {printable(one.name or '')}"
    counts = Counter(one.action for one in found.attachments)
    parts = [f"{counts[action]} {words}" for action, words in WORDS.items() if counts[action]]
    listed = counted(len(found.attachments), "attachment")
    if parts:
        yield f"Of {listed}: {', '.join(parts)}."
    elif found.pending is None:
        yield "It has no attachments."
    if found.nothing_to_do:
        yield "A run would do nothing: the manifest settles all that this filter wants."
    elif found.pending is not None:
        yield f"{NOT_FINAL[found.pending]} Look again in a minute."


_ACTIONS: dict[Outcome, Action] = {
    "filtered": "drop",
    "unsupported": "cannot",
    "stored": "stored",
    "purged": "purged",
}


def _previewed(attachment: Attachment, entry: ManifestAttachment | None) -> Previewed:
    action = _ACTIONS[entry.outcome] if entry else "take"
    return Previewed(
        attachment_key=attachment_key(attachment.id),
        action=action,
        name=attachment.name,
        content_type=attachment.content_type,
        size=attachment.size,
        kind=attachment.kind,
        rule=entry.rule if entry and action == "drop" else None,
    )


def _target(name: str) -> Target:
    if not PREFECT_API_URL.value():
        raise CommandFailed("PREFECT_API_URL is not set. Set it to your server's, such as http://127.0.0.1:4200/api.")
    try:
        return call_with_timeout(PATIENCE, lambda: _loaded(name))
    except NoResponse:
        raise CommandFailed(f"Prefect does not answer within {PATIENCE:.0f} s. Look at its server.") from None
    except PREFECT_ERRORS as error:
        raise CommandFailed(" ".join(describe_error(error))) from None


def _loaded(name: str) -> Target:
    with prefect() as client:
        try:
            deployment = client.read_deployment_by_name(f"{FLOW}/{path_part(name)}")
        except ObjectNotFound:
            asked(client, "GET", "/health")  # else it is not Prefect's API that knows no such deployment
            raise CommandFailed(
                f"There is no deployment {FLOW}/{printable(name)[1:-1]}. `prefect deployment ls` names those that "
                "there are; `attachments setup` makes the default one."
            ) from None
        account, store = (str(deployment.parameters.get(kind) or "default") for kind in ("account", "store"))
        accounts = load_blocks(EmailgisticsAccount, [account], client)
        stores = load_blocks(AttachmentStore, [store], client)
    problems = [one for one in (*accounts.findings, *stores.findings) if one.status == "failed"]
    if problems:
        raise CommandFailed(f"Block {problems[0].subject}: {problems[0].text} {problems[0].remedy}")
    try:
        return Target(
            deployment=f"{FLOW}/{name}",
            filter=deployment.parameters.get("filter") or {},
            account=accounts.blocks[account],
            store=stores.blocks[store],
            force=deployment.parameters.get("force") or False,
        )
    except ValidationError as error:
        raise CommandFailed(
            f"The parameters of {FLOW}/{printable(name)[1:-1]} are not valid, so its runs fail: "
            f"{escaped(problem(error))}. Correct them in the Prefect UI, or in its prefect.yaml."
        ) from None
