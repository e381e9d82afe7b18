"""What a server makes of the Redis that it is given, when it starts."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from formgate.v1 import accounts_pb2, authorization_pb2, keys_pb2, resources_pb2
from tests.support.client import Client
from tests.support.redis import RedisServer
from tests.support.server import Server, eventually

PASSWORD = "a-password-that-nobody-may-see"


def served(folder: Path, redis_url: str) -> Server:
    """Return a server with the embedded database and counters in Redis; not started."""
    return Server(folder, environment={"FORMGATE_REDIS_URL": redis_url})


def refusal(server: Server) -> str:
    """Return what is said by a server that must refuse to start."""
    server.spawn()
    assert server.wait() == 1
    assert PASSWORD not in server.log
    return server.log


def test_a_redis_that_evicts_is_refused(tmp_path: Path) -> None:
    """It would forget counters, and so refill limits; the message says what to set."""
    with RedisServer(tmp_path / "redis", "--maxmemory-policy", "allkeys-lru") as redis:
        told = refusal(served(tmp_path / "server", redis.url()))
    assert "maxmemory-policy" in told
    assert "noeviction" in told


@pytest.mark.parametrize(
    "url",
    [f"http://u:{PASSWORD}@localhost", f"redis://u:{PASSWORD}@localhost:port", f"redis+sentinel://u:{PASSWORD}@h"],
)
def test_a_wrong_url_is_refused_and_not_shown(tmp_path: Path, url: str) -> None:
    """The message says which setting, and what is wrong with it."""
    assert "FORMGATE_REDIS_URL: " in refusal(served(tmp_path, url))


def test_a_redis_that_is_away_is_no_reason_not_to_start(tmp_path: Path) -> None:
    """Checks are decided, degraded; when it comes, they are exact, with all that was let through."""
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    redis.kill()
    with served(tmp_path / "server", redis.url()) as server:
        manager = Client(server.address, server.token)
        account = manager(accounts_pb2.CreateAccountRequest()).account.account_id
        secret = manager(keys_pb2.CreateKeyRequest(account_id=account)).secret
        check = authorization_pb2.CheckKeyRequest(key=secret)
        verdict = manager(check)
        assert (verdict.allowed, verdict.degraded) == (True, True)
        redis.start()
        eventually(lambda: not manager(check).degraded, 10, "exact verdicts")
        manager.close()
    redis.kill()


def test_a_redis_that_comes_and_evicts_is_not_used(tmp_path: Path) -> None:
    """Away at the start, it is looked at when it comes: said once, never counted in; mended, verdicts are exact."""
    redis = RedisServer(tmp_path / "redis", "--maxmemory-policy", "allkeys-lru")
    redis.start()
    redis.kill()
    with served(tmp_path / "server", redis.url()) as server, closing(Client(server.address, server.token)) as manager:
        account = manager(accounts_pb2.CreateAccountRequest()).account.account_id
        check = authorization_pb2.CheckKeyRequest(key=manager(keys_pb2.CreateKeyRequest(account_id=account)).secret)
        redis.start()
        eventually(lambda: "redis is not used" in server.log, 10, "it is said")
        until = time.monotonic() + 2.5  # some looks more
        while time.monotonic() < until:
            assert manager(check).degraded
            time.sleep(0.1)
        assert redis.do("DBSIZE") == 0
        (line,) = (each for each in server.log.splitlines() if "redis is not used" in each)
        assert "noeviction" in line
        redis.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
        eventually(lambda: not manager(check).degraded, 10, "exact verdicts")
    redis.kill()


def test_counters_in_redis_outlive_a_server(tmp_path: Path) -> None:
    """A folder's server may keep its counters in Redis: what was used before a restart is used after it."""
    hourly = resources_pb2.Limit(
        name="rate", holder=resources_pb2.HOLDER_KEY, amount=10, window=Duration(seconds=3_600)
    )
    remaining = []
    with RedisServer(tmp_path / "redis") as redis:
        server = served(tmp_path / "server", redis.url())
        with server, closing(Client(server.address, server.token)) as manager:
            manager(accounts_pb2.CreateAccountRequest(account_id="acme", limits=[hourly]))
            secret = manager(keys_pb2.CreateKeyRequest(account_id="acme")).secret
            remaining.append(manager(authorization_pb2.CheckKeyRequest(key=secret)).limits[0].remaining)
        with server, closing(Client(server.address, server.token)) as manager:
            remaining.append(manager(authorization_pb2.CheckKeyRequest(key=secret)).limits[0].remaining)
    assert remaining == [9, 8]
