"""The verdict: a value, whether it allows or denies."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from formgate.rules.grants import Grant
from formgate.rules.reason import Reason
from formgate.rules.standing import Standing
from formgate_server.core.limits import Counter
from formgate_server.core.limits import Standing as LimitStanding
from formgate_server.core.model import Key
from formgate_server.core.policy import HttpDenial, Policy

__all__ = ["CheckQuery", "KeyRecord", "Reason", "Step", "StepOutcome", "Verdict"]


class StepOutcome(IntEnum):
    """How a step of a check ended. Numbered as in ``formgate.v1``."""

    PASSED = 1
    DENIED = 2
    SKIPPED = 3


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a check and how it ended."""

    name: str
    outcome: StepOutcome
    detail: str


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """All that a check needs to know of a key and its account, read by one statement and compiled once."""

    key: Key
    policy: Policy
    standing: Standing
    counters: tuple[Counter, ...]
    epoch: int
    secret_end: int | None = None
    """From when on this secret, which a rotation replaced, is nobody's any more."""
    granted: tuple[Grant, ...] = ()
    """The grants that ``standing`` was compiled from."""
    ceiling: tuple[Grant, ...] | None = None
    """Those of its ceiling."""
    told: bytes = field(default=b"", init=False, compare=False, repr=False)
    """What a rim tells of the key in every verdict that allows, as it writes it; empty: not told yet."""

    leased: tuple[bytes, bytes] | None = field(default=None, init=False, compare=False, repr=False)
    """What a rim tells of it in a lease, as ``told``: what tells it from others, and all of it."""

    def keep_leased(self, rules_id: bytes, rules: bytes) -> None:
        """Keep what is told of it in a lease, as ``keep_told`` does."""
        object.__setattr__(self, "leased", (rules_id, rules))

    def keep_told(self, told: bytes) -> None:
        """Keep what is told of the key, for as long as this is what is known of it."""
        object.__setattr__(self, "told", told)


class CheckQuery(NamedTuple):
    """What a caller asks: exactly one of ``key`` and ``authorization`` is set. ``environment`` 0: any."""

    key: str | None = None
    authorization: str | None = None
    source_ip: str = ""
    request_id: str = ""
    permissions: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    api_group: str = ""
    environment: int = 0
    http_method: str = ""
    cost: int = 1
    policy: str = ""
    explain: bool = False
    by_method: bool = False
    """Whether the method says what is needed, and nothing else does: a policy that ignores methods denies it."""

    def __repr__(self) -> str:
        """Show no secret."""
        return f"CheckQuery(request_id={self.request_id!r})"


class Verdict(NamedTuple):
    """The answer. ``retry_after`` in microseconds; ``record`` None: no key is known; ``http_denial`` None: allowed."""

    reason: Reason
    message: str
    http_status: int
    record: KeyRecord | None = None
    retry_after: int | None = None
    limits: tuple[LimitStanding, ...] = ()
    http_denial: HttpDenial | None = None
    degraded: bool = False
    steps: tuple[Step, ...] = ()

    @property
    def allowed(self) -> bool:
        """Only OK is a yes."""
        return self.reason is Reason.OK
