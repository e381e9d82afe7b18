"""What one client may ask of a server: sizes, calls, connections, pings."""

from __future__ import annotations

import resource
import socket
import struct
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from formgate.v1.authorization_pb2 import BatchCheckKeysRequest, CheckKeyRequest
from tests.support.client import Client
from tests.support.server import Server, eventually

LARGEST = 65_536
CONNECTIONS = 4
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
_PING, _GOAWAY = 6, 7


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that allows little."""
    options = {
        "--max-request-bytes": LARGEST,
        "--max-response-bytes": LARGEST,
        "--max-concurrent-streams": 2,
        "--max-connections": CONNECTIONS,
    }
    words = [str(word) for option in options.items() for word in option]
    with Server(tmp_path_factory.mktemp("limits"), *words) as started:
        yield started


@pytest.fixture
def manager(server: Server) -> Iterator[Client]:
    """The manager, on a connection of its own."""
    options = (*_OWN_CONNECTION, ("grpc.max_receive_message_length", -1), ("grpc.max_metadata_size", 1 << 20))
    with closing(Client(server.address, server.token, options=options)) as client:
        yield client


def test_a_request_too_large_is_refused(manager: Client) -> None:
    """Before it is read whole; the connection goes on."""
    fits = b"\x0a" + _varint(LARGEST - 10) + b"k" * (LARGEST - 10)  # field 1, the key
    answer = manager.raw("/formgate.v1.AuthorizationService/CheckKey", fits)
    assert isinstance(answer, bytes)
    refusal = manager.raw("/formgate.v1.AuthorizationService/CheckKey", fits + b"\0" * 20)
    assert not isinstance(refusal, bytes)
    assert refusal.code is StatusCode.RESOURCE_EXHAUSTED
    assert not manager(CheckKeyRequest(key="x")).allowed


def test_refused_requests_leave_nothing_behind(tmp_path: Path) -> None:
    """Large ones, without a token, to a service's method and to the library's: their memory is free again."""
    large = b"\x0a" + _varint(4_000_000) + b"k" * 4_000_000
    with Server(tmp_path) as server, closing(Client(server.address)) as stranger:
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        for path, code in (
            ("/formgate.v1.AuthorizationService/CheckKey", StatusCode.UNAUTHENTICATED),
            ("/grpc.health.v1.Health/Check", StatusCode.INVALID_ARGUMENT),
        ):
            for _ in range(50):
                refusal = stranger.raw(path, large)
                assert not isinstance(refusal, bytes)
                assert refusal.code is code
        assert process.memory_info().rss - before < 100_000_000


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def test_an_answer_too_large_is_not_sent(manager: Client) -> None:
    """The caller learns that, and asks for less."""
    checks = [CheckKeyRequest(key="x")] * 1_000
    with pytest.raises(grpc.RpcError) as raised:
        manager(BatchCheckKeysRequest(requests=checks))
    error: Any = raised.value
    assert error.code() is StatusCode.RESOURCE_EXHAUSTED
    assert len(manager(BatchCheckKeysRequest(requests=checks[:50])).results) == 50


def test_metadata_too_large_is_refused(manager: Client) -> None:
    """16 KB of it, whatever is in it; a token and all that tracing adds fit."""
    assert not manager(CheckKeyRequest(key="x"), ("traceparent", "a" * 4_000)).allowed
    refusal = manager.raw(
        "/formgate.v1.AuthorizationService/CheckKey", b"", (*manager.metadata, ("x-large", "a" * 17_000))
    )
    assert not isinstance(refusal, bytes)
    assert refusal.code is StatusCode.RESOURCE_EXHAUSTED


def test_more_calls_than_streams_wait(server: Server) -> None:
    """One more than a connection may have waits at the client until another has ended; none is lost."""
    with grpc.insecure_channel(server.address, _OWN_CONNECTION) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(2)]
        assert [next(watch).status for watch in watches] == [1, 1]
        waiting = health.Check.future(health_pb2.HealthCheckRequest(), timeout=30)
        with pytest.raises(grpc.FutureTimeoutError):
            waiting.result(0.3)
        watches[0].cancel()
        assert waiting.result(10).status == 1
        watches[1].cancel()


def test_more_connections_are_closed(server: Server) -> None:
    """Those that are open go on; when one ends, the next gets in."""

    def get_in(client: Client) -> bool:
        outcome = client.raw("/formgate.v1.AuthorizationService/CheckKey", b"")
        return isinstance(outcome, bytes) or outcome.code is not StatusCode.UNAVAILABLE

    clients = [Client(server.address, server.token, options=_OWN_CONNECTION) for _ in range(CONNECTIONS)]
    try:
        for client in clients:
            eventually(lambda client=client: get_in(client), 10, "a place for it")  # type: ignore[misc]
        with closing(Client(server.address, server.token, options=_OWN_CONNECTION)) as late:
            assert not get_in(late)
        assert all(map(get_in, clients))
        clients.pop().close()
        with closing(Client(server.address, server.token, options=_OWN_CONNECTION)) as next_one:
            eventually(lambda: get_in(next_one), 10, "a place for the next")
    finally:
        for client in clients:
            client.close()


class _FewFiles(Server):
    """A server that may open 64 files, and 200 when it asks."""

    command = ("/bin/sh", "-c", 'ulimit -Sn 64 && ulimit -Hn 200 && exec "$@"', "sh", *Server.command)


def test_connections_leave_files_for_probes(tmp_path: Path) -> None:
    """It asks for all files that it may have, takes no more connections than leave some of them, and says so."""
    with _FewFiles(tmp_path) as server:
        assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (200, 200)
        assert '"connections": 100' in server.log
        host, _, port = server.address.rpartition(":")
        with ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(closing(socket.create_connection((host, int(port)), 10)))
            with urllib.request.urlopen(f"http://{server.http}/livez", timeout=10) as answer:
                assert answer.status == 200


def test_who_pings_without_end_is_sent_away(server: Server) -> None:
    """It would keep the server busy for nothing. Spoken by hand: no client of gRPC does so."""
    received = eventually(lambda: _pinged(server), 10, "a place for it")  # where those that have gone had theirs
    assert b"too_many_pings" in received
    assert _GOAWAY in _kinds(received)


def _pinged(server: Server) -> bytes:
    """Return what is said to a connection that pings, until it is closed or sent away."""
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as line:
        settings, pings = _frame(4, b""), _frame(_PING, b"\0" * 8) * 10
        line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + pings)
        received = b""
        while b"too_many_pings" not in received and (more := line.recv(65_536)):
            received += more
        return received


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack("!I", len(payload))[1:] + bytes([kind, 0]) + b"\0\0\0\0" + payload


def _kinds(received: bytes) -> set[int]:
    """Return the kinds of the frames that there are."""
    kinds = set()
    while len(received) >= 9:
        kinds.add(received[3])
        received = received[9 + int.from_bytes(received[:3], "big") :]
    return kinds
