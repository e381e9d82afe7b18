"""How the audit trail and sums of usage look: no text acts on a terminal, and no amount looks like another."""

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from formgate.v1.accounts_pb2 import AuditEvent, GetUsageResponse, UsageBucket
from formgate.v1.resources_pb2 import Member
from formgate_server.cli import bars, findings, history, output, people, spent
from formgate_server.cli.syntax import parse_moment
from formgate_server.core.verify_audit import Findings

HOSTILE = "\x1b[2J\u202e\u2028[red]x[/red]\n:smile:"


@pytest.fixture(autouse=True)
def no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is captured has no width of its own."""
    monkeypatch.delenv("COLUMNS", raising=False)


def shown(before: object, after: object) -> list[str]:
    """The lines of a change."""
    texts = ["" if each is None else json.dumps(each) for each in (before, after)]
    return [line.plain for line in history.changes(AuditEvent(before=texts[0], after=texts[1]))]


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ({"state": "ENABLED", "version": 1}, {"state": "REVOKED", "version": 2}, ["state: ENABLED → REVOKED"]),
        ({"a": "", "b": None, "c": 0}, {"a": "x", "b": 1, "c": 0}, ["a: nothing → x", "b: nothing → 1"]),
        ({"c": 0}, {"c": 1}, ["c: 0 → 1"]),
        ({"g": ["a", "b"]}, {"g": ["b", "c"]}, ["- g: a", "+ g: c"]),
        ({"metadata": {"a": "1", "b": "2"}}, {"metadata": {"a": "1"}}, ["- metadata: b=2"]),
        ({"expire_time": None}, {"expire_time": 1_000_000}, ["expire_time: nothing → 1970-01-01 00:00:01Z"]),
        ({"expire_time": 2**62}, {"expire_time": None}, [f"expire_time: {2**62} → nothing"]),
        (None, {"key_id": "k", "display_name": "n", "limits": [], "note": ""}, ["+ display_name: n"]),
        ({"key_id": "k", "display_name": "n"}, None, ["- display_name: n"]),
        ({"a": 1}, {"a": 1}, []),
        (None, None, []),
    ],
)
def test_a_change_is_told_by_what_is_different(before: object, after: object, lines: list[str]) -> None:
    """From what to what; of lists and maps, what is gone and what is new; nothing that is as it was."""
    assert shown(before, after) == lines


@pytest.mark.parametrize("broken", ["{", "[]", "1", "null", '"x"'])
def test_what_is_no_object_is_shown_as_it_is(broken: str) -> None:
    """A trail that was tampered with is still listed."""
    (line,) = history.changes(AuditEvent(before=broken, after="{}"))
    assert broken in line.plain


def test_a_long_change_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand grants are told by the first, and that there are more; one of a mile by its beginning."""
    grants = [{"resource": f"forms/f{number}"} for number in range(1_000)]
    event = AuditEvent(after=json.dumps({"grants": grants, "display_name": "n" * 5_000}))
    output.show_people(history.listing([event], 80))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 20
    assert "… and 989 more; --json tells all" in lines[-1]
    assert len(shown(None, {"display_name": "n" * 5_000})[0]) < 200


def test_no_text_acts_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever a text of somebody else's stands, it stands as text."""
    noun = json.dumps({HOSTILE: HOSTILE, "list": [HOSTILE], "map": {HOSTILE: HOSTILE}})
    event = AuditEvent(
        action=HOSTILE, target=HOSTILE, token_id=HOSTILE, actor=HOSTILE, actor_ip=HOSTILE, note=HOSTILE, after=noun
    )
    buckets = GetUsageResponse(buckets=[UsageBucket(group=HOSTILE, units=1)])
    span = spent.Span(0, 1, "UTC", "tag:x")
    member = Member(member_id=HOSTILE, permissions=[HOSTILE])
    findings.show({HOSTILE: Findings()}, json=False)
    spent.print_csv(buckets, span)
    output.show_people(history.listing([event], 80), spent.render(buckets, span), people.members([member], 80))
    printed = capsys.readouterr().out
    assert printed.count("[red]x[/red]") == printed.count(r"\x1b[2J\u202e\u2028") == printed.count(r"\n:smile:") >= 15
    assert all(line.isprintable() for line in printed.split("\n"))


@pytest.mark.parametrize(
    ("amount", "largest", "length", "drawn"),
    [(0, 0, 8, ""), (0, 9, 8, ""), (1, 2**53, 8, "▏"), (2**53, 2**53, 8, "█" * 8), (3, 4, 8, "█" * 6), (1, 16, 8, "▌")],
)
def test_a_bar_is_empty_only_for_nothing(amount: int, largest: int, length: int, drawn: str) -> None:
    """One unit among many is seen, and the longest bar is the largest amount's."""
    assert bars.column(amount, largest, length).plain == drawn


@pytest.mark.parametrize(
    ("numbers", "written"),
    [([], ""), ([1], "1"), ([1, 2, 3], "1-3"), ([1, 3, 4, 9], "1, 3-4, 9"), (list(range(5, 10_000)), "5-9999")],
)
def test_numbers_are_written_shortly(numbers: list[int], written: str) -> None:
    """A thousand rows that are missing are one word."""
    assert findings.ranges(numbers) == written


def at(text: str) -> int:
    """A time in microseconds."""
    return parse_moment(text, "UTC").ToMicroseconds()


def test_days_are_the_zones_whatever_clocks_do_there() -> None:
    """Days of 23 and 25 hours are days, and each is there once."""
    for month, hours in (("2026-03", {23, 24}), ("2026-10", {24, 25})):
        start, end = at(f"{month}-20"), at(f"{month}-30")
        starts = list(spent.Span(start, end, "Europe/Vienna").starts())
        assert {(after - before) // 3_600_000_000 for before, after in pairwise(starts)} == hours
        labels = [spent.Span(start, end, "Europe/Vienna").label(each) for each in starts]
        assert labels == [f"{month}-{day}" for day in range(20, 31)]


def test_hours_begin_on_the_hour() -> None:
    """Of UTC, up to the last one that begins before the end."""
    span = spent.Span(at("2027-01-31T10:59:59Z"), at("2027-01-31T13:00:00Z"), None)
    assert [span.label(each) for each in span.starts()] == [f"2027-01-31 {hour}:00Z" for hour in (10, 11, 12)]


def test_moments() -> None:
    """A time; a date, which is its first instant where it is one; or an age."""
    assert parse_moment("2027-01-31", "Europe/Vienna").ToJsonString() == "2027-01-30T23:00:00Z"
    assert parse_moment("2027-01-31", "UTC").ToJsonString() == "2027-01-31T00:00:00Z"
    assert parse_moment("2027-01-31T12:00:00+01:00", "UTC").ToJsonString() == "2027-01-31T11:00:00Z"
    before = datetime.now(UTC)
    week_ago = parse_moment("7d", "UTC").ToDatetime(UTC) + timedelta(days=7)
    assert before - timedelta(seconds=1) <= week_ago <= datetime.now(UTC) + timedelta(seconds=1)
    for wrong in ("", "2027-02-30", "0001-01-01", "0000-00-00", "9000000d", "7", "-7d", "now"):
        with pytest.raises(ValueError, match="is not a time such as"):
            parse_moment(wrong, "Asia/Tokyo")
