"""How long the receiver waits, and how many strangers it bears."""

from dataclasses import dataclass

LOCK_PATIENCE = 15.0  # seconds; Emailgistics waits 100 for an answer
PROBE_INTERVAL = 5.0  # seconds after a write during which no probe writes again: strangers may be able to ask for one


@dataclass(frozen=True)
class Limits:
    """In seconds, unless a comment says otherwise."""

    # The dispatcher.
    refresh: float = 10.0  # between looks at the list of deployments
    refresh_while_away: float = 2.0
    look_again: float = 1.0  # at least, between looks for a name that is requested and not on the list
    look_deadline: float = 5.0  # for such a look: a sender waits
    reminder: float = 60.0  # between complaints about entries whose deployment does not exist
    longest_pause: float = 8.0  # between tries while Prefect is away
    refused_pause: float = 60.0  # before an entry that Prefect refused is offered again; longer each time
    longest_refused_pause: float = 300.0
    answer_deadline: float = 30.0  # for one creation; Prefect may hang without closing the connection
    idle: float = 1.0  # between looks at an empty inbox, unless something wakes the dispatcher

    # Connections.
    handshake_timeout: float = 10.0  # from a connection's first byte until it is encrypted; asyncio's default is 60
    silence_timeout: float = 10.0  # until a connection's first byte
    idle_connection: float = 10.0  # a connection without a request for twice as long at most is closed
    connections: int = 1024  # of clients without the secret; each takes some 20 KB, or 80 KB when it is encrypted
    connection_grace: float = 2.0  # before a connection without the secret gives way to another
    body_patience: float = 30.0  # for a sender to send its body
    drain: int = 8  # that open connections get on SIGTERM; Docker kills after 10

    # The log and the inbox.
    ready_patience: float = 5.0  # for the inbox to answer, before a monitor is told that it is stuck
    log_interval: float = 10.0  # between two lines of one kind that strangers cause
    lock_patience: float = LOCK_PATIENCE
    probe_interval: float = PROBE_INTERVAL
