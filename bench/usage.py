"""``python -m bench.usage``: what a usage record costs on PostgreSQL, beside a bare COPY of the same rows.

What is measured runs in this process, on a core of its own: from a request's bytes to its answer's, all but the wire.
The database is a real one, durable, on the other core. Scenarios take turns, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import psutil

from bench.asking import MOST, usage
from bench.process import two_cores
from formgate.v1 import authorization_pb2 as pb
from formgate_server.core.model import Caller, ServiceRole, UsageRecord
from formgate_server.core.ports import UsageEntry
from formgate_server.core.record_usage import RecordUsage
from formgate_server.core.settle import Settle
from formgate_server.policies.policy import load
from formgate_server.rpc import convert
from formgate_server.storage.memory.counters import MemoryReservations
from formgate_server.storage.memory.limiter import MemoryLimiter
from formgate_server.storage.sql.engine import Database, open_database
from formgate_server.storage.sql.tables import usage_records
from formgate_server.storage.sql.usage import SqlUsageLedger, row
from tests.support.postgres import PostgresServer
from tests.support.stores import account, add_key, key, sql_stores

_CALLER = Caller("bench", ServiceRole.CHECKER)
_KEYS = 100
_WANTED = 20_000


@dataclass(slots=True)
class Line:
    """A scenario: ``send`` brings calls of 1,000 records to the database."""

    name: str
    send: Callable[[Sequence[bytes]], Awaitable[None]]
    own_us: list[float] = field(default_factory=list)
    database_us: list[float] = field(default_factory=list)
    clock_us: list[float] = field(default_factory=list)

    async def run(self, bodies: Sequence[bytes], server: psutil.Process) -> None:
        """Run a round."""
        database, own, clock = _cpu(server), time.process_time(), time.perf_counter()
        await self.send(bodies)
        records = len(bodies) * MOST / 1e6
        self.own_us.append((time.process_time() - own) / records)
        self.clock_us.append((time.perf_counter() - clock) / records)
        self.database_us.append((_cpu(server) - database) / records)


class SystemClock:
    """This machine's clock."""

    def now(self) -> int:
        """See ``Clock``."""
        return time.time_ns() // 1_000


async def measure(rounds: int, calls: int) -> str:
    """Run every scenario in turn, round after round, and return the report."""
    cores = two_cores()
    with PostgresServer("shared_buffers=256MB", durable=True) as server:  # on the load's core, as its parent is now
        os.sched_setaffinity(0, {cores.server})
        process = psutil.Process(server.pid)
        async with server.database() as url:
            database = open_database(url)
            try:
                ids = itertools.cycle([f"key_bench{number:015}" for number in range(_KEYS)])
                await _populate(database, itertools.islice(ids, _KEYS))
                lines = await _lines(database, await server.connect(url.database or ""))
                for number, line in itertools.product(range(rounds + 1), lines):
                    print(f"bench: round {number} of {rounds}: {line.name} …", file=sys.stderr, flush=True)
                    await line.run(usage(ids, calls if number else 2), process)
            finally:
                await database.close()
    return _report(lines)


async def _populate(database: Database, key_ids: Iterable[str]) -> None:
    registry = sql_stores(database).registry
    async with registry.transaction() as transaction:
        await transaction.insert_account(account(plan="standard"))
    for key_id in key_ids:
        await add_key(registry, key(key_id))


async def _lines(database: Database, copying: Any) -> list[Line]:  # noqa: ANN401 - asyncpg is not typed
    policies, clock, ledger = load(), SystemClock(), SqlUsageLedger(database)
    settle = Settle(ledger, MemoryLimiter(clock, MemoryReservations()), policies)
    record_usage = RecordUsage(ledger, settle, policies, clock)
    await copying.execute("CREATE TABLE copied (LIKE usage_records INCLUDING ALL)")

    async def answer(body: bytes) -> None:
        request = pb.RecordUsageRequest.FromString(body)
        results = await record_usage(_CALLER, [convert.usage_record(each) for each in request.records])
        told = [
            pb.UsageResult(record_id=each, outcome=convert.number(what), message=why) for each, what, why in results
        ]
        assert all(each.outcome == pb.OUTCOME_ACCEPTED for each in told)
        pb.RecordUsageResponse(results=told).SerializeToString()

    async def one_by_one(bodies: Sequence[bytes]) -> None:
        for body in bodies:
            await answer(body)

    async def together(bodies: Sequence[bytes]) -> None:
        await asyncio.gather(*map(answer, bodies))

    async def copy(bodies: Sequence[bytes]) -> None:
        columns = [column.name for column in usage_records.columns]
        for body in bodies:
            await copying.copy_records_to_table("copied", records=_rows(body, clock.now()), columns=columns)

    return [
        Line(f"RecordUsage of {MOST:,}", one_by_one),
        Line(f"RecordUsage of {MOST:,}, all at once", together),
        Line(f"bare COPY of the same {MOST:,} rows", copy),
    ]


def _rows(body: bytes, now: int) -> list[tuple[Any, ...]]:
    """Return the rows that a call becomes, made as cheaply as can be."""
    made = []
    for each in pb.RecordUsageRequest.FromString(body).records:
        record = UsageRecord(
            record_id=each.record_id,
            key_id=each.key_id,
            units=each.units,
            operation=each.operation,
            resource=each.resource,
            status_code=each.status_code,
        )
        made.append(row(UsageEntry("acme", now, b"\0" * 32, record)))
    return made


def _cpu(server: psutil.Process) -> float:
    """Return the CPU seconds that the database has taken."""
    seconds = 0.0
    for process in [server, *server.children()]:
        times = process.cpu_times()
        seconds += times.user + times.system
    return seconds


def _report(lines: Sequence[Line]) -> str:
    copied = lines[-1]
    told = [
        f"{'µs a record, medians':40}{'own CPU':>9}{'database':>10}{'clock':>8}{'records/s a core':>18}{'to COPY':>9}"
    ]
    for line in lines:
        own, database, clock = (median(each[1:]) for each in (line.own_us, line.database_us, line.clock_us))
        to_copy = median(one / other for one, other in zip(line.clock_us[1:], copied.clock_us[1:], strict=True))
        told.append(f"{line.name:40}{own:>9.1f}{database:>10.1f}{clock:>8.1f}{1e6 / own:>18,.0f}{to_copy:>9.2f}")
    best = max(1e6 / median(line.own_us[1:]) for line in lines[:-1])
    told += ["", f"wanted: at least {_WANTED:,} records/s a core: {'met' if best >= _WANTED else 'MISSED'}"]
    return "\n".join(told)


def main() -> None:
    """Measure, and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.usage", description="Measure what a usage record costs.")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    quick = parser.parse_args().quick
    print(asyncio.run(measure(*((1, 5) if quick else (5, 50)))))


if __name__ == "__main__":
    main()
