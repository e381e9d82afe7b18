"""How many a limit lets through in the worst interval, as the bench counts it."""

import pytest

from bench.worst import Worst, most_within


@pytest.mark.parametrize(
    ("times", "most"),
    [
        ([], 0),
        ([5.0], 1),
        ([0.0, 59.9], 2),
        ([0.0, 60.0], 1),  # an interval does not hold its end: these two are not within 60 s
        ([0.0, 48.0, 48.1, 60.3, 60.4], 4),
    ],
)
def test_the_worst_interval_begins_wherever_it_is_worst(times: list[float], most: int) -> None:
    """All intervals of the length are looked at, not only those that begin at its multiples."""
    assert most_within(times, 60.0) == most


def test_a_fixed_window_is_caught() -> None:
    """Against a window that starts anew with the first call after its end, the attempt finds nearly twice the limit."""
    clock = Clock()
    window = FixedWindow(clock)
    worst = Worst(window.allows, 60, clock, clock.sleep)
    worst.start()
    assert worst.count() == 119


class Clock:
    """Time that passes where somebody sleeps, and a little with each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let it pass."""
        self.now += seconds


class FixedWindow:
    """60 in 60 s, as INCR and EXPIRE have it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._end = 0.0
        self._used = 0

    def allows(self) -> bool:
        """Count one."""
        if self._clock.now >= self._end:
            self._end, self._used = self._clock.now + 60, 0
        self._used += 1
        return self._used <= 60
