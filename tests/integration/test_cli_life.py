"""The command over the whole life of a key, against a real server: members, rotation, limits, usage."""

import itertools
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.command import Result, Run, told, towards
from tests.support.server import Server

SECRET = re.compile(r"(?:jd|fg_live|jf|fg_test)_[0-9A-Za-z]{49}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all of these: each test has an account of its own."""
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def run(server: Server) -> Run:
    """The command, told where the server and its data are."""
    return towards(server)


_numbers = itertools.count()


@pytest.fixture
def jodoo(run: Run) -> str:
    """A new account whose keys can be shown again, and are deleted only when disabled."""
    return run("account", "create", f"jodoo-{next(_numbers)}", "--policy", "jodoo", "--quiet").out.strip()


@pytest.fixture
def jotform(run: Run) -> str:
    """A new account with a limit of a day and days of its own."""
    account = f"jotform-{next(_numbers)}"
    made = run("account", "create", account, "--policy", "jotform", "--time-zone", "Europe/Vienna", "--quiet")
    return made.out.strip()


def new_key(run: Run, account: str, *options: str) -> tuple[str, str]:
    """A new key's id and secret."""
    created = told(run("key", "create", "--account", account, *options, "--json"))
    return created["key"]["key_id"], created["secret"]


def test_members_are_set_replaced_listed_and_removed(run: Run, jodoo: str) -> None:
    """Every option arrives; what is not said again is taken away; the keys of a removed one become what was said."""
    rights = ("--permission", "forms.view", "--permission", "forms.*", "--role", "GLOBAL_ADMIN", "--level", "manage")
    refused = run("member", "set", jodoo, "anna", *rights)
    assert refused.code == 1
    assert "--permission no. 1: " in refused.err
    first = told(run("member", "set", jodoo, "anna", "--role", "GLOBAL_ADMIN", "--level", "manage", "--json"))
    assert first["member"] | {"create_time": "", "update_time": ""} == {
        "account_id": jodoo, "member_id": "anna", "role": "ROLE_GLOBAL_ADMIN", "permissions": [],
        "level": "LEVEL_MANAGE", "create_time": "", "update_time": "",
    }  # fmt: skip
    shown = run("member", "set", jodoo, "anna")
    assert re.search(r"^role +member$", shown.out, re.MULTILINE)
    assert re.search(r"^level +none$", shown.out, re.MULTILINE)
    for name in ("bert", "carla"):
        assert run("member", "set", jodoo, name).code == 0
    assert run("member", "list", jodoo, "--quiet").out.split() == ["anna", "bert", "carla"]
    assert run("member", "list", jodoo, "--quiet", "--limit", "2").out.split() == ["anna", "bert"]
    assert [each["member_id"] for each in told(run("member", "list", jodoo, "--json"))] == ["anna", "bert", "carla"]

    states = {}
    for member, keys in (("anna", "keep"), ("bert", "disable"), ("carla", "revoke")):
        key_id, _ = new_key(run, jodoo, "--created-by", member)
        removed = run("member", "remove", jodoo, member, "--keys", keys)
        assert (removed.code, removed.err) == (0, "")
        assert re.search(rf"^removed +{member}$", removed.out, re.MULTILINE)
        states[keys] = told(run("key", "get", key_id, "--json"))["key"]["state"]
    assert states == {"keep": "KEY_STATE_ENABLED", "disable": "KEY_STATE_DISABLED", "revoke": "KEY_STATE_REVOKED"}
    gone = run("member", "remove", jodoo, "anna", "--keys", "keep", "--json")
    assert gone.code == 1
    assert "MEMBER_NOT_FOUND" in gone.err
    assert run("member", "list", jodoo) == Result(0, "", "there are none\n")


def test_a_key_is_copied(run: Run, jodoo: str) -> None:
    """With its rights, under a name of its own or the same, and with a secret of its own."""
    key_id, secret = new_key(run, jodoo, "--name", "one", "--grant", "apps/a1:manage")
    copied = told(run("key", "copy", key_id, "--name", "two", "--json"))
    assert (copied["key"]["display_name"], copied["key"]["grants"][0]["resource"]) == ("two", "apps/a1")
    assert copied["secret"] not in ("", secret)
    shown = run("key", "copy", key_id)
    assert re.search(r"^name +one$", shown.out, re.MULTILINE)
    assert len([line for line in shown.out.splitlines() if SECRET.fullmatch(line)]) == 1
    assert SECRET.fullmatch(run("key", "copy", key_id, "--secret-only").out.removesuffix("\n"))


def test_a_key_is_rotated(run: Run, jodoo: str) -> None:
    """The same key with a new secret; the old one works for the overlap, or not at all; it is said which."""
    key_id, first = new_key(run, jodoo)
    second = run("key", "rotate", key_id, "--overlap", "1d", "--secret-only").out.strip()
    assert [run("check", "-", given=each).code for each in (first, second)] == [0, 0]
    shown = run("key", "rotate", key_id)
    assert "The old one has ended." in shown.out
    third = next(line for line in shown.out.splitlines() if SECRET.fullmatch(line))
    assert "DENIED" in run("check", "-", given=second).out
    assert run("check", "-", given=third).code == 0
    assert "The old one works for 1h30m more." in run("key", "rotate", key_id, "--overlap", "90m").out
    assert told(run("key", "rotate", key_id, "--json"))["key"]["key_id"] == key_id
    too_long = run("key", "rotate", key_id, "--overlap", "31d")
    assert too_long.code == 1
    assert "--overlap: " in too_long.err


def test_a_secret_is_revealed_where_the_policy_allows(run: Run, jodoo: str, jotform: str) -> None:
    """Alone on stdout; stderr says that the trail tells it, and the trail does. Elsewhere it is refused."""
    key_id, secret = new_key(run, jodoo)
    only = run("key", "reveal", key_id, "--secret-only")
    assert (only.code, only.out) == (0, f"{secret}\n")
    assert "audit trail" in only.err
    shown = run("key", "reveal", key_id)
    assert secret in shown.out.splitlines()
    assert json.loads(run("key", "reveal", key_id, "--json").out) == {"secret": secret}
    actions = [each["action"] for each in told(run("audit", "list", jodoo, "--json"))]
    assert actions.count("RevealKey") == 3
    refused = run("key", "reveal", new_key(run, jotform)[0])
    assert (refused.code, refused.out) == (1, "")
    assert "audit trail" not in refused.err


def test_a_key_is_deleted(run: Run, jodoo: str) -> None:
    """By the policy's rule; then no listing has it, and its secret is unknown."""
    key_id, secret = new_key(run, jodoo)
    early = run("key", "delete", key_id, "--yes")
    assert early.code == 1
    assert "KEY_ENABLED" in early.err
    assert run("key", "disable", key_id).code == 0
    done = run("key", "delete", key_id)
    assert (done.code, done.err) == (0, "")
    assert re.search(rf"^deleted +{key_id}$", done.out, re.MULTILINE)
    assert "DENIED  KEY_NOT_FOUND" in run("check", "-", given=secret).out
    assert run("key", "list", "--account", jodoo, "--quiet").out == ""
    assert run("key", "delete", key_id).code == 1


def test_limits_show_what_is_left(run: Run, jotform: str, jodoo: str) -> None:
    """Of the account, or all that a key is charged by; looking charges nothing."""
    key_id, secret = new_key(run, jotform, "--limit", "burst=4/1h", "--grant", "*:manage")
    assert run("check", "-", "--quiet", given=secret).code == 0
    for _ in range(2):
        shown = run("limits", "--key", key_id)
        assert re.search(r"^burst +key +3 of 4 +█{15}░{5} +\d{4}-", shown.out, re.MULTILINE)
        assert re.search(r"^daily +account +999 of 1000 ", shown.out, re.MULTILINE)
    assert "burst" not in run("limits", jotform).out
    named = told(run("limits", jotform, "--key", key_id, "--json"))["limits"]
    assert {each["name"]: each["remaining"] for each in named} == {"burst": "3", "daily": "999"}
    assert run("limits", jodoo, "--key", key_id).code == 1
    assert run("limits", jodoo) == Result(0, "", "there are none\n")


@pytest.fixture
def used(run: Run, jotform: str) -> tuple[str, list[str]]:
    """An account and two keys with usage: 5 and 7 units half an hour ago, 11 three days ago."""
    keys = [new_key(run, jotform)[0] for _ in range(2)]
    now = datetime.now(UTC)
    records = [
        (keys[0], 5, "forms.get", now - timedelta(minutes=30)),
        (keys[1], 7, "forms.add", now - timedelta(minutes=30)),
        (keys[1], 11, "forms.add", now - timedelta(days=3)),
    ]
    lines = [
        json.dumps({
            "record_id": f"r{number}", "key_id": key_id, "units": units, "operation": operation,
            "occur_time": f"{when:%Y-%m-%dT%H:%M:%SZ}",
        })
        for number, (key_id, units, operation, when) in enumerate(records)
    ]  # fmt: skip
    assert run("usage", "record", "--file", "-", given="\n".join(lines)).code == 0
    return jotform, keys


def test_usage_is_drawn_by_day(run: Run, used: tuple[str, list[str]]) -> None:
    """A day a line, those without usage too, of the account's zone; the total below."""
    shown = run("usage", "show", used[0], COLUMNS="120")
    days = re.findall(r"^(\d{4}-\d\d-\d\d) +(█*[▏▎▍▌▋▊▉]?) *(\d+) +(\d+)$", shown.out, re.MULTILINE)
    assert 29 <= len({day for day, *_ in days}) == len(days) <= 31  # when clocks change, 29 times 24 hours are not
    assert sum(int(units) for _, _, units, _ in days) == 23
    assert max((int(units), len(bar)) for _, bar, units, _ in days)[1] == 40
    assert all(bool(bar) == (units != "0") for _, bar, units, _ in days)
    assert shown.out.endswith("23 units in 3 records, by days of Europe/Vienna\n")
    assert "12 units in 2 records" in run("usage", "show", used[0], "--hourly", "--from", "2h").out
    assert run("usage", "show", used[0], "--from", "20d", "--to", "10d") == Result(0, "", "there is none\n")


def test_usage_is_drawn_by_hour_and_group(run: Run, used: tuple[str, list[str]]) -> None:
    """Hours of UTC; a line a group, and what each comes to, the largest first."""
    account, keys = used
    hours = run("usage", "show", account, "--hourly")
    assert len(re.findall(r"^\d{4}-\d\d-\d\d \d\d:00Z ", hours.out, re.MULTILINE)) == 24
    assert hours.out.endswith("12 units in 2 records, by hours of UTC\n")
    grouped = run("usage", "show", account, "--by", "key", COLUMNS="120").out
    totals = grouped[grouped.index("\nKEY ") :]
    assert re.search(rf"{keys[1]} +█{{40}} +18 +2\n{keys[0]} +█+\S? +5 +1\n", totals)
    one = told(run("usage", "show", account, "--key", keys[1], "--by", "operation", "--json"))
    assert [(each["group"], each["units"]) for each in one["buckets"]] == [("forms.add", "11"), ("forms.add", "7")]
    wrong = run("usage", "show", account, "--by", "tag:nope")
    assert wrong.code == 1
    assert "--by: " in wrong.err


def test_usage_as_csv(run: Run, used: tuple[str, list[str]]) -> None:
    """A line a sum and nothing else; a day begins with its zone's offset, an hour with Z."""
    account, _ = used
    daily = run("usage", "show", account, "--by", "operation", "--csv")
    assert (daily.code, daily.err) == (0, "")
    header, *lines = daily.out.splitlines()
    assert header == "start_time,group,units,records"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT00:00:00\+0[12]:00,forms\.\w+,\d+,\d+", line) for line in lines)
    hourly = run("usage", "show", account, "--hourly", "--csv", "--from", "4d").out.splitlines()[1:]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:00:00Z,,\d+,\d", line) for line in hourly)
    assert run("usage", "show", account, "--csv", "--to", "9d").out == f"{header}\n"
