"""Accounts, members, keys, service tokens and the audit trail, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from formgate_server.core.ports import AuditFilter, AuditRow, Cursor, KeyFilter, Scope
from formgate_server.storage.memory.tables import Tables
from formgate_server.storage.memory.transaction import MemoryTransaction

if TYPE_CHECKING:
    from formgate_server.core.audit import AuditKeys
    from formgate_server.core.model import Account, Key, Member, ServiceToken
    from formgate_server.core.ports import Transaction

_V = TypeVar("_V")


class MemoryRegistry:
    """The Registry port."""

    def __init__(self, audit_keys: AuditKeys) -> None:
        self.tables = Tables()
        self._audit_keys = audit_keys
        self._changing = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """See ``Registry``."""
        async with self._changing:
            written = self.tables.overlaid()
            yield MemoryTransaction(written, self._audit_keys)
            self.tables.take(written)

    async def account(self, account_id: str) -> Account | None:
        """See ``Registry``."""
        return self.tables.accounts.get(account_id)

    async def plans(self) -> set[tuple[str, str]]:
        """See ``Registry``."""
        return {(account.policy, account.plan) for account in self.tables.accounts.values()}

    async def accounts(self, scope: Scope, after: Cursor | None, most: int) -> list[Account]:
        """See ``Registry``."""
        found = (
            account
            for account in self.tables.accounts.values()
            if scope.account_id in ("", account.account_id) and scope.policy in ("", account.policy)
        )
        return _page(found, lambda account: Cursor(account.create_time, account.account_id), after, most)

    async def key(self, key_id: str) -> Key | None:
        """See ``Registry``."""
        return self.tables.key(key_id)

    async def keys(self, wanted: KeyFilter, after: Cursor | None, most: int) -> list[Key]:
        """See ``Registry``."""
        found = (
            key
            for key in self.tables.keys_of(wanted.account_id)
            if wanted.state in (0, key.state)
            and wanted.environment in (0, key.environment)
            and wanted.created_by in ("", key.created_by)
        )
        return _page(found, lambda key: Cursor(key.create_time, key.key_id), after, most)

    async def token_by_digest(self, digests: Sequence[bytes]) -> ServiceToken | None:
        """See ``Registry``."""
        return self.tables.token_of_digest(digests)

    async def tokens(self, scope: Scope, after: Cursor | None, most: int) -> list[ServiceToken]:
        """See ``Registry``."""
        found = (
            token
            for token in self.tables.tokens.values()
            if scope.account_id in ("", token.account_id) and scope.policy in ("", token.policy)
        )
        return _page(found, lambda token: Cursor(token.create_time, token.token_id), after, most)

    async def members(self, account_id: str, after: Cursor | None, most: int) -> list[Member]:
        """See ``Registry``."""
        found = (member for member in self.tables.members.values() if member and member.account_id == account_id)
        return _page(found, lambda member: Cursor(member.create_time, member.member_id), after, most)

    async def audit_rows(self, wanted: AuditFilter, before: int | None, most: int) -> list[AuditRow]:
        """See ``Registry``."""
        found = (
            row
            for row in reversed(self.tables.audit.get(wanted.account_id, ()))
            if wanted.target in ("", row.event.target)
            and wanted.start <= row.event.create_time < wanted.end
            and (before is None or row.sequence < before)
        )
        return list(islice(found, most))

    async def note_used(self, last_used: Mapping[str, tuple[int, str]]) -> None:
        """See ``Registry``."""
        async with self._changing:
            for key_id, (time, ip) in last_used.items():
                key = self.tables.keys.get(key_id)
                if key is not None and (key.last_used_time is None or key.last_used_time < time):
                    self.tables.keys[key_id] = replace(key, last_used_time=time, last_used_ip=ip)


def _page(found: Iterable[_V], cursor: Callable[[_V], Cursor], after: Cursor | None, most: int) -> list[_V]:
    following = [each for each in found if after is None or cursor(each) > after]
    return sorted(following, key=cursor)[:most]
