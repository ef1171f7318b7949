"""Up to when each mailbox has been reconciled: a Prefect Variable for each, which never moves backwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.schemas.objects import Variable
from prefect.exceptions import ObjectAlreadyExists

PREFIX = "attachments-mark-"
DIGITS = 32


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
        if known is not None and known.until >= until and known.until <= datetime.now(UTC):
            return
        told = {
            "mailbox_key": mailbox,
            "account": self.account,
            "deployment": self.deployment,
            "until": until.isoformat(),
            "updated": datetime.now(UTC).isoformat(),
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
    return sorted(_marks(client.read_variables(limit=None)), key=lambda mark: mark.until)


def _marks(variables: Iterable[Variable]) -> Iterable[Mark]:
    for variable in variables:
        if variable.name.startswith(PREFIX) and (mark := _parsed(variable.value)) is not None:
            yield mark


def _parsed(value: Any) -> Mark | None:
    try:
        until, updated = (_moment(value[name]) for name in ("until", "updated"))
        return Mark(str(value["mailbox_key"]), str(value["account"]), str(value["deployment"]), until, updated)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _moment(text: Any) -> datetime:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
