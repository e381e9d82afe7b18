"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from formgate_server.cli.errors import wrong_usage

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from formgate.v1 import resources_pb2

T = TypeVar("T")

LARGEST = 2**63 - 1

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print ids only, one a line.")]
Most = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Stop after so many.", show_default="all")
]

AccountId = Annotated[str, typer.Argument(metavar="ACCOUNT_ID", help="The account's id.")]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id.")]
OfAccount = Annotated[str, typer.Option("--account", metavar="ACCOUNT_ID", help="The account's id.")]

EnvironmentName = Literal["live", "test"]
Name = Annotated[str | None, typer.Option("--name", help="Its name, for people.", show_default=False)]
EtagText = Annotated[str, typer.Option("--etag", help="Change it only if this is still its etag.")]
NoteText = Annotated[str, typer.Option("--note", help="Why, for the audit trail.")]
ExpireTimeText = Annotated[
    str, typer.Option("--expire-time", metavar="TIME", help="When it expires, such as 2027-01-31T12:00:00Z.")
]
TtlText = Annotated[str, typer.Option("--ttl", metavar="DURATION", help="In how long it expires, such as 90d or 12h.")]

_MOMENTS = "A time, a date, or an age such as 7d"
FromText = Annotated[str, typer.Option("--from", metavar="TIME", help=f"From here on. {_MOMENTS}.")]
ToText = Annotated[str, typer.Option("--to", metavar="TIME", help=f"Up to here, not included. {_MOMENTS}.")]

_LIMITS = (
    "A limit of its own: rate=60/1m (rolling), daily=1000/day or monthly=unlimited/month (calendar), "
    "credits=500/lifetime."
)
LimitTexts = Annotated[
    list[str],
    typer.Option(
        "--limit",
        default_factory=list,
        show_default=False,
        metavar="NAME=AMOUNT/PER",
        help=f"{_LIMITS} Repeatable.",
    ),
]
AccountLimitTexts = Annotated[
    list[str],
    typer.Option(
        "--limit",
        default_factory=list,
        show_default=False,
        metavar="NAME=AMOUNT/PER",
        help=f"{_LIMITS} With @key at its end, each key counts for itself. Repeatable.",
    ),
]
GrantTexts = Annotated[
    list[str],
    typer.Option(
        "--grant",
        default_factory=list,
        show_default=False,
        metavar="RESOURCE:RIGHTS",
        help="What it may do: forms/f1:forms.view,forms.edit or, with a level (read, write, manage), projects/p1:read. "
        "Repeatable.",
    ),
]
ApiGroups = Annotated[
    list[str],
    typer.Option(
        "--api-group",
        default_factory=list,
        show_default=False,
        metavar="NAME",
        help="An API group that it may use. Repeatable.",
    ),
]
IpRules = Annotated[
    list[str],
    typer.Option(
        "--ip-rule",
        default_factory=list,
        show_default=False,
        metavar="RULE",
        help="An address, CIDR or pattern (10.1.*.*) that it may be used from. Repeatable.",
    ),
]
MetadataTexts = Annotated[
    list[str],
    typer.Option(
        "--metadata",
        default_factory=list,
        show_default=False,
        metavar="NAME=VALUE",
        help="A note of yours on it. Repeatable.",
    ),
]


def read(option: str, parse: Callable[[str], T], text: str) -> T:
    """Read an option's value; raises CommandError saying the option and the value."""
    try:
        return parse(text)
    except ValueError as error:
        raise wrong_usage(f"{option} {text}", str(error)) from None


def limits(texts: Iterable[str]) -> list[resources_pb2.Limit]:
    """Read each ``--limit``."""
    from formgate_server.cli.syntax import parse_limit

    return [read("--limit", parse_limit, text) for text in texts]


def grants(texts: Iterable[str]) -> list[resources_pb2.Grant]:
    """Read each ``--grant``."""
    from formgate_server.cli.syntax import parse_grant

    return [read("--grant", parse_grant, text) for text in texts]


def pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Read each ``--metadata`` or ``--tag``."""
    from formgate_server.cli.syntax import parse_pairs

    try:
        return parse_pairs(texts)
    except ValueError as error:
        raise wrong_usage(option, str(error)) from None


def duration(option: str, text: str) -> Duration | None:
    """Read a duration; None: not given."""
    from formgate_server.cli.syntax import parse_duration

    return read(option, parse_duration, text) if text else None


def time(option: str, text: str) -> Timestamp | None:
    """Read a time; None: not given."""
    from formgate_server.cli.syntax import parse_time

    return read(option, parse_time, text) if text else None


def moment(option: str, text: str, zone: str = "UTC") -> Timestamp:
    """Read a time, a date of ``zone`` or an age."""
    from formgate_server.cli.syntax import parse_moment

    return read(option, lambda given: parse_moment(given, zone), text)


def expiry(expire_time: str, ttl: str) -> Timestamp | None:
    """Read when a thing is to expire, by this machine's clock for a ttl; None: neither is given."""
    if expire_time and ttl:
        raise wrong_usage("--ttl", "can not go with --expire-time")
    lasting = duration("--ttl", ttl)
    if lasting is None:
        return time("--expire-time", expire_time)
    from google.protobuf.timestamp_pb2 import Timestamp

    ends = Timestamp()
    ends.GetCurrentTime()
    ends.FromNanoseconds(ends.ToNanoseconds() + lasting.ToNanoseconds())
    return ends
