"""What was asked, what changed, and when: a history, and whether each verdict was one that it allows.

Time is this process' monotonic clock, which all callers here share. A secret's timeline is what every change made of
it, one after the other: the reason that a check is to have, when the change was begun, and when it was in effect. A
check that ran from ``began`` to ``ended`` may have seen any state from the last one in effect before ``began`` up to
the last one begun before ``ended``: no older one, which is what "revocation is immediate" says, and none that is still
to come.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

from formgate.v1.authorization_pb2 import Reason

now = time.monotonic


class State(NamedTuple):
    """What a change makes of a secret."""

    reason: Reason.ValueType
    began: float
    effective: float
    """From when on every check must know it; infinity: not known yet."""
    change: str


class Seen(NamedTuple):
    """A verdict, and when it was asked for and given."""

    secret: str
    reason: Reason.ValueType
    began: float
    ended: float
    degraded: bool
    server: int


@dataclass
class History:
    """All of it."""

    timelines: dict[str, list[State]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    undecided: int = 0
    """How many checks had no verdict, as UNAVAILABLE."""

    def begin(self, secret: str, reason: Reason.ValueType, change: str, began: float) -> int:
        """Note that a change has begun which makes ``reason`` of a secret's checks; returns its place."""
        timeline = self.timelines.setdefault(secret, [])
        timeline.append(State(reason, began, float("inf"), change))
        return len(timeline) - 1

    def end(self, secret: str, place: int, effective: float) -> None:
        """Note from when on the change is in effect."""
        timeline = self.timelines[secret]
        timeline[place] = timeline[place]._replace(effective=effective)

    def allowed(self, seen: Seen) -> list[State]:
        """Return the states that a check may have seen."""
        timeline = self.timelines[seen.secret]
        first = 0
        for place, state in enumerate(timeline):
            if state.effective < seen.began:
                first = place
        last = bisect_right([state.began for state in timeline], seen.ended)
        return timeline[first:last]

    def violations(self) -> list[str]:
        """Describe each verdict that the history does not allow; at best there are none."""
        wrong = []
        for seen in self.seen:
            states = self.allowed(seen)
            if seen.reason not in {state.reason for state in states}:
                told = ", ".join(f"{state.change} → {Reason.Name(state.reason)}" for state in states)
                late = [seen.began - state.effective for state in states[:1]]
                wrong.append(
                    f"server {seen.server}: {Reason.Name(seen.reason)} (degraded: {seen.degraded}), allowed: {told}; "
                    f"the first of them was in effect {late} s before the check began"
                )
        return wrong

    @property
    def told_apart(self) -> int:
        """Return how many checks had just one possible verdict: the others prove little."""
        return sum(len({state.reason for state in self.allowed(seen)}) == 1 for seen in self.seen)
