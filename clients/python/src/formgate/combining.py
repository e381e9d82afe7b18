"""Checks of the same moment in one call, for threads.

No thread of our own: whoever asks while no call is under way sends his check himself, at once. Whoever asks meanwhile
waits, and when the call is over one of those who wait sends for all of them.
"""

from __future__ import annotations

import copy
import threading
import time
from typing import Final, Protocol

from formgate.answers import Outcome
from formgate.errors import DeadlineError, FormgateError
from formgate.verdict import Verdict
from formgate.wire import MOST, MOST_BYTES

PATIENCE_SECONDS: Final = 0.005
"""So long a check waits for a call that is under way; one that takes longer holds nobody up."""


class Send(Protocol):
    """Sends checks."""

    def __call__(self, requests: list[bytes], seconds: float, *, again: bool) -> list[Outcome]:
        """Do as ``formgate.together.Send`` does."""
        ...


class _Waiting:
    """A check that a thread waits for, and what others tell it. Changed under the lock."""

    __slots__ = ("again", "deadline", "leads", "outcome", "request", "taken", "told")

    def __init__(self, request: bytes, deadline: float, *, again: bool) -> None:
        self.request = request
        self.again = again
        self.deadline = deadline
        self.outcome: Outcome | None = None
        self.taken = False
        """It is in a call under way."""
        self.leads = False
        """It is to send what waits."""
        self.told = threading.Lock()
        """Held until something of this changed."""
        self.told.acquire()

    def tell(self) -> None:
        """Wake whoever waits for it."""
        if self.told.locked():
            self.told.release()


class Combining:
    """Sends at once what arrives alone; what arrives while a call is under way goes together into the next."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._queue: list[_Waiting] = []
        self._leaders = 0
        """Threads that send, or were told to. While anybody waits there is one, and it passes this on."""

    def __call__(self, request: bytes, deadline: float, *, again: bool = False) -> Verdict:
        """Return the verdict. Raises FormgateError; DeadlineError when ``time.monotonic`` shows ``deadline``.

        ``again``: it was sent before; now a connection is waited for.
        """
        mine = _Waiting(request, deadline, again=again)
        with self._lock:
            if leads := not self._leaders:
                self._leaders = 1
            else:
                self._queue.append(mine)
        if not leads:
            try:
                leads = self._wait(mine)
            except BaseException:
                self._leave(mine)
                raise
        if leads:
            self._lead(mine)
        outcome = mine.outcome
        if isinstance(outcome, Verdict):
            return outcome
        raise outcome or DeadlineError("no answer within the deadline")

    def finish(self) -> None:
        """Wait for all that was asked; no longer than its deadlines."""
        with self._idle:
            while self._leaders:
                self._idle.wait()

    def _wait(self, mine: _Waiting) -> bool:
        """Wait until there is an outcome, or the deadline; True: this thread is to send instead."""
        patience = PATIENCE_SECONDS
        while True:
            left = mine.deadline - time.monotonic()
            told = mine.told.acquire(timeout=max(0.0, min(left, patience)))
            with self._lock:
                if mine.outcome is not None:
                    return False
                if mine.leads:
                    return True
                if mine.taken:
                    patience = left
                elif not told:
                    self._queue.remove(mine)
                    if mine.deadline > time.monotonic():
                        self._leaders += 1  # the call under way takes long: another goes beside it
                        return True
            if mine.deadline <= time.monotonic():
                return False

    def _leave(self, mine: _Waiting) -> None:
        """Wait no more; an interrupt has ended it."""
        with self._lock:
            if mine in self._queue:
                self._queue.remove(mine)
        if mine.leads:
            self._pass_on()

    def _lead(self, mine: _Waiting) -> None:
        """Send this check and those that wait, and tell everybody what came of it."""
        batch = [mine]
        try:
            seconds = mine.deadline - time.monotonic()
            if seconds > 0:
                with self._lock:
                    batch += self._take(mine)
                again = any(waiting.again for waiting in batch)
                outcomes = self._send([waiting.request for waiting in batch], seconds, again=again)
                self._settle(batch, outcomes)
        except FormgateError as error:
            self._settle(batch, [copy.copy(error) for _ in batch])
        finally:
            self._pass_on()

    def _take(self, leader: _Waiting) -> list[_Waiting]:
        """Take from the queue what goes along: all that need not wait longer for the answer than the leader does."""
        taken: list[_Waiting] = []
        kept: list[_Waiting] = []
        size = len(leader.request) + 8
        for waiting in self._queue:
            size += len(waiting.request) + 8
            if waiting.deadline <= leader.deadline and len(taken) < MOST - 1 and size <= MOST_BYTES:
                waiting.taken = True
                taken.append(waiting)
            else:
                kept.append(waiting)
        self._queue = kept
        return taken

    def _settle(self, batch: list[_Waiting], outcomes: list[Outcome]) -> None:
        with self._lock:
            for waiting, outcome in zip(batch, outcomes, strict=True):
                waiting.outcome = outcome
                waiting.tell()

    def _pass_on(self) -> None:
        """End leading: where nobody else leads, the one of those who wait that can wait the longest does from now."""
        with self._lock:
            if self._leaders > 1 or not self._queue:
                self._leaders -= 1
                self._idle.notify_all()
                return
            successor = max(self._queue, key=lambda waiting: waiting.deadline)
            self._queue.remove(successor)
            successor.leads = True
            successor.tell()
