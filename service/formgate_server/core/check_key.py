"""The verdict on one request: find the key, test its standing, charge its limits.

The account's epoch makes it immediate and caching free: the limiter compares it in the step that charges, and a verdict
decided by another epoch's key is never told (docs/adr/0001).
"""

from __future__ import annotations

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
from formgate_server.core.ports import Charge, Charged, Clock, EpochMoved, KeyFinder, Limiter, TooManyAttempts
from formgate_server.core.secrets import Peppers, prefix_of
from formgate_server.core.verdict import CheckQuery, KeyRecord, Reason, Verdict

_ATTEMPTS = 4  # at first, after a missing epoch was seeded, and twice more: then changes come faster than reads


class CheckKey:
    """Decides requests."""

    def __init__(  # noqa: PLR0913 - what a check needs
        self,
        keys: KeyFinder,
        limiter: Limiter,
        policies: Policies,
        *,
        peppers: Peppers,
        clock: Clock,
        last_used: LastUsed,
    ) -> None:
        self._keys = keys
        self._limiter = limiter
        self._policies = policies
        self._peppers = peppers
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
        if own is None or prefix_of(secret) != prefix:
            return self._keyless(Reason.MALFORMED_KEY, query, caller, own)
        digests = self._peppers.digests(secret)
        at_least = 0
        for _ in range(_ATTEMPTS):
            record = await self._keys.find(digests, at_least=at_least, source_ip=query.source_ip)
            if isinstance(record, TooManyAttempts):
                return self._keyless(Reason.TOO_MANY_INVALID_ATTEMPTS, query, caller, own, record.retry_after)
            now = self._clock.now()
            if record is None or not _counts(record, query, caller) or now >= (record.secret_end or now + 1):
                return self._keyless(Reason.KEY_NOT_FOUND, query, caller, own)
            reason = denial(record.standing, _wanted(query, record.policy), now)
            key = record.key
            counters = () if reason else record.counters
            charge = Charge(key.account_id, record.epoch, key.key_id, counters, query.cost, query.request_id)
            outcome = await self._limiter.charge(charge)
            if isinstance(outcome, Charged):
                return self._decided(query, record, reason, outcome, now)
            if isinstance(outcome, EpochMoved):
                at_least = outcome.epoch
                continue
            fresh = await self._keys.find(digests, at_least=LARGEST)  # begun after the epoch was found missing
            if isinstance(fresh, KeyRecord):
                await self._limiter.seed(key.account_id, fresh.epoch, outcome.incarnation)
        message = "the account changes faster than its keys can be read; try again"
        raise UnavailableError(message, reason="ACCOUNT_CHANGING")

    def _decided(
        self, query: CheckQuery, record: KeyRecord, reason: Reason | None, charged: Charged, now: int
    ) -> Verdict:
        if reason is None:
            reason = Reason.OK if charged.denied is None else reason_of(charged.denied)
        steps = explain(reason, query, record, charged) if query.explain else ()
        if reason is Reason.OK:
            if query.cost or not query.explain:  # a dry run is no use
                self._last_used.note(record.key.key_id, now, query.source_ip)
            return Verdict(reason, "", 200, record, None, charged.standings, None, charged.degraded, steps)
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


def _wanted(query: CheckQuery, policy: Policy) -> Wanted:
    level = Level.UNSPECIFIED if query.permissions else policy.level_of(query.http_method)
    return Wanted(query.permissions, level, query.resources, query.api_group, query.environment, query.source_ip)
