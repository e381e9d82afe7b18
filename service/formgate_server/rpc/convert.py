"""Between the wire's messages and the core's values.

Total both ways: whatever can be sent is a value, or an InvalidArgumentError naming its field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from enum import IntEnum
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from formgate.rules.grants import Grant, Level
from formgate.v1 import accounts_pb2, authorization_pb2, keys_pb2, resources_pb2
from formgate_server.core import fields, model
from formgate_server.core.create_key import NewKey
from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.limits import Standing
from formgate_server.core.lookup import etag
from formgate_server.core.manage_accounts import NewAccount
from formgate_server.core.manage_members import NewMember
from formgate_server.core.manage_tokens import NewToken
from formgate_server.core.policy import Policy
from formgate_server.core.ports import AuditFilter, AuditRow, KeyFilter
from formgate_server.core.read_account import UsageBucket, UsageQuery

E = TypeVar("E", bound=IntEnum)

_SECOND = 1_000_000
_FIRST_SECOND = -62_135_596_800  # 0001-01-01T00:00:00Z, the first that a Timestamp can say
_LAST_SECOND = 253_402_300_799
_LONGEST_SECONDS = 315_576_000_000  # 10,000 years, the longest that a Duration can say
_NANOS = 1_000_000_000


# From the wire.


def enum(kind: type[E], value: int, field: str) -> E | None:
    """Read an enum; None: not said."""
    if not value:
        return None
    try:
        return kind(value)
    except ValueError:
        raise InvalidArgumentError(field, "is no value of its enum") from None


def instant(message: Message, name: str, prefix: str = "") -> int | None:
    """Read the Timestamp ``name`` of ``message`` in microseconds, rounded down; None: not given."""
    if not message.HasField(name):
        return None
    value: Timestamp = getattr(message, name)
    if not (_FIRST_SECOND <= value.seconds <= _LAST_SECOND and 0 <= value.nanos < _NANOS):
        raise InvalidArgumentError(prefix + name, "is not a valid Timestamp (years 1 to 9999, nanos 0 to 999,999,999)")
    return value.seconds * _SECOND + value.nanos // 1_000


def duration(message: Message, name: str, prefix: str = "") -> int | None:
    """Read the Duration ``name`` of ``message`` in microseconds, rounded down; None: not given."""
    if not message.HasField(name):
        return None
    value: Duration = getattr(message, name)
    seconds, nanos = value.seconds, value.nanos
    if abs(seconds) > _LONGEST_SECONDS or abs(nanos) >= _NANOS or seconds * nanos < 0:
        raise InvalidArgumentError(prefix + name, "is not a valid Duration (at most 10,000 years, one sign)")
    return (seconds * _NANOS + nanos) // 1_000


def grants(messages: Collection[resources_pb2.Grant], field: str = "grants") -> tuple[Grant, ...]:
    """Read grants."""
    fields.at_most(messages, fields.MOST_GRANTS, field)  # before millions of them are read
    return tuple(
        Grant(
            message.resource,
            tuple(message.permissions),
            enum(Level, message.level, f"{field}[{index}].level") or Level.UNSPECIFIED,
        )
        for index, message in enumerate(messages)
    )


def limits(
    messages: Collection[resources_pb2.Limit], usual: model.Holder, field: str = "limits"
) -> tuple[model.Limit, ...]:
    """Read limits; who holds one is ``usual`` where it is not said."""
    fields.at_most(messages, fields.MOST_LIMITS, field)
    return tuple(_limit(message, usual, f"{field}[{index}]") for index, message in enumerate(messages))


def _limit(message: resources_pb2.Limit, usual: model.Holder, field: str) -> model.Limit:
    holder = enum(model.Holder, message.holder, f"{field}.holder") or usual
    if usual is model.Holder.KEY and holder is model.Holder.ACCOUNT:
        raise InvalidArgumentError(f"{field}.holder", "a key's limit is the key's; give the account its limit")
    amount = message.amount if message.HasField("amount") else None
    return model.Limit(message.name, holder, amount, _per(message, field))


def _per(message: resources_pb2.Limit, field: str) -> model.Rolling | model.Calendar | model.Lifetime:
    match message.WhichOneof("per"):
        case "window":
            nanos = message.window.nanos
            window = duration(message, "window", f"{field}.") or 0
            if nanos % 1_000:
                raise InvalidArgumentError(f"{field}.window", "must be whole microseconds")
            return model.Rolling(window)
        case "calendar":
            period = enum(model.Period, message.calendar, f"{field}.calendar")
            if period is None:
                raise InvalidArgumentError(f"{field}.calendar", "is required")
            return model.Calendar(period)
        case "lifetime":
            if not message.lifetime:
                raise InvalidArgumentError(f"{field}.lifetime", "must be true, or not be given")
            return model.Lifetime()
        case _:
            raise InvalidArgumentError(field, "needs one of window, calendar and lifetime")


def mask(message: FieldMask) -> list[str]:
    """Read which fields change, each once: a mask is a set."""
    return list(dict.fromkeys(message.paths))


def key_values(message: resources_pb2.Key, paths: Sequence[str]) -> dict[str, Any]:
    """Read the fields of a key that ``paths``, an update mask, names."""
    readers: dict[str, Callable[[], object]] = {
        "display_name": lambda: message.display_name,
        "grants": lambda: grants(message.grants, "key.grants"),
        "api_groups": lambda: tuple(message.api_groups),
        "ip_rules": lambda: tuple(message.ip_rules),
        "limits": lambda: limits(message.limits, model.Holder.KEY, "key.limits"),
        "expire_time": lambda: instant(message, "expire_time", "key."),
        "metadata": lambda: dict(message.metadata),
    }
    fields.mask(paths, readers)
    return {path: readers[path]() for path in paths}


def account_values(message: resources_pb2.Account, paths: Sequence[str]) -> dict[str, Any]:
    """Read the fields of an account that ``paths``, an update mask, names."""
    readers: dict[str, Callable[[], object]] = {
        "plan": lambda: message.plan,
        "state": lambda: enum(model.AccountState, message.state, "account.state"),
        "display_name": lambda: message.display_name,
        "time_zone": lambda: message.time_zone,
        "limits": lambda: limits(message.limits, model.Holder.ACCOUNT, "account.limits"),
    }
    fields.mask(paths, readers)
    return {path: readers[path]() for path in paths}


def usage_record(message: authorization_pb2.UsageRecord) -> model.UsageRecord | InvalidArgumentError:
    """Read a usage record, or say why it can not be read; the core rejects it then and goes on with the others."""
    try:
        latency = duration(message, "latency")
        occur_time = instant(message, "occur_time")
    except InvalidArgumentError as error:
        error.metadata["record_id"] = message.record_id
        return error
    return model.UsageRecord(
        record_id=message.record_id,
        key_id=message.key_id,
        units=message.units,
        operation=message.operation,
        resource=message.resource,
        status_code=message.status_code,
        latency=latency,
        occur_time=occur_time,
        tags=dict(message.tags),
        charge_units=message.charge_units if message.HasField("charge_units") else None,
        refund_request_id=message.refund_request_id,
    )


def new_key(message: keys_pb2.CreateKeyRequest) -> NewKey:
    """Read a key to make."""
    return NewKey(
        account_id=message.account_id,
        display_name=message.display_name,
        environment=enum(model.Environment, message.environment, "environment"),
        created_by=message.created_by,
        grants=grants(message.grants),
        api_groups=tuple(message.api_groups),
        ip_rules=tuple(message.ip_rules),
        limits=limits(message.limits, model.Holder.KEY),
        expire_time=instant(message, "expire_time"),
        ttl=duration(message, "ttl"),
        metadata=dict(message.metadata),
        request_id=message.request_id,
    )


def new_account(message: accounts_pb2.CreateAccountRequest) -> NewAccount:
    """Read an account to make."""
    return NewAccount(
        account_id=message.account_id,
        display_name=message.display_name,
        policy=message.policy,
        plan=message.plan,
        time_zone=message.time_zone,
        limits=limits(message.limits, model.Holder.ACCOUNT),
    )


def new_token(message: accounts_pb2.CreateServiceTokenRequest) -> NewToken:
    """Read a service token to make."""
    return NewToken(
        display_name=message.display_name,
        role=enum(model.ServiceRole, message.role, "role"),
        account_id=message.account_id,
        policy=message.policy,
        ttl=duration(message, "ttl"),
    )


def key_filter(message: keys_pb2.ListKeysRequest) -> KeyFilter:
    """Read which keys to list."""
    return KeyFilter(
        account_id=message.account_id,
        state=enum(model.KeyState, message.state, "state") or 0,
        environment=enum(model.Environment, message.environment, "environment") or 0,
        created_by=message.created_by,
    )


def new_member(message: accounts_pb2.SetMemberRequest) -> NewMember:
    """Read a member's rights."""
    return NewMember(
        account_id=message.account_id,
        member_id=message.member_id,
        role=enum(model.Role, message.role, "role"),
        permissions=tuple(message.permissions),
        level=enum(Level, message.level, "level") or Level.UNSPECIFIED,
    )


def usage_query(message: accounts_pb2.GetUsageRequest) -> UsageQuery:
    """Read which usage to tell."""
    return UsageQuery(
        account_id=message.account_id,
        key_id=message.key_id,
        start=instant(message, "start_time"),
        end=instant(message, "end_time"),
        daily=enum(Granularity, message.granularity, "granularity") is Granularity.DAY,
        group_by=message.group_by,
    )


class Granularity(IntEnum):
    """How long a usage bucket is."""

    HOUR = 1
    DAY = 2


def audit_filter(message: accounts_pb2.ListAuditEventsRequest) -> AuditFilter:
    """Read which audit rows to list."""
    key_id = fields.identifier(message.key_id, "key_id")
    start, end = instant(message, "start_time"), instant(message, "end_time")
    return AuditFilter(
        account_id=message.account_id,
        target=f"keys/{key_id}" if key_id else "",
        start=0 if start is None else start,
        end=fields.LAST_INSTANT if end is None else end,
    )


# To the wire.


def number(value: IntEnum) -> Any:  # noqa: ANN401 - the stubs have a type for each enum's numbers
    """Write an enum's value."""
    return value


def timestamp(at: int | None) -> Timestamp | None:
    """Write an instant."""
    if at is None:
        return None
    seconds, micros = divmod(at, _SECOND)
    return Timestamp(seconds=seconds, nanos=micros * 1_000)


def to_duration(micros: int | None) -> Duration | None:
    """Write a duration, 0 or longer."""
    if micros is None:
        return None
    seconds, rest = divmod(micros, _SECOND)
    return Duration(seconds=seconds, nanos=rest * 1_000)


def limit(value: model.Limit) -> resources_pb2.Limit:
    """Write a limit."""
    message = resources_pb2.Limit(name=value.name, holder=number(value.holder), amount=value.amount)
    match value.per:
        case model.Rolling(window):
            message.window.CopyFrom(to_duration(window) or Duration())
        case model.Calendar(period):
            message.calendar = number(period)
        case model.Lifetime():
            message.lifetime = True
    return message


def account(value: model.Account) -> resources_pb2.Account:
    """Write an account."""
    return resources_pb2.Account(
        account_id=value.account_id,
        display_name=value.display_name,
        policy=value.policy,
        plan=value.plan,
        state=number(value.state),
        time_zone=value.time_zone,
        limits=map(limit, value.limits),
        epoch=value.epoch,
        etag=etag(value.version),
        create_time=timestamp(value.create_time),
    )


def key(value: model.Key) -> resources_pb2.Key:
    """Write a key."""
    return resources_pb2.Key(
        key_id=value.key_id,
        account_id=value.account_id,
        display_name=value.display_name,
        environment=number(value.environment),
        state=number(value.state),
        hint=value.hint,
        created_by=value.created_by,
        create_time=timestamp(value.create_time),
        expire_time=timestamp(value.expire_time),
        revoke_time=timestamp(value.revoke_time),
        last_used_time=timestamp(value.last_used_time),
        last_used_ip=value.last_used_ip,
        grants=[
            resources_pb2.Grant(resource=grant.resource, permissions=grant.permissions, level=number(grant.level))
            for grant in value.grants
        ],
        api_groups=value.api_groups,
        ip_rules=value.ip_rules,
        limits=map(limit, value.limits),
        metadata=value.metadata,
        etag=etag(value.version),
    )


def member(value: model.Member) -> resources_pb2.Member:
    """Write a member."""
    return resources_pb2.Member(
        account_id=value.account_id,
        member_id=value.member_id,
        role=number(value.role),
        permissions=value.permissions,
        level=number(value.level),
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
    )


def policy(value: Policy) -> resources_pb2.Policy:
    """Write what a policy promises."""
    return resources_pb2.Policy(
        name=value.name,
        description=value.description,
        prefixes=[
            resources_pb2.PolicyPrefix(environment=number(environment), prefix=prefix)
            for environment, prefix in value.prefixes.items()
        ],
        levels=[
            resources_pb2.PolicyLevel(level=number(level), display_name=name) for level, name in value.levels.items()
        ],
        plans=[
            resources_pb2.PolicyPlan(name=plan.name, limits=map(limit, plan.limits), time_zone=plan.time_zone)
            for plan in value.plans.values()
        ],
        permissions=value.catalogue.levels,
        open_catalogue=value.catalogue.is_open,
        api_groups=sorted(value.api_groups or ()),
        recoverable=value.keys.recoverable,
    )


def usage_bucket(value: UsageBucket) -> accounts_pb2.UsageBucket:
    """Write a sum of usage."""
    return accounts_pb2.UsageBucket(
        start_time=timestamp(value.start), group=value.group, units=value.units, records=value.records
    )


def audit_event(value: AuditRow) -> accounts_pb2.AuditEvent:
    """Write a row of the audit trail."""
    event = value.event
    return accounts_pb2.AuditEvent(
        sequence=value.sequence,
        account_id=event.account_id,
        create_time=timestamp(event.create_time),
        action=event.action,
        target=event.target,
        token_id=event.token_id,
        actor=event.actor,
        actor_ip=event.actor_ip,
        before="" if event.before is None else json.dumps(event.before),
        after="" if event.after is None else json.dumps(event.after),
        note=event.note,
    )


def service_token(value: model.ServiceToken) -> resources_pb2.ServiceToken:
    """Write a service token."""
    return resources_pb2.ServiceToken(
        token_id=value.token_id,
        display_name=value.display_name,
        role=number(value.role),
        account_id=value.account_id,
        policy=value.policy,
        create_time=timestamp(value.create_time),
        expire_time=timestamp(value.expire_time),
        revoke_time=timestamp(value.revoke_time),
    )


def tell_limit(message: resources_pb2.LimitStatus, value: Standing) -> None:
    """Write where a limit stands into an empty message."""
    limit_, remaining, reset_time = value
    message.name = limit_.name
    message.holder = number(limit_.holder)
    if limit_.amount is None:
        message.unlimited = True
    else:
        message.amount = limit_.amount
        message.remaining = remaining
    if reset_time is not None:
        told = message.reset_time
        told.seconds, micros = divmod(reset_time, _SECOND)
        if micros:
            told.nanos = micros * 1_000
    if isinstance(limit_.per, model.Rolling):
        message.window.CopyFrom(to_duration(limit_.per.window) or Duration())
