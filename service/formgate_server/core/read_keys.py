"""Reading keys: one, or an account's."""

from __future__ import annotations

from formgate_server.core import fields, lookup
from formgate_server.core.model import Caller, Key
from formgate_server.core.paging import Page, page
from formgate_server.core.ports import Cursor, KeyFilter, Registry


class ReadKeys:
    """Reads keys."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def get(self, caller: Caller, key_id: str) -> Key:
        """Return a key."""
        return (await lookup.key(self._registry, caller, key_id))[0]

    async def list(self, caller: Caller, wanted: KeyFilter, page_size: int, page_token: str) -> Page[Key]:
        """Return a page of an account's keys, oldest first."""
        await lookup.account(self._registry, caller, wanted.account_id)
        fields.identifier(wanted.created_by, "created_by")

        async def fetch(after: Cursor | None, most: int) -> list[Key]:
            return await self._registry.keys(wanted, after, most)

        return await page(fetch, lambda key: Cursor(key.create_time, key.key_id), wanted, page_size, page_token)
