"""API keys: scopes, mailbox allowlist, expiry (getting-started/authentication, getting-started/scopes)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

Scope = Literal["reporting", "messages:read", "messages:content"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
REPORTING, READ, CONTENT = SCOPES


@dataclass(frozen=True)
class Key:
    """One API key; `mailboxes` is None when every mailbox is allowed, `expires` None when it never does."""

    secret: str
    scopes: frozenset[str] = frozenset(SCOPES)
    mailboxes: tuple[str, ...] | None = None
    expires: datetime | None = None

    def reaches(self, mailbox: str) -> bool:
        """Whether the mailbox is on the key's allowlist; addresses are compared without regard to case."""
        return self.mailboxes is None or mailbox.casefold() in {known.casefold() for known in self.mailboxes}


class KeyRing:
    """The keys of the account."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys: dict[str, Key] = {}
        self.replace(keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys.values())

    def replace(self, keys: Iterable[Key]) -> None:
        """Makes these the only keys."""
        self._keys = {key.secret: key for key in keys}

    def revoke(self, secret: str) -> bool:
        """Deletes a key: the next call with it gets 401. False when there is none."""
        return self._keys.pop(secret, None) is not None

    def authenticate(self, authorization: str | None) -> Key | None:
        """The key in an Authorization header; None when it is missing, malformed, expired or deleted."""
        scheme, _, secret = (authorization or "").partition(" ")
        key = self._keys.get(secret.strip()) if scheme.casefold() == "bearer" else None
        if key is None or (key.expires is not None and key.expires <= datetime.now(UTC)):
            return None
        return key
