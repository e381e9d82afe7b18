"""A lease: the right to decide a key's checks elsewhere, for a moment (docs/adr/0013).

It is granted by what a check would be decided by: the key as its account's epoch has it, compared in the very step that
charges the lease's units. So a change knows of every lease that was granted by the state before it.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias
from uuid import uuid4

from formgate.rules.reason import Reason
from formgate.rules.standing import Wanted, denial
from formgate_server.core.check_key import CheckKey
from formgate_server.core.errors import InvalidArgumentError, UnavailableError
from formgate_server.core.last_used import LastUsed
from formgate_server.core.limits import Standing
from formgate_server.core.model import Caller
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Clock, LeaseCharge, Leased, Leases
from formgate_server.core.verdict import CheckQuery, KeyRecord, Verdict

MOST_UNITS = 10**9
_ATTEMPTS = 4
_REFUSED_FOR = 60_000_000
_SHORTEST = 1_000


class LeaseQuery(NamedTuple):
    """What a caller asks. ``lease_id`` empty: one is made."""

    key: str
    source_ip: str = ""
    want_units: int = 1
    lease_id: str = ""
    policy: str = ""

    def __repr__(self) -> str:
        """Show no secret."""
        return f"LeaseQuery(lease_id={self.lease_id!r})"


class Lease(NamedTuple):
    """A lease: ``units`` of ``record``'s key for ``duration`` microseconds; ``expire_time`` by the server's clock."""

    lease_id: str
    record: KeyRecord
    units: int
    unlimited: bool
    duration: int
    expire_time: int
    limits: tuple[Standing, ...]


class Refused(NamedTuple):
    """There is no lease, and for ``retry_after`` microseconds there will be none.

    By the policy (``off``), because a store is away (``degraded``), or because too little is left of something.
    """

    retry_after: int
    off: bool = False
    degraded: bool = False


LeaseAnswer: TypeAlias = Lease | Refused | Verdict


class LeaseKey:
    """Grants leases."""

    def __init__(
        self, check_key: CheckKey, leases: Leases, policies: Policies, clock: Clock, last_used: LastUsed
    ) -> None:
        """Find keys, and word denials, as ``check_key`` does."""
        self._check_key = check_key
        self._leases = leases
        self._policies = policies
        self._clock = clock
        self._last_used = last_used

    async def __call__(self, query: LeaseQuery, caller: Caller) -> LeaseAnswer:
        """Return a lease, a denial, or why there is neither. Raises UnavailableError where nothing can be said."""
        if query.policy and query.policy not in self._policies.by_name:
            raise InvalidArgumentError("policy", "is none of this server's policies")
        asked = CheckQuery(key=query.key, source_ip=query.source_ip, policy=query.policy, cost=0)
        at_least = 0
        for _ in range(_ATTEMPTS):
            record = await self._check_key.find(query.key, asked, caller, at_least)
            if isinstance(record, Verdict):
                return record
            if self._is_denied(asked, record):
                return await self._denial(asked, caller)
            if not record.policy.longest_lease:
                return Refused(_REFUSED_FOR, off=True)
            if (left := self._left(record)) < _SHORTEST:
                return Refused(_SHORTEST)
            wanted = _wanted(query, record, caller, left)
            outcome = await self._leases.lease(wanted)
            if isinstance(outcome, Leased):
                return self._granted(query, record, wanted, outcome)
            at_least = await self._check_key.catch_up(query.key, wanted.account_id, outcome, at_least)
        message = "the account changes faster than its keys can be read; try again"
        raise UnavailableError(message, reason="ACCOUNT_CHANGING")

    def _is_denied(self, asked: CheckQuery, record: KeyRecord) -> bool:
        """Tell whether the key may nothing, from there."""
        return _denies(denial(record.standing, Wanted(source_ip=asked.source_ip), self._clock.now()))

    async def _denial(self, asked: CheckQuery, caller: Caller) -> Verdict | Refused:
        """Return the denial as a check has it: confirmed against the epoch before it is told."""
        verdict = await self._check_key(asked, caller)
        return verdict if _denies(verdict.reason) else Refused(_SHORTEST)

    def _left(self, record: KeyRecord) -> int:
        """Return for how long the key, by this secret, may be leased."""
        now = self._clock.now()
        ends = [end - now for end in (record.standing.expire_time, record.secret_end) if end is not None]
        return min([record.policy.longest_lease, *ends])

    def _granted(self, query: LeaseQuery, record: KeyRecord, wanted: LeaseCharge, leased: Leased) -> Lease | Refused:
        if not leased.units:
            return Refused(leased.duration, degraded=leased.degraded)
        now = self._clock.now()
        self._last_used.note(record.key.key_id, now, query.source_ip)
        unlimited = all(counter.limit.amount is None for counter in record.counters)
        lease_id = wanted.lease_id.rpartition(":")[2]
        return Lease(
            lease_id, record, leased.units, unlimited, leased.duration, now + leased.duration, leased.standings
        )


def _denies(reason: Reason | None) -> bool:
    """Tell whether a reason is one for which everything that is asked of the key, from there, is denied."""
    return reason is not None and Reason.OK < reason <= Reason.IP_NOT_ALLOWED


def _wanted(query: LeaseQuery, record: KeyRecord, caller: Caller, longest: int) -> LeaseCharge:
    key = record.key
    name = _name(caller, key.key_id, query.lease_id or uuid4().hex)
    return LeaseCharge(key.account_id, record.epoch, record.counters, query.want_units, longest, name)


class Settlement(NamedTuple):
    """What is left of a lease."""

    account_id: str
    key_id: str
    lease_id: str
    unused: int


class SettleLeases:
    """Gives back what leases did not use."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    async def __call__(self, settlement: Settlement, caller: Caller) -> int:
        """Return how many units are given back. A lease is its token's own: another's is not known."""
        account_id, key_id, lease_id, unused = settlement
        if caller.account_id not in ("", account_id):
            return 0
        return await self._leases.settle(account_id, _name(caller, key_id, lease_id), unused)


def _name(caller: Caller, key_id: str, lease_id: str) -> str:
    return f"{caller.token_id}:{key_id}:{lease_id}"
