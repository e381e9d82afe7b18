"""What people would write instead, over the same PostgreSQL and the same Redis, in an environment of its own."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL

from bench.asking import PERMISSION, RESOURCE
from bench.bodies import changing
from bench.deployed import Stores, say
from bench.h2load import Answered, H2load
from bench.population import DAILY, KEYS_AN_ACCOUNT
from bench.process import Process
from bench.scenarios import MANY, Scenario
from tests.support.server import clean_environment

_ROOT = Path(__file__).resolve().parent.parent
_LOCK = _ROOT / "requirements" / "peers.txt"
_VENV = _ROOT / ".cache" / "peers"

_TABLE = """
CREATE TABLE api_keys (
    digest text PRIMARY KEY, key_id text NOT NULL, account_id text NOT NULL, name text NOT NULL,
    enabled boolean NOT NULL, expires_at double precision, permissions text[] NOT NULL, resource text NOT NULL,
    per_window bigint NOT NULL, window_seconds bigint NOT NULL, per_day bigint NOT NULL
)
"""


@dataclass(frozen=True, slots=True)
class Table:
    """The peer's keys, in a database of their own."""

    database: URL
    keys: Sequence[str]
    limited: str = field(repr=False)
    """A key with few calls in a window."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The peer, running: one worker of uvicorn, with uvloop and httptools."""

    process: Process
    headers: dict[str, str]
    keys: Sequence[str]
    limited: str = field(repr=False)

    def allows(self) -> bool:
        """Charge the limited key, and tell whether it may."""
        return bool(self.ask(self.limited)["allowed"])

    def ask(self, key: str) -> dict[str, object]:
        """Return what it answers."""
        request = urllib.request.Request(_url(self.process), _body(key), self.headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            verdict: dict[str, object] = json.loads(answer.read())
        return verdict


def python() -> Path:
    """Return the Python of the peers' environment, which is made, and made again when its lock has changed."""
    made = _VENV / ".made"
    if not made.exists() or made.stat().st_mtime < _LOCK.stat().st_mtime:
        say("making the peers' environment")
        subprocess.run([_ROOT / "scripts" / "venv", sys.executable, _VENV, _LOCK], check=True)
        made.touch()
    return _VENV / "bin" / "python"


def make_table(stores: Stores, count: int, limit: int, window_seconds: int) -> Table:
    """Put ``count`` keys into a database for the peer, and one more that may ``limit`` calls in a window."""
    made = [f"sk_live_{secrets.token_urlsafe(32)}" for _ in range(count + 1)]
    rows = [_row(number, key, 1_000_000, 60) for number, key in enumerate(made)]
    rows[-1] = _row(count, made[-1], limit, window_seconds)
    return Table(asyncio.run(_write(stores, rows)), made[:-1], made[-1])


def _row(number: int, key: str, per_window: int, window_seconds: int) -> tuple[object, ...]:
    digest, account = hashlib.sha256(key.encode()).hexdigest(), f"acc_{number // KEYS_AN_ACCOUNT}"
    named = (digest, f"key_{number}", account, "Nightly export", True, None, [PERMISSION], RESOURCE)
    return (*named, per_window, window_seconds, DAILY)


async def _write(stores: Stores, rows: Sequence[tuple[object, ...]]) -> URL:
    database = await stores.postgres.make_database(migrated=False)
    connection = await stores.postgres.connect(str(database.database))
    try:
        await connection.execute(_TABLE)
        await connection.copy_records_to_table("api_keys", records=rows)
        await connection.execute("ANALYZE api_keys")
    finally:
        await connection.close()
    return database


@contextmanager
def serving(stores: Stores, table: Table, core: int, folder: Path, *, cache_seconds: int) -> Iterator[Peer]:
    """Start the peer, and have it check each key once."""
    token = secrets.token_hex(24)
    environment = clean_environment(
        {
            "DATABASE_URL": table.database.render_as_string(hide_password=False),
            "REDIS_URL": stores.redis.url(15),
            "TOKEN": token,
            "CACHE_SECONDS": str(cache_seconds),
        }
    )
    command = [str(python()), str(_ROOT / "bench" / "peers" / "fastapi_day.py")]
    with Process(command, core, logs=folder / f"peer-logs-{cache_seconds}", environment=environment) as process:
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        peer = Peer(process, headers, table.keys, table.limited)
        assert all(peer.ask(key)["allowed"] for key in table.keys)
        yield peer


def scenario(h2load: H2load, peer: Peer, name: str) -> Scenario:
    """One check a call, each of another key, over HTTP/1.1: what uvicorn speaks."""
    bodies = itertools.cycle([_body(key) for key in peer.keys])

    def send(calls: int) -> Answered:
        with changing(bodies, framed=False) as body:
            return h2load.post(_url(peer.process), body, peer.headers, MANY, calls, http1=True)

    return Scenario(name, peer.process, send, guess=1_000, fewest=10 * MANY.connections)


def _url(process: Process) -> str:
    return f"http://{process.address}/check"


def _body(key: str) -> bytes:
    return json.dumps({"key": key, "permission": PERMISSION, "resource": RESOURCE}).encode()
