"""The account's settings in the control API."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field

from attachments.sandbox.account import Account
from attachments.sandbox.fields import Document, Number, Text, Whole, read
from attachments.sandbox.keys import SCOPES, Key, Scope
from attachments.sandbox.reports import Behaviour, Reports


def show_settings(account: Account) -> dict[str, object]:
    """Limit (None: off), window in seconds, and the keys in full: this is not a real vendor."""
    return {
        "limit": account.window.limit,
        "window": account.window.window,
        "keys": [
            {
                "key": key.secret,
                "scopes": sorted(key.scopes),
                "mailboxes": None if key.mailboxes is None else list(key.mailboxes),
                "expires": None if key.expires is None else key.expires.isoformat(),
            }
            for key in account.keys
        ],
        "reports": {**account.reports.behaviour.model_dump(), "started": account.reports.started},
    }


class _Key(Document):
    """A key of the account; without `scopes` it has all of them, and `expires` is in UTC unless it names a zone."""

    key: Text
    scopes: list[Scope] | None = None
    mailboxes: list[Text] | None = None
    expires: Annotated[datetime | None, Field(strict=False)] = None

    def built(self) -> Key:
        """The key that the account checks calls against."""
        expires = self.expires.replace(tzinfo=self.expires.tzinfo or UTC) if self.expires else None
        mailboxes = None if self.mailboxes is None else tuple(self.mailboxes)
        return Key(self.key, frozenset(SCOPES if self.scopes is None else self.scopes), mailboxes, expires)


class _Settings(Document):
    limit: Whole | None = None
    window: Number | None = None
    keys: list[_Key] | None = None
    reset_window: bool = False
    reset_reports: bool = False
    reports: dict[str, object] = Field(default_factory=dict)


def change_settings(account: Account, document: object) -> None:
    """Changes what the document names.

    `reset_window` forgets the calls that the limit has counted, `reset_reports` all runs and how they behave.
    """
    settings = read(_Settings, document, "settings")
    reports = Reports() if settings.reset_reports else account.reports
    reports.behaviour = read(Behaviour, {**reports.behaviour.model_dump(), **settings.reports}, "reports")
    account.reports = reports
    if "limit" in settings.model_fields_set:
        account.window.limit = settings.limit
    if settings.window is not None:
        account.window.window = settings.window
    if settings.keys is not None:
        account.keys.replace([key.built() for key in settings.keys])
    if settings.reset_window:
        account.window.forget()
