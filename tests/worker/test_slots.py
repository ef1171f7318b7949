"""How many runs a worker runs at a time."""

import asyncio
from uuid import uuid4

import anyio
import pytest

from attachments.worker.slots import Slots
from attachments.worker.timings import UPKEEP_SLOTS


def test_upkeep_has_slots_of_its_own() -> None:
    """A backfill on a worker with one slot holds none, so its runs start; one run too many keeps a normal slot."""

    async def use() -> None:
        limiter = anyio.CapacityLimiter(1)
        slots = Slots(lambda: limiter)
        upkeep = [uuid4() for _ in range(UPKEEP_SLOTS + 1)]
        for run in upkeep:
            assert slots.take(run)
            slots.move_to_upkeep(run)
        assert limiter.borrowed_tokens == 1
        with pytest.raises(anyio.WouldBlock):
            slots.take(uuid4())
        slots.release(upkeep[0])
        assert limiter.borrowed_tokens == 1
        slots.release(upkeep[-1])
        assert slots.take(uuid4())

    asyncio.run(use())


def test_a_run_has_one_slot() -> None:
    """Also while it is upkeep: handed out again, it is not started a second time."""

    async def use() -> None:
        limiter = anyio.CapacityLimiter(2)
        slots = Slots(lambda: limiter)
        run = uuid4()
        assert slots.take(run)
        assert not slots.take(run)
        slots.move_to_upkeep(run)
        assert not slots.take(run)
        assert slots.runs == {run}
        slots.release(run)
        assert slots.runs == set()
        assert limiter.borrowed_tokens == 0

    asyncio.run(use())
