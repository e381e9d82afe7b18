"""Accounts and keys for the bench, put straight into the tables: by RPC they would take longer than the bench."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import URL, insert

from formgate.rules.grants import Grant, Level
from formgate_server.core.model import (
    Account,
    AccountState,
    Calendar,
    Environment,
    Holder,
    Key,
    KeyState,
    Limit,
    Period,
    Rolling,
)
from formgate_server.core.secrets import Peppers, hint, new_secret
from formgate_server.storage.sql.engine import open_database
from formgate_server.storage.sql.rows import account_values, key_values
from formgate_server.storage.sql.tables import accounts, keys, secrets

KEYS_AN_ACCOUNT = 100
DAILY = 10_000_000

_PREFIX = "fg_live_"
_ROWS_A_STATEMENT = 10_000

# So much that no check is ever denied.
LIMITS = (
    Limit("rate", Holder.KEY, 1_000_000, Rolling(60_000_000)),
    Limit("daily", Holder.KEY, DAILY, Calendar(Period.DAY)),
)

_GRANTS = (
    Grant("forms/f1", ("forms.view", "submissions.*"), Level.READ),
    Grant("folders/finance", (), Level.WRITE),
)


@dataclass(frozen=True, slots=True)
class Population:
    """The keys that were put in, and their secrets."""

    secrets: Sequence[str]
    key_ids: Sequence[str]


def key(number: int, secret: str) -> Key:
    """Return a key as a user's would be: two grants, two limits."""
    return Key(
        key_id=f"key_bench{number:015}",
        account_id=_account_id(number),
        display_name="Nightly export",
        environment=Environment.LIVE,
        state=KeyState.ENABLED,
        hint=hint(secret),
        created_by="member_1",
        create_time=time.time_ns() // 1_000,
        expire_time=None,
        grants=_GRANTS,
        limits=LIMITS,
        metadata={"team": "reporting"},
    )


def account(number: int) -> Account:
    """Return the account of the key ``number``. It is noon there: no day ends while the bench counts by it."""
    hour = time.gmtime().tm_hour
    return Account(
        account_id=_account_id(number),
        display_name="Example Ltd",
        policy="default",
        plan="standard",
        state=AccountState.ACTIVE,
        time_zone=f"Etc/GMT{hour - 12:+}",  # these zones count the other way: Etc/GMT+5 is 5 hours behind
        limits=(),
        epoch=1,
        version=1,
        create_time=time.time_ns() // 1_000,
    )


async def populate(database: URL, peppers: Peppers, count: int) -> Population:
    """Put ``count`` keys, 100 an account, into the database."""
    made = [new_secret(_PREFIX) for _ in range(count)]
    population = [key(number, secret) for number, secret in enumerate(made)]
    await _write(database, peppers, made, population)
    return Population(made, [one.key_id for one in population])


async def _write(database: URL, peppers: Peppers, made: Sequence[str], population: Sequence[Key]) -> None:
    opened = open_database(database)
    digests = [peppers.digest(secret) for secret in made]
    tables = {
        accounts: [account_values(account(number)) for number in range(0, len(population), KEYS_AN_ACCOUNT)],
        keys: [key_values(one) for one in population],
        secrets: [
            {"digest": digest, "key_id": one.key_id, "pepper_id": pepper_id}
            for one, (digest, pepper_id) in zip(population, digests, strict=True)
        ],
    }
    try:
        async with opened.writing() as connection:
            for table, rows in tables.items():
                for some in _parts(rows):
                    await connection.execute(insert(table), some)
    finally:
        await opened.close()


def _parts(rows: Sequence[dict[str, object]]) -> Iterator[Sequence[dict[str, object]]]:
    for begin in range(0, len(rows), _ROWS_A_STATEMENT):
        yield rows[begin : begin + _ROWS_A_STATEMENT]


def _account_id(number: int) -> str:
    return f"bench{number // KEYS_AN_ACCOUNT:06}"
