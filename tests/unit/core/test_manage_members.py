"""Members: what keys inherit, at the very next check; and what becomes of the keys of one who goes."""

from __future__ import annotations

from typing import Any

import pytest

from formgate.rules.grants import Grant, Level
from formgate_server.core.errors import InvalidArgumentError, NotFoundError
from formgate_server.core.manage_members import KeyDisposition, NewMember
from formgate_server.core.model import KeyState, Role
from formgate_server.core.ports import AuditFilter
from tests.unit.core.world import CALLER, World


@pytest.fixture
async def world() -> World:
    """A world with an account whose keys are capped, and one whose keys are not."""
    world = World()
    await world.account("capped", policy="siteplot")
    await world.account("acme")
    return world


async def put(world: World, member_id: str = "ann", account_id: str = "acme", **fields: Any) -> None:
    """Set a member."""
    await world.members.set(CALLER, NewMember(account_id=account_id, member_id=member_id, **fields))


async def test_inheritance_is_live(world: World) -> None:
    """A key without grants follows its creator's rights at the very next check, known or not, gone or back."""
    _, secret = await world.key(created_by="ann")
    history = [(), ("a.b",), ("c.d",), ("a.*",), (), ("*",)]
    for permissions in history:
        await put(world, permissions=permissions)
        allowed = permissions in (("a.b",), ("a.*",), ("*",))
        assert await world.told(secret, permissions=("a.b",)) == ("OK" if allowed else "PERMISSION_DENIED")
    await world.members.remove(CALLER, "acme", "ann", KeyDisposition.KEEP)
    assert await world.told(secret, permissions=("a.b",)) == "PERMISSION_DENIED"


async def test_a_namesake_of_another_account(world: World) -> None:
    """A member is the account's own: one of the same id elsewhere gives nothing."""
    await world.account("globex")
    await put(world, account_id="globex", permissions=("*",))
    _, secret = await world.key(created_by="ann")
    assert await world.told(secret, permissions=("a.b",)) == "PERMISSION_DENIED"


async def test_a_capped_key(world: World) -> None:
    """A key with grants never exceeds its creator, also when that loses rights later."""
    await put(world, account_id="capped", role=Role.GLOBAL_ADMIN, level=Level.READ)
    _, secret = await world.key("capped", created_by="ann", grants=(Grant("*", (), Level.READ),))
    assert await world.told(secret, http_method="GET") == "OK"
    await put(world, account_id="capped", role=Role.GLOBAL_ADMIN)
    assert await world.told(secret, http_method="GET") == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("disposition", "states"),
    [
        (KeyDisposition.KEEP, ["ENABLED", "DISABLED", "REVOKED", "ENABLED"]),
        (KeyDisposition.DISABLE, ["DISABLED", "DISABLED", "REVOKED", "ENABLED"]),
        (KeyDisposition.REVOKE, ["REVOKED", "REVOKED", "REVOKED", "ENABLED"]),
    ],
)
async def test_what_becomes_of_the_keys(world: World, disposition: KeyDisposition, states: list[str]) -> None:
    """They stay, are switched off, or end; those of others are left alone; each change is in the audit trail."""
    await put(world)
    keys = [(await world.key(created_by=member))[0] for member in ("ann", "ann", "ann", "bob")]
    await world.state(keys[1], KeyState.DISABLED)
    await world.state(keys[2], KeyState.REVOKED)
    before = [await world.registry.key(key.key_id) for key in keys]
    await world.members.remove(CALLER, "acme", "ann", disposition)
    after = [await world.registry.key(key.key_id) for key in keys]
    assert [key.state.name for key in after if key] == states
    changed = {f"keys/{key.key_id}" for key, was in zip(after, before, strict=True) if key and key != was}
    rows = await world.registry.audit_rows(AuditFilter("acme"), None, 100)
    assert {row.event.target for row in rows if row.event.action == "RemoveMember"} == changed | {"members/ann"}
    for key in after:
        assert key is None or (key.revoke_time is not None) == (key.state is KeyState.REVOKED)


async def test_setting_again_replaces(world: World) -> None:
    """Setting a member replaces all its rights; it was made when it was first set."""
    await put(world, role=Role.ADMIN, permissions=("a.b",), level=Level.READ)
    world.clock.time += 1
    await put(world)
    (member,) = (await world.members.list(CALLER, "acme", 0, "")).rows
    assert (member.role, member.permissions, member.level) == (Role.MEMBER, (), Level.UNSPECIFIED)
    assert member.update_time == member.create_time + 1 == world.clock.time


async def test_what_is_refused(world: World) -> None:
    """What the policy has not, who is not there, and what is not said."""
    for fields, field in (
        ({"permissions": ("forms.fly",)}, "permissions[0]"),
        ({"level": Level.WRITE}, "level"),
        ({"member_id": ""}, "member_id"),
        ({"member_id": "a/b"}, "member_id"),
        ({"account_id": ""}, "account_id"),
    ):
        with pytest.raises(InvalidArgumentError) as refused:
            await put(world, **({"account_id": "capped"} | fields))
        assert refused.value.field == field
    with pytest.raises(NotFoundError):
        await put(world, account_id="nowhere")
    with pytest.raises(NotFoundError):
        await world.members.remove(CALLER, "acme", "nobody", KeyDisposition.KEEP)
    with pytest.raises(InvalidArgumentError):
        await world.members.remove(CALLER, "acme", "ann", None)
