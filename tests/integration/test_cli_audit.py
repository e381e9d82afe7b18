"""The command and the audit trail: what it shows and exports of a real server's, and whether it sees tampering."""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command import Result, Run, run_here, run_process, towards
from tests.support.server import Server

Change = Callable[[str], Path]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server, on which an account acme with 7 events is made, and one globex with 1."""
    with Server(tmp_path_factory.mktemp("server")) as server:
        run = towards(server)
        first: list[tuple[str, ...]] = [
            ("account", "create", "globex"),
            ("account", "create", "acme"),
            ("member", "set", "acme", "anna", "--role", "admin"),
            ("key", "create", "--account", "acme", "--name", "ci", "--created-by", "anna", "--grant", "forms/f1:read"),
        ]
        for arguments in first:
            assert run(*arguments).code == 0
        key_id = run("key", "list", "--account", "acme", "--quiet").out.strip()
        more: list[tuple[str, ...]] = [
            ("key", "update", key_id, "--grant", "forms/f2:read", "--name", "[red]x[/red]"),
            ("key", "disable", key_id, "--note", "who was that?"),
            ("account", "update", "acme", "--limit", "monthly=9/month"),
            ("member", "remove", "acme", "anna", "--keys", "revoke"),
        ]
        for arguments in more:
            assert run(*arguments).code == 0
        yield server


@pytest.fixture
def run(server: Server) -> Run:
    """The command, told where the server and its data are."""
    return towards(server)


@pytest.fixture
def changed(server: Server, tmp_path: Path) -> Change:
    """Give the folder of a copy of the database on which an SQL script was run."""

    def changed(script: str) -> Path:
        folder = tmp_path / "copy #1? 100%"  # a path is a path, whatever is in it
        folder.mkdir()
        original = sqlite3.connect(server.data / "formgate.db")
        original.execute("VACUUM INTO ?", (str(folder / "formgate.db"),))
        original.close()
        copy = sqlite3.connect(folder / "formgate.db")
        copy.executescript(script)
        copy.close()
        shutil.copy2(server.data / "pepper", folder)
        return folder

    return changed


def test_the_list_tells_who_when_and_what(run: Run) -> None:
    """Newest first, an event a paragraph: the fields that changed, from what to what, and the note."""
    shown = run("audit", "list", "acme")
    assert (shown.code, shown.err) == (0, "")
    events = shown.out.split("#")[1:]
    actions = ["RemoveMember", "RemoveMember", "UpdateAccount", "DisableKey", "UpdateKey", "CreateKey", "SetMember"]
    assert [event.split("  ")[2] for event in events] == [*actions, "CreateAccount"]
    removed, revoked, account, disabled, updated, created, member, _ = events
    assert re.match(r"8  \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  RemoveMember  members/anna\n    by token tok_\w+\n", removed)
    assert "\n    - role: ADMIN\n" in removed
    assert "\n    state: DISABLED → REVOKED\n" in revoked
    assert re.search(r"\n    \+ limits: \{.*monthly", account)
    assert "\n    note: who was that?\n    state: ENABLED → DISABLED\n" in disabled
    assert "\n    display_name: ci → [red]x[/red]\n" in updated
    assert re.search(r"\n    - grants: .*forms/f1.*\n    \+ grants: .*forms/f2", updated)
    assert "\n    + display_name: ci\n" in created
    assert "\n    + role: ADMIN\n" in member


def test_the_list_reads_all_pages_or_as_many_as_are_wanted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one array, as numbers, of one key, of a time."""
    monkeypatch.setattr("formgate_server.cli.remote.LARGEST_PAGE", 3)
    assert run("audit", "list", "acme", "--quiet").out.split() == list("87654321")
    assert run("audit", "list", "acme", "--quiet", "--limit", "4").out.split() == list("8765")
    events = json.loads(run("audit", "list", "acme", "--json").out)
    assert [event["sequence"] for event in events] == list("87654321")
    key_id = events[3]["target"].removeprefix("keys/")
    assert run("audit", "list", "acme", "--key", key_id, "--quiet").out.split() == list("7543")
    between = ("--from", events[5]["create_time"], "--to", events[3]["create_time"])
    assert run("audit", "list", "acme", "--quiet", *between).out.split() == ["4", "3"]
    assert run("audit", "list", "acme", "--to", "1d") == Result(0, "", "there are none\n")


def test_the_export_is_a_line_an_event(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, page after page, and nothing else on stdout or stderr where that is no terminal."""
    monkeypatch.setattr("formgate_server.cli.remote.LARGEST_PAGE", 3)
    exported = run("audit", "export", "acme")
    assert (exported.code, exported.err) == (0, "")
    events = [json.loads(line) for line in exported.out.splitlines()]
    assert [event["sequence"] for event in events] == list("87654321")
    assert json.loads(events[4]["after"])["display_name"] == "[red]x[/red]"
    assert run("audit", "export", "nobody").code == 1


def test_a_sound_trail_while_the_server_runs(server: Server, run: Run) -> None:
    """It is read beside the server, says what it can not see, and changes no file."""
    before = {file: file.read_bytes() for file in server.data.glob("formgate.db*")}
    result = run("audit", "verify")
    assert result.code == 0
    assert re.search(r"^acme +sound +8$", result.out, re.MULTILINE)
    assert re.search(r"^globex +sound +1$", result.out, re.MULTILINE)
    assert re.search(r"^of no account +sound +\d+$", result.out, re.MULTILINE)
    assert result.err.startswith("Not seen: ")
    assert {file: file.read_bytes() for file in before if not file.name.endswith("-shm")} == {
        file: content for file, content in before.items() if not file.name.endswith("-shm")
    }
    one = run("audit", "verify", "acme", "--json")
    assert json.loads(one.out) == [
        {"account_id": "acme", "intact": True, "sound": 8, "altered": [], "missing": [], "unchecked": []}
    ]


def test_a_sound_trail_of_a_server_that_has_ended(tmp_path: Path) -> None:
    """The folder needs no server, and a server starts on it afterwards."""
    with Server(tmp_path):
        pass
    assert run_process("audit", "verify", "--data", str(tmp_path / "data")).code == 0
    with Server(tmp_path):
        pass


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("", {}),
        ("UPDATE audit_events SET note = 'x' WHERE account_id = 'acme' AND sequence = 5", {"altered": [5]}),
        ("UPDATE audit_events SET actor = 'x' WHERE account_id = 'acme' AND sequence IN (1, 8)", {"altered": [1, 8]}),
        ("UPDATE audit_events SET create_time = -1 WHERE account_id = 'acme' AND sequence = 2", {"altered": [2]}),
        ("DELETE FROM audit_events WHERE account_id = 'acme' AND sequence = 8", {"missing": [8]}),
        (
            "DELETE FROM audit_events WHERE account_id = 'acme' AND sequence IN (3, 4)",
            {"missing": [3, 4], "unchecked": [5]},
        ),
        ("DELETE FROM audit_events WHERE account_id = 'globex'; DELETE FROM audit_heads WHERE account_id = 'globex'",
         {"missing": [1]}),
        (
            "UPDATE audit_events SET sequence = CASE sequence WHEN 3 THEN 99 ELSE 3 END "  # noqa: ISC004
            "WHERE account_id = 'acme' AND sequence IN (3, 4);"
            "UPDATE audit_events SET sequence = 4 WHERE account_id = 'acme' AND sequence = 99",
            {"altered": [3, 4]},
        ),
        # What the columns can not hold by right, SQLite holds all the same.
        ("UPDATE audit_events SET after = '{' WHERE account_id = 'acme' AND sequence = 4", {"altered": [4]}),
        ("UPDATE audit_events SET note = x'ff' WHERE account_id = 'acme' AND sequence = 4", {"altered": [4]}),
        (
            "UPDATE audit_events SET note = CAST(x'ff' AS TEXT) WHERE account_id = 'acme' AND sequence IN (4, 6)",
            {"altered": [4, 6]},
        ),
        ("UPDATE audit_events SET mac = 'x' WHERE account_id = 'acme' AND sequence = 8", {"altered": [8]}),
        (
            "UPDATE audit_events SET note = 'x', mac_key_id = '0123456789abcdef' "  # noqa: ISC004
            "WHERE account_id = 'acme' AND sequence = 8",
            {"altered": [8]},
        ),
    ],
)  # fmt: skip
def test_tampering_is_seen_and_named(changed: Change, script: str, expected: dict[str, list[int]]) -> None:
    """By account and number; the command ends with 1, and the other accounts are sound."""
    folder = changed(script)
    result = run_here("audit", "verify", "--data", str(folder), "--json")
    assert result.err == ""
    assert result.code == bool(expected)
    found = {each["account_id"]: each for each in json.loads(result.out)}
    account = "globex" if "globex" in script else "acme"
    wrong = {name: found[account][name] for name in ("altered", "missing", "unchecked") if found[account][name]}
    assert wrong == expected
    assert found[account]["intact"] is not bool(expected)
    assert all(each["intact"] for name, each in found.items() if name != account)


def test_tampering_is_shown_to_people(changed: Change) -> None:
    """The worst word, and which rows."""
    folder = changed(
        "UPDATE audit_events SET note = 'x' WHERE account_id = 'acme' AND sequence = 2;"
        "DELETE FROM audit_events WHERE account_id = 'acme' AND sequence IN (4, 5, 7)"
    )
    result = run_here("audit", "verify", "acme", "--data", str(folder))
    assert result.code == 1
    assert re.search(r"^acme +altered +2 +altered: 2; missing: 4-5, 7; unchecked: 6, 8$", result.out, re.MULTILINE)


def test_a_trail_without_its_macs_is_not_sound(changed: Change) -> None:
    """Rows whose MACs were all taken away look as from before the chain: not good, and not intact, ends with 3."""
    folder = changed("UPDATE audit_events SET mac = NULL, mac_key_id = NULL, note = 'x' WHERE account_id = 'acme'")
    result = run_here("audit", "verify", "--data", str(folder), "--json")
    assert result.code == 3
    found = {each["account_id"]: each for each in json.loads(result.out)}
    assert {name: each["intact"] for name, each in found.items()} == {"": True, "acme": False, "globex": True}
    assert found["acme"]["unchecked"] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_what_can_not_be_verified_is_not_sound(changed: Change, tmp_path: Path) -> None:
    """No database, no pepper, another's, another version's, no such account: 3, or unchecked; and nothing is made."""
    nowhere = tmp_path / "nowhere"
    result = run_here("audit", "verify", "--data", str(nowhere))
    assert (result.code, result.out) == (3, "")
    assert "there is no database" in result.err
    assert not nowhere.exists()
    folder = changed("")
    unknown = run_here("audit", "verify", "nobody", "--data", str(folder))
    assert (unknown.code, unknown.out) == (3, "")
    assert "has no account nobody" in unknown.err
    other = tmp_path / "pepper"
    other.write_text("0" * 64)
    other.chmod(0o600)
    unchecked = run_here("audit", "verify", "acme", "--data", str(folder), "--pepper-file", str(other))
    assert unchecked.code == 3
    assert re.search(r"^acme +unchecked +0 +unchecked: 1-8$", unchecked.out, re.MULTILINE)
    retired = ("--pepper-file", str(other), "--retired-pepper-file", str(folder / "pepper"))
    assert run_here("audit", "verify", "--data", str(folder), *retired).code == 0
    (folder / "pepper").rename(tmp_path / "moved")
    assert run_here("audit", "verify", "--data", str(folder)).code == 3
    assert run_here("audit", "verify", "--data", str(folder), "--pepper-file", str(tmp_path / "moved")).code == 0
    (tmp_path / "moved").rename(folder / "pepper")
    database = sqlite3.connect(folder / "formgate.db")
    database.execute("UPDATE alembic_version SET version_num = '0001'")
    database.commit()
    database.close()
    old = run_here("audit", "verify", "--data", str(folder))
    assert old.code == 3
    assert "formgate migrate" in old.err
    (folder / "formgate.db").write_bytes(b"no database" * 500)
    assert run_here("audit", "verify", "--data", str(folder)).code == 3
