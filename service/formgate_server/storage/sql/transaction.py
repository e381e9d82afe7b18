"""A change under way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, insert, select, update

from formgate_server.storage.sql.dialect import inserting
from formgate_server.storage.sql.rows import (
    TOKEN_COLUMNS,
    account_of,
    account_values,
    event_values,
    key_of,
    key_values,
    token_of,
    token_values,
)
from formgate_server.storage.sql.tables import (
    accounts,
    audit_events,
    audit_heads,
    key_requests,
    keys,
    secrets,
    service_tokens,
)

if TYPE_CHECKING:
    from sqlalchemy import Row

    from formgate_server.core.model import Account, AuditEvent, Key, ServiceToken
    from formgate_server.storage.sql.connection import Connection


class SqlTransaction:
    """The Transaction port. Where AlreadyExistsError is raised, the transaction can only be undone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def account(self, account_id: str) -> Account | None:
        """See ``Transaction``."""
        row = await self._locked(select(accounts).where(accounts.c.account_id == account_id))
        return None if row is None else account_of(row)

    async def insert_account(self, account: Account) -> None:
        """See ``Transaction``."""
        await self._connection.execute(insert(accounts), account_values(account))

    async def update_account(self, account: Account) -> None:
        """See ``Transaction``."""
        changed = update(accounts).where(accounts.c.account_id == account.account_id).values(account_values(account))
        await self._connection.execute(changed)

    async def key(self, key_id: str) -> Key | None:
        """See ``Transaction``."""
        row = await self._locked(select(keys).where(keys.c.key_id == key_id))
        return None if row is None else key_of(row)

    async def insert_key(self, key: Key, digest: bytes, pepper_id: str, request_id: str) -> None:
        """See ``Transaction``."""
        await self._connection.execute(insert(keys), key_values(key))
        secret = {"digest": digest, "key_id": key.key_id, "pepper_id": pepper_id}
        await self._connection.execute(insert(secrets), secret)
        if request_id:
            request = {"account_id": key.account_id, "request_id": request_id, "key_id": key.key_id}
            await self._connection.execute(insert(key_requests), request)

    async def key_of_request(self, account_id: str, request_id: str) -> str | None:
        """See ``Transaction``."""
        made = select(key_requests.c.key_id).where(
            key_requests.c.account_id == account_id, key_requests.c.request_id == request_id
        )
        row = await self._locked(made)
        return None if row is None else row.key_id

    async def update_key(self, key: Key) -> None:
        """See ``Transaction``."""
        values = key_values(key)
        del values["last_used_time"], values["last_used_ip"]
        await self._connection.execute(update(keys).where(keys.c.key_id == key.key_id).values(values))

    async def raise_epoch(self, account_id: str) -> int:
        """See ``Transaction``."""
        raised = update(accounts).where(accounts.c.account_id == account_id).values(epoch=accounts.c.epoch + 1)
        epoch: int = (await self._connection.execute(raised.returning(accounts.c.epoch))).scalar_one()
        return epoch

    async def token(self, token_id: str) -> ServiceToken | None:
        """See ``Transaction``."""
        row = await self._locked(select(*TOKEN_COLUMNS).where(service_tokens.c.token_id == token_id))
        return None if row is None else token_of(row)

    async def insert_token(self, token: ServiceToken, digest: bytes, pepper_id: str) -> None:
        """See ``Transaction``."""
        values = token_values(token) | {"digest": digest, "pepper_id": pepper_id}
        await self._connection.execute(insert(service_tokens), values)

    async def token_of_digest(self, digests: Sequence[bytes]) -> ServiceToken | None:
        """See ``Transaction``."""
        row = await self._locked(select(*TOKEN_COLUMNS).where(service_tokens.c.digest.in_(digests)))
        return None if row is None else token_of(row)

    async def update_token(self, token: ServiceToken) -> None:
        """See ``Transaction``."""
        changed = update(service_tokens).where(service_tokens.c.token_id == token.token_id).values(token_values(token))
        await self._connection.execute(changed)

    async def audit(self, event: AuditEvent) -> None:
        """See ``Transaction``."""
        head = inserting(self._connection, audit_heads).values(account_id=event.account_id, sequence=1)
        counted = head.on_conflict_do_update(
            index_elements=[audit_heads.c.account_id], set_={"sequence": audit_heads.c.sequence + 1}
        )
        sequence = (await self._connection.execute(counted.returning(audit_heads.c.sequence))).scalar_one()
        await self._connection.execute(insert(audit_events), event_values(event, sequence))

    async def _locked(self, query: Select[Any]) -> Row[Any] | None:
        # SQLite has locked everything since BEGIN IMMEDIATE, and knows no FOR UPDATE: SQLAlchemy leaves it out there.
        row: Row[Any] | None = (await self._connection.execute(query.with_for_update())).first()
        return row
