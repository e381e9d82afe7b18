"""The fake: keys in memory, decided by the rules that the service runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from types import MappingProxyType

from formgate.asking import Check, several, to_request
from formgate.errors import FieldViolation, FormgateError, InvalidRequestError, UnavailableError
from formgate.fallback import denied
from formgate.middleware.paths import is_resource
from formgate.rules import wording
from formgate.rules.addresses import AddressRules, parse_address
from formgate.rules.grants import Catalogue, Grant, Grants, Level
from formgate.rules.reason import Reason
from formgate.rules.standing import Standing, Wanted, denial
from formgate.testing.clients import FakeAsyncClient, FakeClient
from formgate.testing.limits import Counter, FakeLimit, spend
from formgate.testing.secrets import is_secret, new_secret
from formgate.verdict import CheckedKey, Environment, Holder, HttpDenial, LimitStatus, Verdict

_POLICY = "default"
_PREFIXES = {Environment.LIVE: "fg_live_", Environment.TEST: "fg_test_"}
_METHODS = {
    "GET": Level.READ,
    "HEAD": Level.READ,
    "POST": Level.WRITE,
    "PUT": Level.WRITE,
    "PATCH": Level.WRITE,
    "DELETE": Level.MANAGE,
}
_REMEMBERED = 60.0
"""For so many seconds a request_id is not charged again."""


@dataclass(slots=True)
class FakeKey:
    """A key of the fake. Its secret is shown nowhere by itself."""

    secret: str = field(repr=False)
    told: CheckedKey
    grants: tuple[Grant, ...]
    api_groups: frozenset[str]
    ip_rules: tuple[str, ...]
    counters: list[Counter] = field(repr=False)
    state: Reason = Reason.OK

    @property
    def key_id(self) -> str:
        """Its id."""
        return self.told.key_id

    @property
    def authorization(self) -> str:
        """The header that shows it."""
        return f"Bearer {self.secret}"

    @property
    def headers(self) -> dict[str, str]:
        """What a request needs that shows it."""
        return {"authorization": self.authorization}


class FakeFormgate:
    """Decides checks of clients in this process. For many threads and tasks."""

    def __init__(self, *, catalogue: Catalogue | None = None, clock: Callable[[], float] = time.time) -> None:
        """Know the permissions of ``catalogue`` (None: any ``noun.verb``). ``clock``: seconds since the Unix epoch."""
        self.client = FakeClient(self.decide)
        """For whoever wants a ``Client``."""
        self.async_client = FakeAsyncClient(self.decide)
        """For whoever wants an ``AsyncClient``."""
        self.checks: list[Check] = []
        """All that was asked, in order."""
        self._catalogue = catalogue or Catalogue(is_open=True)
        self._clock = clock
        self._ahead = 0.0
        self._lock = threading.RLock()
        self._keys: dict[str, FakeKey] = {}
        self._accounts: dict[str, _Account] = {}
        self._charged: dict[tuple[str, str], float] = {}
        self._forced: tuple[Reason, timedelta | None] | None = None
        self._error: FormgateError | None = None
        self._raises = False
        self._numbers = count(1)

    def add_key(  # noqa: PLR0913 - as many as a key has
        self,
        *,
        grants: Iterable[Grant] = (),
        limits: Iterable[FakeLimit] = (),
        account_id: str = "acme",
        display_name: str = "",
        environment: Environment = Environment.LIVE,
        api_groups: Iterable[str] = (),
        ip_rules: Iterable[str] = (),
        expire_time: datetime | None = None,
        created_by: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> FakeKey:
        """Make a key; ``expire_time`` with its zone. A limit of holder ACCOUNT is shared by the account's keys."""
        with self._lock:
            account = self._accounts.setdefault(account_id, _Account())
            told = CheckedKey(
                key_id=f"key_fake{next(self._numbers)}",
                account_id=account_id,
                display_name=display_name,
                environment=environment,
                created_by=created_by,
                metadata=MappingProxyType(dict(metadata)) if metadata else None,
                expire_time=expire_time,
            )
            counters = [account.shared(limit) if limit.holder is Holder.ACCOUNT else Counter(limit) for limit in limits]
            secret = new_secret(_PREFIXES[environment])
            key = FakeKey(secret, told, tuple(grants), frozenset(api_groups), tuple(ip_rules), counters)
            self._keys[secret] = key
            return key

    def revoke(self, key: FakeKey) -> None:
        """Revoke a key, for ever."""
        self._change(key, Reason.KEY_REVOKED)

    def disable(self, key: FakeKey) -> None:
        """Switch a key off."""
        self._change(key, Reason.KEY_DISABLED)

    def enable(self, key: FakeKey) -> None:
        """Switch a key on again. ValueError where it was revoked."""
        if key.state is Reason.KEY_REVOKED:
            raise ValueError("a revoked key stays revoked")
        self._change(key, Reason.OK)

    def suspend(self, account_id: str) -> None:
        """Suspend an account: none of its keys is good any more."""
        with self._lock:
            account = self._accounts[account_id]
            account.suspended = True
            account.epoch += 1

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        with self._lock:
            self._ahead += seconds

    def deny(self, reason: Reason, *, retry_after: timedelta | None = None) -> None:
        """Deny whatever is asked from now on, until ``recover``. ValueError for OK."""
        if reason is Reason.OK:
            raise ValueError("OK is no denial")
        self._forced = reason, retry_after

    def down(self, error: FormgateError | None = None) -> None:
        """Do not answer from now on, until ``recover``: clients fail closed. An ``error`` that is given is raised."""
        self._error = error or UnavailableError("the fake is down")
        self._raises = error is not None

    def recover(self) -> None:
        """Answer again, by the keys."""
        self._forced = self._error = None

    def decide(self, check: Check) -> Verdict:
        """Return the verdict that the service would. Raises InvalidRequestError as it would."""
        _validate(check)
        with self._lock:
            self.checks.append(check)
            if self._error is not None:
                if self._raises:
                    raise self._error
                return denied(self._error)
            if self._forced is not None:
                return _denied(*self._forced)
            return self._decide(check, self._clock() + self._ahead)

    def _decide(self, check: Check, now: float) -> Verdict:
        secret = check.key if check.key is not None else _bearer(check.authorization or "")
        if isinstance(secret, Reason):
            return _denied(secret)
        key = self._keys.get(secret)
        if key is None:
            known = is_secret(secret, tuple(_PREFIXES.values()))
            return _denied(Reason.KEY_NOT_FOUND if known else Reason.MALFORMED_KEY)
        account = self._accounts[key.told.account_id]
        reason = denial(self._standing(key, account), _wanted(check), int(now * 1_000_000))
        if reason is not None:
            return _denied(reason, key=key.told, epoch=account.epoch)
        if self._repeated(check, key, now):
            standings = tuple(counter.standing(now) for counter in key.counters)
            return _allowed(key.told, standings, account.epoch)
        spent = spend(key.counters, check.cost, now)
        if spent.denied is not None:
            return _denied(spent.denied, spent.retry_after, key=key.told, epoch=account.epoch, limits=spent.standings)
        if check.request_id:
            self._charged[key.key_id, check.request_id] = now
        return _allowed(key.told, spent.standings, account.epoch)

    def _repeated(self, check: Check, key: FakeKey, now: float) -> bool:
        charged = self._charged.get((key.key_id, check.request_id))
        return bool(check.request_id) and charged is not None and now < charged + _REMEMBERED

    def _standing(self, key: FakeKey, account: _Account) -> Standing:
        expiry = key.told.expire_time
        state = Reason.ACCOUNT_SUSPENDED if account.suspended and key.state is Reason.OK else key.state
        return Standing(
            state=state,
            expire_time=None if expiry is None else int(expiry.timestamp() * 1_000_000),
            environment=key.told.environment or 0,
            addresses=AddressRules(key.ip_rules) if key.ip_rules else None,
            api_groups=key.api_groups,
            grants=Grants(key.grants, self._catalogue),
        )

    def _change(self, key: FakeKey, state: Reason) -> None:
        with self._lock:
            key.state = state
            self._accounts[key.told.account_id].epoch += 1


@dataclass(slots=True)
class _Account:
    epoch: int = 1
    suspended: bool = False
    counters: dict[str, Counter] = field(default_factory=dict)

    def shared(self, limit: FakeLimit) -> Counter:
        """Return the one counter of an account's limit. ValueError where it has another of that name."""
        counter = self.counters.setdefault(limit.name, Counter(limit))
        if counter.limit != limit:
            raise ValueError(f"the account has another limit of the name {limit.name}")
        return counter


def _wanted(check: Check) -> Wanted:
    level: Level | None = Level.UNSPECIFIED
    permissions = several(check.permissions)
    if check.http_method and not permissions:
        level = _METHODS.get(check.http_method)
    resources = several(check.resources)
    environment = to_request(check).environment
    return Wanted(permissions, level, resources, check.api_group, environment, check.source_ip)


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


def _validate(check: Check) -> None:
    """Raise InvalidRequestError for what the service would refuse to decide."""
    message = to_request(check)
    found = [
        FieldViolation(f"resources[{at}]", "is no path of ids")
        for at, resource in enumerate(message.resources)
        if not is_resource(resource)
    ]
    if check.source_ip:
        try:
            parse_address(check.source_ip)
        except ValueError as error:
            found.append(FieldViolation("source_ip", str(error)))
    if check.cost < 0:
        found.append(FieldViolation("cost", "must be at least 0"))
    if check.policy not in {"", _POLICY}:
        found.append(FieldViolation("policy", "is none of this server's policies"))
    if found:
        raise InvalidRequestError(f"{found[0].field} {found[0].description}", tuple(found), reason="INVALID_ARGUMENT")


def _allowed(key: CheckedKey, limits: tuple[LimitStatus, ...], epoch: int) -> Verdict:
    return Verdict(allowed=True, reason=Reason.OK, message="", http_status=200, key=key, limits=limits, epoch=epoch)


def _denied(
    reason: Reason,
    retry_after: timedelta | None = None,
    *,
    key: CheckedKey | None = None,
    epoch: int = 0,
    limits: tuple[LimitStatus, ...] = (),
) -> Verdict:
    status, message = wording.STATUSES[reason], wording.MESSAGES[reason]
    seconds = None if retry_after is None else str(-(-retry_after // timedelta(seconds=1)))
    headers = tuple(
        (name, value.replace("{retry_after}", seconds or ""))
        for name, value in wording.headers(status)
        if seconds is not None or "{retry_after}" not in value
    )
    body = wording.BODY.replace("{reason}", reason.name).replace("{message}", json.dumps(message)[1:-1])
    return Verdict(
        allowed=False,
        reason=reason,
        message=message,
        http_status=status,
        retry_after=retry_after,
        key=key,
        limits=limits,
        http_denial=HttpDenial(status, headers, body.encode()),
        epoch=epoch,
    )
