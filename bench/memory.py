"""What a cached key weighs: the growth of a process' resident memory while its cache takes keys.

python -m bench.memory KEYS    # in a process of its own, whose memory nothing else has used and freed
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import psutil

from bench.population import account, key
from formgate_server.core.compile_key import compile_key
from formgate_server.core.secrets import new_secret
from formgate_server.core.verdict import KeyRecord
from formgate_server.policies.policy import load
from formgate_server.storage.sql.rows import account_of, account_values, key_of, key_values
from formgate_server.storage.wrappers import CachedKeyStore


def cached_key_bytes(count: int) -> float:
    """Return the bytes of a cached key, from the growth over ``count`` keys."""
    command = [sys.executable, "-m", "bench.memory", str(count)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


class _Rows:
    """Reads a new key each time, as from a database: from text, so that no two keys share a string."""

    def __init__(self) -> None:
        self._policy = load(None).by_name["default"]
        self._count = 0

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord:  # noqa: ARG002 - the port's
        row = json.dumps([key_values(key(self._count, new_secret("fg_live_"))), account_values(account(self._count))])
        self._count += 1
        key_row, account_row = json.loads(row)
        return compile_key(key_of(list(key_row.values())), account_of(list(account_row.values())), self._policy)


async def _grow(count: int) -> float:
    store = CachedKeyStore(_Rows(), count * 2)
    await store.find([bytes(32)])
    digests = [[hashlib.sha256(str(number).encode()).digest()] for number in range(count)]
    gc.collect()
    before = psutil.Process(os.getpid()).memory_info().rss
    for number in range(count):
        await store.find(digests[number])
    gc.collect()
    return (psutil.Process(os.getpid()).memory_info().rss - before) / count


if __name__ == "__main__":
    print(asyncio.run(_grow(int(sys.argv[1]))))
