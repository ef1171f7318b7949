"""Takes the pictures of docs/images: of a running installation with a stand-in Emailgistics. `make images`."""

import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from tests.e2e.installation import Installation, installation, until
from tests.ui.browser import WINDOW, fill, log_in, opened, show

IMAGES = Path(__file__).parents[2] / "docs" / "images"
MOVING = 4000
"""Milliseconds until what moves on a page stands still, a run's graph above all."""
MANY = 90
SHOWN = 0.3
"""How far the backfill is, at least, when its progress is pictured."""
LIMITS = {"emailgistics-api": 100, "emailgistics-backfill": 60}
"""As `attachments setup` makes them; elsewhere in the tests they are larger."""
PER_MINUTE = LIMITS["emailgistics-backfill"] // 2
"""Messages of one attachment, each of which takes two calls."""


def main() -> int:
    """Takes them all."""
    IMAGES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="attachments-images-") as folder,
        installation(Path(folder)) as everything,
        opened(everything.stack.api_url.removesuffix("/api")) as page,
    ):
        log_in(page, ":".join(everything.stack.prefect_password))
        for name, slots in LIMITS.items():
            everything.change(f"v2/concurrency_limits/{name}", {"limit": slots})
        _deployments(page)
        _forms(everything, page)
        _message(everything, page)
        _missed(everything, page)
        _backfill(everything, page)
    return 0


def _deployments(page: Page) -> None:
    show(page, "/deployments", until="reconcile-attachments")
    _take(page, "deployments")


def _forms(everything: Installation, page: Page) -> None:
    page.set_viewport_size({**WINDOW, "height": 1650})  # a form is longer than a screen
    for flow in ("download", "backfill", "reconcile", "purge"):
        deployment = everything.deployment(f"{flow}-attachments/default")
        show(page, f"/deployments/deployment/{deployment['id']}/run", until="Run Name")
        if flow == "purge":
            fill(page, "older_than_days", 365)
        _take(page, f"form-{flow}")
    page.set_viewport_size(WINDOW)


def _message(everything: Installation, page: Page) -> None:
    """A run with its mapped tasks, and its artifact."""
    parts = [{"name": f"invoice {number}.pdf", "bytes": 400_000} for number in range(9)]
    message = everything.sandbox.control.add_message(attachments=[*parts, {"name": "logo.png", "bytes": 4000}])
    everything.deploy("invoices", filter={"include": [{"content_types": ["application/pdf"]}]})
    everything.send(message, "invoices")  # a run that a webhook starts has its message's key for its name
    run = everything.ended_run(message)
    show(page, f"/runs/flow-run/{run['id']}?tab=TaskRuns", until=run["name"])
    page.get_by_text("write-manifest").first.wait_for()
    _take(page, "run")
    _artifact(everything, page, run, "stored", "artifact")


def _missed(everything: Installation, page: Page) -> None:
    """What a reconciliation shows when it found something."""
    box = "invoices@example.com"
    came = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600))
    asked = [{"mailbox": box, "received": came, "attachments": [{"name": "a.pdf", "bytes": 1000}]} for _ in range(4)]
    everything.sandbox.control.add_messages(asked)
    run = everything.run_deployment(flow="reconcile-attachments", mailboxes=[box])
    _artifact(everything, page, run, "stored now", "missed")


def _backfill(everything: Installation, page: Page) -> None:
    """Its progress while it is under way."""
    asked = [{"attachments": [{"name": "old.pdf", "bytes": 1000}]} for _ in range(MANY)]
    messages = everything.sandbox.control.add_messages(asked)
    ids = [message["id"] for message in messages]
    run = everything.start_deployment(flow="backfill-attachments", message_ids=ids)

    def is_at_its_pace() -> bool:
        """The first minute's calls go out at once; after that it is as fast as it stays."""
        bars = [found for found in everything.artifacts(run["id"]) if found["type"] == "progress"]
        pace = re.search(r"([\d,]+) a minute", bars[0]["description"]) if bars else None
        return pace is not None and float(bars[0]["data"]) >= 100 * SHOWN and int(pace[1]) <= PER_MINUTE

    until(is_at_its_pace, "the backfill to get on", 300)
    (bar,) = (found for found in everything.artifacts(run["id"]) if found["type"] == "progress")
    (table,) = (found for found in everything.artifacts(run["id"]) if found["type"] == "markdown")
    show(page, f"/artifacts/artifact/{bar['id']}", until="messages")
    _take(page, "backfill-progress")
    show(page, f"/artifacts/artifact/{table['id']}", until="done now")
    _take(page, "backfill-table")


def _artifact(everything: Installation, page: Page, run: dict[str, Any], until: str, name: str) -> None:
    (found,) = everything.artifacts(run["id"])
    show(page, f"/artifacts/artifact/{found['id']}", until=until)
    _take(page, name)


def _take(page: Page, name: str) -> None:
    page.wait_for_timeout(MOVING)
    page.screenshot(path=IMAGES / f"{name}.png")
    print(f"docs/images/{name}.png")


if __name__ == "__main__":
    sys.exit(main())
