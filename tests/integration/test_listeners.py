"""How a process takes up calls: by several listeners at its port, and in longer turns while it is busy."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from formgate.v1.authorization_pb2 import BatchCheckKeysRequest, CheckKeyRequest
from tests.support.client import Client
from tests.support.redis import RedisServer
from tests.support.server import Server, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is one listener, as the kernel has it")

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
CONNECTIONS = 40
CHRT = "/usr/bin/chrt"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Server]:
    """A server that counts in Redis."""
    folder = tmp_path_factory.mktemp("listeners")
    with Server(folder, environment={"FORMGATE_REDIS_URL": redis_server.url()}) as started:
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
    tmp_path: Path, redis_server: RedisServer, most: int | None, listeners: int
) -> None:
    """Each listener has its share of them; where that would be few, there are fewer."""
    options = [] if most is None else ["--max-connections", str(most)]
    with Server(tmp_path, *options, environment={"FORMGATE_REDIS_URL": redis_server.url()}) as server:
        assert listening(server) == listeners


def test_the_embedded_default_shares_its_port_with_nobody(tmp_path: Path) -> None:
    """It listens once: another server, whatever it is, finds the port taken."""
    with Server(tmp_path) as server:
        assert listening(server) == 1
        host, _, port = server.address.rpartition(":")
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind((host, int(port)))


def test_a_draining_server_leaves_its_port(tmp_path: Path, redis_server: RedisServer) -> None:
    """Its successor need not wait until the last call has ended."""
    environment = {"FORMGATE_REDIS_URL": redis_server.url()}
    with Server(tmp_path / "old", environment=environment) as old, old.channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        old.process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        eventually(lambda: listening(old) == 0, 10, "nobody listens")
        with Server(tmp_path / "new", "--listen", old.address, environment=environment) as new:
            assert new.address == old.address
            assert old.running
        watch.cancel()
        assert old.wait() == 0


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


def test_a_policy_that_somebody_chose_stays(tmp_path: Path) -> None:
    """As chrt, or systemd's CPUSchedulingPolicy, has set it."""
    server = Server(tmp_path)
    server.command = (CHRT, "--idle", "0", *server.command)
    with server:
        with under_load(server):
            busy = psutil.Process(server.process.pid).cpu_times
            until = busy().user + 2
            eventually(lambda: busy().user > until, 60, "it is busy for a while")
        assert policies(server) == {os.SCHED_IDLE}


def test_threads_have_longer_turns_while_there_is_much_to_do(server: Server) -> None:
    """SCHED_BATCH under load, and as the kernel has it before and after: a lone call is not to wait for others."""
    try:
        os.sched_setscheduler(server.process.pid, os.SCHED_OTHER, os.sched_param(0))
    except PermissionError:
        pytest.skip("this sandbox lets nobody choose how threads are scheduled")
    eventually(lambda: policies(server) == {os.SCHED_OTHER}, 30, "turns as the kernel has them")
    with under_load(server):
        eventually(lambda: policies(server) == {os.SCHED_BATCH}, 30, "longer turns")
    eventually(lambda: policies(server) == {os.SCHED_OTHER}, 30, "turns as they were")


@contextmanager
def under_load(server: Server) -> Iterator[None]:
    """Keep the server busy."""
    enough = threading.Event()
    checks = BatchCheckKeysRequest(requests=[CheckKeyRequest(key="x")] * 1_000)

    def load() -> None:
        with closing(Client(server.address, server.token, options=OWN_CONNECTION)) as client:
            while not enough.is_set():
                client(checks)

    with ThreadPoolExecutor(4) as threads:
        loads = [threads.submit(load) for _ in range(4)]
        try:
            yield
        finally:
            enough.set()
        for each in loads:
            each.result()
