"""How many files this process may have open: every connection is one, and stores and probes need theirs, too."""

from __future__ import annotations

import resource
from contextlib import suppress

SPARE = 256
"""For all that is no connection of a caller."""


def most() -> int | None:
    """Return how many this process may have open, once it has asked for them; None: any number."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def connections(wanted: int) -> int:
    """Let this process open enough files for so many connections; returns for how many there are, at least 1.

    The usual limit, 1,024, is a soft one, for programs of old. Without files nobody could ask whether the server lives.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, max(soft - SPARE, soft // 2)))
