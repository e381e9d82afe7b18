from __future__ import annotations

import asyncio
from typing import Any

import hiredis
import pytest

from formgate_server.storage.redis.connection import Connection
from formgate_server.storage.redis.url import Address


class Recorder(asyncio.Transport):
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: Any) -> None:
        """Keep it."""
        self.written.append(bytes(data))

    def abort(self) -> None:
        """Be ended."""
        self.aborted = True


def opened(*, replicas: int = 0) -> tuple[Connection, Recorder]:
    """A connection over a recorder."""
    connection = Connection(Address("host", 1), timeout=5, most=1000, replicas=replicas)
    recorder = Recorder()
    connection.connection_made(recorder)
    return connection, recorder


async def test_what_comes_in_one_turn_of_the_loop_goes_out_in_one_write() -> None:
    """Any number of requests of one turn of the loop is one write, in the order in which they were made."""
    connection, recorder = opened()
    replies = [connection.ask("ECHO", number) for number in range(200)]
    assert recorder.written == []
    await asyncio.sleep(0)
    each = [b"*2\r\n$4\r\nECHO\r\n$%d\r\n%d\r\n" % (len(str(number)), number) for number in range(200)]
    assert recorder.written == [b"".join(each)]
    connection.data_received(b"".join(b":%d\r\n" % number for number in range(200)))
    assert await asyncio.gather(*replies) == list(range(200))
    connection.abort("done")


async def test_answers_may_come_in_any_pieces() -> None:
    """A byte at a time, answers are the same, each to its own request."""
    connection, _ = opened()
    replies = [connection.ask("GET", number) for number in range(3)]
    await asyncio.sleep(0)
    for byte in b"*2\r\n$3\r\na\r\n\r\n$-1\r\n" + b"-ERR no\r\n" + b"$0\r\n\r\n":
        connection.data_received(bytes([byte]))
    first, second, third = await asyncio.gather(*replies)
    assert first == [b"a\r\n", None]
    assert isinstance(second, hiredis.ReplyError)
    assert third == b""
    connection.abort("done")


@pytest.mark.parametrize(
    ("data", "why"), [(b"HTTP/1.1 200 OK\r\n", "does not speak"), (b"+OK\r\n+OK\r\n", "what was not asked")]
)
async def test_answers_that_do_not_fit_end_the_connection(data: bytes, why: str) -> None:
    """Bytes that are no answer, and one answer more than requests, end the connection: what follows is not trusted."""
    connection, recorder = opened()
    reply = connection.ask("PING")
    await asyncio.sleep(0)
    connection.data_received(data)
    assert recorder.aborted
    assert why in connection.why
    assert not connection.is_open
    assert reply.done()


async def test_what_was_not_written_is_told_apart_from_what_was() -> None:
    """At the end of a connection a request that was written may have been run; one that was not, was not."""

    class Told:
        writes = True
        sent = 0.0

        def __init__(self) -> None:
            self.told = ""

        def changed(self, reply: Any) -> bool:
            return True

        def answered(self, reply: Any) -> None:
            self.told = "answered"

        def lost(self, detail: str, *, again: bool = True) -> None:
            self.told = "lost"

        def unsent(self, detail: str) -> None:
            self.told = "unsent"

    connection, _ = opened()
    written, waiting = Told(), Told()
    connection.send(written, b"x")
    await asyncio.sleep(0)
    connection.send(waiting, b"y")
    connection.connection_lost(None)
    assert (written.told, waiting.told) == ("lost", "unsent")


class Check:
    """A script's request: its reply says how many units were charged."""

    writes = True

    def __init__(self) -> None:
        self.sent = asyncio.get_running_loop().time()
        self.told: Any = None

    def changed(self, reply: Any) -> bool:
        """See ``Entry``."""
        return bool(reply)

    def answered(self, reply: Any) -> None:
        """See ``Entry``."""
        self.told = reply

    def lost(self, detail: str, *, again: bool = True) -> None:
        """See ``Entry``."""
        self.told = "lost"

    def unsent(self, detail: str) -> None:
        """See ``Entry``."""
        self.told = "unsent"


@pytest.mark.parametrize(("replicated", "told"), [(1, 5), (0, "lost")])
async def test_what_changed_nothing_waits_for_no_replica(replicated: int, told: object) -> None:
    """A denial is told at once, and stays one where replicas are missing; what was charged counts once they have it."""
    connection, _ = opened(replicas=1)
    charged, denied = Check(), Check()
    connection.send(charged, b"x")
    connection.send(denied, b"y")
    await asyncio.sleep(0)
    connection.data_received(b":5\r\n:0\r\n")
    assert (charged.told, denied.told) == (None, 0)
    connection.data_received(b":%d\r\n" % replicated)
    assert (charged.told, denied.told) == (told, 0)
    connection.abort("done")
