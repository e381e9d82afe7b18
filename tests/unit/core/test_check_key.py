"""CheckKey over stores in memory: every reason in its order, and no verdict by a state that has been changed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import pytest

from formgate.rules.grants import Grant
from formgate_server.core.changes import Changed, Changes
from formgate_server.core.check_key import CheckKey
from formgate_server.core.errors import InvalidArgumentError, UnavailableError
from formgate_server.core.fields import LARGEST
from formgate_server.core.last_used import LastUsed
from formgate_server.core.limits import Standing
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
    Rolling,
    ServiceRole,
)
from formgate_server.core.policy import Policies, Policy
from formgate_server.core.ports import (
    Charge,
    Charged,
    ChargeResult,
    EpochMissing,
    EpochMoved,
    KeyFinder,
    KeyStore,
    Limiter,
    StoredSecret,
    Transaction,
)
from formgate_server.core.secrets import Peppers, fingerprint, new_secret
from formgate_server.core.set_key_state import SetKeyState
from formgate_server.core.verdict import CheckQuery, KeyRecord, Reason, Verdict
from formgate_server.policies.policy import load
from formgate_server.storage.memory.counters import MemoryReservations
from formgate_server.storage.memory.keys import MemoryKeyStore
from formgate_server.storage.memory.limiter import MemoryLimiter
from formgate_server.storage.memory.registry import MemoryRegistry
from formgate_server.storage.wrappers import CachedKeyStore, PepperedKeyStore
from tests.support.clock import DAY, HOUR, MINUTE, SettableClock
from tests.support.stores import AUDIT_KEYS, Unguarded

PEPPERS = Peppers([b"p" * 32])
CHECKER = Caller("t1", ServiceRole.CHECKER)
MANAGER = Caller("t2", ServiceRole.MANAGER)
ROOMY = Limit("roomy", Holder.KEY, 1_000, Rolling(MINUTE))


def policies() -> Policies:
    """Return the default policy, and a second one that words everything otherwise."""
    default = load().by_name["default"]

    def reworded(policy: Policy) -> Policy:
        denials = {
            reason: replace(denial, message=f"second says {reason.name}") for reason, denial in policy.denials.items()
        }
        return replace(policy, name="second", prefixes={Environment.LIVE: "second_"}, denials=denials)

    return Policies({"default": default, "second": reworded(default)}, "default")


POLICIES = policies()


@dataclass
class World:
    """A check over stores in memory; ``keys`` and ``limiter`` may be put behind something else; ``finder`` guards."""

    cached: bool = True
    clock: SettableClock = field(default_factory=SettableClock)
    registry: MemoryRegistry = field(default_factory=lambda: MemoryRegistry(AUDIT_KEYS))
    last_used: LastUsed = field(default_factory=LastUsed)
    finder: KeyFinder | None = None

    def __post_init__(self) -> None:
        bare = PepperedKeyStore(MemoryKeyStore(self.registry, POLICIES), PEPPERS)
        self.keys: KeyStore = CachedKeyStore(bare) if self.cached else bare
        self.limiter: Limiter = MemoryLimiter(self.clock, MemoryReservations())

    @property
    def changes(self) -> Changes:
        """What changes are made by."""
        return Changes(self.registry, self.limiter, self.clock)

    async def add(self, key: dict[str, Any], account: dict[str, Any] | None = None, prefix: str = "fg_live_") -> str:
        """Add an account, where it is not there, and a key of it; returns the key's secret."""
        owner = Account(
            account_id="acme",
            display_name="",
            policy="default",
            plan="standard",
            state=AccountState.ACTIVE,
            time_zone="",
            limits=(),
            epoch=1,
            version=1,
            create_time=0,
        )
        owner = replace(owner, **account or {})
        usual: dict[str, Any] = {
            "key_id": "k1",
            "display_name": "",
            "environment": Environment.LIVE,
            "state": KeyState.ENABLED,
            "hint": "",
            "created_by": "",
            "create_time": 0,
            "expire_time": None,
        }
        secret = new_secret(prefix)
        async with self.registry.transaction() as transaction:
            if await transaction.account(owner.account_id) is None:
                await transaction.insert_account(owner)
            await transaction.insert_key(
                Key(account_id=owner.account_id, **usual | key), StoredSecret(*PEPPERS.digest(secret)), request_id=""
            )
        return secret

    async def check(self, secret: str = "", caller: Caller = CHECKER, **asked: Any) -> Verdict:
        """Check a key."""
        check = CheckKey(
            self.finder or Unguarded(self.keys),
            self.limiter,
            POLICIES,
            self.clock,
            self.last_used,
        )
        key = None if "authorization" in asked else secret
        return await check(CheckQuery(key, **asked), caller)

    async def set_state(self, state: KeyState, key_id: str = "k1") -> None:
        """Change a key's state."""
        await SetKeyState(self.changes)(MANAGER, key_id, state, "Test", "")


# ------------------------------------------------------------------------------------------------- reasons, in order


@dataclass
class Case:
    """What a check is made of."""

    key: dict[str, Any] = field(default_factory=dict)
    account: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    limits: list[Limit] = field(default_factory=lambda: [ROOMY])
    permissions: list[str] = field(default_factory=list)
    secret: Callable[[str], dict[str, Any]] = lambda secret: {"secret": secret}


def _full(name: str, per: Rolling | Calendar | Lifetime) -> Callable[[Case], None]:
    return lambda case: case.limits.append(Limit(name, Holder.KEY, 0, per))


def _set(part: str, **values: Any) -> Callable[[Case], None]:
    return lambda case: getattr(case, part).update(values)


def _credential(make: Callable[[str], dict[str, Any]]) -> Callable[[Case], None]:
    return lambda case: setattr(case, "secret", make)


def _somewhere_else(case: Case) -> None:
    case.permissions.append("forms.read")
    case.asked["resources"] = ("forms/f2",)


FLAWS: dict[Reason, Callable[[Case], None]] = {
    Reason.MISSING_AUTHORIZATION: _credential(lambda _: {"authorization": " "}),
    Reason.MALFORMED_AUTHORIZATION: _credential(lambda secret: {"authorization": f"Basic {secret}"}),
    Reason.MALFORMED_KEY: _credential(lambda secret: {"secret": secret[:-1] + ("a" if secret[-1] != "a" else "b")}),
    Reason.KEY_NOT_FOUND: _credential(lambda _: {"secret": new_secret("fg_live_")}),
    Reason.KEY_REVOKED: _set("key", state=KeyState.REVOKED),
    Reason.KEY_DISABLED: _set("key", state=KeyState.DISABLED),
    Reason.KEY_EXPIRED: _set("key", expire_time=SettableClock().now()),
    Reason.ACCOUNT_SUSPENDED: _set("account", state=AccountState.SUSPENDED),
    Reason.ENVIRONMENT_MISMATCH: _set("asked", environment=Environment.TEST),
    Reason.IP_NOT_ALLOWED: _set("key", ip_rules=("192.0.2.1",)),
    Reason.API_GROUP_NOT_ALLOWED: _set("key", api_groups=("reports",)),
    Reason.PERMISSION_DENIED: lambda case: case.permissions.append("forms.delete"),
    Reason.RESOURCE_NOT_ALLOWED: _somewhere_else,
    Reason.RATE_LIMITED: _full("rate", Rolling(HOUR)),
    Reason.QUOTA_EXCEEDED: _full("daily", Calendar(Period.DAY)),
    Reason.CREDITS_EXHAUSTED: _full("credits", Lifetime()),
}
EXCLUSIVE = (Reason.MISSING_AUTHORIZATION, Reason.MALFORMED_AUTHORIZATION, Reason.MALFORMED_KEY, Reason.KEY_NOT_FOUND)
"""A check shows one credential."""
STATES = (Reason.KEY_REVOKED, Reason.KEY_DISABLED)
"""A key is in one state."""


def test_every_reason_has_a_flaw_here() -> None:
    """But for OK, and for TOO_MANY_INVALID_ATTEMPTS, which takes more than one check (``test_guarded_keys``)."""
    assert {*FLAWS, Reason.OK, Reason.TOO_MANY_INVALID_ATTEMPTS} == set(Reason)


def pairs() -> list[tuple[Reason, Reason]]:
    """Return the pairs of reasons that can apply together, and each with itself."""
    together = [
        (first, second)
        for first, second in combinations(sorted(FLAWS), 2)
        if not ({first, second} <= set(EXCLUSIVE) or {first, second} == set(STATES))
    ]
    return [(reason, reason) for reason in FLAWS] + together


@pytest.mark.parametrize(("first", "second"), pairs(), ids=lambda reason: reason.name)
async def test_the_first_reason_that_applies_wins_and_charges_nothing(first: Reason, second: Reason) -> None:
    """Of two, the one that stands first in the contract is told, in the policy's words; all limits stay as they are."""
    world = World()
    case = Case()
    for reason in (second, first):
        FLAWS[reason](case)
    key = {"grants": (Grant("forms/f1", ("forms.read",)),), "limits": tuple(case.limits)}
    secret = await world.add(key | case.key, case.account)
    verdict = await world.check(**case.secret(secret), permissions=tuple(case.permissions), **case.asked)
    told = POLICIES.by_name["default"].denials[first]
    assert (verdict.reason, verdict.allowed) == (first, False)
    assert (verdict.message, verdict.http_status) == (told.message, told.status)
    assert verdict.http_denial is not None
    assert (verdict.record is None) == (first in EXCLUSIVE)
    record = await world.keys.find([fingerprint(secret)])
    assert record is not None
    looked = await world.limiter.charge(Charge("acme", record.epoch, "k1", record.counters, 0))
    if isinstance(looked, EpochMissing):
        assert first in EXCLUSIVE
    else:
        assert isinstance(looked, Charged)
        assert looked.standings[0].remaining == 1_000


async def test_without_a_flaw_it_is_allowed() -> None:
    """The same key, nothing wrong: OK, charged, and its use is noted."""
    world = World()
    secret = await world.add({"grants": (Grant("forms/f1", ("forms.read",)),), "limits": (ROOMY,)})
    verdict = await world.check(
        secret, permissions=("forms.read",), resources=("forms/f1/submissions/9",), source_ip="192.0.2.7"
    )
    assert (verdict.reason, verdict.http_status, verdict.http_denial) == (Reason.OK, 200, None)
    assert verdict.limits[0].remaining == 999
    await world.last_used.flush(world.registry)
    key = await world.registry.key("k1")
    assert key is not None
    assert (key.last_used_time, key.last_used_ip) == (world.clock.now(), "192.0.2.7")


async def test_a_denied_use_is_no_use() -> None:
    """It leaves no trace in when the key was last used."""
    world = World()
    secret = await world.add({"state": KeyState.DISABLED})
    await world.check(secret)
    await world.last_used.flush(world.registry)
    key = await world.registry.key("k1")
    assert key is not None
    assert key.last_used_time is None


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("Bearer {}", Reason.OK),
        ("bEARER {}", Reason.OK),
        ("  Bearer   {}\t", Reason.OK),
        ("", Reason.MISSING_AUTHORIZATION),
        (" \t", Reason.MISSING_AUTHORIZATION),
        ("Bearer", Reason.MALFORMED_AUTHORIZATION),
        ("Bearer ", Reason.MALFORMED_AUTHORIZATION),
        ("{}", Reason.MALFORMED_AUTHORIZATION),
        ("Bearer {} {}", Reason.MALFORMED_AUTHORIZATION),
        ("Bearer {}\n", Reason.MALFORMED_AUTHORIZATION),
        ("Bearer\t{}", Reason.MALFORMED_AUTHORIZATION),
        ("Bearer {}\u00a0x", Reason.MALFORMED_AUTHORIZATION),
        ("Basic {}", Reason.MALFORMED_AUTHORIZATION),
        ("Bearer x{}", Reason.MALFORMED_KEY),
        ("Bearer {},", Reason.MALFORMED_KEY),
    ],
)
async def test_what_an_authorization_header_holds(header: str, reason: Reason) -> None:
    """Bearer in any case and one token; nothing else is looked up."""
    world = World()
    secret = await world.add({})
    assert (await world.check(authorization=header.format(secret, secret))).reason is reason


@pytest.mark.parametrize("key", ["", "x", "fg_live_", "fg_live_" + "0" * 49, "é" * 57, "\ud800", "\0", "x" * 1_000_000])
async def test_a_malformed_key_costs_no_read(key: str) -> None:
    """Shape and checksum are tested before anything is asked."""
    world = World()
    keys = Recording(world.keys)
    world.keys = keys
    assert (await world.check(key)).reason is Reason.MALFORMED_KEY
    assert keys.asked == []


async def test_a_key_expires_at_the_very_microsecond() -> None:
    """A microsecond before it is allowed, cached or not."""
    world = World()
    secret = await world.add({"expire_time": world.clock.now() + 5})
    for late, reason in ((0, Reason.OK), (4, Reason.OK), (5, Reason.KEY_EXPIRED), (6, Reason.KEY_EXPIRED)):
        world.clock.time = SettableClock().now() + late
        assert (await world.check(secret)).reason is reason


@pytest.mark.parametrize(
    ("per", "reason", "after"),
    [
        (Rolling(MINUTE), Reason.RATE_LIMITED, 61 * MINUTE // 60),
        (Calendar(Period.DAY), Reason.QUOTA_EXCEEDED, 12 * HOUR),
        (Lifetime(), Reason.CREDITS_EXHAUSTED, None),
    ],
)
async def test_a_used_up_limit_denies_until_it_fits(
    per: Rolling | Calendar | Lifetime, reason: Reason, after: int | None
) -> None:
    """The reason is the limit's; ``retry_after`` is when the same check is allowed, and not a microsecond earlier."""
    world = World()
    secret = await world.add({"limits": (Limit("limit", Holder.KEY, 2, per),)})
    assert (await world.check(secret, cost=2)).allowed
    denied = await world.check(secret, cost=2)
    assert (denied.reason, denied.retry_after) == (reason, after)
    if after is None:
        world.clock.time += 4_000 * DAY
        assert not (await world.check(secret)).allowed
        return
    world.clock.time += after - 1
    assert not (await world.check(secret, cost=2)).allowed
    world.clock.time += 1
    assert (await world.check(secret, cost=2)).allowed


async def test_a_request_id_repeated_is_decided_anew_but_not_charged_again() -> None:
    """A key that was disabled since is denied, though its first check was allowed."""
    world = World()
    secret = await world.add({"limits": (ROOMY,)})
    for _ in range(3):
        verdict = await world.check(secret, request_id="r1")
        assert (verdict.allowed, verdict.limits[0].remaining) == (True, 999)
    await world.set_state(KeyState.DISABLED)
    assert (await world.check(secret, request_id="r1")).reason is Reason.KEY_DISABLED


# ------------------------------------------------------------------------------------------------- words and callers

UNKNOWN = {"default": new_secret("fg_live_"), "second": new_secret("second_"), "none": new_secret("nobody_")}


@pytest.mark.parametrize(
    ("credential", "asked", "bound", "words"),
    [
        ("default", "", "", "default"),
        ("second", "", "", "second"),
        ("none", "", "", "default"),
        ("", "", "", "default"),
        ("default", "second", "", "second"),
        ("second", "default", "", "default"),
        ("none", "second", "", "second"),
        ("", "second", "", "second"),
        ("default", "", "second", "second"),
        ("none", "", "second", "second"),
        ("", "", "second", "second"),
    ],
)
async def test_whose_words_a_keyless_denial_has(credential: str, asked: str, bound: str, words: str) -> None:
    """Those of the policy asked for or bound to the caller, else of the policy with that prefix, else the default's."""
    caller = replace(CHECKER, policy=bound)
    secret = {"secret": UNKNOWN[credential]} if credential else {"authorization": ""}
    verdict = await World().check(**secret, caller=caller, policy=asked)
    told = POLICIES.by_name[words].denials[verdict.reason]
    assert verdict.reason is {"none": Reason.MALFORMED_KEY, "": Reason.MISSING_AUTHORIZATION}.get(
        credential, Reason.KEY_NOT_FOUND
    )
    assert (verdict.message, verdict.record) == (told.message, None)
    assert verdict.http_denial == told.render(verdict.reason, None)


async def test_a_known_key_is_worded_by_its_account_s_policy() -> None:
    """Whatever its prefix says, and whoever asks."""
    world = World()
    secret = await world.add({"state": KeyState.DISABLED}, {"policy": "second"})
    for caller in (CHECKER, replace(CHECKER, policy="second"), replace(CHECKER, account_id="acme")):
        verdict = await world.check(secret, caller=caller)
        assert (verdict.reason, verdict.message) == (Reason.KEY_DISABLED, "second says KEY_DISABLED")


async def test_a_policy_that_is_none_is_a_bad_call() -> None:
    """Not a denial: nobody's key is of it."""
    with pytest.raises(InvalidArgumentError, match="policy"):
        await World().check("x", policy="third")


@pytest.mark.parametrize(
    ("account_id", "policy", "asked", "found"),
    [
        ("", "", "", True),
        ("acme", "", "", True),
        ("", "default", "", True),
        ("acme", "default", "default", True),
        ("", "", "default", True),
        ("other", "", "", False),
        ("", "second", "", False),
        ("acme", "second", "", False),
        ("", "", "second", False),
        ("", "default", "second", False),
        ("", "second", "default", False),
    ],
)
@pytest.mark.parametrize("state", [KeyState.ENABLED, KeyState.REVOKED])
async def test_a_bound_caller_does_not_learn_that_another_s_key_is_there(
    account_id: str, policy: str, asked: str, state: KeyState, *, found: bool
) -> None:
    """It is told the very same as of a key that is nowhere, and charges nothing."""
    world = World()
    secret = await world.add({"limits": (ROOMY,), "state": state})
    caller = replace(CHECKER, account_id=account_id, policy=policy)
    verdict = await world.check(secret, caller=caller, policy=asked)
    assert (verdict.record is not None) == found
    if not found:
        assert verdict == await world.check(UNKNOWN["default"], caller=caller, policy=asked)
        if state is KeyState.ENABLED:
            assert (await world.check(secret)).limits[0].remaining == 999


# ------------------------------------------------------------------------------------------------------------ epochs


class Recording:
    """A KeyStore that notes what it was asked for, and is told what happens before and after each read."""

    def __init__(self, keys: KeyStore) -> None:
        self.keys = keys
        self.asked: list[int] = []
        self.before: Callable[[], Awaitable[None]] | None = None
        self.after: Callable[[], Awaitable[None]] | None = None

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:
        """See ``KeyStore``."""
        self.asked.append(at_least)
        if self.before is not None:
            await self.before()
        found = await self.keys.find(digests, at_least=at_least)
        if self.after is not None:
            await self.after()
        return found


class Scripted:
    """A Limiter that answers charges as told; published and seeded epochs are noted."""

    def __init__(self, *answers: Charged | EpochMoved | EpochMissing) -> None:
        self.answers = list(answers)
        self.charges: list[Charge] = []
        self.seeded: list[tuple[str, int, int]] = []

    async def charge(self, charge: Charge) -> ChargeResult:
        """See ``Limiter``."""
        self.charges.append(charge)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def charge_many(self, charges: Sequence[Charge]) -> list[ChargeResult | UnavailableError]:
        """See ``Limiter``."""
        return [await self.charge(charge) for charge in charges]

    async def publish(self, account_id: str, epoch: int) -> None:
        """See ``Limiter``."""

    async def seed(self, account_id: str, epoch: int, incarnation: int) -> None:
        """See ``Limiter``."""
        self.seeded.append((account_id, epoch, incarnation))

    async def look(self, account_id: str, counters: object) -> tuple[Standing, ...]:
        """See ``Limiter``."""
        return ()

    async def adjust(self, account_id: str, counters: object, units: int, *, once: str) -> None:
        """See ``Limiter``."""

    async def refund(self, account_id: str, key_id: str, request_id: str) -> None:
        """See ``Limiter``."""


FINE = Charged(None, None, ())


@pytest.mark.parametrize("cached", [True, False])
async def test_a_change_is_known_to_the_next_check(*, cached: bool) -> None:
    """Both ways, however often, with a cache that knows the older state."""
    world = World(cached=cached)
    secret = await world.add({"limits": (ROOMY,)})
    assert (await world.check(secret)).allowed
    for _ in range(3):
        await world.set_state(KeyState.DISABLED)
        assert (await world.check(secret)).reason is Reason.KEY_DISABLED
        await world.set_state(KeyState.ENABLED)
        assert (await world.check(secret)).reason is Reason.OK
    assert (await world.check(secret)).limits[0].remaining == 1_000 - 5


async def test_a_denial_by_a_cached_key_is_confirmed_before_it_is_told() -> None:
    """The epoch is compared for a denial too, with no counters to charge."""
    world = World()
    secret = await world.add({"state": KeyState.DISABLED, "limits": (ROOMY,)})
    limiter = Scripted(FINE)
    world.limiter = limiter
    assert (await world.check(secret)).reason is Reason.KEY_DISABLED
    assert limiter.charges == [Charge("acme", 1, "k1", (), 1, "")]


async def test_a_moved_epoch_has_the_key_read_again() -> None:
    """A read that may still be cached is asked to be of the epoch that was told."""
    world = World()
    secret = await world.add({})
    keys = Recording(world.keys)
    world.keys, world.limiter = keys, Scripted(EpochMoved(7), EpochMoved(9), FINE)
    assert (await world.check(secret)).allowed
    assert keys.asked == [0, 7, 9]


async def test_a_missing_epoch_is_seeded_by_a_read_begun_after_it_was_missed() -> None:
    """The read is asked for the newest there is, and what it finds is seeded under the incarnation that was told."""
    world = World()
    secret = await world.add({})
    keys = Recording(world.keys)
    limiter = Scripted(EpochMissing(5), FINE)
    world.keys, world.limiter = keys, limiter

    async def change_once() -> None:
        if len(keys.asked) == 2:  # between the charge that missed the epoch and the read that is to seed it
            async with world.registry.transaction() as transaction:
                await transaction.raise_epoch("acme")

    keys.before = change_once
    assert (await world.check(secret)).allowed
    assert keys.asked[:2] == [0, LARGEST]
    assert limiter.seeded == [("acme", 2, 5)]


async def test_a_change_between_the_missed_epoch_and_the_seed_is_not_undone() -> None:
    """Published after that read began: the seed fails, the epoch is read again, and the change decides."""
    world = World()
    secret = await world.add({})
    keys = Recording(world.keys)
    world.keys = keys

    async def disable_once() -> None:
        if len(keys.asked) == 2:
            keys.after = None
            await world.set_state(KeyState.DISABLED)

    keys.after = disable_once
    assert (await world.check(secret)).reason is Reason.KEY_DISABLED
    assert keys.asked.count(LARGEST) == 2


async def test_a_key_that_vanished_while_its_epoch_was_missing_is_not_found() -> None:
    """Nothing is seeded by a read that found nothing."""
    world = World(cached=False)
    secret = await world.add({})
    keys = Recording(world.keys)
    limiter = Scripted(EpochMissing(5))
    world.keys, world.limiter = keys, limiter

    async def delete() -> None:
        if len(keys.asked) == 1:
            world.registry.tables.secrets.clear()

    keys.after = delete
    assert (await world.check(secret)).reason is Reason.KEY_NOT_FOUND
    assert limiter.seeded == []


@pytest.mark.parametrize("answer", [EpochMoved(2), EpochMissing(2)])
async def test_changes_without_end_are_unavailable(answer: EpochMoved | EpochMissing) -> None:
    """Never a verdict by a state that is known to be old, and never a check without end."""
    world = World()
    secret = await world.add({"state": KeyState.DISABLED})
    limiter = Scripted(answer)
    world.limiter = limiter
    with pytest.raises(UnavailableError) as raised:
        await world.check(secret)
    assert raised.value.reason == "ACCOUNT_CHANGING"
    assert len(limiter.charges) == 10


async def test_three_changes_in_a_row_are_caught_up_with() -> None:
    """As many as may reasonably come while one check is decided."""
    world = World()
    secret = await world.add({})
    world.limiter = Scripted(EpochMissing(1), EpochMoved(2), EpochMoved(3), FINE)
    assert (await world.check(secret)).allowed


async def test_a_key_store_that_is_away_is_no_denial() -> None:
    """An unknown key is UNAVAILABLE then, never "not found"."""
    world = World()

    class Away:
        async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:
            raise UnavailableError("The database is away.")

    world.keys = Away()
    with pytest.raises(UnavailableError):
        await world.check(UNKNOWN["default"])


@pytest.mark.parametrize("state", [KeyState.ENABLED, KeyState.DISABLED])
async def test_a_degraded_verdict_says_so(state: KeyState) -> None:
    """Denials too."""
    world = World()
    secret = await world.add({"state": state})
    world.limiter = Scripted(FINE._replace(degraded=True))
    assert (await world.check(secret)).degraded


# ----------------------------------------------------------------------------------------------- checks beside changes


class Slow:
    """A KeyStore whose reads take a while before they see the state, and a while after."""

    def __init__(self, keys: KeyStore, rng: random.Random) -> None:
        self.keys = keys
        self.rng = rng

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:
        """See ``KeyStore``."""
        await steps(self.rng)
        found = await self.keys.find(digests, at_least=at_least)
        await steps(self.rng)
        return found


class Flushed:
    """A Limiter that is lost now and then, epochs and all, and is slow to reach."""

    def __init__(self, clock: SettableClock, rng: random.Random) -> None:
        self.clock = clock
        self.rng = rng
        self.flushes = 0
        self.flush()

    def flush(self) -> None:
        """Lose everything."""
        self.flushes += 1
        self.limiter = MemoryLimiter(self.clock, MemoryReservations())
        self.limiter._last_incarnation = self.flushes * 1_000_000  # no incarnation comes twice

    async def charge(self, charge: Charge) -> ChargeResult:
        """See ``Limiter``."""
        await steps(self.rng)
        outcome = await self.limiter.charge(charge)
        await steps(self.rng)
        return outcome

    async def charge_many(self, charges: Sequence[Charge]) -> Sequence[ChargeResult | UnavailableError]:
        """See ``Limiter``."""
        await steps(self.rng)
        outcomes = await self.limiter.charge_many(charges)
        await steps(self.rng)
        return outcomes

    async def publish(self, account_id: str, epoch: int) -> None:
        """See ``Limiter``."""
        await steps(self.rng)
        await self.limiter.publish(account_id, epoch)
        await steps(self.rng)

    async def seed(self, account_id: str, epoch: int, incarnation: int) -> None:
        """See ``Limiter``."""
        await steps(self.rng)
        await self.limiter.seed(account_id, epoch, incarnation)

    async def look(self, account_id: str, counters: object) -> tuple[Standing, ...]:
        """See ``Limiter``."""
        return ()

    async def adjust(self, account_id: str, counters: object, units: int, *, once: str) -> None:
        """See ``Limiter``."""

    async def refund(self, account_id: str, key_id: str, request_id: str) -> None:
        """See ``Limiter``."""


async def steps(rng: random.Random) -> None:
    """Let others go first, some more and some less."""
    for _ in range(rng.choice((0, 0, 1, 2, 5, 13))):
        await asyncio.sleep(0)


class Watched(MemoryRegistry):
    """A registry that tells when something has been committed."""

    def __init__(self, committed: Callable[[], None]) -> None:
        super().__init__(AUDIT_KEYS)
        self.committed = committed

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """See ``Registry``."""
        async with super().transaction() as transaction:
            yield transaction
        self.committed()


class Model:
    """What each state of the account says of its two keys, by epoch; and which change has returned."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = World(registry=Watched(self.snapshot))
        slow = Slow(PepperedKeyStore(MemoryKeyStore(self.world.registry, POLICIES), PEPPERS), self.rng)
        self.limiter = Flushed(self.world.clock, self.rng)
        self.world.limiter = self.limiter
        # Two processes, each with a cache of its own, over one database and one limiter.
        self.processes = [CachedKeyStore(slow), CachedKeyStore(slow, most=1)]
        self.expected: dict[int, dict[str, Reason]] = {}
        self.returned = 1
        self.told: list[tuple[int, Reason]] = []

    async def run(self) -> None:
        """Check and change side by side."""
        world = self.world
        self.secrets = {key_id: await world.add({"key_id": key_id}) for key_id in ("k1", "k2")}
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(self.checks())
            for _ in range(2):
                group.create_task(self.changes())
            group.create_task(self.flushes())

    def snapshot(self) -> None:
        """Note what the state that has just been committed says."""
        tables = self.world.registry.tables
        account = tables.accounts["acme"]
        for key_id, key in tables.keys.items():
            if key.state is KeyState.DISABLED:
                reason = Reason.KEY_DISABLED
            elif account.state is AccountState.SUSPENDED:
                reason = Reason.ACCOUNT_SUSPENDED
            else:
                reason = Reason.IP_NOT_ALLOWED if key.ip_rules else Reason.OK
            self.expected.setdefault(account.epoch, {}).setdefault(key_id, reason)

    async def checks(self) -> None:
        """Check one key after the other; each must know what had returned when it began."""
        for _ in range(25):
            key_id = self.rng.choice(("k1", "k2"))
            keys = self.rng.choice(self.processes)
            check = CheckKey(
                Unguarded(keys),
                self.limiter,
                POLICIES,
                self.world.clock,
                self.world.last_used,
            )
            known = self.returned
            try:
                verdict = await check(CheckQuery(key=self.secrets[key_id]), CHECKER)
            except UnavailableError:
                continue
            assert verdict.record is not None
            epoch = verdict.record.epoch
            assert epoch >= known, f"decided by epoch {epoch}, though {known} had returned"
            assert verdict.reason is self.expected[epoch][key_id]
            self.told.append((epoch, verdict.reason))
            await steps(self.rng)

    async def changes(self) -> None:
        """Make changes that change verdicts."""
        for _ in range(20):
            self.returned = max(self.returned, await self.change())
            await steps(self.rng)

    async def change(self) -> int:
        """Make a change, or repeat one, and return the epoch that has it."""
        kind, key_id = self.rng.randrange(4), self.rng.choice(("k1", "k2"))

        async def change(transaction: Transaction) -> Changed[int]:
            key, account = await transaction.key(key_id), await transaction.account("acme")
            assert key is not None
            assert account is not None
            if kind == 0:
                state = KeyState.ENABLED if key.state is KeyState.DISABLED else KeyState.DISABLED
                await transaction.update_key(replace(key, state=state))
            elif kind == 1:
                await transaction.update_key(replace(key, ip_rules=() if key.ip_rules else ("192.0.2.1",)))
            elif kind == 2:
                suspended = account.state is AccountState.SUSPENDED
                await transaction.update_account(
                    replace(account, state=AccountState.ACTIVE if suspended else AccountState.SUSPENDED)
                )
            await steps(self.rng)
            epoch = account.epoch if kind == 3 else await transaction.raise_epoch("acme")
            return Changed(epoch, "acme", epoch)

        changes = Changes(self.world.registry, self.limiter, self.world.clock)
        return (await changes.apply(change)).result

    async def flushes(self) -> None:
        """Lose the limiter now and then."""
        for _ in range(6):
            for _ in range(self.rng.randrange(5, 60)):
                await asyncio.sleep(0)
            self.limiter.flush()


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_no_check_that_began_after_a_change_returned_decides_by_the_old_state(first: int) -> None:
    """Whatever the interleaving of slow reads, slow publications, seeds, flushes and caches of two processes.

    Each verdict is the one of a state that had been committed, at least as new as the newest change that had returned
    when the check began.
    """
    told = []
    for seed in range(first, first + 20):
        model = Model(seed)
        asyncio.run(model.run())
        told += model.told
    assert len(told) > 20 * 6 * 25 / 2
    assert {reason for _, reason in told} == {
        Reason.OK,
        Reason.KEY_DISABLED,
        Reason.ACCOUNT_SUSPENDED,
        Reason.IP_NOT_ALLOWED,
    }


# ------------------------------------------------------------------------------------------------- many checks at once


async def at_hand(world: World, *secrets: str, **asked: Any) -> list[Verdict | UnavailableError | None]:
    """Check many keys at once."""
    check = CheckKey(Unguarded(world.keys), world.limiter, POLICIES, world.clock, world.last_used)
    return await check.all_at_hand([CheckQuery(secret, **asked) for secret in secrets], CHECKER)


async def test_checks_at_once_are_decided_as_each_alone() -> None:
    """In order, each charged: the last finds nothing left. What is not at hand is left to be decided by itself."""
    world = World()
    scarce = replace(ROOMY, amount=4)
    secret = await world.add({"limits": (scarce,)})
    disabled = await world.add({"key_id": "k2", "state": KeyState.DISABLED})
    for each in (secret, disabled):
        assert await at_hand(world, each) == [None]
        await world.check(each)
    alone = await world.check(secret)
    told = await at_hand(world, secret, UNKNOWN["default"], secret, disabled, "", secret[:-1] + "!", secret)
    assert [one and one.reason for one in told if not isinstance(one, UnavailableError)] == [
        Reason.OK, None, Reason.OK, Reason.KEY_DISABLED, None, None, Reason.RATE_LIMITED,
    ]  # fmt: skip
    first = told[0]
    assert isinstance(first, Verdict)
    assert first == alone._replace(limits=(alone.limits[0]._replace(remaining=1),))


async def test_checks_at_once_know_every_change() -> None:
    """A key that was disabled is not decided by what is at hand of it, and not charged."""
    world = World()
    secret = await world.add({"limits": (ROOMY,)})
    await world.check(secret)
    await world.set_state(KeyState.DISABLED)
    assert await at_hand(world, secret, secret) == [None, None]
    assert (await world.check(secret)).reason is Reason.KEY_DISABLED
    await world.set_state(KeyState.ENABLED)
    assert (await world.check(secret)).limits[0].remaining == 998


@pytest.mark.parametrize("answer", [EpochMoved(2), EpochMissing(1)])
async def test_checks_at_once_without_an_answer_are_left(answer: ChargeResult) -> None:
    """To be decided by themselves, as nothing was charged."""
    world = World()
    secret = await world.add({})
    await world.check(secret)
    world.limiter = Scripted(answer)
    assert await at_hand(world, secret) == [None]


async def test_checks_at_once_that_may_have_been_charged_are_not_charged_again() -> None:
    """What became of them is not known, and that is said: to decide them anew could charge twice."""
    world = World()
    secret = await world.add({})
    await world.check(secret)
    error = UnavailableError("The answer was lost.")

    class Lost(Scripted):
        async def charge_many(self, charges: Sequence[Charge]) -> list[ChargeResult | UnavailableError]:
            return [error for _ in charges]

    world.limiter = Lost(FINE)
    assert await at_hand(world, secret, secret) == [error, error]


@pytest.mark.parametrize("asked", [{"policy": "second"}, {"policy": "third"}])
async def test_checks_at_once_of_another_policy_are_left(asked: dict[str, Any]) -> None:
    """Whether there is such a policy or not; nothing is charged."""
    world = World()
    secret = await world.add({"limits": (ROOMY,)})
    await world.check(secret)
    assert await at_hand(world, secret, **asked) == [None]
    assert (await world.check(secret)).limits[0].remaining == 998


async def test_a_key_is_kept_under_no_clear_secret() -> None:
    """The cache knows it by SHA-256 only, and what is wrong in its checksum is asked of no store."""
    world = World()
    secret = await world.add({})
    await world.check(secret)
    assert isinstance(world.keys, CachedKeyStore)
    assert list(world.keys._records) == [fingerprint(secret)]
    assert secret not in repr(world.keys._records)
    world.keys = watched = Recording(world.keys)
    for wrong in (secret[:-1] + ("a" if secret[-1] != "a" else "b"), secret + "0", secret[1:], secret.lower() + "é"):
        assert (await world.check(wrong)).reason is Reason.MALFORMED_KEY
    assert watched.asked == []
