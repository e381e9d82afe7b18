"""Follows the changes that others have made: each process publishes what it finds in the database.

So a publisher that died between its commit and its publication is healed by whoever polls next, and a process that
still speaks to a replaced counters' store tells that what it has missed (docs/adr/0001).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from formgate_server.core.errors import UnavailableError
from formgate_server.core.freshness import Freshness
from formgate_server.core.ports import Epochs, Limiter, News

INTERVAL = 0.5
_PATIENCE = 2.0
_PUBLISHED_ANEW = 5.0
_AT_ONCE = 256


class Follow:
    """Polls. The database's overlap tells the same change many times; it is published at first, and anew now and then.

    Anew, because a counters' store that failed over without our seeing it may have lost it.
    """

    def __init__(  # noqa: PLR0913 - what it follows, and whom it tells
        self,
        epochs: Epochs,
        limiter: Limiter,
        freshness: Freshness,
        monotonic: Callable[[], float],
        *,
        patience: float = _PATIENCE,
        on_epoch: Callable[[str, int], None] = lambda _account_id, _epoch: None,
    ) -> None:
        """Read ``epochs``, publish to ``limiter``. A database that takes longer than ``patience`` seconds is away.

        ``on_epoch`` is told of what is found, the same more than once.
        """
        self._on_epoch = on_epoch
        self._epochs = epochs
        self._limiter = limiter
        self._freshness = freshness
        self._monotonic = monotonic
        self._patience = patience
        self._until: int | None = None
        self._reading: asyncio.Task[News | None] | None = None
        self._published: dict[str, int] = {}
        self._forgotten = monotonic()
        self._unpublished: dict[str, int] = {}

    @property
    def unpublished(self) -> int:
        """How many changes were read and could not be published yet."""
        return len(self._unpublished)

    async def run(self, on_error: Callable[[Exception], None] = lambda _: None) -> None:
        """Poll for ever; whatever goes wrong, the database counts as away until a poll has ended well.

        ``on_error`` is told of what is no store that is away, but a fault, once until a poll is well again.
        """
        told = False
        try:
            while True:
                try:
                    await self.poll()
                    told = False
                except Exception as error:  # noqa: BLE001 - nothing may end it: all else goes by what it finds
                    self._freshness.lost()
                    if not told:
                        on_error(error)
                    told = True
                await asyncio.sleep(INTERVAL)
        finally:
            if self._reading is not None:
                self._reading.cancel()

    async def poll(self) -> None:
        """Poll once; never raises for a store that is away."""
        began = self._monotonic()
        news = await self._read()
        if news is None:
            self._freshness.lost()
            return
        self._until = news.until
        self._freshness.read(began, news.epochs)
        if began - self._forgotten >= _PUBLISHED_ANEW:
            self._published = {}
            self._forgotten = began
        for account_id, epoch in news.epochs.items():
            if self._published.get(account_id, 0) < epoch:
                self._unpublished[account_id] = epoch
                self._on_epoch(account_id, epoch)
        if await self._publish():
            self._freshness.published(began)

    async def _read(self) -> News | None:
        """Return what has changed; None: the database does not answer, or not yet.

        A read that takes too long is not cancelled, for a statement may have to be waited for; what it finds in the
        end is of a time that has gone by.
        """
        if self._reading is not None and not self._reading.done():
            await asyncio.wait({self._reading}, timeout=self._patience)
            if not self._reading.done():
                return None
        self._reading = asyncio.create_task(self._since())
        await asyncio.wait({self._reading}, timeout=self._patience)
        return self._reading.result() if self._reading.done() else None

    async def _since(self) -> News | None:
        try:
            return await self._epochs.since(self._until)
        except UnavailableError:
            return None

    async def _publish(self) -> bool:
        """Publish what is to be; tell whether nothing is left. What fails is tried again by the next poll."""
        todo = list(self._unpublished.items())
        for first in range(0, len(todo), _AT_ONCE):
            some = todo[first : first + _AT_ONCE]
            try:
                await asyncio.gather(*(self._limiter.publish(*each) for each in some))
            except UnavailableError:
                return False
            self._published.update(some)
            for account_id, epoch in some:
                if self._unpublished.get(account_id) == epoch:
                    del self._unpublished[account_id]
        return True
