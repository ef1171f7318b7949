"""What others read from the final state of a run: whoever holds an answer until it has ended, or counts failures."""

import re

FAILED_FOR_NOW = "FailedForNow"
"""The name of the state of a run that failed for a reason that can pass. Its type is Prefect's FAILED."""

_STORED = re.compile(r"\bOf [0-9]+ attachments ([0-9]+) stored\b")


def stored_count(sentence: str) -> int:
    """How many of the message's attachments are in the store, by what a run's final state says."""
    found = _STORED.search(sentence)
    return int(found[1]) if found else 0
