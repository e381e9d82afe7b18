"""A clock that stands still until a test sets it; and a way around midnight where there is none."""

from __future__ import annotations

import time

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

TODAY = 20_776 * DAY
"""A midnight in UTC: that of 19 November 2026."""


class SettableClock:
    """The Clock port: whatever time ``time`` is set to, in microseconds since the Unix epoch."""

    def __init__(self, now: int = TODAY + 12 * HOUR) -> None:
        self.time = now

    def now(self) -> int:
        """See ``Clock``."""
        return self.time


def noon_zone() -> str:
    """Return a time zone in which it is about noon: no day or month of it ends while a test runs."""
    hour = time.gmtime().tm_hour
    return f"Etc/GMT{hour - 12:+d}" if hour != 12 else "Etc/GMT"
