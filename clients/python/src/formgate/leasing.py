"""What leases need of the service, over a connection of their own: nothing here keeps a check waiting.

One thread keeps house: it settles, many leases in one call, and looks after the stream that tells new epochs, which has
a thread to read it.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from formgate.options import Connection
from formgate.v1 import authorization_pb2 as pb

if TYPE_CHECKING:
    from formgate.lease import Leases

_SERVICE: Final = "/formgate.v1.AuthorizationService"
_TICK_SECONDS: Final = 0.1
_TIMEOUT_SECONDS: Final = 1.0
_MOST_SETTLED: Final = 500
_MOST_WAITING: Final = 50_000
_MOST_WATCHED: Final = 10_000
"""Accounts: what the service takes of one stream; one more would end it."""
_MOST_AT_ONCE: Final = 500
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_NONE_HERE: Final = pb.LeaseKeyResponse(
    refusal=pb.LeaseRefusal(reason=pb.LEASE_REFUSAL_REASON_OFF, retry_after=Duration(seconds=60))
)
"""What is made of a service of before leases."""


class Leasing:
    """LeaseService over gRPC. It ends with its ``Leases``, also where nobody has closed them."""

    def __init__(self, leases: Leases, connection: Connection) -> None:
        self._leases = weakref.ref(leases)
        self._metadata = connection.metadata
        self._channel = connection.channel()
        self._acquire: Any = self._channel.unary_unary(f"{_SERVICE}/LeaseKey")
        self._settle: Any = self._channel.unary_unary(f"{_SERVICE}/SettleLeases")
        self._watch: Any = self._channel.stream_stream(f"{_SERVICE}/WatchEpochs")
        self._lock = threading.Lock()
        self._settlements: list[pb.LeaseSettlement] = []
        self._watched: set[str] = set()
        self._requests: queue.SimpleQueue[pb.WatchEpochsRequest | None] = queue.SimpleQueue()
        self._stream: Any = None
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"formgate-{name}", daemon=True)
            for name, target in (("leases", self._keep_house), ("epochs", self._keep_watching))
        ]
        for thread in self._threads:
            thread.start()

    def acquire(self, request: pb.LeaseKeyRequest, done: Callable[[pb.LeaseKeyResponse | None], None]) -> None:
        """See ``LeaseService``."""

        def ended(call: Any) -> None:  # noqa: ANN401 - grpc's own
            answer: pb.LeaseKeyResponse | None
            try:
                answer = pb.LeaseKeyResponse.FromString(call.result())
            except grpc.RpcError as error:
                answer = _NONE_HERE if error.code() is grpc.StatusCode.UNIMPLEMENTED else None
            except (grpc.FutureCancelledError, DecodeError):
                answer = None
            done(answer)

        try:
            call = self._acquire.future(request.SerializeToString(), timeout=_TIMEOUT_SECONDS, metadata=self._metadata)
        except ValueError:  # the channel is closed
            done(None)
            return
        call.add_done_callback(ended)

    def settle(self, settlement: pb.LeaseSettlement) -> None:
        """See ``LeaseService``."""
        with self._lock:
            if len(self._settlements) < _MOST_WAITING:  # what is beyond costs quota, never more
                self._settlements.append(settlement)

    def watch(self, account_id: str) -> bool:
        """See ``LeaseService``."""
        with self._lock:
            if account_id in self._watched:
                return True
            if not account_id or len(self._watched) >= _MOST_WATCHED:
                return False
            self._watched.add(account_id)
            self._requests.put(pb.WatchEpochsRequest(watch=[account_id]))
        return True

    def forget(self, account_id: str) -> None:
        """See ``LeaseService``."""
        with self._lock:
            self._watched.discard(account_id)
            self._requests.put(pb.WatchEpochsRequest(forget=[account_id]))

    def close(self) -> None:
        """See ``LeaseService``."""
        self._end()
        for thread in self._threads:
            thread.join(_TIMEOUT_SECONDS)
        self._settle_some()
        self._channel.close()

    def _end(self) -> None:
        """Have both threads end."""
        self._closing.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()
        self._requests.put(None)

    # Settling.

    def _keep_house(self) -> None:
        while not self._closing.wait(_TICK_SECONDS):
            if not self._tidy():
                self._end()
                self._settle_some()
                self._channel.close()
                return
            self._settle_some()

    def _tidy(self) -> bool:
        """Have the leases tidied; False: nobody has them any more, and what they still held ends by itself."""
        leases = self._leases()
        if leases is None:
            return False
        leases.tidy()
        return True

    def _settle_some(self) -> None:
        """Give back what is to be; what fails is tried again: it is settled once, however often it is sent."""
        while True:
            with self._lock:
                some, self._settlements = self._settlements[:_MOST_SETTLED], self._settlements[_MOST_SETTLED:]
            if not some:
                return
            request = pb.SettleLeasesRequest(settlements=some).SerializeToString()
            try:
                self._settle(request, timeout=_TIMEOUT_SECONDS, metadata=self._metadata)
            except grpc.RpcError as error:
                if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                    with self._lock:
                        self._settlements = (some + self._settlements)[:_MOST_WAITING]
                return
            except ValueError:
                return

    # Watching.

    def _keep_watching(self) -> None:
        """Read what is told, on one stream after another. Between two of them leases end by themselves."""
        pause = _FIRST_PAUSE
        while not self._closing.is_set():
            with self._lock:
                watched = list(self._watched)
                self._requests = queue.SimpleQueue()
                for first in range(0, len(watched), _MOST_AT_ONCE):
                    self._requests.put(pb.WatchEpochsRequest(watch=watched[first : first + _MOST_AT_ONCE]))
                requests = self._requests
            try:
                self._stream = self._watch(_written(requests), metadata=self._metadata, wait_for_ready=True)
                for payload in self._stream:
                    pause = _FIRST_PAUSE
                    self._told(pb.WatchEpochsResponse.FromString(payload))
            except (grpc.RpcError, DecodeError, ValueError):
                pause = min(_LONGEST_PAUSE, 2 * pause)
            finally:
                requests.put(None)
            self._closing.wait(pause * SystemRandom().uniform(0.5, 1))  # so that not all come at once

    def _told(self, answer: pb.WatchEpochsResponse) -> None:
        if (leases := self._leases()) is not None:
            for each in answer.epochs:
                leases.told(each.account_id, each.epoch)


def _written(requests: queue.SimpleQueue[pb.WatchEpochsRequest | None]) -> Iterator[bytes]:
    while (request := requests.get()) is not None:
        yield request.SerializeToString()
