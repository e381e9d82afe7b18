"""Rotating a key: a new secret under the same id; the old one works for a while longer, or not at all."""

from __future__ import annotations

from dataclasses import replace

from formgate_server.core import audit, fields, fit_key, lookup, secrets
from formgate_server.core.changes import Changed, Changes, Effective
from formgate_server.core.errors import FailedPreconditionError
from formgate_server.core.keeper import Keeper
from formgate_server.core.model import Caller, Key, KeyState
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Transaction

LONGEST_OVERLAP = 30 * 86_400 * 1_000_000


class RotateKey:
    """Gives a key a new secret. Its counters go along: they are the key's, not the secret's."""

    def __init__(self, changes: Changes, policies: Policies, keeper: Keeper) -> None:
        self._changes = changes
        self._policies = policies
        self._keeper = keeper

    async def __call__(self, caller: Caller, key_id: str, overlap: int) -> Effective[tuple[Key, str]]:
        """Return the key and its new secret; none but that works longer than ``overlap`` microseconds, 0 to 30 days.

        Not even one to which an earlier rotation gave a later end. Raises FailedPreconditionError for a revoked key.
        """
        fields.number(overlap, "overlap", largest=LONGEST_OVERLAP)

        async def rotate(transaction: Transaction) -> Changed[tuple[Key, str]]:
            before, account = await lookup.key(transaction, caller, key_id)
            if before.state is KeyState.REVOKED:
                message = f"key {key_id} is revoked, for ever; create another"
                raise FailedPreconditionError(message, reason="KEY_REVOKED")
            now = self._changes.clock.now()
            secret = secrets.new_secret(fit_key.prefix(self._policies.of(account), before.environment))
            after = replace(before, hint=secrets.hint(secret), version=before.version + 1)
            await transaction.update_key(after)
            until = now + overlap if overlap else 0  # over by every server's clock
            await transaction.replace_secret(key_id, self._keeper.stored(after, secret, account), until)
            epoch = await transaction.raise_epoch(account.account_id)
            await transaction.audit(audit.event(caller, "RotateKey", now, before=before, after=after))
            return Changed((after, secret), account.account_id, epoch)

        return await self._changes.apply(rotate)
