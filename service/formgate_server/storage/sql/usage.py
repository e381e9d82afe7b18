"""What was consumed: the records as sent, and beside them their sums."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import select

from formgate_server.core.model import UsageOutcome
from formgate_server.core.ports import KeyOwner, UsageEntry, UsageFilter, UsageSum
from formgate_server.storage.sql import usage_sums
from formgate_server.storage.sql.dialect import batches, inserting
from formgate_server.storage.sql.rows import usage_values
from formgate_server.storage.sql.tables import accounts, keys, usage_records

if TYPE_CHECKING:
    from formgate_server.storage.sql.connection import Connection
    from formgate_server.storage.sql.engine import Database

_Identity: TypeAlias = tuple[str, str]
_IDENTITY = (usage_records.c.account_id, usage_records.c.record_id)
_OWNERS = select(keys.c.key_id, accounts.c.account_id, accounts.c.policy).join_from(keys, accounts)


class SqlUsageLedger:
    """The UsageLedger port."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def owners(self, key_ids: Collection[str]) -> Mapping[str, KeyOwner]:
        """See ``UsageLedger``."""
        owners: dict[str, KeyOwner] = {}
        for some in batches(key_ids):
            async with self._database.reading() as connection:
                rows = await connection.execute(_OWNERS.where(keys.c.key_id.in_(some)))
            owners |= {key_id: KeyOwner(account_id, policy) for key_id, account_id, policy in rows}
        return owners

    async def record(self, entries: Sequence[UsageEntry]) -> list[UsageOutcome]:
        """See ``UsageLedger``."""
        firsts: dict[_Identity, UsageEntry] = {}
        for entry in entries:
            firsts.setdefault(_identity(entry), entry)
        if not firsts:
            return []
        # Always in the same order, so that two such transactions wait for each other's rows and never both ways.
        ordered = [firsts[each] for each in sorted(firsts)]
        async with self._database.writing(urgent=False) as connection:
            kept = await _insert(connection, ordered)
            there = await _contents(connection, [each for each in firsts if each not in kept])
            await usage_sums.add_up(connection, [entry for each, entry in firsts.items() if each in kept])
        contents = {each: firsts[each].content for each in kept} | there
        return [_outcome(entry, kept, contents) for entry in entries]

    async def sums(self, wanted: UsageFilter, group_by: str) -> list[UsageSum]:
        """See ``UsageLedger``."""
        async with self._database.reading() as connection:
            return await usage_sums.read(connection, wanted, group_by)


def _identity(entry: UsageEntry) -> _Identity:
    return entry.account_id, entry.record.record_id


def _outcome(entry: UsageEntry, new: set[_Identity], contents: Mapping[_Identity, bytes]) -> UsageOutcome:
    """Say what became of ``entry``; the first of a new identity takes it out of ``new``."""
    identity = _identity(entry)
    if identity in new:
        new.remove(identity)
        return UsageOutcome.ACCEPTED
    return UsageOutcome.DUPLICATE if entry.content == contents[identity] else UsageOutcome.CONFLICT


async def _insert(connection: Connection, entries: Sequence[UsageEntry]) -> set[_Identity]:
    """Add the records whose identity is new, and return those identities."""
    new = inserting(connection, usage_records).on_conflict_do_nothing().returning(*_IDENTITY)
    rows = await connection.execute(new, [usage_values(entry) for entry in entries])
    return {(account_id, record_id) for account_id, record_id in rows}


async def _contents(connection: Connection, identities: Collection[_Identity]) -> dict[_Identity, bytes]:
    """Return the content digests of records that are there."""
    contents: dict[_Identity, bytes] = {}
    row = usage_records.c
    for some in batches(identities):
        # Not by pairs: what SQLite makes of (account_id, record_id) IN (...) is a scan of the whole table.
        for of_account, record_ids in _by_account(some).items():
            query = select(row.record_id, row.content).where(
                row.account_id == of_account, row.record_id.in_(record_ids)
            )
            found = await connection.execute(query)
            contents |= {(of_account, record_id): content for record_id, content in found}
    return contents


def _by_account(identities: Iterable[_Identity]) -> dict[str, list[str]]:
    record_ids: dict[str, list[str]] = {}
    for account_id, record_id in identities:
        record_ids.setdefault(account_id, []).append(record_id)
    return record_ids
