"""A Formgate server with keys in it, as it runs in production: the installed command, on a core of its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.asking import Client
from bench.population import DAILY, Population, populate
from bench.process import Process
from formgate_server.core.secrets import Peppers
from formgate_server.storage.data_folder import DataFolder
from formgate_server.storage.sql.migrate import upgrade

COMMAND = Path(sys.executable).with_name("formgate")


@dataclass(slots=True)
class Served:
    """A server and its keys, each checked once: cached, counted and reserved ahead, as after a while of service."""

    process: Process
    client: Client
    headers: dict[str, str]
    secrets: Sequence[str]
    key_ids: Sequence[str]
    expected: int
    """How many units were asked for, the first check of each key included."""
    first_us: float
    """Microseconds of CPU for the first check of a key: it is read, and its counters' marks are written."""

    def answer_bytes(self) -> int:
        """Return how many bytes an answer has; that is one check more."""
        self.expected += 1
        return self.client.check(self.secrets[0]).ByteSize()

    def charged(self) -> list[int]:
        """Return how many units each key was charged, as its own daily counter says."""
        answers = self.client.check_all(self.secrets, cost=0)
        remaining = [{limit.name: limit.remaining for limit in answer.limits}["daily"] for answer in answers]
        return [DAILY - one for one in remaining]

    def verify(self) -> str:
        """Compare what was asked for with what was charged, and say so. AssertionError where a check was not decided.

        Up to 1 in 1,000 may be missing: two keys mixed by the generator (see ``bodies``).
        """
        charged = self.charged()
        decided = sum(charged)
        assert self.expected * 0.999 <= decided <= self.expected, f"{self.expected} checks asked for, {decided} charged"
        loaded = sum(1 for one in charged if one > 1)
        return (
            f"{len(charged):,} keys, {loaded:,} under load: {decided:,} of {self.expected:,} checks on their counters"
        )


@contextmanager
def served(folder: Path, core: int, keys: int) -> Iterator[Served]:
    """Serve ``keys`` keys from an empty folder."""
    folder.mkdir()
    data, logs = folder / "data", folder / "logs"
    population = _populated(data, keys)
    command = [str(COMMAND), "serve", "--data", str(data), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with Process(command, core, logs=logs) as process:
        token = (data / "manager.token").read_text().strip()
        with Client(process.address, token) as client:
            idle = process.busy()
            client.check_all(population.secrets)
            first_us = (process.busy() - idle).own / keys * 1e6
            headers = {"authorization": f"Bearer {token}"}
            yield Served(process, client, headers, population.secrets, population.key_ids, keys, first_us)


def _populated(data: Path, keys: int) -> Population:
    """Make a data folder as the server would, with keys in its database."""
    with closing(DataFolder(data)) as folder:
        peppers = Peppers(folder.peppers())
        database = folder.database_url()
        asyncio.run(upgrade(database))
        return asyncio.run(populate(database, peppers, keys))
