"""Up to when each mailbox has been reconciled: a Prefect Variable for each mailbox, which never moves backwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.exceptions import ObjectAlreadyExists

from attachments.foundation.timestamps import in_utc
from attachments.prefect_api.paging import all_pages

PREFIX = "attachments-mark-"
DIGITS = 32
MAX_UNNAMED = 100  # rows without a message that a watermark remembers: a Variable takes 5,000 characters


def mailbox_key(mailbox_id: str) -> str:
    """The name of a mailbox where its address must not show: 32 hex digits of the SHA-256 of its ID."""
    return hashlib.sha256(mailbox_id.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


class UnreadableWatermark(Exception):
    """A watermark exists and cannot be read; the text says what to do."""


@dataclass(frozen=True)
class Watermark:
    """Everything that a mailbox received before `until` has been checked. Times are in UTC."""

    mailbox_key: str
    account: str
    """The name of the account's block."""
    deployment: str
    until: datetime
    updated: datetime
    unnamed: tuple[str, ...] = ()
    """Rows of reports that name no message; the newest first."""
    unreported: int = 0
    """How many of them, the newest, no reconciliation has reported yet."""


@dataclass(frozen=True)
class Watermarks:
    """The watermarks of one account's mailboxes, for one deployment. The methods raise httpx's errors."""

    client: SyncPrefectClient
    account: str
    deployment: str

    def read(self, mailbox: str) -> Watermark | None:
        """The mark of the mailbox with this key; None when there is none.

        Raises:
            UnreadableWatermark: Someone has changed it. If it counted as none, the time since would be skipped.
        """
        name = self._name(mailbox)
        variable = self.client.read_variable_by_name(name)
        if variable is None:
            return None
        mine = {"mailbox_key": mailbox, "account": self.account, "deployment": self.deployment}
        watermark = _parsed(variable.value, mine)
        if watermark is None:
            raise UnreadableWatermark(
                f"the Prefect Variable {name}, its watermark, cannot be read. Correct its value, with the time up to "
                "which the mailbox has been checked in until; or delete it, and the mailbox counts as new"
            )
        return watermark

    def advance(self, mailbox: str, until: datetime, unnamed: Sequence[str] = (), unreported: int = 0) -> None:
        """Move a mailbox's watermark forward. One that is further already, and not in the future, stays as it is."""
        known = self.read(mailbox)
        if known is not None and until <= known.until <= datetime.now(UTC):
            until = known.until
        rows = tuple(unnamed[:MAX_UNNAMED])
        if known is None or (until, rows, unreported) != (known.until, known.unnamed, known.unreported):
            self._write(mailbox, until, rows, unreported)

    def clear_unreported(self, mailbox: str) -> None:
        """Record that all rows that name no message have been reported."""
        known = self.read(mailbox)
        if known is not None and known.unreported:
            self._write(mailbox, known.until, known.unnamed, 0)

    def _write(self, mailbox: str, until: datetime, unnamed: Sequence[str], unreported: int) -> None:
        value = {
            "mailbox_key": mailbox,
            "account": self.account,
            "deployment": self.deployment,
            "until": until.isoformat(),
            "updated": datetime.now(UTC).isoformat(),
            "unnamed": list(unnamed),
            "untold": unreported,
        }
        name = self._name(mailbox)
        try:
            self.client.create_variable(VariableCreate(name=name, value=value))
        except ObjectAlreadyExists:
            self.client.update_variable(VariableUpdate(name=name, value=value))

    def _name(self, mailbox: str) -> str:
        # The names of an account and a deployment may contain characters that a Variable's may not.
        owner = hashlib.sha256(f"{self.account}\n{self.deployment}\n{mailbox}".encode()).hexdigest()[:DIGITS]
        return f"{PREFIX}{owner}"


def read_watermarks(client: SyncPrefectClient) -> list[Watermark]:
    """All watermarks, those that lag behind first. Raises httpx's errors."""
    return sorted(_all(client), key=lambda watermark: watermark.until)


def _all(client: SyncPrefectClient) -> Iterator[Watermark]:
    query = {"variables": {"name": {"like_": PREFIX}}, "sort": "NAME_ASC"}

    def read(**page: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = client.request("POST", "/variables/filter", json={**query, **page}).json()
        return rows

    for variable in all_pages(read):  # the client's own method reads no further than the first page
        if variable["name"].startswith(PREFIX) and (watermark := _parsed(variable["value"])) is not None:
            yield watermark


def _parsed(content: Any, known: Mapping[str, str] | None = None) -> Watermark | None:
    """The watermark in a Variable's value; with `known`, no more than `until` is needed. None if it is unreadable.

    Values of older versions also have `tried`, which has no meaning any more.
    """
    try:
        value = {"updated": content["until"], **content, **known} if known else content
        until, updated = (in_utc(datetime.fromisoformat(value[name])) for name in ("until", "updated"))
        return Watermark(
            str(value["mailbox_key"]),
            str(value["account"]),
            str(value["deployment"]),
            until,
            updated,
            tuple(str(row) for row in value.get("unnamed") or ()),
            int(value.get("untold") or 0),
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
