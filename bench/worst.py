"""How many calls a limit lets through in the worst interval of its length, where somebody times them well."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

LIMIT = 60
_ATTEMPTS = LIMIT + 20
_BEFORE_END = 0.2  # of the window: when the second burst begins
_AFTER_END = 0.3  # seconds


def most_within(times: Sequence[float], seconds: float) -> int:
    """Return how many of ``times``, which ascend, the worst interval of a length holds; it does not hold its end."""
    return max((index + 1 - bisect_right(times, time - seconds) for index, time in enumerate(times)), default=0)


@dataclass(slots=True)
class Worst:
    """One call; as many as there may be shortly before the window that it began has passed; and again after it."""

    allows: Callable[[], bool]
    seconds: int
    """The window that ``LIMIT`` calls are for."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    admitted: list[float] = field(default_factory=list)
    """When."""
    _thread: threading.Thread = field(init=False)

    def start(self) -> None:
        """Begin, in the background."""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def count(self) -> int:
        """Wait for the end, and return how many were let through in the worst interval."""
        self._thread.join()
        return most_within(self.admitted, self.seconds)

    def _run(self) -> None:
        began = self.clock()
        self._ask(1)
        self._sleep_until(began + self.seconds * (1 - _BEFORE_END))
        self._ask(_ATTEMPTS)
        self._sleep_until(began + self.seconds + _AFTER_END)
        self._ask(_ATTEMPTS)

    def _ask(self, times: int) -> None:
        for _ in range(times):
            now = self.clock()
            if self.allows():
                self.admitted.append(now)

    def _sleep_until(self, moment: float) -> None:
        self.sleep(max(0.0, moment - self.clock()))
