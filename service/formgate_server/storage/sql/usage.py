"""What was consumed: the records as sent, beside them their sums, and what of it is still to be charged."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import select

from formgate_server.core.model import UsageOutcome
from formgate_server.core.ports import KeyHolder, KeyOwner, Owed, UsageEntry, UsageFilter, UsageSum, owed, owes
from formgate_server.storage.sql import outbox, retention, usage_sums
from formgate_server.storage.sql.bulk import Bulk
from formgate_server.storage.sql.dialect import batches
from formgate_server.storage.sql.rows import KEY_COLUMNS, account_of, key_of
from formgate_server.storage.sql.tables import accounts, keys, usage_records

if TYPE_CHECKING:
    from formgate_server.storage.sql.connection import Connection
    from formgate_server.storage.sql.engine import Database

_Identity: TypeAlias = tuple[str, str]
_OWNERS = select(keys.c.key_id, accounts.c.account_id, accounts.c.policy).join_from(keys, accounts)
_HOLDERS = select(*KEY_COLUMNS, *accounts.c).join_from(keys, accounts).where(keys.c.delete_time.is_(None))

# PostgreSQL may hear of the same record from two sides at once; the one who comes second waits here for the first.
_ADD = Bulk(usage_records)
_ADD_NEW = Bulk(usage_records, "ON CONFLICT DO NOTHING RETURNING account_id, record_id")
_CONTENTS = {
    "postgresql": (
        "SELECT account_id, record_id, content FROM unnest($1::text[], $2::text[]) AS given (account_id, record_id)"
        " JOIN usage_records USING (account_id, record_id)"
    ),
    # Not by pairs: what SQLite makes of (account_id, record_id) IN (...) is a scan of the whole table.
    "sqlite": (
        "SELECT account_id, record_id, content FROM json_each(?) AS given CROSS JOIN usage_records ON"
        " account_id = json_extract(given.value, '$[0]') AND record_id = json_extract(given.value, '$[1]')"
    ),
}


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

    async def holders(self, key_ids: Collection[str]) -> Mapping[str, KeyHolder]:
        """See ``UsageLedger``."""
        holders: dict[str, KeyHolder] = {}
        for some in batches(key_ids):
            async with self._database.reading() as connection:
                rows = await connection.execute(_HOLDERS.where(keys.c.key_id.in_(some)))
            end = len(KEY_COLUMNS)
            holders |= {row[0]: KeyHolder(key_of(row[:end]), account_of(row[end:])) for row in rows}
        return holders

    async def record(self, entries: Sequence[UsageEntry]) -> list[UsageOutcome]:
        """See ``UsageLedger``."""
        firsts: dict[_Identity, UsageEntry] = {}
        for entry in entries:
            firsts.setdefault((entry.account_id, entry.record.record_id), entry)
        if not firsts:
            return []
        # Always in the same order, so that two such transactions wait for each other's rows and never both ways.
        ordered = dict(sorted(firsts.items()))
        async with self._database.writing(urgent=False) as connection:
            there = await _insert(connection, ordered)
            new = [entry for each, entry in firsts.items() if each not in there] if there else firsts.values()
            await usage_sums.add_up(connection, new)
            await outbox.add(connection, [owed(entry) for entry in new if owes(entry.record)])
        return _outcomes(entries, firsts, there)

    async def sums(self, wanted: UsageFilter, group_by: str) -> list[UsageSum]:
        """See ``UsageLedger``."""
        async with self._database.reading() as connection:
            return await usage_sums.read(connection, wanted, group_by)

    async def pending(self, older_than: int, most: int) -> list[Owed]:
        """See ``UsageLedger``."""
        return await outbox.take(self._database, older_than, most)

    async def done(self, settled: Sequence[Owed]) -> None:
        """See ``UsageLedger``."""
        await outbox.remove(self._database, settled)

    async def forget_records(self, before: int, most: int) -> int | None:
        """See ``UsageLedger``."""
        return await retention.forget_records(self._database, before, most)

    async def forget_sums(self, before: int, most: int) -> int | None:
        """See ``UsageLedger``."""
        return await retention.forget_sums(self._database, before, most)

    async def count_old(self, records_before: int, sums_before: int) -> tuple[int, int]:
        """See ``UsageLedger``."""
        return await retention.count(self._database, records_before, sums_before)


def _outcomes(
    entries: Sequence[UsageEntry], firsts: Mapping[_Identity, UsageEntry], there: Mapping[_Identity, bytes]
) -> list[UsageOutcome]:
    """Say what became of each: the first of an identity that was not there is new."""
    if not there and len(firsts) == len(entries):
        return [UsageOutcome.ACCEPTED] * len(entries)
    seen: set[_Identity] = set(there)
    outcomes = []
    for entry in entries:
        identity = entry.account_id, entry.record.record_id
        if identity not in seen:
            seen.add(identity)
            outcomes.append(UsageOutcome.ACCEPTED)
            continue
        content = there[identity] if identity in there else firsts[identity].content
        outcomes.append(UsageOutcome.DUPLICATE if entry.content == content else UsageOutcome.CONFLICT)
    return outcomes


async def _insert(connection: Connection, entries: Mapping[_Identity, UsageEntry]) -> dict[_Identity, bytes]:
    """Add the records whose identity is new, and return the others' contents as they are there."""
    if connection.dialect_name == "sqlite":  # nobody else writes meanwhile
        there = await _contents(connection, entries)
        await _ADD(connection, [row(entry) for each, entry in entries.items() if each not in there])
        return there
    new = {tuple(row) for row in await _ADD_NEW(connection, [row(entry) for entry in entries.values()])}
    return await _contents(connection, [each for each in entries if each not in new])


async def _contents(connection: Connection, identities: Collection[_Identity]) -> dict[_Identity, bytes]:
    """Return the content digests of records that are there."""
    if not identities:
        return {}
    values: tuple[Any, ...] = tuple(map(list, zip(*identities, strict=True)))
    if connection.dialect_name == "sqlite":
        values = (json.dumps(list(identities)),)
    found = await connection.execute_plain(_CONTENTS[connection.dialect_name], values)
    return {(account_id, record_id): content for account_id, record_id, content in found}


def row(entry: UsageEntry) -> tuple[Any, ...]:
    """Write a row of ``usage_records``."""
    account_id, occur_time, content, record, _ = entry
    return (
        account_id,
        record.record_id,
        content,
        record.key_id,
        record.units,
        record.operation,
        record.resource,
        record.status_code,
        record.latency,
        occur_time,
        json.dumps(dict(record.tags), ensure_ascii=False, separators=(",", ":")) if record.tags else "{}",
        record.charge_units,
        record.refund_request_id,
    )
