"""What one platform promises of its keys, as a value. ``formgate_server.policies`` reads it from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from formgate.rules.grants import Catalogue, Grant, Level
from formgate.rules.reason import Reason
from formgate_server.core.errors import UnavailableError
from formgate_server.core.model import Account, Environment, Limit, Role

_MICROSECONDS = 1_000_000

_PLACEHOLDER = re.compile(r"\{(reason|title|message|retry_after)\}")

ANY_METHOD = "*"


@dataclass(frozen=True, slots=True)
class Plan:
    """What an account has booked: limits, and the time zone of their calendar periods (an IANA name)."""

    name: str
    time_zone: str
    limits: tuple[Limit, ...] = ()
    most: Mapping[str, int] = field(default_factory=dict)
    """The largest amount that a key's own limit of a name may have; it then counts as the plan's does."""


@dataclass(frozen=True, slots=True)
class HttpDenial:
    """An HTTP answer: status, header fields in order, body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class DenialTemplate:
    """How a denial is worded over HTTP.

    Fixed placeholders: ``{reason}`` and ``{retry_after}`` (whole seconds, rounded up) in header values and the body,
    ``{title}`` and ``{message}`` in the body. What is put into a body is escaped as inside a JSON string. A header that
    says ``{retry_after}`` where there is none is left out.
    """

    status: int
    title: str
    message: str
    headers: tuple[tuple[str, str], ...]
    body: str

    def render(self, reason: Reason, retry_after: int | None) -> HttpDenial:
        """Word the denial; ``retry_after`` in microseconds."""
        seconds = "" if retry_after is None else str(-(-retry_after // _MICROSECONDS))
        values = {"reason": reason.name, "title": self.title, "message": self.message, "retry_after": seconds}
        body = _PLACEHOLDER.sub(lambda match: json.dumps(values[match[1]])[1:-1], self.body)
        headers = []
        for name, template in self.headers:
            if "{retry_after}" in template and not seconds:
                continue
            headers.append((name, template.replace("{reason}", reason.name).replace("{retry_after}", seconds)))
        return HttpDenial(self.status, tuple(headers), body.encode())


@dataclass(frozen=True, slots=True)
class AddressKinds:
    """Which address rules keys may have."""

    most: int = 1_000
    blocks: bool = True
    wildcards: bool = True
    ipv6: bool = True


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What keys may be, and who may make them."""

    most: int | None = None
    """How many an account may have, revoked and deleted ones not counted. None: any number."""
    creators: frozenset[Role] = frozenset()
    """The members who may create keys. Empty: anybody, known or not."""
    needs_creator: bool = False
    """Whether a key must name who creates it."""
    ungranted: tuple[Grant, ...] | None = ()
    """What a key without grants may do. None: what its creator may."""
    capped: bool = False
    """Whether a key may never do what its creator may not."""
    recoverable: bool = False
    """Whether its secret can be shown again."""
    delete_only_disabled: bool = False
    addresses: AddressKinds = field(default_factory=AddressKinds)


@dataclass(frozen=True, slots=True)
class Policy:
    """One platform's promises."""

    name: str
    description: str
    prefixes: Mapping[Environment, str]
    """The secrets' prefix of each environment that it offers."""
    plans: Mapping[str, Plan]
    """By name; the first is a new account's."""
    catalogue: Catalogue
    levels: Mapping[Level, str]
    """The levels that it offers, and what it calls them."""
    methods: Mapping[str, Level]
    """HTTP method to the level that it needs; ``*``: any other. Empty: the policy ignores methods."""
    api_groups: frozenset[str] | None
    """The API groups that a key can be limited to. None: any."""
    denials: Mapping[Reason, DenialTemplate]
    """One for every reason but OK."""
    keys: KeyRules = field(default_factory=KeyRules)
    usage_tags: tuple[str, ...] = ()
    """The tags of usage records, at most 3, that usage is summed up by."""
    longest_lease: int = 1_000_000
    """For how long others may decide its keys' checks by themselves, in microseconds. 0: never."""

    @property
    def first_plan(self) -> Plan:
        """A new account's plan."""
        return next(iter(self.plans.values()))

    def level_of(self, http_method: str) -> Level | None:
        """Return the level that ``http_method`` needs; UNSPECIFIED: none; None: the method is unknown, to be denied."""
        if not http_method or not self.methods:
            return Level.UNSPECIFIED
        return self.methods.get(http_method) or self.methods.get(ANY_METHOD)


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies that this server knows, and its default's name."""

    by_name: Mapping[str, Policy]
    default: str
    by_prefix: Mapping[str, Policy] = field(init=False)
    """By what their secrets begin with."""

    @property
    def limit_names(self) -> frozenset[str]:
        """The names of all limits that plans have."""
        plans = [plan for policy in self.by_name.values() for plan in policy.plans.values()]
        return frozenset({limit.name for plan in plans for limit in plan.limits}.union(*(plan.most for plan in plans)))

    def of(self, account: Account) -> Policy:
        """Return the policy of an account, which has its plan. Raises UnavailableError where another server has it."""
        return self.named(account.policy, account.plan)

    def named(self, name: str, plan: str = "") -> Policy:
        """Return the policy that an account says it has. None is of this server's only while files are exchanged."""
        found = self.by_name.get(name)
        if found is None or (plan and plan not in found.plans):
            message = f"this server has no policy {name}{f' with plan {plan}' if plan else ''}: give it the file"
            raise UnavailableError(message, reason="POLICY_UNKNOWN", metadata={"policy": name})
        return found

    def __post_init__(self) -> None:
        own = {prefix: policy for policy in self.by_name.values() for prefix in policy.prefixes.values()}
        object.__setattr__(self, "by_prefix", own)
