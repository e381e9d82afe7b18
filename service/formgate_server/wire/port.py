"""A port that several listeners of ours share, of one process or of many, and nobody else's."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

BALANCED = sys.platform == "linux"
"""Whether the kernel spreads connections over all listeners that share a port: else one may get them all."""


@contextmanager
def reserved(address: str) -> Iterator[str]:
    """Keep HOST:PORT (port 0: any free one) for listeners of ours; yields it with the port that it is.

    They must bind it with SO_REUSEPORT. Another server of ours, and whoever does not share or is another user, finds it
    taken: it would get a part of our callers in silence. Not so the same user's who shares, as any of gRPC does unless
    told. Raises OSError where it is taken already.
    """
    host, _, port = address.rpartition(":")
    number = int(port)
    with ExitStack() as stack:
        kept = 0
        unfit: OSError | None = None
        for family, place in _places(address):
            try:
                held = stack.enter_context(_hold(family, place, number))
            except OSError as error:
                if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                    raise _can_not(address, error) from error
                unfit = error  # `localhost` is ::1, too, even where there is no IPv6
                continue
            kept += 1
            number = held.getsockname()[1]
        if not kept:
            raise _can_not(address, unfit) from unfit
        yield f"{host}:{number}"


def _places(address: str) -> list[tuple[socket.AddressFamily, str]]:
    """Return each address of the host in HOST:PORT. Raises OSError."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _can_not(address, error) from error
    return list(dict.fromkeys((family, str(sockaddr[0])) for family, _, _, _, sockaddr in found))


def _hold(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the port, and never listens: the kernel gives it no connection.

    Bound to be shared from the start, it would also be bound where another supervisor's is. So one that shares with
    nobody listens first, which no two can, and makes room for it without ever leaving the port.
    """
    with socket.socket(family, socket.SOCK_STREAM) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a predecessor's connections do not count
        alone.bind((host, port))
        alone.listen(1)
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held = socket.socket(family, socket.SOCK_STREAM)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(alone.getsockname())
            # With this still set, who does not share might bind it too, as long as nobody listens.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except BaseException:
            held.close()
            raise
    return held


def _can_not(address: str, error: OSError | None) -> OSError:
    return OSError(f"can not listen on {address}: {error.strerror if error else 'it is no address'}")
