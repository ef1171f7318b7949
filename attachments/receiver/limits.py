"""The receiver's timeouts and limits."""

from dataclasses import dataclass

LOCK_TIMEOUT = 15.0  # seconds; Emailgistics waits 100 for a response
PROBE_INTERVAL = 5.0  # seconds after a write in which no probe writes again, because anyone may be able to request one


@dataclass(frozen=True)
class ReceiverLimits:
    """All values are in seconds, unless a comment says otherwise."""

    # The dispatcher.
    refresh_interval: float = 10.0  # between reads of the list of deployments
    refresh_interval_while_unavailable: float = 2.0
    min_refresh_interval: float = 1.0  # between reads caused by webhooks that name an unknown deployment
    refresh_timeout: float = 5.0  # for such a read, during which the sender waits
    reminder_interval: float = 60.0  # between log lines about entries whose deployment does not exist
    max_retry_delay: float = 8.0  # between attempts while Prefect is unavailable
    refused_retry_delay: float = 60.0  # before an entry that Prefect refused is retried; longer each time
    max_refused_retry_delay: float = 300.0
    create_timeout: float = 30.0  # for one creation; Prefect may hang without closing the connection
    idle_poll_interval: float = 1.0  # between reads of an empty inbox; `wake` cuts it short

    # Connections.
    handshake_timeout: float = (
        10.0  # from a connection's first byte to the end of its TLS handshake; asyncio's default is 60
    )
    first_byte_timeout: float = 10.0  # from accepting a connection to its first byte
    idle_timeout: float = (
        10.0  # between idle checks; a connection is closed after one to two intervals without a request
    )
    max_unauthenticated: int = 1024  # unauthenticated ones; each takes some 20 KB, or 80 KB with TLS
    eviction_grace: float = 2.0  # in which an unauthenticated connection is not closed for another one
    body_timeout: float = 30.0  # in which the sender must send the body
    drain_timeout: int = 8  # for open connections after SIGTERM; Docker kills after 10

    # The log and the inbox.
    inbox_timeout: float = 5.0  # without a response from the inbox, after which it is reported as stuck
    log_interval: float = 10.0  # between two log lines of one kind that unauthenticated clients cause
    lock_timeout: float = LOCK_TIMEOUT
    probe_interval: float = PROBE_INTERVAL
