"""The audit trail: rows that are chained, each to the one before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import insert, select, update

from formgate_server.core.audit import FIRST, linked
from formgate_server.core.ports import AuditFilter, AuditRow
from formgate_server.storage.sql.dialect import inserting
from formgate_server.storage.sql.rows import audit_row_of, audit_row_values
from formgate_server.storage.sql.tables import audit_events, audit_heads

if TYPE_CHECKING:
    from formgate_server.core.audit import AuditKeys
    from formgate_server.core.model import AuditEvent
    from formgate_server.storage.sql.connection import Connection


async def add(connection: Connection, audit_keys: AuditKeys, event: AuditEvent) -> None:
    """Add a row, in the connection's transaction."""
    head = inserting(connection, audit_heads).values(account_id=event.account_id, sequence=1)
    counted = head.on_conflict_do_update(
        index_elements=[audit_heads.c.account_id], set_={"sequence": audit_heads.c.sequence + 1}
    )
    # The head is locked from here on, and has the last row's MAC still.
    last = await connection.execute(counted.returning(audit_heads.c.sequence, audit_heads.c.mac))
    sequence, previous = last.one()
    mac, mac_key_id = audit_keys.mac(linked(previous or FIRST, sequence, event))
    await connection.execute(insert(audit_events), audit_row_values(AuditRow(sequence, event, mac, mac_key_id)))
    await connection.execute(update(audit_heads).where(audit_heads.c.account_id == event.account_id).values(mac=mac))


async def read(connection: Connection, wanted: AuditFilter, before: int | None, most: int) -> list[AuditRow]:
    """See ``Registry.audit_rows``."""
    row = audit_events.c
    query = select(audit_events).where(
        row.account_id == wanted.account_id, row.create_time >= wanted.start, row.create_time < wanted.end
    )
    if wanted.target:
        query = query.where(row.target == wanted.target)
    if before is not None:
        query = query.where(row.sequence < before)
    return [audit_row_of(each) for each in await connection.execute(query.order_by(row.sequence.desc()).limit(most))]
