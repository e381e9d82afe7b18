"""Checks that rely on their method alone: where a policy ignores methods they would ask for nothing."""

from __future__ import annotations

from typing import Any

import pytest

from formgate.rules.grants import Grant, Level
from formgate_server.core.manage_members import NewMember
from formgate_server.core.model import Holder, Lifetime, Limit, Role
from tests.unit.core.world import CALLER, World

GRANTS = {
    "default": Grant("*", ("forms.read",), Level.READ),
    "proforms": Grant("*", ("forms.view",)),
    "jodoo": Grant("apps/a1", (), Level.MANAGE),
}
LIMIT = Limit("credits", Holder.KEY, 7, Lifetime())


async def secret_of(world: World, policy: str) -> str:
    """Return the secret of a key that may do something."""
    account = await world.account(f"of-{policy}", policy=policy)
    await world.members.set(CALLER, NewMember(account_id=account, member_id="ann", role=Role.GLOBAL_ADMIN))
    _, secret = await world.key(account, created_by="ann", limits=(LIMIT,), grants=(GRANTS[policy],))
    return secret


@pytest.mark.parametrize("policy", ["proforms", "jodoo"])
async def test_a_policy_that_ignores_methods_denies(policy: str) -> None:
    """A check by method alone, a resource or none, is denied and charges nothing; others are as they were."""
    world = World()
    secret = await secret_of(world, policy)
    for resources in ((), ("apps/a1",)):
        verdict = await world.check(secret, http_method="DELETE", by_method=True, resources=resources)
        assert verdict.reason.name == "PERMISSION_DENIED"
        assert verdict.limits == ()
    looked = await world.check(secret, http_method="DELETE", cost=0)
    left = {limit.limit.name: limit.remaining for limit in looked.limits}
    assert (looked.reason.name, left["credits"]) == ("OK", 7)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"http_method": "GET"}, "OK"),
        ({"http_method": "DELETE"}, "PERMISSION_DENIED"),
        ({"http_method": ""}, "PERMISSION_DENIED"),
        ({"http_method": "BREW"}, "PERMISSION_DENIED"),
        ({"http_method": "DELETE", "permissions": ("forms.read",)}, "OK"),
    ],
)
async def test_a_policy_that_maps_methods_decides(asked: dict[str, Any], reason: str) -> None:
    """The method decides as ever; one that is not told is none that asks for nothing; permissions go before it."""
    world = World()
    secret = await secret_of(world, "default")
    assert await world.told(secret, by_method=True, **asked) == reason
