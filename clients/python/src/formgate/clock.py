"""By what the end of a lease, and the age of what is known, are counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial


def clock() -> Callable[[], float]:
    """Return a clock of seconds that never jumps back and goes on while the machine sleeps, where there is one.

    Linux has it: CLOCK_BOOTTIME. Elsewhere ``time.monotonic``, which stands still meanwhile on some systems: then a
    lease is longer by the sleep than the service means it to be.
    """
    which: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    if which is None:
        return time.monotonic
    try:
        time.clock_gettime(which)
    except OSError:  # a sandbox that knows no such clock
        return time.monotonic
    return partial(time.clock_gettime, which)


monotonic = clock()
