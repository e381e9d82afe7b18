"""What people write on the command line is read as they mean it, and written back the same."""

import string

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from formgate.v1 import resources_pb2 as pb
from formgate_server.cli import syntax

MICROSECONDS = st.integers(0, 315_576_000_000 * 1_000_000)
IDS = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=64)
AMOUNTS = st.none() | st.integers(0, 2**63 - 1)


@st.composite
def limits(draw: st.DrawFn) -> pb.Limit:
    """Any limit that can be written."""
    limit = pb.Limit(name=draw(IDS), amount=draw(AMOUNTS), holder=draw(st.sampled_from(pb.Holder.values())))
    match draw(st.sampled_from(["window", "calendar", "lifetime"])):
        case "window":
            limit.window.CopyFrom(syntax.to_duration(draw(MICROSECONDS)))
        case "calendar":
            limit.calendar = draw(st.sampled_from([pb.CALENDAR_DAY, pb.CALENDAR_MONTH]))
        case _:
            limit.lifetime = True
    return limit


@given(MICROSECONDS)
def test_every_duration_is_read_as_it_is_written(microseconds: int) -> None:
    """Formatting and parsing are inverse, to the microsecond."""
    duration = syntax.to_duration(microseconds)
    assert duration.ToMicroseconds() == microseconds
    assert syntax.parse_duration(syntax.format_duration(duration)) == duration


@given(limits())
def test_every_limit_is_read_as_it_is_written(limit: pb.Limit) -> None:
    """Formatting and parsing are inverse."""
    assert syntax.parse_limit(syntax.format_limit(limit)) == limit


@given(st.integers(-62_135_596_800, 253_402_300_799))
def test_every_time_is_read_as_it_is_shown(seconds: int) -> None:
    """What a table shows can be given back."""
    timestamp = Timestamp(seconds=seconds)
    assert syntax.parse_time(syntax.format_time(timestamp)) == timestamp


@given(
    st.lists(IDS, min_size=1, max_size=4).map("/".join),
    st.lists(st.sampled_from(["forms.view", "forms.*", "*", "a.b.c"]), unique=True, max_size=4),
    st.sampled_from(pb.Level.values()),
)
def test_every_grant_is_read_as_it_is_written(resource: str, permissions: list[str], level: pb.Level.ValueType) -> None:
    """Formatting and parsing are inverse, for a grant of anything."""
    grant = pb.Grant(resource=resource, permissions=permissions, level=level)
    if permissions or level:
        assert syntax.parse_grant(syntax.format_grant(grant)) == grant


@given(st.text())
def test_any_text_is_read_or_refused_with_a_word(text: str) -> None:
    """There is nothing but ValueError to be ready for."""
    for parse in (syntax.parse_duration, syntax.parse_limit, syntax.parse_grant, syntax.parse_time):
        try:
            parse(text)
        except ValueError as error:
            assert str(error).startswith(("is ", "has "))  # noqa: PT017 - most are refused, a few are not


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90d", 7_776_000), ("12h", 43_200), ("30m", 1_800), ("45s", 45), ("1d 2h 3m 4s", 93_784), ("1m1m", 120)],
)
def test_durations(text: str, seconds: int) -> None:
    """Numbers with units, added up."""
    assert syntax.parse_duration(text) == Duration(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "d", "-1s", "1.5h", "1y", "1M", "\u0661s", "1d,2h", "9" * 5_000 + "d", "999999999d"]
)
def test_what_is_no_duration(text: str) -> None:
    """The error says how one is written, or that it is too long."""
    with pytest.raises(ValueError, match=r"is not a duration such as|longer than"):
        syntax.parse_duration(text)


@pytest.mark.parametrize(
    ("microseconds", "shown"),
    [(0, "0s"), (1, "1ms"), (999_001, "1s"), (1_000_000, "1s"), (299_519_452, "5m"), (3_600_000_001, "1h1s")],
)
def test_waits_are_never_told_too_short(microseconds: int, shown: str) -> None:
    """Whoever waits that long does not come too early; nobody reads microseconds."""
    assert syntax.format_wait(syntax.to_duration(microseconds)) == shown


def test_limits() -> None:
    """The examples of the manual."""
    minute = pb.Limit(name="rate", amount=60, window=Duration(seconds=60))
    month = pb.Limit(name="m", amount=1_000_000, calendar=pb.CALENDAR_MONTH, holder=pb.HOLDER_ACCOUNT)
    assert syntax.parse_limit("rate=60/1m") == minute
    assert syntax.parse_limit("daily=1000/day") == pb.Limit(name="daily", amount=1_000, calendar=pb.CALENDAR_DAY)
    assert syntax.parse_limit("m=1_000_000/month@account") == month
    assert syntax.parse_limit("c=500/lifetime@key") == pb.Limit(
        name="c", amount=500, lifetime=True, holder=pb.HOLDER_KEY
    )
    assert syntax.parse_limit("x=unlimited/day") == pb.Limit(name="x", calendar=pb.CALENDAR_DAY)
    assert syntax.parse_limit("x=0/1d").HasField("amount")


@pytest.mark.parametrize(
    "text",
    [
        "", "rate", "rate=", "rate=60", "rate=60/", "=60/1m", "rate=/1m", "rate=60/1m@", "rate=60/1m@team",
        "rate=-1/1m", "rate=1.5/1m", "rate=60/fortnight", "rate=9223372036854775808/1m",
        f"rate={'9' * 5_000}/1m", "rate=\u0663/1m",
    ],
)  # fmt: skip
def test_what_is_no_limit(text: str) -> None:
    """Refused; nothing is guessed."""
    with pytest.raises(ValueError, match=r"NAME=AMOUNT/PER|amount|is not per"):
        syntax.parse_limit(text)


def test_grants() -> None:
    """Permissions, a level, or both."""
    assert syntax.parse_grant("forms/f1:forms.view,forms.edit") == pb.Grant(
        resource="forms/f1", permissions=["forms.view", "forms.edit"]
    )
    assert syntax.parse_grant("projects/p1:read") == pb.Grant(resource="projects/p1", level=pb.LEVEL_READ)
    assert syntax.parse_grant("*:manage,*") == pb.Grant(resource="*", level=pb.LEVEL_MANAGE, permissions=["*"])


@pytest.mark.parametrize("text", ["", "forms.view", "forms/f1:", ":read", "forms/f1:,", "forms/f1:read,write"])
def test_what_is_no_grant(text: str) -> None:
    """A grant says a resource and rights, and one level at most."""
    with pytest.raises(ValueError, match=r"RESOURCE:RIGHTS|levels"):
        syntax.parse_grant(text)


@pytest.mark.parametrize(
    "text",
    [
        *("2027-01-31", "2027-01-31T12:00:00", "tomorrow", "", "2027-13-01T00:00:00Z", "1"),
        *("2027-01-31T12:00:00+24:00", "2027-01-31T12:00:00-01:60", "\u0662\u0660\u0662\u0667-01-31T12:00:00Z"),
    ],
)
def test_what_is_no_time(text: str) -> None:
    """A time says its offset: nobody's time zone is assumed."""
    with pytest.raises(ValueError, match="is not a time such as"):
        syntax.parse_time(text)


def test_times_with_an_offset() -> None:
    """RFC 3339, with an offset or Z, with a space for the T too."""
    noon = Timestamp(seconds=1_801_396_800)
    for text in (
        "2027-01-31T12:00:00Z",
        "2027-01-31T13:00:00+01:00",
        "2027-01-31 12:00:00Z",
        " 2027-01-31T12:00:00.0Z",
    ):
        assert syntax.parse_time(text) == noon


def test_pairs() -> None:
    """A value may hold what separates, or nothing; a name counts once."""
    assert syntax.parse_pairs(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    for wrong in (["a"], ["=a"], ["a=1", "a=2"]):
        with pytest.raises(ValueError, match=r"NAME=VALUE|twice"):
            syntax.parse_pairs(wrong)


def test_what_a_newer_server_says_is_shown() -> None:
    """An unknown period or holder is shown as what it is, not taken for another."""
    assert syntax.format_limit(pb.Limit(name="x", amount=1)) == "x=1/?"
    unknown = pb.Limit.FromString(pb.Limit(name="x", amount=1).SerializeToString() + b"\x28\x09\x10\x07")
    assert syntax.format_limit(unknown) == "x=1/9@7"
