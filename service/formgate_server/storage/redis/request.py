"""A request from the moment it is made until its future has a result; it may be sent more than once on the way."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, cast

import hiredis

from formgate_server.core.errors import UnavailableError
from formgate_server.storage.redis.connection import GRACE, Connection
from formgate_server.storage.redis.errors import LostAnswer, StoreUnavailable
from formgate_server.storage.redis.script import Script

Words = tuple[str | bytes | int, ...]


class Owner(Protocol):
    """Who sends requests, and decides what is to be done when that did not go well."""

    def refused(self, request: Request, error: str) -> None:
        """An error reply came."""
        ...

    def failed(self, request: Request) -> None:
        """It was not sent, or its answer was lost and it may be sent again."""
        ...


class Request:
    """A script or a command, its arguments, and the future of its result.

    ``deadline`` and ``sent`` are by the loop's clock. ``lost``: it may have been run already, so that the word "nothing
    happened" cannot be given any more.
    """

    __slots__ = (
        "_expiry",
        "_owner",
        "asking",
        "deadline",
        "future",
        "may_have_run",
        "repeatable",
        "script",
        "sent",
        "slot",
        "tries",
        "via",
        "words",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - made in one place only, and often
        self,
        owner: Owner,
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        script: Script | None,
        slot: str | None,
        words: Words,
        repeatable: bool,  # noqa: FBT001
    ) -> None:
        self._owner = owner
        self.script = script
        self.slot = slot
        self.words = words
        self.repeatable = repeatable
        self.future: asyncio.Future[Any] = loop.create_future()
        self.sent = loop.time()
        self.deadline = self.sent + timeout
        self.may_have_run = False
        self.tries = 0
        self.asking = False
        self.via: Connection | None = None
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def writes(self) -> bool:
        """Scripts count only when replicas have them, where that is asked for."""
        return self.script is not None

    def changed(self, reply: Any) -> bool:  # noqa: ANN401 - a reply may be anything
        """Tell whether this reply does."""
        return self.script is not None and self.script.changed(reply)

    def send(self, connection: Connection) -> None:
        """Go out on a connection."""
        self.via = connection
        if self.asking:
            connection.ask("ASKING")
        script = self.script
        words = self.words if script is None else ("EVALSHA", script.sha1, *self.words)
        connection.send(self, hiredis.pack_command(cast(Any, words)))

    def send_in_full(self, connection: Connection) -> None:
        """Go out on a connection whose server does not have the script; what comes behind this finds it there."""
        script = self.script
        if script is None or script.sha1 in connection.loading:
            self.send(connection)
            return
        self.via = connection
        if self.asking:
            connection.ask("ASKING")
        connection.loading.add(script.sha1)
        words = ("EVAL", script.source, *self.words)
        connection.send(_InFull(self, connection, script.sha1), hiredis.pack_command(cast(Any, words)))

    # What a connection calls.

    def answered(self, reply: Any) -> None:  # noqa: ANN401 - a reply may be anything
        """Take the reply."""
        if isinstance(reply, hiredis.ReplyError):
            self._owner.refused(self, str(reply))
            return
        if self._expiry is not None:
            self._expiry.cancel()
        if not self.future.done():
            self.future.set_result(reply)

    def lost(self, detail: str, *, again: bool = True) -> None:
        """It may have been run. Try again if that is of use, does no harm, and there is time."""
        self.may_have_run = True
        if again and self.repeatable:
            self._owner.failed(self)
        else:
            self.fail(LostAnswer(detail))

    def unsent(self, _detail: str) -> None:
        """Try again, if there is time."""
        self._owner.failed(self)

    # What its owner calls.

    def expire_at_deadline(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fail at the deadline: from here on no connection's own timeout is early enough."""
        if self._expiry is None:
            self._expiry = loop.call_at(self.deadline, self._expire_soon, loop)

    def _expire_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self._expiry = loop.call_later(GRACE, self._expire)

    def _expire(self) -> None:
        self.fail(
            LostAnswer("no answer in time") if self.via is not None else StoreUnavailable("no connection in time")
        )

    def fail(self, error: UnavailableError) -> None:
        """End without a result: by a LostAnswer, whatever the error is, where it may have been run before."""
        if self._expiry is not None:
            self._expiry.cancel()
        if not self.future.done():
            if self.may_have_run and isinstance(error, StoreUnavailable) and not isinstance(error, LostAnswer):
                error = LostAnswer(error.detail)
            self.future.set_exception(error)


class _InFull:
    """A request that takes its script along."""

    writes = True

    def __init__(self, request: Request, connection: Connection, sha1: str) -> None:
        self.sent = request.sent
        self._request = request
        self._connection = connection
        self._sha1 = sha1

    def changed(self, reply: Any) -> bool:  # noqa: ANN401
        return self._request.changed(reply)

    def answered(self, reply: Any) -> None:  # noqa: ANN401
        self._connection.loading.discard(self._sha1)
        self._request.answered(reply)

    def lost(self, detail: str, *, again: bool = True) -> None:
        self._connection.loading.discard(self._sha1)
        self._request.lost(detail, again=again)

    def unsent(self, detail: str) -> None:
        self._request.unsent(detail)
