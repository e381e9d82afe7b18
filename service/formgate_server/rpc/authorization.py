"""AuthorizationService: called for every request."""

from __future__ import annotations

import asyncio

from formgate.v1 import authorization_pb2 as pb
from formgate_server import metrics
from formgate_server.core.check_key import CheckKey
from formgate_server.core.errors import FormgateError, InvalidArgumentError
from formgate_server.core.model import Caller
from formgate_server.core.record_usage import MOST_RECORDS, RecordUsage
from formgate_server.rpc import convert
from formgate_server.rpc.errors import to_status

MOST_CHECKS = 1_000
_AT_ONCE = 32


class AuthorizationServicer:
    """Verdicts and usage."""

    def __init__(self, check_key: CheckKey, record_usage: RecordUsage) -> None:
        self._check_key = check_key
        self._record_usage = record_usage

    async def check_key(self, request: pb.CheckKeyRequest, caller: Caller) -> pb.CheckKeyResponse:
        """One verdict."""
        response = pb.CheckKeyResponse()
        await self._check(request, caller, response)
        return response

    async def _check(self, request: pb.CheckKeyRequest, caller: Caller, response: pb.CheckKeyResponse) -> None:
        verdict = await self._check_key(convert.check_query(request), caller)
        metrics.checks[verdict.reason].inc()
        convert.check_response(verdict, response)

    async def batch_check_keys(self, request: pb.BatchCheckKeysRequest, caller: Caller) -> pb.BatchCheckKeysResponse:
        """Many verdicts, in order; one that can not be reached is its own error."""
        _count(len(request.requests), MOST_CHECKS, "requests")
        answer = pb.BatchCheckKeysResponse(results=[pb.BatchCheckKeysResult() for _ in request.requests])
        by_secret: dict[str, list[tuple[pb.CheckKeyRequest, pb.BatchCheckKeysResult]]] = {}
        for one, result in zip(request.requests, answer.results, strict=True):
            by_secret.setdefault(one.key or one.authorization, []).append((one, result))
        waiting = iter(by_secret.values())

        async def work() -> None:
            for checks in waiting:  # shared: a key that waits for a store holds up one worker, not the batch
                for one, result in checks:  # in order: of one key's checks the first are charged first
                    try:
                        await self._check(one, caller, result.response)
                    except FormgateError as error:
                        result.error.CopyFrom(to_status(error))

        await asyncio.gather(*(work() for _ in range(min(_AT_ONCE, len(by_secret)))))
        return answer

    async def record_usage(self, request: pb.RecordUsageRequest, caller: Caller) -> pb.RecordUsageResponse:
        """Record consumption; each record has a result of its own."""
        _count(len(request.records), MOST_RECORDS, "records")
        results = await self._record_usage(caller, [convert.usage_record(record) for record in request.records])
        for result in results:
            metrics.usage_records[result.outcome].inc()
        return pb.RecordUsageResponse(
            results=[
                pb.UsageResult(record_id=id_, outcome=convert.number(outcome), message=why)
                for id_, outcome, why in results
            ]
        )


def _count(number: int, most: int, field: str) -> None:
    if not 1 <= number <= most:
        raise InvalidArgumentError(field, f"has {number} entries; 1 to {most} are allowed")
