"""The verdict on one request: find the key, test its standing, charge its limits.

The account's epoch makes it immediate and caching free: the limiter compares it in the step that charges, and a verdict
decided by another epoch's key is never told (docs/adr/0001).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from formgate.rules.grants import Level
from formgate.rules.standing import Wanted, denial
from formgate_server.core.errors import InvalidArgumentError, UnavailableError
from formgate_server.core.explain import explain
from formgate_server.core.fields import LARGEST
from formgate_server.core.last_used import LastUsed
from formgate_server.core.limits import reason_of
from formgate_server.core.lookup import sees
from formgate_server.core.model import Caller
from formgate_server.core.policy import Policies, Policy
from formgate_server.core.ports import (
    Charge,
    Charged,
    Clock,
    EpochMissing,
    EpochMoved,
    KeyFinder,
    Limiter,
    TooManyAttempts,
)
from formgate_server.core.quick import made
from formgate_server.core.secrets import could_be_secret, fingerprint, prefix_of
from formgate_server.core.verdict import CheckQuery, KeyRecord, Reason, Verdict

_ATTEMPTS = 10  # as often as one account changes while its key is read, one change after the other


class _Begun(NamedTuple):
    """A check decided but for its limits: ``reason`` None: it is allowed if they let it."""

    query: CheckQuery
    record: KeyRecord
    reason: Reason | None
    now: int
    charge: Charge


class CheckKey:
    """Decides requests."""

    def __init__(
        self, keys: KeyFinder, limiter: Limiter, policies: Policies, clock: Clock, last_used: LastUsed
    ) -> None:
        """Find ``keys`` by the SHA-256 of their secrets."""
        self._keys = keys
        self._limiter = limiter
        self._policies = policies
        self._clock = clock
        self._last_used = last_used

    async def __call__(self, query: CheckQuery, caller: Caller) -> Verdict:
        """Return the verdict. Raises UnavailableError where none can be reached: never takes that for a yes."""
        if query.policy and query.policy not in self._policies.by_name:
            raise InvalidArgumentError("policy", "is none of this server's policies")
        secret = query.key if query.key is not None else _bearer(query.authorization or "")
        if isinstance(secret, Reason):
            return self._keyless(secret, query, caller, None)
        prefix = secret[: secret.rfind("_") + 1]  # prefixes end in "_", which is no digit of base62
        own = self._policies.by_prefix.get(prefix)
        record = self._at_hand(secret)
        if record is None and (own is None or prefix_of(secret) != prefix):
            return self._keyless(Reason.MALFORMED_KEY, query, caller, own)
        return await self._decide(query, caller, own, secret, record)

    async def _decide(
        self, query: CheckQuery, caller: Caller, own: Policy | None, secret: str, record: KeyRecord | None
    ) -> Verdict:
        """Decide by ``record``, where the key is at hand; it is read again for as long as its account changes."""
        at_least = 0
        for _ in range(_ATTEMPTS):
            if record is None:
                found = await self._find(secret, at_least, query.source_ip)
                if isinstance(found, TooManyAttempts):
                    return self._keyless(Reason.TOO_MANY_INVALID_ATTEMPTS, query, caller, own, found.retry_after)
                record = found
            begun = None if record is None else self._begin(query, record, caller)
            if begun is None:
                return self._keyless(Reason.KEY_NOT_FOUND, query, caller, own)
            outcome = await self._limiter.charge(begun.charge)
            if isinstance(outcome, Charged):
                return self._decided(begun, outcome)
            record = None
            at_least = await self.catch_up(secret, begun.charge.account_id, outcome, at_least)
        message = "the account changes faster than its keys can be read; try again"
        raise UnavailableError(message, reason="ACCOUNT_CHANGING")

    async def catch_up(self, secret: str, account_id: str, outcome: EpochMoved | EpochMissing, at_least: int) -> int:
        """Return of which epoch a key must be at least from now on; an epoch that is missing is seeded."""
        if isinstance(outcome, EpochMoved):
            return outcome.epoch
        fresh = await self._find(secret, LARGEST)  # begun after the epoch was found missing
        if isinstance(fresh, KeyRecord):
            await self._limiter.seed(account_id, fresh.epoch, outcome.incarnation)
        return at_least

    async def find(self, secret: str, query: CheckQuery, caller: Caller, at_least: int = 0) -> KeyRecord | Verdict:
        """Return the key, at hand unless an epoch is asked for, or the verdict on a check that finds none."""
        prefix = secret[: secret.rfind("_") + 1]
        own = self._policies.by_prefix.get(prefix)
        found: KeyRecord | TooManyAttempts | None = None if at_least else self._at_hand(secret)
        if found is None:
            if own is None or prefix_of(secret) != prefix:
                return self._keyless(Reason.MALFORMED_KEY, query, caller, own)
            found = await self._find(secret, at_least, query.source_ip)
        if isinstance(found, TooManyAttempts):
            return self._keyless(Reason.TOO_MANY_INVALID_ATTEMPTS, query, caller, own, found.retry_after)
        if found is None or self._begin(query, found, caller) is None:
            return self._keyless(Reason.KEY_NOT_FOUND, query, caller, own)
        return found

    async def all_at_hand(
        self, queries: Sequence[CheckQuery], caller: Caller
    ) -> list[Verdict | UnavailableError | None]:
        """Decide those checks whose keys are at hand, in order, and charge them together.

        None: that one has not been charged, and is to be decided by itself. An error: it may have been charged.
        """
        begun = [self._begin_at_hand(query, caller) for query in queries]
        outcomes = iter(await self._limiter.charge_many([one.charge for one in begun if one is not None]))
        verdicts: list[Verdict | UnavailableError | None] = []
        for one in begun:
            outcome = None if one is None else next(outcomes)
            if one is not None and isinstance(outcome, Charged):
                verdicts.append(self._decided(one, outcome))
            else:
                verdicts.append(outcome if isinstance(outcome, UnavailableError) else None)
        return verdicts

    def _begin_at_hand(self, query: CheckQuery, caller: Caller) -> _Begun | None:
        secret = query.key or _bearer(query.authorization or "")
        record = None if isinstance(secret, Reason) else self._at_hand(secret)
        return None if record is None else self._begin(query, record, caller)

    def _at_hand(self, secret: str) -> KeyRecord | None:
        """Return a key found before by this very secret, whose form therefore needs no look."""
        return self._keys.known((fingerprint(secret),)) if could_be_secret(secret) else None

    async def _find(self, secret: str, at_least: int, source_ip: str = "") -> KeyRecord | TooManyAttempts | None:
        return await self._keys.find((fingerprint(secret),), at_least=at_least, source_ip=source_ip)

    def _begin(self, query: CheckQuery, record: KeyRecord, caller: Caller) -> _Begun | None:
        """Decide all but the limits; None: there is no such key for this caller, or not by this secret any more."""
        now = self._clock.now()
        if not _counts(record, query, caller) or (record.secret_end is not None and now >= record.secret_end):
            return None
        reason = denial(record.standing, _wanted(query, record.policy), now)
        counters = () if reason else record.counters
        key = record.key
        charge = made(Charge, (key.account_id, record.epoch, key.key_id, counters, query.cost, query.request_id))
        return made(_Begun, (query, record, reason, now, charge))

    def _decided(self, begun: _Begun, charged: Charged) -> Verdict:
        query, record, reason, now, _ = begun
        if reason is None:
            reason = Reason.OK if charged.denied is None else reason_of(charged.denied)
        steps = explain(reason, query, record, charged) if query.explain else ()
        if reason is Reason.OK:
            if query.cost or not query.explain:  # a dry run is no use
                self._last_used.note(record.key.key_id, now, query.source_ip)
            return made(Verdict, (reason, "", 200, record, None, charged.standings, None, charged.degraded, steps))
        template = record.policy.denials[reason]
        after = charged.retry_after
        http = template.render(reason, after)
        return Verdict(
            reason, template.message, http.status, record, after, charged.standings, http, charged.degraded, steps
        )

    def _keyless(
        self, reason: Reason, query: CheckQuery, caller: Caller, own: Policy | None, after: int | None = None
    ) -> Verdict:
        """Deny without a known key, in the words of the caller's policy, else of the key's, else of the default."""
        name = query.policy or caller.policy
        by_name = self._policies.by_name  # a token may be bound to a policy whose file is gone
        policy = by_name.get(name) or own or by_name[self._policies.default]
        template = policy.denials[reason]
        http = template.render(reason, after)
        steps = explain(reason, query, None, None) if query.explain else ()
        return Verdict(reason, template.message, http.status, retry_after=after, http_denial=http, steps=steps)


def _bearer(authorization: str) -> str | Reason:
    """Return the one token of an Authorization header's value."""
    value = authorization.strip(" \t")
    if not value:
        return Reason.MISSING_AUTHORIZATION
    scheme, _, token = value.partition(" ")
    token = token.lstrip(" ")
    if scheme.lower() != "bearer" or token.split() != [token]:
        return Reason.MALFORMED_AUTHORIZATION
    return token


def _counts(record: KeyRecord, query: CheckQuery, caller: Caller) -> bool:
    """Tell whether the caller may know of this key, and has asked for its policy."""
    policy = record.policy.name
    return query.policy in ("", policy) and sees(caller, record.key.account_id, policy)


def _says_nothing(query: CheckQuery, policy: Policy) -> bool:
    """Tell whether a check that relies on its method has none, or one that the policy ignores."""
    return query.by_method and not (query.http_method and policy.methods)


def _wanted(query: CheckQuery, policy: Policy) -> Wanted:
    level: Level | None = Level.UNSPECIFIED
    if not query.permissions:
        level = None if _says_nothing(query, policy) else policy.level_of(query.http_method)
    return made(
        Wanted, (query.permissions, level, query.resources, query.api_group, query.environment, query.source_ip)
    )
