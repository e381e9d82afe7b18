"""Whether a call that was not answered is sent again: soon, seldom, and never to be charged twice."""

from __future__ import annotations

import itertools
import secrets
import threading
from random import SystemRandom
from typing import Final

from formgate.errors import DeadlineError, UnavailableError

_TOKENS: Final = 10.0
_SUCCESS: Final = 0.1
_FIRST_SECONDS: Final = 0.01
_LONGEST_SECONDS: Final = 0.2


class Retrying:
    """The budget of a client's retries, as in gRPC's A6 (retryThrottling), and when the next may go.

    A call that fails takes one token of ten, one that succeeds gives a tenth back; with five or fewer left nothing is
    sent again. So a service that is down is not asked four times as often as one that is up.
    """

    def __init__(self, attempts: int) -> None:
        """``attempts``: of a call in all, the first included."""
        self._attempts = attempts
        self._tokens = _TOKENS
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """Count a call that was answered."""
        if self._tokens < _TOKENS:
            with self._lock:
                self._tokens = min(_TOKENS, self._tokens + _SUCCESS)

    def failed(self) -> None:
        """Count a call that was not."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)

    def after_fork(self) -> None:
        """Go on in a child, where nobody holds the lock."""
        self._lock = threading.Lock()

    def pause(self, error: UnavailableError, attempt: int, seconds_left: float) -> float | None:
        """Return in how many seconds attempt ``attempt``, 1 being the first, may be followed by another; None: never.

        Never after the deadline, and never before the service said.
        """
        if attempt >= self._attempts or isinstance(error, DeadlineError) or self._tokens <= _TOKENS / 2:
            return None
        longest: float = min(_FIRST_SECONDS * 2 ** (attempt - 1), _LONGEST_SECONDS)
        pause = max(longest * SystemRandom().uniform(0.5, 1), error.retry_after or 0.0)  # to spread, not to hide
        return pause if pause < seconds_left else None


class RequestIds:
    """Ids for checks that charge: repeated with its id, an admission is not charged again.

    The scope of an id is its key, for a minute. Unique in all processes: made of 96 random bits, and counted on.
    """

    def __init__(self) -> None:
        self._prefix = secrets.token_urlsafe(12)
        self._numbers = itertools.count()

    def __call__(self) -> str:
        """Return a new one."""
        return f"{self._prefix}.{next(self._numbers)}"
