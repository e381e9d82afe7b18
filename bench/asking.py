"""What is asked, and a real gRPC client that asks it: h2load sees HTTP only, so what is answered is looked at here."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

import grpc
from google.protobuf.duration_pb2 import Duration

from bench.h2load import Answered
from formgate.v1.authorization_pb2 import (
    OUTCOME_ACCEPTED,
    REASON_OK,
    REASON_RATE_LIMITED,
    BatchCheckKeysRequest,
    CheckKeyRequest,
    CheckKeyResponse,
    RecordUsageRequest,
    RecordUsageResponse,
    UsageRecord,
)
from formgate.v1.authorization_pb2_grpc import AuthorizationServiceStub
from formgate.v1.keys_pb2 import CreateKeyRequest
from formgate.v1.keys_pb2_grpc import KeyServiceStub
from formgate.v1.resources_pb2 import HOLDER_KEY, Grant, Limit

SERVICE: Final = "/formgate.v1.AuthorizationService"
MOST: Final = 1_000
"""Records in a call."""

PERMISSION: Final = "forms.view"
RESOURCE: Final = "forms/f1/submissions"

_UNLIMITED_SIZE: Final = [("grpc.max_receive_message_length", -1)]
_CALLS_UNDER_WAY: Final = 4
_KEYS_A_BATCH: Final = 100
_BATCHES_UNDER_WAY: Final = 8  # of keys that the server does not know at first: it has only so many of those wait


def check(secret: str, *, cost: int | None = None) -> CheckKeyRequest:
    """Return a check as an API gateway would send it; of cost 1, if none is given."""
    return CheckKeyRequest(
        key=secret, permissions=[PERMISSION], resources=[RESOURCE], source_ip="203.0.113.7", cost=cost
    )


def batch(secrets: Sequence[str], *, cost: int | None = None) -> BatchCheckKeysRequest:
    """Return one check of each key."""
    return BatchCheckKeysRequest(requests=[check(secret, cost=cost) for secret in secrets])


def usage(key_ids: Iterator[str], calls: int) -> list[bytes]:
    """Return calls of 1,000 records, none of which was ever sent before."""
    run = time.time_ns()
    return [
        RecordUsageRequest(
            records=[
                UsageRecord(
                    record_id=f"{run}.{call}.{number}",
                    key_id=key_id,
                    units=1,
                    operation="submissions.list",
                    resource=RESOURCE,
                    status_code=200,
                )
                for number, key_id in enumerate(itertools.islice(key_ids, MOST))
            ]
        ).SerializeToString()
        for call in range(calls)
    ]


class Client:
    """A caller of one server."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(address, options=_UNLIMITED_SIZE)
        self._stub = AuthorizationServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {token}"),)

    def check(self, secret: str) -> CheckKeyResponse:
        """Return the verdict. AssertionError unless it is a yes with both limits charged."""
        answer = self._stub.CheckKey(check(secret), metadata=self._metadata)
        assert answer.allowed, answer
        assert len(answer.limits) == 2, answer
        return answer

    def check_all(self, secrets: Sequence[str], *, cost: int | None = None) -> list[CheckKeyResponse]:
        """Return the verdicts on many keys. AssertionError unless each is a yes."""

        def ask(some: Sequence[str]) -> list[CheckKeyResponse]:
            results = self._stub.BatchCheckKeys(batch(some, cost=cost), metadata=self._metadata).results
            refused = [result for result in results if not result.response.allowed]
            assert not refused, refused[0]
            assert len(results) == len(some)
            return [result.response for result in results]

        # Many at a time: what the server reads and writes for keys that it has not seen yet, it can share then.
        batches = [secrets[begin : begin + _KEYS_A_BATCH] for begin in range(0, len(secrets), _KEYS_A_BATCH)]
        with ThreadPoolExecutor(_BATCHES_UNDER_WAY) as threads:
            return [answer for answers in threads.map(ask, batches) for answer in answers]

    def firsts(self, secrets: Sequence[str]) -> list[int]:
        """Check keys one after the other, and return how many microseconds each took. AssertionError unless all may."""
        took = []
        for secret in secrets:
            began = time.perf_counter()
            self.check(secret)
            took.append(int((time.perf_counter() - began) * 1e6))
        return took

    def limited(self, account_id: str, amount: int, seconds: int) -> str:
        """Make a key that may ``amount`` calls in a rolling window, and return its secret."""
        limit = Limit(name="rate", holder=HOLDER_KEY, amount=amount, window=Duration(seconds=seconds))
        grant = Grant(resource="forms/f1", permissions=[PERMISSION])
        request = CreateKeyRequest(
            account_id=account_id, display_name="Limited", created_by="member_1", grants=[grant], limits=[limit]
        )
        return str(KeyServiceStub(self._channel).CreateKey(request, metadata=self._metadata).secret)

    def allows(self, secret: str) -> bool:
        """Charge a key, and tell whether it may. AssertionError where that is for any reason but its limit."""
        answer = self._stub.CheckKey(check(secret), metadata=self._metadata)
        assert answer.reason in {REASON_OK, REASON_RATE_LIMITED}, answer
        assert not answer.degraded, answer
        return bool(answer.allowed)

    def record(self, calls: Sequence[bytes]) -> Answered:
        """Send calls of usage records, a few at a time. AssertionError unless each record is accepted."""
        return asyncio.run(self._record(calls))

    async def _record(self, calls: Sequence[bytes]) -> Answered:
        waiting = iter(calls)
        answers: list[bytes] = []
        latencies = []
        async with grpc.aio.insecure_channel(self._address) as channel:
            # Bytes in, bytes out: the client's own coding is not what is measured.
            send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/RecordUsage")

            async def work() -> None:
                for call in waiting:
                    began = time.perf_counter()
                    answers.append(await send(call, metadata=self._metadata))
                    latencies.append(int((time.perf_counter() - began) * 1e6))

            await channel.channel_ready()
            began = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(_CALLS_UNDER_WAY)))
            seconds = time.perf_counter() - began
        outcomes = [result.outcome for answer in answers for result in RecordUsageResponse.FromString(answer).results]
        assert outcomes == [OUTCOME_ACCEPTED] * MOST * len(calls)
        return Answered(len(calls), seconds, latencies)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
