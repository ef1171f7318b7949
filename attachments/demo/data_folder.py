"""The data folder of `attachments up`: Prefect's home with its database, the inbox, Prefect's password, and a lock."""

import json
import os
import secrets
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from attachments.demo.folder_lock import Locked, locked

LOCK = ".attachments-up"
"""Is locked while `attachments up` or a process that it started runs, and says what the folder is for."""
REAL, SANDBOX = "a real mailbox", "the sandbox"
PATIENCE = 3.0  # seconds for the processes of a command that was killed to end
PASSWORD = "prefect-password"  # noqa: S105  the file's name
USER = "attachments"


class FolderUnusable(Exception):
    """The data folder cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class DataFolder:
    """The folder while it is locked; `lock` is the descriptor that holds the lock."""

    path: Path
    lock: int

    @property
    def inbox(self) -> Path:
        """The receiver's inbox."""
        return self.path / "inbox.sqlite"

    @property
    def set_up(self) -> Path:
        """Exists once everything was running; goes with Prefect's database."""
        return self.prefect_home / ".set-up"

    @property
    def prefect_home(self) -> Path:
        """Prefect's settings and its SQLite database."""
        return self.path / "prefect"

    @property
    def profiles(self) -> Path:
        """Prefect's profiles. They tell its commands, and ours, where the server is, and the password."""
        return self.prefect_home / "profiles.toml"

    @property
    def password_file(self) -> Path:
        """Holds the password that was generated for Prefect's server, as its UI takes it."""
        return self.path / PASSWORD

    @property
    def environment_file(self) -> Path:
        """The variables that other commands need to reach this installation."""
        return self.path / "environment"

    def password(self) -> str:
        """Prefect's password, as `user:password`, which is generated at the first start."""
        try:
            password = self.password_file.read_text("utf-8").strip()
        except FileNotFoundError:
            password = ""
        if not password:
            password = f"{USER}:{secrets.token_hex(24)}"
            write_private(self.password_file, f"{password}\n")
        return password

    def write_profile(self, api_url: str, password: str) -> None:
        """Tell Prefect's commands, and ours, where the server is, and the password."""
        settings = {
            "PREFECT_API_URL": api_url,
            "PREFECT_API_AUTH_STRING": password,
            "PREFECT_SERVER_API_AUTH_STRING": password,
        }
        lines = [
            "# `attachments up` writes this file at each start.",
            'active = "attachments"',
            "[profiles.attachments]",
        ]
        lines += [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        write_private(self.profiles, "\n".join(lines) + "\n")

    def write_environment(self, variables: Mapping[str, str]) -> None:
        """Write the variables for a shell, and for `--env-file`."""
        lines = (f"{name}={shlex.quote(text)}\n" for name, text in variables.items())
        write_private(self.environment_file, "".join(lines))


@contextmanager
def data_folder(path: Path, kind: str, patience: float = PATIENCE) -> Iterator[DataFolder]:
    """The folder, made if need be, for this command alone. `patience`: seconds to wait while another one has it.

    Raises `FolderUnusable`.
    """
    with ExitStack() as until_end:
        yield _claimed(path, kind, patience, until_end)


def _claimed(path: Path, kind: str, patience: float, until_end: ExitStack) -> DataFolder:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = until_end.enter_context(locked(path / LOCK, patience))
        known = lock.read().strip()
        if known not in ("", kind):
            raise FolderUnusable(
                f"{path} was made for {known}, and cannot be used for {kind}: the two would share Prefect's blocks. "
                "Choose another folder with --data."
            )
        lock.truncate(0)
        lock.write(f"{kind}\n")
        lock.flush()
        folder = DataFolder(path, lock.fileno())
        folder.prefect_home.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise FolderUnusable(
            f"The data folder {path} cannot be used ({error.strerror or type(error).__name__}). Choose another one "
            "with --data, or let this user write there."
        ) from None
    except Locked:
        raise FolderUnusable(
            f"Another `attachments up` runs in {path}. Stop it first, or choose another folder with --data."
        ) from None
    return folder


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, atomically."""
    beside = path.with_name(f".{path.name}.part")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  a descriptor
        os.fchmod(descriptor, 0o600)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    beside.replace(path)
