"""New epochs, told from process to process: by publish and subscribe, at once.

Nothing depends on it but how soon a lease ends that a change has made worthless: what is lost here is found by the poll
of the changes, and a lease ends by itself (docs/adr/0013).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import hiredis

from formgate_server.core.errors import UnavailableError
from formgate_server.storage.redis.client import RedisClient
from formgate_server.storage.redis.connection import NOT_YET, Connection
from formgate_server.storage.redis.meeting import NotReadyError, Options, connected, log_in
from formgate_server.storage.redis.preflight import primaries
from formgate_server.storage.redis.url import parse_url

_CHANNEL = "fg:epochs"
_HEARTBEAT = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class _Subscription(Connection):
    """A connection on which messages come between the answers."""

    on_message: Callable[[bytes], None]

    def data_received(self, data: bytes) -> None:
        """Hand out messages and answers."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not NOT_YET:
                self._take(reply)
        except hiredis.ProtocolError:
            self.abort("it does not speak Redis' protocol")

    def _take(self, reply: Any) -> None:  # noqa: ANN401 - a reply may be anything
        if isinstance(reply, list) and reply[0] == b"message":
            self.on_message(reply[2])
        elif self._in_flight:
            self._in_flight.popleft().answered(reply)
        else:
            self.abort("it answered what was not asked")


class RedisNews:
    """Tells new epochs to all processes that use this Redis, and hears of theirs."""

    def __init__(
        self, url: str, client: RedisClient, timeout: float, on_epoch: Callable[[str, int], None], prefix: str = ""
    ) -> None:
        """Speak through ``client``, listen on a connection of its own; ``on_epoch`` is told what is heard."""
        self._options = Options(parse_url(url), timeout)
        self._client = client
        self._on_epoch = on_epoch
        self._channel = prefix + _CHANNEL
        self._telling: set[asyncio.Task[None]] = set()
        self.listening = asyncio.Event()
        """Whether messages come in at present."""

    def tell(self, account_id: str, epoch: int) -> None:
        """Tell the others, soon; where that fails, they find out by themselves."""
        task = asyncio.create_task(self._tell(account_id, epoch))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, account_id: str, epoch: int) -> None:
        try:
            await self._client.command("PUBLISH", self._channel, f"{account_id} {epoch}")
        except UnavailableError:
            return

    async def listen(self) -> None:
        """Listen for ever; a connection that ends is made anew."""
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._listen()
                pause = _FIRST_PAUSE
            except (OSError, NotReadyError, TimeoutError):
                pause = min(_LONGEST_PAUSE, 2 * pause)
            finally:
                self.listening.clear()
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - so that not all come at once

    async def _listen(self) -> None:
        """Listen until the connection ends."""
        address = random.choice(await primaries(self._options))  # noqa: S311 - in a cluster any one hears of all
        async with asyncio.timeout(self._options.timeout):
            connection = await connected(address, self._options, _Subscription)
        try:
            assert isinstance(connection, _Subscription)  # noqa: S101 - for the type checker
            connection.on_message = self._heard
            closed = asyncio.Event()
            connection.on_close = closed.set
            await log_in(connection, self._options.target.login)
            answer = await connection.ask("SUBSCRIBE", self._channel)
            if isinstance(answer, hiredis.ReplyError):
                message = "the server lets this user not subscribe"
                raise NotReadyError(message)
            self.listening.set()
            while connection.is_open:
                connection.ask("PING")  # one that is overdue takes the connection down
                try:
                    await asyncio.wait_for(closed.wait(), _HEARTBEAT)
                except TimeoutError:
                    continue
        finally:
            connection.abort("heard")

    def _heard(self, message: bytes) -> None:
        account_id, _, epoch = message.decode(errors="replace").rpartition(" ")
        if account_id and epoch.isdecimal():
            self._on_epoch(account_id, int(epoch))
