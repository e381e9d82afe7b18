"""Calls that go on, without a wire: how their ends are counted and told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

import grpc
import pytest

from formgate.v1 import authorization_pb2 as pb
from formgate_server import metrics
from formgate_server.core.errors import UnavailableError
from formgate_server.core.model import Caller, ServiceRole
from formgate_server.rpc.dispatch import Call, Dispatch, RpcError
from formgate_server.rpc.line import Ending, Lines
from formgate_server.rpc.methods import Method
from formgate_server.wire import grpcio

CHECKERS = frozenset({ServiceRole.CHECKER})


class Told(NamedTuple):
    """A call's line."""

    method: str
    code: str
    reason: str


class Kept(Lines):
    """Lines that are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Told] = []

    def tell(self, ending: Ending) -> None:
        """Keep it."""
        self.told.append(Told(ending.called.path, ending.code, ending.reason))


async def _authenticate(_authorization: str) -> Caller:
    return Caller("tok_1", ServiceRole.CHECKER)


async def _answers(requests: AsyncIterator[Any], _caller: Caller) -> AsyncIterator[pb.WatchEpochsResponse]:
    """Answer once for each request, and wait for ever."""
    async for _ in requests:
        yield pb.WatchEpochsResponse()
    await asyncio.Event().wait()


async def _asked() -> AsyncIterator[bytes]:
    for _ in range(2):
        yield b""


@pytest.fixture
def lines() -> Kept:
    """What is told."""
    return Kept()


@pytest.fixture
def dispatch(lines: Kept) -> Dispatch:
    """Answers a checker."""
    authenticate: Any = _authenticate
    return Dispatch(authenticate, lines=lines)


@pytest.fixture
def method(request: pytest.FixtureRequest) -> Method:
    """A method that goes on, whose counts are of this test only."""
    return Method(f"/x/{request.node.name}", pb.WatchEpochsRequest, CHECKERS, _answers, is_stream=True)


def counted(method: Method) -> dict[str, float]:
    """Return how often it was called, by code, and as ``timed`` how many of the calls were timed."""
    metrics.write()
    name = method.path.rpartition("/")[2]
    samples = [
        sample
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.labels.get("method") == name
    ]
    codes = {each.labels["code"]: each.value for each in samples if each.name == "formgate_rpc_calls_total"}
    (timed,) = [each.value for each in samples if each.name == "formgate_rpc_duration_seconds_count"]
    return {code: count for code, count in {**codes, "timed": timed}.items() if count}


async def test_who_has_enough_has_not_failed(dispatch: Dispatch, lines: Kept, method: Method) -> None:
    """Between two answers: it is OK, and as long as it was it is no time that a call took."""
    async with aclosing(dispatch.stream(method, Call({}), _asked())) as answers:
        assert await anext(answers) == b""
    assert lines.told == [Told(method.path, "OK", "OK")]
    assert counted(method) == {"OK": 1}


async def test_a_connection_that_ends_is_no_failure(dispatch: Dispatch, lines: Kept, method: Method) -> None:
    """While there is nothing to tell the call is cancelled, as gRPC does when a connection is old."""

    async def read() -> None:
        async with aclosing(dispatch.stream(method, Call({}), _asked())) as answers:
            async for _ in answers:
                read_so_far.release()

    read_so_far = asyncio.Semaphore(0)
    reading = asyncio.create_task(read())
    for _ in range(2):
        await read_so_far.acquire()
    reading.cancel()
    with suppress(asyncio.CancelledError):
        await reading
    assert lines.told == [Told(method.path, "OK", "OK")]
    assert counted(method) == {"OK": 1}


async def test_what_fails_is_told(dispatch: Dispatch, lines: Kept, method: Method) -> None:
    """A stream that can not go on ends with its error."""

    async def fail(_requests: AsyncIterator[Any], _caller: Caller) -> AsyncIterator[pb.WatchEpochsResponse]:
        yield pb.WatchEpochsResponse()
        raise UnavailableError("away", reason="STORE_UNAVAILABLE")

    failing = method._replace(handle=fail)
    with pytest.raises(RpcError):
        async for _ in dispatch.stream(failing, Call({}), _asked()):
            pass
    assert lines.told == [Told(method.path, "UNAVAILABLE", "STORE_UNAVAILABLE")]
    assert counted(method) == {"UNAVAILABLE": 1}


class _AbortedError(Exception):
    """As gRPC ends a call."""


class _DeafContext:
    """A caller that reads nothing."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None

    def invocation_metadata(self) -> tuple[()]:
        """Return nothing."""
        return ()

    def peer(self) -> str:
        """Return nobody."""
        return ""

    def set_trailing_metadata(self, _metadata: object) -> None:
        """Take what goes with the status."""

    async def write(self, _answer: bytes) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    async def abort(self, code: grpc.StatusCode, _message: str) -> None:
        """End the call."""
        self.code = code
        raise _AbortedError


async def test_who_does_not_read_is_a_failure(
    dispatch: Dispatch, lines: Kept, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told UNAVAILABLE, and so are the log and the metrics."""
    monkeypatch.setattr(grpcio, "_SLOWEST_READER_SECONDS", 0.01)
    context = _DeafContext()
    with pytest.raises(_AbortedError):
        await grpcio._streaming(dispatch, method)(_asked(), context)
    assert context.code is grpc.StatusCode.UNAVAILABLE
    assert lines.told == [Told(method.path, "UNAVAILABLE", "READS_TOO_SLOWLY")]
    assert counted(method) == {"UNAVAILABLE": 1}
