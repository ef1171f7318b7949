"""A warm worker's process over thousands of runs: it is to hold in the end what it held in the beginning.

`make soak` runs it; `SOAK_RUNS=300` makes it short. With `-s` it prints its figures.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median_low
from typing import Any

import pytest

from tests.e2e.installation import FINAL, Installation, installation, until

RUNS = int(os.environ.get("SOAK_RUNS", "3000"))
ROUND = 100  # messages; after each round come a reconciliation, a backfill, a purge and a doctor
LONGEST = 3 * 3600.0  # seconds
MEMORY = 0.08  # of the resident memory that it may differ by: it breathes by some per cent from round to round

pytestmark = [pytest.mark.soak, pytest.mark.timeout(LONGEST)]


@dataclass(frozen=True)
class Held:
    """What a process holds. `resident` is in KiB; the last two are seen from within."""

    resident: int
    threads: int
    sockets: int
    files: int
    clients: int
    objects: int


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Installation]:
    with installation(tmp_path / "stack", worker_flows="*") as everything:
        yield everything


def run_all(running: Installation, messages: list[dict[str, Any]]) -> None:
    """A download run for each message, all at once, as the receiver makes them; until all have ended."""
    deployment = running.deployment("download-attachments/default")["id"]
    asked = [{"message_id": message["id"]} for message in messages]
    made = running.create_runs(deployment, asked)
    until(lambda: running.count(made, FINAL) == len(made), "a round of runs to end", LONGEST)
    assert running.count(made, {"COMPLETED"}) == len(made)


def held(running: Installation, probe: str) -> Held:
    """Once the worker has come to rest."""
    folder = Path(f"/proc/{running.stack.worker.pid}")

    def status() -> dict[str, str]:
        return dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())

    (run,) = running.create_runs(probe, [{}])
    until(lambda: running.count([run], FINAL) == 1, "the probe to end")
    clients, objects = (int(part) for part in running.run(run)["state"]["message"].split())
    threads: list[str] = []

    def rests() -> bool:
        threads.append(status()["Threads"])
        return len(threads) > 8 and len(set(threads[-8:])) == 1

    until(rests, "the worker's threads to end")
    links = []
    for link in (folder / "fd").iterdir():
        try:
            links.append(str(link.readlink()))
        except FileNotFoundError:
            continue  # closed meanwhile
    sockets = sum(link.startswith("socket:") for link in links)
    return Held(
        resident=int(status()["VmRSS"].split()[0]),
        threads=int(status()["Threads"]),
        sockets=sockets,
        files=len(links) - sockets,
        clients=clients,
        objects=objects,
    )


def typical(seen: list[Held]) -> Held:
    """The median of each figure."""
    return Held(**{name: median_low(getattr(one, name) for one in seen) for name in vars(seen[0])})


def test_thousands_of_runs_leave_nothing_behind_in_the_worker(own: Installation) -> None:
    """3,000 messages, with a reconciliation, a backfill, a purge and a doctor after each 100 of them."""
    control, probe = own.sandbox.control, own.deploy_flow(Path(__file__).with_name("probe.py"), "probe")
    began = time.monotonic()
    seen: list[Held] = []
    rounds = max(4, RUNS // ROUND)
    for number in range(rounds):
        came = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        mailbox = f"{number}@road.example"
        parts = [{"name": "a.bin", "bytes": 2_000}]
        asked = [{"mailbox": mailbox, "received": came, "attachments": parts}] * (ROUND + 2)
        messages = control.add_messages(asked)
        run_all(own, messages[:ROUND])
        backfill = {"message_ids": [message["id"] for message in messages[: ROUND + 1]]}
        others = [
            own.run_deployment(flow="backfill-attachments", patience=LONGEST, **backfill),
            own.run_deployment(flow="reconcile-attachments", patience=LONGEST, mailboxes=[mailbox], first_days=1),
            own.run_deployment(flow="purge-attachments", patience=LONGEST, older_than_days=1, dry_run=True),
        ]
        assert [run["state_type"] for run in others] == ["COMPLETED"] * len(others), [run["state"] for run in others]
        doctor = own.run_deployment(flow="doctor", patience=LONGEST)
        assert doctor["state_type"] in {"COMPLETED", "FAILED"}  # it warns of what an installation for tests lacks
        seen.append(held(own, probe))
        minutes = (time.monotonic() - began) / 60
        print(f"{(number + 1) * ROUND:5} messages, {minutes:5.1f} min: {seen[-1]}", flush=True)
    # In the first quarter what is made once is made, and the pools of connections and of the allocator fill.
    quarter = rounds // 4
    early, late = typical(seen[quarter : 2 * quarter]), typical(seen[-quarter:])
    print(f"second quarter: {early}\nlast quarter:   {late}")
    assert late.clients == early.clients
    some = max(4, rounds // 8)  # pools keep a connection or a thread more or less; a leak would be one a round or more
    assert late.threads - early.threads <= some
    assert late.sockets - early.sockets <= some
    assert late.files - early.files <= some
    assert late.objects - early.objects < 2 * quarter * ROUND, "an object or more for each message"
    assert late.resident < early.resident * (1 + MEMORY)
