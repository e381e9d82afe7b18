"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from formgate.answers import Outcome, error_of_call, read_batch, read_check
from formgate.asking import Check
from formgate.common import Common, Options, seconds_of
from formgate.errors import ClosedError, FormgateError, UnavailableError
from formgate.forks import Forks
from formgate.rules.grants import Level
from formgate.together import Together
from formgate.usage import UsageFields
from formgate.verdict import Environment, Verdict
from formgate.wire import BATCH, CHECK, repeated


class AsyncClient:
    """Asks the service, from one event loop.

    Checks of the same moment travel together; one alone goes at once. Nothing connects before the first check. After a
    fork the child connects anew.
    """

    def __init__(
        self, address: str | Sequence[str] | None = None, token: str | None = None, **options: Unpack[Options]
    ) -> None:
        """Connect to ``address``, HOST:PORT or several of them, with ``token``, that of the calling service.

        What is None comes from ``FORMGATE_ADDRESS`` and ``FORMGATE_TOKEN``. Raises ValueError for what makes no sense.
        """
        self._common = Common(address, token, options)
        self._leases = self._common.leases
        self._line: _Line | None = None
        self._closed = False
        Forks.of(self)

    @property
    def counters(self) -> dict[str, int]:
        """What was counted so far; see ``formgate.counters``."""
        return self._common.counters.snapshot()

    async def check(  # noqa: PLR0913 - as many as a check has
        self,
        key: str | None = None,
        *,
        authorization: str | None = None,
        permissions: Sequence[str] = (),
        resources: Sequence[str] = (),
        api_group: str = "",
        environment: Environment | str | None = None,
        http_method: str = "",
        source_ip: str = "",
        cost: int = 1,
        request_id: str = "",
        policy: str = "",
        tags: Mapping[str, str] | None = None,
        explain: bool = False,
        strict: bool = False,
        level: Level | str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - also what the service is told
    ) -> Verdict:
        """Return the verdict; where the service does not answer, that of the fail mode.

        Raises FormgateError where the call is wrong, its token not known, or the client closed.
        """
        leases = self._leases
        if leases is not None and not (strict or explain or request_id or tags):
            shape = (permissions, resources, api_group, environment, http_method, source_ip, policy)
            if (leased := leases.decide(key, authorization, shape, cost)) is not None:
                return leased
        check = Check(
            key,
            authorization,
            permissions,
            resources,
            api_group,
            environment,
            http_method,
            source_ip,
            cost,
            request_id,
            policy,
            tags,
            explain,
            strict,
            level,
        )
        return await self._decide(check, timeout)

    async def check_all(
        self,
        checks: Iterable[Check],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the same
    ) -> list[Verdict]:
        """Return the verdict on each, in order. One that can not be asked is denied, and says why in ``error``."""
        checks = list(checks)
        line = self._connected()
        deadline = line.loop.time() + seconds_of(timeout, self._common.timeout)
        outcomes = await asyncio.gather(*(self._outcome(line, check, deadline) for check in checks))
        return [self._common.one_of_many(check, outcome) for check, outcome in zip(checks, outcomes, strict=True)]

    async def _decide(self, check: Check, timeout: float | None) -> Verdict:  # noqa: ASYNC109 - the same
        line = self._connected()
        deadline = line.loop.time() + seconds_of(timeout, self._common.timeout)
        request = self._common.request(check)
        try:
            verdict = await self._ask(line, request, deadline)
        except FormgateError as error:
            return self._common.undecided(check, error)
        self._common.answered(check, verdict)
        return verdict

    async def _outcome(self, line: _Line, check: Check, deadline: float) -> Outcome:
        leased = self._common.leased(check)
        if leased is not None:
            return leased
        try:
            return await self._ask(line, self._common.request(check), deadline)
        except FormgateError as error:
            return error

    async def _ask(self, line: _Line, request: bytes, deadline: float) -> Verdict:
        attempt = 1
        while True:
            try:
                return await line.together(request, deadline, again=attempt > 1)
            except UnavailableError as error:
                pause = self._common.retrying.pause(error, attempt, deadline - line.loop.time())
                if pause is None:
                    raise
            self._common.counters.add("retries")
            await asyncio.sleep(pause)
            attempt += 1

    def _connected(self) -> _Line:
        if self._closed:
            raise ClosedError("the client is closed")
        if self._line is None:
            self._line = _Line(self._common)
        elif self._line.loop is not asyncio.get_running_loop():
            raise RuntimeError("an AsyncClient belongs to one event loop; make another for this one")
        return self._line

    def record(self, key_id: str, units: int = 1, **fields: Unpack[UsageFields]) -> str:
        """Take a usage record and return its id; it is sent in the background. See ``formgate.recorder``."""
        if self._closed:
            raise ClosedError("the client is closed")
        return self._common.recorder().record(key_id, units, **fields)

    async def close(self) -> None:
        """Take no more checks, let those under way end, and disconnect."""
        self._closed = True
        line, self._line = self._line, None
        leases, self._leases = self._leases, None
        if leases is not None:
            await asyncio.to_thread(leases.close)
        if line is not None:
            await line.close()
        await asyncio.to_thread(self._common.close_recorder)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def after_fork(self) -> None:
        """Forget, in a child, the connection, which is the parent's."""
        self._line = None
        self._common.after_fork()


class _Line:
    """A connection of one loop."""

    def __init__(self, common: Common) -> None:
        self.loop = asyncio.get_running_loop()
        self.together = Together(self._send)
        self._common = common
        self._metadata = common.connection.metadata
        self._channel = common.connection.aio_channel()
        self._check: Any = self._channel.unary_unary(CHECK)  # bytes in, bytes out: read by ourselves, strictly
        self._batch: Any = self._channel.unary_unary(BATCH)

    async def _send(self, requests: list[bytes], seconds: float, *, again: bool) -> list[Outcome]:
        common = self._common
        common.counters.add("calls")
        try:
            if len(requests) == 1:
                answer = await self._check(requests[0], timeout=seconds, metadata=self._metadata, wait_for_ready=again)
                outcomes: list[Outcome] = [read_check(answer)]
            else:
                common.counters.add("batches")
                common.counters.add("checks_in_batches", len(requests))
                answer = await self._batch(
                    repeated(requests), timeout=seconds, metadata=self._metadata, wait_for_ready=again
                )
                outcomes = read_batch(answer, len(requests))
        except grpc.RpcError as error:
            failure = error_of_call(error)
            if isinstance(failure, UnavailableError):
                common.retrying.failed()
            raise failure from None
        except grpc.aio.UsageError:  # what grpc says of a channel that is closed
            raise ClosedError("the client was closed") from None
        common.retrying.succeeded()
        return outcomes

    async def close(self) -> None:
        """Wait for what is under way, and disconnect."""
        await self.together.finish()
        await self._channel.close()
