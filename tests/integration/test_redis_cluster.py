"""The hot path's client against a real cluster: slots that move, primaries that change and primaries that die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from redis.crc import key_slot

from formgate_server.storage.redis.client import RedisClient
from formgate_server.storage.redis.cluster import Range, slot_of
from formgate_server.storage.redis.cluster import RedisCluster as Cluster
from formgate_server.storage.redis.errors import LostAnswer, StoreUnavailable
from formgate_server.storage.redis.preflight import preflight
from formgate_server.storage.redis.script import Script
from formgate_server.storage.redis.url import Address
from tests.support.redis import RedisCluster, RedisServer
from tests.support.redis_client import COUNT, States, Tally, connected, count, heals, until

ACCOUNTS = [f"account-{number}" for number in range(60)]
BOTH = Script("both", "return {redis.call('INCR', KEYS[1]), redis.call('INCR', KEYS[2])}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three primaries, for tests that leave them as they were."""
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[RedisCluster]:
    """Three primaries with a replica each."""
    with RedisCluster(tmp_path / "cluster", replicas=1) as cluster:
        yield cluster


def key_of(account: str) -> str:
    """The key that ``count`` counts in."""
    return f"fg:{{{account}}}:n"


def test_slots_are_those_of_redis() -> None:
    """The slot of a hash tag is the one that redis-py, and so Redis, says."""
    for tag in ("", "a", "123456789", "account-1", "A.b_c-9" * 9):
        assert slot_of(tag) == key_slot(tag.encode()) == key_slot(f"{{{tag}}}:x".encode() if tag else b"")


async def test_each_account_goes_to_its_primary(cluster: RedisCluster) -> None:
    """Requests of many accounts at once reach the primary of each, by one of its seeds alone, without a redirection."""
    before = {server.port: moved(server) for server in cluster.servers}
    url = f"redis+cluster://127.0.0.1:{cluster.servers[2].port}"
    async with connected(url) as client:
        answers = await asyncio.gather(*(count(client, account, "x") for account in ACCOUNTS))
        assert [answer[1] for answer in answers] == [b"x"] * len(ACCOUNTS)
        for account in ACCOUNTS:
            assert int(cluster.primary_of(account).do("GET", key_of(account))) >= 1
            assert await client.command("GET", key_of(account), slot=account) is not None
        assert await client.command("PING") == b"PONG"
    assert {server.port: moved(server) for server in cluster.servers} == before


def moved(server: RedisServer) -> int:
    """How many requests it has redirected; Redis 6.2 and later count errors by their first word."""
    with server.client() as client:
        return int(client.info("errorstats").get("errorstat_MOVED", {}).get("count", 0))


async def test_a_slot_that_moves_is_followed_step_by_step(cluster: RedisCluster) -> None:
    """While a slot moves its keys are asked for where they are; two keys apart wait; then it has a new primary."""
    account = "moving"
    slot, source = slot_of(account), cluster.primary_of(account)
    target = next(server for server in cluster.servers if server is not source)
    keys = [f"{{{account}}}:one", f"{{{account}}}:two"]
    async with connected(cluster.url(), timeout=1) as client:
        assert await client.run(BOTH, account, keys, [], repeatable=False) == [1, 1]
        target.do("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
        source.do("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
        # Both keys still there.
        assert await client.run(BOTH, account, keys, [], repeatable=False) == [2, 2]
        # One here, one there: TRYAGAIN, until the other has moved too.
        source.do("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)
        split = client.run_soon(BOTH, account, keys, [], repeatable=False)
        await asyncio.sleep(0.1)
        assert not split.done()
        source.do("MIGRATE", "127.0.0.1", target.port, keys[1], 0, 5000)
        assert await split == [3, 3]  # ASK, to a server that has not got the script
        # Both there, and the slot not yet: ASK each time.
        target.do("SCRIPT", "FLUSH")
        many = [client.run_soon(BOTH, account, keys, [], repeatable=False) for _ in range(20)]
        assert sorted(await asyncio.gather(*many)) == [[each, each] for each in range(4, 24)]
        # Moved.
        for server in (target, source, *cluster.servers):
            server.do("CLUSTER", "SETSLOT", slot, "NODE", cluster.id_of(target))
        many = [client.run_soon(BOTH, account, keys, [], repeatable=False) for _ in range(20)]
        assert sorted(await asyncio.gather(*many)) == [[each, each] for each in range(24, 44)]
        # By now it is known, and nobody is redirected any more.
        await asyncio.sleep(0.2)
        before = moved(source)
        assert await client.run(BOTH, account, keys, [], repeatable=False) == [44, 44]
        assert moved(source) == before


async def test_a_split_that_lasts_is_told_in_time(cluster: RedisCluster) -> None:
    """Two keys of a slot that stay apart: the request fails by its deadline, and was surely not run."""
    account = "split"
    slot, source = slot_of(account), cluster.primary_of(account)
    target = next(server for server in cluster.servers if server is not source)
    keys = [f"{{{account}}}:one", f"{{{account}}}:two"]
    async with connected(cluster.url(), timeout=1.0) as client:
        await client.run(BOTH, account, keys, [], repeatable=False)
        target.do("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
        source.do("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
        source.do("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)
        before = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            await client.run(BOTH, account, keys, [], repeatable=True)
        assert not isinstance(caught.value, LostAnswer)
        assert time.monotonic() - before < 2.0
        source.do("MIGRATE", "127.0.0.1", target.port, keys[1], 0, 5000)
        for server in (target, source, *cluster.servers):
            server.do("CLUSTER", "SETSLOT", slot, "NODE", cluster.id_of(target))
        assert await client.run(BOTH, account, keys, [], repeatable=False) == [2, 2]


async def test_the_look_before_serving_sees_every_primary(cluster: RedisCluster) -> None:
    """One primary that may evict is a problem, whichever it is."""
    cluster.servers[1].do("CONFIG", "SET", "maxmemory-policy", "allkeys-lfu")
    try:
        facts = await preflight(cluster.url())
    finally:
        cluster.servers[1].do("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert len(facts) == 3
    (problem,) = (problem for each in facts for problem in each.problems)
    assert str(cluster.servers[1].port) in problem


class Load:
    """Requests that go on while things happen, and how they ended."""

    def __init__(self) -> None:
        self.outcomes: dict[str, list[Any]] = {account: [] for account in ACCOUNTS}
        self.longest = 0.0
        self.lag = 0.0
        """By how many seconds a task of this loop woke up late, at the worst: so late may anything be."""

    @asynccontextmanager
    async def on(self, client: RedisClient) -> AsyncIterator[None]:
        """Ask for every account, again and again."""
        asking = [asyncio.create_task(self._ask(client, account)) for account in ACCOUNTS]
        try:
            yield
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, client: RedisClient, account: str) -> None:
        while True:
            before = time.monotonic()
            try:
                self.outcomes[account].append(await count(client, account))
            except StoreUnavailable as error:
                self.outcomes[account].append(error)
            after = time.monotonic()
            self.longest = max(self.longest, after - before)
            await asyncio.sleep(0.01)
            self.lag = max(self.lag, time.monotonic() - after - 0.01)


async def test_a_failover_that_is_asked_for_loses_nothing(replicated: RedisCluster) -> None:
    """A replica takes over by hand, under load: what was answered is counted, and it heals within seconds."""
    load = Load()
    states = States()
    async with connected(replicated.url(), states, timeout=1) as client:
        async with load.on(client):
            await asyncio.sleep(0.2)
            primary = replicated.primary_of(ACCOUNTS[0])
            replica = await asyncio.to_thread(replicated.fail_over, primary)
            await asyncio.sleep(0.2)
            await heals(client, ACCOUNTS[0])
        assert replicated.primary_of(ACCOUNTS[0]) is replica
        for account in ACCOUNTS:
            tally = Tally(load.outcomes[account])
            run = int(await client.command("GET", key_of(account), slot=account))
            assert len(tally.answered) <= run <= len(tally.answered) + len(tally.lost) + 2
    assert load.longest < 1.25 + 2 * load.lag


async def test_a_primary_that_dies(replicated: RedisCluster) -> None:
    """Killed under load: the other slots go on all the while, nobody waits beyond the deadline, and it heals itself."""
    load = Load()
    states = States()
    primary = replicated.primary_of(ACCOUNTS[0])
    theirs = {account for account in ACCOUNTS if replicated.primary_of(account) is primary}
    async with connected(replicated.url(), states) as client:
        async with load.on(client):
            await asyncio.sleep(0.3)
            died = time.monotonic()
            primary.kill()
            await until(lambda: states.ups == [True, False], "it is told")
            await until(lambda: states.ups == [True, False, True], "it is up again")
            took = time.monotonic() - died
            await heals(client, ACCOUNTS[0])
            await asyncio.sleep(0.1)
        assert took < 20
        assert load.longest < 5  # a deadline of a quarter, and what others do on this machine
        for account in ACCOUNTS:
            tally = Tally(load.outcomes[account])
            assert not isinstance(load.outcomes[account][-1], BaseException), account
            if account not in theirs:
                # While the failed primary is not yet replaced, nodes may say that the cluster is down; not for long.
                assert 4 * len(tally.answered) > len(tally.refused), account


async def test_a_primary_that_freezes(replicated: RedisCluster) -> None:
    """Frozen, and replaced meanwhile; when it thaws it is a replica, and nobody is sent to it any more."""
    states = States()
    async with connected(replicated.url(), states) as client:
        await count(client, ACCOUNTS[0])
        primary = replicated.primary_of(ACCOUNTS[0])
        primary.pause()
        with pytest.raises(LostAnswer):
            await count(client, ACCOUNTS[0])
        await heals(client, ACCOUNTS[0])
        primary.resume()
        await until(lambda: not primary.is_primary, "it is a replica")
        for _ in range(10):
            await count(client, ACCOUNTS[0])
        assert states.ups == [True, False, True]


async def test_a_primary_without_a_replica(tmp_path: Path) -> None:
    """Where slots may be missing, a dead primary costs its own slots alone, and those fail at once."""
    with RedisCluster(tmp_path, "--cluster-require-full-coverage", "no") as cluster:
        states = States()
        async with connected(cluster.url(), states) as client:
            dead = cluster.servers[1]
            theirs = [account for account in ACCOUNTS if cluster.primary_of(account) is dead]
            others = [account for account in ACCOUNTS if cluster.primary_of(account) is not dead]
            dead.kill()
            await until(lambda: states.ups == [True, False], "it is told")
            took = []
            until_noticed = asyncio.get_running_loop().time() + 1.2
            while asyncio.get_running_loop().time() < until_noticed:
                assert len(await asyncio.gather(*(count(client, account) for account in others))) == len(others)
                for account in theirs:
                    before = time.monotonic()
                    with pytest.raises(StoreUnavailable):
                        await count(client, account)
                    took.append(time.monotonic() - before)
            assert median(took) < 0.1
            dead.start()
            await heals(client, theirs[0])
            await until(lambda: states.ups == [True, False, True], "it is told")


async def test_closing_ends_what_has_left(replicated: RedisCluster) -> None:
    """A request that is under way to a node that no more serves ends with the client."""
    account = ACCOUNTS[0]
    primary = replicated.primary_of(account)
    other = next(server for server in replicated.servers if server.is_primary and server is not primary)
    async with connected(replicated.url(), timeout=30) as client:
        assert isinstance(client, Cluster)
        primary.pause()
        under_way = client.run_soon(COUNT, account, [key_of(account)], [""], repeatable=False)
        await asyncio.sleep(0)
        client._adopt([Range(0, 16_383, Address("127.0.0.1", other.port))])
        assert not under_way.done()
        assert client.under_way == 1
    assert under_way.done()
    assert isinstance(under_way.exception(), LostAnswer)
