"""When and whence keys were last used: collected, and written by somebody else now and then, never once a check."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from formgate_server.core.errors import UnavailableError
from formgate_server.core.ports import Registry


class LastUsed:
    """Collects last uses until they are flushed."""

    def __init__(self) -> None:
        self._noted: dict[str, tuple[int, str]] = {}

    def note(self, key_id: str, now: int, source_ip: str) -> None:
        """Note that a check of this key was allowed."""
        self._noted[key_id] = now, source_ip

    async def run(self, registry: Registry, seconds: float, on_error: Callable[[Exception], None]) -> None:
        """Flush now and then, for ever; ``on_error`` is told of what is no store that is away, but a fault."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.flush(registry)
            except Exception as error:  # noqa: BLE001 - the next time it may go through
                on_error(error)

    async def flush(self, registry: Registry) -> None:
        """Write what was noted; where the store does not answer, keep it for the next time."""
        noted, self._noted = self._noted, {}
        if not noted:
            return
        try:
            await registry.note_used(noted)
        except BaseException as error:
            self._noted = noted | self._noted
            if not isinstance(error, UnavailableError):
                raise
