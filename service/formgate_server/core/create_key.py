"""Making a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from formgate.rules.grants import Grant
from formgate_server.core import audit, fields, fit_key, lookup, secrets
from formgate_server.core.changes import Changed, Changes
from formgate_server.core.errors import AlreadyExistsError
from formgate_server.core.keeper import Keeper
from formgate_server.core.model import Account, Caller, Environment, Key, KeyState, Limit
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key to make. ``environment`` None: LIVE. At most one of ``expire_time`` and ``ttl``."""

    account_id: str
    display_name: str = ""
    environment: Environment | None = None
    created_by: str = ""
    grants: tuple[Grant, ...] = ()
    api_groups: tuple[str, ...] = ()
    ip_rules: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    expire_time: int | None = None
    ttl: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""


class CreateKey:
    """Makes a key. No verdict changes by that: the epoch stays."""

    def __init__(self, changes: Changes, policies: Policies, keeper: Keeper) -> None:
        self._changes = changes
        self._policies = policies
        self._keeper = keeper

    async def __call__(self, caller: Caller, new: NewKey) -> tuple[Key, str]:
        """Return the key and its secret. Raises AlreadyExistsError naming the key that this request_id made before."""
        fields.identifier(new.request_id, "request_id")
        now = self._changes.clock.now()

        async def insert(transaction: Transaction) -> Changed[tuple[Key, str]]:
            account = await lookup.account(transaction, caller, new.account_id)
            if new.request_id:
                made = await transaction.key_of_request(account.account_id, new.request_id)
                if made is not None:
                    message = f"this request_id made key {made}; its secret was told then and can not be told again"
                    raise AlreadyExistsError(message, reason="REQUEST_REPEATED", metadata={"key_id": made})
            key, secret = self._make(new, account, now)
            await fit_key.admit(transaction, account, self._policies.of(account), key.created_by)
            await transaction.insert_key(key, self._keeper.stored(key, secret, account), new.request_id)
            await transaction.audit(audit.event(caller, "CreateKey", now, after=key))
            return Changed((key, secret), account.account_id, None)

        return (await self._changes.apply(insert)).result

    def _make(self, new: NewKey, account: Account, now: int) -> tuple[Key, str]:
        policy = self._policies.of(account)
        environment = new.environment or Environment.LIVE
        secret = secrets.new_secret(fit_key.prefix(policy, environment))
        key = Key(
            key_id=secrets.new_id("key"),
            account_id=account.account_id,
            display_name=fields.display_name(new.display_name),
            environment=environment,
            state=KeyState.ENABLED,
            hint=secrets.hint(secret),
            created_by=fields.identifier(new.created_by, "created_by"),
            create_time=now,
            expire_time=fields.expiry(new.expire_time, new.ttl, now),
            grants=fields.grants(new.grants, policy),
            api_groups=fields.api_groups(new.api_groups, policy),
            ip_rules=fields.ip_rules(new.ip_rules, policy),
            limits=fit_key.limits(new.limits, policy.plans[account.plan], "limits"),
            metadata=fields.metadata(new.metadata),
        )
        return key, secret
