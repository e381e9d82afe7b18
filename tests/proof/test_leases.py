"""Leases over two servers, PostgreSQL and Redis: a change at one server ends what was leased at the other."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator

import pytest
from google.protobuf.duration_pb2 import Duration

from formgate import Client
from formgate.v1.accounts_pb2 import CreateAccountRequest, GetLimitsRequest
from formgate.v1.keys_pb2 import CreateKeyRequest, DisableKeyRequest, EnableKeyRequest
from formgate.v1.resources_pb2 import HOLDER_KEY, Limit
from formgate.verdict import Source
from tests.support.client import Client as Manager
from tests.support.deployment import Deployment
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer

ROUNDS = 8
TIMEOUT = 5.0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of these tests' own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def deployed(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, redis: RedisServer
) -> Iterator[Deployment]:
    """Two servers."""
    folder = tmp_path_factory.mktemp("leases")
    with Deployment(folder / "d", postgres_server, redis.url(), processes=2) as made:
        made.serve()
        made.serve()
        yield made


@pytest.fixture(scope="module")
def manager(deployed: Deployment) -> Iterator[Manager]:
    """Who changes things, at the second server."""
    manager = Manager(deployed.servers[1].address, deployed.token)
    manager(CreateAccountRequest(account_id="acme"))
    yield manager
    manager.close()


def leased(client: Client, secret: str) -> None:
    """Check until the client decides by itself."""
    until = time.monotonic() + TIMEOUT
    while client.check(secret).source is not Source.LEASE:
        assert time.monotonic() < until, "no lease"


@pytest.mark.timeout(120)
def test_a_change_at_another_server_is_told_at_once(deployed: Deployment, manager: Manager) -> None:
    """By push, from server to server and on to whoever holds a lease; and never later than `effective_time`."""
    key = manager(CreateKeyRequest(account_id="acme"))
    took = []
    with Client(deployed.servers[0].address, deployed.token, timeout=TIMEOUT) as client:
        for _ in range(ROUNDS):
            leased(client, key.secret)
            answer = manager(DisableKeyRequest(key_id=key.key.key_id))
            returned = time.time()
            while (verdict := client.check(key.secret)).allowed:
                assert verdict.source is Source.LEASE, "the service itself decided by the old state"
                assert time.time() < answer.effective_time.ToNanoseconds() / 1e9
            took.append(time.time() - returned)
            manager(EnableKeyRequest(key_id=key.key.key_id))
    assert statistics.median(took) < 0.2, took


@pytest.mark.timeout(120)
def test_a_limit_holds_over_servers_holders_and_a_lost_redis(
    deployed: Deployment, manager: Manager, redis: RedisServer
) -> None:
    """Six clients of two servers, two of which never settle, while Redis loses all it knew: never over the amount."""
    limit = Limit(name="rate", holder=HOLDER_KEY, amount=1_000, window=Duration(seconds=3_600))
    key = manager(CreateKeyRequest(account_id="acme", limits=[limit]))
    clients = [
        Client(deployed.servers[number % 2].address, deployed.token, timeout=TIMEOUT, fail="closed")
        for number in range(6)
    ]
    admitted = [0] * len(clients)
    leases = [0] * len(clients)
    end = time.monotonic() + 4

    def ask(index: int) -> None:
        while time.monotonic() < end:
            verdict = clients[index].check(key.secret)
            if verdict.allowed and not verdict.degraded:
                admitted[index] += 1
                leases[index] += verdict.source is Source.LEASE
            time.sleep(0.01)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(clients))]
    for thread in threads:
        thread.start()
    for _ in range(2):
        time.sleep(1)
        redis.do("FLUSHALL")
    for thread in threads:
        thread.join()
    for index, client in enumerate(clients):
        if index < 2:
            assert client._common.leases is not None
            client._common.leases.after_fork()
        client.close()
    assert sum(leases) > 0
    (status,) = manager(GetLimitsRequest(account_id="acme", key_id=key.key.key_id)).limits
    assert sum(admitted) <= limit.amount - status.remaining <= limit.amount
