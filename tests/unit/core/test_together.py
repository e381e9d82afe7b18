"""Work of several callers, done together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from formgate_server.core.errors import UnavailableError
from formgate_server.core.together import Together


class Work:
    """Doubles numbers; waits for its gate, fails for what is poison."""

    def __init__(self, most: int = 100) -> None:
        self.gate = asyncio.Event()
        self.done: list[list[int]] = []
        self.poison: dict[int, Exception] = {}
        self.together: Together[int, int] = Together(self, most)

    async def __call__(self, items: Sequence[int]) -> list[int]:
        """Work."""
        self.done.append(list(items))
        await self.gate.wait()
        for item in items:
            if item in self.poison:
                raise self.poison[item]
        return [2 * item for item in items]

    async def asked(self, *calls: list[int]) -> list[asyncio.Task[Sequence[int]]]:
        """Let calls come, one after the other."""
        tasks = []
        for items in calls:
            tasks.append(asyncio.create_task(self.call(items)))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return tasks

    async def call(self, items: list[int]) -> Sequence[int]:
        """Call."""
        return await self.together(items)


async def test_what_comes_while_some_is_under_way_goes_together_into_the_next() -> None:
    """In the order in which it came, and each is told its own results."""
    work = Work()
    tasks = await work.asked([1], [2, 3], [], [4])
    work.gate.set()
    assert await asyncio.gather(*tasks) == [[2], [4, 6], [], [8]]
    assert work.done == [[1], [2, 3, 4]]


async def test_no_more_go_together_than_fit() -> None:
    """First come, first served; a call is never split, and one that is too large by itself goes alone."""
    work = Work(most=3)
    tasks = await work.asked([0], [1, 2], [3, 4], [5], [6, 7, 8, 9], [10])
    work.gate.set()
    await asyncio.gather(*tasks)
    assert work.done == [[0], [1, 2], [3, 4, 5], [6, 7, 8, 9], [10]]


async def test_one_poisonous_item_fails_its_own_call_only() -> None:
    """The others of its group are worked on again, each by itself."""
    work = Work()
    work.poison[3] = ValueError("poison")
    tasks = await work.asked([1], [2], [3], [4])
    work.gate.set()
    first, second, third, fourth = await asyncio.gather(*tasks, return_exceptions=True)
    assert (first, second, fourth) == ([2], [4], [8])
    assert isinstance(third, ValueError)
    assert work.done == [[1], [2, 3, 4], [2], [3], [4]]


async def test_a_store_that_is_away_fails_the_group_and_not_the_next() -> None:
    """It is not asked again for each of them."""
    work = Work(most=2)
    work.poison[2] = UnavailableError("away")
    tasks = await work.asked([1], [2], [3], [4])
    work.gate.set()
    first, second, third, fourth = await asyncio.gather(*tasks, return_exceptions=True)
    assert (first, fourth) == ([2], [8])
    assert isinstance(second, UnavailableError)
    assert isinstance(third, UnavailableError)
    assert work.done == [[1], [2, 3], [4]]


async def test_a_caller_that_goes_away_undoes_and_blocks_nothing() -> None:
    """Before its turn it is left out; while it is worked on, that goes on."""
    work = Work()
    begun, waiting, other = await work.asked([1], [2], [3])
    begun.cancel()
    waiting.cancel()
    work.gate.set()
    assert await other == [6]
    assert work.done == [[1], [3]]
    for task in (begun, waiting):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_it_can_be_waited_for() -> None:
    """Until nothing is waiting or under way; later calls are served again."""
    work = Work()
    tasks = await work.asked([1], [2])
    finished = asyncio.create_task(work.together.finish())
    await asyncio.sleep(0)
    assert not finished.done()
    work.gate.set()
    await finished
    assert all(task.done() for task in tasks)
    assert await work.together([5]) == [10]
