"""Longer turns for this process' threads while it is busy: Linux' SCHED_BATCH (sched(7)).

A call comes by three threads of gRPC's, and each that is woken interrupts the one that runs. When there is much to do
that is half of the work; with longer turns many calls go together. When there is little, a thread that waits for its
turn behind other processes' only makes calls late: so then it is as the kernel has it (docs/adr/0014).
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress

_INTERVAL = 0.2
_BUSY, _QUIET = 0.5, 0.25
"""Shares of one core, of this process' threads together: from the first on it is busy, until it is below the second."""


async def batch_while_busy() -> None:
    """Look every now and then, without end. Where the kernel has no such thing, or forbids it, do nothing.

    A process that was started under another policy keeps that: somebody has chosen it.
    """
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    with suppress(OSError):
        try:
            await _follow_load()
        finally:
            _schedule(os.SCHED_OTHER)


async def _follow_load() -> None:
    batch = False
    looked, used = time.monotonic(), time.process_time()
    while True:
        await asyncio.sleep(_INTERVAL)
        now, used_now = time.monotonic(), time.process_time()
        share = (used_now - used) / (now - looked)
        looked, used = now, used_now
        busy = share >= (_QUIET if batch else _BUSY)
        if busy is not batch:
            batch = busy
            _schedule(os.SCHED_BATCH if batch else os.SCHED_OTHER)


def _schedule(policy: int) -> None:
    """Schedule all threads there are; those they start follow them. Raises OSError where it is forbidden."""
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 - numbers, no paths
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setscheduler(int(thread), policy, os.sched_param(0))
