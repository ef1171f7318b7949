"""The HTTP transport beneath Prefect's clients, made of public parts and with the properties of Prefect's own.

A transport in `get_client(httpx_settings=...)` takes the place of the one that Prefect would make, and httpx then reads
no proxy from the environment. So this module reads Prefect's settings and the environment itself.
"""

import ssl
from urllib.request import getproxies, proxy_bypass

import httpx
from prefect.settings import (
    PREFECT_API_ENABLE_HTTP2,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_TLS_INSECURE_SKIP_VERIFY,
    PREFECT_API_URL,
)

LIMITS = httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=25)
"""Those of Prefect's clients (prefect/client/orchestration)."""
CONNECT_RETRIES = 3  # attempts after the first failed one to open a connection; as Prefect's clients


def direct_transport() -> httpx.BaseTransport:
    """A transport to Prefect's API. Raises `httpx.InvalidURL` for the address, and `OSError` for the certificates."""
    return httpx.HTTPTransport(
        verify=ssl_context(),
        http2=PREFECT_API_ENABLE_HTTP2.value(),
        limits=LIMITS,
        retries=CONNECT_RETRIES,
        proxy=environment_proxy(PREFECT_API_URL.value()),
    )


def direct_async_transport() -> httpx.AsyncBaseTransport:
    """The same for asynchronous clients."""
    return httpx.AsyncHTTPTransport(
        verify=ssl_context(),
        http2=PREFECT_API_ENABLE_HTTP2.value(),
        limits=LIMITS,
        retries=CONNECT_RETRIES,
        proxy=environment_proxy(PREFECT_API_URL.value()),
    )


def ssl_context() -> ssl.SSLContext:
    """The certificates that Prefect's settings name; without a setting, those of certifi."""
    if PREFECT_API_TLS_INSECURE_SKIP_VERIFY.value():
        return httpx.create_ssl_context(verify=False)
    if cert_file := PREFECT_API_SSL_CERT_FILE.value():
        return ssl.create_default_context(cafile=cert_file)
    return httpx.create_ssl_context(trust_env=False)


def environment_proxy(url: str | None) -> str | None:
    """The proxy that the environment names for a URL, by Python's rules, which Prefect's websockets follow as well."""
    address = httpx.URL(url or "")
    if not address.host or proxy_bypass(address.host):
        return None
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"
