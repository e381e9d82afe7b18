"""Watching epochs: whoever holds leases is told at once when one of its accounts changes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from formgate_server.core import fields, lookup
from formgate_server.core.errors import UnavailableError
from formgate_server.core.model import Caller
from formgate_server.core.ports import Epochs, Registry
from formgate_server.core.watching import Watcher, Watching

MOST_IN_A_MESSAGE = 1_000


class WatchEpochs:
    """Watches for callers."""

    def __init__(self, watching: Watching, epochs: Epochs, registry: Registry) -> None:
        self._watching = watching
        self._epochs = epochs
        self._registry = registry
        self.watcher = watching.watcher

    async def add(self, watcher: Watcher, account_ids: Sequence[str], caller: Caller) -> None:
        """Watch accounts, and tell the epoch that each has now; 0 where it can not be read.

        Raises NotFoundError for one that the caller may not know of.
        """
        fields.at_most(account_ids, MOST_IN_A_MESSAGE, "watch")
        for index, each in enumerate(account_ids):
            fields.required(each, f"watch[{index}]")
        for each in account_ids:
            if caller.account_id or caller.policy:
                await lookup.account(self._registry, caller, each, "watch")
        watcher.add(account_ids)
        told = await self._read(account_ids)  # begun after it is watched: nothing falls between the two
        for each in account_ids:
            watcher.tell(each, told.get(each, 0))

    async def _read(self, account_ids: Collection[str]) -> dict[str, int]:
        try:
            return dict(await self._epochs.of(account_ids)) if account_ids else {}
        except UnavailableError:
            return {}
