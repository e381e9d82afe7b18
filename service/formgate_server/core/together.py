"""Work of many callers, done together: what comes while some of it is under way goes together into the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from formgate_server.core.errors import UnavailableError

T = TypeVar("T")
R = TypeVar("R")


class _Call(NamedTuple, Generic[T, R]):
    items: Sequence[T]
    size: int
    done: asyncio.Future[Sequence[R]]


class Together(Generic[T, R]):
    """Hands the items of several calls to one piece of work, one at a time, first come first served.

    A call is never split. One that goes away before its turn is left out; what has begun goes on without it.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Awaitable[Sequence[R]]], most: int, size: Callable[[T], int] = lambda _: 1
    ) -> None:
        """Take the ``work``, which returns a result an item; ``most``: how large the items of several calls may be."""
        self._work = work
        self._most = most
        self._size = size
        self._waiting: deque[_Call[T, R]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, items: Sequence[T]) -> Sequence[R]:
        """Have ``items`` worked on, and return their results in order. Raises what the work raises."""
        done: asyncio.Future[Sequence[R]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(items, sum(map(self._size, items)), done))
        if self._worker is None:
            self._worker = asyncio.create_task(self._run())
        return await done

    async def finish(self) -> None:
        """Wait for what is waiting and under way."""
        while self._worker is not None:
            await asyncio.wait([self._worker])

    async def _run(self) -> None:
        try:
            while calls := self._take():
                await self._do(calls)
        finally:
            self._worker = None

    def _take(self) -> list[_Call[T, R]]:
        """Return the calls whose turn it is: the first, and those after it that fit in."""
        taken: list[_Call[T, R]] = []
        size = 0
        while self._waiting and (not taken or size + self._waiting[0].size <= self._most):
            call = self._waiting.popleft()
            if not call.done.done():
                taken.append(call)
                size += call.size
        return taken

    async def _do(self, calls: Sequence[_Call[T, R]]) -> None:
        try:
            results = await self._work([item for call in calls for item in call.items])
        except Exception as error:  # noqa: BLE001 - it is raised where it belongs
            if len(calls) == 1 or isinstance(error, UnavailableError):
                for call in calls:
                    if not call.done.done():
                        call.done.set_exception(error)
                return
            for call in calls:  # whose fault it is, each shows by itself
                await self._do([call])
            return
        first = 0
        for call in calls:
            if not call.done.done():
                call.done.set_result(results[first : first + len(call.items)])
            first += len(call.items)
