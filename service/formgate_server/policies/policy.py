"""Reads policy files: TOML, validated whole before the first check is decided by them (docs/policies.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from formgate.rules import wording
from formgate.rules.grants import EVERYTHING, Catalogue, Grant, Level
from formgate.rules.reason import Reason
from formgate_server.core import calendar
from formgate_server.core.fields import LONGEST_WINDOW
from formgate_server.core.model import (
    Calendar,
    Environment,
    Holder,
    Lifetime,
    Limit,
    Period,
    Role,
    Rolling,
    WhenDegraded,
)
from formgate_server.core.policy import AddressKinds, DenialTemplate, KeyRules, Plan, Policies, Policy
from formgate_server.policies.toml_file import FileModel, Source, TomlError

DEFAULT = "default"

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_PLACEHOLDERS = frozenset({"reason", "title", "message", "retry_after"})
_IN_HEADERS = frozenset({"reason", "retry_after"})
_UNITS = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_LARGEST = 2**63 - 1
_LONGEST_LEASE = 10_000_000

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$")]
Prefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,31}_$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9!#$%&'*+.^_`|~-]+$")]
HeaderValue = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$")]
Permission = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}(\.[a-z][a-z0-9_]{0,63}){1,3}$")]
Method = Annotated[str, StringConstraints(pattern=r"^([A-Z]{1,20}|\*)$")]
Window = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,8}(ms|s|m|h|d)$")]
Lease = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,4}ms|[1-9][0-9]?s)$")]
Amount = Annotated[int, Field(ge=0, le=_LARGEST)]
LevelName = Literal["READ", "WRITE", "MANAGE"]
EnvironmentName = Literal["LIVE", "TEST"]


class PolicyError(TomlError):
    """A policy file that can not be used; says the file and, where they are known, the line and the field."""


class _File(FileModel):
    """A table of a policy file."""


class _Limit(_File):
    name: Identifier
    holder: Literal["KEY", "ACCOUNT"]
    amount: Amount | None = None
    window: Window | None = None
    calendar: Literal["DAY", "MONTH"] | None = None
    lifetime: Literal[True] | None = None
    most: Amount | None = None
    when_degraded: Literal["SHARE", "ALLOW", "DENY"] = "SHARE"

    @field_validator("window")
    @classmethod
    def _not_too_long(cls, window: str | None) -> str | None:
        if window is not None and _microseconds(window) > LONGEST_WINDOW:
            message = "is longer than 366 days"
            raise ValueError(message)
        return window

    @model_validator(mode="after")
    def _one_period(self) -> Self:
        if sum(per is not None for per in (self.window, self.calendar, self.lifetime)) != 1:
            message = "needs one of window, calendar and lifetime"
            raise ValueError(message)
        if self.most is not None and (self.holder != "KEY" or self.amount is None or self.amount > self.most):
            message = "most is for a limit that keys hold, and not below its amount"
            raise ValueError(message)
        return self

    def limit(self) -> Limit:
        per: Rolling | Calendar | Lifetime = Lifetime()
        if self.window is not None:
            per = Rolling(_microseconds(self.window))
        elif self.calendar is not None:
            per = Calendar(Period[self.calendar])
        return Limit(self.name, Holder[self.holder], self.amount, per, WhenDegraded[self.when_degraded])


def _microseconds(window: str) -> int:
    unit = window.lstrip("0123456789")
    return int(window.removesuffix(unit)) * _UNITS[unit]


class _Plan(_File):
    time_zone: str
    limits: list[_Limit] = Field(default_factory=list, max_length=16)

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in calendar.zone_names():
            message = f"{name!r} is not an IANA time zone"
            raise ValueError(message)
        return name

    @field_validator("limits")
    @classmethod
    def _once(cls, limits: list[_Limit]) -> list[_Limit]:
        names = [limit.name for limit in limits]
        if len(set(names)) < len(names):
            message = "two limits have one name"
            raise ValueError(message)
        return limits

    def plan(self, name: str) -> Plan:
        most = {limit.name: limit.most for limit in self.limits if limit.most is not None}
        return Plan(name, self.time_zone, tuple(limit.limit() for limit in self.limits), most)


class _AddressRules(_File):
    most: Annotated[int, Field(ge=0, le=1_000)] = 1_000
    blocks: bool = True
    wildcards: bool = True
    ipv6: bool = True


class _Keys(_File):
    most: Annotated[int, Field(ge=1)] | None = None
    creators: list[Literal["MEMBER", "ADMIN", "GLOBAL_ADMIN"]] = Field(default_factory=list)
    created_by: Literal["required", "optional"] = "optional"
    ungranted: Literal["NOTHING", "CREATOR", "READ", "WRITE", "MANAGE"] = "NOTHING"
    capped: bool = False
    recoverable: bool = False
    delete_only_disabled: bool = False
    ip_rules: _AddressRules = _AddressRules()

    @model_validator(mode="after")
    def _creator_known(self) -> Self:
        if (self.creators or self.capped) and self.created_by != "required":
            message = 'creators and capped need created_by = "required"'
            raise ValueError(message)
        return self

    def rules(self) -> KeyRules:
        ungranted: tuple[Grant, ...] | None = ()
        if self.ungranted == "CREATOR":
            ungranted = None
        elif self.ungranted != "NOTHING":
            ungranted = (Grant(EVERYTHING, (), Level[self.ungranted]),)
        return KeyRules(
            most=self.most,
            creators=frozenset(Role[name] for name in self.creators),
            needs_creator=self.created_by == "required",
            ungranted=ungranted,
            capped=self.capped,
            recoverable=self.recoverable,
            delete_only_disabled=self.delete_only_disabled,
            addresses=AddressKinds(**self.ip_rules.model_dump()),
        )


class _Denial(_File):
    status: Annotated[int, Field(ge=400, le=599)] | None = None
    title: Text | None = None
    message: Text | None = None
    headers: list[tuple[HeaderName, HeaderValue]] | None = None
    body: str | None = None

    @field_validator("headers")
    @classmethod
    def _placeholders_in_headers(cls, headers: object) -> object:
        return _known_placeholders(headers, _IN_HEADERS)

    @field_validator("body")
    @classmethod
    def _placeholders_in_body(cls, body: object) -> object:
        return _known_placeholders(body, _PLACEHOLDERS)


def _known_placeholders(template: object, known: frozenset[str]) -> object:
    unknown = set(_PLACEHOLDER.findall(str(template))) - known
    if unknown:
        message = f"unknown placeholder {{{min(unknown)}}}; here are {', '.join(sorted(known))}"
        raise ValueError(message)
    return template


class _Policy(_File):
    name: Name
    description: Text
    prefixes: Annotated[dict[EnvironmentName, Prefix], Field(min_length=1)]
    permissions: dict[Permission, Literal["NONE", "READ", "WRITE", "MANAGE"]] = Field(default_factory=dict)
    open_catalogue: bool = False
    levels: dict[LevelName, Text] = Field(default_factory=dict)
    methods: dict[Method, LevelName] = Field(default_factory=dict)
    api_groups: list[Identifier] | None = None
    usage_tags: list[Identifier] = Field(default_factory=list, max_length=3)
    longest_lease: Lease = "1s"
    keys: _Keys = _Keys()
    plans: Annotated[dict[Name, _Plan], Field(min_length=1)]
    denial: _Denial = _Denial()
    denials: dict[str, _Denial] = Field(default_factory=dict)

    @field_validator("longest_lease")
    @classmethod
    def _lease_not_too_long(cls, lease: str) -> str:
        if lease != "0" and _microseconds(lease) > _LONGEST_LEASE:
            message = "is longer than 10 seconds"
            raise ValueError(message)
        return lease

    @field_validator("denials")
    @classmethod
    def _known_reasons(cls, by_reason: dict[str, _Denial]) -> dict[str, _Denial]:
        for name in by_reason:
            if name not in Reason.__members__ or name == Reason.OK.name:
                message = f"{name} is not a reason to deny"
                raise ValueError(message)
        return by_reason

    def needed_levels(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the levels that a key must be able to have, each with the field that names it."""
        for method, level in self.methods.items():
            yield ("methods", method), level
        if self.keys.ungranted not in {"NOTHING", "CREATOR"}:
            yield ("keys", "ungranted"), self.keys.ungranted

    def policy(self) -> Policy:
        """Return the policy as a value."""
        levels = {name: Level[level] for name, level in self.permissions.items() if level != "NONE"}
        nobodys = {name: Level.UNSPECIFIED for name, level in self.permissions.items() if level == "NONE"}
        return Policy(
            name=self.name,
            description=self.description,
            prefixes={Environment[environment]: prefix for environment, prefix in self.prefixes.items()},
            plans={name: plan.plan(name) for name, plan in self.plans.items()},
            catalogue=Catalogue(levels | nobodys, is_open=self.open_catalogue),
            levels={level: self.levels[name] for name, level in Level.__members__.items() if name in self.levels},
            methods={method: Level[level] for method, level in self.methods.items()},
            api_groups=None if self.api_groups is None else frozenset(self.api_groups),
            denials={reason: self._denial(reason) for reason in Reason if reason is not Reason.OK},
            keys=self.keys.rules(),
            usage_tags=tuple(self.usage_tags),
            longest_lease=0 if self.longest_lease == "0" else _microseconds(self.longest_lease),
        )

    def _denial(self, reason: Reason) -> DenialTemplate:
        special, usual = self.denials.get(reason.name, _Denial()), self.denial
        status = special.status or usual.status or wording.STATUSES[reason]
        headers = special.headers if special.headers is not None else usual.headers
        body = special.body if special.body is not None else usual.body
        return DenialTemplate(
            status=status,
            title=special.title or usual.title or wording.TITLES[reason],
            message=special.message or usual.message or wording.MESSAGES[reason],
            headers=wording.headers(status) if headers is None else tuple(headers),
            body=wording.BODY if body is None else body,
        )


def read(path: Path) -> Policy:
    """Read a policy file. Raises PolicyError saying the file, and the line and field, where it is not valid."""
    return _parse(_source(path))


def _source(path: Path) -> Source:
    try:
        return Source(str(path), path.read_text(encoding="utf-8"), PolicyError)
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path}: can not be read: {error}"
        raise PolicyError(message) from error


def _parse(source: Source) -> Policy:
    file = source.parse(_Policy)
    for field, level in file.needed_levels():
        if level not in file.levels:
            raise source.error_at(
                field, f"{level} is none of the levels that the policy offers; give it a name in levels"
            )
    return file.policy()


def load(folder: Path | None = None) -> Policies:
    """Read the bundled policies and those in ``folder``. Raises PolicyError, also where two share a name or prefix."""
    bundled = [file for file in resources.files(__package__).iterdir() if file.name.endswith(".toml")]
    sources = [
        Source(file.name, file.read_text(encoding="utf-8"), PolicyError)
        for file in sorted(bundled, key=lambda f: f.name)
    ]
    if folder is not None:
        if not folder.is_dir():
            message = f"{folder}: is not a folder; FORMGATE_POLICY_DIR must name one"
            raise PolicyError(message)
        sources += [_source(path) for path in sorted(folder.glob("*.toml"))]
    return _together(sources)


def _together(sources: Iterable[Source]) -> Policies:
    by_name: dict[str, Policy] = {}
    by_prefix: dict[str, str] = {}
    for source in sources:
        policy = _parse(source)
        if policy.name in by_name:
            raise source.error_at(("name",), f"there is another policy named {policy.name}")
        by_name[policy.name] = policy
        for environment, prefix in policy.prefixes.items():
            if prefix in by_prefix:
                taken = f"{prefix} is also a prefix of policy {by_prefix[prefix]}"
                raise source.error_at(("prefixes", environment.name), taken)
            by_prefix[prefix] = policy.name
    return Policies(by_name, DEFAULT)
