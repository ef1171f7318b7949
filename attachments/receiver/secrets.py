"""Parses the valid webhook secrets, and rejects those that could be guessed."""

from collections.abc import Sequence

VARIABLE = "EMAILGISTICS_WEBHOOK_SECRET"
MIN_LENGTH = 16  # characters; a shorter secret could be guessed
SHORT_PART_MESSAGE = (
    f"{VARIABLE} has a comma-separated part of fewer than {MIN_LENGTH} characters. Each part is a valid secret by "
    "itself, "
    "so this one could be guessed."
)
SHORT_PART_REMEDY = (
    f"Give every part {MIN_LENGTH} characters or more, here and in Emailgistics Admin. If the value is one secret that "
    "contains a comma, replace it with one that contains none."
)
SHORT_MESSAGE = f"{VARIABLE} is shorter than {MIN_LENGTH} characters, so it can be guessed."
SHORT_REMEDY = "Set a longer one here and in Emailgistics Admin."


def split_secrets(value: str) -> list[str]:
    """The secrets in a value: the whole value first, because a secret may contain a comma, then its parts."""
    whole = value.strip()
    parts = [part.strip() for part in whole.split(",") if part.strip()]
    return [whole, *parts] if parts and "," in whole else parts


def has_short_part(secrets: Sequence[str]) -> bool:
    """Whether a part of the value could be guessed; each part is a valid secret, so the receiver then refuses to
    start."""
    return any(len(part) < MIN_LENGTH for part in secrets[1:])


def is_short(secrets: Sequence[str]) -> bool:
    """Whether the only secret could be guessed."""
    return len(secrets) == 1 and len(secrets[0]) < MIN_LENGTH
