"""The counters' marks, in memory: for tests, and for a server whose counters may start empty."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from formgate_server.core.ports import Reserved


class MemoryReservations:
    """The Reservations port."""

    def __init__(self) -> None:
        self._marks: dict[str, Reserved] = {}

    async def load(self, counter_ids: Collection[str]) -> Mapping[str, Reserved]:
        """See ``Reservations``."""
        return {each: self._marks[each] for each in counter_ids if each in self._marks}

    async def save(self, marks: Mapping[str, Reserved]) -> None:
        """See ``Reservations``."""
        self._marks |= marks

    async def advance(self, marks: Mapping[str, Reserved], *, insist: bool = False) -> Collection[str]:
        """See ``Reservations``."""
        higher = {
            each: mark
            for each, mark in marks.items()
            if each not in self._marks or _replaces(mark, self._marks[each], insist=insist)
        }
        self._marks |= higher
        return set(higher)

    async def forget(self, before: int, most: int) -> int:
        """See ``Reservations``."""
        over = [
            each for each, mark in self._marks.items() if mark.expire_time is not None and mark.expire_time < before
        ]
        for each in over[:most]:
            del self._marks[each]
        return len(over[:most])


def _replaces(mark: Reserved, there: Reserved, *, insist: bool) -> bool:
    if mark.serial <= there.serial:
        return False
    if insist or mark.expire_time is None or there.expire_time is None:
        return True
    return mark.expire_time >= there.expire_time
