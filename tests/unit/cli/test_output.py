"""What is printed: JSON that programs can rely on, tables that no name can break."""

import json

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from formgate.v1 import authorization_pb2, keys_pb2
from formgate.v1 import resources_pb2 as pb
from formgate_server.cli import bars, output, people, verdict

HOSTILE = "\x1b[2J\u202e\u2028[red]x[/red]\n:smile:"


def test_json_has_every_field_by_its_name_in_the_proto() -> None:
    """What is empty is there too, in the proto's order; int64 are strings, enums are names, as protobuf JSON has it."""
    limit = pb.Limit(name="rate", amount=2**63 - 1)
    assert list(json.loads(output.as_json(pb.ServiceToken()))) == [
        "token_id", "display_name", "role", "account_id", "policy",
    ]  # fmt: skip
    assert json.loads(output.as_json(pb.Account(limits=[limit]))) == {
        "account_id": "",
        "display_name": "",
        "policy": "",
        "plan": "",
        "state": "ACCOUNT_STATE_UNSPECIFIED",
        "time_zone": "",
        "limits": [{"name": "rate", "holder": "HOLDER_UNSPECIFIED", "amount": "9223372036854775807"}],
        "epoch": "0",
        "etag": "",
    }


def test_json_keeps_the_protos_order() -> None:
    """Whichever fields are set: files of two runs can be compared. A map's names are the caller's."""
    key = pb.Key(metadata={"z": "1", "a": "2"}, etag="e", expire_time=Timestamp(seconds=1))
    message = keys_pb2.CreateKeyResponse(secret="s", key=key)
    shown = json.loads(output.as_json(message))
    assert list(shown) == ["key", "secret"]
    order = [field.name for field in pb.Key.DESCRIPTOR.fields]
    assert [order.index(name) for name in shown["key"]] == sorted(order.index(name) for name in shown["key"])
    assert shown["key"]["metadata"] == {"z": "1", "a": "2"}
    assert shown["key"]["expire_time"] == "1970-01-01T00:00:01Z"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_is_printable_ascii_and_says_the_same(name: str) -> None:
    """No character in a name acts on a terminal, and none is lost."""
    text = output.as_json(pb.Key(display_name=name), indent=None)
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["display_name"] == name


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_listing_is_one_array_with_an_element_a_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A program may read all of it, or line by line."""
    output.print_array(pb.Key(key_id=f"k{index}") for index in range(number))
    printed = capsys.readouterr().out
    assert [each["key_id"] for each in json.loads(printed)] == [f"k{index}" for index in range(number)]
    assert len(printed.splitlines()) == (number + 2 if number else 1)


def test_a_listing_that_was_cut_off_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody takes the first page for all there is."""

    def cut() -> object:
        yield pb.Key(key_id="k0")
        raise ConnectionError

    with pytest.raises(ConnectionError):
        output.print_array(cut())  # type: ignore[arg-type]
    with pytest.raises(json.JSONDecodeError):
        json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is captured has no width of its own."""
    monkeypatch.delenv("COLUMNS", raising=False)


def test_no_name_is_markup_or_acts_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names stand as they are, and what they should not hold is shown escaped, in every noun's table and page."""
    key = pb.Key(
        key_id=HOSTILE, display_name=HOSTILE, hint=HOSTILE, created_by=HOSTILE, last_used_ip=HOSTILE, etag=HOSTILE,
        grants=[pb.Grant(resource=HOSTILE, permissions=[HOSTILE])], api_groups=[HOSTILE], ip_rules=[HOSTILE],
        limits=[pb.Limit(name=HOSTILE)], metadata={HOSTILE: HOSTILE},
    )  # fmt: skip
    account = pb.Account(account_id=HOSTILE, display_name=HOSTILE, policy=HOSTILE, plan=HOSTILE, time_zone=HOSTILE)
    token = pb.ServiceToken(token_id=HOSTILE, display_name=HOSTILE, account_id=HOSTILE, policy=HOSTILE)
    usage = authorization_pb2.UsageResult(record_id=HOSTILE, message=HOSTILE)
    checked = authorization_pb2.CheckedKey(
        key_id=HOSTILE, account_id=HOSTILE, display_name=HOSTILE, created_by=HOSTILE, metadata={HOSTILE: HOSTILE}
    )
    decided = authorization_pb2.CheckKeyResponse(
        message=HOSTILE, key=checked, limits=[pb.LimitStatus(name=HOSTILE)],
        explanation=[authorization_pb2.ExplanationStep(step=HOSTILE, detail=HOSTILE)],
    )  # fmt: skip
    output.show_people(
        people.keys([key], 80), people.key(key), people.accounts([account], 80), people.account(account),
        people.tokens([token], 80), people.token(token), people.usage_result(usage), verdict.render(decided),
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.count("[red]x[/red]") == printed.count(r"\x1b[2J\u202e\u2028") == printed.count(r"\n:smile:") > 30
    assert all(line.isprintable() for line in printed.split("\n"))


def test_a_file_gets_long_lines_whole_and_no_blanks_at_their_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """What is piped is not folded at the width of a terminal that is not there."""
    output.show_people(people.keys([pb.Key(key_id="k1", display_name="n" * 200), pb.Key(key_id="k2")], 500))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "n" * 200 in lines[2]
    assert all(line == line.rstrip() for line in lines)


def test_expired_is_told_from_enabled() -> None:
    """A key that is switched on but over is not shown as one that works."""
    over = Timestamp(seconds=1)
    assert people.standing("enabled", over).plain == "expired"
    assert people.standing("enabled", Timestamp()).plain == "enabled"
    assert people.standing("revoked", over).plain == "revoked"


@pytest.mark.parametrize(
    ("remaining", "amount", "filled"),
    [(0, 0, 0), (0, 10, 0), (1, 10**9, 1), (10**9 - 1, 10**9, 19), (10, 10, 20), (5, 10, 10), (7, 5, 20)],
)
def test_a_bar_is_empty_or_full_only_when_it_is(remaining: int, amount: int, filled: int) -> None:
    """One unit left is not none, one unit gone is not all."""
    assert bars.remainder(remaining, amount).plain.count("█") == filled


def test_a_reason_of_a_newer_server_is_no_admission(capsys: pytest.CaptureFixture[str]) -> None:
    """Only `allowed` says yes: an unknown or missing reason is shown as a denial."""
    output.show_people(verdict.render(authorization_pb2.CheckKeyResponse(http_status=403)))
    newer = authorization_pb2.CheckKeyResponse.FromString(b"\x10\x63")
    output.show_people(verdict.render(newer))
    headlines = [line for line in capsys.readouterr().out.splitlines() if "DENIED" in line or "ALLOWED" in line]
    assert headlines == ["DENIED  UNSPECIFIED", "DENIED  99"]
