"""Labels of flow runs, written and read by the worker and long-running flows.

Anyone who can reach Prefect's API can write labels. So they are read only by `count_label` and `id_label`, which treat
an impossible value as a missing label.
"""

import re
from collections.abc import Mapping

CRASH_COUNT = "attachments.worker.deaths"
"""How often the run has crashed since its last progress, mostly because its worker died."""
ORIGIN = "attachments.continues"
"""The id of the first run, of which this one is a continuation."""

_ID = re.compile(r"[0-9A-Za-z/-]{1,2000}", re.ASCII)
_LARGEST = 1_000_000_000


def count_label(labels: Mapping[str, object], name: str) -> int | None:
    """The number in a label; None if the label is missing or not a count."""
    value = labels.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST:
        return value
    return None


def id_label(labels: Mapping[str, object], name: str) -> str | None:
    """The id in a label; None if the label is missing or not an id."""
    value = labels.get(name)
    return value if isinstance(value, str) and _ID.fullmatch(value) else None
