"""Formgate servers over a real PostgreSQL and a real Redis, as in production; the stores on the load's core."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.asking import Client
from bench.population import Population, populate
from bench.process import Process
from bench.world import COMMAND, Served
from formgate_server.core.secrets import Peppers
from formgate_server.storage.data_folder import read_keys
from tests.support.deployment import Deployment
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.server import clean_environment

# Slow is not away: on a busy machine a check that waits for Redis' turn on its core would go on without it.
_PATIENCE = {"FORMGATE_REDIS_TIMEOUT": "5"}
_LARGE = ("shared_buffers=256MB", "max_wal_size=4GB")


class Script(NamedTuple):
    """What Redis says of scripts: how many it ran, and for how many microseconds of the clock."""

    calls: int
    us: int


@dataclass(frozen=True, slots=True)
class Stores:
    """Both, running. They have this process' core."""

    postgres: PostgresServer
    redis: RedisServer

    @property
    def versions(self) -> dict[str, str]:
        """What they call themselves."""
        with self.redis.client() as client:
            redis = client.info("server")["redis_version"]
        return {"Redis": redis, "PostgreSQL": asyncio.run(self._postgres_version())}

    async def _postgres_version(self) -> str:
        connection = await self.postgres.connect()
        try:
            return str(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close()

    def redis_seconds(self) -> float:
        """Return the CPU time of Redis until now, user and system, all its threads: to the nanosecond."""
        threads = Path(f"/proc/{self.redis.process.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    def script(self) -> Script:
        """Return what Redis counts of EVALSHA."""
        with self.redis.client() as client:
            told = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0, "usec": 0})
        return Script(int(told["calls"]), int(told["usec"]))


class Crowd(NamedTuple):
    """How many keys there are, and of how many the secrets are known; each ``hot``-th of these is in use."""

    keys: int
    known: int
    hot: int = 1


@dataclass(frozen=True, slots=True)
class Deployed:
    """A database with keys in it, and how servers are started over it."""

    deployment: Deployment
    folder: Path
    population: Population
    crowd: Crowd
    loaded_seconds: float
    """How long it took to put the keys in."""

    @property
    def hot(self) -> Sequence[str]:
        """The secrets that are in use: their keys cached, counted and reserved ahead."""
        return self.population.secrets[:: self.crowd.hot]

    @property
    def cold(self) -> Sequence[str]:
        """The secret that follows each of these, and was never shown; where all are in use there is none."""
        return self.population.secrets[1 :: self.crowd.hot] if self.crowd.hot > 1 else ()

    @contextmanager
    def serve(self, *cores: int, workers: int = 1) -> Iterator[tuple[Process, Client]]:
        """Start a server on some cores. AssertionError where it has ever gone on without a store."""
        command = [str(COMMAND), "serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        environment = clean_environment({**self.deployment.environment(), **_PATIENCE})
        logs = self.folder / f"logs-{time.monotonic_ns()}"
        command += ["--workers", str(workers)] if workers > 1 else []
        with (
            Process(command, *cores, logs=logs, environment=environment) as process,
            Client(process.address, self.deployment.token) as client,
        ):
            yield process, client
            told = [json.loads(line) for line in logs.read_text().splitlines()]
            degraded = [each for each in told if each["event"].startswith("degraded") or each.get("degraded")]
            assert not degraded, degraded

    @contextmanager
    def served(self, *cores: int, workers: int = 1) -> Iterator[Served]:
        """Start a server, and have it check each hot key once."""
        with self.serve(*cores, workers=workers) as (process, client):
            idle = process.busy()
            client.check_all(self.hot)
            first_us = (process.busy() - idle).own / len(self.hot) * 1e6
            headers = {"authorization": f"Bearer {self.deployment.token}"}
            key_ids = self.population.key_ids[:: self.crowd.hot]
            yield Served(process, client, headers, self.hot, key_ids, len(self.hot), first_us)


@contextmanager
def stores(folder: Path) -> Iterator[Stores]:
    """Start both, on this process' core. What PostgreSQL acknowledges is written, but not synced to the disk."""
    with PostgresServer(*_LARGE, durable=True) as postgres, RedisServer(folder / "redis") as redis:
        yield Stores(postgres, redis)


def deploy(both: Stores, folder: Path, number: int, crowd: Crowd) -> Deployed:
    """Make a database, and have the ``number``-th of Redis for it; nothing is served yet."""
    deployment = Deployment(folder, both.postgres, both.redis.url(number))
    peppers = Peppers(read_keys(folder / "pepper"))
    began = time.monotonic()
    population = asyncio.run(populate(deployment.database, peppers, crowd.keys, known=crowd.known))
    return Deployed(deployment, folder, population, crowd, time.monotonic() - began)


def say(what: str) -> None:
    """Tell how far it is, apart from the result."""
    print(f"bench: {what} …", file=sys.stderr, flush=True)
