"""What each kind of database brings, and ``engine.py`` puts together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.ext.asyncio import AsyncEngine


class UnfitDatabaseError(ValueError):
    """The database, or its URL, will not do. The message says why and what to do, and nothing secret."""


class PoolUse(Protocol):
    """How much of a pool of connections is in use. Any thread may look."""

    @property
    def most(self) -> int:
        """How many may use it at once."""
        ...

    @property
    def in_use(self) -> int:
        """How many do."""
        ...

    @property
    def waiting(self) -> int:
        """How many wait until they may."""
        ...


class Lookups(Protocol):
    """The shortest way to the database, past SQLAlchemy: for a select that is asked all the time."""

    @property
    def use(self) -> PoolUse:
        """How much of its connections is in use."""
        ...

    def compile(self, select: Select[Any], column: ColumnElement[Any], length: int, /) -> str:
        """Return the SQL that selects what has one of ``length`` values in ``column``."""
        ...

    async def fetch(self, sql: str, values: Sequence[object]) -> Sequence[Sequence[Any]]:
        """Return the rows, read on the primary after the call began. JSON is a text in them."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


class Parts(NamedTuple):
    """An engine for reading and one for writing (they may be one), and how many of each go on at once.

    Nobody waits longer for a turn than ``wait_seconds``. A call to the database that takes more than ``call_seconds``
    (one that may go through whole tables: ``scan_seconds``), and a transaction that takes more than
    ``transaction_seconds``, is broken off together with its connection. None: it ends in time by itself. ``give_up``
    drops all connections that are not closed within ``close_seconds``.
    """

    reader: AsyncEngine
    writer: AsyncEngine
    lookups: Lookups
    readers: int
    writers: int
    wait_seconds: float | None = None
    call_seconds: float | None = None
    transaction_seconds: float | None = None
    scan_seconds: float | None = None
    close_seconds: float | None = None
    give_up: Callable[[], None] | None = None
