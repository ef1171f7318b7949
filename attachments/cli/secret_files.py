"""Secrets from files: for each variable with a secret, `<name>_FILE` may name a file with its value instead.

Such a file is a systemd credential, a container's secret, or a private file. Every process of the same user can read a
process's initial environment in `/proc`; a credential belongs to one service.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

from attachments.cli.command_boundary import CommandFailed
from attachments.receiver.secrets import VARIABLE, split_secrets

SECRETS = (
    "EMAILGISTICS_API_KEY",
    "EMAILGISTICS_WEBHOOK_SECRET",
    "ATTACHMENTS_STORAGE_OPTIONS",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_KEY",
)
MAX_SIZE = 64 * 1024  # bytes of a secret's file


def read_secret_files(environment: MutableMapping[str, str]) -> None:
    """Set each variable whose secret is in a file. Raises `CommandFailed`."""
    for name in SECRETS:
        read_secret_file(name, environment)


def read_secret_file(name: str, environment: MutableMapping[str, str]) -> None:
    """Set this variable if its secret is in a file. Raises `CommandFailed`."""
    path = environment.get(f"{name}_FILE", "")
    if not path.strip():
        return
    if environment.get(name, "").strip():
        raise CommandFailed(f"{name} and {name}_FILE are both set. Keep one of the two.")
    environment[name] = _read_secret(name, Path(path))
    del environment[f"{name}_FILE"]


def _read_secret(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:  # ValueError: a character that paths cannot contain
        reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        raise CommandFailed(
            f"The file that {name}_FILE names cannot be read ({reason}). Correct the path, or let this user read it."
        ) from None
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        text = "\0"
    if len(content) > MAX_SIZE or "\0" in text:
        raise CommandFailed(
            f"The file that {name}_FILE names is too long or not text, so it is not a secret. Correct the path."
        )
    if not text:
        raise CommandFailed(f"The file that {name}_FILE names is empty. Write the secret into it, in one line.")
    return text


def webhook_secrets() -> list[str]:
    """The webhook's valid secrets, from the environment."""
    return split_secrets(os.environ.get(VARIABLE, ""))
