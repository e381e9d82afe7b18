"""Deleting a key: a tombstone stays, so that its late usage still counts."""

from __future__ import annotations

from formgate_server.core import audit, lookup
from formgate_server.core.changes import Changed, Changes, Effective
from formgate_server.core.errors import FailedPreconditionError
from formgate_server.core.model import Caller, KeyState
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Transaction


class DeleteKey:
    """Deletes a key; the next check says KEY_NOT_FOUND."""

    def __init__(self, changes: Changes, policies: Policies) -> None:
        self._changes = changes
        self._policies = policies

    async def __call__(self, caller: Caller, key_id: str) -> Effective[None]:
        """Delete. Raises FailedPreconditionError where the policy deletes only what is switched off."""

        async def delete(transaction: Transaction) -> Changed[None]:
            key, account = await lookup.key(transaction, caller, key_id)
            rules = self._policies.of(account).keys
            if rules.delete_only_disabled and key.state is KeyState.ENABLED:
                message = f"policy {account.policy} deletes only keys that are disabled: disable {key_id} first"
                raise FailedPreconditionError(message, reason="KEY_ENABLED")
            now = self._changes.clock.now()
            await transaction.delete_key(key_id, now)
            epoch = await transaction.raise_epoch(account.account_id)
            await transaction.audit(audit.event(caller, "DeleteKey", now, before=key, after=None))
            return Changed(None, account.account_id, epoch)

        return await self._changes.apply(delete)
