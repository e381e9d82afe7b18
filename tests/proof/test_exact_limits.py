"""Limits are exact: four servers, the same account and keys, and every window and day of what was admitted is counted.

An admission happened somewhere between its call and its answer. So that no slack hides an error, what is counted is the
least that any choice of those moments allows: admissions that began after an interval's start and ended before its end
lie in it for sure, and may never be more than the amount.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import grpc
import grpc.aio
import pytest

from formgate.v1 import accounts_pb2, authorization_pb2, authorization_pb2_grpc, keys_pb2
from formgate.v1 import resources_pb2 as pb
from tests.proof.history import now
from tests.support.client import Client
from tests.support.clock import noon_zone
from tests.support.deployment import Deployment
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisCluster, RedisServer
from tests.support.soak import SOAK

pytestmark = pytest.mark.timeout(3_600 if SOAK else 120)
SECONDS = 120 if SOAK else 8
WINDOW = 2.0
RATE, DAILY = 60, 10_000 if SOAK else 1_000
CALLERS = 8
"""To each server."""

POLICY = f"""
name = "exact"
description = "A limit of each kind."
prefixes = {{ LIVE = "exact_" }}

[plans.standard]
time_zone = "{noon_zone()}"
limits = [
  {{ name = "rate", holder = "KEY", amount = {RATE}, window = "{WINDOW:.0f}s" }},
  {{ name = "daily", holder = "ACCOUNT", amount = {DAILY}, calendar = "DAY" }},
]
"""


class Admitted(NamedTuple):
    """An admission of a key, and between which moments it was."""

    began: float
    ended: float
    key: int
    degraded: bool


class Callers:
    """Callers that check as fast as they can."""

    def __init__(self, addresses: Sequence[str], token: str, secrets: Sequence[str]) -> None:
        self.addresses = addresses
        self.metadata = (("authorization", f"Bearer {token}"),)
        self.secrets = secrets
        self.admitted: list[Admitted] = []
        self.reasons: Counter[str] = Counter()
        self.stopping = False

    async def call(self, channel: grpc.aio.Channel, key: int) -> None:
        """Check one key for as long as it goes."""
        stub = authorization_pb2_grpc.AuthorizationServiceStub(channel)
        request = authorization_pb2.CheckKeyRequest(key=self.secrets[key])
        while not self.stopping:
            began = now()
            try:
                verdict = await stub.CheckKey(request, metadata=self.metadata, timeout=10)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                self.reasons["undecided"] += 1
                await asyncio.sleep(0.05)
                continue
            self.reasons[authorization_pb2.Reason.Name(verdict.reason)] += 1
            if verdict.allowed:
                self.admitted.append(Admitted(began, now(), key, verdict.degraded))
            else:
                await asyncio.sleep(0.003)

    async def run(self, seconds: float, *, halfway: Sequence[asyncio.Task[None]] = ()) -> None:
        """Call for so long."""
        channels = [grpc.aio.insecure_channel(each) for each in self.addresses]
        calls = [
            asyncio.create_task(self.call(channel, number % len(self.secrets)))
            for channel in channels
            for number in range(CALLERS)
        ]
        await asyncio.wait(calls, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        self.stopping = True
        await asyncio.gather(*calls, *halfway)
        for channel in channels:
            await channel.close()


def most_in_a_window(admitted: Sequence[Admitted], window: float) -> int:
    """Return the largest number of admissions that lie in one interval of that length for sure."""
    most = 0
    by_end = sorted(admitted, key=lambda each: each.ended)
    for first in admitted:
        until = first.began + window
        most = max(most, sum(first.began <= each.began and each.ended < until for each in by_end))
    return most


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


def secrets_of(deployed: Deployment, address: str, keys: int) -> tuple[str, list[str]]:
    """Make an account with keys; returns its id and their secrets."""
    manager = Client(address, deployed.token)
    account = manager(accounts_pb2.CreateAccountRequest(policy="exact")).account.account_id
    secrets = [manager(keys_pb2.CreateKeyRequest(account_id=account)).secret for _ in range(keys)]
    manager.close()
    return account, secrets


def daily_of(deployed: Deployment, address: str, account: str) -> pb.LimitStatus:
    """Return where the account's day stands."""
    manager = Client(address, deployed.token)
    told = manager(accounts_pb2.GetLimitsRequest(account_id=account))
    manager.close()
    daily: pb.LimitStatus = told.limits[0]
    return daily


def test_four_processes_admit_exactly_what_the_limits_say(
    tmp_path: Path, postgres_server: PostgresServer, redis: RedisServer
) -> None:
    """No interval over its rate, no day over its amount; and all that a window has is used, again and again."""
    with Deployment(tmp_path / "d", postgres_server, redis.url(), policies={"exact": POLICY}) as deployed:
        servers = [deployed.serve() for _ in range(4)]
        account, secrets = secrets_of(deployed, servers[0].address, 2)
        callers = Callers([each.address for each in servers], deployed.token, secrets)
        asyncio.run(callers.run(SECONDS))
        admitted = callers.admitted
        assert not any(each.degraded for each in admitted)
        assert callers.reasons["undecided"] == 0
        for key in range(2):
            of_key = [each for each in admitted if each.key == key]
            assert most_in_a_window(of_key, WINDOW) <= RATE
            # A burst waits for a window and a sub-window: that often is the rate used up.
            assert len(of_key) >= min(DAILY // 2, RATE * int(SECONDS / (WINDOW * 61 / 60 + 0.2))), callers.reasons
        assert len(admitted) <= DAILY
        assert daily_of(deployed, servers[0].address, account).remaining == DAILY - len(admitted)


def test_a_day_is_used_up_to_the_last_unit(tmp_path: Path, postgres_server: PostgresServer, redis: RedisServer) -> None:
    """Many keys of one account, on four servers: as many as the day has are admitted, and not one more."""
    with Deployment(tmp_path / "d", postgres_server, redis.url(), policies={"exact": POLICY}) as deployed:
        servers = [deployed.serve() for _ in range(4)]
        account, secrets = secrets_of(deployed, servers[0].address, 24)
        callers = Callers([each.address for each in servers], deployed.token, secrets)
        asyncio.run(callers.run(SECONDS))
        assert (len(callers.admitted), callers.reasons["REASON_QUOTA_EXCEEDED"] > 0) == (DAILY, True), callers.reasons
        assert daily_of(deployed, servers[0].address, account).remaining == 0


def test_a_flush_in_the_middle_of_a_day_refills_nothing(
    tmp_path: Path, postgres_server: PostgresServer, redis: RedisServer
) -> None:
    """Redis loses everything, again and again, under load: of the day at most a block is lost each time."""
    block, flushes = DAILY // 100, 5
    with Deployment(tmp_path / "d", postgres_server, redis.url(), policies={"exact": POLICY}) as deployed:
        servers = [deployed.serve() for _ in range(3)]
        account, secrets = secrets_of(deployed, servers[0].address, 24)
        callers = Callers([each.address for each in servers], deployed.token, secrets)

        async def test() -> None:
            async def flush() -> None:
                for _ in range(flushes):
                    await asyncio.sleep(SECONDS / 20)
                    await asyncio.to_thread(redis.do, "FLUSHALL")

            await callers.run(SECONDS, halfway=[asyncio.create_task(flush())])

        asyncio.run(test())
        assert not any(each.degraded for each in callers.admitted)
        assert DAILY - flushes * block <= len(callers.admitted) <= DAILY, callers.reasons
        assert daily_of(deployed, servers[0].address, account).remaining == 0


def test_a_cluster_fails_over(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """A primary is killed under load. Days stay exact; what a short window may admit again is what was not replicated.

    Replication here is asynchronous, and the replica was never far behind: the most that an interval may hold is two
    amounts (docs/guarantees.md: what a failover may lose, and the setting that closes it).
    """
    with (
        RedisCluster(tmp_path / "redis", replicas=1) as cluster,
        Deployment(tmp_path / "d", postgres_server, cluster.url(), policies={"exact": POLICY}) as deployed,
    ):
        servers = [deployed.serve() for _ in range(2)]
        account, secrets = secrets_of(deployed, servers[0].address, 2)
        callers = Callers([each.address for each in servers], deployed.token, secrets)

        async def test() -> None:
            async def fail() -> None:
                await asyncio.sleep(SECONDS / 3)
                await asyncio.to_thread(cluster.primary_of(account).kill)

            await callers.run(SECONDS * 2, halfway=[asyncio.create_task(fail())])

        asyncio.run(test())
        exact = [each for each in callers.admitted if not each.degraded]
        assert len(exact) <= DAILY
        for key in range(2):
            assert most_in_a_window([each for each in exact if each.key == key], WINDOW) <= 2 * RATE
        healed = max(each.ended for each in exact)
        assert healed > max(each.ended for each in callers.admitted) - 5, "it has not healed by itself"
