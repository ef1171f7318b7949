"""Names from the parameters of a run stand in states and logs, which everybody with the UI and a terminal reads."""

from collections.abc import Callable

import pytest
from prefect.exceptions import ObjectNotFound

from attachments.emailgistics import EmailgisticsError
from attachments.foundation.terminal_text import MAX_TEXT_LENGTH, shown_name
from attachments.rate_limit.errors import PacingError
from attachments.runs import block_loader, child_runs
from attachments.runs.artifacts import failed_state
from attachments.runs.block_loader import load_account, load_store
from attachments.runs.child_runs import DownloadDeployment
from attachments.runs.errors import NotConfigured

HOSTILE = "\x1b]0;x\x07\x9b1A\u202e\u3164\nRun another one"


@pytest.mark.parametrize("load", [load_account, load_store, DownloadDeployment.load])
@pytest.mark.parametrize("name", [HOSTILE, HOSTILE + "x" * 100_000], ids=["short", "long"])
def test_the_name_of_what_is_not_there_is_harmless(
    load: Callable[[str], object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an account, a store and a deployment: escaped, and cut."""

    def missing(_: Callable[[], object]) -> object:
        raise ObjectNotFound(OSError()) if load == DownloadDeployment.load else ValueError

    for module in (block_loader, child_runs):
        monkeypatch.setattr(module, "retry_until_available", missing)
    with pytest.raises(NotConfigured) as caught:
        load(name)
    text = str(caught.value)
    assert text.isprintable()
    assert "\\x1b]0;x" in text
    assert len(text) < 2 * MAX_TEXT_LENGTH + 200


@pytest.mark.parametrize("kind", [NotConfigured, PacingError, EmailgisticsError])
def test_no_error_reaches_a_state_unescaped(kind: type[Exception]) -> None:
    """Whatever it quotes."""
    message = failed_state(kind(f"the limit {HOSTILE} is missing.")).message or ""  # type: ignore[arg-type]
    assert message.isprintable()
    assert "\u3164" not in message


def test_a_plain_name_stands_as_it_is() -> None:
    """So that it can be searched for."""
    assert shown_name("Köln-1 (old)") == "Köln-1 (old)"
