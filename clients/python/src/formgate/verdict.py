"""What comes of a check. A denial is a value like any other; it is false where it is taken for a truth value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, IntEnum

from formgate.errors import FormgateError
from formgate.rules.reason import Reason

__all__ = [
    "CheckedKey",
    "Environment",
    "Holder",
    "HttpDenial",
    "LimitStatus",
    "Reason",
    "Source",
    "Step",
    "StepOutcome",
    "Verdict",
]


class Source(Enum):
    """Who decided."""

    SERVICE = "service"
    """The service, just now."""
    LEASE = "lease"
    """This process, by a lease of the service."""
    FALLBACK = "fallback"
    """This process, by its fail mode: the service did not answer."""


class Environment(IntEnum):
    """Where a key may be used. Numbered as in ``formgate.v1``."""

    LIVE = 1
    TEST = 2


class Holder(IntEnum):
    """Whose counter a limit charges. Numbered as in ``formgate.v1``."""

    KEY = 1
    ACCOUNT = 2


class StepOutcome(IntEnum):
    """How a step of a check ended. Numbered as in ``formgate.v1``."""

    PASSED = 1
    DENIED = 2
    SKIPPED = 3


@dataclass(frozen=True, slots=True)
class CheckedKey:
    """What a check tells of a key."""

    key_id: str
    account_id: str
    display_name: str = ""
    environment: Environment | None = None
    created_by: str = ""
    metadata: Mapping[str, str] | None = None
    """Its notes; None: it has none. Read only."""
    expire_time: datetime | None = None
    """With its zone, UTC. None: never."""


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """Where a limit stands after the check."""

    name: str
    holder: Holder | None
    amount: int | None
    """Units admitted per period. None: unlimited."""
    remaining: int
    """Units left, 0 where unlimited."""
    reset_time: datetime | None = None
    """When the whole amount is there again, UTC. None: nothing is charged, or it never comes back."""
    unlimited: bool = False
    window: timedelta | None = None
    """Of a rolling limit. None: a calendar period's or a lifetime's."""


@dataclass(frozen=True, slots=True)
class HttpDenial:
    """What to answer over HTTP, as the key's policy words it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    """In order, names in lower case."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a check, told where it was asked for by ``explain``."""

    step: str
    outcome: StepOutcome
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request may go on, and why. As a truth value it is ``allowed``."""

    allowed: bool
    reason: Reason | None
    """Why, exactly; for the calling service. None: the service did not say, see ``source`` and ``error``."""
    message: str
    """What may be told to the end user."""
    http_status: int
    """200 where allowed."""
    retry_after: timedelta | None = None
    """In how long the same would fit. None: not denied by a limit, or it never will."""
    key: CheckedKey | None = None
    limits: tuple[LimitStatus, ...] = ()
    http_denial: HttpDenial | None = None
    """On a denial, what to answer."""
    degraded: bool = False
    """Decided by what was known: the service had lost a store, or this process the service."""
    epoch: int = 0
    """The account's epoch that this was decided by; 0: no key is known."""
    source: Source = Source.SERVICE
    explanation: tuple[Step, ...] = ()
    error: FormgateError | None = None
    """Why the service decided nothing."""

    def __bool__(self) -> bool:
        return self.allowed is True
