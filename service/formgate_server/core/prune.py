"""What has been kept long enough is deleted, a little at a time, with pauses in which others write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from formgate_server.core.ports import Clock, Epochs, Reservations, UsageLedger
from formgate_server.core.record_usage import OLDEST

_HOUR: Final = 3_600 * 1_000_000
DAY: Final = 24 * _HOUR
LONGEST_MONTH: Final = 31 * DAY
MARGIN: Final = DAY
"""Records go so much later than they may: whoever still takes one of that age has a clock that is as far behind."""
BATCH = 1_000
_CHANGES = DAY
_PAUSE_SECONDS = 0.05
_INTERVAL_SECONDS = 3_600.0

OnProgress = Callable[[str, int], None]
"""Told what is deleted, and how many of it so far."""


class Keep(NamedTuple):
    """For how many microseconds usage is kept."""

    records: int = OLDEST
    sums: int = 25 * LONGEST_MONTH


class Cutoffs(NamedTuple):
    """What happened before goes."""

    records: int
    sums: int
    changes: int
    reservations: int


class Prune:
    """Deletes old usage, the changes that everybody has followed, and the marks of counters that have ended.

    Of several that share a database one deletes at a time; the others leave it to that one.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the stores, and how to go about it
        self,
        ledger: UsageLedger,
        epochs: Epochs,
        reservations: Reservations,
        clock: Clock,
        keep: Keep,
        batch: int = BATCH,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._epochs = epochs
        self._reservations = reservations
        self._clock = clock
        self._keep = keep
        self._batch = batch
        self._pause_seconds = pause_seconds

    async def cutoffs(self) -> Cutoffs:
        """Return what goes now. A record that was resent after it went would count twice: none can be, so late.

        A clock that is ahead makes nothing old: it is so by the database's clock, too.
        """
        now = min(self._clock.now(), (await self._epochs.since(None)).until)
        records = now - max(self._keep.records, OLDEST) - MARGIN
        return Cutoffs(records, min(now - self._keep.sums, records - _HOUR), now - _CHANGES, now - _HOUR)

    async def count(self) -> dict[str, int]:
        """Return how much usage would go."""
        before = await self.cutoffs()
        records, sums = await self._ledger.count_old(before.records, before.sums)
        return {"records": records, "sums": sums}

    async def __call__(self, on_progress: OnProgress = lambda _, __: None) -> dict[str, int]:
        """Delete what may go, and return how much that was. Somebody else at it: no more than until then."""
        before = await self.cutoffs()
        ledger, epochs, reservations = self._ledger, self._epochs, self._reservations
        deletions: tuple[tuple[str, Callable[[int, int], Awaitable[int | None]], int], ...] = (
            ("records", ledger.forget_records, before.records),
            ("sums", ledger.forget_sums, before.sums),
            ("changes", epochs.forget, before.changes),
            ("reservations", reservations.forget, before.reservations),
        )
        deleted = {name: 0 for name, _, _ in deletions}
        for name, forget, cutoff in deletions:
            while True:
                gone = await forget(cutoff, self._batch)
                if gone is None:
                    return deleted
                deleted[name] += gone
                on_progress(name, deleted[name])
                if gone < self._batch:
                    break
                await asyncio.sleep(self._pause_seconds)
        return deleted

    async def run(self, on_end: Callable[[dict[str, int] | Exception], None] = lambda _: None) -> None:
        """Delete every hour, for ever. ``on_end`` is told each time what came of it."""
        while True:
            try:
                on_end(await self())
            except Exception as error:  # noqa: BLE001 - whatever it was, the next time it may go through
                on_end(error)
            await asyncio.sleep(_INTERVAL_SECONDS)
