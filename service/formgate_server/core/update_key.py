"""Changing what a key may do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from formgate_server.core import audit, fields, fit_key, lookup
from formgate_server.core.changes import Changed, Changes, Effective
from formgate_server.core.errors import FailedPreconditionError
from formgate_server.core.model import Caller, Key, KeyState
from formgate_server.core.policy import Plan, Policies, Policy
from formgate_server.core.ports import Transaction

UPDATABLE = ("display_name", "grants", "api_groups", "ip_rules", "limits", "expire_time", "metadata")


class UpdateKey:
    """Changes a key; the next check decides by it."""

    def __init__(self, changes: Changes, policies: Policies) -> None:
        self._changes = changes
        self._policies = policies

    async def __call__(
        self, caller: Caller, key_id: str, etag: str, paths: Sequence[str], values: Mapping[str, Any]
    ) -> Effective[Key]:
        """Set the fields that ``paths`` name to their ``values``, those of a ``Key``."""

        async def change(transaction: Transaction) -> Changed[Key]:
            before, account = await lookup.key(transaction, caller, key_id, "key.key_id")
            lookup.match_etag(etag, lookup.etag(before.version))
            if before.state is KeyState.REVOKED:
                message = f"key {key_id} is revoked, for ever"
                raise FailedPreconditionError(message, reason="KEY_REVOKED")
            now = self._changes.clock.now()
            policy = self._policies.of(account)
            plan = policy.plans[account.plan]
            edited = {path: _checked(path, values[path], policy, plan, now) for path in paths}
            after = replace(before, **edited, version=before.version + 1)
            await transaction.update_key(after)
            epoch = await transaction.raise_epoch(account.account_id)
            await transaction.audit(audit.event(caller, "UpdateKey", now, before=before, after=after))
            return Changed(after, account.account_id, epoch)

        fields.mask(paths, UPDATABLE)
        return await self._changes.apply(change)


def _checked(path: str, value: Any, policy: Policy, plan: Plan, now: int) -> Any:  # noqa: ANN401 - one return a field
    field = f"key.{path}"
    match path:
        case "display_name":
            return fields.display_name(value, field)
        case "grants":
            return fields.grants(value, policy, field)
        case "api_groups":
            return fields.api_groups(value, policy, field)
        case "ip_rules":
            return fields.ip_rules(value, policy, field)
        case "limits":
            return fit_key.limits(value, plan, field)
        case "expire_time":
            return fields.expiry(value, None, now, field)
        case _:
            return fields.metadata(value, field)
