"""A port that workers share, and nobody else."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from formgate_server.wire.port import reserved


def bound(address: str, *options: int, listening: bool = True) -> socket.socket:
    """Return a socket on the address."""
    host, _, port = address.rpartition(":")
    made = socket.socket()
    try:
        for option in options:
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        made.bind((host, int(port)))
        if listening:
            made.listen()
    except OSError:
        made.close()
        raise
    return made


def test_who_shares_it_may_have_it_and_nobody_else() -> None:
    """Workers listen there. Who does not share, or reserves it too, finds it taken: before they listen, and after."""
    with reserved("127.0.0.1:0") as address:
        assert not address.endswith(":0")
        with ExitStack() as workers:
            for _ in range(3):
                for options in ((), (socket.SO_REUSEADDR,)):
                    with pytest.raises(OSError, match="in use"):
                        bound(address, *options)
                with pytest.raises(OSError, match=f"^can not listen on {address}: Address already in use$"):
                    workers.enter_context(reserved(address))
                workers.enter_context(bound(address, socket.SO_REUSEPORT, socket.SO_REUSEADDR))
        with pytest.raises(OSError, match="in use"), reserved(address):
            pass
    bound(address, socket.SO_REUSEADDR).close()


def test_the_reservation_gets_no_connection() -> None:
    """All go to who listens."""
    with reserved("127.0.0.1:0") as address, bound(address, socket.SO_REUSEPORT) as worker:
        worker.settimeout(5)
        for _ in range(50):
            with socket.create_connection(worker.getsockname(), timeout=5), worker.accept()[0]:
                pass


def test_of_many_at_once_one_gets_it() -> None:
    """There is no moment at which two can."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    crowd = 8
    barrier, done = threading.Barrier(crowd), threading.Barrier(crowd)

    def reserve() -> bool:
        barrier.wait()
        try:
            with reserved(address):
                done.wait()
        except OSError:
            done.wait()
            return False
        return True

    for _ in range(50):
        with ThreadPoolExecutor(crowd) as threads:
            assert sum(each.result() for each in [threads.submit(reserve) for _ in range(crowd)]) <= 1


def test_what_a_predecessor_left_is_no_reason() -> None:
    """A server that has just ended leaves connections that wait for stragglers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        client = socket.create_connection(address)
        server.accept()[0].close()  # who closes first is whose port waits
        client.close()
    with reserved(f"{address[0]}:{address[1]}"):
        pass


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "[::1]"])
def test_other_names_of_hosts(host: str) -> None:
    """A name has several addresses perhaps, and an address need not be one of IPv4."""
    if host == "[::1]":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    with reserved(f"{host}:0") as address:
        assert address.rpartition(":")[0] == host
        with pytest.raises(OSError, match="in use"), reserved(address):
            pass


@pytest.mark.parametrize("address", ["192.0.2.1:0", "nowhere.invalid:0"])
def test_an_address_that_is_not_ours(address: str) -> None:
    """It is named."""
    with pytest.raises(OSError, match=f"^can not listen on {address}: "), reserved(address):
        pass
