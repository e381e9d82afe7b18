"""gRPC's wake-ups: one for all that has happened."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing
from functools import partial
from unittest.mock import Mock

import grpc
import pytest
import uvloop

from formgate_server.wire import wakeups

CALLS = 200
EVENTS_A_CALL = 4
"""At a server: it has come, its message is there, it is answered, it has ended."""


class Echo(grpc.GenericRpcHandler):
    """Answers each call with what it was sent."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Handle any method."""
        return grpc.unary_unary_rpc_method_handler(self._say)

    async def _say(self, request: bytes, _context: object) -> bytes:
        return request


async def answers_of(calls: int) -> list[bytes]:
    """Return what a server answers to so many calls at once."""
    server = grpc.aio.server(handlers=[Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/any/method")
            async with asyncio.timeout(60):
                return list(await asyncio.gather(*(call(b"%d" % number) for number in range(calls))))
    finally:
        await server.stop(None)


def test_events_that_have_come_together_are_one_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many calls at once all are answered, and the loop is woken less often than something happens."""
    wake = Mock(side_effect=wakeups.wake)
    monkeypatch.setattr(wakeups, "wake", wake)
    answers = uvloop.run(answers_of(CALLS), loop_factory=wakeups.EventLoop)
    assert answers == [b"%d" % number for number in range(CALLS)]
    assert 0 < wake.call_count < CALLS * EVENTS_A_CALL


@pytest.mark.parametrize("waiting", [1, 2, 100])
def test_all_wake_ups_are_taken_before_what_woke_is_read(waiting: int) -> None:
    """The reader finds the one byte that it takes; what comes from there on wakes the loop again."""
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        ours.settimeout(0)
        theirs.send(b"1" * waiting)
        found = []

        def read() -> None:
            found.append(ours.recv(waiting))
            theirs.send(b"2")

        wakeups.wake(ours, read)
        assert found == [b"1"]
        assert ours.recv(waiting) == b"2"


def test_nothing_is_read_where_another_loop_has_taken_the_wake_ups() -> None:
    """It has read what there was, too."""
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        ours.settimeout(0)
        read = Mock()
        wakeups.wake(ours, read)
        read.assert_not_called()


def test_other_sockets_are_read_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only gRPC's wake-ups are taken together."""
    wake = Mock()
    monkeypatch.setattr(wakeups, "wake", wake)

    async def read() -> None:
        ours, theirs = socket.socketpair()
        with closing(ours), closing(theirs):
            readable = asyncio.Event()
            asyncio.get_running_loop().add_reader(ours, partial(readable.set))
            theirs.send(b"1")
            await readable.wait()
            asyncio.get_running_loop().remove_reader(ours)

    uvloop.run(read(), loop_factory=wakeups.EventLoop)
    wake.assert_not_called()
