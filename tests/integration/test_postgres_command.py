"""The command over PostgreSQL: what it needs to be told, and that it never shows the password."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import URL

from formgate_server.core.secrets import Peppers
from formgate_server.storage.sql import migrate
from formgate_server.storage.sql.fingerprints import PEPPER, Fingerprints
from formgate_server.storage.sql.registry import SqlRegistry
from tests.support.command import Result, run_here, run_process
from tests.support.postgres import PostgresServer
from tests.support.stores import account, event, opened


@pytest.fixture
def empty(postgres_server: PostgresServer) -> URL:
    """A database with nothing in it."""
    return asyncio.run(postgres_server.make_database(migrated=False))


@pytest.fixture
def pepper_file(tmp_path: Path) -> Path:
    """A file with a pepper."""
    file = tmp_path / "pepper"
    file.write_text("ab" * 32)
    file.chmod(0o600)
    return file


def run(*words: str, url: URL, **settings: str) -> Result:
    """Run the command with this database; AssertionError where it shows the password or a trace."""
    text = url.render_as_string(hide_password=False)
    environment = {"FORMGATE_DATABASE_URL": text} | {f"FORMGATE_{name}": value for name, value in settings.items()}
    # `serve` sets up logging for its whole process: it has one of its own.
    result = (run_process if words[0] == "serve" else run_here)(*words, environment=environment)
    assert str(url.password) not in result.out + result.err
    assert "Traceback" not in result.err
    return result


def test_migrate(empty: URL, tmp_path: Path) -> None:
    """It makes the tables, and nothing in a folder; again, it has nothing to do."""
    for _ in range(2):
        assert (run("migrate", "--data", str(tmp_path / "data"), url=empty)).code == 0
        assert asyncio.run(migrate.current(empty)) == migrate.head()
    assert not (tmp_path / "data").exists()


def test_migrate_where_it_can_not_be(empty: URL) -> None:
    """Who runs it is told why: a server that is not there, a password that is wrong, a URL that asks for too much."""
    for wrong, says in (
        (empty.set(port=1), "refused"),
        (empty.set(password="not this one"), "password authentication failed"),
        (empty.update_query_dict({"nonsense": "1"}), "parameter nonsense is not supported"),
    ):
        result = run("migrate", url=wrong)
        assert result.code == 1
        assert says in result.err


def test_migrate_without_the_right_to(empty: URL, postgres_server: PostgresServer) -> None:
    """A role that may make no tables is told so."""
    asyncio.run(postgres_server.execute("CREATE ROLE poor LOGIN PASSWORD 'poor'"))
    try:
        asyncio.run(postgres_server.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", str(empty.database)))
        result = run("migrate", url=empty.set(username="poor", password="poor"))
    finally:
        asyncio.run(postgres_server.execute("DROP ROLE poor"))
    assert result.code == 1
    assert "permission denied for schema public" in result.err


def test_serve_says_what_it_needs(empty: URL, pepper_file: Path) -> None:
    """Without a shared place for the counters, or files of secrets, or tables, it does not start and makes nothing."""
    redis = {"REDIS_URL": "redis://127.0.0.1:1"}
    listen = ("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    asked = {
        "FORMGATE_REDIS_URL": run(*listen, url=empty),
        "FORMGATE_PEPPER_FILE": run(*listen, url=empty, **redis),
        "FORMGATE_SEALING_KEY_FILE": run(*listen, url=empty, **redis, PEPPER_FILE=str(pepper_file)),
        "`formgate migrate`": run(
            *listen, url=empty, **redis, PEPPER_FILE=str(pepper_file), SEALING_KEY_FILE=str(pepper_file)
        ),
    }
    for says, result in asked.items():
        assert result.code == 1
        assert says in result.err
    assert asyncio.run(migrate.current(empty)) is None


async def write_trail(url: URL) -> None:
    """Make an account with three rows in its trail, under a pepper that the database knows."""
    async with opened(url) as database:
        peppers = Peppers([bytes.fromhex("ab" * 32)])
        await Fingerprints(database).remember(PEPPER, peppers.ids)
        registry = SqlRegistry(database, peppers)
        async with registry.transaction() as transaction:
            await transaction.insert_account(account())
            for number in range(3):
                await transaction.audit(event(note=str(number)))


def test_audit_verify(postgres_server: PostgresServer, pepper_file: Path) -> None:
    """The trail is read in the database, and a row that was altered there is named."""
    url = asyncio.run(postgres_server.make_database())
    asyncio.run(write_trail(url))
    assert run("audit", "verify", url=url, PEPPER_FILE=str(pepper_file)).code == 0
    asyncio.run(postgres_server.execute("UPDATE audit_events SET note = 'x' WHERE sequence = 2", str(url.database)))
    altered = run("audit", "verify", "acme", "--json", url=url, PEPPER_FILE=str(pepper_file))
    assert altered.code == 1
    assert "2" in altered.out
    unknown = run("audit", "verify", "nobody", url=url, PEPPER_FILE=str(pepper_file))
    assert unknown.code == 3
    assert "no account nobody" in unknown.err
    assert run("audit", "verify", url=url).code == 3


def test_help_says_where_urls_are_read() -> None:
    """They have no option: a command line is seen by everybody on the machine."""
    shown = run_here("serve", "--help").out
    assert "FORMGATE_DATABASE_URL" in shown
    assert "--database-url" not in shown
