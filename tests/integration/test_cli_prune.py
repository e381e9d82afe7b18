"""`formgate usage prune`, and the server's own jobs: what is old goes, what is owed is charged."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from formgate.v1.accounts_pb2 import CreateAccountRequest
from formgate.v1.authorization_pb2 import CheckKeyRequest, RecordUsageRequest, UsageRecord
from formgate.v1.keys_pb2 import CreateKeyRequest
from formgate.v1.resources_pb2 import HOLDER_KEY, Limit
from tests.support.client import Client, database
from tests.support.command import Result, run_here
from tests.support.server import Server, eventually

DAY = 86_400 * 1_000_000
AMOUNT = 1_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server, running."""
    server = Server(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Seeded:
    """An account with a key of 1,000 credits, and 3 records of it."""

    def __init__(self, server: Server) -> None:
        limit = Limit(name="credits", holder=HOLDER_KEY, amount=AMOUNT, lifetime=True)
        with closing(Client(server.address, server.token)) as manager:
            account = manager(CreateAccountRequest(account_id="acme")).account
            made = manager(CreateKeyRequest(account_id=account.account_id, limits=[limit]))
            records = [UsageRecord(record_id=f"r{number}", key_id=made.key.key_id, units=1) for number in range(3)]
            manager(RecordUsageRequest(records=records))
        self.key_id, self.secret = made.key.key_id, made.secret


def remaining(server: Server, seeded: Seeded) -> int:
    """Return what is left of the key's credits."""
    with closing(Client(server.address, server.token)) as manager:
        limits = manager(CheckKeyRequest(key=seeded.secret, cost=0)).limits
    return int({limit.name: limit.remaining for limit in limits}["credits"])


def counts(server: Server, *tables: str) -> list[int]:
    """Return how many rows tables have."""
    with closing(database(server)) as opened:
        return [opened.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]


def grow_old(server: Server) -> None:
    """Make all usage but the record r0 three years old, while nobody serves."""
    with closing(sqlite3.connect(server.data / "formgate.db")) as opened, opened:
        opened.execute("UPDATE usage_records SET occur_time = occur_time - ? WHERE record_id != 'r0'", (1_100 * DAY,))
        opened.execute("UPDATE usage_hours SET hour = hour - ?", (1_100 * DAY,))


def prune(server: Server, *arguments: str) -> Result:
    """Run the command."""
    return run_here("usage", "prune", "--data", str(server.data), *arguments)


def test_prune_deletes_what_is_old(server: Server) -> None:
    """A dry run says how much, and deletes nothing; in batches of one it goes all the same; again there is nothing."""
    Seeded(server)
    server.stop()
    grow_old(server)
    dry = prune(server, "--dry-run", "--json")
    assert (dry.code, json.loads(dry.out)) == (0, {"dry_run": True, "records": 2, "sums": 1})
    assert counts(server, "usage_records", "usage_hours") == [3, 1]
    done = prune(server, "--json", "--batch", "1")
    told = json.loads(done.out)
    assert (done.code, told["dry_run"], told["records"], told["sums"]) == (0, False, 2, 1)
    assert counts(server, "usage_records", "usage_hours") == [1, 0]
    again = prune(server)
    assert again.code == 0
    assert "records       0" in again.out


def test_prune_leaves_a_running_server_alone(server: Server) -> None:
    """It says that the server does it by itself; of a folder without a database it makes none."""
    refused = prune(server)
    assert refused.code == 1
    assert "by itself" in refused.err
    nowhere = server.folder / "nowhere"
    missing = run_here("usage", "prune", "--data", str(nowhere))
    assert missing.code == 1
    assert "there is no database" in missing.err
    assert not nowhere.exists()


def test_no_fewer_days_than_a_record_may_be_late() -> None:
    """35: a record that was resent after its row had gone would count twice."""
    refused = run_here("usage", "prune", "--usage-days", "34")
    assert refused.code == 2
    assert "--usage-days" in refused.err


def test_the_server_deletes_by_itself(server: Server) -> None:
    """As soon as it starts, and every hour."""
    Seeded(server)
    server.stop()
    grow_old(server)
    server.start()
    eventually(lambda: counts(server, "usage_records", "usage_hours") == [1, 0], 20, "old usage is deleted")


def test_what_a_killed_server_owed_is_charged_after_the_restart(server: Server) -> None:
    """Killed between a record's commit and its charge: the record's own transaction has it written down."""
    seeded = Seeded(server)
    server.kill()
    with closing(sqlite3.connect(server.data / "formgate.db")) as opened, opened:
        owed = ("acme", "r1", seeded.key_id, 250, "", int(time.time() * 1e6) - 60_000_000)
        opened.execute("INSERT INTO usage_outbox VALUES (?, ?, ?, ?, ?, ?)", owed)
    server.start()
    eventually(lambda: counts(server, "usage_outbox") == [0], 20, "what is owed is charged")
    assert remaining(server, seeded) == AMOUNT - 250
    server.stop()
    server.start()
    assert remaining(server, seeded) == AMOUNT - 250


def test_a_charge_is_made_before_the_answer(server: Server) -> None:
    """The next check sees it, and nothing is owed any more."""
    seeded = Seeded(server)
    with closing(Client(server.address, server.token)) as manager:
        record = UsageRecord(record_id="charging", key_id=seeded.key_id, units=1, charge_units=300)
        manager(RecordUsageRequest(records=[record]))
    assert remaining(server, seeded) == AMOUNT - 300
    assert counts(server, "usage_outbox") == [0]
