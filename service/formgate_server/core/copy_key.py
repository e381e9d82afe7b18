"""Copying a key: its scope, addresses and limits, with a secret of its own."""

from __future__ import annotations

from dataclasses import replace

from formgate_server.core import audit, fields, fit_key, lookup, secrets
from formgate_server.core.changes import Changed, Changes
from formgate_server.core.errors import FailedPreconditionError
from formgate_server.core.keeper import Keeper
from formgate_server.core.model import Caller, Key, KeyState
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Transaction


class CopyKey:
    """Makes a key like another."""

    def __init__(self, changes: Changes, policies: Policies, keeper: Keeper) -> None:
        self._changes = changes
        self._policies = policies
        self._keeper = keeper

    async def __call__(self, caller: Caller, key_id: str, display_name: str) -> tuple[Key, str]:
        """Return the new key and its secret. Raises FailedPreconditionError for one that is revoked or expired."""
        fields.display_name(display_name)

        async def copy(transaction: Transaction) -> Changed[tuple[Key, str]]:
            original, account = await lookup.key(transaction, caller, key_id)
            now = self._changes.clock.now()
            if original.state is KeyState.REVOKED or (original.expire_time or now + 1) <= now:
                message = f"key {key_id} is revoked or has expired: there is nothing to copy"
                raise FailedPreconditionError(message, reason="KEY_ENDED")
            policy = self._policies.of(account)
            await fit_key.admit(transaction, account, policy, original.created_by)
            secret = secrets.new_secret(fit_key.prefix(policy, original.environment))
            key = replace(
                original,
                key_id=secrets.new_id("key"),
                display_name=display_name or original.display_name,
                state=KeyState.ENABLED,
                hint=secrets.hint(secret),
                create_time=now,
                last_used_time=None,
                last_used_ip="",
                version=1,
            )
            await transaction.insert_key(key, self._keeper.stored(key, secret, account), "")
            await transaction.audit(audit.event(caller, "CopyKey", now, after=key, note=f"copy of {key_id}"))
            return Changed((key, secret), account.account_id, None)

        return (await self._changes.apply(copy)).result
