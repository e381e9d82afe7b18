"""The middlewares behind real HTTP servers, before a real Formgate, by what is on the wire."""

from __future__ import annotations

import asyncio
import socket
import threading
import wsgiref.simple_server
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from formgate import AsyncClient, Client
from formgate.v1 import keys_pb2, resources_pb2
from formgate.v1.authorization_pb2 import CheckKeyRequest
from tests.support.client import Client as Manager
from tests.support.client import new_account
from tests.support.protected import FRAMEWORKS
from tests.support.server import Server, eventually

pytest_plugins = ("tests.support.rpc",)


@dataclass
class Wire:
    """An answer as it came: to the byte."""

    status: int
    fields: dict[str, str]
    body: bytes


def ask(port: int, target: str, method: str = "GET", authorization: str = "") -> Wire:
    """Send a request of which nothing is made better on the way, and read until the server hangs up."""
    shown = f"Authorization: {authorization}\r\n" if authorization else ""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{shown}\r\n"
        connection.sendall(head.encode())
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    head_bytes, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head_bytes.decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Wire(int(first.split()[1]), fields, body)


def _uvicorn(server: Server) -> tuple[int, Callable[[], None]]:
    """Serve the FastAPI application; returns its port, and how to stop it."""
    listening = socket.create_server(("127.0.0.1", 0))
    served: list[uvicorn.Server] = []

    async def run() -> None:
        async with AsyncClient(server.address, server.token, timeout=5, leases=False) as client:
            call: Any = FRAMEWORKS["fastapi"](SimpleNamespace(async_client=client))
            config = uvicorn.Config(call.app, log_config=None, proxy_headers=False, lifespan="off", ws="none")
            served.append(uvicorn.Server(config))
            await served[0].serve([listening])

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    eventually(lambda: bool(served) and served[0].started, 20, "uvicorn")

    def stop() -> None:
        served[0].should_exit = True
        thread.join()
        listening.close()

    return listening.getsockname()[1], stop


class _Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""


def _wsgiref(name: str, server: Server) -> tuple[int, Callable[[], None]]:
    """Serve an application of WSGI; returns its port, and how to stop it."""
    client = Client(server.address, server.token, timeout=5, leases=False)
    call: Any = FRAMEWORKS[name](SimpleNamespace(client=client))
    http = wsgiref.simple_server.make_server("127.0.0.1", 0, call.app, handler_class=_Quiet)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()

    def stop() -> None:
        http.shutdown()
        thread.join()
        http.server_close()
        client.close()

    return http.server_port, stop


@pytest.fixture(scope="module", params=["uvicorn and FastAPI", "wsgiref and Flask", "wsgiref and Django"])
def port(request: pytest.FixtureRequest, rpc_server: Server) -> Iterator[int]:
    """The port of a real server of each kind."""
    kind = request.param.rpartition(" ")[2].lower()
    served, stop = _uvicorn(rpc_server) if kind == "fastapi" else _wsgiref(kind, rpc_server)
    yield served
    stop()


@pytest.fixture
def secret(manager: Manager) -> str:
    """A key that may read form f1, twice an hour."""
    limit = resources_pb2.Limit(name="rate", holder=resources_pb2.HOLDER_KEY, amount=2)
    limit.window.FromSeconds(3_600)
    request = keys_pb2.CreateKeyRequest(
        account_id=new_account(manager),
        grants=[resources_pb2.Grant(resource="forms/f1", permissions=["forms.read"])],
        limits=[limit],
    )
    made: str = manager(request).secret
    return made


def test_a_key_is_let_in_until_its_limit_is_used_up(port: int, secret: str) -> None:
    """With where the limit stands on each answer, and at last when to come back."""
    answers = [ask(port, "/forms/f1", authorization=f"Bearer {secret}") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    for answer, left in zip(answers, (1, 0, 0), strict=True):
        assert answer.fields["ratelimit-policy"] == '"rate";q=2;w=3600'
        assert answer.fields["ratelimit"].startswith(f'"rate";r={left};t=36')
    assert 3_500 < int(answers[2].fields["retry-after"]) <= 3_660
    assert "retry-after" not in answers[0].fields


def test_a_denial_on_the_wire_is_the_policys(port: int, secret: str, manager: Manager) -> None:
    """The service's own words, its fields, and a body to the byte; HEAD has the same fields, and no byte of a body."""
    request = CheckKeyRequest(key=secret, permissions=["forms.read"], resources=["forms/f2"])
    words = manager(request).http_denial
    answer = ask(port, "/forms/f2", authorization=f"Bearer {secret}")
    assert (answer.status, answer.body) == (words.status, words.body)
    for field in words.headers:
        assert answer.fields[field.name] == field.value
    head = ask(port, "/forms/f2", "HEAD", f"Bearer {secret}")
    assert (head.status, head.body) == (words.status, b"")
    assert head.fields["content-length"] == answer.fields["content-length"] == str(len(words.body))


@pytest.mark.parametrize(
    "target", ["/forms/f1/../f1", "/forms//f1", "/forms/%2e%2e/f1", "/forms/f1%00", "/files/..%5cx"]
)
def test_hostile_paths_do_not_get_through_a_real_server(port: int, secret: str, target: str) -> None:
    """Whatever the server makes of a path that nobody tidied up: it is not let in."""
    assert ask(port, target, authorization=f"Bearer {secret}").status == 400


def test_no_key_no_rule_no_way_in(port: int, secret: str) -> None:
    """Without a key 401, without a rule 403, and what is open is open."""
    assert ask(port, "/forms/f1").status == 401
    assert ask(port, "/admin", authorization=f"Bearer {secret}").status == 403
    assert ask(port, "/health").status == 200
