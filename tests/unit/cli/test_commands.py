"""What holds for every command, without a server."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command

from formgate.v1 import accounts_pb2
from formgate.v1 import resources_pb2 as pb
from formgate_server import cli
from formgate_server.cli import keys, members, options, tokens
from formgate_server.settings import Settings
from tests.support.command import run_here


def leaves(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command that does something, by the words that call it."""
    if not hasattr(command, "commands"):
        return {path: command}
    found: dict[tuple[str, ...], Any] = {}
    for name, each in command.commands.items():
        found |= leaves(each, (*path, name))
    return found


COMMANDS = leaves(get_command(cli.app))
LOCAL = {
    *(("serve",), ("migrate",), ("doctor",), ("audit", "verify"), ("usage", "prune")),
    *(("policy", "list"), ("policy", "show"), ("policy", "check")),
}


def test_these_are_the_commands() -> None:
    """All that the contract names for now, and no stubs of what comes later."""
    assert {" ".join(path) for path in COMMANDS} == {
        "serve", "migrate", "doctor", "check", "limits", "usage record", "usage show", "usage prune",
        "member set", "member remove", "member list", "audit list", "audit export", "audit verify",
        "key copy", "key rotate", "key reveal", "key delete",
        "token create", "token list", "token revoke",
        "account create", "account get", "account list", "account update", "account suspend", "account activate",
        "key create", "key get", "key list", "key update", "key revoke", "key disable", "key enable",
        "policy list", "policy show", "policy check",
    }  # fmt: skip


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    """--help says what it does and what each option means."""
    result = run_here(*path, "--help", environment={"COLUMNS": "200"})
    assert result.code == 0
    assert not result.err
    for parameter in COMMANDS[path].params:
        assert parameter.help, f"{parameter.name} says nothing"
        assert "[" not in parameter.help, "rich would take it for markup"


@pytest.mark.parametrize("path", sorted(COMMANDS.keys() - LOCAL), ids=" ".join)
def test_every_command_to_a_server_is_told_where_it_is(path: tuple[str, ...]) -> None:
    """The same options everywhere, and JSON wherever something is printed."""
    names = {name for parameter in COMMANDS[path].params for name in parameter.opts}
    assert {"--address", "--token-file", "--data", "--timeout"} <= names
    assert "--json" in names or path == ("audit", "export")  # which prints nothing else
    assert "--token" not in names


def test_no_command_waits_for_grpc_to_say_its_help() -> None:
    """Nor does completion: what is heavy is imported when a command runs."""
    code = "import sys, formgate_server.cli; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"grpc", "google.protobuf", "pydantic", "sqlalchemy", "rich.console", "formgate.v1"}


def test_words_and_enums_agree() -> None:
    """Each word of an option is a value of the contract's enum, and the other way round."""

    def words(enum: Any, prefix: str) -> set[str]:
        return {name.removeprefix(prefix).lower() for name in enum.keys()} - {"unspecified"}  # noqa: SIM118

    assert set(get_args(options.EnvironmentName)) == words(pb.Environment, "ENVIRONMENT_")
    assert set(get_args(keys.StateName)) == words(pb.KeyState, "KEY_STATE_")
    assert set(get_args(tokens.RoleName)) == words(pb.ServiceRole, "SERVICE_ROLE_")
    assert set(get_args(members.RoleName)) == words(pb.Role, "ROLE_")
    assert set(get_args(members.LevelName)) == words(pb.Level, "LEVEL_")
    assert set(get_args(members.DispositionName)) == words(accounts_pb2.KeyDisposition, "KEY_DISPOSITION_")


def test_every_setting_is_an_option_of_serve() -> None:
    """And every option is a setting. URLs hold passwords, and a command line is seen by everybody on the machine."""
    names = {parameter.name for parameter in COMMANDS["serve",].params} - {"help"}
    assert names == set(Settings.model_fields) - {"database_url", "redis_url"}


def test_defaults_that_serve_shows_are_the_settings() -> None:
    """What --help promises is what happens."""
    for parameter in COMMANDS["serve",].params:
        shown = parameter.show_default
        if isinstance(shown, str) and parameter.name != "log_format":
            assert shown == str(Settings.model_fields[parameter.name].default).removesuffix(".0")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["key", "get"], "Missing argument 'KEY_ID'"),
        (["key", "gett", "x"], "No such command 'gett'"),
        (["key", "get", "x", "--nope"], "No such option: --nope"),
        (["key", "list", "--account", "a", "--state", "asleep"], "'asleep' is not one of"),
        (["key", "create", "--account", "a", "--limit", "rate=60"], "--limit rate=60: is not NAME=AMOUNT/PER"),
        (["key", "create", "--account", "a", "--grant", "forms/f1"], "--grant forms/f1: is not RESOURCE:RIGHTS"),
        (["key", "create", "--account", "a", "--ttl", "1y"], "--ttl 1y: is not a duration"),
        (["key", "create", "--account", "a", "--expire-time", "now"], "--expire-time now: is not a time"),
        (["key", "create", "--account", "a", "--metadata", "x"], "--metadata: is not NAME=VALUE"),
        (["key", "create", "--account", "a\udcff"], "not UTF-8"),
        (["key", "update", "k"], "nothing to change"),
        (["key", "update", "k", "--grant", "a:read", "--no-grants"], "--no-grants can not go with --grant"),
        (["key", "update", "k", "--ttl", "1d", "--no-expire-time"], "can not go with --expire-time or --ttl"),
        (["key", "update", "k", "--ttl", "1d", "--expire-time", "2027-01-31T12:00:00Z"], "can not go with"),
        (["account", "list", "--address", "nowhere"], "is not HOST:PORT"),
        (["account", "list", "--address", "h:0"], "is not HOST:PORT"),
        (["account", "list", "--address", "h:65536"], "is not HOST:PORT"),
        (["account", "list", "--timeout", "0"], "--timeout"),
        (["account", "list", "--timeout", "inf"], "--timeout"),
        (["account", "list", "--limit", "0"], "--limit"),
        (["check", "k", "--dry-run", "--cost", "2"], "--dry-run charges nothing"),
        (["check", "k", "--cost", "-1"], "--cost"),
        (["check"], "no key"),
        (["usage", "record"], "give --key-id and --units, or --file"),
        (["usage", "record", "--key-id", "k"], "give --key-id and --units"),
        (["usage", "record", "--file", "/nonexistent", "--units", "1"], "--file says it all"),
        (["usage", "record", "--file", "/nonexistent"], "can not be read: No such file"),
        (["usage", "show", "a", "--csv", "--json"], "--csv can not go with --json"),
        (["usage", "show", "a", "--hourly", "--from", "2026-13-01"], "--from 2026-13-01: is not a time"),
        (["usage", "show", "a", "--hourly", "--from", "3000y"], "--from 3000y: is not a time"),
        (["usage", "show", "a", "--hourly", "--to", "9999999d"], "--to 9999999d: is not a time"),
        (["audit", "list", "a", "--to", "yesterday"], "--to yesterday: is not a time"),
        (["limits"], "give an ACCOUNT_ID or --key"),
        (["member", "remove", "a", "m"], "Missing option '--keys'. Choose from: keep, disable, revoke\n"),
        (["member", "remove", "a", "m", "--keys", "burn"], "'burn' is not one of"),
        (["member", "set", "a", "m", "--role", "king"], "'king' is not one of"),
        (["key", "rotate", "k", "--overlap", "soon"], "--overlap soon: is not a duration"),
        (["policy", "show", "nope"], "there is no policy nope"),
        (["serve", "--listen", "nowhere"], "--listen (FORMGATE_LISTEN): must be HOST:PORT"),
        (["serve", "--listen", "0.0.0.0:1"], "--insecure"),
        (["serve", "--log-level", "loud"], "'loud' is not one of"),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "replace").decode() if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(arguments: list[str], says: str) -> None:
    """Nothing was sent, and nothing but the error is printed."""
    result = run_here(*arguments, environment={"FORMGATE_TOKEN": "fgt_x", "FORMGATE_ADDRESS": "127.0.0.1:1"})
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert says in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "empty"),
    [
        (["token", "create", "--role", "manager", "--account", ""], "--account"),
        (["token", "create", "--role", "manager", "--policy="], "--policy"),
        (["key", "create", "--account", "a", "--ttl", ""], "--ttl"),
        (["key", "update", "k", "--no-grants", "--etag", ""], "--etag"),
        (["key", "list", "--account", "a", "--created-by", ""], "--created-by"),
        (["usage", "show", "a", "--key", ""], "--key"),
        (["account", "create", ""], "ACCOUNT_ID"),
    ],
)
def test_what_is_given_is_not_empty(arguments: list[str], empty: str) -> None:
    """A script whose variable is not set gets no token for all accounts, and no key that lasts for ever."""
    result = run_here(*arguments, environment={"FORMGATE_TOKEN": "fgt_x", "FORMGATE_ADDRESS": "127.0.0.1:1"})
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error: {empty}: is empty; leave it out where none is meant\n"


def test_settings_never_repeat_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of the environment that will not do may be a password in the wrong place."""
    result = run_here("serve", environment={"FORMGATE_LISTEN": "hunter2", "FORMGATE_LOG_LEVEL": "hunter2"})
    assert result.code == 2
    assert "FORMGATE_LISTEN" in result.err
    assert "FORMGATE_LOG_LEVEL" in result.err
    assert "hunter2" not in result.err


def test_a_fault_of_ours_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with 3: whatever it was, nothing was decided."""

    def broken(*_: object, **__: object) -> None:
        raise LookupError("\x1b[2J")

    monkeypatch.setattr(cli, "app", broken)
    result = run_here("key", "list")
    assert result.code == 3
    assert result.err.startswith("error: formgate has a fault: LookupError: \\x1b[2J\n")


def test_version() -> None:
    """The distribution's."""
    assert run_here("--version").out == f"formgate {version('formgate-server')}\n"


def test_policies_are_read_here(tmp_path: Path) -> None:
    """List, show and check need no server; the JSON is the contract's Policy."""
    listed = run_here("policy", "list")
    assert listed.code == 0
    assert "default" in listed.out
    assert "default" in run_here("policy", "list", "--quiet").out.splitlines()
    shown = json.loads(run_here("policy", "show", "default", "--json").out)
    assert shown["name"] == "default"
    assert {each["prefix"] for each in shown["prefixes"]} == {"fg_live_", "fg_test_"}
    assert "KEY_REVOKED" in run_here("policy", "show", "default").out

    bad = tmp_path / "bad.toml"
    bad.write_text('name = "x"\n[oops\n')
    result = run_here("policy", "check", str(bad))
    assert result.code == 1
    assert str(bad) in result.out
    assert run_here("policy", "list", "--policy-dir", str(tmp_path)).code == 1
    bad.unlink()
    assert run_here("policy", "check", str(tmp_path)).code == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("formgate key list --state ", {"enabled", "disabled", "revoked"}),
        ("formgate key list --state d", {"disabled"}),
        ("formgate token create --role ", {"checker", "manager", "auditor"}),
        ("formgate check k --environment ", {"live", "test"}),
        ("formgate serve --log-level ", {"debug", "info", "warning", "error"}),
        ("formgate usage ", {"record", "show", "prune"}),
        ("formgate audit ", {"list", "export", "verify"}),
        ("formgate member remove a m --keys ", {"keep", "disable", "revoke"}),
        ("formgate member set a m --role ", {"member", "admin", "global_admin"}),
        ("formgate key create --exp", {"--expire-time"}),
    ],
)
def test_the_shell_completes(words: str, expected: set[str]) -> None:
    """Commands, options and the words of options, as bash asks for them."""
    given = words.split(" ")
    result = run_here(
        environment={
            "_FORMGATE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(given) - 1),
        }
    )  # fmt: skip
    assert set(result.out.split()) == expected
