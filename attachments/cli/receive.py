"""`attachments receive`."""

import logging
import os
import signal
from typing import Annotated

from cyclopts import Group, Parameter

from attachments.cli.command_boundary import INTERRUPTED, CommandFailed, import_prefect
from attachments.cli.options import Address, FilePath, InboxPath, Port, Wait, inbox_path
from attachments.cli.secret_files import read_secret_files, webhook_secrets
from attachments.foundation.terminal_text import LogFormatter
from attachments.receiver.secrets import (
    SHORT_MESSAGE,
    SHORT_PART_MESSAGE,
    SHORT_PART_REMEDY,
    SHORT_REMEDY,
    has_short_part,
    is_short,
)

_LISTENING = Parameter(group=Group.create_ordered("Where it listens"))
_WEBHOOKS = Parameter(group=Group.create_ordered("What it accepts and answers"))


def receive(
    *,
    host: Annotated[str, Parameter(metavar="HOST"), _LISTENING] = "127.0.0.1",
    port: Annotated[Port, _LISTENING] = 8080,
    tls_certificate: Annotated[FilePath | None, _LISTENING] = None,
    tls_key: Annotated[FilePath | None, _LISTENING] = None,
    monitoring_address: Annotated[Address | None, _LISTENING] = None,
    inbox: Annotated[InboxPath | None, _WEBHOOKS] = None,
    insecure: Annotated[bool, _WEBHOOKS] = False,
    wait: Annotated[Wait, _WEBHOOKS] = 0.0,
    answers: Annotated[FilePath | None, _WEBHOOKS] = None,
    list_all: Annotated[bool, _WEBHOOKS] = False,
) -> int:
    """Receive webhooks from Emailgistics.

    For example:
      attachments receive
      attachments receive --port 8443 --tls-certificate cert.pem --tls-key key.pem

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 picks one.
        tls_certificate: Serve HTTPS with this certificate, a PEM file.
        tls_key: The certificate's key, a PEM file.
        monitoring_address: Serve /ready and /metrics by plain HTTP only here (with TLS, default: 127.0.0.1:8081).
        insecure: Accept webhooks from anyone, without a secret.
        wait: Hold each response until the run has ended, up to 95 seconds; Emailgistics then does the retries.
        answers: A YAML or JSON file: for each deployment, the actions to request of Emailgistics and the wait.
        list_all: Also list messages without attachments, for PDFs inside the text; one call to Emailgistics each.
    """
    read_secret_files(os.environ)
    secrets = webhook_secrets()
    if not secrets and not insecure:
        raise CommandFailed(
            "EMAILGISTICS_WEBHOOK_SECRET is not set, so anyone could post webhooks. Set it to the webhook's secret in "
            "Emailgistics Admin (two, comma-separated, during rotation), or use --insecure."
        )
    if has_short_part(secrets) and not insecure:
        raise CommandFailed(f"{SHORT_PART_MESSAGE} {SHORT_PART_REMEDY}")
    if tls_key and not tls_certificate:
        raise CommandFailed("--tls-key needs --tls-certificate. Give both, or neither.")
    if tls_certificate and not tls_key:
        raise CommandFailed("--tls-certificate needs the certificate's key: give its file with --tls-key.")

    import_prefect()
    from attachments.receiver.inbox import InboxUnavailable
    from attachments.receiver.responses import InvalidResponses, load_responses
    from attachments.receiver.server import CannotServe, ReceiverSettings, serve

    _log_to_stderr()
    if insecure:
        secrets = []
        logging.getLogger("attachments").warning("Running with --insecure: webhooks are accepted from anyone.")
    if is_short(secrets):
        logging.getLogger("attachments").warning("%s %s", SHORT_MESSAGE, SHORT_REMEDY)
    try:
        stopped_by = serve(
            ReceiverSettings(
                inbox=inbox_path(inbox),
                secrets=secrets,
                host=host,
                port=port,
                certificate=tls_certificate,
                certificate_key=tls_key,
                monitoring=monitoring_address,
                responses=load_responses(answers, wait),
                list_all=list_all,
            )
        )
    except (InboxUnavailable, CannotServe, InvalidResponses) as error:
        raise CommandFailed(str(error)) from None
    return INTERRUPTED if stopped_by == signal.SIGINT else 0


def _log_to_stderr() -> None:
    log = logging.StreamHandler()
    log.setFormatter(LogFormatter("%(asctime)s %(levelname)-8s %(name)s  %(message)s"))
    logging.basicConfig(handlers=[log], level=logging.INFO)
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
