"""Leases while a store may be away: none is granted that a change could not wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formgate_server.core.errors import CountersUnavailableError
from formgate_server.core.ports import LeaseCharge, Leased, LeaseResult, LeasesOut

if TYPE_CHECKING:
    from formgate_server.core.freshness import Freshness
    from formgate_server.core.ports import Leases
    from formgate_server.storage.degraded import DegradedLimiter

_RETRY = 1_000_000
_MICROSECONDS = 1_000_000
_DEGRADED = Leased(0, _RETRY, degraded=True)


class CarefulLeases:
    """Leases over a store that may be away.

    None is granted while either store is, and none goes beyond the moment until which this process surely knows of
    all changes: who was told ``max_staleness`` from now need not wait for a lease besides.
    """

    def __init__(self, leases: Leases, limiter: DegradedLimiter, freshness: Freshness) -> None:
        self._leases = leases
        self._limiter = limiter
        self._freshness = freshness

    async def lease(self, wanted: LeaseCharge) -> LeaseResult:
        """See ``Leases.lease``."""
        freshness = self._freshness
        longest = int(freshness.fresh_for * _MICROSECONDS)
        if not freshness.database_up or longest <= 0 or self._limiter.is_alone(wanted.account_id):
            return _DEGRADED
        try:
            return await self._leases.lease(wanted._replace(duration=min(wanted.duration, longest)))
        except CountersUnavailableError:  # should it have been charged, its id settles it
            return _DEGRADED

    async def settle(self, account_id: str, lease_id: str, unused: int) -> int:
        """See ``Leases.settle``."""
        return await self._leases.settle(account_id, lease_id, unused)

    async def out(self, account_id: str) -> LeasesOut:
        """See ``Leases.out``."""
        return await self._leases.out(account_id)

    async def none_out(self, account_id: str) -> None:
        """See ``Leases.none_out``."""
        await self._leases.none_out(account_id)
