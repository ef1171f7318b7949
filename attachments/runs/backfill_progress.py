"""A backfill's progress in the Prefect UI: a bar and a table, with only numbers and codes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.exceptions import ObjectNotFound

from attachments.domain.progress import Counts, Estimate, RateEstimator
from attachments.foundation.numerals import counted
from attachments.prefect_api.prefect_retry import PrefectUnreachable, own_client

EVERY = 10.0  # seconds between two updates
TIMEOUT = 10.0  # seconds for Prefect to store one, so that it does not delay the work
Total = Callable[[Counts], int | None]
BAR, TABLE = "backfill-progress", "backfill"


class Progress:
    """The bar and the table of one run."""

    def __init__(self, client: SyncPrefectClient, run_id: UUID, total: Total, tag: str) -> None:
        self._client = client
        self._run_id = run_id
        self._tag = tag
        self._total = total
        self._pace = RateEstimator()
        self._shown = -EVERY
        self._bar: UUID | None = None
        self._table: UUID | None = None

    def show(self, counts: Counts, *, is_last: bool = False) -> None:
        """Show these counts, at most every `EVERY` seconds, except the last ones."""
        now = time.monotonic()
        if not is_last and now - self._shown < EVERY:
            return
        self._shown = now
        total = counts.seen if is_last else self._total(counts)
        estimate = self._pace.estimate(counts, total, now)
        # What cannot be shown now is shown the next time; the work goes on.
        with suppress(PrefectUnreachable, httpx.HTTPError, ObjectNotFound):
            self._bar = self._put(self._bar, BAR, "progress", _share(estimate), _line(counts, estimate))
            self._table = self._put(self._table, TABLE, "markdown", _markdown(counts, estimate, self._tag), None)

    def _put(self, known: UUID | None, key: str, kind: str, data: float | str, description: str | None) -> UUID:
        if known is None:
            made = ArtifactCreate(key=key, type=kind, data=data, description=description, flow_run_id=self._run_id)
            return self._client.create_artifact(made).id
        self._client.update_artifact(known, ArtifactUpdate(data=data, description=description))
        return known


def _share(estimate: Estimate) -> float:
    return round(100 * (estimate.share or 0.0), 1)


def _line(counts: Counts, estimate: Estimate) -> str:
    if estimate.total is None:
        said = f"{counted(counts.ended, 'message')}; how many there are shows in the end"
    else:
        said = f"{counts.ended:,} of {counted(estimate.total, 'message')}"
    return ", ".join([said, *_pace(estimate)])


def _pace(estimate: Estimate) -> list[str]:
    pace = [f"{estimate.per_minute:,.0f} a minute"] if estimate.per_minute is not None else []
    return [*pace, f"until about {_clock(estimate.end)}"] if estimate.end else pace


def _clock(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _markdown(counts: Counts, estimate: Estimate, tag: str) -> str:
    to_do = "not known yet" if estimate.total is None else f"{estimate.total - counts.ended:,}"
    rows = [
        ("done now", f"{counts.succeeded:,}"),
        ("done before", f"{counts.already_done:,}"),
        ("named twice", f"{counts.duplicates:,}"),
        ("failed", f"{counts.failures:,}"),
        ("failed for now, retried automatically", f"{counts.retry_scheduled:,}"),
        ("cancelled", f"{counts.cancelled:,}"),
        ("under way", f"{counts.running:,}"),
        ("to do", to_do),
        ("messages a minute", "" if estimate.per_minute is None else f"{estimate.per_minute:,.0f}"),
        ("estimated end", _clock(estimate.end) if estimate.end else ""),
    ]
    lines = ["| messages | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)]
    if counts.failed:
        ordered = sorted(counts.failed.items(), key=lambda item: (-item[1], item[0]))
        lines += ["", "| failed with code | messages |", "| --- | ---: |"]
        lines += [f"| `{code}` | {count:,} |" for code, count in ordered]
        lines += ["", "docs/errors.md says what each code means and what to do."]
    lines += ["", f"Each message has a run of its own: look for the tag `{tag}` under Runs."]
    return "\n".join(lines)


@contextmanager
def progress(run_id: UUID, total: Total, tag: str) -> Iterator[Progress]:
    """What a run shows; `total` gives the number of messages, None while it is not known."""
    with own_client(TIMEOUT, raise_if_unreachable=True) as client:
        yield Progress(client, run_id, total, tag)
