"""Emailgistics: whether it takes the key, what the key may do, and which mailboxes it sees.

Three calls, all paced, and none that changes or fetches anything: the list of mailboxes, and two about a message that
does not exist. The order in which the vendor judges a call is not documented, so "not found" is no proof of a scope.
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
NEW_KEY = "A key's scopes are fixed: make a new key that has it in Emailgistics Admin, and put it into the block."


def made_up_id() -> str:
    """The id of no message or attachment, of the shape that Graph's have."""
    return f"AAMkA{''.join(secrets.choice(_DIGITS) for _ in range(ID_DIGITS))}="


def look_at_key(client: EmailgisticsClient, subject: str) -> tuple[Finding, ...]:
    """Whether the key is taken, has the scope `reporting`, and sees a mailbox; whether it is taken comes first."""
    try:
        mailboxes = client.mailboxes()
    except Forbidden:
        return (
            ok("api-key", "Emailgistics takes it.", subject=subject),
            warning(
                "scope",
                "The key lacks it: reconciliation and backfills of a mailbox need it. Its mailboxes cannot be seen.",
                NEW_KEY,
                subject=f"reporting ({subject})",
            ),
        )
    except RateLimited as error:
        return (_rate_limited("api-key", subject, error),)
    except NotFound:
        text = "Emailgistics has nothing under this base URL (HTTP 404)."
        remedy = "Correct the block's base URL: it looks like https://c1.emailgistics.com/api/v1."
        return (failed("api-key", text, remedy, subject=subject),)
    except (EmailgisticsError, PacingError) as error:
        return (failed("api-key", *sentences(error), subject=subject),)
    return (
        ok("api-key", "Emailgistics takes it.", subject=subject),
        ok("scope", "The key has it.", subject=f"reporting ({subject})"),
        _mailboxes(mailboxes, subject),
    )


def look_at_reading(client: EmailgisticsClient, subject: str) -> Finding:
    """Whether the key has the scope `messages:read`."""
    subject = f"messages:read ({subject})"
    try:
        client.list_attachments(made_up_id())
    except (EmailgisticsError, PacingError) as error:
        return _scope(error, subject)
    return ok("scope", "The key has it.", subject=subject)


def look_at_content(client: EmailgisticsClient, subject: str) -> Finding:
    """Whether the key has the scope `messages:content`."""
    subject = f"messages:content ({subject})"
    try:
        with client.download(made_up_id(), made_up_id()):
            pass
    except (EmailgisticsError, PacingError) as error:
        return _scope(error, subject)
    return ok("scope", "The key has it.", subject=subject)


def _scope(error: EmailgisticsError | PacingError, subject: str) -> Finding:
    """What the answer to a question about a message that does not exist says of a scope."""
    if isinstance(error, NotFound):
        text = "The key seems to have it: a message that does not exist is not found, rather than forbidden."
        return ok("scope", text, subject=subject)
    if isinstance(error, Forbidden):
        return failed("scope", "The key lacks it (HTTP 403).", NEW_KEY, subject=subject)
    if isinstance(error, BadRequest):
        text = "It cannot be told: Emailgistics refuses the id of a message that does not exist."
        return warning("scope", text, "A run of a real message tells.", subject=subject)
    if isinstance(error, RateLimited):
        return _rate_limited("scope", subject, error)
    return failed("scope", *sentences(error), subject=subject)


def _mailboxes(mailboxes: tuple[Mailbox, ...], subject: str) -> Finding:
    if not mailboxes:
        return failed(
            "mailboxes",
            "The key sees no mailbox, so every message is 'not found'.",
            "Make a new key with the mailboxes on its allowlist, and put it into the block.",
            subject=subject,
        )
    active = sum(mailbox.active for mailbox in mailboxes)
    text = f"The key sees {len(mailboxes)}, of which {active} are active."
    if not active:
        return warning("mailboxes", text, "Look at them in Emailgistics Admin.", subject=subject)
    return ok("mailboxes", text, subject=subject, names=[mailbox.address or mailbox.name for mailbox in mailboxes])


def _rate_limited(check: str, subject: str, error: EmailgisticsError) -> Finding:
    return warning(check, "It could not be looked at: Emailgistics answers 429.", error.remedy, subject=subject)


def sentences(error: EmailgisticsError | PacingError) -> tuple[str, str]:
    """What happened, and what to do."""
    if isinstance(error, InvalidKey):
        return "Emailgistics refuses it (HTTP 401).", error.remedy
    if isinstance(error, EmailgisticsError):
        return str(error).removesuffix(error.remedy).strip(), error.remedy
    return str(error), ""
