"""`attachments up`."""

import os
import signal
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from attachments.cli.command_boundary import INTERRUPTED, CommandFailed
from attachments.cli.options import FilePath, Port

DATA = Path("~/.local/share/emailgistics-attachments")
SANDBOX_DATA = Path("attachments-sandbox")


def up(
    *receiver_options: str,
    data: FilePath | None = None,
    env_file: FilePath | None = None,
    host: Annotated[str, Parameter(metavar="HOST")] = "127.0.0.1",
    port: Port = 8080,
    prefect_port: Port = 4200,
    log_format: Literal["text", "json"] = "text",
    sandbox: bool = False,
    mail: FilePath | None = None,
) -> int:
    """Run everything on this host: Prefect's server, a worker and the receiver.

    If PREFECT_API_URL is set, that Prefect server is used and none is started.

    For example:
      attachments up --env-file settings.env
      attachments up --env-file settings.env -- --wait 60
      attachments up --sandbox --mail ~/some-mail

    Args:
        receiver_options: After `--`, options of `attachments receive`.
        data: The folder for Prefect's database, the inbox and Prefect's password (default:
            ~/.local/share/emailgistics-attachments, or attachments-sandbox in this folder with --sandbox).
        env_file: A file with a line NAME=value for each variable. The environment takes precedence.
        host: The address on which the receiver listens.
        port: The port on which the receiver listens.
        prefect_port: The port on which Prefect's server listens, on 127.0.0.1.
        log_format: Log as text, or as JSON with one object per line.
        sandbox: Use a stand-in for Emailgistics; no variables are read.
        mail: With --sandbox: a file or folder of mail (.eml, mbox, Maildir) to deliver (default: sample mail).
    """
    if mail is not None and not sandbox:
        raise CommandFailed("--mail needs --sandbox. Add it, or remove --mail.")
    if mail is not None and not mail.exists():
        raise CommandFailed(f"There is no mail at {mail}. Correct --mail.")
    from attachments.cli.actions.one_host_settings import make_settings, read_variables
    from attachments.demo.data_folder import FolderUnusable
    from attachments.demo.make_mail import SHIPPED
    from attachments.demo.one_host import CannotStart, run
    from attachments.demo.supervisor import PartFailed

    settings = make_settings(
        {} if sandbox else read_variables(os.environ, env_file),
        data=_absolute(data or (SANDBOX_DATA if sandbox else DATA)),
        mail=(mail or SHIPPED).resolve() if sandbox else None,
        host=host,
        port=port,
        prefect_port=prefect_port,
        receiver_options=receiver_options,
    )
    try:
        stopped_by = run(settings, log_format)
    except (FolderUnusable, CannotStart, PartFailed) as error:
        raise CommandFailed(str(error)) from None
    return INTERRUPTED if stopped_by == signal.SIGINT else 0


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except RuntimeError:  # no home folder, or no such user
        raise CommandFailed(f"There is no home folder for {path}. Give an absolute path with --data.") from None
