"""Accounts, members, keys, service tokens and the audit trail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, or_, select, tuple_, update

from formgate_server.storage.sql import audit
from formgate_server.storage.sql.dialect import batches
from formgate_server.storage.sql.rows import KEY_COLUMNS, TOKEN_COLUMNS, account_of, key_of, member_of, token_of
from formgate_server.storage.sql.tables import accounts, keys, members, service_tokens
from formgate_server.storage.sql.transaction import SqlTransaction

if TYPE_CHECKING:
    from formgate_server.core.audit import AuditKeys
    from formgate_server.core.model import Account, Key, Member, ServiceToken
    from formgate_server.core.ports import AuditFilter, AuditRow, Cursor, KeyFilter, Scope, Transaction
    from formgate_server.storage.sql.engine import Database

_Noun = TypeVar("_Noun")

_NOTED_AT_ONCE = 5_000  # nobody waits for these, but others wait for their turn to write
# One statement for all: one for each costs a check a tenth more, where most checks are their key's first for long.
# Rows are locked in order, as one after the other would: several processes note the same keys.
_NOTE_USED = """
UPDATE keys SET last_used_time = noted.time, last_used_ip = noted.ip
FROM (
    SELECT key_id, time, ip
    FROM keys JOIN unnest($1::text[], $2::bigint[], $3::text[]) AS given (key_id, time, ip) USING (key_id)
    WHERE last_used_time IS NULL OR last_used_time < time
    ORDER BY key_id FOR NO KEY UPDATE OF keys
) AS noted
WHERE keys.key_id = noted.key_id
"""

_ACCOUNTS = select(accounts)
_KEYS = select(*KEY_COLUMNS).where(keys.c.delete_time.is_(None))
_TOKENS = select(*TOKEN_COLUMNS)


class SqlRegistry:
    """The Registry port."""

    def __init__(self, database: Database, audit_keys: AuditKeys) -> None:
        self._database = database
        self._audit_keys = audit_keys

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """See ``Registry``."""
        async with self._database.writing() as connection:
            yield SqlTransaction(connection, self._audit_keys)

    async def account(self, account_id: str) -> Account | None:
        """See ``Registry``."""
        return await self._one(_ACCOUNTS.where(accounts.c.account_id == account_id), account_of)

    async def plans(self) -> set[tuple[str, str]]:
        """See ``Registry``."""
        async with self._database.reading() as connection:
            rows = await connection.execute(select(accounts.c.policy, accounts.c.plan).distinct())
        return {(policy, plan) for policy, plan in rows}

    async def accounts(self, scope: Scope, after: Cursor | None, most: int) -> list[Account]:
        """See ``Registry``."""
        query = _ACCOUNTS
        if scope.account_id:
            query = query.where(accounts.c.account_id == scope.account_id)
        if scope.policy:
            query = query.where(accounts.c.policy == scope.policy)
        return await self._page(query, (accounts.c.create_time, accounts.c.account_id), after, most, account_of)

    async def key(self, key_id: str) -> Key | None:
        """See ``Registry``."""
        return await self._one(_KEYS.where(keys.c.key_id == key_id), key_of)

    async def keys(self, wanted: KeyFilter, after: Cursor | None, most: int) -> list[Key]:
        """See ``Registry``."""
        query = _KEYS.where(keys.c.account_id == wanted.account_id)
        if wanted.state:
            query = query.where(keys.c.state == wanted.state)
        if wanted.environment:
            query = query.where(keys.c.environment == wanted.environment)
        if wanted.created_by:
            query = query.where(keys.c.created_by == wanted.created_by)
        return await self._page(query, (keys.c.create_time, keys.c.key_id), after, most, key_of)

    async def token_by_digest(self, digests: Sequence[bytes]) -> ServiceToken | None:
        """See ``Registry``."""
        return await self._one(_TOKENS.where(service_tokens.c.digest.in_(digests)), token_of)

    async def tokens(self, scope: Scope, after: Cursor | None, most: int) -> list[ServiceToken]:
        """See ``Registry``."""
        query = _TOKENS
        if scope.account_id:
            query = query.where(service_tokens.c.account_id == scope.account_id)
        if scope.policy:
            query = query.where(service_tokens.c.policy == scope.policy)
        order = (service_tokens.c.create_time, service_tokens.c.token_id)
        return await self._page(query, order, after, most, token_of)

    async def members(self, account_id: str, after: Cursor | None, most: int) -> list[Member]:
        """See ``Registry``."""
        query = select(members).where(members.c.account_id == account_id)
        return await self._page(query, (members.c.create_time, members.c.member_id), after, most, member_of)

    async def audit_rows(self, wanted: AuditFilter, before: int | None, most: int) -> list[AuditRow]:
        """See ``Registry``."""
        async with self._database.reading() as connection:
            return await audit.read(connection, wanted, before, most)

    async def note_used(self, last_used: Mapping[str, tuple[int, str]]) -> None:
        """See ``Registry``."""
        time = bindparam("time", type_=BigInteger)
        earlier = or_(keys.c.last_used_time.is_(None), keys.c.last_used_time < time)
        statement = (
            update(keys)
            .where(keys.c.key_id == bindparam("id"), earlier)
            .values(last_used_time=time, last_used_ip=bindparam("ip"))
        )
        rows = [{"id": key_id, "time": when, "ip": ip} for key_id, (when, ip) in sorted(last_used.items())]
        for some in batches(rows, _NOTED_AT_ONCE):
            async with self._database.writing(urgent=False) as connection:
                if connection.dialect_name == "postgresql":
                    columns = tuple([row[name] for row in some] for name in ("id", "time", "ip"))
                    await connection.execute_plain(_NOTE_USED, columns)
                else:
                    await connection.execute(statement, some)

    async def _one(self, query: Select[Any], read: Callable[[Sequence[Any]], _Noun]) -> _Noun | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else read(row)

    async def _page(
        self,
        query: Select[Any],
        order: tuple[ColumnElement[int], ColumnElement[str]],
        after: Cursor | None,
        most: int,
        read: Callable[[Sequence[Any]], _Noun],
    ) -> list[_Noun]:
        if after is not None:
            query = query.where(tuple_(*order) > tuple_(*after))
        async with self._database.reading() as connection:
            rows = await connection.execute(query.order_by(*order).limit(most))
        return [read(row) for row in rows]
