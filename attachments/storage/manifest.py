"""The record of a message's attachments and their outcomes: ``manifest.json``."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    computed_field,
    model_validator,
)

from attachments.foundation.unicode_text import well_formed
from attachments.storage.errors import InvalidManifest, ManifestTooLarge, NewerManifest
from attachments.storage.keys import KEY_LENGTH, is_place_of, is_possible

SCHEMA = 1
"""The schema version that this code writes."""

MAX_SIZE = 32 * 1024 * 1024
"""Bytes of a manifest. Ten thousand attachments with ids of 250 characters and names of 255 bytes need 20 MB."""
MAX_READ = MAX_SIZE + 1
"""Bytes that are read of a manifest; one more than `MAX_SIZE` shows that it is too large."""
MAX_VALUES = 500_000
"""Lists, objects and their items in a manifest, by its punctuation: one byte of hostile JSON can cost 24 of memory."""
_SMALL_SIZE = 1024 * 1024
"""Bytes; manifests up to this size may be parsed concurrently."""

Outcome = Literal["stored", "filtered", "unsupported", "failed", "purged"]

Pending = Literal["not-listed", "scan-in-progress"]
"""Why a list is not final: it is empty although the webhook reported attachments, or it has a scanner's placeholder."""

Encryption = Literal["age", "none"]
"""Whether attachments were encrypted to age recipients at the last write."""

_WAS_STORED = frozenset({"stored", "purged"})
_MAX_DEPTH = 100
"""Levels of nesting that a manifest may have. Valid ones have three; hundreds can be read but not written."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_large_manifest_lock = threading.Lock()


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        # Pydantic reports no other error as a wrong value, and one damaged manifest would end a whole run.
        raise ValueError("a time outside the supported range") from None


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _possible(path: str | None) -> str | None:
    if path is not None and not is_possible(path):
        raise ValueError("not the path of an object")
    return path


Moment = Annotated[datetime, AfterValidator(_in_utc), PlainSerializer(_iso, return_type=str)]
"""A time in UTC, written as ISO 8601 with ``Z``. A time without a zone is read as UTC."""


class _Record(BaseModel):
    """Base of both models: frozen, keeps fields that a later version added, shows no content."""

    model_config = ConfigDict(
        extra="allow",  # fields of another version are kept
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,  # names and addresses must not show in an error's text
    )

    computed: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, data: Any) -> Any:
        """Replace lone surrogates in names, which UTF-8 cannot encode, and ignore computed fields."""
        if not isinstance(data, dict):
            return data
        return _without_surrogates({name: value for name, value in data.items() if name not in cls.computed})

    def __str__(self) -> str:
        return repr(self)


class ManifestAttachment(_Record):
    """One attachment and its outcome. Sizes are in bytes."""

    id: str
    attachment_key: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{KEY_LENGTH}}}$")]
    """Checked, because it is shown and someone else may have written the manifest."""
    name: str | None = None
    content_type: str | None = None
    listed_size: int | None = None
    """As the vendor lists it; need not equal `bytes`."""
    kind: str = "fileAttachment"
    """The vendor's `attachmentType`, which may be one that is not known yet."""
    outcome: Outcome
    key: Annotated[str | None, AfterValidator(_possible)] = None
    """The object's path, from the store's root. Do not read or remove it unless `is_at_home`."""
    bytes: int | None = None
    sha256: str | None = None
    stored_at: Moment | None = None
    stored_bytes: int | None = None
    """Of the ciphertext, when the object was encrypted before it was stored; so is `stored_sha256`."""
    stored_sha256: str | None = None
    purged_at: Moment | None = None
    """When retention removed the object, when it did; `key`, `bytes` and `sha256` stay as the record."""
    rule: str | None = None
    """The rule that dropped it, when it was filtered."""
    code: str | None = None
    """What went wrong, when it failed."""
    deployment: str | None = None
    """The deployment that recorded this outcome; deployments with different filters may share a manifest."""

    @property
    def size(self) -> int | None:
        """The listed size in bytes, under the name that filters use."""
        return self.listed_size

    @property
    def is_settled(self) -> bool:
        """Whether no run can do more for it: it is stored, purged, or cannot be downloaded."""
        return self.outcome in _WAS_STORED or self.outcome == "unsupported"

    def is_at_home(self, message_key: str) -> bool:
        """Whether its path belongs to this attachment of this message; others may write to the store."""
        return is_place_of(self.key, message_key, self.attachment_key)

    def replaced_by(self, newer: ManifestAttachment) -> ManifestAttachment:
        """The merged entry after a later run has recorded `newer` for the same attachment.

        Stored and purged entries stay, whatever a later run failed at or filtered out. A failure stays until the
        attachment is stored, or until the same deployment's filter drops it; another deployment's filter must not hide
        it. A run that read the manifest before a purge and writes after it has an outdated "stored"; the entry stays
        purged until the attachment is stored again. A run that read it before that second storing has an outdated
        "purged", and a purge does not record by merging. Otherwise the later entry wins.
        """
        was_stored = self.outcome in _WAS_STORED and newer.outcome not in _WAS_STORED
        anothers_failure = (self.outcome, newer.outcome) == ("failed", "filtered") and (
            self.deployment != newer.deployment
        )
        is_same_storing = (self.key, self.stored_at) == (newer.key, newer.stored_at)
        outcomes = (self.outcome, newer.outcome)
        is_stale = (outcomes == ("purged", "stored") and self.stored_at is not None and is_same_storing) or (
            outcomes == ("stored", "purged") and not is_same_storing
        )
        winner = self if was_stored or anothers_failure or is_stale else newer
        return winner.model_copy(update={**(self.model_extra or {}), **(newer.model_extra or {})})

    def as_purged(self, at: datetime) -> ManifestAttachment:
        """The same entry after its object was removed; its properties stay on record."""
        return self.model_copy(update={"outcome": "purged", "purged_at": at})

    def __repr__(self) -> str:
        return f"ManifestAttachment(attachment_key={self.attachment_key!r}, outcome={self.outcome!r})"


class Manifest(_Record):
    """All that is on a message, and what became of each part."""

    computed: ClassVar[frozenset[str]] = frozenset({"complete"})

    schema_: Literal[1] = Field(default=1, alias="schema")
    message_id: str
    message_key: str
    mailbox: str | None = None
    received: Moment | None = None
    conversation_id: str | None = None
    deployment: str | None = None
    flow_run_id: str | None = None
    updated: Moment
    announced: tuple[UUID, ...] | None = None
    """Ids of the events that Prefect has of what was stored, one for each state of it; see `announcement`.

    None was written by a version that recorded none, and had sent its event: what it stored is not told again.
    """
    pending: str | None = None
    """Why the list was not final, as `Pending` has it, or as a later version may; None when it was."""
    encryption: str | None = None
    """As `Encryption` has it, or as a later version may; None was written by a version that did not record it."""
    attachments: tuple[ManifestAttachment, ...] = ()

    @computed_field  # type: ignore[prop-decorator]  # mypy has no decorated properties (python/mypy#1362)
    @property
    def complete(self) -> bool:
        """Whether no selected attachment is missing."""
        return self.pending is None and all(entry.outcome != "failed" for entry in self.attachments)

    def settles(self, wanted: Callable[[ManifestAttachment], bool]) -> bool:
        """Whether a run whose filter is `wanted` has nothing left to do for this message."""
        return self.pending is None and all(entry.is_settled or not wanted(entry) for entry in self.attachments)

    @property
    def announcement(self) -> UUID | None:
        """The id of the event that reports what is stored; it changes when more is stored, or it becomes complete.

        None while nothing is stored. A purge does not change it; storing a purged attachment again does.
        """
        stored = sorted(
            (
                entry.attachment_key,
                entry.key or "",
                entry.sha256 or "",
                _iso(entry.stored_at) if entry.stored_at else "",
            )
            for entry in self.attachments
            if entry.outcome in _WAS_STORED
        )
        if not stored:
            return None
        digest = hashlib.sha256(json.dumps([self.complete, stored]).encode()).hexdigest()
        return uuid5(NAMESPACE_URL, f"emailgistics.attachments.stored/{self.message_key}/{digest}")

    @property
    def is_announced(self) -> bool:
        """Whether Prefect has the event for everything that is stored."""
        return self.announced is None or self.announcement is None or self.announcement in self.announced

    def as_announced(self, announcement: UUID) -> Manifest:
        """The same manifest after Prefect has received that event."""
        return self.model_copy(update={"announced": _deduplicated(*(self.announced or ()), announcement)})

    def entry(self, attachment_key: str) -> ManifestAttachment | None:
        """The entry of one attachment."""
        return next((entry for entry in self.attachments if entry.attachment_key == attachment_key), None)

    def merged_with(self, newer: Manifest) -> Manifest:
        """This manifest merged with a later run's findings; nothing is lost that either contains.

        `newer` counts as the later one whatever its times say, because clocks may jump. A value that it lacks (a
        backfill has no mailbox) stays. Entries keep their order; new ones come last.
        """
        merged = {entry.attachment_key: entry for entry in self._signed_entries()}
        for entry in newer._signed_entries():
            older = merged.get(entry.attachment_key)
            merged[entry.attachment_key] = older.replaced_by(entry) if older else entry
        known = {field: value for field, value in newer if value is not None and field not in self.computed}
        if newer.announced is not None:
            announced = self.announced if self.announced is not None else filter(None, [self.announcement])
            known["announced"] = _deduplicated(*announced, *newer.announced)
        # The later list's state counts, final or not.
        return self.model_copy(update={**known, "pending": newer.pending, "attachments": tuple(merged.values())})

    def to_bytes(self) -> bytes:
        """The manifest as UTF-8 JSON, its fields in the documented order.

        Raises ManifestTooLarge if `from_bytes` would refuse its size.
        """
        data = self.model_dump(mode="json", by_alias=True)
        listed = [_without_unset(entry) for entry in data.pop("attachments")]
        complete = data.pop("complete")
        if self.announced is None:
            del data["announced"]
        for name in ("pending", "encryption"):
            if data[name] is None:
                del data[name]
        extra = {field: data.pop(field) for field in (self.model_extra or {})}
        whole = {**data, "complete": complete, "attachments": listed, **extra}
        written = json.dumps(whole, ensure_ascii=False, indent=1).encode() + b"\n"
        if _is_too_large(written):
            raise ManifestTooLarge(
                f"the manifest of message {self.message_key} would have {len(written):,} bytes for "
                f"{len(self.attachments):,} attachments, more than can be read back ({MAX_SIZE:,} bytes, "
                f"{MAX_VALUES:,} "
                "values); store less of the message with a filter",
                key=self.message_key,
            )
        return written

    @classmethod
    def from_bytes(cls, data: bytes, *, message_key: str) -> Self:
        """The manifest of this message. Raises InvalidManifest, or NewerManifest for a later schema.

        A manifest that is too large is invalid. Large ones are parsed one at a time, because parsing takes a multiple
        of their size.
        """
        with nullcontext() if len(data) <= _SMALL_SIZE else _large_manifest_lock:
            found = None if _is_too_large(data) else _parse_json(data)
            version = found.get("schema") if isinstance(found, dict) else None
            if isinstance(version, int) and version > SCHEMA:
                raise NewerManifest(
                    f"the manifest of message {message_key} has a newer schema; this version writes {SCHEMA}: "
                    "a newer version of this project uses the same store; update this one",
                    key=message_key,
                )
            manifest = None if _is_too_deep(found) else cls._parsed(found)
        if manifest is None or manifest.message_key != message_key:
            raise InvalidManifest(
                f"the manifest of message {message_key} is damaged, too large or another message's; "
                "run its download again to rebuild it",
                key=message_key,
            )
        return manifest

    @classmethod
    def _parsed(cls, data: object) -> Self | None:
        try:
            return cls.model_validate(data)
        except ValidationError:
            return None

    def _signed_entries(self) -> Iterator[ManifestAttachment]:
        """The entries, each with the deployment that recorded it."""
        for entry in self.attachments:
            yield entry if entry.deployment else entry.model_copy(update={"deployment": self.deployment})

    def __repr__(self) -> str:
        return (
            f"Manifest(message_key={self.message_key!r}, complete={self.complete}, attachments={len(self.attachments)})"
        )


def _deduplicated(*ids: UUID) -> tuple[UUID, ...]:
    return tuple(dict.fromkeys(ids))


_OPTIONAL_FIELDS = frozenset({"purged_at", "rule", "code", "deployment", "stored_bytes", "stored_sha256"})


def _without_unset(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry without the optional fields that are not set."""
    return {field: value for field, value in entry.items() if value is not None or field not in _OPTIONAL_FIELDS}


def _is_too_large(data: bytes) -> bool:
    return len(data) > MAX_SIZE or sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES


def _parse_json(data: bytes) -> Any:
    """The parsed JSON; None if it is invalid."""
    try:
        return json.loads(data, parse_constant=_parse_finite, parse_float=_parse_finite)
    except (ValueError, RecursionError):
        return None


def _parse_finite(text: str) -> float:
    """Parse a number. Raises ValueError for NaN and infinity, which JSON cannot represent."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a number of JSON")
    return number


def _is_too_deep(value: object) -> bool:
    """Whether it is nested too deeply to be written again. Iterative, because recursion has the same limit."""
    level: list[Any] = [[value]]
    for _ in range(_MAX_DEPTH + 1):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _without_surrogates(value: Any) -> Any:
    """The same value with U+FFFD for each lone surrogate."""
    if isinstance(value, str):
        return well_formed(value) if _SURROGATE.search(value) else value
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value
