"""No request to this machine goes through a proxy, and no secret to another machine by plain HTTP."""

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import websockets.proxy
import websockets.uri
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from attachments.cli.main import main
from attachments.demo.processes import wait_for
from attachments.doctor.network import check_network
from attachments.foundation import loopback
from attachments.foundation.loopback import bypass_proxies, is_exposed, is_loopback
from attachments.sandbox.__main__ import main as sandbox
from attachments.worker.warm_worker import WarmWorker
from tests.receiver.conftest import environment, make_receiver
from tests.receiver.prefect_stub import PrefectStub
from tests.servers.recorder import Recorder, recording

MESSAGE = "AAMkAGI="
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY")
PASSWORD = "user:canary-password"
SECRET = "canary-of-the-webhook"
KEY = "canary-of-the-api-key"


@pytest.fixture
def proxy() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


@pytest.fixture
def service() -> Iterator[Recorder]:
    """What the commands mean to reach: it is alive as Prefect is, and knows nothing."""
    with recording() as recorder:
        yield recorder


@pytest.fixture(autouse=True)
def surroundings(proxy: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable that names a proxy does, and none that takes a host out of it."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # so that it is put back after the test
        monkeypatch.delenv(name)
    for name in PROXIES:
        monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv(name.lower(), proxy.url)
    monkeypatch.setattr(loopback, "_added", set())
    monkeypatch.setenv("EMAILGISTICS_WEBHOOK_SECRET", SECRET)
    for name in ("ATTACHMENTS_URL", "ATTACHMENTS_STORAGE_OPTIONS"):
        monkeypatch.delenv(name, raising=False)


def at(service: Recorder, host: str) -> str:
    return service.url.replace("127.0.0.1", host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
@pytest.mark.parametrize(
    "command",
    [["status"], ["doctor", "--no-receiver"], ["setup"], ["preview", MESSAGE]],
    ids=["status", "doctor", "setup", "preview"],
)
def test_commands_reach_a_prefect_on_this_machine_without_a_proxy(
    command: list[str], host: str, proxy: Recorder, service: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its password is seen by nobody else, whatever the environment says of proxies."""
    monkeypatch.setenv("EMAILGISTICS_API_KEY", KEY)
    monkeypatch.setenv("EMAILGISTICS_BASE_URL", f"{service.url}/api/v1")
    monkeypatch.setenv("ATTACHMENTS_URL", tmp_path.as_uri())
    monkeypatch.setenv("ATTACHMENTS_INBOX", str(tmp_path / "inbox.sqlite"))
    settings = {
        PREFECT_API_URL: f"{at(service, host)}/api",
        PREFECT_API_AUTH_STRING: PASSWORD,
        PREFECT_CLIENT_MAX_RETRIES: 0,
    }
    with temporary_settings(settings):
        main(command)
    assert any(password and password.startswith("Basic ") for _, password in service.requests)
    assert proxy.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_a_webhook_is_sent_to_this_machine_without_a_proxy(host: str, proxy: Recorder, service: Recorder) -> None:
    """By `trigger`; the doctor asks the receiver itself as well."""
    assert main(["trigger", MESSAGE, "--url", f"{at(service, host)}/webhooks/default"]) == 1
    assert service.requests == [("POST /webhooks/default", f"Bearer {SECRET}")]
    with temporary_settings({PREFECT_API_URL: f"{at(service, host)}/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        main(["doctor", "--receiver", at(service, host)])
    assert ("POST /webhooks/default", None) in service.requests
    assert proxy.requests == []


@pytest.mark.parametrize("command", ["locate", "verify"])
def test_a_store_on_this_machine_is_reached_without_a_proxy(
    command: str, proxy: Recorder, service: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As boto and aiohttp would for an S3-compatible store."""
    monkeypatch.setenv("ATTACHMENTS_URL", "s3://bucket/root")
    options = {"endpoint_url": service.url, "key": "k", "secret": "s", "client_kwargs": {"region_name": "us-east-1"}}
    monkeypatch.setenv("ATTACHMENTS_STORAGE_OPTIONS", json.dumps(options))
    main([command, MESSAGE])
    assert service.requests
    assert proxy.requests == []


def test_the_receiver_reaches_a_prefect_on_this_machine_without_a_proxy(
    proxy: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process itself, with the proxies in its environment."""
    stub = PrefectStub()
    stub.start()
    receiver = make_receiver(tmp_path, stub)
    own = {**environment(tmp_path, stub.url), "PREFECT_API_AUTH_STRING": PASSWORD}
    del own["NO_PROXY"]
    receiver.process.environment = own
    try:
        receiver.process.start()
        assert receiver.deliver("a").status_code == 200
        wait_for(lambda: stub.message_ids == ["a"], "the run")
    finally:
        receiver.process.stop()
        stub.stop()
    assert proxy.requests == []


def test_the_worker_keeps_its_requests_and_events_off_a_proxy(
    proxy: Recorder, service: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """From the moment that its code is loaded; what `prefect` sent before is told, with what to set."""
    uri = websockets.uri.parse_uri(f"{service.url.replace('http', 'ws')}/api/events/out")
    assert websockets.proxy.get_proxy(uri) == proxy.url
    settings = {PREFECT_API_URL: f"{service.url}/api", PREFECT_API_AUTH_STRING: PASSWORD}
    with temporary_settings(settings), caplog.at_level(logging.WARNING):
        WarmWorker("attachments")
        assert loopback.BYPASS in caplog.text
        assert websockets.proxy.get_proxy(uri) is None

        async def ask() -> None:
            async with get_client() as client:
                assert await client.api_healthcheck() is None

        asyncio.run(ask())
    assert service.requests[0][1]
    assert proxy.requests == []


def test_a_worker_in_the_documented_environment_does_not_warn(
    service: Recorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _, value = loopback.BYPASS.partition("=")
    monkeypatch.setenv(name, value)
    with temporary_settings({PREFECT_API_URL: f"{service.url}/api"}), caplog.at_level(logging.WARNING):
        WarmWorker("attachments")
    assert caplog.text == ""


# ---- NO_PROXY ----


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "localhost,127.0.0.1,::1,127.0.0.9"),
        ("", "localhost,127.0.0.1,::1,127.0.0.9"),
        ("example.com, 127.0.0.1", "example.com,127.0.0.1,localhost,::1,127.0.0.9"),
        ("*", "*"),
        ("*, example.com", "*,example.com,localhost,127.0.0.1,::1,127.0.0.9"),
    ],
)
def test_what_no_proxy_says_already_stays(
    before: str | None, after: str, service: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both spellings, for programs differ in which one they prefer."""
    if before is not None:
        monkeypatch.setenv("NO_PROXY", before)
    for _ in range(2):
        bypass_proxies("http://127.0.0.9:4200/api", "http://[", "https://example.org/")
        assert os.environ["NO_PROXY"] == after
    for url in (service.url, service.url.replace("127.0.0.1", "127.0.0.9")):
        assert httpx.get(f"{url}/health").is_success


def test_an_environment_without_proxies_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name)
        monkeypatch.delenv(name.lower())
    bypass_proxies("http://127.0.0.1:4200/api")
    assert "NO_PROXY" not in os.environ


# ---- plain HTTP to another host ----


@pytest.mark.parametrize(
    "host",
    [
        "192.0.2.1",
        "example.com",
        "0.0.0.0",
        "[2001:db8::1]",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "127.0.0.1@example.com",
        "localhost:80@example.com",
        "[::ffff:192.0.2.1]",
    ],
)
def test_a_secret_is_not_sent_to_another_host_by_plain_http(
    host: str, proxy: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by `trigger` nor by the sandbox; the message says what to do."""
    url = f"http://{host}/webhooks/default"
    assert main(["trigger", MESSAGE, "--url", url]) == 1
    told = capsys.readouterr().err
    assert "Nothing was sent" in told
    assert "https://" in told
    assert SECRET not in told
    assert sandbox(["--deliver-to", url]) == 1
    told = capsys.readouterr().err
    assert "by plain HTTP; use https://" in told
    assert SECRET not in told
    assert proxy.requests == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1"])
def test_these_are_this_machine(host: str) -> None:
    assert is_loopback(host)
    assert not is_exposed("http", host)
    assert not is_exposed("https", "example.com")


def test_the_doctor_warns_of_a_way_to_prefect_that_others_can_read() -> None:
    """Refused it is not: a private network of one's own is common, and Prefect's client would go on using it."""
    (found,) = check_network("http://prefect.example:4200/api")
    assert found.status == "warning"
    assert "plain HTTP" in found.text
    assert list(check_network("https://prefect.example/api")) == []
    bypass_proxies()
    (found,) = check_network("http://127.0.0.1:4200/api")
    assert loopback.BYPASS in found.remedy
