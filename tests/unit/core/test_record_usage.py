"""RecordUsage over stores in memory: what is accepted, and what an accepted record charges or gives back, once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from formgate_server.core.errors import InvalidArgumentError, UnavailableError
from formgate_server.core.limits import Counter
from formgate_server.core.model import (
    Account,
    AccountState,
    Calendar,
    Caller,
    Environment,
    Holder,
    Key,
    KeyState,
    Lifetime,
    Limit,
    Period,
    ServiceRole,
    UsageOutcome,
    UsageRecord,
)
from formgate_server.core.policy import Policies
from formgate_server.core.ports import UsageEntry
from formgate_server.core.record_usage import AHEAD, OLDEST, RecordUsage, UsageResult
from formgate_server.core.settle import Settle
from formgate_server.policies.policy import load
from formgate_server.storage.memory.registry import MemoryRegistry
from formgate_server.storage.memory.usage import HourOf, MemoryUsageLedger
from formgate_server.storage.sums import Sum
from tests.support.clock import DAY, HOUR, MINUTE, SECOND, SettableClock
from tests.support.stores import AUDIT_KEYS

POLICIES = Policies({"default": load().by_name["default"]}, "default")
CALLER = Caller("t1", ServiceRole.CHECKER)
ACCEPTED, DUPLICATE = UsageOutcome.ACCEPTED, UsageOutcome.DUPLICATE
CONFLICT, REJECTED = UsageOutcome.CONFLICT, UsageOutcome.REJECTED
DAILY = Limit("daily", Holder.KEY, 10, Calendar(Period.DAY))
CREDITS = Limit("credits", Holder.ACCOUNT, 10, Lifetime())


class Charges:
    """As much of a Limiter as is used: what was adjusted and refunded, in order; it waits for a gate."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing: set[int] = set()
        """Charges of so many units fail."""
        self.adjusted: list[tuple[list[str], int]] = []
        self.refunded: list[tuple[str, str]] = []

    async def adjust(self, account_id: str, counters: Sequence[Counter], units: int, *, once: str) -> None:
        """See ``Limiter``."""
        await self.gate.wait()
        if units in self.failing:
            raise UnavailableError("The counters are away.")
        self.adjusted.append(([counter.limit.name for counter in counters], units))

    async def refund(self, account_id: str, key_id: str, request_id: str) -> None:
        """See ``Limiter``."""
        await self.gate.wait()
        self.refunded.append((key_id, request_id))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"recording has no business with {name}")


class Ledger(MemoryUsageLedger):
    """A ledger that may be away, and counts its transactions."""

    broken = False
    transactions = 0

    async def record(self, entries: Sequence[UsageEntry]) -> list[UsageOutcome]:
        """See ``UsageLedger``."""
        self.transactions += 1
        if self.broken:
            raise UnavailableError("The database is away.")
        return await super().record(entries)


class World:
    """Two accounts with a key each: ``acme`` with ``k1``, ``other`` with ``k2``."""

    def __init__(self) -> None:
        self.clock = SettableClock()
        self.registry = MemoryRegistry(AUDIT_KEYS)
        self.ledger = Ledger(self.registry)
        self.charges = Charges()
        self.settle = Settle(self.ledger, self.charges, POLICIES)
        self.record_usage = RecordUsage(
            self.ledger,
            self.settle,
            POLICIES,
            self.clock,
        )
        for account_id, key_id in (("acme", "k1"), ("other", "k2")):
            self.registry.tables.accounts[account_id] = Account(
                account_id=account_id,
                display_name="",
                policy="default",
                plan="standard",
                state=AccountState.ACTIVE,
                time_zone="",
                limits=(CREDITS,),
                epoch=1,
                version=1,
                create_time=0,
            )
            self.registry.tables.keys[key_id] = Key(
                key_id=key_id,
                account_id=account_id,
                display_name="",
                environment=Environment.LIVE,
                state=KeyState.ENABLED,
                hint="",
                created_by="",
                create_time=0,
                expire_time=None,
                limits=(DAILY,),
            )

    async def __call__(
        self, *records: UsageRecord | InvalidArgumentError, caller: Caller = CALLER
    ) -> list[UsageResult]:
        """Record."""
        return await self.record_usage(caller, records)


@pytest.fixture
def world() -> World:
    """Two accounts with a key each."""
    return World()


def record(record_id: str = "r1", key_id: str = "k1", units: int = 1, **more: Any) -> UsageRecord:
    """Make a record."""
    return UsageRecord(record_id=record_id, key_id=key_id, units=units, **more)


def outcomes(results: list[UsageResult]) -> list[UsageOutcome]:
    """Return what became of each."""
    return [result.outcome for result in results]


# ---------------------------------------------------------------------------------------------------- what is accepted


@pytest.mark.parametrize(
    ("offset", "accepted"),
    [
        (0, True),
        (-OLDEST, True),
        (-OLDEST - 1, False),
        (AHEAD, True),
        (AHEAD + 1, False),
        (-(10**18), False),
        (10**18, False),
    ],
)
async def test_how_old_and_how_far_ahead_a_record_may_be(world: World, offset: int, *, accepted: bool) -> None:
    """35 days and 5 minutes, both included, to the microsecond; it lands in the hour in which it happened."""
    assert (OLDEST, AHEAD) == (35 * DAY, 5 * MINUTE)
    time = world.clock.now() + offset
    (result,) = await world(record(occur_time=time, units=3, operation="read"))
    assert (result.outcome is ACCEPTED) == accepted
    if accepted:
        assert world.ledger.hours == {HourOf("acme", "k1", time - time % HOUR, "read"): Sum(3, 1)}
    else:
        assert result.message.startswith("occur_time: ")
        assert world.ledger.records == {}


async def test_a_record_without_a_time_happened_now(world: World) -> None:
    """Sent again an hour later it is still the same record, of the hour in which it was accepted."""
    (first,) = await world(record())
    world.clock.time += HOUR
    (second,) = await world(record())
    assert (first.outcome, second.outcome) == (ACCEPTED, DUPLICATE)
    assert [hour.hour for hour in world.ledger.hours] == [SettableClock().now()]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("record_id", record("")),
        ("record_id", record("a b")),
        ("record_id", record("..")),
        ("record_id", record("x" * 65)),
        ("key_id", record(key_id="")),
        ("key_id", record(key_id="nobody")),
        ("key_id", record(key_id="{k1}")),
        ("units", record(units=-1)),
        ("units", record(units=10**15 + 1)),
        ("operation", record(operation="x" * 129)),
        ("operation", record(operation="read\n2026 INFO all is well")),
        ("resource", record(resource="forms//f1")),
        ("resource", record(resource="forms/../f1")),
        ("status_code", record(status_code=99)),
        ("status_code", record(status_code=600)),
        ("status_code", record(status_code=-1)),
        ("latency", record(latency=-1)),
        ("latency", record(latency=DAY + 1)),
        ("tags", record(tags={f"t{number}": "" for number in range(17)})),
        ("tags", record(tags={"": "x"})),
        ("charge_units", record(charge_units=-1)),
        ("charge_units", record(charge_units=10**15 + 1)),
        ("refund_request_id", record(refund_request_id="a/b")),
        ("occur_time", record(occur_time=-1)),
    ],
)
async def test_a_rejected_record_names_its_field_and_touches_nothing(
    world: World, field: str, wrong: UsageRecord
) -> None:
    """The others of the call are accepted; what it would charge or give back is not."""
    wrong = replace(
        wrong,
        charge_units=5 if wrong.charge_units is None else wrong.charge_units,
        refund_request_id=wrong.refund_request_id or "q1",
    )
    results = await world(record("before"), wrong, record("after"))
    assert outcomes(results) == [ACCEPTED, REJECTED, ACCEPTED]
    assert results[1].record_id == wrong.record_id
    assert results[1].message.startswith(f"{field}: ")
    assert set(world.ledger.records) == {("acme", "before"), ("acme", "after")}
    assert (world.charges.adjusted, world.charges.refunded) == ([], [])


@pytest.mark.parametrize(
    "right",
    [
        record(units=0),
        record(units=10**15),
        record("x" * 64),
        record(status_code=100),
        record(status_code=599),
        record(latency=0),
        record(latency=DAY),
        record(resource="*"),
        record(resource="forms/f1"),
        record(operation="x" * 128),
        record(tags={f"t{number}": "v" for number in range(16)}),
        record(charge_units=0),
    ],
)
async def test_values_at_the_edges_are_accepted(world: World, right: UsageRecord) -> None:
    """They are kept as they were sent."""
    assert outcomes(await world(right)) == [ACCEPTED]
    assert world.ledger.records["acme", right.record_id].record == right


async def test_a_record_that_could_not_be_read_is_rejected_in_its_place(world: World) -> None:
    """Such as one with a time that is none: the rim hands its error in."""
    unread = InvalidArgumentError("occur_time", "is not a time")
    unread.metadata["record_id"] = "r2"
    results = await world(record("r1"), unread, record("r3"))
    assert [(result.record_id, result.outcome) for result in results] == [
        ("r1", ACCEPTED),
        ("r2", REJECTED),
        ("r3", ACCEPTED),
    ]


async def test_nothing_acceptable_is_no_transaction(world: World) -> None:
    """Nor is an empty call."""
    assert await world() == []
    assert outcomes(await world(record(units=-1))) == [REJECTED]
    assert world.ledger.transactions == 0


@pytest.mark.parametrize(
    ("account_id", "policy", "seen"),
    [
        ("", "", {"k1", "k2"}),
        ("acme", "", {"k1"}),
        ("nobody", "", set()),
        ("", "default", {"k1", "k2"}),
        ("", "second", set()),
        ("acme", "second", set()),
    ],
)
async def test_a_bound_caller_records_for_its_own_keys_only(
    world: World, account_id: str, policy: str, seen: set[str]
) -> None:
    """Another's key is, in the same words, none."""
    caller = replace(CALLER, account_id=account_id, policy=policy)
    results = await world(*(record(f"r-{key_id}", key_id) for key_id in ("k1", "k2", "nobody")), caller=caller)
    accepted = {result.record_id for result in results if result.outcome is ACCEPTED}
    assert accepted == {f"r-{key_id}" for key_id in seen}
    assert {result.message for result in results if result.outcome is REJECTED} == {"key_id: no such key"}


@pytest.mark.parametrize("state", KeyState)
async def test_late_usage_of_any_key_is_accepted(world: World, state: KeyState) -> None:
    """What was consumed was consumed, though the key has been revoked since."""
    world.registry.tables.keys["k1"] = replace(world.registry.tables.keys["k1"], state=state)
    assert outcomes(await world(record(occur_time=world.clock.now() - DAY))) == [ACCEPTED]


# --------------------------------------------------------------------------------------------------------- counted once


async def test_results_are_in_the_order_of_the_records(world: World) -> None:
    """Whatever becomes of each, in one transaction."""
    await world(record("old"), record("changed"))
    results = await world(
        record("bad", units=-1),
        record("new"),
        record("old"),
        record("changed", units=2),
        record("new"),
        record("new", units=2),
        record("other", "k2"),
        record("bad", units=-1),
    )
    assert [(result.record_id, result.outcome) for result in results] == [
        ("bad", REJECTED),
        ("new", ACCEPTED),
        ("old", DUPLICATE),
        ("changed", CONFLICT),
        ("new", DUPLICATE),
        ("new", CONFLICT),
        ("other", ACCEPTED),
        ("bad", REJECTED),
    ]
    assert [bool(result.message) for result in results] == [True, False, True, True, True, True, False, True]
    assert world.ledger.transactions == 2
    assert sum(sums.units for sums in world.ledger.hours.values()) == 4


async def test_an_id_is_unique_in_its_account_only(world: World) -> None:
    """Two accounts may use the same."""
    assert outcomes(await world(record("r1", "k1"), record("r1", "k2"))) == [ACCEPTED, ACCEPTED]


@pytest.mark.parametrize(
    "change",
    [
        {"units": 2},
        {"operation": "write"},
        {"resource": "forms/f2"},
        {"status_code": 500},
        {"latency": 8},
        {"latency": None},
        {"occur_time": SettableClock().now() - 1},
        {"occur_time": None},
        {"tags": {"a": "c"}},
        {"tags": {}},
        {"charge_units": 4},
        {"charge_units": None},
        {"refund_request_id": "q2"},
    ],
)
async def test_the_same_id_with_any_other_content_is_a_conflict(world: World, change: dict[str, Any]) -> None:
    """And with the same, a duplicate, in whatever order its tags come; neither charges anything."""
    first = record(
        operation="read",
        resource="forms/f1",
        status_code=200,
        latency=7,
        occur_time=world.clock.now() - SECOND,
        tags={"a": "b", "c": "d"},
        charge_units=3,
        refund_request_id="q1",
    )
    again = replace(first, tags={"c": "d", "a": "b"})
    assert outcomes(await world(first, again, replace(first, **change))) == [ACCEPTED, DUPLICATE, CONFLICT]
    assert (world.charges.adjusted, world.charges.refunded) == ([(["credits", "daily"], 3)], [("k1", "q1")])


# ------------------------------------------------------------------------------------------------- charged, given back


async def test_accepted_records_charge_what_they_say_once(world: World) -> None:
    """To all the limits of their key; sent again, or in conflict, they charge nothing."""
    batch = (
        record("r1", charge_units=3),
        record("r2", "k2", charge_units=4),
        record("r3"),
        record("r4", charge_units=0),
    )
    await world(*batch)
    assert sorted(world.charges.adjusted) == [(["credits", "daily"], 3), (["credits", "daily"], 4)]
    await world(*batch)
    await world(record("r1", charge_units=5))
    assert len(world.charges.adjusted) == 2


async def test_duplicates_within_a_call_charge_once(world: World) -> None:
    """Each accepted record its own units."""
    await world(*(record("r1", charge_units=3) for _ in range(5)), record("r2", charge_units=4))
    assert sum(units for _, units in world.charges.adjusted) == 7


async def test_accepted_records_give_back_what_they_say_once(world: World) -> None:
    """For their own key."""
    batch = (record("r1", refund_request_id="q1"), record("r2", "k2", refund_request_id="q1"))
    await world(*batch)
    await world(*batch)
    assert world.charges.refunded == [("k1", "q1"), ("k2", "q1")]


async def test_where_nothing_can_be_kept_nothing_is_charged(world: World) -> None:
    """UNAVAILABLE; sent again it is accepted, and charged then."""
    sent = record(charge_units=3, refund_request_id="q1")
    world.ledger.broken = True
    with pytest.raises(UnavailableError):
        await world(sent)
    world.ledger.broken = False
    assert (world.ledger.records, world.ledger.owed, world.charges.adjusted, world.charges.refunded) == ({}, {}, [], [])
    assert outcomes(await world(sent)) == [ACCEPTED]
    assert (len(world.charges.adjusted), len(world.charges.refunded)) == (1, 1)


async def test_what_is_charged_before_the_answer_is_no_longer_owed(world: World) -> None:
    """Nobody finds it in the ledger afterwards."""
    assert outcomes(await world(record(charge_units=3), record("r2", refund_request_id="q1"))) == [ACCEPTED] * 2
    assert (world.charges.adjusted, world.charges.refunded) == ([(["credits", "daily"], 3)], [("k1", "q1")])
    assert world.ledger.owed == {}


async def test_a_record_is_accepted_though_its_charge_fails(world: World) -> None:
    """It stays owed, and a sweep makes it; what the same call owes beside it is charged at once."""
    world.charges.failing = {3}
    assert outcomes(await world(record(charge_units=3), record("r2", charge_units=4))) == [ACCEPTED] * 2
    assert [units for _, units in world.charges.adjusted] == [4]
    assert [owed.charge_units for _, owed in world.ledger.owed.values()] == [3]
    with pytest.raises(UnavailableError):
        await world.settle.sweep(older_than=0)
    world.charges.failing = set()
    assert await world.settle.sweep(older_than=0) == 1
    assert [units for _, units in world.charges.adjusted] == [4, 3]
    assert world.ledger.owed == {}
    assert await world.settle.sweep(older_than=0) == 0


async def test_what_is_owed_belongs_to_its_writer_for_a_while(world: World) -> None:
    """A sweep leaves what is new to whoever wrote it."""
    world.charges.failing = {3}
    await world(record(charge_units=3))
    world.charges.failing = set()
    assert await world.settle.sweep() == 0
    assert len(world.ledger.owed) == 1


async def test_a_caller_waits_for_its_charges_only_so_long(world: World) -> None:
    """Then it is answered, and the charge goes on without it; who charges nothing does not wait at all."""
    world.charges.gate.clear()
    world.record_usage = RecordUsage(world.ledger, world.settle, POLICIES, world.clock, patience_seconds=0.01)
    assert outcomes(await world(record(charge_units=3))) == [ACCEPTED]
    assert world.charges.adjusted == []
    assert len(world.ledger.owed) == 1
    world.charges.gate.set()
    await world.record_usage.finish()
    assert [units for _, units in world.charges.adjusted] == [3]
    assert world.ledger.owed == {}


async def test_who_charges_nothing_waits_for_nobody_s_charges(world: World) -> None:
    """Though its records are in one transaction with those that do."""
    world.charges.gate.clear()
    slow = asyncio.create_task(world(record("r1")))
    charging = asyncio.create_task(world(record("r2", charge_units=3)))
    quick = asyncio.create_task(world(record("r3")))
    assert outcomes(await asyncio.wait_for(quick, 5)) == [ACCEPTED]
    assert outcomes(await slow) == [ACCEPTED]
    assert not charging.done()
    world.charges.gate.set()
    assert outcomes(await charging) == [ACCEPTED]


async def test_a_key_that_is_gone_is_charged_nothing(world: World) -> None:
    """Late usage of a deleted key is accepted, and is not owed for ever."""
    world.registry.tables.deleted["k1"] = world.clock.now()
    assert outcomes(await world(record(charge_units=3, refund_request_id="q1"))) == [ACCEPTED]
    assert world.charges.adjusted == []
    assert world.ledger.owed == {}


async def test_calls_that_come_together_share_a_transaction(world: World) -> None:
    """What comes while one is under way goes together into the next, and each caller is told of its own records."""
    first = [asyncio.create_task(world(record(f"r{number}"), record("same"))) for number in range(20)]
    answers = await asyncio.gather(*first)
    assert [answer[0].record_id for answer in answers] == [f"r{number}" for number in range(20)]
    assert [outcomes(answer) for answer in answers] == [[ACCEPTED] * 2] + [[ACCEPTED, DUPLICATE]] * 19
    assert world.ledger.transactions <= 2


async def test_a_caller_that_goes_away_does_not_keep_a_record_from_being_charged(world: World) -> None:
    """Repeated it would be a duplicate, and charge nothing: what has begun is finished, and waited for in the end."""
    world.charges.gate.clear()
    call = asyncio.create_task(world(record(charge_units=3, refund_request_id="q1")))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(world.ledger.records) == 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    finished = asyncio.create_task(world.record_usage.finish())
    await asyncio.sleep(0)
    assert not finished.done()
    world.charges.gate.set()
    await finished
    assert (len(world.charges.adjusted), len(world.charges.refunded)) == (1, 1)
