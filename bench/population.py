"""Accounts and keys for the bench, put straight into the tables: by RPC they would take longer than the bench."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import URL, insert, text

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
from formgate_server.storage.sql.engine import Database, open_database
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


async def populate(database: URL, peppers: Peppers, count: int, *, known: int | None = None) -> Population:
    """Put ``count`` keys, 100 an account, into the database, and return all, or ``known`` of them, evenly spread.

    Of the others nobody has the secret: they are made by the database, which is PostgreSQL then.
    """
    numbers = range(0, count, count // (known or count))
    made = [new_secret(_PREFIX) for _ in numbers]
    population = [key(number, secret) for number, secret in zip(numbers, made, strict=True)]
    opened = open_database(database)
    try:
        await _write(opened, peppers, count, made, population)
        if numbers.step > 1:
            async with opened.migrating() as connection:
                for statement in _fill(count, numbers.step):
                    await connection.execute(text(statement))
    finally:
        await opened.close()
    return Population(made, [one.key_id for one in population])


async def _write(
    database: Database, peppers: Peppers, count: int, made: Sequence[str], population: Sequence[Key]
) -> None:
    digests = [peppers.digest(secret) for secret in made]
    tables = {
        accounts: [account_values(account(number)) for number in range(0, count, KEYS_AN_ACCOUNT)],
        keys: [key_values(one) for one in population],
        secrets: [
            {"digest": digest, "key_id": one.key_id, "pepper_id": pepper_id}
            for one, (digest, pepper_id) in zip(population, digests, strict=True)
        ],
    }
    async with database.writing() as connection:
        for table, rows in tables.items():
            for some in _parts(rows):
                await connection.execute(insert(table), some)


def _parts(rows: Sequence[dict[str, object]]) -> Iterator[Sequence[dict[str, object]]]:
    for begin in range(0, len(rows), _ROWS_A_STATEMENT):
        yield rows[begin : begin + _ROWS_A_STATEMENT]


def _fill(count: int, step: int) -> Iterator[str]:
    """Yield what puts in the keys between those that are known: copies of the first one, in accounts that are there."""
    copied = ", ".join(column.name for column in keys.columns if column.name not in {"key_id", "account_id"})
    yield "SET LOCAL statement_timeout = 0"
    yield "SET LOCAL session_replication_role = replica"  # no foreign key is looked up
    yield f"""
        INSERT INTO keys (key_id, account_id, {copied})
        SELECT 'key_bench' || lpad(number::text, 15, '0'),
            'bench' || lpad((number / {KEYS_AN_ACCOUNT})::text, 6, '0'), {copied}
        FROM generate_series(0, {count} - 1) AS number, (SELECT {copied} FROM keys LIMIT 1) AS first
        WHERE number % {step} <> 0
    """
    yield f"""
        INSERT INTO secrets (digest, key_id, pepper_id)
        SELECT sha256(key_id::bytea), key_id, (SELECT pepper_id FROM secrets LIMIT 1) FROM keys
        WHERE substr(key_id, 10)::bigint % {step} <> 0
    """
    yield "ANALYZE keys, secrets, accounts"


def _account_id(number: int) -> str:
    return f"bench{number // KEYS_AN_ACCOUNT:06}"
