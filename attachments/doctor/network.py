"""Checks the network path to Prefect: whether others can read the requests."""

from collections.abc import Iterator

import httpx

from attachments.doctor.findings import Finding, warning
from attachments.foundation.loopback import BYPASS, is_exposed, is_proxied_for_others


def check_network(url: str) -> Iterator[Finding]:
    """Warn of plain HTTP to another host, and of a proxy between `prefect` and a server on this machine."""
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:  # reported where the URL is used
        return
    if address.host and is_exposed(address.scheme, address.host):
        yield warning(
            "network",
            "PREFECT_API_URL is plain HTTP to another host: anyone on that network can read Prefect's password and, "
            "in blocks, the API key of Emailgistics.",
            "Use https:// through a TLS proxy in front of Prefect's server, or a tunnel, unless you trust everyone "
            "on that network.",
        )
    if is_proxied_for_others(address.host):
        yield warning(
            "network",
            "The environment sets a proxy, and NO_PROXY does not list this machine: the command `prefect` sends "
            "Prefect's password to the proxy.",
            f"Set {BYPASS} in the environment of the worker and of every `prefect` command.",
        )
