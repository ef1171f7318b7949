"""Labels of flow runs, which the worker and long-running flows write and read.

Anyone who reaches Prefect's API can write others into them. So they are read by `count_label` and `id_label` alone:
a value that none of ours could be counts as no label.
"""

import re
from collections.abc import Mapping

CRASH_COUNT = "attachments.worker.deaths"
"""How often the run has broken off, mostly because its worker died, since it last made progress."""
ORIGIN = "attachments.continues"
"""Of a run that continues another: the first one's id."""

_ID = re.compile(r"[0-9A-Za-z/-]{1,2000}", re.ASCII)
_LARGEST = 1_000_000_000


def count_label(labels: Mapping[str, object], name: str) -> int | None:
    """The number that a label holds; None where there is no such label, or it holds no count."""
    value = labels.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST:
        return value
    return None


def id_label(labels: Mapping[str, object], name: str) -> str | None:
    """The id that a label holds; None where there is no such label, or it holds anything else."""
    value = labels.get(name)
    return value if isinstance(value, str) and _ID.fullmatch(value) else None
