"""Keys by secret."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from sqlalchemy import and_, select

from formgate_server.core.compile_key import compile_key
from formgate_server.storage.sql.lookup import Lookup
from formgate_server.storage.sql.rows import KEY_COLUMNS, account_of, key_of, member_of
from formgate_server.storage.sql.tables import accounts, keys, members, secrets

if TYPE_CHECKING:
    from formgate_server.core.policy import Policies
    from formgate_server.core.verdict import KeyRecord
    from formgate_server.storage.sql.engine import Database

_KEY_WIDTH = len(KEY_COLUMNS)
_ACCOUNT_WIDTH = len(accounts.c)

_CREATED = and_(members.c.account_id == keys.c.account_id, members.c.member_id == keys.c.created_by)
_RECORDS = (
    select(*KEY_COLUMNS, *accounts.c, *members.c, secrets.c.expire_time)
    .select_from(
        secrets.join(keys).join(accounts, keys.c.account_id == accounts.c.account_id).outerjoin(members, _CREATED)
    )
    .where(keys.c.delete_time.is_(None))
)


class SqlKeyStore:
    """The KeyStore port: one select of the secret, its key, the account, epoch included, and the key's creator."""

    def __init__(self, database: Database, policies: Policies) -> None:
        self._policies = policies
        self._lookup = Lookup(database, _RECORDS, secrets.c.digest)

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:  # noqa: ARG002 - every call reads anew
        """See ``KeyStore``."""
        rows = await self._lookup.rows(digests)
        if not rows:
            return None
        columns = iter(rows[0])
        key = key_of(list(islice(columns, _KEY_WIDTH)))
        account = account_of(list(islice(columns, _ACCOUNT_WIDTH)))
        *member, secret_end = columns
        creator = None if member[0] is None else member_of(member)
        return compile_key(key, account, self._policies.of(account), creator, secret_end)
