from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from formgate import AsyncClient, Check
from formgate.errors import BrokenAnswerError, DeadlineError
from formgate.together import Together
from formgate.v1 import authorization_pb2 as pb
from formgate.verdict import Verdict
from formgate.wire import BATCH, CHECK, MOST
from tests.support.callers import KINDS, Caller, Scripted, scripted


@pytest.fixture
def server() -> Iterator[Scripted]:
    """A server that allows, and counts."""
    with scripted() as server:
        server.check = lambda request, _context: told(pb.CheckKeyRequest.FromString(request)).SerializeToString()
        server.batch = batch
        yield server


def told(request: pb.CheckKeyRequest) -> pb.CheckKeyResponse:
    """Allow, and say which key it was."""
    key = pb.CheckedKey(key_id="key_1")
    return pb.CheckKeyResponse(allowed=True, reason=pb.REASON_OK, http_status=200, message=request.key, key=key)


def batch(request: bytes, _context: Any) -> bytes:
    """Allow all."""
    requests = pb.BatchCheckKeysRequest.FromString(request).requests
    results = [pb.BatchCheckKeysResult(response=told(each)) for each in requests]
    return pb.BatchCheckKeysResponse(results=results).SerializeToString()


@pytest.fixture(params=KINDS)
def caller(request: pytest.FixtureRequest, server: Scripted) -> Iterator[Caller]:
    """A client of either kind."""
    with Caller(request.param, server.address, timeout=10) as caller:
        yield caller


def keys(verdicts: list[Verdict | BaseException]) -> list[str]:
    """Return which keys were answered, in order."""
    assert all(isinstance(verdict, Verdict) and verdict.allowed for verdict in verdicts), verdicts
    return [verdict.message for verdict in verdicts if isinstance(verdict, Verdict)]


def test_one_alone_goes_as_one(caller: Caller, server: Scripted) -> None:
    """A check with no other beside it is a CheckKey of its own, each time."""
    for number in range(5):
        assert caller.check(f"k{number}").message == f"k{number}"
    assert server.calls == [CHECK] * 5


def test_one_moment_goes_as_one_call(server: Scripted) -> None:
    """64 tasks that ask in the same turn of the loop are one BatchCheckKeys; each gets its own answer."""
    with Caller("asyncio", server.address, timeout=10) as caller:
        names = [f"k{number}" for number in range(64)]
        assert keys(caller.at_once([Check(name) for name in names])) == names
    assert server.calls == [BATCH]


def test_what_comes_while_a_call_is_under_way_goes_in_the_next(caller: Caller, server: Scripted) -> None:
    """While one call is under way the others wait for it, and go together: a few calls, not forty.

    How few depends on how closely the machine lets forty threads ask.
    """
    first = threading.Event()
    answer = server.check

    def slow(request: bytes, context: Any) -> bytes:
        first.set()
        time.sleep(0.003)  # within the patience of those who wait
        payload: bytes = answer(request, context)
        return payload

    server.check = slow
    names = [f"k{number}" for number in range(40)]
    assert sorted(keys(caller.at_once([Check(name) for name in names]))) == sorted(names)
    assert first.is_set() or caller.kind == "asyncio"
    assert len(server.calls) <= 34
    assert caller.counters["checks_in_batches"] >= 8


def test_a_call_that_hangs_holds_up_nobody(caller: Caller, server: Scripted) -> None:
    """A check whose call takes long delays those after it by some milliseconds only."""
    answer = server.check
    let_go = threading.Event()

    def hanging(request: bytes, context: Any) -> bytes:
        if pb.CheckKeyRequest.FromString(request).key == "slow":
            let_go.wait(10)
        payload: bytes = answer(request, context)
        return payload

    server.check = hanging
    caller.check("warm")
    slow = threading.Thread(target=caller.check, args=("slow",))
    slow.start()
    time.sleep(0.05)
    began = time.monotonic()
    assert caller.check("quick").message == "quick"
    took = time.monotonic() - began
    let_go.set()
    slow.join()
    assert took < 2


def test_each_check_has_its_own_deadline(caller: Caller, server: Scripted) -> None:
    """In one call with others, one that may take 0.1 s is denied after that; the patient ones get their answer."""
    let_go, under_way = threading.Event(), threading.Event()
    answer = server.check

    def hanging(request: bytes, context: Any) -> bytes:
        under_way.set()
        let_go.wait(10)
        payload: bytes = answer(request, context)
        return payload

    def hanging_batch(request: bytes, context: Any) -> bytes:
        let_go.wait(10)
        return batch(request, context)

    server.check, server.batch = hanging, hanging_batch
    outcomes: dict[str, Verdict] = {}

    def ask(name: str, timeout: float) -> None:
        outcomes[name] = caller.check(name, timeout=timeout)

    threads = [threading.Thread(target=ask, args=("long", 10.0))]
    threads[0].start()
    under_way.wait(10)
    for number in range(3):
        threads += [threading.Thread(target=ask, args=(f"short{number}", 0.1))]
        threads += [threading.Thread(target=ask, args=(f"long{number}", 10.0))]
    began = time.monotonic()
    for thread in threads[1:]:
        thread.start()
    for thread in threads[1::2]:
        thread.join()
    assert time.monotonic() - began < 5
    let_go.set()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 7
    for name, verdict in outcomes.items():
        if name.startswith("short"):
            assert isinstance(verdict.error, DeadlineError)
            assert not verdict
        else:
            assert verdict.message == name


def test_never_more_in_a_call_than_the_service_takes(server: Scripted) -> None:
    """2,500 checks of one moment go in calls of at most 1,000."""
    sizes = []

    def counted(request: bytes, context: Any) -> bytes:
        sizes.append(len(pb.BatchCheckKeysRequest.FromString(request).requests))
        return batch(request, context)

    server.batch = counted
    with Caller("asyncio", server.address, timeout=10) as caller:
        keys(caller.at_once([Check(f"k{number}") for number in range(2_500)], timeout=20))
    assert max(sizes) <= MOST
    assert sum(sizes) == 2_500


def test_who_waits_no_more_is_not_asked_for(server: Scripted) -> None:
    """A task that is cancelled takes nothing from the others of its call."""

    async def run() -> list[Any]:
        async with AsyncClient(server.address, timeout=10, leases=False) as client:
            tasks = [asyncio.create_task(client.check(f"k{number}")) for number in range(4)]
            await asyncio.sleep(0)
            tasks[1].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(run())
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert keys([outcomes[0], *outcomes[2:]]) == ["k0", "k2", "k3"]


@pytest.mark.parametrize("turns", range(6))
def test_a_check_alone_that_is_cancelled_holds_up_nobody(turns: int, server: Scripted) -> None:
    """Cancelled at any turn of the loop, it leaves nothing behind that the next check would wait for."""

    async def run() -> list[str]:
        async with AsyncClient(server.address, timeout=10, leases=False) as client:
            for _ in range(3):
                task = asyncio.create_task(client.check("gone"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert client._line is None or client._line.together._alone == 0
            assert client._line is None or client._line.together._under_way == 0
            return [(await client.check("k")).message, (await client.check("l")).message]

    assert asyncio.run(run()) == ["k", "l"]


@pytest.mark.parametrize("how", ["raises", "cancelled", "cancelled before it began"])
def test_nobody_waits_for_a_call_that_is_over(how: str) -> None:
    """Whatever ends the call of several checks ends all of them, as nonsense would; and the next call goes."""

    async def run() -> list[Any]:
        began = asyncio.Event()

        async def send(requests: list[bytes], seconds: float, *, again: bool) -> Any:
            assert (seconds > 0, again) == (True, False)
            if len(requests) == 1:
                return [BrokenAnswerError("the next")]
            began.set()
            if how == "raises":
                raise RuntimeError
            return await asyncio.sleep(60)

        together = Together(send)
        deadline = asyncio.get_running_loop().time() + 60
        asked = [asyncio.create_task(together(b"r", deadline)) for _ in range(3)]
        await asyncio.sleep(0)  # they ask, and then
        together._flush()
        if how == "cancelled":
            await began.wait()
        if how != "raises":
            (call,) = together._calls
            call.cancel()
        outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
        with pytest.raises(BrokenAnswerError, match="the next"):
            await asyncio.wait_for(together(b"r", deadline), 5)
        return outcomes

    outcomes = asyncio.run(run())
    assert [type(outcome) for outcome in outcomes] == [BrokenAnswerError] * 3


def test_what_is_queued_ends_with_its_deadline() -> None:
    """Even behind a call that never gives up its turn."""

    async def run() -> None:
        async def send(requests: list[bytes], seconds: float, *, again: bool) -> Any:
            raise AssertionError(requests, seconds, again)

        together = Together(send)
        together._under_way = 1
        with pytest.raises(DeadlineError):
            await asyncio.wait_for(together(b"r", asyncio.get_running_loop().time() + 0.05), 5)

    asyncio.run(run())


def test_a_close_lets_those_under_way_end(caller: Caller, server: Scripted) -> None:
    """Checks that were asked before close() get their answers; close() returns after them."""
    began, let_go = threading.Event(), threading.Event()
    answer = server.check

    def waiting(request: bytes, context: Any) -> bytes:
        began.set()
        let_go.wait(10)
        payload: bytes = answer(request, context)
        return payload

    server.check = waiting
    outcomes: list[Verdict] = []
    asking = threading.Thread(target=lambda: outcomes.append(caller.check("k")))
    asking.start()
    began.wait(10)
    threading.Timer(0.1, let_go.set).start()
    caller.close()
    asking.join(10)
    assert [bool(verdict) for verdict in outcomes] == [True]
