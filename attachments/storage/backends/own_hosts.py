"""One rule for S3, Azure and Google: the worker's own credentials go to the service's own hosts, over HTTPS, alone.

The writer of a store's block chooses its options, and could otherwise read on a host of their own what the worker's
environment, files or machine identify it with. Options that bring credentials of their own may lead anywhere, and so
may the worker's environment, which is its administrator's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from attachments.storage.errors import UnsupportedStore


def check_host(option: str, host: object, own: re.Pattern[str], remedy: str, variables: Sequence[str] = ()) -> None:
    """Refuses a host or an endpoint that is neither the service's own nor the one that such a variable names."""
    named = {os.environ.get(variable, "").rstrip("/") for variable in variables}
    if host and not own.fullmatch(str(host)) and str(host).rstrip("/") not in named:
        raise UnsupportedStore(
            f"the option {option} leads to a host that is not the service's own over HTTPS, and would get the "
            f"worker's own credentials; {remedy}"
        )


def check_transport(
    where: str, options: Mapping[str, Any], harmless: Set[str], usual: Mapping[str, Any], remedy: str
) -> None:
    """Refuses what could show requests to others: all but the harmless options, and those with their usual value."""
    others = {name for name in options if name not in harmless and not (name in usual and options[name] == usual[name])}
    if others:
        raise UnsupportedStore(
            f"{', '.join(sorted(map(str, others)))} in {where} could show the worker's own credentials to others; "
            f"remove it, or {remedy}"
        )
