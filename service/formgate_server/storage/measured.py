"""Ports around ports that count what goes through them, for /metrics."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from formgate_server import metrics
from formgate_server.core.errors import UnavailableError
from formgate_server.core.ports import Charge, Charged, ChargeResult, EpochMoved

if TYPE_CHECKING:
    from formgate_server.core.ports import KeyFinder, Limiter, TooManyAttempts
    from formgate_server.core.verdict import KeyRecord

_TENTH = 10


class MeasuredLimiter:
    """A Limiter whose charges are timed, and whose limits are seen to come to their end.

    ``limit_names`` are those that may be shown: an operator has chosen them. A key's own limit may be called anything.
    """

    def __init__(self, limiter: Limiter, limit_names: Collection[str] = (), *, by: Literal["change", "poll"]) -> None:
        self._limiter = limiter
        self._by = by
        self._near_end = metrics.near_end_of(limit_names)
        self.seed = limiter.seed
        self.look = limiter.look
        self.adjust = limiter.adjust
        self.refund = limiter.refund

    async def charge(self, charge: Charge) -> ChargeResult:
        """See ``Limiter.charge``."""
        began = perf_counter()
        try:
            outcome = await self._limiter.charge(charge)
        except UnavailableError:
            metrics.charge_failures.count += 1
            raise
        finally:
            metrics.charge_seconds["one"].observe(perf_counter() - began)
        self._see(outcome)
        return outcome

    async def charge_many(self, charges: Sequence[Charge]) -> Sequence[ChargeResult | UnavailableError]:
        """See ``Limiter.charge_many``."""
        began = perf_counter()
        outcomes = await self._limiter.charge_many(charges)
        if charges:
            metrics.charge_seconds["batch"].observe(perf_counter() - began)
        for outcome in outcomes:
            if isinstance(outcome, UnavailableError):
                metrics.charge_failures.count += 1
            else:
                self._see(outcome)
        return outcomes

    def _see(self, outcome: ChargeResult) -> None:
        if isinstance(outcome, Charged):
            if outcome.denied is None:
                for limit, remaining, _ in outcome.standings:
                    if limit.amount is not None and remaining * _TENTH < limit.amount:
                        (self._near_end.get(limit.name) or self._near_end[metrics.OTHER]).count += 1
        else:
            metrics.epoch_reloads["moved" if isinstance(outcome, EpochMoved) else "missing"].count += 1

    async def publish(self, account_id: str, epoch: int) -> None:
        """See ``Limiter.publish``."""
        try:
            await self._limiter.publish(account_id, epoch)
        except UnavailableError:
            metrics.publications[self._by, "failed"].count += 1
            raise
        metrics.publications[self._by, "published"].count += 1


class MeasuredKeys:
    """A KeyFinder that counts how often a key was at hand."""

    def __init__(self, keys: KeyFinder) -> None:
        self._keys = keys

    def known(self, digests: Sequence[bytes]) -> KeyRecord | None:
        """See ``KeyFinder``."""
        record = self._keys.known(digests)
        if record is not None:
            metrics.key_cache_hits.count += 1
        return record

    async def find(
        self, digests: Sequence[bytes], *, at_least: int = 0, source_ip: str = "", newest: bool = False
    ) -> KeyRecord | TooManyAttempts | None:
        """See ``KeyFinder``."""
        metrics.key_cache_misses.count += 1
        return await self._keys.find(digests, at_least=at_least, source_ip=source_ip, newest=newest)
