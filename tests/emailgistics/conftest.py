"""What the tests of the vendor's contract share."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.certificates import make_certificate

from .raw_server import RawServer


@pytest.fixture
def vendor() -> Iterator[RawServer]:
    """A stand-in for the vendor that writes what it is told."""
    with RawServer() as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key, in one file, for 127.0.0.1 and vendor.test."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "vendor.pem")


@pytest.fixture
def tls_vendor(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawServer]:
    """The same behind TLS, with a certificate that the client trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with RawServer(context) as server:
        yield server
