"""The transport has what Prefect's own would have: its certificates, and the environment's proxy."""

import ssl
from collections.abc import Mapping
from pathlib import Path

import certifi
import httpx
import pytest
from prefect.settings import (
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_TLS_INSECURE_SKIP_VERIFY,
    PREFECT_API_URL,
    temporary_settings,
)

from attachments.prefect_api.prefect_retry import own_client
from attachments.prefect_api.transport import environment_proxy, ssl_context
from tests.servers.recorder import recording

PROXY = "http://proxy.example:3128"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://prefect.example/api", None),
        ({"https_proxy": PROXY}, "https://prefect.example/api", PROXY),
        ({"https_proxy": PROXY}, "http://prefect.example/api", None),
        ({"all_proxy": PROXY}, "http://prefect.example/api", PROXY),
        ({"https_proxy": "proxy.example:3128"}, "https://prefect.example/api", PROXY),
        ({"all_proxy": PROXY, "no_proxy": "prefect.example"}, "https://prefect.example/api", None),
        ({"all_proxy": PROXY, "no_proxy": "example"}, "https://prefect.example/api", None),
        ({"all_proxy": PROXY, "no_proxy": "*"}, "https://prefect.example/api", None),
        ({"all_proxy": PROXY, "no_proxy": "127.0.0.1,::1"}, "http://127.0.0.1:4200/api", None),
        ({"all_proxy": PROXY, "no_proxy": "127.0.0.1,::1"}, "http://[::1]:4200/api", None),
        ({"all_proxy": PROXY}, None, None),
    ],
)
def test_the_proxy_of_the_environment_is_used(
    environment: Mapping[str, str], url: str | None, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for the hosts that NO_PROXY names."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert environment_proxy(url) == proxy


def test_an_address_that_is_none_is_httpx_s_error() -> None:
    """The doctor knows that one."""
    with pytest.raises(httpx.InvalidURL):
        environment_proxy("http://prefect.example:port/api")


def test_requests_go_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As httpx sends them itself: with the whole address."""
    with recording() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with temporary_settings({PREFECT_API_URL: "http://prefect.example/api"}), own_client(5) as client:
            client.api_healthcheck()
        assert [request.partition(" ")[2] for request, _ in proxy.requests] == ["http://prefect.example/api/health"]


def test_certificates_are_those_of_the_settings(tmp_path: Path) -> None:
    """Without a setting those of certifi; with the one for tests, none."""
    with temporary_settings({PREFECT_API_TLS_INSECURE_SKIP_VERIFY: True}):
        assert ssl_context().verify_mode == ssl.CERT_NONE
    with temporary_settings({PREFECT_API_TLS_INSECURE_SKIP_VERIFY: False}):
        assert ssl_context().verify_mode == ssl.CERT_REQUIRED
        one = tmp_path / "one.pem"
        begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        one.write_text(begin + Path(certifi.where()).read_text().partition(begin)[2].partition(end)[0] + end + "\n")
        with temporary_settings({PREFECT_API_SSL_CERT_FILE: str(one)}):
            assert len(ssl_context().get_ca_certs()) == 1
        missing = {PREFECT_API_SSL_CERT_FILE: str(tmp_path / "missing.pem")}
        with temporary_settings(missing), pytest.raises(OSError, match="No such file"):
            ssl_context()
