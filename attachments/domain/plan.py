"""What a run does with each part of a message: decided once, for the flow and for `attachments preview`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attachments.domain.selection import Filter
from attachments.emailgistics import Attachment
from attachments.storage import Manifest, ManifestAttachment, StoredObject, attachment_key, is_nameless, safe_name
from attachments.storage.manifest import Pending

NOT_FINAL: dict[Pending, str] = {
    "not-listed": "The webhook says that there are attachments, and Emailgistics lists none yet.",
    "scan-in-progress": "A scanner's placeholder is listed, so an attachment is still to come.",
}
"""Why a message's list is not final, although the run has done all it could."""


def is_settled(
    known: Manifest | None, wanted: Filter, *, force: bool = False, has_attachments: bool | None = None
) -> bool:
    """Whether the manifest shows that nothing is left to do, so that the message need not even be listed.

    A manifest without attachments settles nothing if the webhook says that there are some.
    """
    if known is None or force or (has_attachments and not known.attachments):
        return False
    return known.settles(wanted.may_want)


def why_not_final(listed: Iterable[Attachment], *, has_attachments: bool | None = None) -> Pending | None:
    """Why a message's list is not final and must be read again; None if it is final."""
    names = [attachment.is_placeholder for attachment in listed]
    if any(names):
        return "scan-in-progress"
    return "not-listed" if has_attachments and not names else None


def real_attachments(listed: Iterable[Attachment], *, force: bool = False) -> tuple[Attachment, ...]:
    """The list without scanners' placeholders. With `force` the whole list, because a sender may name a file like
    one."""
    return tuple(attachment for attachment in listed if force or not attachment.is_placeholder)


def settled_entry(
    attachment: Attachment,
    wanted: Filter,
    known: Manifest | None,
    existing: Mapping[str, StoredObject],
    *,
    force: bool = False,
) -> ManifestAttachment | None:
    """The entry of an attachment that need not be downloaded; None for one that must be.

    A stored or purged attachment stays so whatever the filter says; the filter goes before `downloadable`. With
    `force`, neither the manifest nor the stored object counts.
    """
    key = attachment_key(attachment.id)
    recorded = known.entry(key) if known and not force else None
    if recorded is not None and recorded.outcome in ("stored", "purged"):
        return recorded
    if key in existing and not force:
        return stored_entry(attachment, existing[key])
    if is_nameless(attachment.name) and recorded is not None and recorded.name:
        attachment = attachment.model_copy(update={"name": recorded.name})  # an earlier download supplied it
    unwanted = None if wanted.needs_name(attachment) else unwanted_entry(attachment, wanted)
    if unwanted is None and not attachment.downloadable:
        return new_entry(attachment, outcome="unsupported")
    return unwanted


def unwanted_entry(attachment: Attachment, wanted: Filter) -> ManifestAttachment | None:
    """The entry of an attachment that the filter drops; None for one that it selects."""
    decision = wanted.decide(attachment)
    return None if decision.wanted else new_entry(attachment, outcome="filtered", rule=decision.rule)


def with_download_name(attachment: Attachment, file_name: str | None) -> Attachment:
    """The attachment with its listed name, or the name in its download if the list has none.

    The listed name comes first because it is the one that the filter and `attachments preview` have seen.
    """
    if not is_nameless(attachment.name):
        return attachment
    name = safe_name(None) if file_name is None or is_nameless(file_name) else file_name
    return attachment.model_copy(update={"name": name})


def stored_entry(attachment: Attachment, stored: StoredObject) -> ManifestAttachment:
    """The entry of an attachment that is in the store."""
    return new_entry(
        attachment,
        outcome="stored",
        key=stored.key,
        bytes=stored.bytes,
        sha256=stored.sha256,
        stored_at=stored.stored_at,
        stored_bytes=stored.stored_bytes,
        stored_sha256=stored.stored_sha256,
    )


def new_entry(attachment: Attachment, **found: object) -> ManifestAttachment:
    """A manifest entry for the listed attachment, with its outcome."""
    return ManifestAttachment.model_validate(
        {
            "id": attachment.id,
            "attachment_key": attachment_key(attachment.id),
            "name": attachment.name,
            "content_type": attachment.content_type,
            "listed_size": attachment.size,
            "kind": attachment.kind,
            **found,
        }
    )
