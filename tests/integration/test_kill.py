"""`kill -9` in the middle of everything: no acknowledged record is lost, none counts twice, no quota is refilled."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from formgate.v1.accounts_pb2 import CreateAccountRequest
from formgate.v1.authorization_pb2 import (
    OUTCOME_ACCEPTED,
    OUTCOME_CONFLICT,
    OUTCOME_DUPLICATE,
    BatchCheckKeysRequest,
    CheckKeyRequest,
    RecordUsageRequest,
    UsageRecord,
)
from formgate.v1.keys_pb2 import CreateKeyRequest
from formgate.v1.resources_pb2 import CALENDAR_DAY, CALENDAR_MONTH, HOLDER_ACCOUNT, HOLDER_KEY, Holder, Limit
from tests.support.client import Client, database
from tests.support.clock import noon_zone
from tests.support.server import Server, eventually
from tests.support.soak import SOAK

RUNS = 20 if SOAK else 3
KILLS = 2
"""How often the server is killed in a run, on the same data."""
WRITERS = 3
CHECKERS = 3
HOUR = 3_600
AMOUNT = 3_000
"""Of every limit; its block is 1 % of it, larger than the 10 that a block is at least."""
BLOCK = AMOUNT // 100
COSTLIEST = 7


def limits(holder: Holder.ValueType) -> dict[str, Limit]:
    """Return a limit of each kind that outlives its store."""
    made = {
        "daily": Limit(calendar=CALENDAR_DAY),
        "monthly": Limit(calendar=CALENDAR_MONTH),
        "credits": Limit(lifetime=True),
        "hourly": Limit(),
    }
    made["hourly"].window.FromSeconds(HOUR)
    for name, limit in made.items():
        limit.MergeFrom(Limit(name=name, holder=holder, amount=AMOUNT))
    return made


@dataclass
class Quota:
    """A limit by itself, a key that is charged by it, and what its callers were told."""

    secret: str
    admitted: int = 0
    """Units of the checks that were answered with OK."""
    unanswered: int = 0
    """Units of the checks that were never answered: they may have been charged."""


@dataclass
class Told:
    """What callers know, by what they were told."""

    records: dict[str, UsageRecord] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def client(server: Server) -> Iterator[Client]:
    """Connect for a while."""
    with closing(Client(server.address, server.token)) as connected:
        yield connected


def make_quotas(server: Server) -> list[Quota]:
    """Make a quota of each kind on a key, and one on an account, all apart from each other."""
    quotas = []
    with client(server) as manager:
        for holder in (HOLDER_KEY, HOLDER_ACCOUNT):
            for limit in limits(holder).values():
                on_account = [limit] if holder == HOLDER_ACCOUNT else []
                on_key = [limit] if holder == HOLDER_KEY else []
                account = manager(CreateAccountRequest(limits=on_account, time_zone=noon_zone())).account
                made = manager(CreateKeyRequest(account_id=account.account_id, limits=on_key))
                quotas.append(Quota(made.secret))
    return quotas


def record_away(server: Server, keys: list[str], told: Told, name: str, seed: int) -> None:
    """Send batches of new records, some with one of an earlier batch again, until the server is gone."""
    rng = random.Random(seed)
    earlier: list[UsageRecord] = []
    with client(server) as recorder:
        for number in range(1_000_000):
            batch = []
            for place in range(rng.choice((1, 3, 10, 40))):
                record = UsageRecord(record_id=f"{name}-{number}-{place}", key_id=rng.choice(keys))
                record.units, record.operation = rng.randint(0, 9), rng.choice(("", "read", "write"))
                if rng.random() < 0.5:
                    record.occur_time.FromSeconds(int(time.time()) - rng.randint(0, 5) * HOUR)
                batch.append(record)
            with told.lock:
                told.records |= {record.record_id: record for record in batch}
            again = rng.sample(earlier, min(len(earlier), 2))
            try:
                answer = recorder(RecordUsageRequest(records=batch + again))
            except grpc.RpcError:
                return
            outcomes = [result.outcome for result in answer.results]
            assert outcomes == [OUTCOME_ACCEPTED] * len(batch) + [OUTCOME_DUPLICATE] * len(again)
            with told.lock:
                told.acknowledged |= {record.record_id for record in batch}
            earlier = (earlier + batch)[-100:]


def check_away(server: Server, quotas: list[Quota], told: Told, seed: int) -> None:
    """Check keys until the server is gone."""
    rng = random.Random(seed)
    with client(server) as checker:
        while True:
            asked = [(rng.choice(quotas), rng.randint(1, COSTLIEST)) for _ in range(rng.choice((1, 5, 20)))]
            requests = [CheckKeyRequest(key=quota.secret, cost=cost) for quota, cost in asked]
            try:
                answer = checker(BatchCheckKeysRequest(requests=requests))
            except grpc.RpcError:
                with told.lock:
                    for quota, cost in asked:
                        quota.unanswered += cost
                return
            with told.lock:
                for (quota, cost), result in zip(asked, answer.results, strict=True):
                    assert result.HasField("response"), result.error
                    assert not result.response.degraded
                    quota.admitted += cost if result.response.allowed else 0


def storm(server: Server, quotas: list[Quota], keys: list[str], told: Told, seed: int) -> None:
    """Record and check from many threads, and kill the server while they are at it."""
    with ThreadPoolExecutor(WRITERS + CHECKERS) as threads:
        before = len(told.acknowledged)
        writers = [
            threads.submit(record_away, server, keys, told, f"{seed}-{number}", seed * 100 + number)
            for number in range(WRITERS)
        ]
        checkers = [
            threads.submit(check_away, server, quotas, told, seed * 100 + WRITERS + number)
            for number in range(CHECKERS)
        ]
        enough = random.Random(seed).randint(200, 800)
        try:
            eventually(lambda: len(told.acknowledged) - before > enough, 60, "records acknowledged")
        finally:
            server.kill()
        for thread in writers + checkers:
            thread.result()


def exhaust(server: Server, quota: Quota) -> None:
    """Check the key, one unit at a time, until it is denied."""
    with client(server) as checker:
        request = BatchCheckKeysRequest(requests=[CheckKeyRequest(key=quota.secret)] * 500)
        while True:
            allowed = [result.response.allowed for result in checker(request).results]
            quota.admitted += sum(allowed)
            if not all(allowed):
                assert not any(allowed[allowed.index(False) :])
                return


@pytest.mark.parametrize("run", range(RUNS))
def test_kill_9_loses_no_record_counts_none_twice_and_refills_no_quota(tmp_path: Path, run: int) -> None:
    """Killed while threads record usage and check keys, twice over, then restarted on the same data.

    Acknowledged records are there. Those that were not acknowledged are sent again, and are accepted or known. Each
    then stands once in the raw rows and once in the sums of its hour. No limit admits more than its amount in all, and
    no kill costs it more than a block and the checks that were never answered.
    """
    told = Told()
    server = Server(tmp_path)
    server.start()
    quotas = make_quotas(server)
    keys = key_ids(server)
    try:
        for kill in range(KILLS):
            storm(server, quotas, keys, told, run * KILLS + kill + 1)
            server.start()
        with client(server) as recorder:
            send_again(recorder, told)
        for quota in quotas:
            exhaust(server, quota)
        server.stop()
    finally:
        server.kill()
    compare(server, told)
    for quota in quotas:
        assert quota.admitted <= AMOUNT
        assert quota.admitted >= AMOUNT - KILLS * BLOCK - quota.unanswered


def key_ids(server: Server) -> list[str]:
    """Return the ids of all keys."""
    with closing(database(server)) as opened:
        return [key_id for (key_id,) in opened.execute("SELECT key_id FROM keys ORDER BY key_id")]


def send_again(recorder: Client, told: Told) -> None:
    """Send every record again, and then some as others."""
    known, unknown = 0, 0
    for records in batches(told):
        answer = recorder(RecordUsageRequest(records=records))
        for record, result in zip(records, answer.results, strict=True):
            if record.record_id in told.acknowledged:
                assert result.outcome == OUTCOME_DUPLICATE, f"{record.record_id} was acknowledged, and lost"
                known += 1
            else:
                assert result.outcome in (OUTCOME_ACCEPTED, OUTCOME_DUPLICATE)
                unknown += 1
    assert known
    assert unknown, "the server was killed at a moment at which nobody waited for it"
    other = UsageRecord()
    other.CopyFrom(records[0])
    other.units += 1
    assert recorder(RecordUsageRequest(records=[other])).results[0].outcome == OUTCOME_CONFLICT


def batches(told: Told) -> Iterator[list[UsageRecord]]:
    """Yield all records, a thousand at a time."""
    records = list(told.records.values())
    for first in range(0, len(records), 1_000):
        yield records[first : first + 1_000]


def compare(server: Server, told: Told) -> None:
    """Hold the raw rows, and the sums of the hours, against what was sent."""
    with closing(sqlite3.connect(server.data / "formgate.db")) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        raw = opened.execute("SELECT record_id, key_id, units, operation, occur_time FROM usage_records").fetchall()
        summed = opened.execute("SELECT key_id, hour, operation, units, records FROM usage_hours").fetchall()
    assert len(raw) == len(told.records)
    units: Counter[tuple[str, int, str]] = Counter()
    records: Counter[tuple[str, int, str]] = Counter()
    for record_id, key_id, count, operation, occur_time in raw:
        sent = told.records[record_id]
        assert (key_id, count, operation) == (sent.key_id, sent.units, sent.operation)
        if sent.HasField("occur_time"):
            assert occur_time == sent.occur_time.ToMicroseconds()
        hour = key_id, occur_time - occur_time % (HOUR * 1_000_000), operation
        units[hour] += count
        records[hour] += 1
    assert {tuple(row[:3]): tuple(row[3:]) for row in summed} == {
        hour: (units[hour], records[hour]) for hour in records
    }
    assert sum(units.values()) == sum(record.units for record in told.records.values())
