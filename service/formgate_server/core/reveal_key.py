"""Showing a recoverable key's secret again; who did so stands in the audit trail."""

from __future__ import annotations

from formgate_server.core import audit, lookup
from formgate_server.core.changes import Changed, Changes
from formgate_server.core.keeper import Keeper
from formgate_server.core.model import Caller
from formgate_server.core.ports import Transaction


class RevealKey:
    """Shows a secret."""

    def __init__(self, changes: Changes, keeper: Keeper) -> None:
        self._changes = changes
        self._keeper = keeper

    async def __call__(self, caller: Caller, key_id: str) -> str:
        """Return the key's newest secret. Raises FailedPreconditionError where it is not recoverable."""

        async def reveal(transaction: Transaction) -> Changed[str]:
            key, account = await lookup.key(transaction, caller, key_id)
            secret = self._keeper.shown(await transaction.sealed_secret(key_id), key_id)
            now = self._changes.clock.now()
            await transaction.audit(audit.event(caller, "RevealKey", now, before=key, after=key))
            return Changed(secret, account.account_id, None)

        return (await self._changes.apply(reveal)).result
