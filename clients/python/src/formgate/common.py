"""What the clients for threads and for asyncio have in common: all but how they wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, TypedDict

from formgate.answers import Outcome
from formgate.asking import Check, to_request
from formgate.counters import Counters
from formgate.errors import BrokenAnswerError, FormgateError, UnavailableError, invalid_field
from formgate.fallback import Emergency, Fail, Fallback, denied, level_of
from formgate.lease import Leases, shape_of
from formgate.leasing import Leasing
from formgate.options import Tls, connection
from formgate.recorder import UsageRecorder
from formgate.retrying import RequestIds, Retrying
from formgate.verdict import Source, Verdict

_TIMEOUT: Final = 0.25
_ATTEMPTS: Final = 4


class Options(TypedDict, total=False):
    """What a client may be told beside address and token; each has its default."""

    tls: Tls | bool | None
    """How to encrypt. True: trusting the authorities that gRPC ships. None: as ``FORMGATE_TLS`` and its like say."""
    insecure: bool | None
    """Whether a token may travel in clear beyond this machine. None: as ``FORMGATE_INSECURE`` says, else no."""
    timeout: float
    """Seconds that a check may take, retries included; 0.25."""
    attempts: int
    """How often a check is sent at most; 4. 1: never again."""
    fail: Fail
    """What is decided when the service does not answer: ``closed``."""
    emergency: Emergency
    """How much is let in meanwhile."""
    leases: bool
    """Whether checks of keys that are asked for often are decided in this process; True."""
    on_fallback: Callable[[Check, Verdict], None] | None
    """Is told of each verdict that the service did not give; called where the check was made, so it must be quick."""
    recorder: UsageRecorder
    """What ``record`` goes to; whoever made it closes it. Else one in memory is made with the first record."""


class Common:
    """Where the service is, how it is asked, and what is decided without it."""

    def __init__(self, address: str | Sequence[str] | None, token: str | None, options: Options) -> None:
        """Raises ValueError for what makes no sense; nothing connects yet."""
        self.connection = connection(address, token, tls=options.get("tls"), insecure=options.get("insecure"))
        self.timeout = _positive("timeout", options.get("timeout", _TIMEOUT))
        self.counters = Counters()
        self._recorder = options.get("recorder")
        self._own_recorder: UsageRecorder | None = None
        self._lock = threading.Lock()
        attempts = options.get("attempts", _ATTEMPTS)
        if attempts < 1:
            raise ValueError("attempts must be 1 or more")
        self.retrying = Retrying(attempts)
        self.new_id = RequestIds()
        self.leases: Leases | None = None
        if options.get("leases", True):
            self.leases = Leases(self._leasing, self.counters, self._next_id, self._noted)
        self.fallback = Fallback(
            options.get("fail", "closed"),
            options.get("emergency", Emergency()),
            self.counters,
            options.get("on_fallback"),
        )

    def _leasing(self, leases: Leases) -> Leasing:
        return Leasing(leases, self.connection)

    def _noted(self, check: Check, verdict: Verdict, began: float) -> None:
        self.fallback.leased(check, verdict, began)

    def _next_id(self) -> str:
        return self.new_id()  # in a forked child another one's

    def request(self, check: Check) -> bytes:
        """Write a check. One that charges gets an id, so that it may be sent again. Raises InvalidRequestError."""
        request = to_request(check)
        try:
            level_of(check)
        except ValueError:  # found now, not when the service is away
            raise invalid_field("level", "is none: read, write or manage") from None
        if check.cost != 0 and not check.request_id:
            request.request_id = self.new_id()
        return request.SerializeToString()

    def answered(self, check: Check, verdict: Verdict) -> None:
        """Take note of a verdict of the service."""
        self.fallback.answered(check, verdict)
        if self.leases is not None:
            self.leases.asked(check, verdict)

    def leased(self, check: Check) -> Verdict | None:
        """Return the verdict where this process may give it; None: the service is to be asked."""
        if self.leases is None or check.strict or check.explain or check.request_id or check.tags:
            return None
        try:
            shape = shape_of(check)
        except TypeError:  # what it says is for ``request``, which refuses it
            return None
        return self.leases.decide(check.key, check.authorization, shape, check.cost)

    def undecided(self, check: Check, error: FormgateError) -> Verdict:
        """Return the verdict on a check that the service did not decide. Raises ``error`` where the call was wrong."""
        if isinstance(error, UnavailableError | BrokenAnswerError):
            return self.fallback.decide(check, error)
        raise error

    def one_of_many(self, check: Check, outcome: Outcome) -> Verdict:
        """Return the verdict on one check of several: one that is wrong in itself must not take the others' away."""
        if isinstance(outcome, Verdict):
            if outcome.source is Source.SERVICE:
                self.answered(check, outcome)
            return outcome
        try:
            return self.undecided(check, outcome)
        except FormgateError as error:
            return denied(error)

    def recorder(self) -> UsageRecorder:
        """Return what usage goes to; made with the first record."""
        if self._recorder is not None:
            return self._recorder
        with self._lock:
            if self._own_recorder is None:
                self._own_recorder = UsageRecorder(self.connection)
            return self._own_recorder

    def close_recorder(self) -> None:
        """Send what usage waits for up to five seconds; what is left then is logged."""
        with self._lock:
            own = self._own_recorder
        if own is not None:
            own.close()

    def after_fork(self) -> None:
        """Start anew in a child: ids of its own, and locks that nobody holds."""
        self._lock = threading.Lock()
        self.counters.after_fork()
        self.fallback.after_fork()
        self.retrying.after_fork()
        self.new_id = RequestIds()
        if self.leases is not None:
            self.leases.after_fork()


def seconds_of(timeout: float | None, otherwise: float) -> float:
    """Return how long a check may take. Raises ValueError for what is no time."""
    return otherwise if timeout is None else _positive("timeout", timeout)


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive number of seconds")
    return value
