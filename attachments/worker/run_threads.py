"""The runs under way in a worker, each in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.flows import Flow

from attachments.foundation.cancellation import CURRENT, Cancellation
from attachments.worker.engine import Suspension

RunFlow = Callable[[Flow[..., Any], FlowRun, Suspension], None]


class RunThread:
    """A run in a thread that does not keep the process from ending."""

    def __init__(self, flow_run: FlowRun) -> None:
        self.flow_run = flow_run
        self.cancellation = Cancellation()
        self.suspension = Suspension()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the thread has ended, or is no longer waited for."""

    async def run(self, flow: Flow[..., Any], run_flow: RunFlow, *, at_end: Callable[[], object]) -> None:
        """Run the flow until it ends or `abandon` is called. Raises what ended the thread, which calls `at_end`."""
        loop = asyncio.get_running_loop()

        def target() -> None:
            CURRENT.set(self.cancellation)
            error: BaseException | None = None
            try:
                run_flow(flow, self.flow_run, self.suspension)
            except BaseException as caught:  # noqa: BLE001  raised where the thread is awaited
                error = caught
            finally:
                at_end()
            loop.call_soon_threadsafe(self._settle, error)

        threading.Thread(target=target, name=f"flow-run-{self.flow_run.id}", daemon=True).start()
        await self.ended

    def abandon(self) -> None:
        """Stop waiting for the thread. It ends as soon as it notices that the run is cancelled."""
        self._settle(None)

    def _settle(self, error: BaseException | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            self.ended.set_exception(error)
        else:
            # A flow that exits its interpreter (SystemExit) does not end the worker.
            self.ended.set_exception(RuntimeError(type(error).__name__))


class RunThreads:
    """The threads of a worker, by run. Threads that end remove themselves."""

    def __init__(self, run_flow: RunFlow) -> None:
        self._run_flow = run_flow
        self._threads: dict[UUID, RunThread] = {}

    def __len__(self) -> int:
        return len(self._threads)

    def snapshot(self) -> dict[UUID, RunThread]:
        """A copy, made in one step: threads may end at any time."""
        return dict(self._threads)

    async def run(self, flow: Flow[..., Any], flow_run: FlowRun) -> None:
        """Run a flow in a thread to its end. Raises what ended the thread."""
        thread = self.add(flow_run)
        # The thread removes itself: it goes on when the task that waits for it is cancelled.
        await thread.run(flow, self._run_flow, at_end=lambda: self.forget(thread))

    def add(self, flow_run: FlowRun) -> RunThread:
        """A new thread for a run, not yet started."""
        thread = self._threads[flow_run.id] = RunThread(flow_run)
        return thread

    def forget(self, thread: RunThread) -> None:
        """Remove a thread. No-op if the same run has been started again in another one."""
        if self._threads.get(thread.flow_run.id) is thread:
            self._threads.pop(thread.flow_run.id, None)
