"""Takes entries from the inbox and creates their flow runs, a few at a time.

An entry leaves the inbox only when Prefect's API has said yes. A burst of creations makes Prefect's SQLite
answer 503, so at most `CONCURRENCY` are under way (docs/decisions.md).
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from attachments.foundation.numerals import counted
from attachments.receiver.inbox import Entry, Inbox, InboxUnavailable
from attachments.receiver.limits import Limits
from attachments.receiver.metrics import Metrics
from attachments.receiver.prefect_api import FLOW, DeploymentGone, FlowRuns, PrefectRefused, PrefectUnavailable
from attachments.receiver.run_waiter import RunWaiter
from attachments.receiver.safe_traceback import where

logger = logging.getLogger("attachments.dispatcher")

CONCURRENCY = 2


class Dispatcher:
    """Moves entries from the inbox to Prefect until it is stopped."""

    def __init__(self, inbox: Inbox, flow_runs: FlowRuns, metrics: Metrics, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self.follower = RunWaiter(flow_runs)
        self._inbox = inbox
        self._flow_runs = flow_runs
        self._metrics = metrics
        self._deployments: dict[str, str] = {}
        self.synced = False
        self._wake = asyncio.Event()
        self._resting: dict[int, float] = {}  # seq → when to offer it again, by the monotonic clock
        self._refusals: dict[int, int] = {}  # seq → how often Prefect has refused it
        self._busy: set[int] = set()
        self._failures = 0
        self._reminded = -self._limits.reminder
        self._looking = asyncio.Lock()
        self._looked = -self._limits.look_again
        self._is_away = False

    @property
    def deployments(self) -> dict[str, str]:
        """The deployments that webhooks may name."""
        return self._deployments

    async def knows(self, name: str) -> bool:
        """Whether Prefect has a deployment of that name: by the list, or by a new one, which is read once a second."""
        if name not in self._deployments:
            try:
                async with asyncio.timeout(self._limits.look_deadline), self._looking:
                    if time.monotonic() - self._looked >= self._limits.look_again:
                        await self._look()
            except TimeoutError:
                self.synced = False
        return name in self._deployments

    def wake(self) -> None:
        """Look at the inbox now."""
        self._wake.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Dispatch while the block runs; on leaving, what is under way is cut off.

        Its entry stays, and the same idempotency key makes no second run after the next start.
        """
        try:
            self._deployments = await self._inbox.deployments()
        except InboxUnavailable as error:
            logger.error("%s The deployments that were known last cannot be read; Prefect is asked.", error)
        tasks = [asyncio.create_task(self._forever(loop)) for loop in (self._keep_deployments, self._dispatch)]
        try:
            async with self.follower.running():
                yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forever(self, loop: Callable[[], Awaitable[None]]) -> None:
        """The outermost loop: a defect of ours is shouted about, and the inbox goes on being emptied."""
        while True:
            try:
                await loop()
            except Exception as error:  # noqa: BLE001  logged without its text
                logger.critical(
                    "The dispatcher stumbled; it starts again in %.0f s. Please report this: %s",
                    self._limits.idle,
                    where(error),
                )
                await asyncio.sleep(self._limits.idle)

    async def _keep_deployments(self) -> None:
        while True:
            async with self._looking:
                await self._look()
            if self.synced:
                try:
                    await self._remind_of_strays()
                except InboxUnavailable as error:
                    logger.error("%s What waits for a deployment that does not exist is not known.", error)
            await asyncio.sleep(self._limits.refresh if self.synced else self._limits.refresh_while_away)

    async def _look(self) -> None:
        """Read the list of deployments; where that fails, the last one stays, and is known to be old."""
        try:
            async with asyncio.timeout(self._limits.answer_deadline):
                found = dict(await self._flow_runs.deployments())
        except (PrefectUnavailable, PrefectRefused, TimeoutError) as error:
            self.synced = False  # a name that is not known may have been made since
            if not self._is_away:  # once for each absence
                logger.warning(
                    "Prefect's list of deployments cannot be read (%s). Meanwhile webhooks for /default and for %s "
                    "from the last list are accepted; others get 503.",
                    _said(error),
                    counted(len(self._deployments), "deployment"),
                )
            self._is_away = True
            return
        finally:
            self._looked = time.monotonic()
        self._is_away = False
        changed = found != self._deployments
        self._deployments, self.synced = found, True
        if changed:
            self.wake()
            try:
                await self._inbox.remember_deployments(found)
            except InboxUnavailable as error:
                logger.error("%s The list of deployments is not kept for the next start.", error)

    async def _remind_of_strays(self) -> None:
        """Say aloud what waits for a deployment that does not exist."""
        if time.monotonic() - self._reminded < self._limits.reminder:
            return
        for name, entries in (await self._inbox.depths()).items():
            if name not in self._deployments:
                self._reminded = time.monotonic()
                logger.error(
                    "%s for the deployment %s/%s, which Prefect does not have. `attachments setup` "
                    "makes the default one.",
                    counted(entries, "delivery waits", "deliveries wait"), FLOW, name,
                )  # fmt: skip

    async def _dispatch(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                if await self._start_some(group):
                    continue
                # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes together with the event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.idle):
                        await self._wake.wait()

    async def _start_some(self, group: asyncio.TaskGroup) -> int:
        """Start as many creations as there is room for. While Prefect is away, one probe at a time."""
        now = time.monotonic()
        self._resting = {seq: until for seq, until in self._resting.items() if until > now}
        room = (1 if self._failures else CONCURRENCY) - len(self._busy)
        if room <= 0:
            return 0
        try:
            entries = await self._inbox.waiting(room, of=self._deployments, besides=self._busy | self._resting.keys())
        except InboxUnavailable as error:
            logger.error("%s Nothing is dispatched until it can be read.", error)
            await asyncio.sleep(self._limits.idle)
            return 0
        for entry in entries:
            self._busy.add(entry.seq)
            group.create_task(self._hand_over(entry, self._deployments[entry.deployment]))
        return len(entries)

    async def _hand_over(self, entry: Entry, deployment_id: str) -> None:
        self._rest(entry, self._limits.refused_pause)  # should it make us stumble, the others come first
        try:
            async with asyncio.timeout(self._limits.answer_deadline):
                run_id = await self._flow_runs.create(entry, deployment_id)
            self._failures = 0
            await self._inbox.remove(entry)
            # Not before it has gone: who asks for the same message meanwhile is to be told as well.
            self.follower.begun(entry, run_id)
            self._resting.pop(entry.seq, None)
            self._refusals.pop(entry.seq, None)
            self._metrics.dispatched.inc()
        except DeploymentGone as error:
            self._failures = 0
            self._rest(entry, self._limits.refresh)
            logger.warning(
                "Message %s waits for %s: %s. It is offered again when the list of deployments has been read anew.",
                entry.message_key, entry.deployment, error,
            )  # fmt: skip
        except PrefectRefused as error:
            self._failures = 0
            times = self._refusals[entry.seq] = self._refusals.get(entry.seq, 0) + 1
            pause = min(self._limits.longest_refused_pause, self._limits.refused_pause * times)
            self._rest(entry, pause)
            logger.error(
                "Prefect does not take the run of message %s for %s: %s. It stays in the inbox and is offered again in "
                "%.0f s. Compare the deployment's parameters with those of this version; `attachments setup` updates "
                "the default one.",
                entry.message_key, entry.deployment, error, pause,
            )  # fmt: skip
        except (PrefectUnavailable, TimeoutError) as error:
            self._failures += 1
            pause = min(self._limits.longest_pause, 0.5 * 2 ** min(self._failures, 6)) * random.uniform(0.5, 1)  # noqa: S311  no secret
            self._rest(entry, pause)
            logger.warning(
                "Prefect is away (%s); message %s stays in the inbox, next try in %.0f s.",
                _said(error), entry.message_key, pause,
            )  # fmt: skip
            await asyncio.sleep(pause)
        except InboxUnavailable as error:
            self._rest(entry, self._limits.longest_pause)
            logger.error(
                "%s Message %s was handed over and will be again, under the same key.", error, entry.message_key
            )
        except asyncio.CancelledError:
            self._resting.pop(entry.seq, None)  # another entry's defect cut this one off
            raise
        finally:
            self._busy.discard(entry.seq)
            self._metrics.failing.set(self._failures)
            self.wake()

    def _rest(self, entry: Entry, seconds: float) -> None:
        self._resting[entry.seq] = time.monotonic() + seconds


def _said(error: Exception) -> str:
    return str(error) or "no answer in time"
