"""The garbage collector's pace in a process that serves.

Little of a check is garbage that only the collector finds: counting references frees nearly all. Python's own pace, a
look at all that is young every 700 objects, takes a twelfth of a batch's time to find next to nothing.
"""

from __future__ import annotations

import gc

_YOUNG = 10_000
"""So many objects more than were freed, and the young are looked at. What waits for that may hold memory."""
_LOOKS_AT_MIDDLE = 5
"""So many times, and those are looked at that have outlived one look: 50,000 at the most, which takes some ms."""


def slow_down() -> None:
    """Look at what was made until now never again (code, policies, tables), and at what is young seldom.

    See https://docs.python.org/3/library/gc.html: ``freeze`` and ``set_threshold``.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _LOOKS_AT_MIDDLE)
