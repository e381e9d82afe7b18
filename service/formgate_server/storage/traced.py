"""Charges and the database as spans, within those of calls; what goes on by itself has none.

They say what was done and how long it took, never by which values.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_current_span

from formgate_server.core.ports import Charge, Charged, ChargeResult
from formgate_server.storage.sql.engine import Database

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select

    from formgate_server.core.errors import UnavailableError
    from formgate_server.core.ports import Limiter
    from formgate_server.storage.sql.connection import Connection
    from formgate_server.storage.sql.parts import Lookups, Parts, PoolUse


@contextmanager
def _span(tracer: Tracer, name: str, kind: SpanKind, **attributes: str | int) -> Iterator[Span | None]:
    """Make a span, if a call is under way that is traced, and has not ended yet."""
    if not get_current_span().is_recording():
        yield None
        return
    with tracer.start_as_current_span(
        name, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except BaseException as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


class TracedLimiter:
    """A Limiter whose charges are spans."""

    def __init__(self, limiter: Limiter, tracer: Tracer) -> None:
        self._limiter = limiter
        self._tracer = tracer
        self.publish = limiter.publish
        self.seed = limiter.seed
        self.look = limiter.look
        self.adjust = limiter.adjust
        self.refund = limiter.refund

    async def charge(self, charge: Charge) -> ChargeResult:
        """See ``Limiter.charge``."""
        with _span(self._tracer, "charge", SpanKind.INTERNAL) as span:
            outcome = await self._limiter.charge(charge)
            if span is not None:
                span.set_attribute("formgate.charge.outcome", _named(outcome))
            return outcome

    async def charge_many(self, charges: Sequence[Charge]) -> Sequence[ChargeResult | UnavailableError]:
        """See ``Limiter.charge_many``."""
        with _span(self._tracer, "charge", SpanKind.INTERNAL, **{"formgate.charge.checks": len(charges)}):
            return await self._limiter.charge_many(charges)


def _named(outcome: ChargeResult) -> str:
    if isinstance(outcome, Charged):
        return "charged" if outcome.denied is None else "denied"
    return type(outcome).__name__


class TracedDatabase(Database):
    """A Database of which every use is a span."""

    def __init__(self, parts: Parts, tracer: Tracer) -> None:
        super().__init__(parts)
        self._tracer = tracer
        self._system = parts.reader.dialect.name
        self._traced_lookups = _TracedLookups(parts.lookups, tracer, self._system)

    @property
    def lookups(self) -> Lookups:
        """See ``Database``."""
        self._check()
        return self._traced_lookups

    @asynccontextmanager
    async def reading(self, *, anyway: bool = False) -> AsyncIterator[Connection]:
        """See ``Database``."""
        with _span(self._tracer, "database read", SpanKind.CLIENT, **{"db.system.name": self._system}):
            async with super().reading(anyway=anyway) as connection:
                yield connection

    @asynccontextmanager
    async def writing(self, *, urgent: bool = True) -> AsyncIterator[Connection]:
        """See ``Database``."""
        with _span(self._tracer, "database write", SpanKind.CLIENT, **{"db.system.name": self._system}):
            async with super().writing(urgent=urgent) as connection:
                yield connection


class _TracedLookups:
    def __init__(self, lookups: Lookups, tracer: Tracer, system: str) -> None:
        self._lookups = lookups
        self._tracer = tracer
        self._system = system

    @property
    def use(self) -> PoolUse:
        return self._lookups.use

    def compile(self, select: Select[Any], column: ColumnElement[Any], length: int, /) -> str:
        return self._lookups.compile(select, column, length)

    async def fetch(self, sql: str, values: Sequence[object]) -> Sequence[Sequence[Any]]:
        with _span(self._tracer, "database lookup", SpanKind.CLIENT, **{"db.system.name": self._system}):
            return await self._lookups.fetch(sql, values)

    async def close(self) -> None:
        await self._lookups.close()
