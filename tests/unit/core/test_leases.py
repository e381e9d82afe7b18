"""Leases in the core: what a change waits for, and who is told of epochs; stores are in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from formgate.rules.reason import Reason
from formgate_server.core.changes import Changed, Changes
from formgate_server.core.check_key import CheckKey
from formgate_server.core.compile_key import compile_key
from formgate_server.core.errors import (
    CountersUnavailableError,
    InvalidArgumentError,
    LostAnswerError,
    UnavailableError,
)
from formgate_server.core.freshness import Freshness
from formgate_server.core.last_used import LastUsed
from formgate_server.core.lease_key import Lease, LeaseKey, LeaseQuery, Refused, SettleLeases, Settlement
from formgate_server.core.model import Caller, KeyState, ServiceRole
from formgate_server.core.policy import DenialTemplate, Policies
from formgate_server.core.ports import Leased, LeasesOut, Transaction
from formgate_server.core.secrets import new_secret
from formgate_server.core.verdict import KeyRecord, Verdict
from formgate_server.core.watching import MOST_WATCHED, Watching
from formgate_server.storage.leases import CarefulLeases
from formgate_server.storage.memory.counters import MemoryReservations
from formgate_server.storage.memory.limiter import MemoryLimiter
from tests.support.clock import SECOND, SettableClock
from tests.support.stores import POLICY, account, key, memory_stores

DENIALS: dict[Reason, DenialTemplate] = {
    reason: DenialTemplate(401, "", "no", (), "") for reason in Reason if reason is not Reason.OK
}
OURS = replace(POLICY, denials=DENIALS)
NEVER = replace(OURS, name="never", prefixes={}, longest_lease=0)
POLICIES = Policies({each.name: each for each in (OURS, NEVER)}, OURS.name)
SECRET = new_secret("pf_")
CHECKER = Caller("t1", ServiceRole.CHECKER)


class Keys:
    """One key, as the database has it, and an older copy at hand."""

    def __init__(self, record: KeyRecord) -> None:
        self.record: KeyRecord | None = record
        self.at_hand: KeyRecord | None = record

    def known(self, digests: object) -> KeyRecord | None:
        """See ``KeyFinder``."""
        return self.at_hand

    async def find(
        self, digests: object, *, at_least: int = 0, source_ip: str = "", newest: bool = False
    ) -> KeyRecord | None:
        """See ``KeyFinder``."""
        self.at_hand = self.record
        return self.record


class World:
    """A server's leases."""

    def __init__(self, policy: Any = OURS, **changes: Any) -> None:
        self.clock = SettableClock()
        self.policy = policy
        self.limiter = MemoryLimiter(self.clock, MemoryReservations())
        self.keys = Keys(self.compiled(1, **changes))
        self.last_used = LastUsed()
        check_key = CheckKey(self.keys, self.limiter, POLICIES, self.clock, self.last_used)
        self.lease_key = LeaseKey(check_key, self.limiter, POLICIES, self.clock, self.last_used)
        self.settle = SettleLeases(self.limiter)

    def compiled(self, epoch: int, **changes: Any) -> KeyRecord:
        """Compile the key."""
        return compile_key(key(**changes), account(policy=self.policy.name, epoch=epoch), self.policy)

    async def ask(self, caller: Caller = CHECKER, **query: Any) -> Any:
        """Ask for a lease."""
        return await self.lease_key(LeaseQuery(**{"key": SECRET, "want_units": 10, "lease_id": "l1", **query}), caller)


async def test_a_lease_is_granted_and_settled() -> None:
    """Its units are charged, its end is told, and what is left goes back to whom it was granted to, once."""
    world = World()
    lease = await world.ask()
    assert isinstance(lease, Lease)
    assert (lease.lease_id, lease.units, lease.unlimited, lease.duration) == ("l1", 10, False, SECOND)
    assert lease.expire_time == world.clock.time + SECOND
    assert [each.remaining for each in lease.limits] == [90, 990]
    left = Settlement("acme", "k1", "l1", 4)
    assert await world.settle(left, Caller("t2", ServiceRole.CHECKER)) == 0, "another token's lease"
    assert await world.settle(left, Caller("t1", ServiceRole.CHECKER, account_id="other")) == 0
    assert await world.settle(left, CHECKER) == 4
    assert await world.settle(left, CHECKER) == 0


async def test_no_lease_by_what_is_over() -> None:
    """A key at hand that has been revoked since is read again, because the epoch is compared where it is charged."""
    world = World()
    assert isinstance(await world.ask(), Lease)
    world.keys.record = world.compiled(2, state=KeyState.REVOKED)
    await world.limiter.publish("acme", 2)
    denied = await world.ask(lease_id="l2")
    assert isinstance(denied, Verdict)
    assert denied.reason is Reason.KEY_REVOKED


async def test_a_denial_from_a_key_at_hand_is_confirmed() -> None:
    """One that was enabled again meanwhile is not told to be disabled."""
    world = World(state=KeyState.DISABLED)
    await world.ask()
    world.keys.record = world.compiled(2)
    await world.limiter.publish("acme", 2)
    assert isinstance(await world.ask(), Refused)
    assert isinstance(await world.ask(lease_id="l2"), Lease)


@pytest.mark.parametrize(
    ("changes", "query", "reason"),
    [
        ({"state": KeyState.DISABLED}, {}, Reason.KEY_DISABLED),
        ({"expire_time": 5}, {}, Reason.KEY_EXPIRED),
        ({"ip_rules": ("10.0.0.1",)}, {"source_ip": "10.0.0.2"}, Reason.IP_NOT_ALLOWED),
        ({}, {"key": "nonsense"}, Reason.MALFORMED_KEY),
        ({}, {"policy": "never"}, Reason.KEY_NOT_FOUND),
    ],
)
async def test_denials(changes: dict[str, Any], query: dict[str, Any], reason: Reason) -> None:
    """What a check would deny whatever it wants is not leased."""
    world = World(**changes)
    world.keys.at_hand = None if query.get("key") else world.keys.at_hand
    denied = await world.ask(**query)
    assert isinstance(denied, Verdict)
    assert denied.reason is reason
    assert not denied.allowed


async def test_what_only_some_checks_are_denied_is_leased() -> None:
    """A key for some API groups and no permissions: the holder denies what is to be denied."""
    assert isinstance(await World(api_groups=("a",)).ask(), Lease)


async def test_a_lease_ends_before_its_key_does() -> None:
    """It needs no clock of the holder's to expire in time; and of a key that is about to end there is none."""
    world = World()
    world.keys.record = world.compiled(1, expire_time=world.clock.time + 400_000)
    lease = await world.ask()
    assert isinstance(lease, Lease)
    assert lease.duration == 400_000
    world.keys.at_hand = replace(world.compiled(1), secret_end=world.clock.time + 300_000)
    assert (await world.ask(lease_id="l2")).duration == 300_000
    world.keys.at_hand = world.compiled(1, expire_time=world.clock.time + 999)
    assert isinstance(await world.ask(lease_id="l3"), Refused)


async def test_a_policy_may_grant_none() -> None:
    """Zero is off; an unknown policy is a bad call."""
    refused = await World(NEVER).ask()
    assert isinstance(refused, Refused)
    assert refused.off
    with pytest.raises(InvalidArgumentError):
        await World().ask(policy="unknown")


# ------------------------------------------------------------------------------------------------------------- changes


async def _bump(transaction: Transaction) -> Changed[str]:
    return Changed("done", "acme", await transaction.raise_epoch("acme"))


class Out:
    """As much of Leases as changes use."""

    def __init__(self, left: int, known_for: int | None) -> None:
        self.answer = LeasesOut(left, known_for)
        self.away = False

    async def out(self, _account_id: str) -> LeasesOut:
        """See ``Leases``."""
        if self.away:
            raise UnavailableError("away")
        return self.answer

    async def none_out(self, _account_id: str) -> None:
        """See ``Leases``."""


@pytest.mark.parametrize(
    ("policy", "left", "known_for", "ahead"),
    [
        ("default", 0, None, 0),
        ("default", 300_000, None, 300_000),
        ("default", 0, 5 * SECOND, 0),
        ("default", 0, 400_000, 600_000),
        ("default", 700_000, 400_000, 700_000),
        ("default", 0, 0, SECOND),
        ("never", 0, 0, 0),
    ],
)
async def test_a_change_is_in_effect_when_no_lease_is_out(
    policy: str, left: int, known_for: int | None, ahead: int
) -> None:
    """Those that are known, and those that there may have been before anything was."""
    stores = memory_stores()
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account(policy=policy))
    clock = SettableClock()
    limiter: Any = MemoryLimiter(clock, MemoryReservations())
    out: Any = Out(left, known_for)
    told: list[tuple[str, int]] = []
    changes = Changes(
        stores.registry, limiter, clock, leases=out, policies=POLICIES, on_change=lambda *each: told.append(each)
    )
    assert (await changes.apply(_bump)).effective_time == clock.time + ahead
    assert told == [("acme", 2)]
    out.away = True
    longest = POLICIES.by_name[policy].longest_lease
    assert (await changes.apply(_bump)).effective_time == clock.time + longest


# ----------------------------------------------------------------------------------------------------- stores away


async def test_no_lease_while_anything_is_away() -> None:
    """Neither while a store is, nor beyond the moment until which this process surely knows of all changes."""
    world = World()
    seconds = [0.0]
    freshness = Freshness(lambda: seconds[0], max_staleness=30, database_grace=600)
    shared: Any = SimpleNamespace(lease=world.limiter.lease)
    alone: set[str] = set()
    limiter: Any = SimpleNamespace(is_alone=alone.__contains__)
    careful = CarefulLeases(shared, limiter, freshness)
    world.lease_key._leases = careful
    seconds[0] = 29.6
    lease = await world.ask()
    assert lease.duration == pytest.approx(400_000, abs=1)
    seconds[0] = 31
    assert (await world.ask(lease_id="l2")).degraded
    freshness.published(31)
    freshness.lost()
    assert (await world.ask(lease_id="l3")).degraded
    freshness.read(31, {})
    alone.add("acme")
    assert (await world.ask(lease_id="l4")).degraded
    alone.clear()
    for error in (CountersUnavailableError("away"), LostAnswerError("lost")):

        async def fail(_wanted: object, error: Exception = error) -> Leased:
            raise error

        shared.lease = fail
        assert (await world.ask(lease_id="l5")).degraded


# ------------------------------------------------------------------------------------------------------------ watching


async def test_only_what_is_watched_is_told_and_only_the_newest() -> None:
    """However slow a watcher is, it is owed one epoch an account."""
    watching = Watching()
    with watching.watcher() as watcher:
        watcher.add(["a", "b"])
        for epoch in (2, 4, 3):
            watching.tell("a", epoch)
        watching.tell("c", 9)
        assert await watcher.news() == {"a": 4}
        watching.tell("b", 0)
        watching.tell("b", 7)
        assert await watcher.news() == {"b": 0}
        watcher.forget(["a"])
        watching.tell("a", 5)
        watcher.acknowledge()
        assert await watcher.news() == {}
    assert not watching.by_account


async def test_watchers_end_with_the_server() -> None:
    """Each is told, and there are no new ones; what broke is raised."""
    watching = Watching()
    with watching.watcher() as watcher, watching.watcher() as broken:
        waiting = asyncio.create_task(watcher.news())
        broken.end(KeyError("x"))
        watching.end()
        assert await waiting is None
        with pytest.raises(KeyError):
            await broken.news()
    with pytest.raises(UnavailableError), watching.watcher():
        pass


def test_watched_accounts_are_bounded() -> None:
    """No call fills the memory."""
    with Watching().watcher() as watcher:
        watcher.add(map(str, range(MOST_WATCHED)))
        with pytest.raises(InvalidArgumentError):
            watcher.add(["one more"])
