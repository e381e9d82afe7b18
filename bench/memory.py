"""What a cached key weighs: the growth of a process' resident memory while its cache takes keys from a database.

python -m bench.memory DATABASE    # in a process of its own, whose memory nothing else has used and freed
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path

import psutil
from sqlalchemy import URL, select

from formgate_server.policies.policy import load
from formgate_server.storage.sql.engine import open_database
from formgate_server.storage.sql.keys import SqlKeyStore
from formgate_server.storage.sql.tables import secrets
from formgate_server.storage.wrappers import CachedKeyStore

_BEFORE = 1_000  # keys after which SQLite's pages and the code itself are in memory too


def cached_key_bytes(database: Path) -> float:
    """Return the bytes of a cached key, by all the keys of a database; a server may have it open."""
    command = [sys.executable, "-m", "bench.memory", str(database)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


async def _grow(file: str) -> float:
    database = open_database(URL.create("sqlite+aiosqlite", database=file))
    try:
        async with database.reading() as connection:
            digests = [digest for (digest,) in await connection.execute(select(secrets.c.digest))]
        store = CachedKeyStore(SqlKeyStore(database, load(None)), len(digests))
        for digest in digests[:_BEFORE]:
            await store.find([digest])
        before = _resident()
        for digest in digests[_BEFORE:]:
            await store.find([digest])
        return (_resident() - before) / (len(digests) - _BEFORE)
    finally:
        await database.close()


def _resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    print(asyncio.run(_grow(sys.argv[1])))
