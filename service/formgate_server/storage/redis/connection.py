"""One connection: requests go out in order, once a turn of the event loop, and answers come back in that order.

No task and no timer a request: what costs time here costs every check.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import hiredis

from formgate_server.storage.redis.url import Address

NOT_YET: Final = object()
GRACE = 0.01
"""Seconds that an overdue answer may still take: it may lie in the socket while our own loop was busy elsewhere."""


class Entry(Protocol):
    """A request on its way. Exactly one of its methods is called, once."""

    @property
    def sent(self) -> float:
        """When it was sent, by the loop's clock."""
        ...

    @property
    def writes(self) -> bool:
        """Whether it counts only when replicas have it, where that is asked for."""
        ...

    def changed(self, reply: Any) -> bool:  # noqa: ANN401 - a reply may be anything
        """Tell whether, after this reply, there is anything for replicas to have."""
        ...

    def answered(self, reply: Any) -> None:  # noqa: ANN401 - a reply may be anything
        """Take the reply; an error reply is a ``hiredis.ReplyError``."""
        ...

    def lost(self, detail: str, *, again: bool = True) -> None:
        """It was sent and its answer will not come: it may have been run. ``again``: it is of use to send it again."""
        ...

    def unsent(self, detail: str) -> None:
        """It was not sent."""
        ...


class Question:
    """A request whose reply, or error reply, somebody waits for; without an answer ConnectionError is raised."""

    writes = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.sent = loop.time()
        self.reply: asyncio.Future[Any] = loop.create_future()

    def changed(self, reply: Any) -> bool:  # noqa: ANN401, ARG002 - it does not count on replicas
        """Tell that there is nothing."""
        return False

    def answered(self, reply: Any) -> None:  # noqa: ANN401
        """Take the reply."""
        if not self.reply.done():
            self.reply.set_result(reply)

    def lost(self, detail: str, *, again: bool = True) -> None:  # noqa: ARG002 - it is not sent again
        """Have no reply."""
        if not self.reply.done():
            self.reply.set_exception(ConnectionError(detail))
            self.reply.exception()  # seen: nobody may be waiting any more

    unsent = lost


class Connection(asyncio.Protocol):
    """A connection that may be used while it ``is_open``; when it no more is, ``on_close`` is called, once and at once.

    What is under way then may still be answered: ``on_end`` is called, once, when all that is over.

    ``timeout``: seconds after which an unanswered request takes the connection down with it. ``replicas``: how many
    must have what a flush wrote before its answers count (0: none); then one flush at a time is under way.
    """

    def __init__(self, address: Address, *, timeout: float, most: int, replicas: int = 0) -> None:
        self.address = address
        self.on_close: Callable[[], None] = _nothing
        self.on_end: Callable[[], None] = _nothing
        self.why = ""
        """Why it is not open any more."""
        self.overdue = False
        """Whether it ended because the server did not answer in time."""
        self.loading: set[str] = set()
        """The scripts, by SHA-1, that requests under way take along."""
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._most = most
        self._replicas = replicas
        self._replicating = False
        self._reader = hiredis.Reader(notEnoughData=NOT_YET)
        self._transport: asyncio.Transport | None = None
        self._queue: list[Entry] = []
        self._chunks: list[bytes] = []
        self._in_flight: deque[Entry] = deque()
        self._flushing = False
        self._watch: asyncio.TimerHandle | None = None
        self.is_open = True
        """Whether it may be used."""
        self._ended = False

    @property
    def takes(self) -> bool:
        """Whether another request may be sent."""
        return self.is_open and len(self._in_flight) + len(self._queue) < self._most

    @property
    def under_way(self) -> int:
        """How many requests have no answer yet."""
        return len(self._in_flight) + len(self._queue)

    def send(self, entry: Entry, data: bytes) -> None:
        """Send a packed command with what else this turn of the loop has to send."""
        self._queue.append(entry)
        self._chunks.append(data)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
            if self._watch is None:
                self._watch = self._loop.call_later(self._timeout, self._look)

    def ask(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Send a command and return its reply to come, error replies as values. One that has ended asks nobody."""
        question = Question(self._loop)
        if self._ended:
            question.unsent(self.why)
        else:
            self.send(question, hiredis.pack_command(cast(Any, command)))
        return question.reply

    def retire(self, why: str) -> None:
        """Take no more, and end when all that is under way is answered."""
        self._close(why)
        self._end_if_drained()

    def abort(self, why: str) -> None:
        """End now."""
        if self._transport is not None:
            self._transport.abort()
        self._end(why)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand out the answers that are whole."""
        reader, in_flight = self._reader, self._in_flight
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not NOT_YET:
                if not in_flight:
                    self.abort("it answered what was not asked")
                    return
                in_flight.popleft().answered(reply)
        except hiredis.ProtocolError:
            self.abort("it does not speak Redis' protocol")
        if not self.is_open:
            self._end_if_drained()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, with all that is under way."""
        self._end(str(exc) if exc else "the connection was closed")

    # Our own.

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is None or self._ended or self._replicating or not self._queue:
            return
        entries, chunks = self._queue, self._chunks
        self._queue, self._chunks = [], []
        if self._replicas and any(entry.writes for entry in entries):
            self._replicating = True
            entries, replication = _held(entries, self._replicas, self._replicated)
            # Half of the time that there is: whoever comes meanwhile is to have a turn in time, too.
            wait = ("WAIT", self._replicas, max(1, int(self._timeout * 500)))
            entries.append(replication)
            chunks.append(hiredis.pack_command(cast(Any, wait)))
        self._in_flight.extend(entries)
        self._transport.write(b"".join(chunks))

    def _replicated(self) -> None:
        self._replicating = False
        if self._queue and not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _look(self) -> None:
        """Is the oldest request overdue? While nothing is under way nobody looks."""
        self._watch = None
        now = self._loop.time()
        if self._in_flight:
            oldest = self._in_flight[0]
            due = oldest.sent + self._timeout
            if due <= now:
                self._watch = self._loop.call_later(GRACE, self._look_again, oldest)
                return
        elif self._queue:
            due = now
        else:
            return
        while self._replicating and self._queue and self._queue[0].sent + self._timeout <= now:
            del self._chunks[0]
            self._queue.pop(0).unsent("others waited for replicas before it")
        self._watch = self._loop.call_later(max(due - now, GRACE), self._look)

    def _look_again(self, oldest: Entry) -> None:
        self._watch = None
        if self._in_flight and self._in_flight[0] is oldest:
            self.overdue = True
            self.abort(f"no answer in {self._timeout:g} s")
        else:
            self._look()

    def _close(self, why: str) -> None:
        if self.is_open:
            self.is_open = False
            self.why = why
            self.on_close()

    def _end_if_drained(self) -> None:
        if not self._in_flight and not self._queue:
            self.abort(self.why)

    def _end(self, why: str) -> None:
        if self._ended:
            return
        self._ended = True
        self._close(why)
        if self._watch is not None:
            self._watch.cancel()
        in_flight, queue = list(self._in_flight), self._queue
        self._in_flight.clear()
        self._queue, self._chunks = [], []
        for entry in in_flight:
            entry.lost(why)
        for entry in queue:
            entry.unsent(why)
        self.on_end()


def _nothing() -> None:
    pass


def _held(entries: list[Entry], replicas: int, done: Callable[[], None]) -> tuple[list[Entry], Entry]:
    """Return the entries, those that write held back, and the entry of the WAIT behind them, which lets them go."""
    held = [_Held(entry) for entry in entries if entry.writes]
    each = iter(held)
    return [next(each) if entry.writes else entry for entry in entries], _Replication(held, replicas, done)


class _Replication:
    """The WAIT behind a flush: what the flush's scripts were answered counts when enough replicas have it."""

    writes = False

    def __init__(self, held: list[_Held], replicas: int, done: Callable[[], None]) -> None:
        self.sent = asyncio.get_running_loop().time()
        self._held = held
        self._replicas = replicas
        self._done = done

    def changed(self, reply: Any) -> bool:  # noqa: ANN401, ARG002 - it is what is waited for
        return False

    def answered(self, reply: Any) -> None:  # noqa: ANN401
        if isinstance(reply, int) and reply >= self._replicas:
            for each in self._held:
                each.release()
        else:
            self.lost("not replicated", again=False)
        self._done()

    def lost(self, detail: str, *, again: bool = True) -> None:
        for each in self._held:
            each.lost(detail, again=again)

    unsent = lost


class _Held:
    """A script's answer that is kept until its flush is replicated."""

    writes = True

    def __init__(self, entry: Entry) -> None:
        self.sent = entry.sent
        self._entry: Entry | None = entry
        self._reply: Any = None

    def changed(self, reply: Any) -> bool:  # noqa: ANN401
        return self._entry is not None and self._entry.changed(reply)

    def answered(self, reply: Any) -> None:  # noqa: ANN401
        entry = self._entry
        if entry is not None and (isinstance(reply, hiredis.ReplyError) or not entry.changed(reply)):
            entry.answered(reply)
            self._entry = None
        else:
            self._reply = reply

    def release(self) -> None:
        if self._entry is not None:
            self._entry.answered(self._reply)
            self._entry = None

    def lost(self, detail: str, *, again: bool = True) -> None:
        if self._entry is not None:
            self._entry.lost(detail, again=again)
            self._entry = None

    unsent = lost
