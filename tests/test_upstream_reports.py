"""What docs/upstream reports is still so, and what we do about it helps. When it is fixed, remove that."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from attachments.worker.timings import UNCONFIRMED

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "upstream" / "prefect-sqlite-events.md"
DEFAULT_BATCH = 20


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("known", "batch", "lost"), [(100, 200, 100), (UNCONFIRMED, DEFAULT_BATCH, 0)], ids=["reported", "ours"]
)
def test_prefects_sqlite_persister_drops_new_events_beside_known_ones(known: int, batch: int, lost: int) -> None:
    """The report's own program: with many events sent again and a large batch, and with what our worker does."""
    (program,) = re.findall(r"```python\n(import asyncio.*?)```", REPORT.read_text(), re.DOTALL)
    ran = subprocess.run(
        [sys.executable, "-c", program, str(known), "100", str(batch)], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"{lost} of 100 new events lost\n"


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_prefect_keeps_a_run_that_it_cannot_give_out() -> None:
    """The report's own program: one request, and no worker of the pool gets a run."""
    report = REPORT.with_name("prefect-unserializable-runs.md").read_text()
    (program,) = re.findall(r"```python\n(import httpx.*?)```", report, re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "create 500, runs 1, poll 500"


@pytest.mark.parametrize(
    "place", ["docs/separate-programs.md", "deploy/systemd/prefect-server.service", "attachments/demo/services.py"]
)
def test_no_settings_of_ours_make_the_servers_batches_larger(place: str) -> None:
    """A larger one loses events when the server is restarted; and events are written within a second, for runs wait."""
    text = (ROOT / place).read_text()
    assert not re.search(r"EVENT_PERSISTER_BATCH_SIZE\W{1,5}\d", text)
    assert re.search(r"EVENT_PERSISTER_FLUSH_INTERVAL\W{1,5}1\b", text)
