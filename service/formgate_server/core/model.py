"""The nouns, as frozen values. Enums are numbered as in ``formgate.v1``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from formgate.rules.grants import Grant, Level


class Environment(IntEnum):
    """Where a key may be used."""

    LIVE = 1
    TEST = 2


class KeyState(IntEnum):
    """ENABLED and DISABLED go both ways, REVOKED is final."""

    ENABLED = 1
    DISABLED = 2
    REVOKED = 3


class AccountState(IntEnum):
    """Whether an account's keys are served."""

    ACTIVE = 1
    SUSPENDED = 2


class Holder(IntEnum):
    """Whose counter a limit charges."""

    KEY = 1
    ACCOUNT = 2


class Period(IntEnum):
    """A calendar period of a time zone."""

    DAY = 1
    MONTH = 2


class Role(IntEnum):
    """A member's standing in its account."""

    MEMBER = 1
    ADMIN = 2
    GLOBAL_ADMIN = 3


class ServiceRole(IntEnum):
    """What a calling service may do."""

    CHECKER = 1
    MANAGER = 2
    AUDITOR = 3


@dataclass(frozen=True, slots=True)
class Rolling:
    """Any interval of ``window`` microseconds."""

    window: int


@dataclass(frozen=True, slots=True)
class Calendar:
    """A day or month, from its first instant in the time zone."""

    period: Period


@dataclass(frozen=True, slots=True)
class Lifetime:
    """For ever."""


class WhenDegraded(IntEnum):
    """What becomes of a limit while the counters' store is away."""

    SHARE = 0
    """Each process lets through its share of what was left."""
    ALLOW = 1
    """Nothing is denied by it."""
    DENY = 2
    """Everything is."""


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``amount`` units (None: unlimited) per ``per``, counted for each key or for the account."""

    name: str
    holder: Holder
    amount: int | None
    per: Rolling | Calendar | Lifetime
    when_degraded: WhenDegraded = WhenDegraded.SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A tenant. ``time_zone`` empty: the plan's. ``version`` rises with every change and is its etag."""

    account_id: str
    display_name: str
    policy: str
    plan: str
    state: AccountState
    time_zone: str
    limits: tuple[Limit, ...]
    epoch: int
    version: int
    create_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key without its secret. ``version`` rises with every change and is its etag."""

    key_id: str
    account_id: str
    display_name: str
    environment: Environment
    state: KeyState
    hint: str
    created_by: str
    create_time: int
    expire_time: int | None
    revoke_time: int | None = None
    last_used_time: int | None = None
    last_used_ip: str = ""
    grants: tuple[Grant, ...] = ()
    api_groups: tuple[str, ...] = ()
    ip_rules: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A user of an account, whose rights its keys may inherit."""

    account_id: str
    member_id: str
    role: Role
    permissions: tuple[str, ...] = ()
    level: Level = Level.UNSPECIFIED
    create_time: int = 0
    update_time: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceToken:
    """A calling service's credential without its secret. ``account_id``, ``policy`` empty: bound to none."""

    token_id: str
    display_name: str
    role: ServiceRole
    account_id: str
    policy: str
    create_time: int
    expire_time: int | None
    revoke_time: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call: the service token shown, and the member for whom the service says it acts."""

    token_id: str
    role: ServiceRole
    account_id: str = ""
    policy: str = ""
    actor: str = ""
    actor_ip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One change: what, when, by whom; ``before`` and ``after`` are JSON objects without secrets (None: nothing)."""

    account_id: str
    create_time: int
    action: str
    target: str
    token_id: str
    actor: str = ""
    actor_ip: str = ""
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One consumption, as sent. ``latency`` and ``occur_time`` None: not said."""

    record_id: str
    key_id: str
    units: int
    operation: str = ""
    resource: str = ""
    status_code: int = 0
    latency: int | None = None
    occur_time: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    charge_units: int | None = None
    refund_request_id: str = ""


class UsageOutcome(IntEnum):
    """What became of a usage record."""

    ACCEPTED = 1
    DUPLICATE = 2
    CONFLICT = 3
    REJECTED = 4
