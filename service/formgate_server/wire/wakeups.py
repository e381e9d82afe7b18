"""An event loop that gRPC wakes once for all that has happened, not once for each event.

grpc.aio's own thread queues what happens, four events a call, and writes a byte into a pair of sockets for each. The
loop's reader takes one byte, and all events that there are (``PollerCompletionQueue._handle_events``, grpcio 1.85). So
under load most turns of the loop would find nothing left to do (docs/adr/0014).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVarTuple

import uvloop

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

_READER = "PollerCompletionQueue._handle_events"
_MANY = 4_096

_Ts = TypeVarTuple("_Ts")


class EventLoop(uvloop.Loop):
    """uvloop's, but that gRPC's wake-ups are taken together."""

    def add_reader(self, fd: FileDescriptorLike, callback: Callable[[*_Ts], object], *args: *_Ts) -> None:
        """As asyncio has it."""
        if isinstance(fd, socket.socket) and isinstance(callback, partial) and _name(callback.func) == _READER:
            super().add_reader(fd, wake, fd, callback)
        else:
            super().add_reader(fd, callback, *args)


def wake(wake_ups: socket.socket, read: Callable[[], object]) -> None:
    """Take all wake-ups, the last of them by ``read``.

    No event is missed: each was queued before its wake-up was sent, and is read after that was taken.
    """
    try:
        waiting = len(wake_ups.recv(_MANY, socket.MSG_PEEK))
        if waiting > 1:
            wake_ups.recv(waiting - 1)
    except BlockingIOError:  # another loop of this process has taken them, and all events
        return
    read()


def _name(function: object) -> str:
    return getattr(function, "__qualname__", "")
