"""The receiver that serves HTTPS by itself."""

import resource
import socket
import ssl
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.servers.certificates import make_certificate

from .conftest import Receiver
from .sockets import connect, unverified_context
from .test_faults import drained

Make = Callable[..., Receiver]
FIRST_BYTE = b"\x16"  # of a ClientHello
MIN_LENGTH = {"handshake_timeout": 5.0, "first_byte_timeout": 5.0}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "receiver.pem")


@pytest.fixture
def make_https(make: Make, certificate: Path) -> Make:
    def make_https(**options: object) -> Receiver:
        tls = ("--tls-certificate", str(certificate), "--tls-key", str(certificate))
        receiver = make(options=tls, **options)
        receiver.process.start()
        return receiver

    return make_https


@contextmanager
def connections(receiver: Receiver, count: int, first: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that have sent these bytes and no more."""
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(receiver.url)) for _ in range(count)]
        for connection in opened:
            connection.sendall(first)
        yield opened


def resident_mib(receiver: Receiver) -> float:
    status = Path(f"/proc/{receiver.process.pid}/status").read_text()
    (kib,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(kib) / 1024


def test_a_webhook_over_https_is_accepted_and_dispatched(make_https: Make) -> None:
    """With TLS 1.2 as with 1.3; an older version is refused, and SIGTERM ends the receiver in good order."""
    receiver = make_https()
    receiver.until(lambda: receiver.deliver("a").status_code == 200, "the deployments to be known")
    receiver.until_empty()
    context = unverified_context()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context.minimum_version = context.maximum_version = version
        with connect(receiver.url) as plain, context.wrap_socket(plain) as encrypted:
            encrypted.sendall(b"GET /health HTTP/1.1\r\nHost: receiver\r\nConnection: close\r\n\r\n")
            assert encrypted.recv(12) == b"HTTP/1.1 200"
    context.set_ciphers("ALL:@SECLEVEL=0")  # OpenSSL's client itself offers no TLS 1.1 otherwise
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with connect(receiver.url) as plain, pytest.raises(ssl.SSLError, match="EOF occurred"):  # asyncio sends no alert
        context.wrap_socket(plain)
    assert receiver.process.stop() == 0


def test_clients_that_never_complete_a_handshake_are_closed_without_a_log_line(make_https: Make) -> None:
    """They send nothing, one byte, or what is not TLS at all; webhooks are answered beside them."""
    receiver = make_https(tuning=MIN_LENGTH)
    lines = len(receiver.log.splitlines())
    request = b"GET /health HTTP/1.1\r\nHost: receiver\r\n\r\n"
    with ExitStack() as stack:
        opened = [
            connection
            for first in (b"", FIRST_BYTE, request)
            for connection in stack.enter_context(connections(receiver, 20, first))
        ]
        assert receiver.get("/health").is_success
        assert b"HTTP" not in b"".join(drained(connection) for connection in opened)
    assert len(receiver.log.splitlines()) == lines


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as a thousand connections take, here and in the receiver; many systems allow 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize(("first", "most_mib"), [(b"", 25), (FIRST_BYTE, 150)], ids=["silent", "one byte"])
def test_a_thousand_connections_without_a_handshake_take_little_memory(
    make_https: Make, first: bytes, most_mib: float
) -> None:
    """Silent ones cost no TLS buffers at all, those that begin a handshake small ones."""
    receiver = make_https()
    before = resident_mib(receiver)
    with connections(receiver, 1000, first):
        assert receiver.get("/health").is_success
        assert resident_mib(receiver) - before < most_mib


def test_the_oldest_connection_makes_room_for_a_new_one(make_https: Make) -> None:
    """However many wait, a client that does complete its handshake is served, and the newest are left alone."""
    receiver = make_https(tuning={"max_unauthenticated": 10})
    with connections(receiver, 30, b"") as opened:
        assert [drained(connection) for connection in opened[:20]] == [b""] * 20
        for connection in opened[25:]:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
        assert receiver.get("/health").is_success


def test_a_stop_closes_connections_without_a_handshake(make_https: Make) -> None:
    receiver = make_https()
    with connections(receiver, 5, b"") as opened:
        assert receiver.get("/health").is_success
        assert receiver.process.stop() == 0
        assert [drained(connection) for connection in opened] == [b""] * 5
    assert "Traceback" not in receiver.log
