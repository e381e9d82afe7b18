"""What stands between a flood of keys that nobody has and the database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from formgate_server import metrics
from formgate_server.core.errors import UnavailableError
from formgate_server.core.fields import LARGEST
from formgate_server.core.ports import TooManyAttempts

if TYPE_CHECKING:
    from formgate_server.core.attempts import Attempts
    from formgate_server.core.ports import KeyCache
    from formgate_server.core.verdict import KeyRecord

_log = structlog.get_logger("formgate.guard")
_MOST_WAITING = 10_000  # one batch of cold keys is 1,000; a waiting check is about a kilobyte
_LOG_SECONDS = 60.0
_PATIENCE_SECONDS = 2.0


class GuardedKeys:
    """A KeyFinder that looks in the store for keys it does not know as often as ``Attempts`` lets it.

    A key at hand is not its matter: that is found as ever, whatever flood there is. Others go through a gate, a few at
    a time and first come, first served, so that who floods one moment can not have more under way than is then counted.
    What is over the budget of all is told to be undecided, never denied: among those keys may be good ones. Above
    ``_MOST_WAITING`` it is told at once: a store that stands still may not fill the memory with who waits for it.
    """

    def __init__(self, keys: KeyCache, attempts: Attempts) -> None:
        self._keys = keys
        self._attempts = attempts
        self._gate = asyncio.Semaphore(attempts.at_once)
        self._waiting = 0
        self._logged_until = 0.0
        self._overdue_at = float("-inf")

    def known(self, digests: Sequence[bytes]) -> KeyRecord | None:
        """See ``KeyFinder``."""
        return self._keys.known(digests)

    async def find(
        self, digests: Sequence[bytes], *, at_least: int = 0, source_ip: str = "", newest: bool = False
    ) -> KeyRecord | TooManyAttempts | None:
        """See ``KeyFinder``."""
        record = self._keys.known(digests)
        if record is not None and record.epoch >= at_least and not newest:
            return record
        if record is not None or at_least:  # an epoch is asked for of known keys only
            return await self._read(digests, LARGEST if newest else at_least)
        refusal = self._refusal(source_ip)  # before the gate: a flood does not queue for what it will not get
        if refusal is not None:
            return refusal
        if self._waiting >= _MOST_WAITING:
            raise self._undecided()
        await self._enter()
        try:
            return self._refusal(source_ip) or await self._look(digests, source_ip, newest=newest)
        finally:
            self._gate.release()

    async def _enter(self) -> None:
        """Wait at the gate. Whoever waited while the store stood still is not made to wait for that again."""
        began = asyncio.get_running_loop().time()
        self._waiting += 1
        try:
            await self._gate.acquire()
        finally:
            self._waiting -= 1
        if began < self._overdue_at:
            self._gate.release()
            raise _overdue()

    async def _read(self, digests: Sequence[bytes], at_least: int) -> KeyRecord | None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._keys.find(digests, at_least=at_least)
        except TimeoutError:
            self._overdue_at = asyncio.get_running_loop().time()
            raise _overdue() from None

    async def _look(self, digests: Sequence[bytes], source_ip: str, *, newest: bool) -> KeyRecord | None:
        try:
            record = await self._read(digests, LARGEST if newest else 0)
        except BaseException:  # cancelled, too: the store was asked all the same
            self._attempts.spend_look_up(source_ip)
            raise
        if record is None:
            self._attempts.spend_look_up(source_ip)
            self._attempts.spend_attempt(source_ip)
            metrics.unknown_keys["not_found"].count += 1
        return record

    def _refusal(self, source_ip: str) -> TooManyAttempts | None:
        """Return what to tell the address. Raises UnavailableError where the budget of all is used up."""
        retry_after = self._attempts.retry_after(source_ip)
        if retry_after is not None:
            metrics.unknown_keys["refused_address"].count += 1
            return TooManyAttempts(retry_after)
        if self._attempts.exhausted(source_ip):
            raise self._undecided()
        return None

    def _undecided(self) -> UnavailableError:
        metrics.unknown_keys["refused"].count += 1
        now = asyncio.get_running_loop().time()
        if now >= self._logged_until:  # a flood of keys may not become a flood of lines
            self._logged_until = now + _LOG_SECONDS
            _log.warning(
                "too many unknown keys: until it ebbs, only keys that this process knows are sure to be decided"
            )
        message = "too many keys are asked for that are not known here; the same check may go through later"
        return UnavailableError(message, reason="TOO_MANY_UNKNOWN_KEYS")


def _overdue() -> UnavailableError:
    return UnavailableError("The database does not answer in time.")
