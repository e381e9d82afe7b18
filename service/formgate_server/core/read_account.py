"""Reading what belongs to an account: where its limits stand, what was used, what was changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from formgate_server.core import audit, calendar, fields, lookup
from formgate_server.core.audit import FIRST, AuditKeys
from formgate_server.core.compile_key import counters
from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.limits import Standing
from formgate_server.core.model import Account, Caller, Period
from formgate_server.core.paging import Page, page
from formgate_server.core.policy import Policies
from formgate_server.core.ports import (
    AuditFilter,
    AuditRow,
    Clock,
    Cursor,
    Limiter,
    Registry,
    UsageFilter,
    UsageLedger,
)
