"""Authenticate: who shows a valid token, known for a second at most."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from formgate_server.core.authenticate import Authenticate
from formgate_server.core.errors import UnauthenticatedError, UnavailableError
from formgate_server.core.freshness import Freshness
from formgate_server.core.model import Caller, ServiceRole, ServiceToken
from formgate_server.core.secrets import TOKEN_PREFIX, Peppers, new_secret
from tests.support.clock import SettableClock

OLD, NEW = b"o" * 32, b"n" * 32
SECRET = new_secret(TOKEN_PREFIX)
TOKEN = ServiceToken(
    token_id="t1",
    display_name="",
    role=ServiceRole.CHECKER,
    account_id="acme",
    policy="default",
    create_time=0,
    expire_time=None,
)


class Tokens:
    """As much of a Registry as is used, which counts how often it is read and may be slow or away."""

    def __init__(self, secret: str, pepper: bytes = NEW) -> None:
        self.digest = Peppers([pepper]).digest(secret)[0]
        self.token: ServiceToken | None = TOKEN
        self.reads = 0
        self.broken = False
        self.gate: asyncio.Event | None = None

    async def token_by_digest(self, digests: Sequence[bytes]) -> ServiceToken | None:
        """See ``Registry``."""
        self.reads += 1
        found = self.token if self.digest in digests else None
        if self.gate is not None:
            await self.gate.wait()
        if self.broken:
            raise UnavailableError("The database is away.")
        return found

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"it has no business with {name}")


class World:
    """A token, a wall clock and a stopwatch."""

    def __init__(self, pepper: bytes = NEW) -> None:
        self.tokens = Tokens(SECRET, pepper)
        self.clock = SettableClock(1_000)
        self.seconds = 100.0
        self.freshness = Freshness(lambda: self.seconds, max_staleness=30, database_grace=600)
        peppers, stopwatch = Peppers([NEW, OLD]), lambda: self.seconds
        self.authenticate = Authenticate(self.tokens, peppers, self.clock, stopwatch)
        self.shared = Authenticate(self.tokens, peppers, self.clock, stopwatch, freshness=self.freshness)
        """The same, of a process that shares its database with others."""

    async def caller(self, header: str = f"Bearer {SECRET}") -> Caller:
        """Authenticate."""
        return await self.authenticate(header)

    async def refused(self, header: str = f"Bearer {SECRET}") -> str:
        """Return the reason of a refusal; it may not show the token."""
        with pytest.raises(UnauthenticatedError) as raised:
            await self.authenticate(header)
        assert SECRET not in str(raised.value)
        return raised.value.reason


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("pepper", [NEW, OLD])
async def test_a_valid_token_is_its_caller(scheme: str, pepper: bytes) -> None:
    """With what it is bound to; stored under any pepper that lives."""
    assert await World(pepper).caller(f"{scheme} {SECRET}") == Caller("t1", ServiceRole.CHECKER, "acme", "default")


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", f"Basic {SECRET}", SECRET, f"{SECRET} Bearer"],
    ids=["empty", "scheme", "scheme and space", "another scheme", "no scheme", "back to front"],
)
async def test_no_token_is_refused_without_a_read(header: str) -> None:
    """And it is said how to show one."""
    world = World()
    assert await world.refused(header) == "MISSING_SERVICE_TOKEN"
    assert world.tokens.reads == 0


@pytest.mark.parametrize(
    "token",
    [new_secret(TOKEN_PREFIX), SECRET[:-1], f"{SECRET} ", f" {SECRET}", "x" * 1_000_000],
    ids=["another", "cut off", "space after", "space before", "huge"],
)
async def test_an_unknown_token_is_refused(token: str) -> None:
    """However like a known one it is."""
    assert await World().refused(f"Bearer {token}") == "INVALID_SERVICE_TOKEN"


async def test_a_huge_token_costs_no_read() -> None:
    """No token is that long."""
    world = World()
    await world.refused("Bearer " + "x" * 257)
    assert world.tokens.reads == 0


async def test_an_unknown_token_is_not_remembered() -> None:
    """Made a moment later, it is valid at once."""
    world = World()
    token, world.tokens.token = world.tokens.token, None
    await world.refused()
    world.tokens.token = token
    assert (await world.caller()).token_id == "t1"


async def test_it_is_read_once_a_second() -> None:
    """Not once a call; and anew as soon as the second is over."""
    world = World()
    for passed, reads in ((0.0, 1), (0.5, 1), (0.999, 1), (1.0, 2), (1.999, 2), (2.0, 3)):
        world.seconds = 100.0 + passed
        await world.caller()
        assert world.tokens.reads == reads


async def test_a_revoked_token_is_known_for_a_second_at_most() -> None:
    """Counted from when its read began: what was revoked during a slow read is not known any longer for that."""
    world = World()
    world.tokens.gate = asyncio.Event()
    slow = asyncio.create_task(world.caller())
    for _ in range(5):
        await asyncio.sleep(0)
    assert world.tokens.reads == 1
    world.tokens.token = replace(TOKEN, revoke_time=1)
    world.seconds = 100.9
    world.tokens.gate.set()
    await slow
    world.seconds = 100.999
    await world.caller()
    world.seconds = 101.0
    assert await world.refused() == "INVALID_SERVICE_TOKEN"
    world.seconds = 100.0  # a refusal has taken it out of the cache
    assert await world.refused() == "INVALID_SERVICE_TOKEN"


async def test_a_token_expires_to_the_microsecond_though_it_is_cached() -> None:
    """By the wall clock."""
    world = World()
    world.tokens.token = replace(TOKEN, expire_time=1_005)
    world.clock.time = 1_004
    await world.caller()
    world.clock.time = 1_005
    assert await world.refused() == "SERVICE_TOKEN_EXPIRED"
    assert world.tokens.reads == 1


async def test_a_registry_that_is_away_refuses_nobody() -> None:
    """It could not be decided: UNAVAILABLE, not UNAUTHENTICATED. A token known this second goes on."""
    world = World()
    await world.caller()
    world.tokens.broken = True
    await world.caller()
    world.seconds += 1
    with pytest.raises(UnavailableError):
        await world.caller()
    world.tokens.broken = False
    await world.caller()


async def test_the_cache_holds_no_secret_and_does_not_grow_without_end() -> None:
    """Digests only, and at most ten thousand."""
    world = World()
    peppers = Peppers([NEW])
    for number in range(10_001):
        secret = f"token-{number}"
        world.tokens.digest = peppers.digest(secret)[0]
        await world.caller(f"Bearer {secret}")
    assert 1 <= len(world.authenticate._cache) <= 10_000
    assert all(len(digest) == 32 for digest in world.authenticate._cache)


async def test_a_token_in_use_is_read_before_its_second_is_over() -> None:
    """Nobody waits for that, and many calls make one read of it; what it finds counts from its begin."""
    world = World()
    await world.caller()
    world.seconds += 0.6
    world.tokens.gate = asyncio.Event()
    for _ in range(10):
        await world.caller()
        await asyncio.sleep(0)
    assert world.tokens.reads == 2
    world.tokens.token = None
    world.tokens.gate.set()
    await asyncio.sleep(0.01)
    world.seconds += 0.9
    await world.caller()
    world.seconds += 0.2
    assert await world.refused() == "INVALID_SERVICE_TOKEN"


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_known_token_goes_on_while_the_database_is_away(*, frozen: bool) -> None:
    """As long as known keys do, then no more; an unknown one has no answer; a lone process refuses at once."""
    world = World()
    header = f"Bearer {SECRET}"
    await world.shared(header)
    world.tokens.broken = not frozen
    world.tokens.gate = asyncio.Event() if frozen else None
    world.seconds += 2
    assert (await world.shared(header)).token_id == "t1"
    world.freshness.lost()
    world.seconds += 500
    reads = world.tokens.reads
    assert (await world.shared(header)).token_id == "t1"
    assert world.tokens.reads == reads, "a database that is away is not asked on every call"
    world.seconds += 200
    world.tokens.broken = True
    if world.tokens.gate is not None:
        world.tokens.gate.set()
    with pytest.raises(UnavailableError):
        await world.shared(header)
    with pytest.raises(UnavailableError):
        await world.shared(f"Bearer {new_secret(TOKEN_PREFIX)}")
    with pytest.raises(UnavailableError):
        await world.caller()


async def test_a_token_that_was_not_confirmed_of_late_does_not_go_on() -> None:
    """It may have been revoked while it was not used here; nor does one whose own reads fail while others' do not."""
    world = World()
    header = f"Bearer {SECRET}"
    await world.shared(header)
    world.seconds += 60
    world.freshness.read(world.seconds, {})
    world.tokens.broken = True
    with pytest.raises(UnavailableError):
        await world.shared(header)
    world.freshness.lost()
    with pytest.raises(UnavailableError):
        await world.shared(header)


async def test_a_flood_of_unknown_tokens_has_the_database_one_at_a_time() -> None:
    """What waits is bounded, the rest is undecided at once; a known token does not wait behind it."""
    world = World()
    await world.caller()
    world.tokens.gate = asyncio.Event()
    flood = [asyncio.create_task(world.authenticate(f"Bearer {new_secret(TOKEN_PREFIX)}")) for _ in range(500)]
    await asyncio.sleep(0.01)
    assert (world.tokens.reads, (await world.caller()).token_id) == (2, "t1")
    world.tokens.gate.set()
    kinds = {type(each) for each in await asyncio.gather(*flood, return_exceptions=True)}
    assert kinds == {UnavailableError, UnauthenticatedError}
    assert world.tokens.reads <= 102


async def test_many_calls_with_a_token_that_is_not_known_yet_read_it_once() -> None:
    """A server that has just started refuses nobody for that."""
    world = World()
    callers = await asyncio.gather(*(world.caller() for _ in range(500)))
    assert ({each.token_id for each in callers}, world.tokens.reads) == ({"t1"}, 1)
