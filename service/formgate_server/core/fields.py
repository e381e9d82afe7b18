"""What fields may hold: each function returns the value, or raises InvalidArgumentError naming the field.

Messages never repeat a value: it may be huge, a secret in the wrong place, or made to forge a log line.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from formgate.rules.addresses import parse_address, parse_rule
from formgate.rules.grants import EVERYTHING, Grant, Level
from formgate_server.core import calendar
from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.model import Limit, Rolling
from formgate_server.core.policy import Policy

T = TypeVar("T")

LARGEST = 2**63 - 1
MOST_GRANTS = 1_000
MOST_GRANT_BYTES = 128 * 1024
MOST_LIMITS = 16
MOST_PERMISSIONS = 100
MOST_RESOURCES = 100
MOST_TAGS = 16
MOST_METADATA_BYTES = 1_024
LONGEST_WINDOW = 366 * 86_400 * 1_000_000
LAST_INSTANT = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999Z, the last that a Timestamp can say

_SHORTEST_WINDOW = 1_000
_LONGEST_RESOURCE = 1_024
_LONGEST_PERMISSION = 256
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_DOTS = frozenset({".", ".."})
_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.-]{1,64}"
_PATH = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,31}}", re.ASCII)
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FORGING = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, lone surrogates, line and paragraph separators


def required(value: str, field: str) -> str:
    """Check that an id is given, and is one."""
    if not value:
        raise InvalidArgumentError(field, "is required")
    return identifier(value, field)


def identifier(value: str, field: str) -> str:
    """Check an id; empty: not given."""
    if value and not is_identifier(value):
        raise InvalidArgumentError(field, "must match [A-Za-z0-9_.-]{1,64} and not be . or ..")
    return value


def is_identifier(value: str) -> bool:
    """Tell whether ``value`` is an id."""
    return _IDENTIFIER.fullmatch(value) is not None and value not in _DOTS


def at_most(values: Collection[T], most: int, field: str) -> Collection[T]:
    """Check how many there are."""
    if len(values) > most:
        raise InvalidArgumentError(field, f"has {len(values)} entries; at most {most} are allowed")
    return values


def text(value: str, field: str, longest: int) -> str:
    """Check a text for people: nothing in it may forge a line of a log or move a terminal's cursor."""
    if len(value) > longest:
        raise InvalidArgumentError(field, f"is longer than {longest} characters")
    if not value.isascii() or not value.isprintable():
        for character in value:
            if character in _BIDI or unicodedata.category(character) in _FORGING:
                raise InvalidArgumentError(field, "holds a control character")
    return value


def display_name(value: str, field: str = "display_name") -> str:
    """Check a name for people."""
    return text(value, field, 200)


def note(value: str, field: str = "reason_note") -> str:
    """Check a note for the audit trail."""
    return text(value, field, 500)


def resource(value: str, field: str) -> str:
    """Check a path: ``*``, or ids separated by single slashes."""
    if value == EVERYTHING:
        return value
    if len(value) > _LONGEST_RESOURCE:
        raise InvalidArgumentError(field, f"is longer than {_LONGEST_RESOURCE} characters")
    if _PATH.fullmatch(value) is None:
        raise InvalidArgumentError(
            field, "must be * or at most 32 ids ([A-Za-z0-9_.-]{1,64}, not . or ..) separated by /"
        )
    return value


def resources(values: Sequence[str], field: str = "resources") -> tuple[str, ...]:
    """Check the paths of a check."""
    at_most(values, MOST_RESOURCES, field)
    for index, value in enumerate(values):
        if len(value) > _LONGEST_RESOURCE or _PATH.fullmatch(value) is None:
            resource(value, f"{field}[{index}]")
    return tuple(values)


def source_ip(value: str, field: str = "source_ip") -> str:
    """Check an address; empty: not given."""
    if value:
        try:
            parse_address(value)
        except ValueError as error:
            raise InvalidArgumentError(field, str(error)) from None
    return value


def number(value: int, field: str, smallest: int = 0, largest: int = LARGEST) -> int:
    """Check that a number is within bounds, both included."""
    if value < smallest:
        raise InvalidArgumentError(field, f"must be at least {smallest}")
    if value > largest:
        raise InvalidArgumentError(field, f"must be at most {largest}")
    return value


def expiry(expire_time: int | None, ttl: int | None, now: int, field: str = "expire_time") -> int | None:
    """Return when a thing expires that is made now."""
    if ttl is not None:
        if expire_time is not None:
            raise InvalidArgumentError("ttl", "can not be given together with expire_time")
        expire_time = now + number(ttl, "ttl", smallest=1)
        if expire_time > LAST_INSTANT:
            raise InvalidArgumentError("ttl", "ends after the year 9999")
    elif expire_time is not None and expire_time <= now:
        raise InvalidArgumentError(field, "must be in the future")
    return expire_time


def time_zone(value: str, field: str = "time_zone") -> str:
    """Check an IANA name; empty: not given."""
    if value and value not in calendar.zone_names():
        raise InvalidArgumentError(field, "is not an IANA time zone such as Europe/Vienna")
    return value


def metadata(values: Mapping[str, str], field: str = "metadata") -> dict[str, str]:
    """Check a caller's own notes on a key."""
    size = sum(len(name.encode()) + len(value.encode()) for name, value in values.items())
    if size > MOST_METADATA_BYTES:
        raise InvalidArgumentError(field, f"has {size} bytes; at most {MOST_METADATA_BYTES} are allowed")
    return _texts(values, field, MOST_METADATA_BYTES, MOST_METADATA_BYTES)


def tags(values: Mapping[str, str], field: str = "tags") -> dict[str, str]:
    """Check a caller's notes on a check or a usage record."""
    at_most(values, MOST_TAGS, field)
    return _texts(values, field, 64, 256)


def _texts(values: Mapping[str, str], field: str, longest_name: int, longest_value: int) -> dict[str, str]:
    for name, value in values.items():
        if not name:
            raise InvalidArgumentError(field, "has an empty name")
        text(name, field, longest_name)
        text(value, field, longest_value)
    return dict(values)


def grants(values: Sequence[Grant], policy: Policy, field: str = "grants") -> tuple[Grant, ...]:
    """Check a key's grants against the policy's catalogue and levels."""
    at_most(values, MOST_GRANTS, field)
    for index, grant in enumerate(values):
        here = f"{field}[{index}]"
        resource(grant.resource, f"{here}.resource")
        permissions(grant.permissions, policy, f"{here}.permissions")
        level(grant.level, policy, f"{here}.level")
        if not grant.level and not grant.permissions:
            raise InvalidArgumentError(here, "grants nothing; give permissions or a level")
    size = sum(len(grant.resource) + sum(map(len, grant.permissions)) for grant in values)  # it is all ASCII
    if size > MOST_GRANT_BYTES:
        raise InvalidArgumentError(field, f"hold {size} bytes of names; at most {MOST_GRANT_BYTES} are allowed")
    return tuple(values)


def level(value: Level, policy: Policy, field: str) -> Level:
    """Check a level; UNSPECIFIED: none."""
    if value and value not in policy.levels:
        offered = ", ".join(f"LEVEL_{each.name}" for each in policy.levels) or "none"
        raise InvalidArgumentError(field, f"is not offered by policy {policy.name}; it has {offered}")
    return value


def permissions(values: Sequence[str], policy: Policy, field: str) -> tuple[str, ...]:
    """Check what a grant holds: permissions of the catalogue, groups of them, or ``*``."""
    at_most(values, MOST_PERMISSIONS, field)
    for index, value in enumerate(values):
        if not policy.catalogue.knows_pattern(value):
            raise InvalidArgumentError(f"{field}[{index}]", f"is not in the catalogue of policy {policy.name}")
    return tuple(values)


def asked_permissions(values: Sequence[str], field: str = "permissions") -> tuple[str, ...]:
    """Check what a check asks for; whether the catalogue has it is the verdict's matter."""
    at_most(values, MOST_PERMISSIONS, field)
    for index, value in enumerate(values):
        if len(value) > _LONGEST_PERMISSION or not value.isascii() or not value.isprintable():
            text(value, f"{field}[{index}]", _LONGEST_PERMISSION)
    return tuple(values)


def api_groups(values: Sequence[str], policy: Policy, field: str = "api_groups") -> tuple[str, ...]:
    """Check the API groups that a key is limited to."""
    at_most(values, MOST_PERMISSIONS, field)
    for index, value in enumerate(values):
        required(value, f"{field}[{index}]")
        if policy.api_groups is not None and value not in policy.api_groups:
            raise InvalidArgumentError(f"{field}[{index}]", f"is not an API group of policy {policy.name}")
    return tuple(values)


def ip_rules(values: Sequence[str], policy: Policy, field: str = "ip_rules") -> tuple[str, ...]:
    """Check address rules against the kinds that the policy has."""
    kinds = policy.keys.addresses
    at_most(values, kinds.most, field)
    for index, value in enumerate(values):
        here = f"{field}[{index}]"
        try:
            parse_rule(value)
        except ValueError as error:
            raise InvalidArgumentError(here, str(error)) from None
        if not kinds.wildcards and "*" in value:
            raise InvalidArgumentError(here, f"is a wildcard, which policy {policy.name} has not")
        if not kinds.blocks and "/" in value:
            raise InvalidArgumentError(here, f"is a block, which policy {policy.name} has not")
        if not kinds.ipv6 and ":" in value:
            raise InvalidArgumentError(here, f"is an IPv6 address, which policy {policy.name} has not")
    return tuple(values)


def limits(values: Sequence[Limit], field: str = "limits") -> tuple[Limit, ...]:
    """Check limits; their names are unique for each holder."""
    at_most(values, MOST_LIMITS, field)
    seen = set()
    for index, limit in enumerate(values):
        here = f"{field}[{index}]"
        required(limit.name, f"{here}.name")
        if (limit.holder, limit.name) in seen:
            raise InvalidArgumentError(f"{here}.name", "stands twice")
        seen.add((limit.holder, limit.name))
        if limit.amount is not None:
            number(limit.amount, f"{here}.amount")
        if isinstance(limit.per, Rolling) and not _SHORTEST_WINDOW <= limit.per.window <= LONGEST_WINDOW:
            raise InvalidArgumentError(f"{here}.window", "must be 1 millisecond to 366 days")
    return tuple(values)


def mask(paths: Sequence[str], updatable: Collection[str], field: str = "update_mask") -> None:
    """Check an update mask: it names fields that can change, at least one."""
    if not paths:
        raise InvalidArgumentError(field, f"is required; it may name {', '.join(updatable)}")
    if not set(paths) <= set(updatable):
        raise InvalidArgumentError(field, f"may name only {', '.join(updatable)}")
