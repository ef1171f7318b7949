"""What others read from the final state of a run: whoever holds an answer until it has ended, or counts failures."""

import re

FAILED_FOR_NOW = "FailedForNow"
"""The name of the state of a run that failed for a reason that can pass. Its type is Prefect's FAILED."""

UNKNOWN = "unexpected"

_STORED = re.compile(r"\bOf [0-9,]+ attachments? ([0-9]{1,9}) stored\b")
_CODE = re.compile(r"\bCode: ([a-z]+(?:-[a-z]+)*)\.")
_FOLLOWS = re.compile(r"\bAttempt [0-9]+ of [0-9]+ follows by itself\b")


def stored_count(sentence: str) -> int:
    """How many of the message's attachments are in the store, by what a run's final state says."""
    found = _STORED.search(sentence)
    return int(found[1]) if found else 0


def coded(sentence: str, code: str) -> str:
    """The sentence with the word for what went wrong, for `failure_code`."""
    told = sentence.rstrip()
    return f"{told if told.endswith(('.', '!', '?')) else f'{told}.'} Code: {code}."


def failure_code(sentence: str) -> str:
    """The word for what went wrong, by what a failed run's final state says."""
    found = _CODE.search(sentence)
    return found[1] if found else UNKNOWN


def follows_by_itself(sentence: str) -> bool:
    """Whether a failed run has scheduled another attempt, by what its final state says."""
    return _FOLLOWS.search(sentence) is not None
