"""What a Redis must be before anything is built on it, and what to do where it is not."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import hiredis

from formgate_server.storage.redis.cluster import find_primaries
from formgate_server.storage.redis.connection import Connection
from formgate_server.storage.redis.errors import StoreUnavailable
from formgate_server.storage.redis.meeting import NotReadyError, Options, meet_primary
from formgate_server.storage.redis.plan import PREFIX, account_key
from formgate_server.storage.redis.sentinel import find_primary
from formgate_server.storage.redis.url import Address, parse_url

_OLDEST = (6, 2)
_OURS = f"{PREFIX}:{{"
"""How our keys begin."""
_REPLICATION = "return redis.call('INFO', 'replication')"


@dataclass(frozen=True)
class Facts:
    """What a primary says of itself. None: it does not let us know."""

    address: Address
    version: str | None
    eviction: str | None
    """``maxmemory-policy``."""
    replicas: int | None
    replid_in_scripts: bool
    """Whether a script can read ``master_replid``, so that it sees when another primary has taken over."""
    round_trip: float = 0.0
    """How many seconds a question took."""
    clock_skew: float | None = None
    """By how many seconds its clock, by which limits count, is before ours."""
    memory_used: float | None = None
    """Which share of ``maxmemory``; None: it has no such limit."""
    has_our_keys: bool = True
    """Whether this user may use keys that begin as ours do."""
    bits: str = ""
    """Of its numbers, as it calls them; empty: it does not let us know."""

    @property
    def problems(self) -> Iterator[str]:
        """For each thing that keeps Formgate from running on it: what is so, and what to do."""
        if self.version is None:
            yield f"{self.address} does not say its version: allow this user INFO (ACL: +info)"
        elif tuple(int(number) for number in re.findall(r"\d+", self.version)[:2]) < _OLDEST:
            yield f"{self.address} is Redis {self.version}: use Redis 6.2 or newer, or Valkey"
        if self.bits == "32":
            yield f"{self.address} is built for 32 bits, which counts do not fit: use one for 64"
        if not self.has_our_keys:
            yield f"{self.address} does not let this user have Formgate's keys: allow it those (ACL: ~{_OURS}*)"
        if self.eviction is None:
            yield (
                f"{self.address} does not say whether it evicts: allow this user `INFO memory` (ACL: +info) or "
                "`CONFIG GET maxmemory-policy` (ACL: +config|get)"
            )
        elif self.eviction != "noeviction":
            yield (
                f"{self.address} may evict counters (maxmemory-policy {self.eviction}), which would refill limits: "
                "set maxmemory-policy to noeviction, and give Formgate a Redis of its own"
            )


async def preflight(url: str, *, timeout: float = 2.0) -> list[Facts]:  # noqa: ASYNC109 - of each step
    """Return the facts of every primary. Raises ValueError for the URL, StoreUnavailable where one does not answer."""
    options = Options(parse_url(url), timeout)
    try:
        return [await _facts(address, options) for address in await primaries(options)]
    except (OSError, NotReadyError) as error:
        raise StoreUnavailable(str(error) or "no answer in time") from error


async def primaries(options: Options) -> list[Address]:
    """Return where the primaries are. Raises OSError or NotReadyError."""
    target = options.target
    if target.kind == "cluster":
        ranges = await find_primaries(target.addresses, options)
        return sorted({each.primary for each in ranges})
    if target.kind == "sentinel":
        return [await find_primary(options)]
    return list(target.addresses)


async def _facts(address: Address, options: Options) -> Facts:
    async with asyncio.timeout(options.timeout):
        connection = await meet_primary(address, options, ())
    try:
        server = await _info(connection, "INFO", "server")
        memory = await _info(connection, "INFO", "memory")
        replication = await _info(connection, "INFO", "replication")
        in_script = await _info(connection, "EVAL", _REPLICATION, "0")
        of_ours = await connection.ask("EXISTS", account_key(PREFIX, ""))
        eviction = memory.get("maxmemory_policy") or await _configured_eviction(connection)
        before = time.time()
        now = await connection.ask("TIME")
        after = time.time()
    finally:
        connection.abort("done")
    replicas = replication.get("connected_slaves")
    return Facts(
        address=address,
        version=server.get("redis_version"),
        eviction=eviction,
        replicas=None if replicas is None else int(replicas),
        replid_in_scripts="master_replid" in in_script,
        round_trip=after - before,
        clock_skew=_seconds(now) - (before + after) / 2 if isinstance(now, list) else None,
        memory_used=_share(memory.get("used_memory", ""), memory.get("maxmemory", "")),
        has_our_keys=not (isinstance(of_ours, hiredis.ReplyError) and re.match("NOPERM .* access ", str(of_ours))),
        bits=server.get("arch_bits", ""),
    )


async def _info(connection: Connection, *command: str) -> dict[str, str]:
    reply = await connection.ask(*command)
    if not isinstance(reply, bytes):
        return {}
    lines = reply.decode(errors="replace").splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


def _seconds(now: list[bytes]) -> float:
    """Return what TIME says: seconds since 1970, and microseconds."""
    return int(now[0]) + int(now[1]) / 1_000_000


def _share(part: str, whole: str) -> float | None:
    return int(part) / int(whole) if part.isdigit() and whole.isdigit() and int(whole) else None


async def _configured_eviction(connection: Connection) -> str | None:
    reply = await connection.ask("CONFIG", "GET", "maxmemory-policy")
    if isinstance(reply, hiredis.ReplyError) or not reply:
        return None
    return str(reply[1].decode())
