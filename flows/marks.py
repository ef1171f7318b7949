"""Up to when each mailbox has been reconciled: a Prefect Variable for each, which never moves backwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.exceptions import ObjectAlreadyExists

PREFIX = "attachments-mark-"
DIGITS = 32
PAGE = 200  # Variables in one answer of Prefect's


def mailbox_key(mailbox_id: str) -> str:
    """What a mailbox is called where its address must not show: 32 hex digits of the SHA-256 of its id."""
    return hashlib.sha256(mailbox_id.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


@dataclass(frozen=True)
class Mark:
    """Whatever a mailbox received before `until` has been looked at. Times are in UTC."""

    mailbox_key: str
    account: str
    """The name of the account's block."""
    deployment: str
    until: datetime
    updated: datetime
    held_since: datetime | None = None
    """Since when it has not moved because most of what was missed could not be fetched."""


@dataclass(frozen=True)
class Marks:
    """The marks of one account's mailboxes, for one deployment. The methods raise httpx's errors."""

    client: SyncPrefectClient
    account: str
    deployment: str

    def read(self, mailbox: str) -> Mark | None:
        """The mark of the mailbox with this key; None when there is none that can be read."""
        variable = self.client.read_variable_by_name(self._name(mailbox))
        return _parsed(variable.value) if variable else None

    def move(self, mailbox: str, until: datetime) -> None:
        """Move a mailbox's mark forward. One that is further already stays where it is."""
        known = self.read(mailbox)
        if known is not None and until <= known.until <= datetime.now(UTC):
            if known.held_since is None:
                return
            until = known.until
        self._write(mailbox, until, held_since=None)

    def hold(self, mailbox: str, at: datetime) -> datetime:
        """Leave a mailbox's mark where it is, or at `at` when there is none, and say since when it is held."""
        known = self.read(mailbox)
        if known is not None and known.held_since is not None:
            return known.held_since
        now = datetime.now(UTC)
        self._write(mailbox, at if known is None else known.until, held_since=now)
        return now

    def _write(self, mailbox: str, until: datetime, *, held_since: datetime | None) -> None:
        told = {
            "mailbox_key": mailbox,
            "account": self.account,
            "deployment": self.deployment,
            "until": until.isoformat(),
            "updated": datetime.now(UTC).isoformat(),
            "held_since": held_since.isoformat() if held_since else None,
        }
        name = self._name(mailbox)
        try:
            self.client.create_variable(VariableCreate(name=name, value=told))
        except ObjectAlreadyExists:
            self.client.update_variable(VariableUpdate(name=name, value=told))

    def _name(self, mailbox: str) -> str:
        # An account's and a deployment's name may hold what a Variable's may not.
        whose = hashlib.sha256(f"{self.account}\n{self.deployment}\n{mailbox}".encode()).hexdigest()[:DIGITS]
        return f"{PREFIX}{whose}"


def read_marks(client: SyncPrefectClient) -> list[Mark]:
    """All marks that there are, those that lag behind first. Raises httpx's errors."""
    return sorted(_marks(client), key=lambda mark: mark.until)


def _marks(client: SyncPrefectClient) -> Iterator[Mark]:
    asked = {"variables": {"name": {"like_": PREFIX}}, "sort": "NAME_ASC", "limit": PAGE}
    offset = 0
    while True:  # the client's own method reads no further than the first page
        page = client.request("POST", "/variables/filter", json={**asked, "offset": offset}).json()
        for variable in page:
            if variable["name"].startswith(PREFIX) and (mark := _parsed(variable["value"])) is not None:
                yield mark
        if len(page) < PAGE:
            return
        offset += PAGE


def _parsed(value: Any) -> Mark | None:
    try:
        until, updated = (_moment(value[name]) for name in ("until", "updated"))
        held = value.get("held_since")
        return Mark(
            str(value["mailbox_key"]),
            str(value["account"]),
            str(value["deployment"]),
            until,
            updated,
            _moment(held) if held else None,
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None


def _moment(text: Any) -> datetime:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
