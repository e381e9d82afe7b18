"""The hot path's client behind real sentinels, and answers that count only when replicas have them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from formgate_server.storage.redis.client import RedisClient, connect
from formgate_server.storage.redis.errors import LostAnswer, StoreUnavailable
from formgate_server.storage.redis.preflight import preflight
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer, Sentinels
from tests.support.redis_client import COUNT, TIMEOUT, States, Tally, connected, count, heals, until

KEY = "fg:{a}:n"


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[RedisServer]:
    """A primary."""
    with RedisServer(tmp_path / "primary") as server:
        yield server


@pytest.fixture
def replica(primary: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """Its replica."""
    with RedisServer(tmp_path / "replica", replica_of=primary) as server:
        primary.await_replica()
        yield server


@pytest.fixture
def sentinels(primary: RedisServer, replica: RedisServer, tmp_path: Path) -> Iterator[Sentinels]:
    """Three sentinels that watch them."""
    with Sentinels(tmp_path / "sentinels", primary) as sentinels:
        yield sentinels


async def counts_at(server: RedisServer, client: RedisClient, seconds: float = 5) -> int:
    """Count until it is this server that is counted at, and return its count; AssertionError after ``seconds``."""
    deadline = time.monotonic() + seconds
    before = int(server.do("GET", KEY) or 0)
    while True:
        await heals(client)
        if (after := int(server.do("GET", KEY) or 0)) > before:
            return after
        assert time.monotonic() < deadline, f"nobody goes to the new primary within {seconds:g} s"
        await asyncio.sleep(0.02)


async def test_a_primary_that_dies_is_replaced(
    sentinels: Sentinels, primary: RedisServer, replica: RedisServer
) -> None:
    """Killed: requests fail at once until the sentinels have made the replica the primary; then they go there."""
    states = States()
    async with connected(sentinels.url(3), states) as client:
        await count(client)
        await asyncio.to_thread(primary.await_replica)
        died = time.monotonic()
        primary.kill()
        await until(lambda: states.ups == [True, False], "it is told")
        with pytest.raises(StoreUnavailable):
            await count(client)
        await heals(client)
        assert time.monotonic() - died < 10
        assert replica.is_primary
        assert int(replica.client(3).get(KEY) or 0) >= 2
        assert states.ups == [True, False, True]


async def test_a_failover_that_is_asked_for(sentinels: Sentinels, primary: RedisServer, replica: RedisServer) -> None:
    """Another primary takes over while the old one still takes writes: within seconds none go there any more."""
    async with connected(sentinels.url()) as client:
        await count(client)
        sentinels.servers[0].do("SENTINEL", "FAILOVER", sentinels.service)
        await until(lambda: replica.is_primary, "the replica has taken over", 15)
        before = await counts_at(replica, client)
        for _ in range(20):
            await count(client)
        assert int(replica.do("GET", KEY)) == before + 20


async def test_a_primary_that_was_replaced_unawares(
    sentinels: Sentinels, primary: RedisServer, replica: RedisServer
) -> None:
    """Frozen, replaced, thawed: whatever it still believes, within seconds requests go to the new primary."""
    async with connected(sentinels.url()) as client:
        await count(client)
        primary.pause()
        await until(lambda: replica.is_primary, "the replica has taken over", 15)
        primary.resume()
        before = await counts_at(replica, client)
        for _ in range(20):
            await count(client)
        assert int(replica.do("GET", KEY)) == before + 20


async def test_some_sentinels_suffice(sentinels: Sentinels, primary: RedisServer) -> None:
    """A dead sentinel and a frozen one do not keep anybody from finding the primary."""
    sentinels.servers[0].kill()
    sentinels.servers[1].pause()
    async with connected(sentinels.url()) as client:
        assert (await count(client))[0] == 1
    (facts,) = await preflight(sentinels.url())
    assert facts.address.port == primary.port
    assert facts.replicas == 1


async def test_no_sentinel_knows_the_service(primary: RedisServer, tmp_path: Path) -> None:
    """A service that is not watched is a store that is down, and the state names it."""
    with Sentinels(tmp_path / "sentinels", primary, number=1) as sentinels:
        states = States()
        client = connect(sentinels.url().replace(f"/{sentinels.service}", "/nobody"), timeout=TIMEOUT, on_state=states)
        try:
            with pytest.raises(StoreUnavailable, match="no sentinel knows the primary of nobody"):
                await count(client)
            assert states.ups == [False]
        finally:
            await client.close()


# Answers that wait for replicas.


async def test_an_answer_counts_when_a_replica_has_it(primary: RedisServer, tmp_path: Path) -> None:
    """With a replica to wait for, one that lags, whatever was answered is there on the replica at that moment."""
    with (
        Proxy(primary.port) as lag,
        RedisServer(tmp_path / "replica", replica_of=lag) as replica,
    ):
        async with connected(primary.url(), wait_replicas=1, timeout=2) as client:
            await count(client)
            lag.delay = 0.03
            for _ in range(5):
                under_way = [client.run_soon(COUNT, "a", [KEY], [each], repeatable=False) for each in range(100)]
                first = await under_way[0]
                assert int(replica.do("GET", KEY)) >= first[0]
                assert [int((await each)[1]) for each in under_way] == list(range(100))
            assert await client.command("PING") == b"PONG"


async def test_an_answer_does_not_count_without_a_replica(primary: RedisServer, replica: RedisServer) -> None:
    """With the replica frozen no answer counts, and none is later than its deadline; with it back, all is well."""
    states = States()
    async with connected(primary.url(), states, wait_replicas=1, timeout=1.0) as client:
        await heals(client)  # it may be busy with the first synchronisation still
        replica.pause()
        before = time.monotonic()
        under_way = [client.run_soon(COUNT, "a", [KEY], [each], repeatable=False) for each in range(20)]
        await asyncio.sleep(0.02)
        behind = [client.run_soon(COUNT, "a", [KEY], [each], repeatable=False) for each in range(20)]
        first = Tally(await asyncio.gather(*under_way, return_exceptions=True))
        assert {error.detail for error in first.lost} == {"not replicated"}
        second = Tally(await asyncio.gather(*behind, return_exceptions=True))
        assert (len(first.lost), len(second.answered)) == (20, 0)
        assert time.monotonic() - before < 2.0
        replica.resume()
        await heals(client)
        assert states.ups == [True]


async def test_a_request_that_is_not_replicated_is_not_repeated(primary: RedisServer) -> None:
    """Without any replica each request is run once, though it might be repeated, and is told as perhaps run."""
    primary.do("SCRIPT", "LOAD", COUNT.source)
    async with connected(primary.url(), wait_replicas=1) as client:
        with pytest.raises(LostAnswer, match="not replicated"):
            await count(client, repeatable=True)
        assert int(primary.do("GET", KEY)) == 1
