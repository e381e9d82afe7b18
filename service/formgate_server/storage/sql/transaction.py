"""A change under way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, delete, func, insert, or_, select, update

from formgate_server.core.model import KeyState
from formgate_server.core.ports import Sealed
from formgate_server.storage.sql import audit, epochs
from formgate_server.storage.sql.dialect import inserting
from formgate_server.storage.sql.rows import (
    KEY_COLUMNS,
    TOKEN_COLUMNS,
    account_of,
    account_values,
    key_of,
    key_values,
    member_of,
    member_values,
    sealed_values,
    secret_values,
    token_of,
    token_values,
)
from formgate_server.storage.sql.tables import accounts, key_requests, keys, members, secrets, service_tokens

if TYPE_CHECKING:
    from sqlalchemy import Row

    from formgate_server.core.audit import AuditKeys
    from formgate_server.core.model import Account, AuditEvent, Key, Member, ServiceToken
    from formgate_server.core.ports import StoredSecret
    from formgate_server.storage.sql.connection import Connection

_KEYS = select(*KEY_COLUMNS).where(keys.c.delete_time.is_(None))


class SqlTransaction:
    """The Transaction port. Where AlreadyExistsError is raised, the transaction can only be undone."""

    def __init__(self, connection: Connection, audit_keys: AuditKeys) -> None:
        self._connection = connection
        self._audit_keys = audit_keys

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
        """See ``Transaction``. Its account is locked before it: whoever changes both comes in the same order."""
        with_account = _KEYS.select_from(accounts.join(keys, keys.c.account_id == accounts.c.account_id))
        row = await self._locked(with_account.where(keys.c.key_id == key_id))
        return None if row is None else key_of(row)

    async def insert_key(self, key: Key, secret: StoredSecret, request_id: str) -> None:
        """See ``Transaction``."""
        await self._connection.execute(insert(keys), key_values(key))
        await self._connection.execute(insert(secrets), secret_values(key.key_id, secret))
        if request_id:
            request = {"account_id": key.account_id, "request_id": request_id, "key_id": key.key_id}
            await self._connection.execute(insert(key_requests), request)

    async def count_keys(self, account_id: str) -> int:
        """See ``Transaction``. What locks them is the account: its keys are added and changed under its lock."""
        counted = (
            select(func.count())
            .select_from(keys)
            .where(keys.c.account_id == account_id, keys.c.state != KeyState.REVOKED, keys.c.delete_time.is_(None))
        )
        count: int = (await self._connection.execute(counted)).scalar_one()
        return count

    async def keys_created_by(self, account_id: str, member_id: str) -> list[Key]:
        """See ``Transaction``."""
        query = _KEYS.where(keys.c.account_id == account_id, keys.c.created_by == member_id)
        rows = await self._connection.execute(query.order_by(keys.c.key_id).with_for_update())
        return [key_of(row) for row in rows]

    async def replace_secret(self, key_id: str, secret: StoredSecret, until: int) -> None:
        """See ``Transaction``. The replaced secret's box goes: nobody may ask for it any more."""
        lasting = or_(secrets.c.expire_time.is_(None), secrets.c.expire_time > until)
        older = update(secrets).where(secrets.c.key_id == key_id, lasting)
        await self._connection.execute(older.values(expire_time=until, **sealed_values(None)))
        await self._connection.execute(insert(secrets), secret_values(key_id, secret))

    async def sealed_secret(self, key_id: str) -> Sealed | None:
        """See ``Transaction``."""
        newest = select(secrets.c.sealed, secrets.c.sealing_key_id).where(
            secrets.c.key_id == key_id, secrets.c.expire_time.is_(None)
        )
        row = await self._locked(newest)
        return None if row is None or row.sealed is None else Sealed(row.sealed, row.sealing_key_id)

    async def delete_key(self, key_id: str, now: int) -> None:
        """See ``Transaction``. The digest stays, so that nobody else's key gets this secret; the sealed secret goes."""
        await self._connection.execute(update(keys).where(keys.c.key_id == key_id).values(delete_time=now))
        await self._connection.execute(update(secrets).where(secrets.c.key_id == key_id).values(sealed_values(None)))

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

    async def member(self, account_id: str, member_id: str) -> Member | None:
        """See ``Transaction``."""
        row = await self._locked(
            select(members).where(members.c.account_id == account_id, members.c.member_id == member_id)
        )
        return None if row is None else member_of(row)

    async def put_member(self, member: Member) -> None:
        """See ``Transaction``."""
        values = member_values(member)
        added = inserting(self._connection, members).values(values)
        replaced = added.on_conflict_do_update(index_elements=members.primary_key, set_=values)
        await self._connection.execute(replaced)

    async def delete_member(self, account_id: str, member_id: str) -> None:
        """See ``Transaction``."""
        removed = delete(members).where(members.c.account_id == account_id, members.c.member_id == member_id)
        await self._connection.execute(removed)

    async def raise_epoch(self, account_id: str) -> int:
        """See ``Transaction``."""
        raised = update(accounts).where(accounts.c.account_id == account_id).values(epoch=accounts.c.epoch + 1)
        epoch: int = (await self._connection.execute(raised.returning(accounts.c.epoch))).scalar_one()
        await epochs.note(self._connection, account_id, epoch)
        return epoch

    async def token(self, token_id: str) -> ServiceToken | None:
        """See ``Transaction``."""
        row = await self._locked(select(*TOKEN_COLUMNS).where(service_tokens.c.token_id == token_id))
        return None if row is None else token_of(row)

    async def insert_token(self, token: ServiceToken, digest: bytes, pepper_id: str) -> None:
        """See ``Transaction``."""
        values = token_values(token) | {"digest": digest, "pepper_id": pepper_id}
        await self._connection.execute(insert(service_tokens), values)

    async def replace_token_digest(self, token_id: str, digest: bytes, pepper_id: str) -> None:
        """See ``Transaction``."""
        stored = update(service_tokens).where(service_tokens.c.token_id == token_id)
        await self._connection.execute(stored.values(digest=digest, pepper_id=pepper_id))

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
        await audit.add(self._connection, self._audit_keys, event)

    async def _locked(self, query: Select[Any]) -> Row[Any] | None:
        # SQLite has locked everything since BEGIN IMMEDIATE, and knows no FOR UPDATE: SQLAlchemy leaves it out there.
        row: Row[Any] | None = (await self._connection.execute(query.with_for_update())).first()
        return row
