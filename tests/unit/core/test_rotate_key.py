"""RotateKey: the old secret works for the overlap and not a moment longer."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from formgate_server.core.errors import FailedPreconditionError, InvalidArgumentError
from formgate_server.core.model import Environment, Holder, KeyState, Lifetime, Limit, Rolling
from formgate_server.core.policy import Policy
from tests.support.clock import DAY, HOUR, SECOND
from tests.unit.core.world import CALLER, World


@pytest.fixture
async def world() -> World:
    """A world with an account."""
    world = World()
    await world.account()
    return world


@pytest.mark.parametrize("overlap", [1, SECOND, HOUR, 30 * DAY])
async def test_the_overlap_ends_to_the_moment(world: World, overlap: int) -> None:
    """The old secret works up to the last microsecond of the overlap, and from its end on it is nobody's."""
    key, old = await world.key()
    began = world.clock.time
    rotated, new = await world.rotate(CALLER, key.key_id, overlap)
    assert rotated.key_id == key.key_id
    assert (rotated.hint[-4:], rotated.version) == (new[-4:], key.version + 1)
    world.clock.time = began + overlap - 1
    assert [await world.told(old), await world.told(new)] == ["OK", "OK"]
    world.clock.time = began + overlap
    assert [await world.told(old), await world.told(new)] == ["KEY_NOT_FOUND", "OK"]


async def test_no_overlap(world: World) -> None:
    """With overlap 0 the old secret is nobody's at once, also for a server whose clock is behind."""
    key, old = await world.key()
    _, new = await world.rotate(CALLER, key.key_id, 0)
    for behind in (0, HOUR):
        world.clock.time -= behind
        assert [await world.told(old), await world.told(new)] == ["KEY_NOT_FOUND", "OK"]


async def test_rotated_twice(world: World) -> None:
    """Within each other's overlaps all three work; each has its end, the newest none."""
    key, first = await world.key()
    _, second = await world.rotate(CALLER, key.key_id, 2 * HOUR)
    world.clock.time += HOUR
    _, third = await world.rotate(CALLER, key.key_id, 3 * HOUR)
    ended = []
    for _ in range(5):
        ended.append([await world.told(secret) == "OK" for secret in (first, second, third)])
        world.clock.time += HOUR
    assert ended == [
        [True, True, True],
        [False, True, True],
        [False, True, True],
        [False, False, True],
        [False, False, True],
    ]


async def test_a_second_rotation_prolongs_nothing(world: World) -> None:
    """A rotation with a longer overlap gives an older secret no longer life."""
    key, first = await world.key()
    await world.rotate(CALLER, key.key_id, SECOND)
    await world.rotate(CALLER, key.key_id, DAY)
    world.clock.time += SECOND
    assert await world.told(first) == "KEY_NOT_FOUND"


@pytest.mark.parametrize("overlap", [0, SECOND, HOUR])
async def test_a_second_rotation_cuts_short(world: World, overlap: int) -> None:
    """No secret but the newest outlives the overlap given last, whatever an earlier rotation promised it."""
    key, first = await world.key()
    _, second = await world.rotate(CALLER, key.key_id, DAY)
    _, third = await world.rotate(CALLER, key.key_id, overlap)
    told = [await world.told(secret) == "OK" for secret in (first, second, third)]
    assert told == [overlap > 0, overlap > 0, True]
    world.clock.time += overlap
    assert [await world.told(secret) for secret in (first, second, third)] == ["KEY_NOT_FOUND", "KEY_NOT_FOUND", "OK"]


@pytest.mark.parametrize("state", [KeyState.REVOKED, KeyState.DISABLED])
async def test_ended_during_the_overlap(world: World, state: KeyState) -> None:
    """Revoking or disabling a key ends both its secrets at once."""
    key, old = await world.key()
    _, new = await world.rotate(CALLER, key.key_id, HOUR)
    await world.state(key, state)
    assert [await world.told(old), await world.told(new)] == [f"KEY_{state.name}"] * 2


async def test_counters_go_along(world: World) -> None:
    """What was used by the old secret is used for the new, and both count together."""
    limits = (Limit("rate", Holder.KEY, 3, Rolling(HOUR)), Limit("credits", Holder.KEY, 9, Lifetime()))
    key, old = await world.key(limits=limits)
    assert await world.told(old) == "OK"
    _, new = await world.rotate(CALLER, key.key_id, HOUR)
    verdict = await world.check(new)
    assert [standing.remaining for standing in verdict.limits] == [1, 7]
    assert [await world.told(old), await world.told(new)] == ["OK", "RATE_LIMITED"]


async def test_what_can_not_be_rotated(world: World) -> None:
    """A revoked key, and overlaps below 0 or above 30 days."""
    key, secret = await world.key()
    for overlap in (-1, 30 * DAY + 1):
        with pytest.raises(InvalidArgumentError) as refused:
            await world.rotate(CALLER, key.key_id, overlap)
        assert refused.value.field == "overlap"
    assert await world.told(secret) == "OK"
    await world.state(key, KeyState.REVOKED)
    with pytest.raises(FailedPreconditionError):
        await world.rotate(CALLER, key.key_id, 0)


async def test_an_environment_that_the_policy_has_no_more(world: World) -> None:
    """Its file has changed since: there is no prefix for a new secret, neither of this key nor of a copy."""
    key, _ = await world.key(environment=Environment.TEST)
    of_before = world.policies.by_name["default"]
    of_today = replace(of_before, prefixes={Environment.LIVE: of_before.prefixes[Environment.LIVE]})
    by_name = cast("dict[str, Policy]", world.policies.by_name)
    by_name["default"] = of_today
    for call in (world.rotate(CALLER, key.key_id, 0), world.copy(CALLER, key.key_id, "")):
        with pytest.raises(FailedPreconditionError) as refused:
            await call
        assert refused.value.reason == "ENVIRONMENT_NOT_OFFERED"
