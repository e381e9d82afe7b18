"""BatchCheckKeys: each check has a result of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from google.rpc.code_pb2 import Code

from formgate.v1 import authorization_pb2 as pb
from formgate_server.rpc.authorization import AuthorizationServicer
from tests.unit.core.world import CALLER, World


async def test_an_account_of_a_policy_that_only_other_servers_have() -> None:
    """Its check is UNAVAILABLE, in its place; those beside it are decided."""
    world = World()
    await world.account("ours")
    await world.account("theirs")
    secrets = [(await world.key(account_id))[1] for account_id in ("ours", "theirs", "ours")]
    async with world.registry.transaction() as transaction:
        account = await transaction.account("theirs")
        assert account is not None
        await transaction.update_account(replace(account, plan="tomorrows"))
    nothing = cast("Any", None)
    servicer = AuthorizationServicer(world.check_key, nothing, nothing, nothing, nothing)
    asked = pb.BatchCheckKeysRequest(requests=[pb.CheckKeyRequest(key=secret) for secret in secrets])
    answer, _ = await servicer.batch_check_keys(asked, CALLER)
    first, other, last = pb.BatchCheckKeysResponse.FromString(answer).results
    assert first.response.allowed
    assert other.error.code == Code.UNAVAILABLE
    assert last.response.allowed
