"""Keys by secret."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import select

from formgate_server.core.compile_key import compile_key
from formgate_server.storage.sql.lookup import Lookup
from formgate_server.storage.sql.rows import account_of, key_of
from formgate_server.storage.sql.tables import accounts, keys, secrets

if TYPE_CHECKING:
    from formgate_server.core.policy import Policies
    from formgate_server.core.verdict import KeyRecord
    from formgate_server.storage.sql.engine import Database

_KEY_WIDTH = len(keys.c)


class SqlKeyStore:
    """The KeyStore port: one select of the secret, its key and the account, epoch included."""

    def __init__(self, database: Database, policies: Policies) -> None:
        self._policies = policies
        joined = secrets.join(keys).join(accounts, keys.c.account_id == accounts.c.account_id)
        self._lookup = Lookup(database, select(*keys.c, *accounts.c).select_from(joined), secrets.c.digest)

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:  # noqa: ARG002 - every call reads anew
        """See ``KeyStore``."""
        rows = await self._lookup.rows(digests)
        if not rows:
            return None
        row = rows[0]
        account = account_of(row[_KEY_WIDTH:])
        return compile_key(key_of(row[:_KEY_WIDTH]), account, self._policies.by_name[account.policy])
