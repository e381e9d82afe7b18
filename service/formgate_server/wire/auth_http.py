"""A listener of its own for gateways that ask over HTTP: GET without a body; what is not plain ends the connection.

HTTP/1.1 is read by httptools (llhttp, the parser of Node.js), which refuses what two readers could read in two ways.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple, TypeAlias, cast

import httptools

from formgate_server.core.policy import HttpDenial

Answer: TypeAlias = Callable[[str, Mapping[str, str], str], Awaitable[HttpDenial]]
"""Answers ``GET target`` with these headers, by name in lower case, from that peer, such as ``ipv4:192.0.2.1:7``."""

_MOST_HEAD_BYTES = 32 * 1024
_MOST_HEADERS = 100
_MOST_WAITING = 64
_MOST_CONNECTIONS = 10_000
_HEAD_SECONDS = 10.0
_IDLE_SECONDS = 90.0
"""Longer than gateways keep an idle connection: they close it, and never send into one that we just closed."""

_UNREAD_SECONDS = 10.0
"""How long an answer waits for whoever asked and does not read it."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name: a token (RFC 9110, 5.6.2)."""

_FRAMING = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class _Asked(NamedTuple):
    """A request, or (``target`` None) the ``status`` that one was refused with."""

    target: str | None
    headers: Mapping[str, str]
    keep_alive: bool
    status: int = 0

    def __repr__(self) -> str:
        """Show no secret."""
        return f"_Asked(status={self.status!r})"


class AuthHttpServer:
    """Takes connections of gateways."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._open: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, address: str, *, shared: bool = False) -> int:
        """Listen on HOST:PORT (port 0: any free one) and return the port. Raises OSError where it is taken."""
        host, _, port = address.rpartition(":")
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Connection(self._answer, self._open), host.strip("[]"), int(port), reuse_port=shared
            )
        except OSError as error:
            message = f"can not listen on {address}: {error.strerror}"
            raise OSError(message) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def drain(self, grace: float, hurry: asyncio.Event) -> None:
        """Take no new connections; answer what has been asked within ``grace`` seconds, not when ``hurry`` is set."""
        assert self._server is not None, "never started"  # noqa: S101 - by whoever drains it
        self._server.close()
        for connection in list(self._open):
            connection.finish()
        waiting = [asyncio.create_task(hurry.wait()), asyncio.create_task(self._emptied())]
        await asyncio.wait(waiting, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        for connection in list(self._open):
            connection.abort()

    async def _emptied(self) -> None:
        for connection in list(self._open):
            await connection.ended.wait()


class _Connection(asyncio.Protocol):
    """One connection: what is asked waits in line and is answered in order."""

    def __init__(self, answer: Answer, connections: set[_Connection]) -> None:
        self._answer = answer
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Asked] = deque()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._closing = False
        self.ended = asyncio.Event()
        self._head_bytes = 0
        self._begin()

    def _begin(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._count = 0
        self._size = 0
        self._refused = 0

    # The transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass
        self._peer = _peer(transport.get_extra_info("peername"))
        self._connections.add(self)
        if len(self._connections) > _MOST_CONNECTIONS:
            self.abort()
            return
        self._await_within(_HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the library's name
        self._connections.discard(self)
        self.ended.set()
        self._closing = True
        self._writable.set()
        if self._timer is not None:
            self._timer.cancel()
        self._is_read()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()
        self._must_be_read()

    def resume_writing(self) -> None:
        self._writable.set()
        if not self._transport.is_closing():
            self._is_read()

    def _must_be_read(self) -> None:
        """End the connection by force if what it is owed is not read in time."""
        if self._unread is None:
            self._unread = self._loop.call_later(_UNREAD_SECONDS, self.abort)

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _close(self) -> None:
        """End it when all is read."""
        self._transport.close()
        self._must_be_read()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(400)
        else:
            if self._head_bytes > _MOST_HEAD_BYTES:
                self._refuse(431)
            elif len(self._waiting) > _MOST_WAITING:
                self.abort()

    # The parser.

    def on_message_begin(self) -> None:
        self._begin()
        self._await_within(_HEAD_SECONDS)

    def on_url(self, url: bytes) -> None:
        if self._fits(len(url)):
            self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        if not self._fits(len(name) + len(value)) or self._count > _MOST_HEADERS:
            self._refused = 431
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def _fits(self, size: int) -> bool:
        """Count what a head has; it may come whole, with others in one read."""
        self._size += size
        if self._size > _MOST_HEAD_BYTES:
            self._refused = 431
        return not self._refused

    def on_headers_complete(self) -> None:
        if self._parser.get_method() != b"GET":
            self._refused = self._refused or 405
        elif self._headers.get("content-length", "0") != "0" or "transfer-encoding" in self._headers:
            self._refused = self._refused or 413

    def on_message_complete(self) -> None:
        if self._closing:
            return
        if self._refused:
            self._refuse(self._refused)
            return
        self._head_bytes = 0
        target = self._target.decode("latin-1")
        self._put(_Asked(target, self._headers, self._parser.should_keep_alive()))

    # Answering.

    def _refuse(self, status: int) -> None:
        """Refuse what can not be read, after all that was asked before it, and read no more."""
        if not self._closing:
            self._closing = True
            self._put(_Asked(None, {}, keep_alive=False, status=status))

    def _put(self, asked: _Asked) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.append(asked)
        if self._task is None:
            self._task = self._loop.create_task(self._work())

    async def _work(self) -> None:
        while self._waiting:
            asked = self._waiting.popleft()
            if asked.target is None:
                answer = HttpDenial(asked.status, (), b"")
            else:
                answer = await self._answer(asked.target, asked.headers, self._peer)
            await self._writable.wait()
            if self._transport.is_closing():
                return
            keep_alive = asked.keep_alive and not self._closing
            self._transport.write(_written(answer, keep_alive=keep_alive))
            if not asked.keep_alive:
                self._closing = True
                self._close()
                return
        self._task = None
        if self._closing:
            self._close()
        else:
            self._await_within(_IDLE_SECONDS)

    def _await_within(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self.finish)

    def finish(self) -> None:
        """Answer what has been asked, and no more."""
        self._closing = True
        if self._task is None:
            self._close()

    def abort(self) -> None:
        """End it at once."""
        self._closing = True
        self._transport.abort()


def _peer(address: tuple[str, int] | tuple[str, int, int, int] | None) -> str:
    """Return an address as gRPC writes it; empty: the connection is over already."""
    if not address:
        return ""
    host, port = address[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def is_name(name: str) -> bool:
    """Tell whether ``name`` can be a header's."""
    return _NAME.fullmatch(name) is not None


def _written(answer: HttpDenial, *, keep_alive: bool) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Other')}"]
    for name, value in answer.headers:
        if is_name(name) and name.lower() not in _FRAMING and value.isprintable():  # a line is one line, of one header
            lines.append(f"{name}: {value}")
    lines += [f"content-length: {len(answer.body)}", f"connection: {'keep-alive' if keep_alive else 'close'}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + answer.body
