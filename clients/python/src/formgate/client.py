"""The client for threads."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from formgate.answers import Outcome, error_of_call, read_batch, read_check
from formgate.asking import Check
from formgate.combining import Combining
from formgate.common import Common, Options, seconds_of
from formgate.errors import ClosedError, DeadlineError, FormgateError, UnavailableError
from formgate.forks import Forks
from formgate.rules.grants import Level
from formgate.usage import UsageFields
from formgate.verdict import Environment, Verdict
from formgate.wire import BATCH, CHECK, MOST, MOST_BYTES, repeated


class Client:
    """Asks the service, from any number of threads.

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
        self._lock = threading.Lock()
        Forks.of(self)

    @property
    def counters(self) -> dict[str, int]:
        """What was counted so far; see ``formgate.counters``."""
        return self._common.counters.snapshot()

    def check(  # noqa: PLR0913 - as many as a check has
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
        timeout: float | None = None,
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
        return self._decide(check, timeout)

    def check_all(self, checks: Iterable[Check], *, timeout: float | None = None) -> list[Verdict]:
        """Return the verdict on each, in order. One that can not be asked is denied, and says why in ``error``."""
        checks = list(checks)
        line = self._connected()
        deadline = time.monotonic() + seconds_of(timeout, self._common.timeout)
        outcomes: dict[int, Outcome] = {}
        requests: dict[int, bytes] = {}
        for index, check in enumerate(checks):
            leased = self._common.leased(check)
            if leased is not None:
                outcomes[index] = leased
                continue
            try:
                requests[index] = self._common.request(check)
            except FormgateError as error:
                outcomes[index] = error
        outcomes |= self._ask_all(line, requests, deadline)
        return [self._common.one_of_many(check, outcomes[index]) for index, check in enumerate(checks)]

    def _decide(self, check: Check, timeout: float | None) -> Verdict:
        line = self._connected()
        deadline = time.monotonic() + seconds_of(timeout, self._common.timeout)
        request = self._common.request(check)
        try:
            verdict = self._ask(line, request, deadline)
        except FormgateError as error:
            return self._common.undecided(check, error)
        self._common.answered(check, verdict)
        return verdict

    def _ask(self, line: _Line, request: bytes, deadline: float) -> Verdict:
        attempt = 1
        while True:
            try:
                return line.together(request, deadline, again=attempt > 1)
            except UnavailableError as error:
                pause = self._common.retrying.pause(error, attempt, deadline - time.monotonic())
                if pause is None:
                    raise
            self._common.counters.add("retries")
            time.sleep(pause)
            attempt += 1

    def _ask_all(self, line: _Line, requests: dict[int, bytes], deadline: float) -> dict[int, Outcome]:
        """Ask in as few calls as can be, and again what was not answered while there is time."""
        outcomes: dict[int, Outcome] = {}
        waiting, attempt = requests, 1
        while True:
            for part in _parts(waiting):
                came = line.attempt(list(part.values()), deadline - time.monotonic(), again=attempt > 1)
                outcomes.update(zip(part, came, strict=True))
            errors = {index: error for index in waiting if isinstance(error := outcomes[index], UnavailableError)}
            left = deadline - time.monotonic()
            pauses = {index: self._common.retrying.pause(error, attempt, left) for index, error in errors.items()}
            waiting = {index: requests[index] for index, pause in pauses.items() if pause is not None}
            if not waiting:
                return outcomes
            self._common.counters.add("retries", len(waiting))
            time.sleep(max(pauses[index] or 0.0 for index in waiting))
            attempt += 1

    def _connected(self) -> _Line:
        with self._lock:
            if self._closed:
                raise ClosedError("the client is closed")
            if self._line is None:
                self._line = _Line(self._common)
            return self._line

    def record(self, key_id: str, units: int = 1, **fields: Unpack[UsageFields]) -> str:
        """Take a usage record and return its id; it is sent in the background. See ``formgate.recorder``."""
        if self._closed:
            raise ClosedError("the client is closed")
        return self._common.recorder().record(key_id, units, **fields)

    def close(self) -> None:
        """Take no more checks, let those under way end, and disconnect."""
        with self._lock:
            self._closed = True
            line, self._line = self._line, None
            leases, self._leases = self._leases, None
        if leases is not None:
            leases.close()
        if line is not None:
            line.close()
        self._common.close_recorder()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def after_fork(self) -> None:
        """Forget, in a child, the connection, which is the parent's."""
        self._lock = threading.Lock()
        self._line = None
        self._common.after_fork()


class _Line:
    """A connection, and who is on it."""

    def __init__(self, common: Common) -> None:
        self.together = Combining(self.send)
        self._common = common
        self._metadata = common.connection.metadata
        self._channel = common.connection.channel()
        self._check: Any = self._channel.unary_unary(CHECK)  # bytes in, bytes out: read by ourselves, strictly
        self._batch: Any = self._channel.unary_unary(BATCH)

    def send(self, requests: list[bytes], seconds: float, *, again: bool) -> list[Outcome]:
        """Send checks in one call. Raises FormgateError where all of it failed."""
        common = self._common
        common.counters.add("calls")
        try:
            if len(requests) == 1:
                answer = self._check(requests[0], timeout=seconds, metadata=self._metadata, wait_for_ready=again)
                outcomes: list[Outcome] = [read_check(answer)]
            else:
                common.counters.add("batches")
                common.counters.add("checks_in_batches", len(requests))
                answer = self._batch(repeated(requests), timeout=seconds, metadata=self._metadata, wait_for_ready=again)
                outcomes = read_batch(answer, len(requests))
        except grpc.RpcError as error:
            failure = error_of_call(error)
            if isinstance(failure, UnavailableError):
                common.retrying.failed()
            raise failure from None
        except ValueError:  # what grpc says of a channel that is closed
            raise ClosedError("the client was closed") from None
        common.retrying.succeeded()
        return outcomes

    def attempt(self, requests: list[bytes], seconds: float, *, again: bool) -> list[Outcome]:
        """Send checks in one call, and return what came of each."""
        if seconds <= 0:
            return [DeadlineError("no answer within the deadline") for _ in requests]
        try:
            return self.send(requests, seconds, again=again)
        except FormgateError as error:
            return [copy.copy(error) for _ in requests]

    def close(self) -> None:
        """Wait for what is under way, and disconnect."""
        self.together.finish()
        self._channel.close()


def _parts(requests: dict[int, bytes]) -> Iterator[dict[int, bytes]]:
    """Yield as many at a time as go in one call."""
    part: dict[int, bytes] = {}
    size = 0
    for index, request in requests.items():
        size += len(request) + 8
        if part and (len(part) >= MOST or size > MOST_BYTES):
            yield part
            part, size = {}, len(request) + 8
        part[index] = request
    if part:
        yield part
