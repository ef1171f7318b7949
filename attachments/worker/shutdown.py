"""How a worker stops: it finishes what is under way, hands back the rest, and ends without its threads."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress

import anyio
import httpx
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound

from attachments.foundation.numerals import counted
from attachments.worker.run_threads import RunThreads
from attachments.worker.state_changes import reschedule
from attachments.worker.timings import WorkerTimings

SIGINT_IS_IGNORED = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
"""As a script's `&` starts its children. Prefect's command answers SIGTERM with SIGINT, which then ends nothing.

Read at import: Prefect's command imports this before it sets handlers of its own.
"""

logger = logging.getLogger("prefect.attachments.worker")


def stop_on_sigterm() -> None:
    """Let the first SIGTERM stop the calling task, as SIGINT does in a terminal. A second one ends the process."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101  a coroutine runs in one

    def stop() -> None:
        loop.remove_signal_handler(signal.SIGTERM)
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, stop)


def exit_process() -> None:
    """End the process without its threads, which cannot be stopped.

    What they have written is no more than after a crash: nothing under a final key.
    """
    logging.shutdown()
    os._exit(0)


async def drain(
    client: PrefectClient, threads: RunThreads, timings: WorkerTimings, leave: Callable[[], object] = exit_process
) -> None:
    """Wait for the runs under way. Those that have not ended in time are handed back, and `leave` ends the process."""
    if threads:
        runs = counted(len(threads), "run")
        logger.warning("Stopping: %s under way may finish within %.0f s.", runs, timings.drain)
    with anyio.move_on_after(timings.drain):
        while threads:
            await anyio.sleep(0.1)
    if not threads:
        return
    try:
        with anyio.move_on_after(timings.hand_back) as hand_back:
            for run_id in threads.snapshot():
                with suppress(httpx.HTTPError, ObjectNotFound):
                    now = await client.read_flow_run(run_id)
                    if now.state is not None and not now.state.is_final():
                        await reschedule(client, now, "Its worker was stopped; the run starts again.")
        if hand_back.cancelled_caught:
            logger.warning("Prefect does not respond; another worker takes up the runs that were under way.")
    finally:
        leave()
