"""Who writes next, where only so many can at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Lets in so many at once; whoever is urgent goes before all who are not, else first come, first served."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._free = most
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._patient: deque[asyncio.Future[None]] = deque()

    @property
    def in_use(self) -> int:
        """How many have a turn."""
        return self.most - self._free

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._urgent) + len(self._patient)

    @asynccontextmanager
    async def turn(self, *, urgent: bool) -> AsyncIterator[None]:
        """Wait for a turn, and give it back when the block ends."""
        await self._wait(self._urgent if urgent else self._patient)
        try:
            yield
        finally:
            self._hand_on()

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        if self._free:  # then nobody waits
            self._free -= 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._hand_on()  # it was this one's turn already
            elif mine in queue:
                queue.remove(mine)
            raise

    def _hand_on(self) -> None:
        for queue in (self._urgent, self._patient):
            while queue:
                next_one = queue.popleft()
                if not next_one.done():  # else it was cancelled, and does not know yet
                    next_one.set_result(None)
                    return
        self._free += 1
