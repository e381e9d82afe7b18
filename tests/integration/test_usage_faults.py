"""Usage over a real PostgreSQL that is killed, and over connections that are cut: each record counts and charges once.

What charges is a limiter in the test's own process: it stands for counters that go on while the database does not.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import select

from formgate_server.core.compile_key import counters
from formgate_server.core.errors import UnavailableError
from formgate_server.core.model import Caller, Holder, Lifetime, Limit, ServiceRole, UsageOutcome, UsageRecord
from formgate_server.core.record_usage import RecordUsage
from formgate_server.core.settle import Settle
from formgate_server.policies.policy import load
from formgate_server.storage.memory.counters import MemoryReservations
from formgate_server.storage.memory.limiter import MemoryLimiter
from formgate_server.storage.sql.engine import Database, open_database
from formgate_server.storage.sql.tables import usage_hours, usage_outbox, usage_records
from formgate_server.storage.sql.usage import SqlUsageLedger
from tests.support.clock import SettableClock
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy
from tests.support.soak import SOAK
from tests.support.stores import account, add_key, key, sql_stores

KILLS = 10 if SOAK else 2
WRITERS = 6
STEP = 1 if SOAK else 97
CALLER = Caller("t1", ServiceRole.CHECKER)
KEYS = ("k1", "k2")
AMOUNT = 10**12
CREDITS = Limit("credits", Holder.ACCOUNT, AMOUNT, Lifetime())
ACCOUNT = account(plan="standard", limits=(CREDITS,))
POLICIES = load()
ACCEPTED, DUPLICATE = UsageOutcome.ACCEPTED, UsageOutcome.DUPLICATE


class Process:
    """One server's part: what records usage over a database, with counters that it shares with others."""

    def __init__(self, database: Database, limiter: MemoryLimiter) -> None:
        self.database = database
        self.limiter = limiter
        self.ledger = SqlUsageLedger(database)
        self.settle = Settle(self.ledger, limiter, POLICIES)
        self.record_usage = RecordUsage(self.ledger, self.settle, POLICIES, SettableClock())

    async def charged(self) -> int:
        """Return how many units were charged."""
        plan = POLICIES.by_name[ACCOUNT.policy].plans[ACCOUNT.plan]
        wanted = [each for each in counters(ACCOUNT, plan, key()) if each.limit == CREDITS]
        (standing,) = await self.limiter.look("acme", wanted)
        return AMOUNT - standing.remaining

    async def send(self, records: Sequence[UsageRecord], enough: Callable[[], bool] = lambda: False) -> bool:
        """Send records until there is an answer; False: there was none until ``enough``."""
        while not enough():
            try:
                results = await self.record_usage(CALLER, records)
            except UnavailableError:
                await asyncio.sleep(0.02)
                continue
            assert {result.outcome for result in results} <= {ACCEPTED, DUPLICATE}
            return True
        return False

    async def settle_all(self) -> None:
        """Sweep until nothing is owed."""
        while True:
            try:
                if not await self.settle.sweep(older_than=0):
                    return
            except UnavailableError:
                await asyncio.sleep(0.02)

    async def verify(self, acknowledged: Sequence[UsageRecord], sent: Sequence[UsageRecord]) -> None:
        """Hold raw rows, sums and counters against what was sent and acknowledged."""
        async with self.database.reading() as connection:
            raw = (await connection.execute(select(usage_records))).all()
        async with self.database.reading() as connection:
            summed = (await connection.execute(select(usage_hours))).all()
        async with self.database.reading() as connection:
            owed = (await connection.execute(select(usage_outbox))).all()
        there = Counter(row.record_id for row in raw)
        assert set(there.values()) <= {1}
        assert {record.record_id for record in acknowledged} <= set(there) <= {record.record_id for record in sent}
        units: Counter[tuple[str, str]] = Counter()
        records: Counter[tuple[str, str]] = Counter()
        for row in raw:
            units[row.key_id, row.operation] += row.units
            records[row.key_id, row.operation] += 1
        assert {(row.key_id, row.operation): (row.units, row.records) for row in summed} == {
            group: (units[group], records[group]) for group in records
        }
        assert owed == []
        assert await self.charged() == sum(row.charge_units or 0 for row in raw)


@asynccontextmanager
async def process(url: object, limiter: MemoryLimiter) -> AsyncIterator[Process]:
    """Open a database, as a server process does."""
    database = open_database(url, pool=4)  # type: ignore[arg-type]
    one = Process(database, limiter)
    try:
        yield one
    finally:
        await one.record_usage.finish()
        await database.close()


def new_limiter() -> MemoryLimiter:
    """Return counters at nothing."""
    return MemoryLimiter(SettableClock(), MemoryReservations())


async def populate(one: Process) -> None:
    """Add the account and its keys."""
    registry = sql_stores(one.database).registry
    async with registry.transaction() as transaction:
        await transaction.insert_account(ACCOUNT)
    for key_id in KEYS:
        await add_key(registry, key(key_id))


def made(name: str, number: int, rng: random.Random) -> UsageRecord:
    """Return a record; every other one charges."""
    return UsageRecord(
        record_id=f"{name}-{number}",
        key_id=rng.choice(KEYS),
        units=rng.randint(0, 9),
        operation=rng.choice(("", "read")),
        charge_units=rng.choice((None, 1, 7)),
        occur_time=SettableClock().now(),
    )


@pytest.fixture(scope="module")
def durable_server() -> Iterator[PostgresServer]:
    """A PostgreSQL that syncs what it commits."""
    with PostgresServer(durable=True) as server:
        yield server


async def test_kill_9_of_postgresql_loses_nothing_and_counts_nothing_twice(durable_server: PostgresServer) -> None:
    """Killed in the middle of a storm from two processes, and started again.

    Each writer sends the same ids until it has an answer. In the end each acknowledged record is there once, the sums
    are those of the raw rows, and each has charged once; nothing is owed.
    """
    sent: list[UsageRecord] = []
    acknowledged: list[UsageRecord] = []
    stop = asyncio.Event()

    async def write(one: Process, name: str) -> None:
        rng = random.Random(name)
        number = 0
        while not stop.is_set():
            batch = [made(name, number + place, rng) for place in range(rng.choice((1, 5, 40)))]
            number += len(batch)
            sent.extend(batch)
            again = rng.sample(acknowledged, min(3, len(acknowledged)))
            if await one.send([*batch, *again]):
                acknowledged.extend(batch)

    limiter = new_limiter()
    async with (
        durable_server.database() as url,
        process(url, limiter) as one,
        process(url, limiter) as other,
    ):
        await populate(one)
        async with asyncio.TaskGroup() as tasks:
            for number in range(WRITERS):
                tasks.create_task(write((one, other)[number % 2], f"w{number}"))
            for _ in range(KILLS):
                before = len(acknowledged)
                while len(acknowledged) < before + 300:  # noqa: ASYNC110 - many tell, at no single place
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(durable_server.kill)
                await asyncio.to_thread(durable_server.start)
            stop.set()
        await one.record_usage.finish()
        await other.record_usage.finish()
        await one.settle_all()
        assert len(acknowledged) == len(sent)
        await one.verify(acknowledged, sent)


@pytest.mark.parametrize("direction", ["requests", "answers"])
async def test_a_connection_cut_at_any_byte(postgres_server: PostgresServer, direction: str) -> None:
    """After so many bytes to the database, or from it, of a transaction or of what it owes.

    The caller is told UNAVAILABLE or is answered; it sends the same again until it is; each record then is there once.
    """
    rng = random.Random(1)
    sent: list[UsageRecord] = []
    with Proxy(postgres_server.port) as proxy:
        async with postgres_server.database() as url, process(url.set(port=proxy.port), new_limiter()) as one:
            await populate(one)
            cut_after, accepted = 0, 0
            while True:
                warm = made("warm", cut_after, rng)
                sent.append(warm)
                assert await one.send([warm])
                accepted = proxy.accepted
                batch = [made(f"cut{cut_after}", place, rng) for place in range(3)]
                sent.extend(batch)
                getattr(proxy, f"truncate_{direction}")(cut_after)
                assert await one.send(batch)
                await one.settle_all()
                if proxy.accepted == accepted:
                    break  # so many bytes are more than all of it takes
                cut_after += STEP
            proxy.pass_on()
            assert cut_after > 500
            await one.settle_all()
            await one.verify(sent, sent)


async def test_killed_between_commit_and_charge(postgres_server: PostgresServer) -> None:
    """Whoever comes next charges what was owed, once, however many of them come."""
    rng = random.Random(2)
    records = [made("r", number, rng) for number in range(200)]
    limiter = new_limiter()
    async with postgres_server.database() as url, process(url, limiter) as one, process(url, limiter) as other:
        await populate(one)

        async def killed(_: object) -> None:
            raise UnavailableError("killed")

        settle, one.record_usage._settle = one.settle, killed  # type: ignore[assignment]
        assert await one.send(records)
        assert await one.charged() == 0
        await asyncio.gather(settle.sweep(0), other.settle.sweep(0), other.settle.sweep(0))
        await one.settle_all()
        await one.verify(records, records)


async def test_one_deletes_at_a_time(postgres_server: PostgresServer) -> None:
    """Of the processes that share a database; whoever comes second leaves it to the first."""
    async with postgres_server.database() as url, process(url, new_limiter()) as one:
        driver = await postgres_server.connect(url.database or "")
        try:
            async with driver.transaction():
                await driver.execute("SELECT pg_advisory_xact_lock(hashtext('formgate usage prune'))")
                assert await one.ledger.forget_records(10, 10) is None
                assert await one.ledger.forget_sums(10, 10) is None
            assert await one.ledger.forget_records(10, 10) == 0
        finally:
            await driver.close()
