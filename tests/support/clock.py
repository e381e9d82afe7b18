"""A clock that stands still until a test sets it."""

from __future__ import annotations

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

TODAY = 20_776 * DAY
"""A midnight in UTC: that of 19 November 2026."""


class SettableClock:
    """The Clock port: whatever time ``time`` is set to, in microseconds since the Unix epoch."""

    def __init__(self, time: int = TODAY + 12 * HOUR) -> None:
        self.time = time

    def now(self) -> int:
        """See ``Clock``."""
        return self.time
