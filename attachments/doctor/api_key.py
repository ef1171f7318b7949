"""Checks whether Emailgistics accepts the key, which scopes it has, and which mailboxes it can access.

It makes three calls within the rate limit, and none changes or downloads anything: the list of mailboxes, and two calls
for a message that does not exist. The order of the vendor's checks is not documented, so "not found" does not prove a
scope.
"""

import secrets
import string

from attachments.doctor.findings import Finding, failed, ok, warning
from attachments.emailgistics import EmailgisticsClient, EmailgisticsError, Forbidden, InvalidKey, NotFound
from attachments.emailgistics.errors import BadRequest, RateLimited
from attachments.emailgistics.mailboxes import Mailbox
from attachments.rate_limit.errors import PacingError

ID_DIGITS = 146
_DIGITS = string.ascii_letters + string.digits + "-_"
NEW_KEY_REMEDY = (
    "A key's scopes are fixed: create a new key that has it in Emailgistics Admin, and put it into the block."
)


def made_up_id() -> str:
    """An id of no message or attachment, in Microsoft Graph's format."""
    return f"AAMkA{''.join(secrets.choice(_DIGITS) for _ in range(ID_DIGITS))}="


def check_key(client: EmailgisticsClient, subject: str) -> tuple[Finding, ...]:
    """Check that the key is accepted (the first finding), has the scope `reporting`, and can access a mailbox."""
    try:
        mailboxes = client.mailboxes()
    except Forbidden:
        return (
            ok("api-key", "Emailgistics accepts it.", subject=subject),
            warning(
                "scope",
                "The key lacks it; reconciliation and backfills of a mailbox need it. Its mailboxes are unknown.",
                NEW_KEY_REMEDY,
                subject=f"reporting ({subject})",
            ),
        )
    except RateLimited as error:
        return (_rate_limited("api-key", subject, error),)
    except NotFound:
        text = "Emailgistics has nothing under this base URL (HTTP 404)."
        remedy = "Correct the block's base URL; an example is https://c1.emailgistics.com/api/v1."
        return (failed("api-key", text, remedy, subject=subject),)
    except (EmailgisticsError, PacingError) as error:
        return (failed("api-key", *sentences(error), subject=subject),)
    return (
        ok("api-key", "Emailgistics accepts it.", subject=subject),
        ok("scope", "The key has it.", subject=f"reporting ({subject})"),
        _mailboxes(mailboxes, subject),
    )


def check_reading(client: EmailgisticsClient, subject: str) -> Finding:
    """Check that the key has the scope `messages:read`."""
    subject = f"messages:read ({subject})"
    try:
        client.list_attachments(made_up_id())
    except (EmailgisticsError, PacingError) as error:
        return _scope(error, subject)
    return ok("scope", "The key has it.", subject=subject)


def check_content(client: EmailgisticsClient, subject: str) -> Finding:
    """Check that the key has the scope `messages:content`."""
    subject = f"messages:content ({subject})"
    try:
        with client.download(made_up_id(), made_up_id()):
            pass
    except (EmailgisticsError, PacingError) as error:
        return _scope(error, subject)
    return ok("scope", "The key has it.", subject=subject)


def _scope(error: EmailgisticsError | PacingError, subject: str) -> Finding:
    """The finding about a scope, from the error for a message that does not exist."""
    if isinstance(error, NotFound):
        text = "The key seems to have it: a message that does not exist is not found, rather than forbidden."
        return ok("scope", text, subject=subject)
    if isinstance(error, Forbidden):
        return failed("scope", "The key lacks it (HTTP 403).", NEW_KEY_REMEDY, subject=subject)
    if isinstance(error, BadRequest):
        text = "It is unknown whether the key has it: Emailgistics rejects the id of a message that does not exist."
        return warning("scope", text, "A run for a real message shows it.", subject=subject)
    if isinstance(error, RateLimited):
        return _rate_limited("scope", subject, error)
    return failed("scope", *sentences(error), subject=subject)


def _mailboxes(mailboxes: tuple[Mailbox, ...], subject: str) -> Finding:
    if not mailboxes:
        return failed(
            "mailboxes",
            "The key can access no mailbox, so every message is 'not found'.",
            "Create a new key with the mailboxes on its allowlist, and put it into the block.",
            subject=subject,
        )
    active = sum(mailbox.active for mailbox in mailboxes)
    text = f"The key can access {len(mailboxes)}, of which {active} are active."
    if not active:
        return warning("mailboxes", text, "Activate them in Emailgistics Admin.", subject=subject)
    return ok("mailboxes", text, subject=subject, names=[mailbox.address or mailbox.name for mailbox in mailboxes])


def _rate_limited(check: str, subject: str, error: EmailgisticsError) -> Finding:
    return warning(check, "It could not be checked: Emailgistics responds with 429.", error.remedy, subject=subject)


def sentences(error: EmailgisticsError | PacingError) -> tuple[str, str]:
    """The problem and the remedy of an error."""
    if isinstance(error, InvalidKey):
        return "Emailgistics refuses it (HTTP 401).", error.remedy
    if isinstance(error, EmailgisticsError):
        return str(error).removesuffix(error.remedy).strip(), error.remedy
    return str(error), ""
