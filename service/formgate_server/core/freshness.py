"""How much this process knows of the database: when it last read there what has changed, and told it on.

What a check may do when a store is away depends on it (docs/guarantees.md has the table). Seconds, by a clock that
only goes forward.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping


class Freshness:
    """What the last polls of the database came to; see ``Follow``, which makes them."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        *,
        max_staleness: float,
        database_grace: float,
        on_database: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Begin as if a poll had just ended: nothing is cached yet that could be old.

        ``on_database`` is told when the database is away, and when it is back.
        """
        self._monotonic = monotonic
        self._max_staleness = max_staleness
        self._database_grace = database_grace
        self._on_database = on_database
        self._read = self._published = monotonic()
        self.database_up = True
        """Whether the last poll could read."""
        self._epochs: dict[str, int] = {}  # of all accounts that have changed since this process began
        self._told = asyncio.Event()  # of one poll: each has its own

    def now(self) -> float:
        """Return the time by which all of this goes."""
        return self._monotonic()

    @property
    def is_fresh(self) -> bool:
        """Whether all that had changed ``max_staleness`` ago is published: caches may be used.

        Else somebody was told that a change is in effect by now, and this process may never have heard of it.
        """
        return self._monotonic() - self._published <= self._max_staleness

    @property
    def fresh_for(self) -> float:
        """For how many seconds from now ``is_fresh`` holds whatever happens; below 0: it does not hold now."""
        return self._published + self._max_staleness - self._monotonic()

    @property
    def is_within_grace(self) -> bool:
        """Whether the database was read recently enough to go on without it, by the epochs of the counters' store."""
        return self.database_up or self._monotonic() - self._read <= self._database_grace

    @property
    def is_known(self) -> bool:
        """Whether the database was read recently enough to go on without it *and* the counters' store."""
        return self._monotonic() - self._read <= self._max_staleness

    @property
    def read_age(self) -> float:
        """How long ago, in seconds, the last poll that could read began."""
        return self._monotonic() - self._read

    @property
    def published_age(self) -> float:
        """How long ago, in seconds, the last poll began that could read and publish all that it read."""
        return self._monotonic() - self._published

    @property
    def read_at(self) -> float:
        """When the last poll that could read began."""
        return self._read

    def newest(self, account_id: str) -> int:
        """Return the newest epoch of an account that a poll has told; 0: none has."""
        return self._epochs.get(account_id, 0)

    def read(self, began: float, epochs: Mapping[str, int]) -> None:
        """Note a poll that began then, and what it read."""
        self._read = began
        for each, epoch in epochs.items():
            if epoch > self.newest(each):
                self._epochs[each] = epoch
        self._tell(up=True)

    async def polled(self, since: float, seconds: float) -> bool:
        """Wait, for so many seconds, until a poll that began after ``since`` has read, or the database is away.

        By then ``newest`` is as new as a read begun at ``since``, or there is none to be had. False: neither came.
        """
        try:
            async with asyncio.timeout(seconds):
                while self.database_up and self._read < since:
                    await self._told.wait()
        except TimeoutError:
            return False
        return True

    def published(self, began: float) -> None:
        """Note that all that a poll read, which began then, is published."""
        self._published = began

    def lost(self) -> None:
        """Note a poll that could not read."""
        self._tell(up=False)

    def _tell(self, *, up: bool) -> None:
        told, self._told = self._told, asyncio.Event()
        told.set()
        if up is not self.database_up:
            self.database_up = up
            self._on_database(up)
