"""The webhook's secrets that are valid now, and whether one of them could be guessed."""

from collections.abc import Sequence

VARIABLE = "EMAILGISTICS_WEBHOOK_SECRET"
SHORT = 16  # characters, below which a secret can be guessed
SHORT_PART = (
    f"{VARIABLE} has a comma-separated part of fewer than {SHORT} characters. Each part is a valid secret by itself, "
    "so this one could be guessed."
)
LONGER_PARTS = (
    f"Give every part {SHORT} characters or more, here and in Emailgistics Admin. If the value is one secret that "
    "holds a comma, replace it with one that holds none."
)
TOO_SHORT = f"{VARIABLE} is shorter than {SHORT} characters, so it can be guessed."
LONGER = "Set a longer one here and in Emailgistics Admin."


def split_secrets(value: str) -> list[str]:
    """The secrets that a value stands for: the whole value first, for a secret may hold a comma, then its parts."""
    whole = value.strip()
    parts = [part.strip() for part in whole.split(",") if part.strip()]
    return [whole, *parts] if parts and "," in whole else parts


def has_short_part(secrets: Sequence[str]) -> bool:
    """Whether a part of the value, which opens the receiver, could be guessed. The receiver does not start then."""
    return any(len(part) < SHORT for part in secrets[1:])


def is_short(secrets: Sequence[str]) -> bool:
    """Whether the only secret could be guessed."""
    return len(secrets) == 1 and len(secrets[0]) < SHORT
