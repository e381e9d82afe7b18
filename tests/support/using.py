"""What servers do all day, and which statements they do it by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

from formgate_server.core.ports import AuditFilter, Cursor, KeyFilter, UsageFilter
from tests.support.stores import Stores, digest, entry, key, member, stored
from tests.support.stores import event as audit_event

Statements = dict[str, Any]
"""What was executed, and with which values."""


@contextmanager
def watched() -> Iterator[Statements]:
    """Collect what is executed."""
    statements: Statements = {}

    def note(_: Any, __: Any, statement: str, values: Any, *___: Any) -> None:
        statements[statement] = values[0] if isinstance(values, list) else values

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def use(stores: Stores) -> None:
    """Do what servers do all day, with several of each thing at once."""
    registry, usage = stores.registry, stores.usage
    async with registry.transaction() as transaction:
        await transaction.account("acme")
        await transaction.key("k1")
        await transaction.key_of_request("acme", "r1")
        await transaction.count_keys("acme")
        await transaction.keys_created_by("acme", "ann")
        await transaction.put_member(member())
        await transaction.member("acme", "ann")
        await transaction.replace_secret("k1", stored("s2"), 700)
        await transaction.sealed_secret("k1")
        await transaction.update_key(key())
        await transaction.token_of_digest([digest("a"), digest("b")])
        await transaction.raise_epoch("acme")
        await transaction.audit(audit_event())
        await transaction.delete_member("acme", "ann")
    for after in (None, Cursor(1, "a")):
        await registry.keys(KeyFilter("acme", 1, 1, "ann"), after, 10)
        await registry.members("acme", after, 10)
    await registry.audit_rows(AuditFilter("acme", "keys/k1", 1), 5, 10)
    await registry.audit_rows(AuditFilter("acme"), None, 10)
    await registry.note_used({"k1": (5, "")})
    entries = [entry(f"u{n}", time=n * 10**10, tags={"form": f"f{n}", "team": "t"}) for n in range(5)]
    for _ in range(2):
        await usage.record([*entries, entry("u1", account_id="b")])
    await usage.owners(["k1", "k2"])
    for group_by in ("", "key", "operation", "tag:form"):
        for key_id in ("", "k1"):
            await usage.sums(UsageFilter("acme", key_id, 0, 10**12), group_by)
    await stores.reservations.load(["a", "b"])
