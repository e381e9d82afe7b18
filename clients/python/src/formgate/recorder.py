"""What was consumed, told to the service: in batches, again and again until it is recorded, counted once."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, Unpack, get_args

import grpc

from formgate.answers import decode, error_of_call
from formgate.buffering import Buffer, FullError, Memory, Taken
from formgate.errors import BrokenAnswerError, ClosedError, FormgateError, InvalidRequestError
from formgate.forks import Forks
from formgate.options import Connection, Tls, connection
from formgate.retrying import RequestIds
from formgate.spool import Fsync, Spool
from formgate.usage import Outcome, Usage, UsageFields, from_bytes, id_of, to_bytes
from formgate.v1 import authorization_pb2 as pb
from formgate.wire import MOST, RECORD, repeated

__all__ = ["FullError", "Outcome", "Refused", "Usage", "UsageRecorder"]

_log = logging.getLogger("formgate")
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 30.0
_AT_EXIT_SECONDS: Final = 5.0
_ENDING_SECONDS: Final = 5.0
"""What the thread has, when nothing is sent any more, to tell of what is dropped: a callback or a disk may hang."""
_TOO_LARGE: Final = ("larger than max", "exceeds maximum size")
"""How gRPC's libraries say that a message is too large: by a code that also says "not so fast"."""


class Refused(NamedTuple):
    """A record that the service will not take, and why."""

    usage: Usage
    outcome: Outcome
    """CONFLICT or REJECTED."""
    message: str


class UsageRecorder:
    """Takes records from any thread or loop without waiting, and sends them from a thread of its own.

    A record is sent again, with the same id, until the service has said what became of it. What it refuses
    (``on_refused``) and what can not be kept (``on_drop``) is told, counted and logged, never passed over.

    Without ``spool`` at most ``most`` records wait in memory, and end with the process; with it they wait in that
    folder, at most ``spool_bytes`` a process, and the next recorder on it goes on, or another one beside it. One too
    many goes to ``on_drop``; where there is none, ``record`` raises FullError.
    """

    def __init__(  # noqa: PLR0913 - each has its default
        self,
        address: str | Sequence[str] | Connection | None = None,
        token: str | None = None,
        *,
        tls: Tls | bool | None = None,
        insecure: bool | None = None,
        interval: float = 1.0,
        most: int = 100_000,
        timeout: float = 10.0,
        spool: str | Path | None = None,
        spool_bytes: int = 2**30,
        fsync: Fsync = "second",
        on_refused: Callable[[Refused], None] | None = None,
        on_drop: Callable[[Usage], None] | None = None,
    ) -> None:
        """Connect as ``formgate.Client`` does, with the first record.

        ``interval``: seconds that a record waits for others at most; a thousand wait for nothing. ``timeout``: seconds
        that a call may take. The callbacks are called from the recorder's thread, or the caller's of ``record``.
        Raises ValueError for what makes no sense.
        """
        if not 0 < interval <= threading.TIMEOUT_MAX:
            raise ValueError(f"`interval` must be a number of seconds above 0, not {interval!r}")
        if fsync not in get_args(Fsync):
            raise ValueError(f"`fsync` must be one of {', '.join(get_args(Fsync))}, not {fsync!r}")
        if not isinstance(address, Connection):
            address = connection(address, token, tls=tls, insecure=insecure)
        self._connection = address
        self._interval = interval
        self._timeout = timeout
        self._buffer: Buffer = Memory(most) if spool is None else Spool(Path(spool), spool_bytes, fsync)
        self._on_refused = on_refused
        self._on_drop = on_drop
        self._closed = False
        self._begin()
        if spool is not None:
            with self._changed:
                self._start()  # what an earlier process has left behind
        Forks.of(self)
        _open.add(self)

    def _begin(self) -> None:
        """Be as new: at first, and in a child."""
        self._new_id = RequestIds()
        self._changed = threading.Condition()
        self._counts = dict.fromkeys(("put", "accepted", "duplicate", "refused", "dropped", "retries"), 0)
        self._thread: threading.Thread | None = None
        self._sending: Taken | None = None
        self._taken = 0
        """Own records that were put and taken into the buffer."""
        self._settled = 0
        """Own records that need nothing more; the oldest first."""
        self._hurry = False
        """Somebody waits for what is there now."""
        self._until: float | None = None
        """From when on nothing is sent any more, by ``time.monotonic``; None: there is no end."""
        self._over = False
        """Nothing is sent any more: what is not settled now never will be."""

    @property
    def counters(self) -> dict[str, int]:
        """What was counted so far.

        ``put`` by ``record`` · ``accepted`` · ``duplicate``: recorded by an earlier attempt · ``refused`` · ``dropped``
        · ``retries``: calls that were sent again.
        """
        with self._changed:
            return dict(self._counts)

    def record(self, key_id: str, units: int = 1, **fields: Unpack[UsageFields]) -> str:
        """Take a record and return its id, made here where none is given.

        Waits for nothing but, in a spool, a write to a file, and the disk where ``fsync`` is "always".

        Raises InvalidRequestError for what is no record, FullError where there is no room and no ``on_drop``, and
        ClosedError.
        """
        fields["record_id"] = fields.get("record_id") or self._new_id()
        usage = Usage(key_id=key_id, units=units, **fields)
        payload = to_bytes(usage)
        try:
            self._put(payload)
        except FullError:
            self._count("dropped")
            if self._on_drop is None:
                raise
            _tell(self._on_drop, usage)
        return usage.record_id

    def _put(self, payload: bytes) -> None:
        """Keep a record. Under the lock, as closing is: what is taken here is sent, or told of as dropped."""
        with self._changed:
            if self._closed:
                raise ClosedError("the recorder is closed")
            self._buffer.put(payload)
            self._start()
            self._taken += 1
            self._counts["put"] += 1
            if self._taken - self._settled == MOST:
                self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was recorded before is settled.

        False: not within ``timeout`` seconds, or never, as the recorder was closed before that.
        """
        with self._changed:
            wanted = self._taken
            if self._settled >= wanted:
                return True
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._over or self._settled >= wanted, timeout)
            return self._settled >= wanted

    async def aflush(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as flush has it
        """Do as ``flush`` does, without blocking the loop."""
        return await asyncio.to_thread(self.flush, timeout)

    def close(self, timeout: float = 5.0) -> int:
        """Take no more records, send what waits for up to ``timeout`` seconds, and return how many could not be sent.

        In a spool these are kept; else they are dropped: told to ``on_drop``, counted and logged.
        """
        until = self._stop(timeout)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()) + _ENDING_SECONDS)
            if thread.is_alive():
                _log.error("the usage recorder does not end: a callback or a disk holds it up")
        with self._changed:
            return self._taken - self._settled

    def _stop(self, timeout: float) -> float:
        """Begin to close, without waiting, and return until when what waits is sent, by ``time.monotonic``."""
        with self._changed:
            self._closed = True
            if self._until is None:
                self._until = time.monotonic() + timeout
            self._changed.notify_all()
            return self._until

    async def aclose(self, timeout: float = 5.0) -> int:  # noqa: ASYNC109 - as close has it
        """Do as ``close`` does, without blocking the loop."""
        return await asyncio.to_thread(self.close, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def after_fork(self) -> None:
        """Start anew in a child: what waits is the parent's to send."""
        self._buffer.after_fork()
        self._begin()

    # The thread.

    def _start(self) -> None:
        """Start the thread, where there is none; under the lock."""
        if self._thread is None:  # closed or not: a handler of a signal may have closed it within ``record``
            self._thread = threading.Thread(target=self._run, name="formgate-usage", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                try:
                    with self._connection.channel() as channel:
                        self._work(channel.unary_unary(RECORD))
                except Exception:  # noqa: BLE001 - a file of TLS that is not there for a moment, a disk that fails
                    _log.exception("usage records are kept; the recorder goes on")
                    if self._pause(_LONGEST_PAUSE):
                        continue
                    self._give_up(self._sending)
                return
        finally:
            try:
                self._buffer.close()
            finally:
                self._end()

    def _end(self) -> None:
        """Let nobody wait for what will not be."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _work(self, send: Any) -> None:  # noqa: ANN401 - grpc's own
        """Send what comes, until the recorder is closed."""
        while True:
            self._wait_for_records()
            closed = self._closed  # first: what is there now is the last
            taken = self._sending = self._sending or self._buffer.take()
            if taken is None:
                self._buffer.sync()
                if closed:
                    return
            elif not self._deliver(taken, send):
                self._give_up(taken)
                return
            self._sending = None

    def _wait_for_records(self) -> None:
        """Wait until there is a batch, or the interval is over, or somebody waits for what there is."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._hurry or self._taken - self._settled >= MOST, self._interval
            )
            if self._settled >= self._taken:
                self._hurry = False

    def _deliver(self, taken: Taken, send: Any) -> bool:  # noqa: ANN401 - grpc's own
        """Send records until each is settled; False: the recorder was closed before that."""
        waiting = taken.records
        pause = _FIRST_PAUSE
        while waiting:
            self._buffer.sync()
            left = self._send_all(waiting, send)
            if left:
                if len(left) < len(waiting):
                    pause = _FIRST_PAUSE  # it goes on
                if not self._pause(pause * SystemRandom().uniform(0.5, 1)):  # to spread, not to hide
                    self._settle(len(taken.records) - len(left) if taken.own else 0)
                    taken.records = left
                    return False
                pause = min(pause * 2, _LONGEST_PAUSE)
                self._count("retries")
            waiting = left
        taken.done()
        self._settle(len(taken.records) if taken.own else 0)
        return True

    def _settle(self, number: int) -> None:
        with self._changed:
            self._settled += number
            self._changed.notify_all()

    def _pause(self, seconds: float) -> bool:
        """Wait before a repeat; False: there is no time for one."""
        with self._changed:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0 and not self._hurry:
                if self._until is not None:
                    left = min(left, self._until - time.monotonic())
                    if left <= 0:
                        return False
                self._changed.wait(left)
            self._hurry = False
            return self._until is None or time.monotonic() < self._until

    def _send_all(self, records: Sequence[bytes], send: Any) -> list[bytes]:  # noqa: ANN401 - grpc's own
        """Send records, a thousand a call, and return those that have to be sent again."""
        left: list[bytes] = []
        for begin in range(0, len(records), MOST):
            part = records[begin : begin + MOST]
            if left and self._until is not None and time.monotonic() >= self._until:
                left += part
                continue
            try:
                left += self._send(part, send)
            except InvalidRequestError as error:  # or larger than the service takes
                left += self._without_the_worst(part, error, send)
            except FormgateError as error:
                _log.warning("usage records are kept and sent again: %s", error)
                left += part
        return left

    def _send(self, records: Sequence[bytes], send: Any) -> list[bytes]:  # noqa: ANN401 - grpc's own
        """Send one call, settle what was answered, and return the rest. Raises FormgateError."""
        seconds = self._timeout if self._until is None else min(self._timeout, self._until - time.monotonic())
        try:
            answer = send(repeated(records), timeout=max(seconds, 0.01), metadata=self._connection.metadata)
        except grpc.RpcError as error:
            read = error_of_call(error)
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and any(told in read.message for told in _TOO_LARGE):
                raise InvalidRequestError(read.message) from None
            raise read from None
        results = decode(pb.RecordUsageResponse, answer).results
        if len(results) != len(records):
            raise BrokenAnswerError(f"the answer has {len(results)} results for {len(records)} records")
        return [record for record, result in zip(records, results, strict=True) if not self._is_settled(record, result)]

    def _is_settled(self, record: bytes, result: pb.UsageResult) -> bool:
        if result.record_id != id_of(record):
            return False
        match result.outcome:
            case pb.OUTCOME_ACCEPTED:
                self._count("accepted")
            case pb.OUTCOME_DUPLICATE:
                self._count("duplicate")
            case pb.OUTCOME_CONFLICT | pb.OUTCOME_REJECTED:
                self._refuse(Refused(from_bytes(record), Outcome(result.outcome), result.message))
            case _:  # what was not said, or is not known here, may not have happened
                return False
        return True

    def _without_the_worst(
        self,
        records: Sequence[bytes],
        error: InvalidRequestError,
        send: Any,  # noqa: ANN401 - grpc's own
    ) -> list[bytes]:
        """Find what makes the service refuse a whole call, by halves, so that it takes nothing else with it."""
        if len(records) == 1:
            self._refuse(Refused(from_bytes(records[0]), Outcome.REJECTED, error.message))
            return []
        middle = len(records) // 2
        return self._send_all(records[:middle], send) + self._send_all(records[middle:], send)

    def _refuse(self, refused: Refused) -> None:
        self._count("refused")
        if self._on_refused is None:
            record_id, outcome = refused.usage.record_id, refused.outcome.name
            _log.warning("usage record %s was not counted: %s, %s", record_id, outcome, refused.message)
        _tell(self._on_refused, refused)

    def _give_up(self, taken: Taken | None) -> None:
        """Keep for a later process, or drop and say so, what could not be sent in time."""
        self._end()
        self._sending = None
        if (taken := taken or self._buffer.take()) is None:
            return
        kept = taken.leave()
        left = [] if kept else list(taken.records)
        while not kept and (more := self._buffer.take()) is not None:
            left += more.records
            more.done()
        if left:
            _log.error("%d usage records could not be sent and are dropped", len(left))
        for record in left:
            self._count("dropped")
            _tell(self._on_drop, from_bytes(record))

    def _count(self, name: str) -> None:
        with self._changed:
            self._counts[name] += 1


def _tell(callback: Callable[[Any], None] | None, what: object) -> None:
    if callback is not None:
        try:
            callback(what)
        except Exception:  # noqa: BLE001 - somebody else's
            _log.exception("a callback of the usage recorder failed")


_open: weakref.WeakSet[UsageRecorder] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    recorders = list(_open)
    for recorder in recorders:  # first, so that they have their time at the same time
        recorder._stop(_AT_EXIT_SECONDS)  # noqa: SLF001 - this module's own
    for recorder in recorders:
        recorder.close(_AT_EXIT_SECONDS)
