"""The accounts' epochs, in memory."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from formgate_server.core.ports import News

if TYPE_CHECKING:
    from formgate_server.storage.memory.registry import MemoryRegistry


class MemoryEpochs:
    """The Epochs port."""

    def __init__(self, registry: MemoryRegistry) -> None:
        self._tables = registry.tables

    async def of(self, account_ids: Collection[str]) -> Mapping[str, int]:
        """See ``Epochs``."""
        accounts = self._tables.accounts
        return {each: accounts[each].epoch for each in account_ids if each in accounts}

    async def since(self, moment: int | None) -> News:
        """See ``Epochs``."""
        now = time.time_ns() // 1_000
        if moment is None:
            return News({}, now)
        return News({of: epoch for (of, epoch), at in sorted(self._tables.changes.items()) if at >= moment}, now)

    async def forget(self, before: int, most: int) -> int:
        """See ``Epochs``."""
        over = [each for each, at in self._tables.changes.items() if at < before][:most]
        for each in over:
            del self._tables.changes[each]
        return len(over)

    async def renew(self, after: str, most: int) -> Sequence[str]:
        """See ``Epochs``."""
        accounts = self._tables.accounts
        now = time.time_ns() // 1_000
        account_ids = sorted(each for each in accounts if each > after)[:most]
        for each in account_ids:
            epoch = max(accounts[each].epoch + 1, now)
            accounts[each] = replace(accounts[each], epoch=epoch)
            self._tables.changes[each, epoch] = now
        return account_ids
