"""`attachments doctor`."""

import itertools
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import MutuallyExclusive

from attachments.cli.command_boundary import FAILED, import_prefect
from attachments.cli.options import Address, InboxPath, Json, Url, inbox_path
from attachments.cli.secret_files import read_secret_files, webhook_secrets
from attachments.foundation.terminal_text import escaped_line, quoted, say, say_json

if TYPE_CHECKING:
    from attachments.doctor import Finding

_RECEIVER = Parameter(group=Group("Receiver", validator=MutuallyExclusive()))  # type: ignore[no-untyped-call]


def doctor(
    *,
    receiver: Annotated[Url | None, _RECEIVER] = None,
    no_receiver: Annotated[bool, _RECEIVER] = False,
    monitoring_address: Address | None = None,
    inbox: InboxPath | None = None,
    json: Json = False,
) -> int:
    """Check that everything the product needs exists and is set up correctly.

    For example:
      attachments doctor
      attachments doctor --receiver http://127.0.0.1:8080 --json

    Args:
        receiver: The receiver's address, such as http://127.0.0.1:8080.
        no_receiver: Do not check the receiver.
        monitoring_address: Where the receiver serves /ready (default: as the receiver without this option).
    """
    read_secret_files(os.environ)
    import_prefect()
    from attachments.doctor import by_urgency, run_checks, summary
    from attachments.doctor.receiver import check_inbox, check_receiver

    at_receiver = () if no_receiver else check_receiver(webhook_secrets(), receiver, monitoring_address)
    found = by_urgency(_with_progress(itertools.chain(run_checks(), at_receiver, check_inbox(inbox_path(inbox)))))
    is_well = all(finding.status != "failed" for finding in found)
    if json:
        say_json({"ok": is_well, "findings": [finding.model_dump(mode="json") for finding in found]})
        return 0 if is_well else FAILED
    for finding in found:
        say(str(finding))
        if sys.stdout.isatty():  # a log must not contain addresses
            for name in finding.names:
                say(f"{'':<9}  {quoted(name)}")
    say(summary(found))
    return 0 if is_well else FAILED


def _with_progress(findings: Iterable["Finding"]) -> list["Finding"]:
    """All findings. The terminal shows the latest one while they are collected, which may take a minute."""
    from rich.console import Console
    from rich.text import Text

    if not sys.stderr.isatty():
        return list(findings)
    found = []
    with Console(stderr=True).status("Checking Prefect") as line:
        for finding in findings:
            found.append(finding)
            line.update(Text(escaped_line(f"Checked {finding.about}")))
    return found
