"""The database and Redis: whether they answer, what they are, and whether they fit to the files here."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

from sqlalchemy import URL

from formgate_server.core.errors import UnavailableError
from formgate_server.core.policy import Policies
from formgate_server.core.secrets import Peppers
from formgate_server.doctor.findings import Finding, clock, fail, ok, warn
from formgate_server.settings import Settings, is_loopback
from formgate_server.storage.data_folder import DataFolderError, read_keys
from formgate_server.storage.redis import preflight as redis
from formgate_server.storage.redis.url import parse_url
from formgate_server.storage.sealer import AesSealer
from formgate_server.storage.sql import migrate
from formgate_server.storage.sql import preflight as sql
from formgate_server.storage.sql.engine import Database, open_database
from formgate_server.storage.sql.fingerprints import PEPPER, SEALING_KEY, Fingerprints
from formgate_server.storage.sql.parts import UnfitDatabaseError
from formgate_server.storage.sql.postgres import SMALLEST_POOL

_MUCH_MEMORY = 0.8
_DATABASE, _MIGRATIONS, _REDIS = "database", "migrations", "redis"


async def database(given: Settings, policies: Policies | None) -> AsyncIterator[Finding]:
    """Look at the database, and at what is in it."""
    file = given.data.absolute() / "formgate.db"
    if given.database_url is None and not file.exists():
        yield ok(_DATABASE, f"the first start makes {file}")
        return
    try:
        if given.database_url is None:
            opened = open_database(URL.create("sqlite+aiosqlite", database=str(file)), read_only=True)
        else:
            opened = open_database(given.database_url.get_secret_value(), pool=SMALLEST_POOL)
    except UnfitDatabaseError as error:
        yield fail(_DATABASE, f"FORMGATE_DATABASE_URL: {error}", "mend the URL")
        return
    try:
        async with aclosing(_of_database(opened, given, policies)) as findings:
            async for each in findings:
                yield each
    except UnavailableError as error:
        why = error.detail or "it does not answer"
        yield fail(_DATABASE, why, "see that it runs, that the URL is right, and that the network lets us through")
    finally:
        await opened.close()


async def _of_database(opened: Database, given: Settings, policies: Policies | None) -> AsyncGenerator[Finding]:
    facts = await sql.look(opened)
    for each in _of_facts(facts, given):
        yield each
    if facts.problem:
        yield fail(_MIGRATIONS, facts.problem, "run `formgate migrate`, or start the version that fits")
        return
    yield ok(_MIGRATIONS, f"the database is of revision {migrate.head()}, or of a later one that this version can use")
    contents = await sql.contents(opened)
    if policies is not None:
        for each in _of_plans(contents, policies):
            yield each
    fingerprints = Fingerprints(opened)
    for name, path in (
        (PEPPER, given.pepper_file or given.data / "pepper"),
        (SEALING_KEY, given.sealing_key_file or given.data / "sealing.key"),
    ):
        known = {value for kind, value in contents.fingerprints if kind == name}
        ids = _ids(name, path)
        if ids and known:
            yield await _fitting(fingerprints, name, known, ids, path)


def _of_facts(facts: sql.Facts, given: Settings) -> Iterator[Finding]:
    yield ok(_DATABASE, f"{facts.version} answers")
    if facts.forgetful:
        yield fail(_DATABASE, "it may lose what it has acknowledged", "turn synchronous_commit on")
    if facts.in_clear:
        advice = "add ?sslmode=verify-full to the URL, and &sslrootcert=FILE for an authority that the system has not"
        yield warn(_DATABASE, "it is spoken to in clear over a network", advice)
    wanted = given.database_pool * given.sharers
    if facts.connections is not None and wanted > facts.connections:
        yield warn(
            _DATABASE,
            f"{given.sharers} process(es) may want {wanted} connections, and it takes {facts.connections}",
            "raise its max_connections, or lower FORMGATE_DATABASE_POOL",
        )
    if facts.clock_skew is not None:
        yield clock(_DATABASE, facts.clock_skew)


def _of_plans(contents: sql.Contents, policies: Policies) -> Iterator[Finding]:
    for name, plan in sorted(contents.plans):
        if name not in policies.by_name or plan not in policies.by_name[name].plans:
            text = f"there are accounts with plan {plan} of policy {name}, which no policy file has"
            yield fail("policies", text, "put it back")


def _ids(name: str, path: Path) -> tuple[str, ...]:
    """Return the public ids of the keys in a file; none, where it can not be used, which is told elsewhere."""
    try:
        keys = read_keys(path)
    except DataFolderError:
        return ()
    return Peppers(keys).ids if name == PEPPER else AesSealer(keys).ids


async def _fitting(stored: Fingerprints, name: str, known: set[str], ids: tuple[str, ...], path: Path) -> Finding:
    missing = await stored.stored(name, known.difference(ids), time.time_ns() // 1_000)
    for each, what in sorted(missing.items()):
        return fail(name, f"the database holds {what} under {name} {each}, which is not in {path}", "put it back")
    return ok(name, f"all that the database holds is under what is in {path}; the newest is {ids[0]}")


async def counters(given: Settings, seconds: float) -> AsyncIterator[Finding]:
    """Look at Redis; nothing that it is asked takes longer than so many ``seconds``."""
    if given.redis_url is None:
        return
    try:
        target = parse_url(given.redis_url.get_secret_value())
        facts = await redis.preflight(given.redis_url.get_secret_value(), timeout=seconds)
    except ValueError as error:
        yield fail(_REDIS, f"FORMGATE_REDIS_URL: {error}", "mend the URL")
        return
    except UnavailableError as error:
        yield fail(_REDIS, str(error), "see that it runs; until it answers, checks are decided degraded, by shares")
        return
    if target.tls is None and not all(is_loopback(str(address)) for address in target.addresses):
        yield warn(_REDIS, "it is spoken to in clear over a network", "have it speak TLS, and write rediss://")
    for each in facts:
        for finding in _of_redis(each, given):
            yield finding


def _of_redis(facts: redis.Facts, given: Settings) -> Iterator[Finding]:
    at = str(facts.address)
    problems = list(facts.problems)
    for problem in problems:
        told, _, advice = problem.partition(": ")
        yield fail(_REDIS, told, advice)
    if not problems:
        yield ok(
            _REDIS, f"{at} is Redis {facts.version}, evicts nothing, and answers in {facts.round_trip * 1e3:.1f} ms"
        )
    if facts.replid_in_scripts:
        yield ok(_REDIS, f"scripts at {at} see its replication id, and so every failover")
    elif not given.redis_wait_replicas:
        yield warn(
            _REDIS,
            f"{at} hides its replication id from scripts: a failover may lose a revocation",
            "allow this user INFO in scripts, or set FORMGATE_REDIS_WAIT_REPLICAS",
        )
    if given.redis_wait_replicas and (facts.replicas or 0) < given.redis_wait_replicas:
        yield fail(
            _REDIS,
            f"{at} has {facts.replicas or 0} replicas, and {given.redis_wait_replicas} are waited for",
            "add replicas, or lower FORMGATE_REDIS_WAIT_REPLICAS",
        )
    if facts.round_trip > given.redis_timeout / 2:
        yield warn(
            _REDIS,
            f"{at} took {facts.round_trip:.3f} s, and is given up after {given.redis_timeout:g} s",
            "bring it nearer, or raise FORMGATE_REDIS_TIMEOUT",
        )
    if facts.memory_used is not None and facts.memory_used > _MUCH_MEMORY:
        yield warn(
            _REDIS,
            f"{at} has used {facts.memory_used:.0%} of its maxmemory; when that is full, it counts no more",
            "raise maxmemory",
        )
    if facts.clock_skew is not None:
        yield clock(_REDIS, facts.clock_skew)
