"""Which calling service this is, by the token it shows."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from formgate_server.core.errors import UnauthenticatedError, UnavailableError
from formgate_server.core.freshness import Freshness
from formgate_server.core.model import Caller, ServiceToken
from formgate_server.core.ports import Clock, Registry
from formgate_server.core.secrets import Peppers

_CACHED_SECONDS = 1.0
_REFRESHED_SECONDS = 0.5
_PATIENCE_SECONDS = 0.25
_CONFIRMED_SECONDS = 5.0
_LOOK_UPS = 1  # of unknown tokens, at once: who shows many may not keep the database from everybody else
_MOST_WAITING = 100
_MOST_CACHED = 10_000
_LONGEST_TOKEN = 256


class _Known(NamedTuple):
    token: ServiceToken
    caller: Caller
    read: float


class Authenticate:
    """Finds the caller whose token is shown. Tokens are cached for at most a second; unknown ones are not.

    A token in use is read again before its second is over, while calls go on with it. A database that does not answer
    by then is not waited for: tokens that were good a moment before go on, as known keys do, as long as ``freshness``
    has it.
    """

    def __init__(
        self,
        registry: Registry,
        peppers: Peppers,
        clock: Clock,
        monotonic: Callable[[], float],
        *,
        freshness: Freshness | None = None,
    ) -> None:
        self._registry = registry
        self._peppers = peppers
        self._clock = clock
        self._monotonic = monotonic
        self._freshness = freshness
        self._cache: dict[bytes, _Known] = {}
        self._reads: dict[bytes, asyncio.Task[_Known]] = {}
        self._gate = asyncio.Semaphore(_LOOK_UPS)

    async def __call__(self, authorization: str) -> Caller:
        """Return the caller by the value of its ``authorization`` metadata. Raises UnauthenticatedError."""
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            message = "send a service token as metadata: authorization: Bearer <token>"
            raise UnauthenticatedError(message, reason="MISSING_SERVICE_TOKEN")
        cache_key = hashlib.sha256(secret.encode()).digest()  # the cache holds no secret
        known = self._cache.get(cache_key)
        if known is None:
            known = await self._look_up(secret, cache_key)
        else:
            age = self._monotonic() - known.read
            if age >= _REFRESHED_SECONDS:
                known = await self._refreshed(secret, cache_key, known, age)
        token = known.token
        if token.expire_time is not None and self._clock.now() >= token.expire_time:
            message = f"service token {token.token_id} has expired"
            raise UnauthenticatedError(message, reason="SERVICE_TOKEN_EXPIRED")
        return known.caller

    async def _look_up(self, secret: str, cache_key: bytes) -> _Known:
        """Find a token that is not known here, after those that were shown before it; the same one is read once."""
        read = self._reads.get(cache_key)
        if read is None:
            if len(self._reads) >= _MOST_WAITING:
                message = (
                    "too many service tokens are shown that are not known here; the same call may go through later"
                )
                raise UnavailableError(message, reason="TOO_MANY_UNKNOWN_TOKENS")
            read = self._begin(cache_key, self._read_in_turn(secret, cache_key))
        return await asyncio.shield(read)

    async def _read_in_turn(self, secret: str, cache_key: bytes) -> _Known:
        async with self._gate:
            return await self._read(secret, cache_key)

    def _begin(self, cache_key: bytes, read: Coroutine[Any, Any, _Known]) -> asyncio.Task[_Known]:
        task = self._reads[cache_key] = asyncio.create_task(read)
        task.add_done_callback(lambda task: self._end(cache_key, task))
        return task

    async def _refreshed(self, secret: str, cache_key: bytes, known: _Known, age: float) -> _Known:
        if self._freshness is not None and not self._freshness.database_up and self._goes_on(known):
            return known
        read = self._reads.get(cache_key)
        if read is None:
            read = self._begin(cache_key, self._read(secret, cache_key))
        if age < _CACHED_SECONDS:
            return known
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await asyncio.shield(read)
        except (TimeoutError, UnavailableError) as error:
            if self._goes_on(known):
                return known
            if isinstance(error, UnavailableError):
                raise
        return await asyncio.shield(read)

    def _goes_on(self, known: _Known) -> bool:
        """Tell whether a token may be used though the database does not answer: it was good when that last did."""
        freshness = self._freshness
        if freshness is None or not freshness.is_within_grace:
            return False
        return known.read >= freshness.read_at - _CONFIRMED_SECONDS

    def _end(self, cache_key: bytes, task: asyncio.Task[_Known]) -> None:
        del self._reads[cache_key]
        if not task.cancelled():
            task.exception()  # seen, even where nobody waits for it

    async def _read(self, secret: str, cache_key: bytes) -> _Known:
        began = self._monotonic()  # a read begun later than this may not be served longer than from here
        short = len(secret) <= _LONGEST_TOKEN
        token = await self._registry.token_by_digest(self._peppers.digests(secret)) if short else None
        if token is None or token.revoke_time is not None:
            self._cache.pop(cache_key, None)
            message = "this service token is unknown or revoked"
            raise UnauthenticatedError(message)
        if len(self._cache) >= _MOST_CACHED:
            self._cache.clear()
        caller = Caller(token.token_id, token.role, token.account_id, token.policy)
        known = _Known(token, caller, began)
        self._cache[cache_key] = known
        return known
