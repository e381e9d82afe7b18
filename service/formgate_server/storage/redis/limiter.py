"""The counters and epochs of many processes, in Redis: one script decides checks (docs/adr/0010).

A counter that must outlive Redis runs only up to a mark that the database already holds (docs/adr/0005). Where Redis
has lost it, it is read from there, never assumed.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

from formgate_server.core.errors import UnavailableError
from formgate_server.core.fields import LARGEST
from formgate_server.core.limits import Counter, Standing, outlives_its_store, spend
from formgate_server.core.ports import (
    Charge,
    Charged,
    ChargeResult,
    Clock,
    EpochMissing,
    EpochMoved,
    LeaseCharge,
    Leased,
    LeaseResult,
    LeasesOut,
    Reservations,
)
from formgate_server.core.quick import made
from formgate_server.storage.redis.client import RedisClient
from formgate_server.storage.redis.errors import ScriptFailed
from formgate_server.storage.redis.lua import CHARGE, NEW, OUT, PUBLISH, REFUND, SEED
from formgate_server.storage.redis.marks import Mark, Missing, RedisMarks
from formgate_server.storage.redis.plan import (
    MOST,
    PREFIX,
    Plan,
    RedisTime,
    Status,
    Words,
    account_key,
    account_word,
    admission_of,
    counter_key,
    packed,
)

_REMEMBERED = 60_000
"""How long an admission's request_id is remembered, in milliseconds."""
_ADJUSTED = 60 * 60 * 1_000
"""How long the name of an adjustment is remembered, in milliseconds."""
_LEASE_REMEMBERED = 10 * 60_000
"""How long a lease is remembered, to be settled, in milliseconds."""
_RETRY_LEASE = 1_000_000
_CHECKS_A_CALL = 64
"""So that Redis is never held for long."""
_ATTEMPTS = 100
_PLANS = 20_000
_RANDOM_BITS = 52

_KEPT = {"a": _ADJUSTED, "e": _LEASE_REMEMBERED}

_CHARGED, _DENIED, _KNOWN = int(Status.CHARGED), int(Status.DENIED), int(Status.KNOWN)


_P = ParamSpec("_P")
_R = TypeVar("_R")

_Reply = tuple[int, bool, Sequence[Any]]
"""The time in Redis, whether marks did not count when it was sent, and what charge.lua says of a check."""


class _Check(NamedTuple):
    """A check, look, adjustment or lease as charge.lua takes it.

    ``once`` is the key that remembers it; empty: none does. ``longest``: how long a lease may be.
    """

    what: str
    account_id: str
    plan: Plan
    cost: int
    epoch: int = 0
    once: str = ""
    longest: int = 0

    @property
    def repeatable(self) -> bool:
        if self.what == "e":
            return not self.plan.counted
        return bool(self.once) or not self.cost or not self.plan.counted


class _Call:
    """Checks that go in one call of charge.lua, by their accounts. ``repeatable``: all of them are.

    ``forced``: it was sent while charges go on beyond their marks.
    """

    __slots__ = ("accounts", "forced", "repeatable", "size")

    def __init__(self, repeatable: bool) -> None:  # noqa: FBT001 - says its name
        self.accounts: dict[str, list[tuple[int, _Check]]] = {}
        self.repeatable = repeatable
        self.forced = False
        self.size = 0

    def add(self, index: int, check: _Check) -> None:
        self.accounts.setdefault(check.account_id, []).append((index, check))
        self.size += 1

    @property
    def indexes(self) -> list[int]:
        """Those under which checks were added, in the order in which they are answered."""
        return [index for checks in self.accounts.values() for index, _ in checks]


def _readable(read: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have ``read`` raise ScriptFailed for a reply that is none, which is a matter of its check alone."""

    @wraps(read)
    def tried(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return read(*args, **kwargs)
        except UnavailableError:
            raise
        except Exception as error:
            raise ScriptFailed(f"a reply that is none: {error!r}") from error

    return tried


class RedisLimiter:
    """The Limiter and Leases ports, shared by all processes that use this Redis."""

    def __init__(  # noqa: PLR0913 - each of them an operator's choice
        self,
        client: RedisClient,
        reservations: Reservations,
        clock: Clock,
        *,
        prefix: str = PREFIX,
        replication_ids: bool = True,
        on_degraded: Callable[[bool], None] = lambda _: None,
        retry_seconds: float = 1.0,
        patience_seconds: float = 2.0,
    ) -> None:
        """Count in Redis, by its clock; ``clock`` only tells which calendar periods it will need.

        All keys begin with ``prefix``. ``replication_ids``: whether scripts see by which Redis something was written,
        which they must where a replica may take over with less than there was. The rest is as with MemoryLimiter.
        """
        self._client = client
        self._time = RedisTime(clock)
        self._prefix = prefix
        self._compared = "1" if replication_ids else "0"
        self._marks = RedisMarks(
            client,
            reservations,
            self._time,
            replication_ids=replication_ids,
            on_degraded=on_degraded,
            retry_seconds=retry_seconds,
            patience_seconds=patience_seconds,
        )
        # Seeded here, in this very process: two that share incarnations would seed each other's.
        self._random = random.Random(os.urandom(32))  # noqa: S311 - it need not be secret, but nobody else's
        self._plans: dict[int, Plan] = {}
        self._turn: list[tuple[_Check, asyncio.Future[_Reply]]] = []
        """What this turn of the event loop has asked for."""

    def compare_replication_ids(self, compare: bool) -> None:  # noqa: FBT001 - says its name
        """Let scripts see by which Redis something was written, or not. What was written otherwise is missing then."""
        self._compared = self._marks.compared = "1" if compare else "0"

    async def close(self) -> None:
        """Raise no more marks. The counters stay in Redis."""
        await self._marks.stop()

    # Epochs.

    async def publish(self, account_id: str, epoch: int) -> None:
        """See ``Limiter.publish``."""
        words = (self._compared, epoch, self._incarnation())
        await self._client.run(PUBLISH, account_id, (self._account(account_id),), words, repeatable=True)

    async def seed(self, account_id: str, epoch: int, incarnation: int) -> None:
        """See ``Limiter.seed``."""
        words = (self._compared, epoch, incarnation)
        await self._client.run(SEED, account_id, (self._account(account_id),), words, repeatable=True)

    def _account(self, account_id: str) -> str:
        return account_key(self._prefix, account_id)

    def _incarnation(self) -> int:
        return self._random.getrandbits(_RANDOM_BITS)

    # Charges.

    async def charge(self, charge: Charge) -> ChargeResult:
        """See ``Limiter.charge``."""
        check = self._check(charge)
        time, forced, reply = await self._send_one(check)
        result = self._result(check, time, reply, forced)
        return await self._insist(check, time, reply, self._result) if result is None else result

    async def charge_many(self, charges: Sequence[Charge]) -> Sequence[ChargeResult | UnavailableError]:
        """See ``Limiter.charge_many``: many go in one call, all of them in one write."""
        checks = [self._check(charge) for charge in charges]
        results: dict[int, ChargeResult | UnavailableError] = {}
        now = self._time.now()
        fit = []
        for index, check in enumerate(checks):
            try:
                _pack(check, now)
            except UnavailableError as error:
                results[index] = error
            else:
                fit.append((index, check))
        sent = [(call, self._send(call)) for call in self._calls(fit)]
        waiting = []
        for call, future in sent:
            try:
                time, *replies = await future
            except UnavailableError as error:
                results |= dict.fromkeys(call.indexes, error)
                continue
            for index, reply in zip(call.indexes, replies, strict=True):
                check = checks[index]
                try:
                    result = self._result(check, time, reply, call.forced)
                except UnavailableError as error:
                    results[index] = error
                    continue
                if result is None:
                    waiting.append((index, self._insist_or_tell(check, time, reply)))
                else:
                    results[index] = result
        told = await asyncio.gather(*(insisted for _, insisted in waiting))
        results |= {index: result for (index, _), result in zip(waiting, told, strict=True)}
        return [results[index] for index in range(len(checks))]

    def _calls(self, checks: Iterable[tuple[int, _Check]]) -> list[_Call]:
        """Return the calls that checks go in, each with its number: those of one account in order."""
        calls: list[_Call] = []
        open_calls: dict[tuple[object, bool], int] = {}
        of_account: dict[str, int] = {}
        for index, check in checks:
            account_id, repeatable = check.account_id, check.repeatable
            place = self._client.place(account_id), repeatable
            number = open_calls.get(place, -1)
            # Not in a call before that of an earlier check of the account.
            if number < of_account.get(account_id, 0) or calls[number].size >= _CHECKS_A_CALL:
                number = open_calls[place] = len(calls)
                calls.append(_Call(repeatable))
            of_account[account_id] = number
            calls[number].add(index, check)
        return calls

    async def look(self, account_id: str, counters: Sequence[Counter]) -> tuple[Standing, ...]:
        """See ``Limiter.look``."""
        return (await self._make(_Check("l", account_id, self._plan(account_id, counters), 0))).standings

    async def adjust(self, account_id: str, counters: Sequence[Counter], units: int, *, once: str) -> None:
        """See ``Limiter.adjust``."""
        key = f"{self._account(account_id)}:a:{once}"
        await self._make(_Check("a", account_id, self._plan(account_id, counters), min(units, MOST), once=key))

    async def _make(self, check: _Check) -> Charged:
        if not check.plan.counted:
            return Charged(None, None, check.plan.told(())[0])
        time, forced, reply = await self._send_one(check)
        result = self._result(check, time, reply, forced)
        if result is None:
            result = await self._insist(check, time, reply, self._result)
        assert isinstance(result, Charged)  # noqa: S101 - for the type checker: no epoch was compared
        return result

    def _check(self, charge: Charge) -> _Check:
        account_id = charge.account_id
        plan = self._plan(account_id, charge.counters)
        once = ""
        if charge.request_id and plan.counted:
            once = f"{self._account(account_id)}:r:{charge.key_id}:{charge.request_id}"
        return made(_Check, ("c", account_id, plan, min(charge.cost, MOST + 1), charge.epoch, once, 0))

    def _plan(self, account_id: str, counters: Sequence[Counter]) -> Plan:
        plan = self._plans.get(id(counters))
        if plan is not None and plan.counters is counters and plan.account_id == account_id:
            return plan
        plan = Plan(account_id, tuple(counters), self._account(account_id))
        if plan.counters is counters:
            if len(self._plans) >= _PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[id(counters)] = plan
        return plan

    def _send_one(self, check: _Check) -> asyncio.Future[_Reply]:
        """Return the reply to come; what else this turn asks for goes in the same call."""
        _pack(check, self._time.now())
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[_Reply] = loop.create_future()
        if not self._turn:
            loop.call_soon(self._send_turn)
        self._turn.append((check, reply))
        return reply

    def _send_turn(self) -> None:
        turn, self._turn = [each for each in self._turn if not each[1].done()], []  # else nobody waits for it any more
        for call in self._calls(enumerate(check for check, _ in turn)):
            replies = [turn[index][1] for index in call.indexes]
            try:
                self._send(call).add_done_callback(partial(_hand_out, call, replies))
            except Exception as error:  # noqa: BLE001 - a fault of ours, which each of them is told
                _fail(replies, error)

    def _send(self, call: _Call) -> asyncio.Future[list[Any]]:
        """Return the time in Redis and a reply for each check, to come."""
        now = self._time.now()
        call.forced = self._marks.degraded
        keys: list[str] = []
        words: Words = [self._compared, self._incarnation(), "1" if call.forced else "0"]
        for checks in call.accounts.values():
            keys_before, words_before = len(keys), len(words)
            keys.append(checks[0][1].plan.account_key)
            words.append(b"")
            for _, check in checks:
                plan, once = check.plan, check.once
                kept = _KEPT.get(check.what, _REMEMBERED) if once else 0
                words.append(plan.word(now, check.what, check.cost, kept, check.epoch))
                if check.longest:
                    words.append(check.longest)
                if once:
                    words.append(plan.remembered)
                    keys.append(once)
                keys += plan.keys
            words[words_before] = account_word(len(checks), len(keys) - keys_before, len(words) - words_before)
        slot = next(iter(call.accounts))
        return self._client.run_soon(CHARGE, slot, keys, words, repeatable=call.repeatable)

    @_readable
    def _result(self, check: _Check, time: int, reply: Sequence[Any], forced: bool) -> ChargeResult | None:  # noqa: FBT001
        """Return what a reply says; None: it must be asked again (see ``_insist``). ``forced``: beyond marks."""
        status = reply[0]
        if status == Status.MOVED:
            return EpochMoved(int(reply[1]))
        if status == Status.MISSING:
            return EpochMissing(int(reply[1]))
        if status > _KNOWN:
            _raise_if_failed(reply)
            return None
        plan = check.plan
        degraded = forced or self._marks.degraded
        standings, short = plan.told(reply)
        if status == _DENIED:
            spent = spend(plan.counted, plan.states(reply), check.cost, time)
            if spent.denied is None:
                message = "The counters deny what would fit."
                raise UnavailableError(message)
            retry = None if spent.retry_time is None else spent.retry_time - time
            return Charged(plan.limit(spent.denied), retry, standings, degraded)
        if status == _CHARGED and check.cost:
            for index in short:
                self._marks.want(check.account_id, plan.keys[index], plan.counted[index])
        return made(Charged, (None, None, standings, degraded))

    async def _insist(
        self,
        check: _Check,
        time: int,
        reply: Sequence[Any],
        read: Callable[[_Check, int, Sequence[Any], bool], _R | None],
    ) -> _R:
        """Provide what a check was missing and send it again, until it is decided."""
        held: list[Mark] = []
        try:
            for _ in range(_ATTEMPTS):
                if reply[0] == Status.CLOCK:
                    self._time.told(time)
                elif reply[0] == Status.LOAD:
                    await self._load(check, time, reply)
                else:
                    marks = self._raise(check)
                    if not held:
                        held = marks
                        for mark in held:
                            self._marks.hold(mark)
                    await self._marks.wait()
                time, forced, reply = await self._send_one(check)
                result = read(check, time, reply, forced)
                if result is not None:
                    return result
        finally:
            self._marks.release(held)
        message = "The counters are raised by too many at once; try again."
        raise UnavailableError(message)

    async def _insist_or_tell(self, check: _Check, time: int, reply: Sequence[Any]) -> ChargeResult | UnavailableError:
        try:
            return await self._insist(check, time, reply, self._result)
        except UnavailableError as error:
            return error

    def _raise(self, check: _Check) -> list[Mark]:
        """Have the marks of all counters raised: those that are high enough must stay so until the others are."""
        plan = check.plan
        units = 1 if check.what == "e" else check.cost  # a lease takes what there is
        return [
            self._marks.want(check.account_id, key, counter, units)
            for key, counter, durable in zip(plan.keys, plan.counted, plan.durable, strict=True)
            if durable
        ]

    async def _load(self, check: _Check, time: int, reply: Sequence[Any]) -> None:
        plan = check.plan
        await self._marks.load(
            [
                Missing(check.account_id, plan.keys[index - 1], plan.counted[index - 1], incarnation, time)
                for index, incarnation in zip(reply[1::2], reply[2::2], strict=True)
            ]
        )

    async def refund(self, account_id: str, key_id: str, request_id: str) -> None:
        """See ``Limiter.refund``. A refunded admission is forgotten: repeated, it is charged again."""
        await self._give_back(account_id, f"r:{key_id}:{request_id}", _REMEMBERED, LARGEST)

    async def _give_back(self, account_id: str, name: str, kept: int, most: int) -> int:
        """Give back at most ``most`` units of what is remembered under ``name`` for ``kept`` milliseconds, once."""
        of_account = self._account(account_id)
        once = f"{of_account}:{name}"
        value = await self._client.command("GET", once, slot=account_id)
        if value is None:
            return 0
        admission = admission_of(value.decode())
        units = min(most, int(admission.cost))
        keys = [once, *(counter_key(of_account, counter) for counter, _ in admission.charged)]
        counters = packed([counter for counter, _ in admission.charged], self._time.now())
        moments = [charged_at for _, charged_at in admission.charged]
        words: Words = [self._compared, value, admission.time, units, kept * 1_000, counters, *moments]
        if not await self._client.run(REFUND, account_id, keys, words, repeatable=False):
            return 0
        for key, (counter, _) in zip(keys[1:], admission.charged, strict=True):
            if outlives_its_store(counter.limit):
                # A mark that stays above what was given back would cost it after all.
                self._marks.want(account_id, key, counter, lower=True)
        return units

    # Leases.

    async def lease(self, wanted: LeaseCharge) -> LeaseResult:
        """See ``Leases.lease``."""
        if self._marks.degraded:
            return Leased(0, _RETRY_LEASE, degraded=True)
        account_id = wanted.account_id
        plan = self._plan(account_id, wanted.counters)
        once = f"{self._account(account_id)}:l:{wanted.lease_id}" if plan.counted else ""
        check = _Check("e", account_id, plan, min(wanted.units, MOST), wanted.epoch, once, wanted.duration)
        time, _, reply = await self._send_one(check)
        result = self._leased(check, time, reply, False)  # noqa: FBT003 - as _insist calls it
        return await self._insist(check, time, reply, self._leased) if result is None else result

    @_readable
    def _leased(self, check: _Check, _time: int, reply: Sequence[Any], _forced: bool) -> LeaseResult | None:  # noqa: FBT001
        """Return what a reply to a lease says; None: it must be asked again."""
        status = reply[0]
        if status == Status.MOVED:
            return EpochMoved(int(reply[1]))
        if status == Status.MISSING:
            return EpochMissing(int(reply[1]))
        if status > _KNOWN:
            _raise_if_failed(reply)
            return Leased(0, _RETRY_LEASE, degraded=True) if self._marks.degraded else None
        plan = check.plan
        standings, short = plan.told(reply)
        for index in short:
            self._marks.want(check.account_id, plan.keys[index], plan.counted[index])
        units, duration = reply[-2:]
        return Leased(units, duration, standings if units else ())

    async def settle(self, account_id: str, lease_id: str, unused: int) -> int:
        """See ``Leases.settle``."""
        return await self._give_back(account_id, f"l:{lease_id}", _LEASE_REMEMBERED, unused)

    async def out(self, account_id: str) -> LeasesOut:
        """See ``Leases.out``."""
        left, known_for = await self._client.run(
            OUT, account_id, (self._account(account_id),), (self._compared,), repeatable=True
        )
        return LeasesOut(left, None if known_for < 0 else known_for)

    async def none_out(self, account_id: str) -> None:
        """See ``Leases.none_out``."""
        words = (self._compared, self._incarnation())
        await self._client.run(NEW, account_id, (self._account(account_id),), words, repeatable=True)


def _pack(check: _Check, now: int) -> None:
    """Pack a check's counters before it goes with others: if that fails, it is for this check alone."""
    try:
        check.plan.packed(now)
    except Exception as error:
        message = f"This server can not look up the limits' periods: {error}."  # as of a zone that it does not know
        raise UnavailableError(message) from error


def _raise_if_failed(reply: Sequence[Any]) -> None:
    if reply[0] == Status.FAILED:
        raise ScriptFailed(reply[1].decode())


def _hand_out(call: _Call, replies: Sequence[asyncio.Future[_Reply]], answered: asyncio.Future[list[Any]]) -> None:
    """Tell each check of a call its reply, or why there is none: nobody waits for ever."""
    try:
        time, *told = answered.result()
        pairs = list(zip(replies, told, strict=True))
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, each of them is told
        _fail(replies, error)
        return
    for reply, each in pairs:
        if not reply.done():  # else nobody waits for it any more
            reply.set_result((time, call.forced, each))


def _fail(replies: Sequence[asyncio.Future[_Reply]], error: BaseException) -> None:
    for reply in replies:
        if not reply.done():
            reply.set_exception(error if isinstance(error, Exception) else UnavailableError("The call was broken off."))
