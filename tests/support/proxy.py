"""A TCP proxy of the tests' own, to put between two real parts what networks do to them.

::

    with Proxy(server.port) as proxy:   # listens on proxy.port, and goes on to 127.0.0.1:server.port
        proxy.delay = 0.1               # seconds, each way
        proxy.stall()                   # half-open: connections stand, nothing passes, new ones get no answer
        proxy.pass_on()                 # all is well again (what was stalled is lost, as are its connections)
        proxy.swallow_answers()         # requests arrive, answers do not
        proxy.truncate_answers(100)     # after that many bytes of answers, cut
        proxy.truncate_requests(100)    # the same the other way
        proxy.cut()                     # reset all connections; new ones are taken
        proxy.refuse()                  # cut, and take none until pass_on()

It runs in a thread of its own, so that tests with and without asyncio use it alike. With ``tls`` it is the end of TLS
towards whoever connects.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

_CHUNK = 65_536


class Proxy:
    """A proxy. Bytes that are on their way keep their order and, but for the faults asked for, all arrive."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.delay = 0.0
        """Seconds that bytes take longer, each way."""
        self.port = 0
        self.accepted = 0
        """How many connections came so far."""
        self._to = port
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._stalled = False
        self._swallowing = False
        self._answers_left: int | None = None
        self._requests_left: int | None = None

    # Faults.

    def cut(self) -> None:
        """Reset all connections."""
        self._run(self._cut())

    def refuse(self) -> None:
        """Reset all connections and take no new ones."""
        self._run(self._refuse())

    def stall(self) -> None:
        """Let nothing pass any more."""
        self._stalled = True

    def swallow_answers(self) -> None:
        """Let requests pass, and lose their answers."""
        self._swallowing = True

    def truncate_answers(self, most: int) -> None:
        """Let so many bytes of answers pass, then reset all connections, once."""
        self._answers_left = most

    def truncate_requests(self, most: int) -> None:
        """Let so many bytes of requests pass, then reset all connections, once."""
        self._requests_left = most

    def pass_on(self) -> None:
        """Be well again, for new connections."""
        spoilt = self._stalled or self._swallowing
        self._stalled = self._swallowing = False
        self._answers_left = self._requests_left = None
        if spoilt:
            self.cut()
        self._run(self._listen())

    def go_to(self, port: int) -> None:
        """Go on to another server, with new connections."""
        self._to = port
        self.cut()

    # Its life.

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        done: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        for writer in self._writers:
            with contextlib.suppress(AttributeError):  # Python 3.11.2: one of TLS that was aborted may not be again
                writer.transport.abort()
        self._writers.clear()

    async def _refuse(self) -> None:
        if self._server is not None:
            for listener in self._server.sockets:
                self._loop.remove_reader(listener.fileno())
            await asyncio.sleep(0.01)  # what was just taken begins: a server that is closed must not be told of it
            self._server.close()
            self._server = None
        await self._cut()

    async def _close(self) -> None:
        await self._refuse()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._cut()
        await asyncio.sleep(0)  # transports end a turn after they were told to

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except (OSError, asyncio.CancelledError):  # cancelled by _close, which waits for it: it need not tell
            writer.transport.abort()
            return
        self._writers.add(server_writer)
        if writer.transport.is_closing():  # it was cut meanwhile
            server_writer.transport.abort()
            return
        for source, sink, on_pass in ((reader, server_writer, self._request), (server_reader, writer, self._answer)):
            pump = asyncio.create_task(self._pump(source, sink, on_pass))
            self._pumps.add(pump)  # the loop alone does not keep it
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, on_pass: Callable[[bytes], bytes]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if passed := on_pass(data):
                    sink.write(passed)
                    await sink.drain()
                if 0 in (self._answers_left, self._requests_left):
                    self._answers_left = self._requests_left = None
                    await asyncio.sleep(0.01)  # so that what passed has left
                    await self._cut()
        if not self._stalled:  # else the other side is not to know
            sink.close()  # and stays among the writers: it may have more to write than its other side will ever read

    def _request(self, data: bytes) -> bytes:
        if self._stalled:
            return b""
        if self._requests_left is not None:
            data = data[: self._requests_left]
            self._requests_left -= len(data)
        return data

    def _answer(self, data: bytes) -> bytes:
        if self._stalled or self._swallowing:
            return b""
        if self._answers_left is not None:
            data = data[: self._answers_left]
            self._answers_left -= len(data)
        return data
