"""A peer: what a team writes in a day, with FastAPI, asyncpg and redis-py. It is measured beside us, never used by us.

The key is looked up by SHA-256 in PostgreSQL, or kept for CACHE_SECONDS (a revoked key passes for as long); limits are
fixed windows, INCR and EXPIRE. DATABASE_URL and REDIS_URL say where; TOKEN is the calling service's.
"""

import hashlib
import hmac
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
import uvicorn
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel
from redis import asyncio as redis

CACHE_SECONDS = float(os.environ.get("CACHE_SECONDS", "0"))
TOKEN = os.environ["TOKEN"]
LISTENER = socket.create_server(("127.0.0.1", 0), backlog=1_000)

FIND = """
SELECT key_id, account_id, name, enabled, expires_at, permissions, resource, per_window, window_seconds, per_day
FROM api_keys WHERE digest = $1
"""


class Check(BaseModel):
    """What is asked."""

    key: str
    permission: str
    resource: str
    cost: int = 1


class Verdict(BaseModel):
    """What is answered."""

    allowed: bool
    reason: str
    key_id: str | None = None
    account_id: str | None = None
    name: str | None = None
    remaining: int | None = None
    remaining_today: int | None = None


class Stores:
    """The pool and the client, once they are open."""

    database: asyncpg.Pool
    counters: redis.Redis


cached: dict[str, tuple[float, asyncpg.Record]] = {}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open the stores, and say where it listens."""
    Stores.database = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=10, max_size=10)
    Stores.counters = redis.from_url(os.environ["REDIS_URL"])
    print(f"the peer is ready: http 127.0.0.1:{LISTENER.getsockname()[1]}", flush=True)
    yield


app = FastAPI(lifespan=lifespan)


async def find(key: str) -> asyncpg.Record | None:
    """Return the key's row."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    if CACHE_SECONDS and (known := cached.get(digest)) and known[0] > time.monotonic():
        return known[1]
    row = await Stores.database.fetchrow(FIND, digest)
    if CACHE_SECONDS and row:
        cached[digest] = time.monotonic() + CACHE_SECONDS, row
    return row


@app.post("/check")
async def check(query: Check, authorization: Annotated[str, Header()]) -> Verdict:
    """Decide, and count."""
    if not hmac.compare_digest(authorization, f"Bearer {TOKEN}"):
        raise HTTPException(401)
    row = await find(query.key)
    if row is None:
        return Verdict(allowed=False, reason="not found")
    if not row["enabled"] or (row["expires_at"] is not None and row["expires_at"] < time.time()):
        return Verdict(allowed=False, reason="disabled or expired")
    if query.permission not in row["permissions"] or not query.resource.startswith(row["resource"]):
        return Verdict(allowed=False, reason="not permitted")
    window, today = f"w:{row['key_id']}", f"d:{row['key_id']}:{time.strftime('%Y%m%d', time.gmtime())}"
    async with Stores.counters.pipeline(transaction=False) as pipeline:
        used, used_today = await pipeline.incrby(window, query.cost).incrby(today, query.cost).execute()
    if used == query.cost:
        await Stores.counters.expire(window, row["window_seconds"])
    if used_today == query.cost:
        await Stores.counters.expire(today, 172_800)
    remaining, remaining_today = row["per_window"] - used, row["per_day"] - used_today
    allowed = remaining >= 0 and remaining_today >= 0
    return Verdict(
        allowed=allowed,
        reason="ok" if allowed else "limited",
        key_id=row["key_id"],
        account_id=row["account_id"],
        name=row["name"],
        remaining=max(0, remaining),
        remaining_today=max(0, remaining_today),
    )


if __name__ == "__main__":
    config = uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[LISTENER])
