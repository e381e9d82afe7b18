"""A key and its account, compiled into what its checks need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from formgate.rules.addresses import AddressRules
from formgate.rules.grants import EVERYTHING, Catalogue, Grant, Grants
from formgate.rules.reason import Reason
from formgate.rules.standing import Standing
from formgate_server.core.limits import Counter
from formgate_server.core.model import (
    Account,
    AccountState,
    Calendar,
    Holder,
    Key,
    KeyState,
    Limit,
    Member,
    Period,
    Rolling,
)
from formgate_server.core.policy import Plan, Policy
from formgate_server.core.sharing import shared
from formgate_server.core.verdict import KeyRecord

_STATES = {KeyState.ENABLED: Reason.OK, KeyState.DISABLED: Reason.KEY_DISABLED, KeyState.REVOKED: Reason.KEY_REVOKED}
_NONE: frozenset[str] = frozenset()
_PERIODS = {Period.DAY: "day", Period.MONTH: "month"}


def compile_key(
    key: Key, account: Account, policy: Policy, creator: Member | None = None, secret_end: int | None = None
) -> KeyRecord:
    """Compile ``key`` of ``account``, whose policy is ``policy``; ``creator`` None: it has none, or not any more."""
    state = _STATES[key.state]
    if state is Reason.OK and account.state is AccountState.SUSPENDED:
        state = Reason.ACCOUNT_SUSPENDED
    granted = key.grants or _ungranted(policy, creator)
    ceiling = _rights(creator) if policy.keys.capped else None
    standing = Standing(
        state=state,
        expire_time=key.expire_time,
        environment=key.environment,
        addresses=AddressRules(key.ip_rules) if key.ip_rules else None,
        api_groups=shared(frozenset(key.api_groups)) if key.api_groups else _NONE,
        grants=_compiled(granted, policy.catalogue),
        ceiling=None if ceiling is None else _compiled(ceiling, policy.catalogue),
    )
    counted = counters(account, policy.plans[account.plan], key)
    return KeyRecord(key, policy, shared(standing), counted, account.epoch, secret_end, granted, ceiling)


@lru_cache(maxsize=2_000)
def _compiled(grants: tuple[Grant, ...], catalogue: Catalogue) -> Grants:
    """Compile grants, the same ones only once."""
    return Grants(grants, catalogue)


def _ungranted(policy: Policy, creator: Member | None) -> tuple[Grant, ...]:
    return _rights(creator) if policy.keys.ungranted is None else policy.keys.ungranted


def _rights(member: Member | None) -> tuple[Grant, ...]:
    """Return what a member may do, as a grant, if anything; it counts on everything but the organization."""
    if member is None or not (member.permissions or member.level):
        return ()  # a grant of nothing would still cover what is asked for without a permission
    return (Grant(EVERYTHING, member.permissions, member.level),)


def counters(account: Account, plan: Plan, key: Key | None) -> tuple[Counter, ...]:
    """Return the counters that ``key`` is charged by; without one, those that the account holds.

    An account's limit replaces its plan's of the same name and holder, a key's its account's. What becomes of it while
    the counters' store is away is the policy's to say.
    """
    effective = {(limit.holder, limit.name): limit for limit in plan.limits}
    for limit in (*account.limits, *(() if key is None else key.limits)):
        replaced = effective.get((limit.holder, limit.name))
        if replaced is not None and replaced.when_degraded is not limit.when_degraded:
            limit = replace(limit, when_degraded=replaced.when_degraded)  # noqa: PLW2901 - the same one, completed
        effective[limit.holder, limit.name] = limit
    zone = account.time_zone or plan.time_zone
    return tuple(_counters(account.account_id, "" if key is None else key.key_id, effective.values(), zone))


def _counters(account_id: str, key_id: str, limits: Iterable[Limit], zone: str) -> Iterable[Counter]:
    for limit in limits:
        of_key = limit.holder is Holder.KEY
        if of_key and not key_id:
            continue
        owner = f"{account_id}/{key_id}" if of_key else account_id
        yield Counter(f"{owner}/{limit.name}/{_shape(limit)}", shared(limit), zone)


def _shape(limit: Limit) -> str:
    """Name what a counter counts by: an amount may change under it, the kind of period may not."""
    if isinstance(limit.per, Rolling):
        return f"{limit.per.window}us"
    return _PERIODS[limit.per.period] if isinstance(limit.per, Calendar) else "lifetime"
