"""How a process takes up calls: by several listeners at its port, and in longer turns while it is busy."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest

from formgate.v1.authorization_pb2 import BatchCheckKeysRequest, CheckKeyRequest
from tests.support.client import Client
from tests.support.server import Server, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is one listener, as the kernel has it")

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
CONNECTIONS = 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server."""
    with Server(tmp_path_factory.mktemp("listeners")) as started:
        yield started


def listening(server: Server) -> int:
    """Return how many sockets of the server listen at its port."""
    port = int(server.address.rpartition(":")[2])
    sockets = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in sockets)


def policies(server: Server) -> set[int]:
    """Return by which policies the kernel schedules the server's threads."""
    found = set()
    for thread in psutil.Process(server.process.pid).threads():
        try:
            found.add(os.sched_getscheduler(thread.id))
        except ProcessLookupError:
            continue
    return found


@pytest.mark.parametrize(("most", "listeners"), [(None, 16), (600, 2), (511, 1), (1, 1)])
def test_a_process_listens_as_often_as_its_connections_are_worth(
    tmp_path: Path, most: int | None, listeners: int
) -> None:
    """Each listener has its share of them; where that would be few, there are fewer."""
    with Server(tmp_path, *([] if most is None else ["--max-connections", str(most)])) as server:
        assert listening(server) == listeners


def test_every_connection_is_served_alike(server: Server) -> None:
    """Whichever listener the kernel gives it to: it is told the same."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(closing(Client(server.address, server.token, options=OWN_CONNECTION)))
            for _ in range(CONNECTIONS)
        ]
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            verdicts = list(threads.map(lambda client: client(CheckKeyRequest(key="x")), clients))
        assert {verdict.allowed for verdict in verdicts} == {False}
        assert len({verdict.reason for verdict in verdicts}) == 1


def test_threads_have_longer_turns_while_there_is_much_to_do(server: Server) -> None:
    """SCHED_BATCH under load, and as the kernel has it before and after: a lone call is not to wait for others."""
    assert policies(server) == {os.SCHED_OTHER}
    enough = threading.Event()
    checks = BatchCheckKeysRequest(requests=[CheckKeyRequest(key="x")] * 1_000)

    def load() -> None:
        with closing(Client(server.address, server.token, options=OWN_CONNECTION)) as client:
            while not enough.is_set():
                client(checks)

    with ThreadPoolExecutor(4) as threads:
        loads = [threads.submit(load) for _ in range(4)]
        try:
            eventually(lambda: policies(server) == {os.SCHED_BATCH}, 30, "longer turns")
        finally:
            enough.set()
        for each in loads:
            each.result()
    eventually(lambda: policies(server) == {os.SCHED_OTHER}, 30, "turns as they were")
