"""Revoking, disabling and enabling a key."""

from __future__ import annotations

from dataclasses import replace

from formgate_server.core import audit, fields, lookup
from formgate_server.core.changes import Changed, Changes, Effective
from formgate_server.core.errors import FailedPreconditionError
from formgate_server.core.model import Caller, Key, KeyState
from formgate_server.core.ports import Transaction


class SetKeyState:
    """Sets a key's state; the next check decides by it. REVOKED is final, and repeating a call is OK."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def __call__(self, caller: Caller, key_id: str, state: KeyState, action: str, note: str) -> Effective[Key]:
        """Set the state, as the RPC ``action``. Raises FailedPreconditionError for a revoked key's return."""
        fields.note(note)

        async def change(transaction: Transaction) -> Changed[Key]:
            before, account = await lookup.key(transaction, caller, key_id)
            if before.state is state:
                return Changed(before, account.account_id, account.epoch)
            if before.state is KeyState.REVOKED:
                message = f"key {key_id} is revoked, for ever; create another"
                raise FailedPreconditionError(message, reason="KEY_REVOKED")
            now = self._changes.clock.now()
            revoke_time = now if state is KeyState.REVOKED else None
            after = replace(before, state=state, revoke_time=revoke_time, version=before.version + 1)
            await transaction.update_key(after)
            epoch = await transaction.raise_epoch(account.account_id)
            await transaction.audit(audit.event(caller, action, now, before=before, after=after, note=note))
            return Changed(after, account.account_id, epoch)

        return await self._changes.apply(change)
