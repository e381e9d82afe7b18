"""Rows and the core's values, each made of the other. A row is a table's columns in their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from sys import intern
from typing import Any

from formgate.rules.grants import Grant, Level
from formgate_server.core.limits import Span, State, Window
from formgate_server.core.model import (
    Account,
    AccountState,
    AuditEvent,
    Calendar,
    Environment,
    Holder,
    Key,
    KeyState,
    Lifetime,
    Limit,
    Member,
    Period,
    Role,
    Rolling,
    ServiceRole,
    ServiceToken,
)
from formgate_server.core.ports import AuditRow, Sealed, StoredSecret
from formgate_server.storage.sql.tables import keys, service_tokens

Values = dict[str, Any]

KEY_COLUMNS = tuple(column for column in keys.c if column.name != "delete_time")
TOKEN_COLUMNS = tuple(column for column in service_tokens.c if column.name not in {"digest", "pepper_id"})


def account_of(row: Sequence[Any]) -> Account:
    """Read a row of ``accounts``."""
    account_id, display_name, policy, plan, state, time_zone, limits, epoch, version, create_time = row
    return Account(
        account_id=account_id,
        display_name=display_name,
        policy=policy,
        plan=plan,
        state=AccountState(state),
        time_zone=time_zone,
        limits=limits_of(limits),
        epoch=epoch,
        version=version,
        create_time=create_time,
    )


def account_values(account: Account) -> Values:
    """Write a row of ``accounts``."""
    return {
        "account_id": account.account_id,
        "display_name": account.display_name,
        "policy": account.policy,
        "plan": account.plan,
        "state": int(account.state),
        "time_zone": account.time_zone,
        "limits": limit_values(account.limits),
        "epoch": account.epoch,
        "version": account.version,
        "create_time": account.create_time,
    }


def key_of(row: Sequence[Any]) -> Key:
    """Read the ``KEY_COLUMNS`` of a row of ``keys``."""
    key_id, account_id, display_name, environment, state, hint, created_by, create_time, expire_time, *rest = row
    revoke_time, last_used_time, last_used_ip, grants, api_groups, ip_rules, limits, metadata, version = rest
    return Key(
        key_id=key_id,
        account_id=intern(account_id),  # one string for all of an account's keys that are cached
        display_name=display_name,
        environment=Environment(environment),
        state=KeyState(state),
        hint=hint,
        created_by=intern(created_by),
        create_time=create_time,
        expire_time=expire_time,
        revoke_time=revoke_time,
        last_used_time=last_used_time,
        last_used_ip=last_used_ip,
        grants=tuple(Grant(each["resource"], tuple(each["permissions"]), Level(each["level"])) for each in grants),
        api_groups=tuple(api_groups),
        ip_rules=tuple(ip_rules),
        limits=limits_of(limits),
        metadata=metadata,
        version=version,
    )


def key_values(key: Key) -> Values:
    """Write the ``KEY_COLUMNS`` of a row of ``keys``."""
    return {
        "key_id": key.key_id,
        "account_id": key.account_id,
        "display_name": key.display_name,
        "environment": int(key.environment),
        "state": int(key.state),
        "hint": key.hint,
        "created_by": key.created_by,
        "create_time": key.create_time,
        "expire_time": key.expire_time,
        "revoke_time": key.revoke_time,
        "last_used_time": key.last_used_time,
        "last_used_ip": key.last_used_ip,
        "grants": [
            {"resource": grant.resource, "permissions": grant.permissions, "level": int(grant.level)}
            for grant in key.grants
        ],
        "api_groups": key.api_groups,
        "ip_rules": key.ip_rules,
        "limits": limit_values(key.limits),
        "metadata": dict(key.metadata),
        "version": key.version,
    }


def member_of(row: Sequence[Any]) -> Member:
    """Read a row of ``members``."""
    account_id, member_id, role, permissions, level, create_time, update_time = row
    return Member(
        account_id=account_id,
        member_id=member_id,
        role=Role(role),
        permissions=tuple(permissions),
        level=Level(level),
        create_time=create_time,
        update_time=update_time,
    )


def member_values(member: Member) -> Values:
    """Write a row of ``members``."""
    return {
        "account_id": member.account_id,
        "member_id": member.member_id,
        "role": int(member.role),
        "permissions": member.permissions,
        "level": int(member.level),
        "create_time": member.create_time,
        "update_time": member.update_time,
    }


def secret_values(key_id: str, secret: StoredSecret) -> Values:
    """Write a row of ``secrets``."""
    return {
        "digest": secret.digest,
        "key_id": key_id,
        "pepper_id": secret.pepper_id,
        "expire_time": None,
        **sealed_values(secret.sealed),
    }


def sealed_values(sealed: Sealed | None) -> Values:
    """Write what a row of ``secrets`` has of a sealed secret."""
    if sealed is None:
        return {"sealed": None, "sealing_key_id": None}
    return {"sealed": sealed.box, "sealing_key_id": sealed.sealing_key_id}


def limits_of(values: Iterable[Mapping[str, Any]]) -> tuple[Limit, ...]:
    """Read a column of limits."""
    return tuple(Limit(each["name"], Holder(each["holder"]), each["amount"], _per_of(each)) for each in values)


def _per_of(value: Mapping[str, Any]) -> Rolling | Calendar | Lifetime:
    if "window" in value:
        return Rolling(value["window"])
    return Calendar(Period(value["calendar"])) if "calendar" in value else Lifetime()


def limit_values(limits: Iterable[Limit]) -> list[Values]:
    """Write a column of limits."""
    return [
        {"name": limit.name, "holder": int(limit.holder), "amount": limit.amount, **_per_values(limit.per)}
        for limit in limits
    ]


def _per_values(per: Rolling | Calendar | Lifetime) -> Values:
    if isinstance(per, Rolling):
        return {"window": per.window}
    return {"calendar": int(per.period)} if isinstance(per, Calendar) else {"lifetime": True}


def token_of(row: Sequence[Any]) -> ServiceToken:
    """Read the ``TOKEN_COLUMNS`` of a row of ``service_tokens``."""
    token_id, display_name, role, account_id, policy, create_time, expire_time, revoke_time = row
    return ServiceToken(
        token_id=token_id,
        display_name=display_name,
        role=ServiceRole(role),
        account_id=account_id,
        policy=policy,
        create_time=create_time,
        expire_time=expire_time,
        revoke_time=revoke_time,
    )


def token_values(token: ServiceToken) -> Values:
    """Write the ``TOKEN_COLUMNS`` of a row of ``service_tokens``."""
    return {
        "token_id": token.token_id,
        "display_name": token.display_name,
        "role": int(token.role),
        "account_id": token.account_id,
        "policy": token.policy,
        "create_time": token.create_time,
        "expire_time": token.expire_time,
        "revoke_time": token.revoke_time,
    }


def audit_row_of(row: Sequence[Any]) -> AuditRow:
    """Read a row of ``audit_events``; of one that is not signed, ``mac`` and ``mac_key_id`` are empty."""
    account_id, sequence, create_time, action, target, token_id, actor, actor_ip, before, after, note, *signed = row
    event = AuditEvent(
        account_id=account_id,
        create_time=create_time,
        action=action,
        target=target,
        token_id=token_id,
        actor=actor,
        actor_ip=actor_ip,
        before=before,
        after=after,
        note=note,
    )
    mac, mac_key_id = signed
    return AuditRow(sequence, event, mac or b"", mac_key_id or "")


def audit_row_values(row: AuditRow) -> Values:
    """Write a row of ``audit_events``."""
    event = row.event
    return {
        "account_id": event.account_id,
        "sequence": row.sequence,
        "create_time": event.create_time,
        "action": event.action,
        "target": event.target,
        "token_id": event.token_id,
        "actor": event.actor,
        "actor_ip": event.actor_ip,
        "before": None if event.before is None else dict(event.before),
        "after": None if event.after is None else dict(event.after),
        "note": event.note,
        "mac": row.mac,
        "mac_key_id": row.mac_key_id,
    }


def state_of(values: Sequence[Any]) -> State:
    """Read a counter's state."""
    if len(values) == len(Window._fields):
        head, newest, used, ring = values
        return Window(head, newest, used, tuple(ring))
    return Span(*values)


def state_values(state: State) -> list[Any]:
    """Write a counter's state: the fields in order, four of a window, two of a span."""
    return list(state)
