"""What people write on the command line: durations, times, limits, grants, pairs. Each function raises ValueError."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from formgate.v1 import resources_pb2 as pb
from formgate_server.core import calendar

_UNITS = {"d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1_000, "us": 1}
_DURATION = re.compile(r"(?:[0-9]{1,18}(?:d|h|ms|m|us|s)\s*)+")
_TIME = re.compile(r"[0-9-]{10}T[0-9:]{8}(?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_PART = re.compile(r"([0-9]+)(d|h|ms|m|us|s)")
_LONGEST_DURATION = 315_576_000_000 * 1_000_000  # what a google.protobuf.Duration holds: 10,000 years
_LARGEST = 2**63 - 1
_PERIODS = {"day": pb.CALENDAR_DAY, "month": pb.CALENDAR_MONTH}
_HOLDERS = {"account": pb.HOLDER_ACCOUNT, "key": pb.HOLDER_KEY}
_LEVELS = {"read": pb.LEVEL_READ, "write": pb.LEVEL_WRITE, "manage": pb.LEVEL_MANAGE}

_LIMIT_EXAMPLES = "such as rate=60/1m, daily=1000/day, credits=500/lifetime or free=unlimited/month@account"


def parse_duration(text: str) -> Duration:
    """Read ``90d``, ``1h30m``, ``250ms``: numbers with the units d, h, m, s, ms, us."""
    if not _DURATION.fullmatch(text):
        raise ValueError("is not a duration such as 90d, 12h, 1h30m, 45s or 250ms")
    return to_duration(sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text)))


def to_duration(microseconds: int) -> Duration:
    """Return a Duration of ``microseconds`` >= 0."""
    if microseconds > _LONGEST_DURATION:
        raise ValueError("is longer than 10,000 years")
    seconds, rest = divmod(microseconds, 1_000_000)
    return Duration(seconds=seconds, nanos=rest * 1_000)


def format_duration(duration: Duration) -> str:
    """Write ``duration`` as ``parse_duration`` reads it; what is below a microsecond is left out."""
    left = max(duration.seconds * 1_000_000 + duration.nanos // 1_000, 0)
    parts = []
    for unit, length in _UNITS.items():
        number, left = divmod(left, length)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


def format_wait(duration: Duration) -> str:
    """Write how long to wait, for people: rounded up to a second, below that to a millisecond; never too short."""
    nanoseconds = duration.ToNanoseconds()
    step = 1_000_000_000 if duration.seconds else 1_000_000
    return format_duration(to_duration(-(-nanoseconds // step) * step // 1_000))


def parse_time(text: str) -> Timestamp:
    """Read an RFC 3339 time, with ``Z`` or an offset; a space may stand for the ``T``, as in the tables."""
    timestamp = Timestamp()
    written = text.strip().replace(" ", "T", 1)
    try:
        # protobuf takes any two numbers for an offset, and digits of any script
        timestamp.FromJsonString(written if _TIME.fullmatch(written) else "")
    except ValueError:
        raise ValueError("is not a time such as 2027-01-31T12:00:00Z or 2027-01-31T12:00:00+01:00") from None
    return timestamp


def is_age(text: str) -> bool:
    """Tell whether ``text`` is a duration, which stands for how long ago."""
    return _DURATION.fullmatch(text) is not None


def parse_moment(text: str, zone: str) -> Timestamp:
    """Read a time, a date (its first instant in ``zone``), or an age by this machine's clock."""
    moment = Timestamp()
    try:
        if is_age(text):
            moment.GetCurrentTime()
            moment.FromMicroseconds(moment.ToMicroseconds() - parse_duration(text).ToMicroseconds())
        elif _DATE.fullmatch(text):
            moment.FromMicroseconds(calendar.first_instant(zone, date.fromisoformat(text)))
        else:
            return parse_time(text)
        moment.ToJsonString()
    except (ValueError, OverflowError):
        raise ValueError("is not a time such as 2027-01-31T12:00:00Z, a date or an age such as 7d") from None
    return moment


def format_time(timestamp: Timestamp) -> str:
    """Write a time to the second, in UTC: ``2027-01-31 12:00:00Z``. ``parse_time`` reads it."""
    return Timestamp(seconds=timestamp.seconds).ToJsonString().replace("T", " ")


def parse_limit(text: str) -> pb.Limit:
    """Read ``NAME=AMOUNT/PER`` and perhaps ``@key`` or ``@account``.

    AMOUNT is a number or ``unlimited``. PER is a duration (rolling), ``day`` or ``month`` (calendar) or ``lifetime``.
    """
    name, equals, rest = text.partition("=")
    amount, slash, per = rest.partition("/")
    per, at, holder = per.partition("@")
    if not (name and equals and amount and slash and per) or (at and holder not in _HOLDERS):
        raise ValueError(f"is not NAME=AMOUNT/PER, {_LIMIT_EXAMPLES}")
    limit = pb.Limit(name=name, holder=_HOLDERS.get(holder, pb.HOLDER_UNSPECIFIED))
    if amount != "unlimited":
        limit.amount = _amount(amount)
    if per in _PERIODS:
        limit.calendar = _PERIODS[per]
    elif per == "lifetime":
        limit.lifetime = True
    else:
        limit.window.CopyFrom(_window(per))
    return limit


def _amount(text: str) -> int:
    if not re.fullmatch(r"[0-9]+(_[0-9]+)*", text):
        raise ValueError(f"has an amount that is neither a number nor unlimited; write it {_LIMIT_EXAMPLES}")
    digits = text.replace("_", "").lstrip("0") or "0"
    if len(digits) > len(str(_LARGEST)) or int(digits) > _LARGEST:
        raise ValueError(f"has an amount above {_LARGEST}")
    return int(digits)


def _window(text: str) -> Duration:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ValueError(f"is not per day, month, lifetime or a duration: {text} {error}") from None


def format_limit(limit: pb.Limit) -> str:
    """Write ``limit`` as ``parse_limit`` reads it."""
    amount = str(limit.amount) if limit.HasField("amount") else "unlimited"
    holder = f"@{_word(_HOLDERS, limit.holder)}" if limit.holder else ""
    return f"{limit.name}={amount}/{_format_per(limit)}{holder}"


def _format_per(limit: pb.Limit) -> str:
    match limit.WhichOneof("per"):
        case "window":
            return format_duration(limit.window)
        case "calendar":
            return _word(_PERIODS, limit.calendar)
        case "lifetime":
            return "lifetime"
    return "?"  # a newer server's


def parse_grant(text: str) -> pb.Grant:
    """Read ``RESOURCE:RIGHTS``: permission names, and at most one of the levels read, write and manage, with commas."""
    resource, colon, rights = text.rpartition(":")  # a permission has no colon
    words = [word for word in rights.split(",") if word]
    levels = [word for word in words if word in _LEVELS]
    if not (resource and colon and words):
        raise ValueError("is not RESOURCE:RIGHTS, such as forms/f1:forms.view,forms.edit or projects/p1:read")
    if len(levels) > 1:
        raise ValueError(f"has {len(levels)} levels; one holds those below it")
    return pb.Grant(
        resource=resource,
        permissions=[word for word in words if word not in _LEVELS],
        level=_LEVELS[levels[0]] if levels else pb.LEVEL_UNSPECIFIED,
    )


def format_grant(grant: pb.Grant) -> str:
    """Write ``grant`` as ``parse_grant`` reads it."""
    level = [_word(_LEVELS, grant.level)] if grant.level else []
    return f"{grant.resource}:{','.join([*level, *grant.permissions])}"


def parse_pairs(texts: Iterable[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` each; a value may hold ``=`` and be empty."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError("is not NAME=VALUE")
        if name in pairs:
            raise ValueError(f"names {name} twice")
        pairs[name] = value
    return pairs


def _word(words: Mapping[str, int], value: int) -> str:
    """Return the word for an enum's value; the number itself for one that a newer server knows."""
    return next((word for word, known in words.items() if known == value), str(value))
