"""The command on a terminal: what people see, type and press."""

import contextlib
import json
import os
import pty
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.support.command import on_terminal, run_here
from tests.support.server import COMMAND, Server, clean_environment

CSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all of these, with an account and a key."""
    with Server(tmp_path_factory.mktemp("server")) as server:
        first: list[tuple[str, ...]] = [
            ("account", "create", "acme", "--name", "Acme Incorporated of Someplace", "--limit", "monthly=1000/month"),
            ("key", "create", "--account", "acme", "--name", "a rather long name for a key", "--limit", "rate=60/1m"),
        ]
        for arguments in first:
            assert run_here(*arguments, environment=told(server)).code == 0
        key_id = run_here("key", "list", "--account", "acme", "--quiet", environment=told(server)).out.strip()
        more: list[tuple[str, ...]] = [
            ("member", "set", "acme", "a-member-with-a-rather-long-id", "--role", "global_admin", "--level", "manage"),
            ("key", "update", key_id, "--grant", f"forms/{'f' * 60}/{'g' * 60}:read"),
            ("usage", "record", "--key-id", key_id, "--units", str(10**15), "--operation", "an.operation" + "." * 60),
        ]
        for arguments in more:
            assert run_here(*arguments, environment=told(server)).code == 0
        yield server


def told(server: Server) -> dict[str, str]:
    """Where the server and its data are."""
    return {"FORMGATE_ADDRESS": server.address, "FORMGATE_DATA": str(server.data)}


@pytest.mark.parametrize(
    ("arguments", "columns"),
    [
        (("key", "list", "--account", "acme"), 80),
        (("key", "list", "--account", "acme"), 120),
        (("account", "list"), 80),
        (("account", "get", "acme"), 80),
        (("token", "list"), 80),
        (("policy", "show", "default"), 80),
        (("key", "create", "--help"), 80),
        (("check", "x"), 80),
        (("check", "x"), 120),
        (("policy", "show", "jotform"), 80),
        (("member", "list", "acme"), 80),
        (("limits", "acme"), 80),
        (("usage", "show", "acme"), 120),
        (("usage", "show", "acme", "--by", "operation", "--hourly"), 80),
        (("audit", "list", "acme"), 80),
        (("audit", "verify"), 80),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_everything_fits_the_terminal(server: Server, arguments: tuple[str, ...], columns: int) -> None:
    """No line is wider than the terminal, ids are whole, and there is colour."""
    with on_terminal(*arguments, columns=columns, environment=told(server)) as terminal:
        code = terminal.wait()
    assert code == (1 if arguments[0] == "check" else 0)
    lines = CSI.sub("", terminal.screen).replace("\r", "").split("\n")
    assert max(map(len, lines)) <= columns
    assert "\x1b[" in terminal.screen
    if arguments[:2] == ("key", "list"):
        assert re.search(r"^key_\w{22} ", lines[2])
        assert ("LAST USED" in lines[0]) == (columns == 120)


def test_no_colour_where_none_is_wanted(server: Server) -> None:
    """NO_COLOR is honoured."""
    with on_terminal("key", "list", "--account", "acme", environment=told(server) | {"NO_COLOR": "1"}) as terminal:
        assert terminal.wait() == 0
    assert not re.search(r"\x1b\[(?:[0-9;]*;)?[349][0-7]", terminal.screen)


def test_a_key_is_asked_for_without_showing_it(server: Server) -> None:
    """What is typed is not on the screen, nor in any list of processes."""
    with on_terminal("check", environment=told(server)) as terminal:
        terminal.wait_for("Key: ")
        terminal.type("fg_live_typed\r")
        assert terminal.wait() == 1
    assert "DENIED" in terminal.screen
    assert "typed" not in terminal.screen


def test_ctrl_c_ends_with_130(server: Server) -> None:
    """At the prompt, and while a server is waited for; without a traceback."""
    with on_terminal("check", environment=told(server)) as terminal:
        terminal.wait_for("Key: ")
        terminal.type("\x03")
        assert terminal.wait() == 130
    assert "Traceback" not in terminal.screen
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = told(server) | {"FORMGATE_ADDRESS": "{}:{}".format(*silent.getsockname())}
        with on_terminal("account", "list", "--timeout", "60", environment=environment) as terminal:
            silent.settimeout(30)
            connection, _ = silent.accept()
            with connection:
                terminal.type("\x03")
                assert terminal.wait() == 130
    assert "Traceback" not in terminal.screen


def test_usage_shows_how_far_it_is_on_stderr_only(server: Server) -> None:
    """The bar is for people: what is piped on holds nothing of it."""
    lines = '{"record_id": "r", "key_id": "none"}\n' * 3
    with on_terminal("usage", "record", "--file", "-", environment=told(server)) as terminal:
        terminal.type(lines.replace("\n", "\r") + "\x04")
        assert terminal.wait() == 1
    assert "recording" in terminal.screen
    piped = run_here("usage", "record", "--file", "-", given=lines, environment=told(server))
    assert "recording" not in piped.out + piped.err


def listing(stdout: IO[bytes]) -> subprocess.CompletedProcess[bytes]:
    """Have a command write its listing there."""
    command = [str(COMMAND), "policy", "list", "--json"]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, env=clean_environment(), timeout=60, check=False
    )


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`formgate policy list --json | head -1` says nothing on stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = listing(closed)
    assert (done.returncode, done.stderr) == (141, b"")


def test_what_can_not_be_written_is_said() -> None:
    """A full disk is no fault of the command's, and nothing that it did not do."""
    with Path("/dev/full").open("wb") as full:
        done = listing(full)
    assert done.returncode == 3
    assert done.stderr.startswith(b"error: what it prints can not be written: No space left on device\nhint: what was")
    assert done.stderr.count(b"\n") == 2


@pytest.mark.parametrize(("arguments", "code"), [(["key", "delete", "key_x"], 1), (["check"], 2), (["check", "-"], 1)])
def test_a_stdin_that_is_closed_holds_nothing(server: Server, arguments: list[str], code: int) -> None:
    """So a scheduler may start it: it is as with /dev/null, and nobody is asked."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" "$@" <&-', str(COMMAND), *arguments],
        capture_output=True,
        env=clean_environment(told(server)),
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert b"fault" not in done.stderr


def test_a_key_is_deleted_only_on_a_yes(server: Server) -> None:
    """A terminal is asked; no leaves the key as it is, yes deletes it, --yes asks nothing."""
    made = [run_here("key", "create", "--account", "acme", "--json", environment=told(server)) for _ in range(2)]
    first, second = (json.loads(each.out)["key"]["key_id"] for each in made)
    for answer, code in (("\r", 1), ("n\r", 1), ("\x03", 130), ("y\r", 0)):
        assert run_here("key", "get", first, environment=told(server)).code == 0
        with on_terminal("key", "delete", first, environment=told(server)) as terminal:
            terminal.wait_for(f"Delete {first} for ever? [y/N]")
            terminal.type(answer)
            assert terminal.wait() == code
        assert ("is not deleted" in terminal.screen) == (code == 1)
    assert run_here("key", "get", first, environment=told(server)).code == 1
    with on_terminal("key", "delete", second, "--yes", environment=told(server)) as terminal:
        assert terminal.wait() == 0
    assert "for ever?" not in terminal.screen


def test_an_export_shows_how_far_it_is_on_stderr_only(server: Server, tmp_path: Path) -> None:
    """With its events in a file, the terminal has the bar; where both are one screen, there is none."""
    with on_terminal("audit", "export", "acme", environment=told(server)) as terminal:
        assert terminal.wait() == 0
    assert "exporting" not in terminal.screen
    master, slave = pty.openpty()
    with (tmp_path / "events").open("wb") as file:
        process = subprocess.Popen(
            [str(COMMAND), "audit", "export", "acme"],
            stdout=file,
            stderr=slave,
            env=clean_environment(told(server) | {"TERM": "xterm"}),
        )
        os.close(slave)
        screen = b""
        with contextlib.suppress(OSError):  # what Linux says when the other end is closed
            while got := os.read(master, 4096):
                screen += got
        assert process.wait(30) == 0
    os.close(master)
    assert b"exporting" in screen
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    numbers = [int(event["sequence"]) for event in events]
    assert numbers == list(range(len(numbers), 0, -1))
