"""Checks of the same moment in one call, for one event loop."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable
from functools import partial
from typing import Final, Protocol

from formgate.answers import Outcome
from formgate.errors import BrokenAnswerError, DeadlineError, FormgateError
from formgate.verdict import Verdict
from formgate.wire import MOST, MOST_BYTES

PATIENCE_SECONDS: Final = 0.005
"""So long checks wait for a call that is under way; one that takes longer holds nobody up."""


class Send(Protocol):
    """Sends checks."""

    def __call__(self, requests: list[bytes], seconds: float, *, again: bool) -> Awaitable[list[Outcome]]:
        """Send them in one call that may take so many seconds; return one outcome each, or raise FormgateError.

        ``again``: wait for a connection where there is none, instead of failing at once.
        """
        ...


class _Waiting:
    """A check that somebody waits for; ``deadline`` by the loop's clock.

    ``done`` with None: it is alone, and to be sent by whoever asks.
    """

    __slots__ = ("again", "deadline", "done", "request")

    def __init__(self, request: bytes, deadline: float, done: asyncio.Future[Verdict | None], *, again: bool) -> None:
        self.request = request
        self.again = again
        self.deadline = deadline
        self.done = done

    def settle(self, outcome: Outcome) -> None:
        """Tell what came of it, unless nobody waits any more."""
        if self.done.done():
            return
        if isinstance(outcome, FormgateError):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)

    @property
    def is_alone(self) -> bool:
        """Whether whoever asks was told to send it himself."""
        done = self.done
        return done.done() and not done.cancelled() and not done.exception() and done.result() is None


class Together:
    """Sends at once what arrives alone; what arrives while a call is under way goes together into the next."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting] = deque()
        self._under_way = 0
        """Calls that the next one waits for."""
        self._scheduled = False
        self._calls: set[asyncio.Task[None]] = set()
        self._alone = 0
        """Calls that are no task of their own."""

    async def __call__(self, request: bytes, deadline: float, *, again: bool = False) -> Verdict:
        """Return the verdict. Raises FormgateError; DeadlineError when the loop's clock shows ``deadline``.

        ``again``: it was sent before; now a connection is waited for.
        """
        waiting = _Waiting(request, deadline, self._loop.create_future(), again=again)
        self._queue.append(waiting)
        if not self._under_way:
            self._schedule()  # when all that is ready has run: what else is asked in this moment goes along
        # A call's own deadline is that of whoever can wait the longest, and what is queued has none.
        timer = self._loop.call_at(deadline, _expire, waiting)
        try:
            verdict = await waiting.done
        except BaseException:
            if waiting.is_alone:
                self._end_alone()
            raise
        finally:
            timer.cancel()
        return await self._ask_alone(waiting) if verdict is None else verdict

    async def finish(self) -> None:
        """Wait for all that was asked; no longer than its deadlines."""
        while self._queue or self._calls or self._alone:
            self._flush()
            await asyncio.wait(self._calls) if self._calls else await asyncio.sleep(0.001)

    def _flush(self) -> None:
        self._scheduled = False
        if self._under_way:
            return
        batch = self._take()
        if not batch:
            return
        self._under_way += 1
        if len(batch) == 1:
            self._alone += 1
            batch[0].done.set_result(None)  # who asks sends it himself: a task more would take longer
            return
        turn = _Turn(self)
        call = self._loop.create_task(self._ask(batch, turn))
        self._calls.add(call)
        call.add_done_callback(partial(self._ended, batch, turn))

    def _take(self) -> list[_Waiting]:
        """Take from the queue what goes in one call, leaving out those who wait no more."""
        batch: list[_Waiting] = []
        size = 0
        while self._queue and len(batch) < MOST:
            waiting = self._queue[0]
            if not waiting.done.done():
                size += len(waiting.request) + 8
                if batch and size > MOST_BYTES:
                    break
                batch.append(waiting)
            self._queue.popleft()
        return batch

    async def _ask_alone(self, waiting: _Waiting) -> Verdict:
        turn = _Turn(self)
        patience = self._loop.call_later(PATIENCE_SECONDS, turn.end)
        try:
            seconds = waiting.deadline - self._loop.time()
            (outcome,) = await self._send([waiting.request], max(seconds, 0.001), again=waiting.again)
        finally:
            self._alone -= 1
            patience.cancel()
            turn.end()
        if isinstance(outcome, FormgateError):
            raise outcome
        return outcome

    def _end_alone(self) -> None:
        """Give up a call that was to be made by somebody who is cancelled."""
        self._alone -= 1
        self.go_on()

    async def _ask(self, batch: list[_Waiting], turn: _Turn) -> None:
        seconds = max(waiting.deadline for waiting in batch) - self._loop.time()
        patience = self._loop.call_later(PATIENCE_SECONDS, turn.end)
        try:
            again = any(waiting.again for waiting in batch)
            outcomes = await self._send([waiting.request for waiting in batch], max(seconds, 0.001), again=again)
            for waiting, outcome in zip(batch, outcomes, strict=True):
                waiting.settle(outcome)
        except FormgateError as error:
            for waiting in batch:
                waiting.settle(copy.copy(error))
        finally:
            patience.cancel()
            turn.end()

    def _ended(self, batch: list[_Waiting], turn: _Turn, call: asyncio.Task[None]) -> None:
        """See to it that nobody waits for a call that is over: it may have been cancelled, even before it began."""
        self._calls.discard(call)
        turn.end()
        for waiting in batch:
            if not waiting.done.done():
                waiting.settle(BrokenAnswerError("the call ended without an answer"))

    def go_on(self) -> None:
        """Let the next call go, when those who were just answered have run: they may ask again."""
        self._under_way -= 1
        if self._queue:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)


class _Turn:
    """A call's right to hold up the next, which ends once."""

    def __init__(self, together: Together) -> None:
        self._together: Together | None = together

    def end(self) -> None:
        """End it: the call is over, or takes too long."""
        if self._together is not None:
            self._together.go_on()
            self._together = None


def _expire(waiting: _Waiting) -> None:
    waiting.settle(DeadlineError("no answer within the deadline"))
