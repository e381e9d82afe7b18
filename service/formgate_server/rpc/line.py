"""The one line that the log has of a call: who called what, what became of it, and how long it took.

Of checks that allow, and of usage that is taken, a sample is told; changes and reads always. Denials and failures
always, too, but within bounds: a flood of calls may not become a flood of lines. What is withheld is counted, and the
next line of its kind says how many there were.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import structlog
from google.rpc.code_pb2 import Code

from formgate_server import metrics
from formgate_server.core.model import Caller, ServiceRole
from formgate_server.core.verdict import Reason, Verdict
from formgate_server.rpc.errors import to_status

if TYPE_CHECKING:
    from google.rpc import status_pb2

    from formgate_server.core.errors import FormgateError
    from formgate_server.rpc.dispatch import Call

_log = structlog.get_logger("formgate.rpc")

_BURST_SECONDS = 10

Outcome = Verdict | Mapping[Reason, int] | None
"""What a call decided: a check, a batch (how many by each reason), or nothing."""


class Called(Protocol):
    """What is called: a ``Method``, or something that is none of gRPC's."""

    @property
    def path(self) -> str:
        """What it is told by; the last part is its label in metrics."""

    @property
    def roles(self) -> frozenset[ServiceRole]:
        """Who may call it."""


CANCELLED = "CANCELLED"
"""By whoever asked, or by its deadline."""


@dataclass(slots=True)
class Ending:
    """A call and how it ends: its gRPC code, the reason, what it decided, and how many seconds it took.

    Until something else is known of it, it was cancelled.
    """

    called: Called
    call: Call
    caller: Caller | None = None
    code: str = CANCELLED
    reason: str = CANCELLED
    outcome: Outcome = None
    seconds: float = 0.0
    detail: str = ""
    """Why it failed, for whoever runs the server and not for the caller."""

    def failed(self, error: FormgateError) -> status_pb2.Status:
        """Note that it fails by this error, and return what a caller of gRPC's is told."""
        status = to_status(error)
        self.code, self.reason, self.detail = Code.Name(status.code), error.reason, error.detail
        return status


class Lines:
    """Tells calls."""

    def __init__(
        self,
        *,
        allowed_sample: float = 0.0,
        per_second: float = 20.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Tell a share of the checks that allow; ``per_second`` denials and failures each, at once ten times that."""
        self._sample = allowed_sample
        self._skipped = self._gap()
        self._bounds = {kind: _Bound(per_second, monotonic) for kind in metrics.log_lines_withheld}

    def tell(self, ending: Ending) -> None:
        """Tell a call that has ended, or not, as it may be."""
        code, outcome = ending.code, ending.outcome
        withheld = 0
        if code != "OK" or _denies(outcome):
            kind: Literal["denied", "failed"] = "denied" if code == "OK" else "failed"
            bound = self._bounds[kind]
            if not bound.lets():
                metrics.log_lines_withheld[kind].count += 1
                return
            withheld = bound.take_withheld()
        elif ServiceRole.CHECKER in ending.called.roles:  # checks and usage are too many to tell each
            self._skipped -= 1
            if self._skipped > 0:
                return
            self._skipped = self._gap()
        _log.info(
            "call",
            method=ending.called.path,
            code=code,
            **_of_outcome(outcome, ending.reason),
            **({"detail": ending.detail} if ending.detail else {}),
            **_of_caller(ending.caller),
            peer=ending.call.peer(),
            milliseconds=round(ending.seconds * 1_000, 3),
            **({"withheld": withheld} if withheld else {}),
        )

    def _gap(self) -> int:
        """Return how many calls from now on the next one of the sample is."""
        if self._sample <= 0:
            return sys.maxsize
        return 1 + int(random.expovariate(self._sample)) if self._sample < 1 else 1


class _Bound:
    """How many lines may be told: so many a second, and what was saved of them, ten seconds' worth at the most."""

    def __init__(self, per_second: float, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second
        self._monotonic = monotonic
        self._left = self._most = per_second * _BURST_SECONDS
        self._looked = monotonic()
        self._withheld = 0

    def lets(self) -> bool:
        now = self._monotonic()
        self._left = min(self._most, self._left + (now - self._looked) * self._per_second)
        self._looked = now
        if self._left < 1:
            self._withheld += 1
            return False
        self._left -= 1
        return True

    def take_withheld(self) -> int:
        withheld, self._withheld = self._withheld, 0
        return withheld


def _denies(outcome: Outcome) -> bool:
    if isinstance(outcome, Verdict):
        return outcome.reason is not Reason.OK
    return outcome is not None and (len(outcome) > 1 or (len(outcome) == 1 and Reason.OK not in outcome))


def _of_outcome(outcome: Outcome, reason: str) -> dict[str, object]:
    if isinstance(outcome, Verdict):
        told: dict[str, object] = {"reason": outcome.reason.name, "degraded": outcome.degraded}
        if outcome.record is not None:
            key = outcome.record.key
            told |= {"key_id": key.key_id, "account_id": key.account_id}
        return told
    told = {"reason": reason}
    if outcome is not None:
        told["reasons"] = {each.name: times for each, times in outcome.items()}
    return told


def _of_caller(caller: Caller | None) -> dict[str, object]:
    """Return who calls; None: nobody knows."""
    if caller is None:
        return {}
    told: dict[str, object] = {"token_id": caller.token_id, "role": caller.role.name}
    return told | {"actor": caller.actor} if caller.actor else told
