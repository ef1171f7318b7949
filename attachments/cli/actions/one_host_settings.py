"""The variables of `attachments up`, from the environment and `--env-file`, and which part receives which."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attachments.cli.command_boundary import CommandFailed
from attachments.cli.secret_files import SECRETS, read_secret_file
from attachments.demo.one_host import Settings
from attachments.demo.processes import USER_SETTING_PREFIXES
from attachments.receiver.secrets import SHORT_PART_MESSAGE, SHORT_PART_REMEDY, has_short_part, split_secrets

SETUP_SECRETS = ("EMAILGISTICS_API_KEY", "ATTACHMENTS_STORAGE_OPTIONS")
RECEIVER_SECRETS = ("EMAILGISTICS_WEBHOOK_SECRET",)
PASSWORD = "PREFECT_API_AUTH_STRING"  # noqa: S105  the variable's name
REQUIRED = {
    "EMAILGISTICS_API_KEY": (
        "Create a key with the scopes messages:read, messages:content and reporting in Emailgistics Admin, and set the "
        "variable to it, or EMAILGISTICS_API_KEY_FILE to a file that holds it."
    ),
    "EMAILGISTICS_WEBHOOK_SECRET": (
        "Set it to the webhook's secret in Emailgistics Admin, a random text of 16 characters or more, or "
        "EMAILGISTICS_WEBHOOK_SECRET_FILE to a file that holds it."
    ),
    "ATTACHMENTS_URL": "Set it to the folder for the files, such as file:///srv/attachments or s3://bucket/folder.",
}
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_OWN_SERVER = ("PREFECT_API_KEY", "PREFECT_PROFILE", PASSWORD, f"PREFECT_SERVER_{PASSWORD.removeprefix('PREFECT_')}")
"""Variables that would point the parts to another server, or give them another password."""


def read_variables(environment: Mapping[str, str], env_file: Path | None) -> dict[str, str]:
    """The variables of the environment, and those of the file that the environment lacks.

    Raises `CommandFailed` with everything that is missing or wrong.
    """
    given = {name: value for name, value in (read_env_file(env_file) if env_file else {}).items() if value.strip()}
    given |= {name: value for name, value in environment.items() if value.strip()}
    problems = []
    read = dict(given)
    for name in SECRETS:
        try:
            read_secret_file(name, read)
        except CommandFailed as error:
            problems.append(str(error))
            read.setdefault(name, "unreadable")  # already reported
    problems += [f"{name} is not set. {remedy}" for name, remedy in REQUIRED.items() if name not in read]
    if has_short_part(split_secrets(read.get("EMAILGISTICS_WEBHOOK_SECRET", ""))):
        problems.append(f"{SHORT_PART_MESSAGE} {SHORT_PART_REMEDY}")
    if problems:
        raise CommandFailed(
            "`attachments up` needs variables, from the environment or from a file for --env-file:",
            *(f"- {problem}" for problem in problems),
            "To try it without an account: attachments up --sandbox --mail FOLDER",
        )
    if PASSWORD in read:  # Prefect's own commands do not support `_FILE`
        given[PASSWORD] = read[PASSWORD]
    return given


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of a file with a line `NAME=value` for each. Raises `CommandFailed`.

    Blank lines, lines that begin with `#`, a leading `export` and quotes around a value are ignored. Nothing is
    expanded.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not text"
        raise CommandFailed(f"The file of --env-file, {path}, cannot be read ({reason}). Correct the path.") from None
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        assignment = line.strip()
        if not assignment or assignment.startswith("#"):
            continue
        parsed = _ASSIGNMENT.fullmatch(assignment)
        if parsed is None:
            raise CommandFailed(f"Line {number} of {path} is not of the form NAME=value. Correct it.")
        name, value = parsed[1], parsed[2].strip()
        found[name] = value[1:-1] if _QUOTED.fullmatch(value) else value
    return found


def make_settings(given: Mapping[str, str], **options: Any) -> Settings:
    """The settings with these variables. `options`: the other fields of `Settings`."""
    return Settings(
        environment=_for_all(given),
        setup_secrets=_secrets(given, SETUP_SECRETS),
        receiver_secrets=_secrets(given, RECEIVER_SECRETS),
        prefect_password=None if "PREFECT_API_URL" in given else given.get(PASSWORD),
        **options,
    )


def _for_all(given: Mapping[str, str]) -> dict[str, str]:
    """The variables for every part: all except the secrets that only one part needs."""
    left_out = {*SETUP_SECRETS, *RECEIVER_SECRETS}
    left_out |= {f"{name}_FILE" for name in SECRETS}
    if "PREFECT_API_URL" not in given:
        left_out |= set(_OWN_SERVER)
    # The parts inherit the rest of the environment.
    inherited = {name for name in os.environ if not name.startswith(USER_SETTING_PREFIXES)}
    return {name: value for name, value in given.items() if name not in left_out | inherited}


def _secrets(given: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The secrets with these names, or the variables with their files' paths."""
    return {each: given[each] for name in names for each in (name, f"{name}_FILE") if each in given}
