"""Members: the users of an account, whose rights its keys may inherit. Set, remove, list."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from formgate.rules.grants import Level
from formgate_server.core import audit, fields, lookup
from formgate_server.core.changes import Changed, Changes, Effective
from formgate_server.core.errors import InvalidArgumentError, NotFoundError
from formgate_server.core.model import Account, Caller, Key, KeyState, Member, Role
from formgate_server.core.paging import Page, page
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Cursor, Transaction


class KeyDisposition(IntEnum):
    """What becomes of a removed member's keys. Numbered as in ``formgate.v1``."""

    KEEP = 1
    DISABLE = 2
    REVOKE = 3


_ENDS = {KeyDisposition.DISABLE: KeyState.DISABLED, KeyDisposition.REVOKE: KeyState.REVOKED}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMember:
    """A member's rights. ``role`` None: MEMBER."""

    account_id: str
    member_id: str
    role: Role | None = None
    permissions: tuple[str, ...] = ()
    level: Level = Level.UNSPECIFIED


class ManageMembers:
    """What can be done with members; the next check of a key that inherits decides by it."""

    def __init__(self, changes: Changes, policies: Policies) -> None:
        self._changes = changes
        self._policies = policies

    async def set(self, caller: Caller, new: NewMember) -> Effective[Member]:
        """Add a member or replace its rights."""
        fields.required(new.member_id, "member_id")

        async def put(transaction: Transaction) -> Changed[Member]:
            account = await lookup.account(transaction, caller, new.account_id)
            self._check(new, account)
            now = self._changes.clock.now()
            before = await transaction.member(account.account_id, new.member_id)
            after = Member(
                account_id=account.account_id,
                member_id=new.member_id,
                role=new.role or Role.MEMBER,
                permissions=new.permissions,
                level=new.level,
                create_time=now if before is None else before.create_time,
                update_time=now,
            )
            await transaction.put_member(after)
            epoch = await transaction.raise_epoch(account.account_id)
            await transaction.audit(audit.event(caller, "SetMember", now, before=before, after=after))
            return Changed(after, account.account_id, epoch)

        return await self._changes.apply(put)

    def _check(self, new: NewMember, account: Account) -> None:
        policy = self._policies.of(account)
        fields.permissions(new.permissions, policy, "permissions")
        fields.level(new.level, policy, "level")

    async def remove(
        self, caller: Caller, account_id: str, member_id: str, disposition: KeyDisposition | None
    ) -> Effective[None]:
        """Remove a member; its keys stay, are switched off, or end."""
        fields.required(member_id, "member_id")
        if disposition is None:
            raise InvalidArgumentError("key_disposition", "is required: KEEP, DISABLE or REVOKE")

        async def remove(transaction: Transaction) -> Changed[None]:
            account = await lookup.account(transaction, caller, account_id)
            member = await transaction.member(account_id, member_id)
            if member is None:
                message = f"member {member_id} does not exist"
                raise NotFoundError(message, reason="MEMBER_NOT_FOUND", metadata={"member_id": member_id})
            now = self._changes.clock.now()
            if disposition in _ENDS:
                for key in await transaction.keys_created_by(account_id, member_id):
                    await _end(transaction, caller, key, _ENDS[disposition], now)
            await transaction.delete_member(account_id, member_id)
            epoch = await transaction.raise_epoch(account_id)
            await transaction.audit(audit.event(caller, "RemoveMember", now, before=member, after=None))
            return Changed(None, account.account_id, epoch)

        return await self._changes.apply(remove)

    async def list(self, caller: Caller, account_id: str, page_size: int, page_token: str) -> Page[Member]:
        """Return a page of an account's members."""
        registry = self._changes.registry
        await lookup.account(registry, caller, account_id)

        async def fetch(after: Cursor | None, most: int) -> list[Member]:
            return await registry.members(account_id, after, most)

        listing = ("members", account_id)
        return await page(fetch, lambda m: Cursor(m.create_time, m.member_id), listing, page_size, page_token)


async def _end(transaction: Transaction, caller: Caller, key: Key, state: KeyState, now: int) -> None:
    if key.state in (state, KeyState.REVOKED):
        return
    revoke_time = now if state is KeyState.REVOKED else None
    after = replace(key, state=state, revoke_time=revoke_time, version=key.version + 1)
    await transaction.update_key(after)
    await transaction.audit(audit.event(caller, "RemoveMember", now, before=key, after=after))
