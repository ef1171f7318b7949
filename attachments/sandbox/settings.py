"""The account's settings as the control API shows and takes them."""

from dataclasses import asdict
from datetime import UTC, datetime

from attachments.sandbox.account import Account
from attachments.sandbox.fields import BadFieldError, Fields
from attachments.sandbox.keys import SCOPES, Key
from attachments.sandbox.reports import Reports


def show_settings(account: Account) -> dict[str, object]:
    """Limit (None: off), window in seconds, and the keys in full: this is no real vendor."""
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
        "reports": {**asdict(account.reports.behaviour), "started": account.reports.started},
    }


def change_settings(account: Account, document: object) -> None:
    """Changes what the document names.

    `reset_window` forgets the calls that the limit has counted, `reset_reports` all runs and how they behave.
    """
    fields = Fields(document, "settings")
    limit = fields.whole_or_none("limit") if "limit" in fields else account.window.limit
    window = fields.number("window", account.window.window)
    keys = _keys(fields.take("keys")) if "keys" in fields else list(account.keys)
    reset = fields.flag("reset_window", default=False)
    reset_reports = fields.flag("reset_reports", default=False)
    reports = fields.take("reports")
    fields.close()
    if reset_reports:
        account.reports = Reports()
    if reports is not None:
        account.reports.behaviour.change(reports)
    account.window.limit = limit
    account.window.window = window
    account.keys.replace(keys)
    if reset:
        account.window.forget()


def _keys(rows: object) -> list[Key]:
    if not isinstance(rows, list):
        raise BadFieldError("settings: keys must be a list")
    return [_key(row) for row in rows]


def _key(document: object) -> Key:
    fields = Fields(document, "key")
    scopes = fields.texts_or_none("scopes")
    unknown = set(scopes or ()) - set(SCOPES)
    if unknown:
        raise BadFieldError(f"key: there is no scope {', '.join(sorted(unknown))}; send some of {', '.join(SCOPES)}")
    key = Key(
        secret=fields.text("key"),
        scopes=frozenset(SCOPES if scopes is None else scopes),
        mailboxes=fields.texts_or_none("mailboxes"),
        expires=_instant(fields.text_or_none("expires")),
    )
    fields.close()
    return key


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadFieldError("key: expires must be a time in ISO 8601, or null") from error
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
