"""AuthorizationService: called for every request."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from time import perf_counter

from formgate.v1 import authorization_pb2 as pb
from formgate_server import metrics
from formgate_server.core.check_key import CheckKey
from formgate_server.core.errors import FormgateError, InvalidArgumentError
from formgate_server.core.lease_key import Lease, LeaseKey, Refused, SettleLeases
from formgate_server.core.model import Caller
from formgate_server.core.record_usage import MOST_RECORDS, RecordUsage
from formgate_server.core.verdict import CheckQuery, Reason, Verdict
from formgate_server.core.watch_epochs import WatchEpochs
from formgate_server.core.watching import Watcher
from formgate_server.rpc import convert
from formgate_server.rpc.asked import Asked
from formgate_server.rpc.errors import to_status
from formgate_server.rpc.leases import lease_query, lease_response, settlement
from formgate_server.rpc.told import batch_response, check_response

MOST_CHECKS = 1_000
MOST_SETTLEMENTS = 1_000
_AT_ONCE = 32


class AuthorizationServicer:
    """Verdicts, usage and leases."""

    def __init__(
        self,
        check_key: CheckKey,
        record_usage: RecordUsage,
        lease_key: LeaseKey,
        settle_leases: SettleLeases,
        watch_epochs: WatchEpochs,
    ) -> None:
        self._check_key = check_key
        self._record_usage = record_usage
        self._lease_key = lease_key
        self._settle_leases = settle_leases
        self._watch_epochs = watch_epochs
        self._asked = Asked()

    async def check_key(self, request: pb.CheckKeyRequest, caller: Caller) -> tuple[bytes, Verdict]:
        """One verdict."""
        began = perf_counter()
        verdict = await self._check_key(self._asked.read(request), caller)
        metrics.decided(verdict.reason, perf_counter() - began, degraded=verdict.degraded)
        return check_response(verdict), verdict

    async def batch_check_keys(
        self, request: pb.BatchCheckKeysRequest, caller: Caller
    ) -> tuple[bytes, Mapping[Reason, int]]:
        """Many verdicts, in order; one that can not be reached is its own error."""
        _count(len(request.requests), MOST_CHECKS, "requests")
        asked = [self._read(one) for one in request.requests]
        at_hand = iter(await self._check_key.all_at_hand([one for one in asked if isinstance(one, CheckQuery)], caller))
        results = [next(at_hand) if isinstance(one, CheckQuery) else one for one in asked]
        if None in results:
            await self._decide_others(asked, results, caller)
        reasons = Counter(one.reason for one in results if isinstance(one, Verdict))
        for reason, times in reasons.items():
            metrics.checks[reason].count += times
        metrics.degraded_checks.count += sum(one.degraded for one in results if isinstance(one, Verdict))
        metrics.batch_checks_failed.count += sum(map(_failed, results))
        answer = batch_response(
            check_response(one) if isinstance(one, Verdict) else to_status(one) for one in results if one is not None
        )
        return answer, reasons

    def _read(self, request: pb.CheckKeyRequest) -> CheckQuery | FormgateError:
        try:
            return self._asked.read(request)
        except InvalidArgumentError as error:
            return error

    async def _decide_others(
        self,
        asked: Sequence[CheckQuery | FormgateError],
        results: list[Verdict | FormgateError | None],
        caller: Caller,
    ) -> None:
        """Decide those checks that have no result yet, several at once."""
        by_secret: dict[str | None, list[tuple[int, CheckQuery]]] = {}
        for index, (query, result) in enumerate(zip(asked, results, strict=True)):
            if isinstance(query, CheckQuery) and result is None:
                by_secret.setdefault(query.key or query.authorization, []).append((index, query))
        waiting = iter(by_secret.values())

        async def work() -> None:
            for checks in waiting:  # shared: a key that waits for a store holds up one worker, not the batch
                for index, query in checks:  # in order: of one key's checks the first are charged first
                    try:
                        results[index] = await self._check_key(query, caller)
                    except FormgateError as error:
                        results[index] = error

        await asyncio.gather(*(work() for _ in range(min(_AT_ONCE, len(by_secret)))))

    async def record_usage(self, request: pb.RecordUsageRequest, caller: Caller) -> pb.RecordUsageResponse:
        """Record consumption; each record has a result of its own."""
        _count(len(request.records), MOST_RECORDS, "records")
        results = await self._record_usage(caller, [convert.usage_record(record) for record in request.records])
        for result in results:
            metrics.usage_records[result.outcome].count += 1
        return pb.RecordUsageResponse(
            results=[
                pb.UsageResult(record_id=id_, outcome=convert.number(outcome), message=why)
                for id_, outcome, why in results
            ]
        )

    async def lease_key(self, request: pb.LeaseKeyRequest, caller: Caller) -> tuple[bytes, Verdict | None]:
        """A lease, a denial, or why there is neither."""
        answer = await self._lease_key(lease_query(request), caller)
        metrics.leases["granted" if isinstance(answer, Lease) else _refused(answer)].count += 1
        denial = answer if isinstance(answer, Verdict) else None
        return lease_response(answer, request.rules_id).SerializeToString(), denial

    async def settle_leases(self, request: pb.SettleLeasesRequest, caller: Caller) -> pb.SettleLeasesResponse:
        """Give back what is left of leases, in order."""
        _count(len(request.settlements), MOST_SETTLEMENTS, "settlements")
        asked = [settlement(one, f"settlements[{index}]") for index, one in enumerate(request.settlements)]
        given_back: list[int] = []
        for first in range(0, len(asked), _AT_ONCE):
            some = asked[first : first + _AT_ONCE]
            given_back += await asyncio.gather(*(self._settle_leases(one, caller) for one in some))
        return pb.SettleLeasesResponse(given_back=given_back)

    async def watch_epochs(
        self, requests: AsyncIterator[pb.WatchEpochsRequest], caller: Caller
    ) -> AsyncIterator[pb.WatchEpochsResponse]:
        """Tell each new epoch of the accounts that the requests name."""
        with self._watch_epochs.watcher() as watcher:
            reading = asyncio.create_task(self._read_watched(requests, watcher, caller))
            try:
                while (news := await watcher.news()) is not None:
                    told = [pb.AccountEpoch(account_id=each, epoch=epoch) for each, epoch in news.items()]
                    yield pb.WatchEpochsResponse(epochs=told)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read_watched(
        self, requests: AsyncIterator[pb.WatchEpochsRequest], watcher: Watcher, caller: Caller
    ) -> None:
        try:
            async for request in requests:
                watcher.forget(request.forget)
                await self._watch_epochs.add(watcher, request.watch, caller)
                watcher.acknowledge()
        except Exception as error:  # noqa: BLE001 - it is raised where the call is answered
            watcher.end(error)


def _refused(answer: Refused | Verdict) -> str:
    return "refused" if isinstance(answer, Refused) else "denied"


def _failed(result: Verdict | FormgateError | None) -> bool:
    """Tell whether a check could not be decided though nothing is wrong with it."""
    return isinstance(result, FormgateError) and not isinstance(result, InvalidArgumentError)


def _count(number: int, most: int, field: str) -> None:
    if not 1 <= number <= most:
        raise InvalidArgumentError(field, f"has {number} entries; 1 to {most} are allowed")
