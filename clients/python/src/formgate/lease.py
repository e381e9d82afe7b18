"""Leases: a key's checks decided in this process, for a moment, by the rules that the service runs.

A key that is asked for again and again is leased in the background: until the lease ends, is used up, or its account is
told to have changed, no check of it leaves this process. What can not be decided here is asked as ever, and what is
left of a lease goes back.

A secret is a key of a dictionary here, as its caller has it; it is never shown, logged or written.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

from formgate.asking import Check, several
from formgate.clock import monotonic
from formgate.counters import Counters
from formgate.errors import BrokenAnswerError
from formgate.leased import Lease, LeasedRules, Shape
from formgate.rules.reason import Reason
from formgate.v1 import authorization_pb2 as pb
from formgate.verdict import Verdict

_HOT: Final = 2
"""So many checks of a key within a second, and it is leased."""
_FIRST_WANTED: Final = 16
_MOST_WANTED: Final = 1_000_000
_GROWTH: Final = 4
_MOST_KEYS: Final = 10_000
_RETRY_SECONDS: Final = 1.0
_NO_SERVICE_SECONDS: Final = 10.0
"""So long nothing is leased where there are no threads, or no files, for it."""
_AT_EXIT_SECONDS: Final = 1.0
_SHORTEST_PAUSE: Final = 0.005
_IDLE_SECONDS: Final = 10.0
_MOST_ALIASES: Final = 4
"""Headers by which one key is found: `Bearer`, `bearer`, and what else is there."""
_LONGEST_ALIAS: Final = 256

_log = logging.getLogger("formgate")


class LeaseService(Protocol):
    """The service, as leases need it. No method waits."""

    def acquire(self, request: pb.LeaseKeyRequest, done: Callable[[pb.LeaseKeyResponse | None], None]) -> None:
        """Ask for a lease; ``done`` is called, once and on any thread, with the answer; None: there is none."""
        ...

    def settle(self, settlement: pb.LeaseSettlement) -> None:
        """Give back what is left of a lease, soon and until it is done."""
        ...

    def watch(self, account_id: str) -> bool:
        """Have ``Leases.told`` called for each new epoch of an account, from now on; False: it can not be."""
        ...

    def forget(self, account_id: str) -> None:
        """Watch an account no more."""
        ...

    def close(self) -> None:
        """Settle what is to be, and end."""
        ...


class _Held:
    """A key, and what is known of it."""

    __slots__ = (
        "account_id",
        "aliases",
        "asked",
        "asked_since",
        "is_asking",
        "key_id",
        "lease",
        "longest",
        "not_before",
        "rules",
        "source_ip",
        "used",
        "wanted",
    )

    def __init__(self, now: float) -> None:
        self.lease: Lease | None = None
        self.aliases = 0
        self.rules: LeasedRules | None = None
        self.account_id = self.key_id = ""
        self.source_ip = ""
        self.asked, self.asked_since = 0, now
        self.is_asking = False
        self.not_before = 0.0
        self.longest = 0.0
        self.wanted = _FIRST_WANTED
        self.used = now


class Leases:
    """All leases of a client. For many threads; what waits for the service waits elsewhere."""

    def __init__(
        self,
        service: Callable[[Leases], LeaseService],
        counters: Counters,
        new_id: Callable[[], str],
        noted: Callable[[Check, Verdict, float], None] | None = None,
    ) -> None:
        """``service`` is made, once, when the first lease is wanted.

        ``noted`` is told of what is allowed here, once for each lease and what is wanted, and when the lease began.
        """
        self._noted = noted
        self._make_service = service
        self._no_service_before = 0.0
        self._service: LeaseService | None = None
        self._counters = counters
        self._new_id = new_id
        self._lock = threading.Lock()
        self._closed = False
        self._by_key: dict[str, _Held] = {}
        self._by_authorization: dict[str, _Held] = {}
        self._of_account: dict[str, set[_Held]] = {}
        self._epochs: dict[str, int] = {}

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Leases({len(self._by_key)} keys)"

    # What each check calls.

    def decide(  # noqa: C901, PLR0912 - every call of a function counts here
        self, key: str | None, authorization: str | None, shape: Shape, cost: int
    ) -> Verdict | None:
        """Return the verdict, charged to the lease; None: the service is to be asked."""
        if key is not None:
            if authorization is not None:
                return None
            held = self._by_key.get(key)
        else:
            held = self._by_authorization.get(authorization or "")
        if held is None or (lease := held.lease) is None:
            return None
        now = monotonic()
        if now >= lease.renew:
            self._renew(key, authorization, held, lease, now)
            if now >= lease.end:
                return None
        if cost.__class__ is not int or cost < 1:
            return None
        is_new = False
        try:
            reason = lease.reasons[shape]
        except (KeyError, TypeError):  # new, or a list, which has no hash
            try:
                shape = _hashable(shape)
                is_new = shape not in lease.reasons
                reason = lease.reason(shape)
            except TypeError:  # a generator, say, which is not to be read here; or what is of no use at all
                return None
        if reason is not Reason.OK:
            return lease.denials.get(shape)
        if lease.take(cost):
            if is_new and self._noted is not None:
                self._noted(Check(key, authorization, *shape[:6], cost, "", shape[6]), lease.verdict, lease.began)
            return lease.verdict
        if lease.is_used_up:
            self._used_up(key, authorization, held, lease, now)
        return None

    def asked(self, check: Check, verdict: Verdict) -> None:
        """Take note of a verdict of the service: of how often a key is asked for, and of its words for a denial."""
        key = check.key if check.key is not None else _bearer(check.authorization or "")
        told = verdict.key
        if not key or told is None or verdict.degraded or self._closed or not _is_decidable(check):
            return
        now = monotonic()
        held = self._by_key.get(key) or self._new(key, now)
        if held is None:
            return
        if check.authorization is not None and check.authorization not in self._by_authorization:
            self._alias(check.authorization, held)
        held.account_id, held.key_id, held.used = told.account_id, told.key_id, now
        held.source_ip = check.source_ip
        lease = held.lease
        if lease is not None:
            if verdict.epoch > lease.epoch:
                self._end(held, lease)
            elif not verdict.allowed:
                lease.learn(shape_of(check), verdict)
        if now - held.asked_since > 1:
            held.asked, held.asked_since = 0, now
        held.asked += 1
        if held.asked >= _HOT and verdict.allowed and (lease is None or now >= lease.end or lease.is_used_up):
            self._acquire(key, held, now)

    # Keys.

    def _new(self, key: str, now: float) -> _Held | None:
        with self._lock:
            if self._closed or len(self._by_key) >= _MOST_KEYS:
                return None
            return self._by_key.setdefault(key, _Held(now))

    def _alias(self, authorization: str, held: _Held) -> None:
        with self._lock:
            if held.aliases < _MOST_ALIASES and len(authorization) <= _LONGEST_ALIAS:
                held.aliases += 1
                self._by_authorization[authorization] = held

    def _renew(self, key: str | None, authorization: str | None, held: _Held, lease: Lease, now: float) -> None:
        """Ask for the next lease before this one ends, if it is of use, and end this one when it is over."""
        held.used = now
        secret = key if key is not None else _bearer(authorization or "")
        if now >= lease.end:
            if held.lease is not lease:  # another thread has seen to it
                return
            self._end(held, lease)
        else:
            lease.renew = lease.end
            if lease.end - now < held.longest / 8:
                return
        if secret:
            self._acquire(secret, held, now)

    def _used_up(self, key: str | None, authorization: str | None, held: _Held, lease: Lease, now: float) -> None:
        held.wanted = min(_MOST_WANTED, max(held.wanted, lease.spent) * _GROWTH)
        self._end(held, lease)
        secret = key if key is not None else _bearer(authorization or "")
        if secret:
            self._acquire(secret, held, now)

    # Leases.

    def _acquire(self, key: str, held: _Held, now: float) -> None:
        """Ask for a lease, unless one is asked for already, or it is of no use yet."""
        if now < held.not_before or now < self._no_service_before:
            return
        with self._lock:
            if held.is_asking or self._closed or self._by_key.get(key) is not held:
                return
            held.is_asking = True
            account_id = held.account_id
            self._of_account.setdefault(account_id, set()).add(held)
            service = self._made(held, now)
        if service is None:
            return
        lease_id = self._new_id()
        request = pb.LeaseKeyRequest(
            key=key,
            source_ip=held.source_ip,
            want_units=held.wanted,
            lease_id=lease_id,
            rules_id=held.rules.rules_id if held.rules is not None else b"",
        )
        began = monotonic()
        if not service.watch(account_id):  # nobody would tell it to stop
            held.not_before = began + _RETRY_SECONDS
            held.is_asking = False
            return
        try:
            service.acquire(request, lambda answer: self._acquired(held, lease_id, began, answer))
        except Exception:  # noqa: BLE001 - gRPC may want a thread, too; the check is decided all the same
            self._acquired(held, lease_id, began, None)

    def _made(self, held: _Held, now: float) -> LeaseService | None:
        """Return the service, made if need be; None: it can not be, which is no matter of the check. Under the lock."""
        if self._service is None:
            try:
                self._service = self._make_service(self)
            except Exception as error:  # noqa: BLE001 - no thread, no file: whatever it is
                held.is_asking = False
                self._no_service_before = now + _NO_SERVICE_SECONDS
                _log.warning("nothing can be leased just now: %s", type(error).__name__)
                return None
            _open.add(self)
        return self._service

    def _acquired(self, held: _Held, lease_id: str, began: float, answer: pb.LeaseKeyResponse | None) -> None:
        """Take the answer to a request for a lease."""
        try:
            if answer is None:
                held.not_before = monotonic() + _RETRY_SECONDS
                self._give_back(held.account_id, held.key_id, lease_id, _ALL)  # the answer may have been lost
                return
            match answer.WhichOneof("result"):
                case "lease":
                    self._take(held, answer.lease, began)
                case "refusal":
                    pause = answer.refusal.retry_after
                    seconds = pause.seconds + pause.nanos / 1e9
                    held.not_before = monotonic() + min(max(seconds, _SHORTEST_PAUSE), 60.0)
                    if answer.refusal.reason == pb.LEASE_REFUSAL_REASON_DEGRADED:
                        self._give_back(held.account_id, held.key_id, lease_id, _ALL)
                case _:
                    held.not_before = monotonic() + _RETRY_SECONDS
        except BrokenAnswerError:
            held.not_before = monotonic() + _RETRY_SECONDS
            self._give_back(held.account_id, held.key_id, lease_id, _ALL)
        finally:
            held.is_asking = False

    def _take(self, held: _Held, message: pb.Lease, began: float) -> None:
        rules = held.rules
        if message.HasField("rules"):
            rules = LeasedRules(message.rules_id, message.rules)
        if rules is None or rules.rules_id != message.rules_id:
            raise BrokenAnswerError("the lease has no rules")
        lease = Lease(message, rules, began)
        key = rules.key
        held.rules = rules
        held.account_id, held.key_id = key.account_id, key.key_id
        with self._lock:
            old = held.lease
            # An epoch that was told while the lease was on its way is newer than what it was granted by.
            is_over = self._closed or self._epochs.get(key.account_id, 0) > lease.epoch
            if not is_over:
                self._of_account.setdefault(key.account_id, set()).add(held)
                seconds = lease.end - began
                held.longest = max(seconds, held.longest * 0.9)
                held.lease = lease
        if is_over:
            self._settle(lease)
        elif old is not None:
            self._finished(held, old)

    def _end(self, held: _Held, lease: Lease) -> None:
        """Decide no more by a lease."""
        with self._lock:
            if held.lease is not lease:
                return
            held.lease = None
        self._finished(held, lease)

    def _finished(self, held: _Held, lease: Lease) -> None:
        if not lease.unlimited and lease.spent * _GROWTH < lease.units:
            held.wanted = max(_FIRST_WANTED, lease.spent * 2)
        self._settle(lease)

    def _settle(self, lease: Lease) -> None:
        unlimited = lease.unlimited
        self._counters.add("leased", lease.spent)
        left = lease.finish()
        if left and not unlimited:
            self._give_back(lease.rules.key.account_id, lease.rules.key.key_id, lease.lease_id, left)

    def _give_back(self, account_id: str, key_id: str, lease_id: str, units: int) -> None:
        if self._service is not None and account_id and key_id:
            settlement = pb.LeaseSettlement(account_id=account_id, key_id=key_id, lease_id=lease_id, unused=units)
            self._service.settle(settlement)

    # What the service tells.

    def told(self, account_id: str, epoch: int) -> None:
        """Take note of an account's epoch; 0: it is not known."""
        with self._lock:
            if epoch and account_id in self._of_account:
                self._epochs[account_id] = max(epoch, self._epochs.get(account_id, 0))
            over = [
                (held, lease)
                for held in self._of_account.get(account_id, ())
                if (lease := held.lease) is not None and (not epoch or lease.epoch < epoch)
            ]
        for held, lease in over:
            self._end(held, lease)

    def tidy(self) -> None:
        """Settle leases that are over, and forget keys that nobody asks for any more; called now and then."""
        now = monotonic()
        with self._lock:
            held_leases = [(held, lease) for held in self._by_key.values() if (lease := held.lease) is not None]
        for held, lease in held_leases:
            if now >= lease.end:
                self._end(held, lease)
        with self._lock:
            idle = {
                key
                for key, held in self._by_key.items()
                if held.lease is None and not held.is_asking and now - held.used > _IDLE_SECONDS
            }
            if not idle:
                return
            gone = {id(self._by_key.pop(key)) for key in idle}
            for authorization in [each for each, held in self._by_authorization.items() if id(held) in gone]:
                del self._by_authorization[authorization]
            for account_id, held_here in list(self._of_account.items()):
                held_here -= {held for held in held_here if id(held) in gone}
                if not held_here:
                    del self._of_account[account_id]
                    self._epochs.pop(account_id, None)
                    if self._service is not None:
                        self._service.forget(account_id)

    def close(self) -> None:
        """Decide no more here, and give back what is left."""
        self.give_up()
        _open.discard(self)
        if self._service is not None:
            self._service.close()

    def give_up(self) -> None:
        """Decide no more here, and have what is left given back soon. Waits for nothing."""
        with self._lock:
            self._closed = True
            leases = [lease for held in self._by_key.values() if (lease := held.lease) is not None]
            self._by_key, self._by_authorization, self._of_account = {}, {}, {}
        for lease in leases:
            self._settle(lease)

    def after_fork(self) -> None:
        """Forget, in a child, all leases: they are the parent's to use and to settle."""
        self._lock = threading.Lock()
        self._service = None
        _open.discard(self)
        self._by_key, self._by_authorization, self._of_account, self._epochs = {}, {}, {}, {}


_open: weakref.WeakSet[Leases] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Give back, at the interpreter's exit, what clients still hold that nobody has closed: it is paid for."""
    until = monotonic() + _AT_EXIT_SECONDS
    left = list(_open)
    for leases in left:  # from now on each one's thread settles; only then is any of them waited for
        leases.give_up()
    for leases in left:
        if monotonic() < until:
            leases.close()


_ALL: Final = 10**9


def _is_decidable(check: Check) -> bool:
    """Tell whether the same check could be decided here."""
    return check.cost != 0 and not (check.strict or check.explain or check.request_id or check.tags)


def shape_of(check: Check) -> Shape:
    """Return what a check wants, but for its key and cost, so that it has a hash where its parts have."""
    _, _, permissions, resources, api_group, environment, http_method, source_ip, _, _, policy, *_ = check
    return _hashed(permissions), _hashed(resources), api_group, environment, http_method, source_ip, policy


def _hashed(given: Any) -> Any:  # noqa: ANN401 - a caller's, of whatever type
    return given if given.__class__ is tuple or given.__class__ is str else several(given)


def _hashable(shape: Shape) -> Shape:
    permissions, resources, *rest = shape
    return (_hashed(permissions), _hashed(resources), *rest)


def _bearer(authorization: str) -> str:
    """Return the one token of an Authorization header's value; empty: it is not of that form."""
    scheme, _, token = authorization.strip(" \t").partition(" ")
    token = token.lstrip(" ")
    return token if scheme.lower() == "bearer" and token.split() == [token] else ""
