"""Which calling service this is, by the token it shows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from formgate_server.core.errors import UnauthenticatedError
from formgate_server.core.model import Caller, ServiceToken
from formgate_server.core.ports import Clock, Registry
from formgate_server.core.secrets import Peppers

_CACHED_SECONDS = 1.0
_MOST_CACHED = 10_000
_LONGEST_TOKEN = 256


class _Known(NamedTuple):
    token: ServiceToken
    caller: Caller
    until: float


class Authenticate:
    """Finds the caller whose token is shown. Tokens are cached for at most a second; unknown ones are not."""

    def __init__(self, registry: Registry, peppers: Peppers, clock: Clock, monotonic: Callable[[], float]) -> None:
        self._registry = registry
        self._peppers = peppers
        self._clock = clock
        self._monotonic = monotonic
        self._cache: dict[bytes, _Known] = {}

    async def __call__(self, authorization: str) -> Caller:
        """Return the caller by the value of its ``authorization`` metadata. Raises UnauthenticatedError."""
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            message = "send a service token as metadata: authorization: Bearer <token>"
            raise UnauthenticatedError(message, reason="MISSING_SERVICE_TOKEN")
        cache_key = hashlib.sha256(secret.encode()).digest()  # the cache holds no secret
        known = self._cache.get(cache_key)
        if known is None or self._monotonic() >= known.until:
            known = await self._read(secret, cache_key)
        token = known.token
        if token.expire_time is not None and self._clock.now() >= token.expire_time:
            message = f"service token {token.token_id} has expired"
            raise UnauthenticatedError(message, reason="SERVICE_TOKEN_EXPIRED")
        return known.caller

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
        known = _Known(token, caller, began + _CACHED_SECONDS)
        self._cache[cache_key] = known
        return known
