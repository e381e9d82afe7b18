"""The storage ports, of one kind of store, all over the same data; and things to put into them."""

from __future__ import annotations

import hmac
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import URL, select

from formgate.rules.grants import Catalogue, Level
from formgate_server.core.fields import LARGEST
from formgate_server.core.model import (
    Account,
    AccountState,
    AuditEvent,
    Calendar,
    Environment,
    Holder,
    Key,
    KeyState,
    Limit,
    Member,
    Period,
    Role,
    Rolling,
    ServiceRole,
    ServiceToken,
    UsageRecord,
)
from formgate_server.core.policy import KeyRules, Plan, Policies, Policy
from formgate_server.core.ports import (
    AuditFilter,
    Epochs,
    KeyStore,
    Registry,
    Reservations,
    Sealed,
    StoredSecret,
    UsageEntry,
    UsageLedger,
)
from formgate_server.core.verdict import KeyRecord
from formgate_server.storage.memory.counters import MemoryReservations
from formgate_server.storage.memory.epochs import MemoryEpochs
from formgate_server.storage.memory.keys import MemoryKeyStore
from formgate_server.storage.memory.registry import MemoryRegistry
from formgate_server.storage.memory.usage import MemoryUsageLedger
from formgate_server.storage.sql import migrate
from formgate_server.storage.sql.counters import SqlReservations
from formgate_server.storage.sql.engine import Database, open_database
from formgate_server.storage.sql.epochs import SqlEpochs
from formgate_server.storage.sql.keys import SqlKeyStore
from formgate_server.storage.sql.registry import SqlRegistry
from formgate_server.storage.sql.tables import usage_hours
from formgate_server.storage.sql.usage import SqlUsageLedger
from formgate_server.storage.wrappers import CachedKeyStore

Hours = dict[tuple[str, str, int, str], tuple[int, int]]
"""(units, records) by account, key, hour and operation."""

RATE = Limit("rate", Holder.KEY, 100, Rolling(60_000_000))
DAILY = Limit("daily", Holder.ACCOUNT, 1_000, Calendar(Period.DAY))

POLICY = Policy(
    name="default",
    description="",
    prefixes={Environment.LIVE: "pf_"},
    plans={"free": Plan("free", "UTC", (RATE, DAILY))},
    catalogue=Catalogue({"forms.read": Level.READ}),
    levels={Level.READ: "Read"},
    methods={},
    api_groups=None,
    denials={},
)
INHERITING = replace(POLICY, name="other", keys=KeyRules(ungranted=None, capped=True))
POLICIES = Policies({POLICY.name: POLICY, INHERITING.name: INHERITING}, POLICY.name)


@dataclass(frozen=True)
class SomeAuditKeys:
    """AuditKeys: ``newest`` signs, all of ``known`` verify."""

    newest: str = "m1"
    known: tuple[str, ...] = ("m1",)

    def mac(self, message: bytes) -> tuple[bytes, str]:
        """See ``AuditKeys``."""
        return hmac.digest(self.newest.encode(), message, "sha256"), self.newest

    def verifies(self, message: bytes, mac: bytes, key_id: str) -> bool | None:
        """See ``AuditKeys``."""
        return hmac.digest(key_id.encode(), message, "sha256") == mac if key_id in self.known else None


AUDIT_KEYS = SomeAuditKeys()


@dataclass(frozen=True)
class Stores:
    """The ports, and what tests alone look at."""

    registry: Registry
    keys: KeyStore
    usage: UsageLedger
    reservations: Reservations
    epochs: Epochs
    hours: Callable[[], Awaitable[Hours]]

    async def audit(self, account_id: str) -> list[AuditEvent]:
        """Return an account's audit trail, oldest first."""
        rows = await self.registry.audit_rows(AuditFilter(account_id), None, 1_000)
        assert [row.sequence for row in rows] == list(range(len(rows), 0, -1))
        return [row.event for row in reversed(rows)]


@dataclass(frozen=True)
class Unguarded:
    """A KeyFinder that refuses no one."""

    keys: KeyStore

    def known(self, digests: Sequence[bytes]) -> KeyRecord | None:
        """See ``KeyFinder``."""
        return self.keys.known(digests) if isinstance(self.keys, CachedKeyStore) else None

    async def find(
        self, digests: Sequence[bytes], *, at_least: int = 0, source_ip: str = "", newest: bool = False
    ) -> KeyRecord | None:
        """See ``KeyFinder``."""
        return await self.keys.find(digests, at_least=LARGEST if newest else at_least)


def memory_stores() -> Stores:
    """Return new stores in memory."""
    registry = MemoryRegistry(AUDIT_KEYS)
    usage = MemoryUsageLedger(registry)

    async def hours() -> Hours:
        return {(*hour,): (*sums,) for hour, sums in usage.hours.items()}

    return Stores(
        registry, MemoryKeyStore(registry, POLICIES), usage, MemoryReservations(), MemoryEpochs(registry), hours
    )


def database_url(file: Path) -> URL:
    """Return the URL of an SQLite file."""
    return URL.create("sqlite+aiosqlite", database=str(file))


@asynccontextmanager
async def opened(place: Path | URL) -> AsyncIterator[Database]:
    """Open a migrated SQLite file, or the database of a URL, for a while."""
    database = open_database(database_url(place) if isinstance(place, Path) else place)
    try:
        yield database
    finally:
        await database.close()


async def empty_database(folder: Path, file: Path) -> None:
    """Make a migrated SQLite file, once for each ``folder``, and copy it to ``file``."""
    template = folder / "template.db"
    if not template.exists():
        new = folder / "new.db"
        await migrate.upgrade(database_url(new))
        new.rename(template)
    shutil.copyfile(template, file)


def sql_stores(database: Database) -> Stores:
    """Return stores over an SQL database."""

    async def hours() -> Hours:
        async with database.reading() as connection:
            rows = (await connection.execute(select(usage_hours))).all()
        return {tuple(row[:4]): tuple(row[4:]) for row in rows}

    keys = SqlKeyStore(database, POLICIES)
    registry = SqlRegistry(database, AUDIT_KEYS)
    usage, reservations, epochs = SqlUsageLedger(database), SqlReservations(database), SqlEpochs(database)
    return Stores(registry, keys, usage, reservations, epochs, hours)


sqlite_stores = sql_stores


def cached(stores: Stores) -> Stores:
    """Return the stores with a cache before the keys."""
    return replace(stores, keys=CachedKeyStore(stores.keys))


def account(account_id: str = "acme", **changes: Any) -> Account:
    """Make an account."""
    usual = Account(
        account_id=account_id,
        display_name="Acme",
        policy="default",
        plan="free",
        state=AccountState.ACTIVE,
        time_zone="",
        limits=(),
        epoch=1,
        version=1,
        create_time=1_000,
    )
    return replace(usual, **changes)


def key(key_id: str = "k1", **changes: Any) -> Key:
    """Make a key."""
    usual = Key(
        key_id=key_id,
        account_id="acme",
        display_name="a key",
        environment=Environment.LIVE,
        state=KeyState.ENABLED,
        hint="pf_...abcd",
        created_by="ann",
        create_time=2_000,
        expire_time=None,
    )
    return replace(usual, **changes)


def member(member_id: str = "ann", **changes: Any) -> Member:
    """Make a member."""
    usual = Member(account_id="acme", member_id=member_id, role=Role.MEMBER, create_time=1_500, update_time=1_600)
    return replace(usual, **changes)


def token(token_id: str = "t1", **changes: Any) -> ServiceToken:
    """Make a service token."""
    usual = ServiceToken(
        token_id=token_id,
        display_name="a service",
        role=ServiceRole.CHECKER,
        account_id="",
        policy="",
        create_time=3_000,
        expire_time=None,
    )
    return replace(usual, **changes)


def event(account_id: str = "acme", **changes: Any) -> AuditEvent:
    """Make a row of the audit trail."""
    usual = AuditEvent(account_id=account_id, create_time=4_000, action="CreateKey", target="keys/k1", token_id="t1")
    return replace(usual, **changes)


def entry(
    record_id: str,
    content: str = "",
    *,
    account_id: str = "acme",
    time: int = 0,
    tags: Mapping[str, str] | None = None,
    **changes: Any,
) -> UsageEntry:
    """Make a usage entry; ``content`` stands for all that was sent, ``tags`` are summed up."""
    record = UsageRecord(record_id=record_id, key_id="k1", units=1, tags=tags or {})
    return UsageEntry(account_id, time, digest(content), replace(record, **changes), tuple(record.tags.items()))


def digest(text: str) -> bytes:
    """Make 32 bytes that stand for ``text``."""
    return text.encode().ljust(32, b"\0")


def sealed(text: str) -> Sealed:
    """Make a box that stands for ``text``, encrypted."""
    return Sealed(f"sealed {text}".encode(), "sealing key")


def stored(text: str, *, recoverable: bool = False) -> StoredSecret:
    """Make a secret as it is stored."""
    return StoredSecret(digest(text), "pepper", sealed(text) if recoverable else None)


async def add_key(registry: Registry, new: Key, secret: str | None = None, request_id: str = "") -> None:
    """Add a key; the digest of its secret is that of ``secret`` or of its id."""
    async with registry.transaction() as transaction:
        await transaction.insert_key(new, stored(secret or new.key_id), request_id)
