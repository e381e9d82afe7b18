"""Opens the counters: in the memory of this process, or in Redis, with what goes on while a store is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import NamedTuple

import structlog

from formgate_server import metrics
from formgate_server.core.errors import UnavailableError
from formgate_server.core.follow import Follow
from formgate_server.core.freshness import Freshness
from formgate_server.core.ports import Clock, Epochs, KeyCache, KeyFinder, Leases, Limiter, Reservations
from formgate_server.core.watching import Watching
from formgate_server.settings import Settings
from formgate_server.storage.degraded import DegradedLimiter, FreshKeys
from formgate_server.storage.leases import CarefulLeases
from formgate_server.storage.measured import MeasuredLimiter
from formgate_server.storage.memory.limiter import MemoryLimiter
from formgate_server.storage.redis.client import connect
from formgate_server.storage.redis.fitness import Findings, Fitness, FitRedis
from formgate_server.storage.redis.limiter import RedisLimiter
from formgate_server.storage.redis.news import RedisNews
from formgate_server.storage.redis.preflight import preflight
from formgate_server.storage.shares import Shares

_log = structlog.get_logger("formgate.stores")


class UnfitRedisError(Exception):
    """Why a Redis will not do, and what to do about it."""


class Counters(NamedTuple):
    """The limiter, the keys as checks find them, and by how much later than now a change is sure to be in effect."""

    limiter: Limiter
    finder: KeyFinder
    leases: Leases
    watching: Watching
    on_change: Callable[[str, int], None]
    """Tells everybody of an account's new epoch."""
    max_staleness: int = 0
    freshness: Freshness | None = None
    """What this process knows of a database that it shares; None: it is the only one."""


class Parts(NamedTuple):
    """What counters are opened over."""

    reservations: Reservations
    epochs: Epochs
    cache: KeyCache
    finder: KeyFinder
    clock: Clock


async def open_counters(stack: AsyncExitStack, settings: Settings, parts: Parts) -> Counters:
    """Open the counters that the settings name; the stack closes them. Raises UnfitRedisError."""
    if settings.redis_url is None:
        limiter = MemoryLimiter(parts.clock, parts.reservations, on_degraded=_tell_marks)
        stack.push_async_callback(_close, limiter)
        watching = Watching()
        return Counters(limiter, parts.finder, limiter, watching, watching.tell)
    return await _open_redis(stack, settings, parts, settings.redis_url.get_secret_value())


async def _open_redis(stack: AsyncExitStack, settings: Settings, parts: Parts, url: str) -> Counters:
    found = await _look_before(url)
    fitness = Fitness(partial(_look, url), found, lambda told: _tell_findings(told, shared))

    def on_state(up: bool, detail: str) -> None:  # noqa: FBT001 - told by position
        _tell_redis(up, detail)
        if up:
            fitness.came()

    connected = connect(
        url, timeout=settings.redis_timeout, on_state=on_state, wait_replicas=settings.redis_wait_replicas
    )
    client = FitRedis(connected, fitness)
    stack.push_async_callback(client.close)
    stack.enter_context(
        metrics.watched(
            {
                metrics.redis_connections: lambda: client.connections,
                metrics.redis_requests: lambda: client.under_way,
            }
        )
    )
    shared = RedisLimiter(
        client,
        parts.reservations,
        parts.clock,
        on_degraded=_tell_marks,
        replication_ids=found is None or not found.hidden,
    )
    stack.push_async_callback(_close, shared)
    freshness = Freshness(
        time.monotonic,
        max_staleness=settings.max_staleness,
        database_grace=settings.database_grace,
        on_database=_tell_database,
    )
    if settings.database_url is not None and settings.processes is None:
        _log.warning(
            "FORMGATE_PROCESSES is not set: while redis is away, each server lets through what is left as if there were"
            " no other",
            counted=settings.sharers,
        )
    shares = Shares(parts.clock, parts.reservations, settings.sharers)
    limiter = DegradedLimiter(shared, shares, parts.epochs, freshness, on_degraded=_tell_alone, on_lost=_tell_lost)
    stack.push_async_callback(limiter.close)
    watching = Watching()
    measured = MeasuredLimiter(shared, by="poll")
    follow = Follow(parts.epochs, measured, freshness, time.monotonic, on_epoch=watching.tell)
    stack.enter_context(
        metrics.watched(
            {
                metrics.changes_unpublished: lambda: follow.unpublished,
                metrics.poll_age: lambda: freshness.read_age,
                metrics.publication_age: lambda: freshness.published_age,
                metrics.allowed_seconds["max_staleness"]: lambda: settings.max_staleness,
                metrics.allowed_seconds["database_grace"]: lambda: settings.database_grace,
            }
        )
    )
    news = RedisNews(url, client, settings.redis_timeout, watching.tell)
    for job in (follow.run(_tell_fault), news.listen()):
        stack.push_async_callback(ended, asyncio.create_task(job))

    def on_change(account_id: str, epoch: int) -> None:
        watching.tell(account_id, epoch)
        news.tell(account_id, epoch)

    finder = FreshKeys(parts.finder, parts.cache, freshness)
    leases = CarefulLeases(shared, limiter, freshness)
    max_staleness = round(settings.max_staleness * 1_000_000)
    return Counters(limiter, finder, leases, watching, on_change, max_staleness, freshness)


async def _look_before(url: str) -> Findings | None:
    """Look at the Redis before anything is built on it. Raises UnfitRedisError.

    None: it does not answer. That is no reason not to start: degraded service beats none.
    """
    try:
        found = await _look(url)
    except ValueError as error:
        message = f"FORMGATE_REDIS_URL: {error}"
        raise UnfitRedisError(message) from None
    except UnavailableError as error:
        _log.warning("redis does not answer; starting without it", detail=str(error))
        return None
    if found.problems:
        raise UnfitRedisError("; ".join(found.problems))
    _tell_hidden(found)
    return found


async def _look(url: str) -> Findings:
    return Findings.of(await preflight(url))


def _tell_findings(found: Findings, limiter: RedisLimiter) -> None:
    """Go by what a Redis turned out to be that came, or came back, while this server runs."""
    limiter.compare_replication_ids(not found.hidden)
    if found.problems:
        _log.error("redis is not used until it is mended", problems="; ".join(found.problems))
    else:
        _log.info("redis was looked at, and may be used")
        _tell_hidden(found)


def _tell_hidden(found: Findings) -> None:
    if found.hidden:
        _log.warning(
            "redis hides its replication id: a failover may lose a revocation; see FORMGATE_REDIS_WAIT_REPLICAS",
            at=list(found.hidden),
        )


async def _close(limiter: MemoryLimiter | RedisLimiter) -> None:
    try:
        await limiter.close()
    except UnavailableError:
        _log.warning("the counters could not be written; after the restart they may count a block too much")


async def ended(task: asyncio.Task[None]) -> None:
    """End a job that runs for ever; however it ended, nobody needs to know any more."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _tell_fault(error: Exception) -> None:
    _log.error("the changes of others can not be followed, for a fault of ours", exc_info=error)


def _tell_lost(units: int) -> None:
    _log.warning("what was let through by shares could not be charged", units=units)


def _tell_marks(degraded: bool) -> None:  # noqa: FBT001 - told by position
    metrics.degraded["marks"].set(degraded)
    if degraded:
        _log.warning("the database takes no marks: limits are counted on, and may refill should this process end now")
    else:
        _log.info("the database takes marks again")


def _tell_redis(up: bool, detail: str) -> None:  # noqa: FBT001 - told by position
    _tell_breaker("redis", is_open=not up)
    if up:
        _log.info("redis answers", detail=detail)
    else:
        _log.warning("redis does not answer", detail=detail)


def _tell_breaker(store: str, *, is_open: bool) -> None:
    metrics.breaker[store].set(is_open)
    if is_open:
        metrics.breaker_openings[store].count += 1


def _tell_alone(why: str) -> None:
    metrics.degraded["counters"].set(bool(why))
    if why:
        _log.warning("degraded: limits go by this process' share, epochs by the database", detail=why)
    else:
        _log.info("no longer degraded: what was let through meanwhile is charged")


def _tell_database(up: bool) -> None:  # noqa: FBT001 - told by position
    metrics.degraded["database"].set(not up)
    _tell_breaker("database", is_open=not up)
    if up:
        _log.info("the database answers again")
    else:
        _log.warning("degraded: the database does not answer; known keys go on by the epochs in redis")
