"""Two servers over one PostgreSQL: what SQLite excludes by letting one write at a time, rows that are locked exclude.

Each race is run many times from both sides at once; whoever takes a lock away sees these fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from formgate_server.core.changes import Changes, Effective
from formgate_server.core.create_key import CreateKey, NewKey
from formgate_server.core.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from formgate_server.core.keeper import Keeper
from formgate_server.core.manage_accounts import ManageAccounts, NewAccount
from formgate_server.core.manage_members import KeyDisposition, ManageMembers, NewMember
from formgate_server.core.manage_tokens import ManageTokens
from formgate_server.core.model import Caller, Key, KeyState, Role, ServiceRole
from formgate_server.core.policy import KeyRules, Policies
from formgate_server.core.ports import AuditFilter, KeyFilter, Scope
from formgate_server.core.rotate_key import RotateKey
from formgate_server.core.secrets import Peppers
from formgate_server.core.set_key_state import SetKeyState
from formgate_server.core.verify_audit import verify
from formgate_server.storage.memory.counters import MemoryReservations
from formgate_server.storage.memory.limiter import MemoryLimiter
from formgate_server.storage.sealer import AesSealer
from formgate_server.storage.sql.keys import SqlKeyStore
from formgate_server.storage.sql.registry import SqlRegistry
from formgate_server.storage.sql.trail import Trail
from tests.support.clock import SettableClock
from tests.support.postgres import PostgresServer
from tests.support.stores import POLICY, opened

CALLER = Caller("t1", ServiceRole.MANAGER)
MOST = 5
PEPPERS = Peppers([b"p" * 32])
RULES = KeyRules(ungranted=None, capped=False, most=MOST, creators=frozenset({Role.ADMIN}))
BOUNDED = Policies({POLICY.name: replace(POLICY, keys=RULES)}, POLICY.name)


class Replica:
    """What a server makes changes with."""

    def __init__(self, registry: SqlRegistry, keys: SqlKeyStore) -> None:
        clock = SettableClock()
        self.registry = registry
        self.find = keys.find
        changes = Changes(registry, MemoryLimiter(clock, MemoryReservations()), clock)
        keeper = Keeper(PEPPERS, AesSealer([b"s" * 32]), BOUNDED)
        self.accounts = ManageAccounts(changes, BOUNDED)
        self.members = ManageMembers(changes, BOUNDED)
        self.create = CreateKey(changes, BOUNDED, keeper)
        self.rotate = RotateKey(changes, BOUNDED, keeper)
        self.states = SetKeyState(changes)
        self.tokens = ManageTokens(changes, BOUNDED, PEPPERS)

    async def admin(self) -> None:
        """Add the member ``ann``, who may create keys."""
        await self.members.set(CALLER, NewMember(account_id="acme", member_id="ann", role=Role.ADMIN))

    async def key(self, request_id: str = "") -> tuple[Key, str]:
        """Create a key by ``ann``."""
        return await self.create(CALLER, NewKey(account_id="acme", created_by="ann", request_id=request_id))

    async def keys(self) -> list[Key]:
        """Return all keys."""
        return await self.registry.keys(KeyFilter("acme"), None, 1_000)


@pytest.fixture
async def replicas(postgres_server: PostgresServer) -> AsyncIterator[list[Replica]]:
    """Two servers over one database, with the account ``acme`` and the member ``ann``; the trail is verified after."""
    async with postgres_server.database() as url:
        async with AsyncExitStack() as stack:
            databases = [await stack.enter_async_context(opened(url)) for _ in range(2)]
            both = [Replica(SqlRegistry(each, PEPPERS), SqlKeyStore(each, BOUNDED)) for each in databases]
            await both[0].accounts.create(CALLER, NewAccount(account_id="acme"))
            await both[0].admin()
            yield both
        trail = Trail(url)
        for account_id, head in (await trail.heads()).items():
            assert (await verify(trail.rows(account_id), head, [PEPPERS], PEPPERS.ids)).intact
        await trail.close()


async def outcomes(*calls: Awaitable[Any]) -> list[Any]:
    """Return what comes of calls at once."""
    return list(await asyncio.gather(*calls, return_exceptions=True))


def kinds(results: list[Any]) -> set[type]:
    """Return the kinds of errors among results."""
    return {type(each) for each in results if isinstance(each, BaseException)}


async def test_the_most_keys_hold(replicas: list[Replica]) -> None:
    """However many create keys at once, there are as many as the policy allows, and not one more or fewer."""
    made = await outcomes(*(each.key() for _ in range(10) for each in replicas))
    assert kinds(made) == {FailedPreconditionError}
    assert len(await replicas[0].keys()) == MOST == sum(isinstance(each, tuple) for each in made)


async def test_one_request_makes_one_key(replicas: list[Replica]) -> None:
    """A repeated request_id, at the same moment on another server, makes no second key and is told of the first."""
    for number in range(MOST):
        made = await outcomes(*(each.key(f"r{number}") for _ in range(3) for each in replicas))
        (key_id,) = [each[0].key_id for each in made if isinstance(each, tuple)]
        told = [each for each in made if isinstance(each, AlreadyExistsError)]
        assert [each.metadata for each in told] == [{"key_id": key_id}] * 5
    assert len(await replicas[0].keys()) == MOST


async def test_who_is_removed_creates_no_more(replicas: list[Replica]) -> None:
    """A key by a member who is removed at that moment is made before that, and ends with the others, or not at all."""
    one, other = replicas
    for _ in range(10):
        removed = one.members.remove(CALLER, "acme", "ann", KeyDisposition.REVOKE)
        results = await outcomes(other.key(), removed, one.key(), other.key())
        assert kinds(results) <= {FailedPreconditionError}
        assert results[1] is not None
        assert {key.state for key in await one.keys()} <= {KeyState.REVOKED}
        await one.admin()


async def test_a_member_set_from_both_sides(replicas: list[Replica]) -> None:
    """A new member set twice at once, or set and removed: each call is done, one after the other."""
    one, other = replicas
    for number in range(10):
        new = NewMember(account_id="acme", member_id=f"m{number}", role=Role.MEMBER)
        results = await outcomes(*(each.members.set(CALLER, new) for each in (one, other, one)))
        assert not kinds(results)
        gone = [each.members.remove(CALLER, "acme", f"m{number}", KeyDisposition.KEEP) for each in replicas]
        assert kinds(await outcomes(*gone)) == {NotFoundError}


async def test_every_change_has_an_epoch_of_its_own(replicas: list[Replica]) -> None:
    """Changes of all kinds at once: the epoch rises by one for each."""
    one, other = replicas
    before = await one.registry.account("acme")
    assert before is not None
    (key, _), (second, _) = [await one.key() for _ in range(2)]
    calls: list[Awaitable[Any]] = []
    for number in range(8):
        calls += [
            one.rotate(CALLER, key.key_id, 0),
            other.rotate(CALLER, second.key_id, 1_000),
            one.members.set(CALLER, NewMember(account_id="acme", member_id=f"m{number}")),
            other.accounts.update(CALLER, "acme", "", ["display_name"], {"display_name": f"n{number}"}),
        ]
        calls.append(one.registry.note_used({key.key_id: (number, ""), second.key_id: (number, "")}))
    assert not kinds(await outcomes(*calls))
    after = await other.registry.account("acme")
    assert after is not None
    assert after.epoch - before.epoch == 8 * 4


async def test_rotated_and_revoked_at_once(replicas: list[Replica]) -> None:
    """Whichever comes first, the key is revoked in the end, and every secret that was told finds it so."""
    one, other = replicas
    for _ in range(10):
        key, secret = await one.key()
        revoked = other.states(CALLER, key.key_id, KeyState.REVOKED, "RevokeKey", "")
        results = await outcomes(
            one.rotate(CALLER, key.key_id, 1_000), revoked, other.rotate(CALLER, key.key_id, 1_000)
        )
        assert kinds(results) <= {FailedPreconditionError}
        secrets = [secret, *(each.result[1] for each in (results[0], results[2]) if isinstance(each, Effective))]
        for each in secrets:
            record = await one.find(PEPPERS.digests(each))
            assert record is not None
            assert record.key.state is KeyState.REVOKED
        newest = [await other.find(PEPPERS.digests(each)) for each in secrets]
        assert [record.secret_end for record in newest if record].count(None) == 1


async def test_an_etag_lets_one_through(replicas: list[Replica]) -> None:
    """Of two who change what they both have read, one is told that it has changed."""
    account = await replicas[0].registry.account("acme")
    assert account is not None
    for number in range(10):
        etag = f"v{account.version + number}"
        calls = [
            each.accounts.update(CALLER, "acme", etag, ["display_name"], {"display_name": "x"}) for each in replicas
        ]
        assert len(kinds(await outcomes(*calls))) == 1


async def test_an_account_made_twice_at_once(replicas: list[Replica]) -> None:
    """One makes it, the other is told that it is there."""
    for number in range(10):
        calls = [each.accounts.create(CALLER, NewAccount(account_id=f"a{number}")) for each in replicas]
        assert kinds(await outcomes(*calls)) == {AlreadyExistsError}


async def test_the_first_token_of_several_servers(replicas: list[Replica]) -> None:
    """Servers that start at once with one bootstrap token all start, and there is one such token."""
    for number in range(10):
        await asyncio.gather(*(each.tokens.bootstrap(f"{number}" * 40) for each in (*replicas, *replicas)))
    assert len(await replicas[0].registry.tokens(Scope(), None, 100)) == 10
    rows = await replicas[0].registry.audit_rows(AuditFilter(""), None, 100)
    assert [row.sequence for row in rows] == list(range(10, 0, -1))
