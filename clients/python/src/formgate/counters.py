"""What a client counts."""

from __future__ import annotations

import threading
from typing import Final, Literal, TypeAlias, get_args

Name: TypeAlias = Literal[
    "calls",
    "batches",
    "checks_in_batches",
    "retries",
    "unanswered",
    "broken",
    "fallback_closed",
    "fallback_open",
    "fallback_last_known",
    "emergency_exceeded",
    "leased",
]
NAMES: Final[tuple[Name, ...]] = get_args(Name)


class Counters:
    """Numbers that only rise, by any thread.

    ``calls`` sent, retries included · ``batches`` among them · ``checks_in_batches`` · ``retries`` of a check ·
    ``unanswered``: checks that the service did not decide · ``broken``: of them, those that it answered with nonsense
    or a fault · what the fail mode made of them: ``fallback_closed`` (denied), ``fallback_open`` and
    ``fallback_last_known`` (allowed), ``emergency_exceeded`` (denied because the emergency budget was spent; in
    ``fallback_closed`` too) · ``leased``: units admitted by leases that have ended.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Name, int] = dict.fromkeys(NAMES, 0)

    def add(self, name: Name, number: int = 1) -> None:
        """Count."""
        with self._lock:
            self._counts[name] += number

    def snapshot(self) -> dict[str, int]:
        """Return all of them as they are now."""
        with self._lock:
            return {str(name): count for name, count in self._counts.items()}

    def after_fork(self) -> None:
        """Count on in a child, where nobody holds the lock."""
        self._lock = threading.Lock()
