"""Loopback hosts: requests to them bypass every proxy, and only they may receive a secret over plain HTTP.

A proxy of the environment (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`) sees every header of a request over plain HTTP.
httpx, websockets, requests, aiohttp and botocore use it for 127.0.0.1 as well. All of them honour `NO_PROXY`.
"""

import ipaddress
import os
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

LOOPBACK = ("localhost", "127.0.0.1", "::1")
BYPASS = f"NO_PROXY={','.join(LOOPBACK)}"

_added: set[str] = set()


def is_loopback(host: str) -> bool:
    """Whether the host can only be this machine: `localhost`, 127.0.0.0/8 or ::1."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_exposed(scheme: str, host: str) -> bool:
    """Whether others could read a request in transit: plain HTTP to another host."""
    return scheme == "http" and not is_loopback(host)


def bypass_proxies(*urls: str) -> None:
    """Make requests to loopback hosts bypass the environment's proxies, in this process and its children.

    Most libraries support no address ranges in `NO_PROXY`, so the loopback hosts in `urls` are added to it.
    """
    proxies = getproxies_environment()
    bypassed = proxies.get("no", "")
    if not proxies.keys() - {"no"} or bypassed == "*":
        return
    names = [name.strip() for name in bypassed.split(",") if name.strip()]
    missing = [host for host in dict.fromkeys((*LOOPBACK, *_loopback_hosts(urls))) if host not in names]
    if missing:
        _added.update(missing)
        # Python prefers the lower-case name, other programs the upper-case one.
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join([*names, *missing])


def is_proxied_for_others(host: str) -> bool:
    """Whether programs without `bypass_proxies`, such as `prefect`, send requests for a loopback host to a proxy."""
    return host in _added


def _loopback_hosts(urls: tuple[str, ...]) -> list[str]:
    hosts = []
    for url in urls:
        try:
            host = urlsplit(url).hostname or ""
        except ValueError:  # reported where the URL is used
            continue
        if is_loopback(host):
            hosts.append(host)
    return hosts
