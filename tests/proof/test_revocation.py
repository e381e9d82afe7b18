"""Revocation is immediate: two servers, many callers, changes at random, and a history of all that was said.

No check that started after a change had returned decides by the state before it, whatever fails meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from redis import RedisError

from formgate.v1 import accounts_pb2, authorization_pb2, keys_pb2
from formgate.v1.authorization_pb2 import Reason
from formgate.v1.resources_pb2 import KEY_STATE_REVOKED, ROLE_MEMBER
from tests.proof.traffic import HERE, POLICY, Traffic
from tests.support.client import Client
from tests.support.deployment import Deployment
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer
from tests.support.server import Server, eventually
from tests.support.soak import SOAK

pytestmark = pytest.mark.timeout(3_600 if SOAK else 120)
CHECKS = 100_000 if SOAK else 3_000
CHECKERS, MUTATORS = 16, 6
STALENESS = 3.0


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


@asynccontextmanager
async def traffic(addresses: list[str], token: str) -> AsyncIterator[Traffic]:
    """Callers, until so many checks were decided; then the history is looked at."""
    made = Traffic(addresses, token, seed=20_261_128)
    callers = [asyncio.create_task(made.mutator()) for _ in range(MUTATORS)]
    callers += [asyncio.create_task(made.checker()) for _ in range(CHECKERS)]
    try:
        yield made
        await enough(made, CHECKS, callers)
        made.stopping = True
        await asyncio.gather(*callers)
    finally:
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await made.close()
    history = made.history
    assert history.violations() == []
    assert made.changes > len(history.seen) / 1_000, "hardly anything changed"
    assert history.told_apart > len(history.seen) / 3, "most checks could have said anything"
    assert {seen.reason for seen in history.seen} >= {1, 6, 7}, "too few kinds of verdicts"
    assert sum(seen.reason == 1 for seen in history.seen) > len(history.seen) / 20, "hardly anything was allowed"


async def enough(made: Traffic, checks: int, callers: list[asyncio.Task[None]]) -> None:
    """Wait until so many checks were decided; a caller that broke off breaks the test off."""
    waiting = asyncio.create_task(made.seen(checks))
    done, _ = await asyncio.wait([waiting, *callers], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for each in done:
        await each


async def decided(made: Traffic, share: float) -> None:
    """Wait until that share of the checks was decided."""
    await made.seen(round(share * CHECKS))


def deployment(folder: Path, postgres: PostgresServer, redis_url: str, **settings: object) -> Deployment:
    """Return what all these tests run on."""
    usual = {"max_staleness": STALENESS, "processes": 2, "log_level": "info"}
    # Checks of keys that were deleted are no flood here.
    usual |= {"invalid_attempts_per_minute": 0, "unknown_keys_per_second": 100_000}
    return Deployment(folder, postgres, redis_url, policies={"proof": POLICY}, **{**usual, **settings})


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run the callers in a loop of their own."""
    asyncio.run(test())  # type: ignore[arg-type]


def test_while_all_is_well(tmp_path: Path, postgres_server: PostgresServer, redis: RedisServer) -> None:
    """Nobody sees an old state, and every check has a verdict."""
    with deployment(tmp_path / "d", postgres_server, redis.url()) as deployed:
        servers = [deployed.serve(), deployed.serve()]

        async def test() -> None:
            async with traffic([each.address for each in servers], deployed.token) as made:
                pass
            assert made.history.undecided == 0
            assert made.later == 0
            assert not any(seen.degraded for seen in made.history.seen)

        run(test)


def test_redis_restarted_empty(tmp_path: Path, postgres_server: PostgresServer, redis: RedisServer) -> None:
    """Again and again, flushed and killed: a seed from before a change never comes back.

    One server is far from Redis: what it seeds arrives a while after it was read, and changes come in between.
    """
    with Proxy(redis.port) as far, deployment(tmp_path / "d", postgres_server, redis.url()) as deployed:
        far.delay = 0.01
        servers = [deployed.serve(), deployed.serve(redis=redis.url().replace(str(redis.port), str(far.port)))]

        async def test() -> None:
            async with traffic([each.address for each in servers], deployed.token) as made:
                flushing = asyncio.create_task(flush(redis, made.random))
                for step in range(1, 4):
                    await decided(made, step / 4)
                    await asyncio.to_thread(redis.restart)
                assert not flushing.done()
                flushing.cancel()

        run(test)


async def flush(redis: RedisServer, random: Random) -> None:
    """Empty a Redis for as long as it goes, many times a second; at length some times: each costs a read of it all."""
    longest = 1.0 if SOAK else 0.1
    while True:
        await asyncio.sleep(random.uniform(0.01, longest))
        with contextlib.suppress(RedisError):  # it is just being restarted
            await asyncio.to_thread(redis.do, "FLUSHALL")


def test_a_publisher_killed(tmp_path: Path, postgres_server: PostgresServer, redis: RedisServer) -> None:
    """Killed at any moment, between commit and publication too: whoever polls next publishes what it had committed."""
    with deployment(tmp_path / "d", postgres_server, redis.url()) as deployed:
        servers = [deployed.serve(), deployed.serve()]

        async def test() -> None:
            async with traffic([each.address for each in servers], deployed.token) as made:
                for step in range(1, 6):
                    await decided(made, step / 8)
                    victim = servers[step % 2]
                    victim.kill()
                    victim.spawn()  # here: a process ends with the thread that started it
                    await asyncio.to_thread(victim.wait_until_ready)
                    made.readdress(step % 2, victim.address)

        run(test)


class Quiet:
    """A key that nobody but its test has to do with: what is known of it nobody else renews."""

    def __init__(self, deployed: Deployment, servers: Sequence[Server]) -> None:
        self.managers = [Client(each.address, deployed.token) for each in servers]
        first = self.managers[0]
        account_id = first(accounts_pb2.CreateAccountRequest(policy="proof")).account.account_id
        first(
            accounts_pb2.SetMemberRequest(
                account_id=account_id, member_id="ann", role=ROLE_MEMBER, permissions=["forms.view"]
            )
        )
        self.key = first(keys_pb2.CreateKeyRequest(account_id=account_id, created_by="ann"))
        assert {self.reason(server) for server in range(len(servers))} == {Reason.REASON_OK}

    def check(self, server: int) -> authorization_pb2.CheckKeyResponse:
        """Check it there."""
        check = authorization_pb2.CheckKeyRequest(key=self.key.secret, source_ip=HERE)
        verdict: authorization_pb2.CheckKeyResponse = self.managers[server](check)
        return verdict

    def reason(self, server: int) -> Reason.ValueType:
        """Check it there, and say why."""
        return self.check(server).reason

    def decides(self, server: int, reason: Reason.ValueType) -> bool:
        """Tell whether a check of it is decided there, for this reason."""
        told = self.managers[server].outcome(authorization_pb2.CheckKeyRequest(key=self.key.secret, source_ip=HERE))
        return isinstance(told, authorization_pb2.CheckKeyResponse) and told.reason == reason

    def close(self) -> None:
        """End the connections."""
        for manager in self.managers:
            manager.close()


def test_what_a_killed_publisher_has_committed_is_published_by_others(
    tmp_path: Path, postgres_server: PostgresServer, redis: RedisServer
) -> None:
    """Killed between commit and publication, with nobody to repeat the call: the others know of it a poll later."""
    with (
        Proxy(redis.port) as far,
        deployment(tmp_path / "d", postgres_server, redis.url(), redis_timeout=10) as deployed,
    ):
        through = redis.url().replace(str(redis.port), str(far.port))
        servers = [deployed.serve(), deployed.serve(redis=through)]
        quiet = Quiet(deployed, servers)
        near, publisher = quiet.managers
        revoke = keys_pb2.RevokeKeyRequest(key_id=quiet.key.key.key_id)
        far.stall()

        def call() -> None:
            with contextlib.suppress(Exception):  # its server ends under it
                publisher(revoke)

        revoking = threading.Thread(target=call)
        revoking.start()
        committed = keys_pb2.GetKeyRequest(key_id=quiet.key.key.key_id)
        eventually(lambda: near(committed).key.state == KEY_STATE_REVOKED, 5, "it is committed")
        servers[1].kill()
        revoking.join()
        eventually(lambda: quiet.reason(0) == Reason.REASON_KEY_REVOKED, 5, "it is published")
        quiet.close()


def test_a_quiet_key_after_a_failover(tmp_path: Path, postgres_server: PostgresServer, redis: RedisServer) -> None:
    """Revoked while the replica was behind, checked nowhere until that one took over, with nobody to publish it again.

    The process that is left does not reach the database: it may not decide, but never by the replica's old epoch.
    """
    with (
        Proxy(redis.port) as between,
        RedisServer(tmp_path / "replica", replica_of=between) as replica,
        Proxy(redis.port) as proxy,
        Proxy(postgres_server.port) as to_database,
        deployment(tmp_path / "d", postgres_server, redis.url().replace(str(redis.port), str(proxy.port))) as deployed,
    ):
        servers = [deployed.serve(), deployed.serve(database=deployed.database_by(to_database.port))]
        quiet = Quiet(deployed, servers)
        time.sleep(1.0)  # two polls: what made the account is published
        redis.await_replica()
        between.stall()  # from here on it is behind, and what was sent never arrives
        quiet.managers[0](keys_pb2.RevokeKeyRequest(key_id=quiet.key.key.key_id))
        time.sleep(1.0)  # two polls more: both know of it, and have told the old Redis
        servers[0].kill()
        to_database.refuse()
        redis.kill()
        replica.do("REPLICAOF", "NO", "ONE")
        proxy.go_to(replica.port)
        check = authorization_pb2.CheckKeyRequest(key=quiet.key.secret, source_ip=HERE)
        until = time.monotonic() + 3  # it finds the replica within one
        while time.monotonic() < until:
            told = quiet.managers[1].outcome(check)
            assert not (isinstance(told, authorization_pb2.CheckKeyResponse) and told.allowed), told
            time.sleep(0.02)
        to_database.pass_on()
        eventually(lambda: quiet.decides(1, Reason.REASON_KEY_REVOKED), 10, "it is decided again")
        quiet.close()


@pytest.mark.parametrize("fault", ["refuse", "stall", "swallow_answers"])
def test_one_process_cut_off_from_redis(
    tmp_path: Path, postgres_server: PostgresServer, redis: RedisServer, fault: str
) -> None:
    """It asks the database on every check; what it changes is in effect for all when its answer says so."""
    with Proxy(redis.port) as proxy, deployment(tmp_path / "d", postgres_server, redis.url()) as deployed:
        through = redis.url().replace(str(redis.port), str(proxy.port))
        servers = [deployed.serve(), deployed.serve(redis=through)]

        async def test() -> None:
            async with traffic([each.address for each in servers], deployed.token) as made:
                for step in range(1, 4):
                    await decided(made, step / 5)
                    getattr(proxy, fault)()
                    await decided(made, step / 5 + 0.1)
                    proxy.pass_on()
            assert made.later > 0
            assert any(seen.degraded for seen in made.history.seen)

        run(test)


def test_a_failover_to_a_replica_that_is_behind(
    tmp_path: Path, postgres_server: PostgresServer, redis: RedisServer
) -> None:
    """What the replaced primary wrote counts as lost: its epochs are read from the database."""
    with (
        Proxy(redis.port) as between,
        RedisServer(tmp_path / "replica", replica_of=between) as replica,
        Proxy(redis.port) as proxy,
        deployment(tmp_path / "d", postgres_server, redis.url().replace(str(redis.port), str(proxy.port))) as deployed,
    ):
        servers = [deployed.serve(), deployed.serve()]

        async def test() -> None:
            async with traffic([each.address for each in servers], deployed.token) as made:
                await decided(made, 0.3)
                redis.await_replica()
                between.stall()  # from here on it is behind, and what was sent never arrives
                await decided(made, 0.5)
                redis.kill()
                replica.do("REPLICAOF", "NO", "ONE")
                proxy.go_to(replica.port)
            assert replica.do("DBSIZE") > 0

        run(test)
