"""When and whence keys were last used: collected, and written by somebody else now and then, never once a check."""

from __future__ import annotations

from formgate_server.core.errors import UnavailableError
from formgate_server.core.ports import Registry


class LastUsed:
    """Collects last uses until they are flushed."""

    def __init__(self) -> None:
        self._noted: dict[str, tuple[int, str]] = {}

    def note(self, key_id: str, now: int, source_ip: str) -> None:
        """Note that a check of this key was allowed."""
        self._noted[key_id] = now, source_ip

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
