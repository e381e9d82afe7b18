"""The audit trail as it stands in the database, for whoever verifies it: oldest first, broken rows included."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import URL, Row, Select, select
from sqlalchemy.exc import DBAPIError

from formgate_server.core.errors import UnavailableError
from formgate_server.core.model import AuditEvent
from formgate_server.core.ports import AuditRow
from formgate_server.storage.sql import migrate
from formgate_server.storage.sql.engine import open_database
from formgate_server.storage.sql.parts import UnfitDatabaseError
from formgate_server.storage.sql.rows import audit_row_of
from formgate_server.storage.sql.tables import accounts, audit_events, audit_heads, fingerprints

_AT_ONCE = 1_000

_PEPPERS = select(fingerprints.c.value).where(fingerprints.c.name == "pepper")
_EVENT = audit_events.c
# What can not be read was never written so: nothing that a MAC was made of.
_BROKEN = AuditEvent(account_id="", create_time=0, action="", target="", token_id="")


class Trail:
    """Reads the audit trail of a database. Each method raises UnavailableError where that does not answer."""

    def __init__(self, url: str | URL) -> None:
        """Open a database, to be read and nothing else; an SQLite file is never made. Raises UnfitDatabaseError."""
        self._database = open_database(url, read_only=True)

    async def close(self) -> None:
        """Close it."""
        await self._database.close()

    async def is_ours(self) -> bool:
        """Tell whether this version knows its tables."""
        try:
            await migrate.check_tables(self._database)
        except UnfitDatabaseError:
            return False
        return True

    async def peppers(self) -> frozenset[str]:
        """Return the ids of the peppers that this database was ever used with."""
        return frozenset(row.value for row in await self._rows(_PEPPERS))

    async def heads(self, account_id: str | None = None) -> dict[str, int]:
        """Return the newest number that each account (None: all) has given to a row, by account.

        An account without a head has given one at the least, that of its own making. Service tokens of no account have
        a trail under the empty id.
        """
        found = dict.fromkeys(await self._accounts(select(audit_events.c.account_id).distinct(), account_id), 0)
        found |= dict.fromkeys(await self._accounts(select(accounts.c.account_id), account_id), 1)
        heads = select(audit_heads.c.account_id, audit_heads.c.sequence)
        if account_id is not None:
            heads = heads.where(audit_heads.c.account_id == account_id)
        found |= {row.account_id: row.sequence for row in await self._all(heads)}
        return dict(sorted(found.items()))

    async def _accounts(self, query: Select[tuple[str]], account_id: str | None) -> list[str]:
        if account_id is not None:
            query = query.where(query.selected_columns.account_id == account_id)
        return [row.account_id for row in await self._all(query)]

    async def rows(self, account_id: str) -> AsyncIterator[AuditRow]:
        """Return an account's rows, oldest first. One that can not be read is there, with nothing in it."""
        after = None
        while True:
            query = select(_EVENT.sequence, _EVENT.mac, _EVENT.mac_key_id).where(_EVENT.account_id == account_id)
            if after is not None:
                query = query.where(_EVENT.sequence > after)
            signed = await self._rows(query.order_by(_EVENT.sequence).limit(_AT_ONCE))
            if not signed:
                return
            numbers = [row.sequence for row in signed]
            events = await self._events(account_id, numbers)
            for row in signed:
                event = events.get(row.sequence, _BROKEN)
                yield AuditRow(row.sequence, event, _bytes(row.mac), str(row.mac_key_id or ""))
            after = numbers[-1]

    async def _events(self, account_id: str, numbers: list[int]) -> dict[int, AuditEvent]:
        """Read these rows' events; those that can not be read are left out."""
        query = select(audit_events).where(
            _EVENT.account_id == account_id, _EVENT.sequence >= numbers[0], _EVENT.sequence <= numbers[-1]
        )
        try:
            rows = [audit_row_of(row) for row in await self._rows(query)]
        except (ValueError, DBAPIError, UnavailableError):  # no JSON, no UTF-8
            if len(numbers) == 1:
                return {}
            middle = len(numbers) // 2
            first = await self._events(account_id, numbers[:middle])
            return first | await self._events(account_id, numbers[middle:])
        return {row.sequence: row.event for row in rows if _is_plain(row.event)}

    async def _rows(self, query: Select[Any]) -> list[Row[Any]]:
        async with self._database.reading() as connection:
            return list(await connection.execute(query))

    async def _all(self, query: Select[Any]) -> list[Row[Any]]:
        async with self._database.scanning() as connection:
            return list(await connection.execute(query))


def _bytes(mac: object) -> bytes:
    """Return a MAC; what is none, SQLite keeping anything anywhere, is one that fits nothing."""
    return mac if isinstance(mac, bytes) else b"" if mac is None else b"?"


def _is_plain(event: AuditEvent) -> bool:
    """Tell whether the columns hold what they are declared to, which SQLite does not see to."""
    texts: tuple[object, ...] = (
        *(event.action, event.target, event.token_id, event.actor, event.actor_ip, event.note),
    )
    number: object = event.create_time
    return isinstance(number, int) and all(isinstance(text, str) for text in texts)
