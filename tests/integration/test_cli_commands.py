"""The command against a real server: what people and programs do with it, from nothing."""

import itertools
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Result, Run, run_process, told, towards
from tests.support.server import Server

SECRET = re.compile(r"fg_(?:live|test)_[0-9A-Za-z]{49}")


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
def account(run: Run) -> str:
    """A new account's id."""
    created = run("account", "create", f"acme-{next(_numbers)}", "--quiet")
    assert created.code == 0
    return created.out.strip()


@pytest.fixture
def key(run: Run, account: str) -> tuple[str, str]:
    """A new key's id and secret."""
    created = told(run("key", "create", "--account", account, "--name", "ci", "--json"))
    return created["key"]["key_id"], created["secret"]


def test_the_first_verdict(run: Run, account: str) -> None:
    """Make a key, check it, use it up, record usage, revoke it, and see it refused for the right reason."""
    secret = run("key", "create", "--account", account, "--limit", "rate=2/1m", "--secret-only").out.strip()
    assert SECRET.fullmatch(secret)
    allowed = run("check", "-", "--resource", "forms/f1", given=f"{secret}\n")
    assert (allowed.code, allowed.err) == (1, "")  # no grant
    assert allowed.out.startswith("DENIED  RESOURCE_NOT_ALLOWED\n")

    for left in (1, 0):
        result = run("check", FORMGATE_KEY=secret)
        assert result.code == 0
        assert result.out.startswith("ALLOWED\n")
        assert f"{left} of 2" in result.out
    denied = run("check", "-", given=secret)
    assert denied.code == 1
    assert denied.out.startswith("DENIED  RATE_LIMITED\n")
    assert re.search(r"^HTTP status +429$", denied.out, re.MULTILINE)
    assert re.search(r"^retry +in (1m|[0-9]+s)", denied.out, re.MULTILINE)

    key_id = run("key", "list", "--account", account, "--quiet").out.strip()
    assert "accepted" in run("usage", "record", "--key-id", key_id, "--units", "3").out
    revoked = run("key", "revoke", key_id, "--note", "left the company")
    assert re.search(r"^state +revoked$", revoked.out, re.MULTILINE)
    after = run("check", "-", "--json", given=secret)
    assert after.code == 1
    assert json.loads(after.out)["reason"] == "REASON_KEY_REVOKED"
    assert run("check", "-", "--quiet", given=secret) == Result(1, "", "")
    assert run("key", "revoke", key_id).code == 0  # again is no error


def test_a_secret_is_printed_once_and_alone_on_its_line(run: Run, account: str) -> None:
    """People find it, a pipe gets it, programs read it; no other command knows it."""
    shown = run("key", "create", "--account", account)
    assert len([line for line in shown.out.splitlines() if SECRET.fullmatch(line)]) == 1
    only = run("key", "create", "--account", account, "--secret-only")
    assert SECRET.fullmatch(only.out.removesuffix("\n"))
    created = told(run("key", "create", "--account", account, "--environment", "test", "--json"))
    assert created["secret"].startswith("fg_test_")
    for arguments in (["key", "get", created["key"]["key_id"]], ["key", "list", "--account", account]):
        for form in ([], ["--json"]):
            assert not SECRET.search(run(*arguments, *form).out)


def test_a_key_is_made_of_what_was_said(run: Run, account: str) -> None:
    """Every option arrives."""
    created = told(
        run(
            *("key", "create", "--account", account, "--name", "n", "--environment", "TEST", "--created-by", "m1"),
            *("--grant", "forms/f1:forms.view,forms.edit", "--grant", "projects/p1:read", "--api-group", "v1"),
            *("--ip-rule", "10.0.0.0/8", "--ip-rule", "2001:db8::/32", "--limit", "rate=60/1m"),
            *("--limit", "daily=unlimited/day", "--limit", "c=5/lifetime", "--metadata", "a=b=c"),
            *("--expire-time", "2127-01-31 12:00:00+01:00", "--json"),
        )
    )["key"]
    assert created | {"key_id": "", "create_time": "", "hint": "", "etag": ""} == {
        "key_id": "",
        "account_id": account,
        "display_name": "n",
        "environment": "ENVIRONMENT_TEST",
        "state": "KEY_STATE_ENABLED",
        "hint": "",
        "created_by": "m1",
        "create_time": "",
        "expire_time": "2127-01-31T11:00:00Z",
        "last_used_ip": "",
        "grants": [
            {"resource": "forms/f1", "permissions": ["forms.view", "forms.edit"], "level": "LEVEL_UNSPECIFIED"},
            {"resource": "projects/p1", "permissions": [], "level": "LEVEL_READ"},
        ],
        "api_groups": ["v1"],
        "ip_rules": ["10.0.0.0/8", "2001:db8::/32"],
        "limits": [
            {"name": "rate", "holder": "HOLDER_KEY", "amount": "60", "window": "60s"},
            {"name": "daily", "holder": "HOLDER_KEY", "calendar": "CALENDAR_DAY"},
            {"name": "c", "holder": "HOLDER_KEY", "amount": "5", "lifetime": True},
        ],
        "metadata": {"a": "b=c"},
        "etag": "",
    }
    expiring = told(run("key", "create", "--account", account, "--ttl", "90d", "--json"))["key"]
    assert expiring["expire_time"] > expiring["create_time"]


def test_an_update_changes_what_was_given_and_nothing_else(run: Run, account: str, key: tuple[str, str]) -> None:
    """A list is replaced as a whole, or emptied by its --no-…; an etag that is old is refused."""
    key_id, _ = key
    first = told(run("key", "update", key_id, "--grant", "forms/f1:read", "--metadata", "a=1", "--json"))["key"]
    assert first["display_name"] == "ci"
    second = told(run("key", "update", key_id, "--grant", "a:write", "--limit", "x=1/1h", "--ttl", "1d", "--json"))[
        "key"
    ]
    assert [grant["resource"] for grant in second["grants"]] == ["a"]
    assert second["metadata"] == {"a": "1"}
    assert "expire_time" in second
    stale = run("key", "update", key_id, "--name", "late", "--etag", first["etag"])
    assert stale.code == 1
    assert "ETAG_MISMATCH" in stale.err
    cleared = told(
        run(
            *("key", "update", key_id, "--no-grants", "--no-limits", "--no-expire-time", "--no-metadata", "--name", ""),
            *("--etag", second["etag"], "--json"),
        )
    )["key"]
    assert (cleared["grants"], cleared["limits"], cleared["metadata"], cleared["display_name"]) == ([], [], {}, "")
    assert "expire_time" not in cleared


def test_a_key_is_switched_off_and_on(run: Run, key: tuple[str, str]) -> None:
    """And the next check knows."""
    key_id, secret = key
    assert re.search(r"^state +disabled$", run("key", "disable", key_id, "--note", "why").out, re.MULTILINE)
    assert "DENIED  KEY_DISABLED" in run("check", "-", given=secret).out
    assert "effective_time" in told(run("key", "enable", key_id, "--json"))
    assert run("check", "-", given=secret).code == 0


def test_accounts(run: Run, account: str, key: tuple[str, str]) -> None:
    """Made, changed, suspended (every check is denied), activated, found."""
    _, secret = key
    changed = told(
        run(
            "account",
            "update",
            account,
            "--name",
            "Acme",
            "--time-zone",
            "Europe/Vienna",
            "--limit",
            "m=9/month",
            "--json",
        )
    )["account"]
    assert (changed["display_name"], changed["time_zone"], changed["limits"][0]["holder"]) == (
        "Acme", "Europe/Vienna", "HOLDER_ACCOUNT",
    )  # fmt: skip
    assert re.search(r"^state +suspended$", run("account", "suspend", account).out, re.MULTILINE)
    assert "DENIED  ACCOUNT_SUSPENDED" in run("check", "-", given=secret).out
    assert told(run("account", "activate", account, "--json"))["account"]["state"] == "ACCOUNT_STATE_ACTIVE"
    assert run("check", "-", given=secret).code == 0
    emptied = told(run("account", "update", account, "--no-limits", "--no-time-zone", "--json"))["account"]
    assert (emptied["limits"], emptied["time_zone"]) == ([], "")
    assert told(run("account", "get", account, "--json"))["account"] == emptied
    assert account in run("account", "list", "--quiet").out.split()
    assert run("account", "create", account).code == 1  # there is one


def test_service_tokens(run: Run, server: Server, account: str, tmp_path: Path) -> None:
    """A checker's token checks and does nothing else, until it is revoked; it is shown once."""
    created = told(run("token", "create", "--role", "checker", "--name", "gateway", "--ttl", "1d", "--json"))
    token_id, secret = created["service_token"]["token_id"], created["secret"]
    file = tmp_path / "token"
    file.write_text(f"{secret}\n")
    refused = run("key", "list", "--account", account, "--token-file", str(file))
    assert refused.code == 1
    assert f"the token of {file} may not do this" in refused.err
    assert run("check", "x", FORMGATE_TOKEN=secret, FORMGATE_DATA="").code == 1
    listed = run("token", "list")
    assert "gateway" in listed.out
    assert secret not in listed.out + run("token", "list", "--json").out
    assert re.search(r"^state +revoked$", run("token", "revoke", token_id).out, re.MULTILINE)
    assert told(run("token", "list", "--json"))[-1]["revoke_time"]


def test_a_listing_reads_all_pages(run: Run, server: Server, account: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, as one array, or as many as are wanted."""
    ids = [
        told(run("key", "create", "--account", account, "--json"))["key"]["key_id"] for _ in range(5)
    ]  # fmt: skip
    monkeypatch.setattr("formgate_server.cli.remote.LARGEST_PAGE", 2)
    listing = ("key", "list", "--account", account)
    assert [each["key_id"] for each in told(run(*listing, "--json"))] == ids
    assert run(*listing, "--quiet").out.split() == ids
    for most in (1, 2, 3, 4, 9):
        assert run(*listing, "--quiet", "--limit", str(most)).out.split() == ids[:most]
    assert all(each in run(*listing).out for each in ids)
    assert run(*listing, "--state", "revoked") == Result(0, "", "there are none\n")
    assert told(run(*listing, "--state", "revoked", "--json")) == []


def test_a_listing_of_large_things_has_as_many_as_are_wanted(run: Run, account: str) -> None:
    """Also where the server ends a page before it is full."""
    grants = [word for at in range(1_000) for word in ("--grant", f"a{at:03}/{'b' * 62}/{'c' * 62}:read")]
    create = ("key", "create", "--account", account, "--json", *grants)
    ids = [told(run(*create))["key"]["key_id"] for _ in range(8)]
    listing = ("key", "list", "--account", account, "--quiet")
    assert run(*listing).out.split() == ids
    assert run(*listing, "--limit", "7").out.split() == ids[:7]


def test_what_the_server_does_not_accept_names_the_option(run: Run, account: str) -> None:
    """By what was typed, not by the message's field; nothing is changed."""
    result = run("key", "create", "--account", account, "--grant", "a:read", "--grant", "a//b:read")
    assert (result.code, result.out) == (1, "")
    assert "--grant no. 2, resource: " in result.err
    result = run("account", "get", "a b")
    assert result.code == 1
    assert "ACCOUNT_ID: must match" in result.err
    missing = run("key", "get", "key_none")
    assert missing.code == 1
    assert "KEY_NOT_FOUND" in missing.err
    assert run("key", "list", "--account", account, "--quiet").out == ""


def test_a_check_that_was_not_decided_is_no_denial(run: Run) -> None:
    """1 is a verdict; whatever kept the server from one is 3, so that a script can tell."""
    assert run("check", "x", "--ip", "not-an-address").code == 3
    assert run("check", "x", FORMGATE_TOKEN="fgt_wrong", FORMGATE_DATA="").code == 3
    assert run("check", "x").code == 1


def test_a_dry_run_charges_nothing_and_explains(run: Run, account: str) -> None:
    """The steps are those of the contract; cost 0."""
    secret = run("key", "create", "--account", account, "--limit", "rate=1/1m", "--secret-only").out.strip()
    verdicts = [told(run("check", "-", "--dry-run", "--json", given=secret)) for _ in range(3)]
    assert [verdict["allowed"] for verdict in verdicts] == [True] * 3
    steps = [step["step"] for step in verdicts[0]["explanation"]]
    assert steps == [
        "credential", "key", "state", "expiry", "account", "environment", "address", "api_group", "grants", "limits",
    ]  # fmt: skip
    shown = run("check", "-", "--dry-run", "--environment", "test", given=secret)
    assert re.search(r"^✓ +credential", shown.out, re.MULTILINE)
    assert re.search(r"^✗ +environment", shown.out, re.MULTILINE)
    assert re.search(r"^– +limits", shown.out, re.MULTILINE)  # noqa: RUF001 - as it is shown


def test_usage_from_a_file(run: Run, key: tuple[str, str], tmp_path: Path) -> None:
    """Sent by the thousand, counted once however often, and what was not recorded is told by its line."""
    key_id, _ = key
    records = [{"record_id": f"{key_id}-{index}", "key_id": key_id, "units": index} for index in range(2_345)]
    file = tmp_path / "usage.jsonl"
    file.write_text("\n\n".join(json.dumps(record) for record in records))
    first = run("usage", "record", "--file", str(file))
    assert first == Result(0, "accepted  2,345\n", "")
    again = run("usage", "record", "--file", "-", given=file.read_text())
    assert again == Result(0, "duplicate  2,345\n", "")

    records[7] |= {"units": "1000000"}
    records[8] |= {"key_id": "key_none", "record_id": "new"}
    file.write_text("\n".join(json.dumps(record) for record in records))
    result = run("usage", "record", "--file", str(file))
    assert result.code == 1
    assert re.search(r"^8 +\S+-7 +conflict", result.out, re.MULTILINE)
    assert re.search(r"^9 +new +rejected +key_id", result.out, re.MULTILINE)
    programs = run("usage", "record", "--file", str(file), "--json")
    assert programs.code == 1
    outcomes = [each["outcome"] for each in json.loads(programs.out)]
    assert outcomes[7:10] == ["OUTCOME_CONFLICT", "OUTCOME_REJECTED", "OUTCOME_DUPLICATE"]
    assert len(outcomes) == 2_345


def test_a_broken_line_of_usage_is_named(run: Run, key: tuple[str, str]) -> None:
    """What was sent before is told; the rest is not sent."""
    good = "".join(f'{{"record_id": "{key[0]}-{index}", "key_id": "{key[0]}"}}\n' for index in range(1_500))
    for bad in ('{"record_id": "x", "unitz": 1}', "{", "[]", '{"units": 1e99}', "\xff", '"\ud83d"'):
        result = run(
            "usage", "record", "--file", "-", given=good + bad.encode("utf-16", "surrogatepass").decode("latin-1")
        )
        assert result.code == 2
        assert "line 1501 is no usage record" in result.err
        assert "1,000 records before it are answered" in result.err


def test_one_record_has_an_id_to_repeat_it_with(run: Run, key: tuple[str, str]) -> None:
    """All options arrive; a repeat is a duplicate."""
    record = (
        *("usage", "record", "--key-id", key[0], "--units", "3", "--operation", "submissions.create"),
        *("--resource", "forms/f1", "--status-code", "201", "--latency", "12ms", "--tag", "plan=pro", "--json"),
    )
    made = told(run(*record))
    assert made["outcome"] == "OUTCOME_ACCEPTED"
    fixed = (
        *record,
        "--record-id",
        f"{key[0]}-r1",
        "--occur-time",
        told(run("key", "get", key[0], "--json"))["key"]["create_time"],
    )
    assert told(run(*fixed))["outcome"] == "OUTCOME_ACCEPTED"
    assert told(run(*fixed))["outcome"] == "OUTCOME_DUPLICATE"


def test_a_record_that_was_not_answered_says_how_to_repeat_it(run: Run, tmp_path: Path) -> None:
    """Its id was made here: without it a repeat would count twice."""
    result = run(
        *("usage", "record", "--key-id", "k", "--units", "1"), FORMGATE_ADDRESS="127.0.0.1:1", FORMGATE_TOKEN="fgt_x"
    )
    assert result.code == 3
    assert re.search(r"--record-id [0-9a-f-]{36} counts it once", result.err)


def test_hostile_texts_do_not_act_on_a_terminal(run: Run, account: str) -> None:
    """The server refuses control characters in names; where it takes others, they are shown, not interpreted."""
    shown = run("key", "create", "--account", account, "--name", "[red]x[/red] :smile: [/]")
    assert "[red]x[/red] :smile: [/]" in shown.out
    refused = run("key", "create", "--account", account, "--name", "a\x1b[2J")
    assert refused.code == 1
    assert "--name: " in refused.err
    assert "\x1b" not in refused.err


# --------------------------------------------------------------------------------------------------- as a process


def test_no_server(tmp_path: Path) -> None:
    """A script fails closed: 3, and the user reads what to do."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*unused.getsockname())
        result = run_process("check", "x", environment={"FORMGATE_ADDRESS": address, "FORMGATE_TOKEN": "fgt_x"})
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith(f"error: no server answers at {address}\n")
    assert "hint: start one with `formgate serve`" in result.err


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    """Every call has its time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "{}:{}".format(*silent.getsockname())
        result = run_process(
            *("account", "list", "--address", address, "--timeout", "0.2"), environment={"FORMGATE_TOKEN": "fgt_x"}
        )
    assert result.code == 3
    assert f"no answer from {address} within 0.2 s" in result.err


def test_the_token_is_found_beside_the_server(server: Server, tmp_path: Path) -> None:
    """Where `formgate serve` was started, nothing has to be said; elsewhere it is said what is missing."""
    (tmp_path / "formgate-data").symlink_to(server.data)
    here = run_process("account", "list", environment={"FORMGATE_ADDRESS": server.address}, folder=tmp_path)
    assert here.code == 0
    elsewhere = run_process("account", "list", environment={"FORMGATE_ADDRESS": server.address}, folder=server.data)
    assert elsewhere.code == 2
    assert "no token: there is no formgate-data/manager.token here" in elsewhere.err


def test_serve_says_what_is_wrong(server: Server, tmp_path: Path) -> None:
    """A second server on one folder, and a folder that can not be."""
    second = Server(server.folder)
    second.spawn()
    assert second.wait() == 1
    assert "is in use by another server" in second.log
    assert "Traceback" not in second.log
    (tmp_path / "file").touch()
    result = run_process("migrate", "--data", str(tmp_path / "file"))
    assert result.code == 1
    assert str(tmp_path / "file") in result.err
    assert "Traceback" not in result.err


def test_migrate_makes_a_database(tmp_path: Path) -> None:
    """From nothing, and again."""
    for _ in range(2):
        assert run_process("migrate", "--data", str(tmp_path / "data")).code == 0
