"""The vendor's contract: the client, its models and errors, and the webhook's payload.

Depends neither on Prefect nor on fsspec.
"""

from attachments.emailgistics.client import EmailgisticsClient
from attachments.emailgistics.content_disposition import filename_of
from attachments.emailgistics.download import Download
from attachments.emailgistics.envelopes import ReceivedMessage
from attachments.emailgistics.errors import (
    Aborted,
    BadAnswer,
    BadRequest,
    ConnectionFailed,
    DeadlineExceeded,
    EmailgisticsError,
    Forbidden,
    InvalidArgument,
    InvalidDelivery,
    InvalidKey,
    NotFound,
    RateLimited,
    ReportFailed,
    ServerError,
    StrayLink,
    TimedOut,
    Truncated,
    UnexpectedStatus,
)
from attachments.emailgistics.mailboxes import Mailbox
from attachments.emailgistics.models import Attachment
from attachments.emailgistics.paced_calls import Pacer
from attachments.emailgistics.reports import ReceivedMessages
from attachments.emailgistics.webhook import (
    Action,
    Delivery,
    Envelope,
    authenticate,
    envelope,
    parse_delivery,
)

__all__ = [
    "Aborted",
    "Action",
    "Attachment",
    "BadAnswer",
    "BadRequest",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Delivery",
    "Download",
    "EmailgisticsClient",
    "EmailgisticsError",
    "Envelope",
    "Forbidden",
    "InvalidArgument",
    "InvalidDelivery",
    "InvalidKey",
    "Mailbox",
    "NotFound",
    "Pacer",
    "RateLimited",
    "ReceivedMessage",
    "ReceivedMessages",
    "ReportFailed",
    "ServerError",
    "StrayLink",
    "TimedOut",
    "Truncated",
    "UnexpectedStatus",
    "authenticate",
    "envelope",
    "filename_of",
    "parse_delivery",
]
