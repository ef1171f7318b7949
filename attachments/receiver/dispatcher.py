"""Creates the flow runs for the entries of the inbox, a few at a time.

An entry leaves the inbox only after Prefect's API has confirmed its run. A burst of creations makes a Prefect server
with SQLite respond 503, so at most `MAX_CREATIONS` are in progress (docs/decisions.md).
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from attachments.foundation.numerals import counted
from attachments.receiver.flow_runs import FlowRuns, PrefectRefused, PrefectUnavailable, UnknownDeployment
from attachments.receiver.inbox import Entry, Inbox, InboxUnavailable
from attachments.receiver.limits import ReceiverLimits
from attachments.receiver.metrics import Metrics
from attachments.receiver.run_waiter import RunWaiter
from attachments.receiver.safe_traceback import safe_traceback
from attachments.runs.download_runs import FLOW

logger = logging.getLogger("attachments.dispatcher")

MAX_CREATIONS = 2


class Dispatcher:
    """Moves entries from the inbox to Prefect until it is stopped."""

    def __init__(
        self, inbox: Inbox, flow_runs: FlowRuns, metrics: Metrics, limits: ReceiverLimits | None = None
    ) -> None:
        self._limits = limits or ReceiverLimits()
        self.run_waiter = RunWaiter(flow_runs)
        self._inbox = inbox
        self._flow_runs = flow_runs
        self._metrics = metrics
        self._deployments: dict[str, str] = {}
        self.is_synced = False
        self._wake = asyncio.Event()
        self._retry_at: dict[int, float] = {}  # by seq: monotonic time of the next attempt
        self._refusals: dict[int, int] = {}  # by seq: how often Prefect has refused it
        self._in_progress: set[int] = set()
        self._failures = 0
        self._reminded_at = -self._limits.reminder_interval
        self._refresh_lock = asyncio.Lock()
        self._refreshed_at = -self._limits.min_refresh_interval
        self._is_unavailable = False

    @property
    def deployments(self) -> dict[str, str]:
        """The deployments that webhooks may name."""
        return self._deployments

    async def knows(self, name: str) -> bool:
        """Whether Prefect has a deployment of that name. Reads the list again if the name is missing, at most once a
        second."""
        if name not in self._deployments:
            try:
                async with asyncio.timeout(self._limits.refresh_timeout), self._refresh_lock:
                    if time.monotonic() - self._refreshed_at >= self._limits.min_refresh_interval:
                        await self._refresh_deployments()
            except TimeoutError:
                self.is_synced = False
        return name in self._deployments

    def wake(self) -> None:
        """Read the inbox now."""
        self._wake.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Dispatch while the block runs. On exit, creations in progress are cut off.

        Their entries stay, and after the next start the same idempotency key prevents a second run.
        """
        try:
            self._deployments = await self._inbox.deployments()
        except InboxUnavailable as error:
            logger.error("%s The last known deployments cannot be read; they are read from Prefect instead.", error)
        tasks = [asyncio.create_task(self._run_forever(loop)) for loop in (self._keep_refreshing, self._dispatch)]
        try:
            async with self.run_waiter.polling():
                yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_forever(self, loop: Callable[[], Awaitable[None]]) -> None:
        """The outermost loop: log an internal error as critical, and continue."""
        while True:
            try:
                await loop()
            except Exception as error:  # noqa: BLE001  logged without its text
                logger.critical(
                    "Internal error in the dispatcher; it restarts in %.0f s. Please report this: %s",
                    self._limits.idle_poll_interval,
                    safe_traceback(error),
                )
                await asyncio.sleep(self._limits.idle_poll_interval)

    async def _keep_refreshing(self) -> None:
        while True:
            async with self._refresh_lock:
                await self._refresh_deployments()
            if self.is_synced:
                try:
                    await self._report_unknown_deployments()
                except InboxUnavailable as error:
                    logger.error("%s Entries for deployments that do not exist cannot be counted.", error)
            await asyncio.sleep(
                self._limits.refresh_interval if self.is_synced else self._limits.refresh_interval_while_unavailable
            )

    async def _refresh_deployments(self) -> None:
        """Read the list of deployments. If that fails, the last one stays in use, and `is_synced` becomes False."""
        try:
            async with asyncio.timeout(self._limits.create_timeout):
                found = dict(await self._flow_runs.deployments())
        except (PrefectUnavailable, PrefectRefused, TimeoutError) as error:
            self.is_synced = False  # a deployment may have been created since
            if not self._is_unavailable:  # log once for each outage
                logger.warning(
                    "Prefect's list of deployments cannot be read (%s). Meanwhile webhooks for /default and for %s "
                    "from the last list are accepted; others get 503.",
                    _describe(error),
                    counted(len(self._deployments), "deployment"),
                )
            self._is_unavailable = True
            return
        finally:
            self._refreshed_at = time.monotonic()
        self._is_unavailable = False
        changed = found != self._deployments
        self._deployments, self.is_synced = found, True
        if changed:
            self.wake()
            try:
                await self._inbox.remember_deployments(found)
            except InboxUnavailable as error:
                logger.error("%s The list of deployments is not kept for the next start.", error)

    async def _report_unknown_deployments(self) -> None:
        """Log how many deliveries wait for deployments that do not exist."""
        if time.monotonic() - self._reminded_at < self._limits.reminder_interval:
            return
        for name, entries in (await self._inbox.depth_by_deployment()).items():
            if name not in self._deployments:
                self._reminded_at = time.monotonic()
                logger.error(
                    "%s for the deployment %s/%s, which Prefect does not have. `attachments setup` creates the default "
                    "one.",
                    counted(entries, "delivery waits", "deliveries wait"), FLOW, name,
                )  # fmt: skip

    async def _dispatch(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                if await self._start_creations(group):
                    continue
                # Not `wait_for`: before Python 3.12 it swallows a cancellation that coincides with the event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.idle_poll_interval):
                        await self._wake.wait()

    async def _start_creations(self, group: asyncio.TaskGroup) -> int:
        """Start as many creations as allowed, and return their number. While Prefect is unavailable, one at a time."""
        now = time.monotonic()
        self._retry_at = {seq: until for seq, until in self._retry_at.items() if until > now}
        room = (1 if self._failures else MAX_CREATIONS) - len(self._in_progress)
        if room <= 0:
            return 0
        try:
            entries = await self._inbox.waiting(
                room, of=self._deployments, besides=self._in_progress | self._retry_at.keys()
            )
        except InboxUnavailable as error:
            logger.error("%s Nothing is dispatched until it can be read.", error)
            await asyncio.sleep(self._limits.idle_poll_interval)
            return 0
        for entry in entries:
            self._in_progress.add(entry.seq)
            group.create_task(self._create_run(entry, self._deployments[entry.deployment]))
        return len(entries)

    async def _create_run(self, entry: Entry, deployment_id: str) -> None:
        self._delay(entry, self._limits.refused_retry_delay)  # after an internal error, others come first
        try:
            async with asyncio.timeout(self._limits.create_timeout):
                run_id = await self._flow_runs.create(entry, deployment_id)
            self._failures = 0
            await self._inbox.remove(entry)
            # Only after the removal: a second request for the same message must get the outcome too.
            self.run_waiter.run_created(entry, run_id)
            self._retry_at.pop(entry.seq, None)
            self._refusals.pop(entry.seq, None)
            self._metrics.dispatched.inc()
        except UnknownDeployment as error:
            self._failures = 0
            self._delay(entry, self._limits.refresh_interval)
            logger.warning(
                "Message %s waits for %s: %s. It is retried after the list of deployments has been read again.",
                entry.message_key, entry.deployment, error,
            )  # fmt: skip
        except PrefectRefused as error:
            self._failures = 0
            times = self._refusals[entry.seq] = self._refusals.get(entry.seq, 0) + 1
            pause = min(self._limits.max_refused_retry_delay, self._limits.refused_retry_delay * times)
            self._delay(entry, pause)
            logger.error(
                "Prefect refused the run of message %s for %s: %s. The message stays in the inbox and is retried in "
                "%.0f s. Compare the deployment's parameters with those of this version; `attachments setup` updates "
                "the default one.",
                entry.message_key, entry.deployment, error, pause,
            )  # fmt: skip
        except (PrefectUnavailable, TimeoutError) as error:
            self._failures += 1
            pause = min(self._limits.max_retry_delay, 0.5 * 2 ** min(self._failures, 6)) * random.uniform(0.5, 1)  # noqa: S311  no secret
            self._delay(entry, pause)
            logger.warning(
                "Prefect is unavailable (%s); message %s stays in the inbox, next attempt in %.0f s.",
                _describe(error), entry.message_key, pause,
            )  # fmt: skip
            await asyncio.sleep(pause)
        except InboxUnavailable as error:
            self._delay(entry, self._limits.max_retry_delay)
            logger.error(
                "%s The run of message %s was created; it is requested again under the same key, which creates no "
                "second run.",
                error,
                entry.message_key,
            )
        except asyncio.CancelledError:
            self._retry_at.pop(entry.seq, None)  # cut off by an internal error in another entry
            raise
        finally:
            self._in_progress.discard(entry.seq)
            self._metrics.failing.set(self._failures)
            self.wake()

    def _delay(self, entry: Entry, seconds: float) -> None:
        self._retry_at[entry.seq] = time.monotonic() + seconds


def _describe(error: Exception) -> str:
    return str(error) or "no answer in time"
