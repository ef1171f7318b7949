"""`attachments status` with parts missing; tests/e2e shows it whole."""

import json
import socket
import sys
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from attachments.cli.actions.status_report import (
    MAX_MAILBOXES,
    Calls,
    InboxStatus,
    Reconciled,
    StatusReport,
    read_status,
    to_lines,
)
from attachments.cli.main import main
from attachments.receiver.inbox import Inbox

LONG = 1000.0
"""Seconds; longer than a test may take."""
NAMES = {"inbox", "workers", "runs", "calls", "reconciliation", "problems"}
RUNS = (
    "scheduled",
    "late",
    "pending",
    "running",
    "cancelling",
    "paused",
    "completed",
    "failed",
    "crashed",
    "cancelled",
)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (None, "PREFECT_API_URL is not set."),
        ("http://127.0.0.1:9/api", "Prefect does not respond"),
        ("http://127.0.0.1:4200api", "PREFECT_API_URL is not a valid URL."),
    ],
)
def test_without_prefect_it_shows_the_inbox_and_says_what_is_missing(
    url: str | None, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each problem once, with what to do; status 1."""
    inbox = tmp_path / "inbox.sqlite"
    Inbox(inbox).close()
    with temporary_settings({PREFECT_API_URL: url}):
        lines = list(to_lines(read_status(inbox, seconds=LONG)))
        document = read_status(tmp_path / "none.sqlite", seconds=LONG).model_dump(mode="json")
        assert main(["status", "--inbox", str(inbox)]) == 1
        assert text in capsys.readouterr().out
        assert main(["status", "--json", "--inbox", str(inbox)]) == 1
        assert set(json.loads(capsys.readouterr().out)) == NAMES
    assert lines[0].startswith(f"UNKNOWN         {text}"), "the useful thing first"
    assert lines[1] == "inbox           0 deliveries wait"
    assert len(lines) == 2
    assert set(document) == NAMES
    assert document["inbox"] is document["runs"] is document["calls"] is document["workers"] is None
    assert len(document["problems"]) == 1


def test_a_socks_proxy_without_its_package_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's client cannot even be made then."""
    monkeypatch.setitem(sys.modules, "socksio", None)  # it may be installed
    monkeypatch.setenv("ALL_PROXY", "socks5://user:password@127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with temporary_settings({PREFECT_API_URL: "https://prefect.example/api"}):
        assert main(["status", "--inbox", str(tmp_path / "none.sqlite")]) == 1
    text = capsys.readouterr().out
    assert "UNKNOWN         The proxy that the environment sets for Prefect's server needs a package" in text
    assert "httpx[socks]" in text
    assert "password" not in text


def test_the_answers_of_a_prefect_that_hangs_share_their_time(tmp_path: Path) -> None:
    """Once it is over, no further answer is waited for: each of them would have longer than this test."""
    moments = chain([0.0], repeat(LONG))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url}):
            found = read_status(tmp_path / "inbox.sqlite", seconds=LONG, clock=lambda: next(moments))
    assert found == StatusReport(problems=found.problems)
    (problem,) = found.problems
    assert "did not respond in time" in problem


def test_an_inbox_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    """It is not taken for an empty one."""
    (tmp_path / "inbox.sqlite").write_bytes(b"\x00rubbish" * 1000)
    with temporary_settings({PREFECT_API_URL: None}):
        found = read_status(tmp_path / "inbox.sqlite", seconds=LONG)
    assert found.inbox is None
    assert any("The inbox " in problem for problem in found.problems)


def test_all_of_it_on_a_terminal() -> None:
    """A line for each thing; of hundreds of mailboxes those that lag behind."""
    runs: dict[str, Any] = dict.fromkeys(RUNS, 0)
    marks = tuple(
        Reconciled(
            mailbox_key=f"{n:032x}", account="default", deployment="d", until=datetime(2026, 1, 1, n % 24, tzinfo=UTC)
        )
        for n in range(MAX_MAILBOXES + 2)
    )
    lines = list(
        to_lines(
            StatusReport(
                inbox=InboxStatus(entries=3, oldest_seconds=12.4),
                workers=2,
                runs={**runs, "scheduled": 5, "late": 2, "running": 1, "cancelling": 1, "completed": 7},
                calls={"emailgistics-api": Calls(last_minute=37, limit=100)},
                reconciliation=marks,
            )
        )
    )
    assert lines[:6] == [
        "inbox           3 deliveries wait, the oldest for 12 s",
        "workers         2 alive",
        "runs now        5 scheduled, 0 pending, 1 running, 1 cancelling (2 late)",
        "runs, 24 hours  7 completed, 0 failed, 0 crashed, 0 cancelled",
        "calls           37 of 100 in the last minute (emailgistics-api)",
        f"reconciliation  up to 2026-01-01T00:00:00Z: mailbox {0:032x} of account default (d)",
    ]
    assert lines[-1] == "reconciliation  2 more mailboxes are further; --json has them"
    assert len(lines) == 5 + MAX_MAILBOXES + 1
