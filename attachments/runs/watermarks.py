"""Up to when each mailbox has been reconciled: a Prefect Variable for each, which never moves backwards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.exceptions import ObjectAlreadyExists

from attachments.domain.watermark_policy import FirstAttempt

PREFIX = "attachments-mark-"
DIGITS = 32
MOST_UNNAMED = 100  # rows without a message that a mark remembers: a Variable takes 5,000 characters
PAGE = 200  # Variables in one answer of Prefect's


def mailbox_key(mailbox_id: str) -> str:
    """What a mailbox is called where its address must not show: 32 hex digits of the SHA-256 of its id."""
    return hashlib.sha256(mailbox_id.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]


class UnreadableWatermark(Exception):
    """A mark is there and cannot be read; the text says what to do."""


@dataclass(frozen=True)
class Watermark:
    """Whatever a mailbox received before `until` has been looked at. Times are in UTC."""

    mailbox_key: str
    account: str
    """The name of the account's block."""
    deployment: str
    until: datetime
    updated: datetime
    tried: tuple[FirstAttempt, ...] = ()
    """When what lies beyond it was looked at for the first time, where something there could not be fetched."""
    unnamed: tuple[str, ...] = ()
    """Rows of reports that name no message; the newest first."""
    untold: int = 0
    """How many of them, the newest, no reconciliation has told of yet."""


@dataclass(frozen=True)
class Watermarks:
    """The marks of one account's mailboxes, for one deployment. The methods raise httpx's errors."""

    client: SyncPrefectClient
    account: str
    deployment: str

    def read(self, mailbox: str) -> Watermark | None:
        """The mark of the mailbox with this key; None when there is none.

        Raises:
            UnreadableWatermark: somebody has changed it. As if there were none, the time since would be passed over.
        """
        name = self._name(mailbox)
        variable = self.client.read_variable_by_name(name)
        if variable is None:
            return None
        mine = {"mailbox_key": mailbox, "account": self.account, "deployment": self.deployment}
        mark = _parsed(variable.value, mine)
        if mark is None:
            raise UnreadableWatermark(
                f"the Prefect Variable {name}, its mark, cannot be read. Put its value right, with the moment up to "
                "which the mailbox was looked at in until; or delete it, and the mailbox counts as new"
            )
        return mark

    def advance(
        self,
        mailbox: str,
        until: datetime,
        tried: Sequence[FirstAttempt] = (),
        unnamed: Sequence[str] = (),
        untold: int = 0,
    ) -> None:
        """Move a mailbox's mark forward, and keep of what was tried what lies beyond it.

        A mark that is further already, and not in the future, stays where it is.
        """
        known = self.read(mailbox)
        if known is not None and until <= known.until <= datetime.now(UTC):
            until = known.until
        beyond = tuple(one for one in tried if one.until > until)
        rows = tuple(unnamed[:MOST_UNNAMED])
        if known is None or (until, beyond, rows, untold) != (known.until, known.tried, known.unnamed, known.untold):
            self._write(mailbox, until, beyond, rows, untold)

    def forget_untold(self, mailbox: str) -> None:
        """Record that somebody was told of all rows that name no message."""
        known = self.read(mailbox)
        if known is not None and known.untold:
            self._write(mailbox, known.until, known.tried, known.unnamed, 0)

    def _write(
        self, mailbox: str, until: datetime, tried: Sequence[FirstAttempt], unnamed: Sequence[str], untold: int
    ) -> None:
        told = {
            "mailbox_key": mailbox,
            "account": self.account,
            "deployment": self.deployment,
            "until": until.isoformat(),
            "updated": datetime.now(UTC).isoformat(),
            "tried": [[one.until.isoformat(), one.at.isoformat()] for one in tried],
            "unnamed": list(unnamed),
            "untold": untold,
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


def read_watermarks(client: SyncPrefectClient) -> list[Watermark]:
    """All marks that there are, those that lag behind first. Raises httpx's errors."""
    return sorted(_marks(client), key=lambda mark: mark.until)


def _marks(client: SyncPrefectClient) -> Iterator[Watermark]:
    query = {"variables": {"name": {"like_": PREFIX}}, "sort": "NAME_ASC", "limit": PAGE}
    offset = 0
    while True:  # the client's own method reads no further than the first page
        page = client.request("POST", "/variables/filter", json={**query, "offset": offset}).json()
        for variable in page:
            if variable["name"].startswith(PREFIX) and (mark := _parsed(variable["value"])) is not None:
                yield mark
        if len(page) < PAGE:
            return
        offset += PAGE


def _parsed(told: Any, known: Mapping[str, str] | None = None) -> Watermark | None:
    """The mark that a Variable holds. Whoever knows whose it is needs no more of it than `until`."""
    try:
        value = {"updated": told["until"], **told, **known} if known else told
        until, updated = (_moment(value[name]) for name in ("until", "updated"))
        tried = tuple(FirstAttempt(_moment(one), _moment(at)) for one, at in value.get("tried") or ())
        return Watermark(
            str(value["mailbox_key"]),
            str(value["account"]),
            str(value["deployment"]),
            until,
            updated,
            tried,
            tuple(str(row) for row in value.get("unnamed") or ()),
            int(value.get("untold") or 0),
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None


def _moment(text: Any) -> datetime:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
