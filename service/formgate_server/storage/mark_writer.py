"""Raising marks in the background: one write at a time, and no check that hangs on the database (docs/adr/0005)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class MarkWriter(Generic[T]):
    """Has marks raised: whatever is wanted during a write goes together into the next.

    ``degraded``: the database takes no marks at present, and charges go on beyond them.
    """

    def __init__(
        self,
        write: Callable[[dict[T, int]], Awaitable[None]],
        on_degraded: Callable[[bool], None],
        *,
        retry_seconds: float,
        patience_seconds: float,
    ) -> None:
        """``write`` raises marks, each so that at least so many units fit under it.

        ``on_degraded`` is told when the database stops, and begins again, to take them; it is tried every
        ``retry_seconds``. A write that takes longer than ``patience_seconds`` is waited for by no check.
        """
        self.degraded = False
        self.wanted: dict[T, int] = {}
        self.written = asyncio.Event()
        """Set when the write that takes what is wanted now has ended, or is given up."""
        self._write = write
        self._on_degraded = on_degraded
        self._retry_seconds = retry_seconds
        self._patience_seconds = patience_seconds
        self._task: asyncio.Task[None] | None = None

    def want(self, mark: T, units: int) -> None:
        """Have a mark raised so that at least ``units`` fit under it."""
        self.wanted[mark] = max(units, self.wanted.get(mark, 0))
        if self._task is None:
            self._task = asyncio.create_task(self._write_all())

    async def stop(self) -> None:
        """Write no more; a write under way is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _write_all(self) -> None:
        """Write marks until none is wanted."""
        while self.wanted:
            wanted, self.wanted = self.wanted, {}
            written, self.written = self.written, asyncio.Event()
            patience = asyncio.get_running_loop().call_later(self._patience_seconds, self._give_up, written)
            try:
                await self._write(wanted)
            except (Exception, asyncio.CancelledError):  # whatever it was, no check may hang on it
                if _is_cancelled():
                    raise
                for each, units in wanted.items():
                    self.wanted[each] = max(units, self.wanted.get(each, 0))
                self._give_up(written)
                await asyncio.sleep(self._retry_seconds)
            else:
                self._set_degraded(degraded=False)
                written.set()
                await asyncio.sleep(0)  # first come those who wait for this write
            finally:
                patience.cancel()
        self._task = None

    def _give_up(self, written: asyncio.Event) -> None:
        """Let charges go on though their marks are not written."""
        self._set_degraded(degraded=True)
        written.set()

    def _set_degraded(self, *, degraded: bool) -> None:
        if degraded is not self.degraded:
            self.degraded = degraded
            self._on_degraded(degraded)


def _is_cancelled() -> bool:
    """Tell whether it is this very task that is to end, not something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
