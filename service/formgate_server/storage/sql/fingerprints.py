"""What a database belongs to."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import func, or_, select

from formgate_server.core.model import KeyState
from formgate_server.storage.sql.dialect import alone, inserting
from formgate_server.storage.sql.tables import fingerprints, keys, secrets, service_tokens

if TYPE_CHECKING:
    from sqlalchemy import Select

    from formgate_server.storage.sql.connection import Connection
    from formgate_server.storage.sql.engine import Database


PEPPER = "pepper"
SEALING_KEY = "sealing key"


class Stored(NamedTuple):
    """What would be lost with a pepper or a sealing key."""

    keys: int
    tokens: int = 0

    def __str__(self) -> str:
        told = {"key": self.keys, "service token": self.tokens}
        return " and ".join(f"{n:,} {noun}{'' if n == 1 else 's'}" for noun, n in told.items() if n) or "nothing"


class Fingerprints:
    """The public ids of all peppers and sealing keys that this database was ever used with, in sets by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def check(self, name: str, values: Collection[str]) -> frozenset[str]:
        """Return the ids that are remembered by ``name``; where there are none, ``values`` are from now on."""
        async with self._database.writing() as connection:
            await alone(connection, "fingerprints")  # of two with different ones, one is the first
            query = select(fingerprints.c.value).where(fingerprints.c.name == name)
            there = frozenset((await connection.execute(query)).scalars())
            if not there:
                await _add(connection, name, values)
        return there or frozenset(values)

    async def stored(self, name: str, values: Collection[str], now: int) -> dict[str, Stored]:
        """Return what is stored under these ids and still of use ``now``, by id; it goes through all secrets.

        Of no use are secrets that have ended, and those of keys and tokens that were deleted, revoked or, of tokens,
        have expired: they are refused whether they are found or not.
        """
        if not values:
            return {}
        under = secrets.c.pepper_id if name == PEPPER else secrets.c.sealing_key_id
        lasting = or_(secrets.c.expire_time.is_(None), secrets.c.expire_time > now)
        of_keys = (
            select(under, func.count(keys.c.key_id.distinct()))
            .select_from(secrets.join(keys))
            .where(under.in_(values), lasting, keys.c.delete_time.is_(None), keys.c.state != KeyState.REVOKED)
            .group_by(under)
        )
        token = service_tokens.c
        of_tokens = (
            select(token.pepper_id, func.count())
            .where(token.pepper_id.in_(values), token.revoke_time.is_(None))
            .where(or_(token.expire_time.is_(None), token.expire_time > now))
            .group_by(token.pepper_id)
        )
        counted = await self._counted(of_keys)
        tokens = await self._counted(of_tokens) if name == PEPPER else {}
        return {each: Stored(counted.get(each, 0), tokens.get(each, 0)) for each in counted | tokens}

    async def _counted(self, query: Select[str, int]) -> dict[str, int]:
        async with self._database.scanning() as connection:
            return dict((await connection.execute(query)).all())

    async def remember(self, name: str, values: Collection[str]) -> None:
        """Remember ``values`` besides those that are there."""
        async with self._database.writing() as connection:
            await _add(connection, name, values)


async def _add(connection: Connection, name: str, values: Collection[str]) -> None:
    if not values:
        return
    added = inserting(connection, fingerprints).on_conflict_do_nothing()
    await connection.execute(added, [{"name": name, "value": value} for value in sorted(values)])
