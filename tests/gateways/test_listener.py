"""The listener that gateways ask: hostile bytes, and callers who are no gateway."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.keys_pb2 import RevokeKeyRequest
from formgate_server.core.policy import HttpDenial
from formgate_server.wire import auth_http
from formgate_server.wire.auth_http import Answer, AuthHttpServer
from formgate_server.wire.envoy import ext_authz_pb2 as pb
from tests.support.client import SECOND_POLICY, Client, new_account, new_token
from tests.support.gateways import make
from tests.support.server import Server
from tests.support.upstream import ask
from tests.support.workers import SupervisedServer

pytest_plugins = ("tests.support.rpc",)

HOST = b"Host: x\r\n"


@pytest.fixture
def connection(rpc_server: Server) -> Iterator[socket.socket]:
    """A connection of one's own."""
    host, _, port = rpc_server.auth_http.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Read until the other end closes."""
    got = b""
    try:
        while more := connection.recv(65_536):
            got += more
    except ConnectionResetError:  # closed with something of ours unread
        pass
    return got


def port(server: Server) -> int:
    """Return the listener's port."""
    return int(server.auth_http.rpartition(":")[2])


def envoy_asks(
    server: Server, secret: str, method: str, extensions: dict[str, str], headers: dict[str, str] | None = None
) -> Any:
    """Ask as Envoy does."""
    request = pb.CheckRequest()
    http = request.attributes.request.http
    http.method, http.path = method, "/v1/forms/f1"
    http.headers.update({"authorization": f"Bearer {secret}", **(headers or {})})
    request.attributes.context_extensions.update(extensions)
    with server.channel() as channel:
        call: Any = channel.unary_unary(
            "/envoy.service.auth.v3.Authorization/Check",
            request_serializer=pb.CheckRequest.SerializeToString,
            response_deserializer=pb.CheckResponse.FromString,
        )
        return call(request, metadata=server.metadata, timeout=10)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /check HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /check HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (b"GET /check HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
        (b"GET /check HTTP/1.1\r\nX : y\r\n\r\n", 400),
        (b"GET /check HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello", 413),
        (b"GET /check HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 413),
        (b"POST /check HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n", 405),
        (b"CONNECT x:1 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"GET /check?" + b"a" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
        (b"GET /check HTTP/1.1\r\n" + HOST + b"".join(b"h%d: x\r\n" % n for n in range(200)) + b"\r\n", 431),
    ],
)
def test_what_is_not_plain(connection: socket.socket, sent: bytes, status: int) -> None:
    """What could be read in two ways, is too large or has a body ends the connection: nothing after it is answered."""
    connection.sendall(sent + b"GET /nothing HTTP/1.1\r\n" + HOST + b"\r\n")
    got = read_all(connection)
    assert got.startswith(b"HTTP/1.1 %d " % status), got
    assert got.count(b"HTTP/1.1 ") == 1, got
    assert b"connection: close" in got


def test_one_after_the_other(connection: socket.socket) -> None:
    """Requests that come together are answered in order, on a connection that stays."""
    connection.sendall(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(20)))
    connection.sendall(b"GET /denial HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    got = read_all(connection)
    assert got.count(b"HTTP/1.1 404 ") == 20
    assert got.rindex(b"HTTP/1.1 500 ") > got.rindex(b"HTTP/1.1 404 ")


def test_many_unread_requests(connection: socket.socket, rpc_server: Server) -> None:
    """Who sends thousands of requests in one breath is cut off; others are served on."""
    connection.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
    connection.settimeout(5)
    assert read_all(connection).count(b"HTTP/1.1 ") < 200
    assert ask(port(rpc_server), "/nothing").status == 404


def test_slow_heads(connection: socket.socket, rpc_server: Server) -> None:
    """A head that comes byte by byte holds up nobody else."""
    for byte in b"GET /check HT":
        connection.sendall(bytes([byte]))
    began = time.monotonic()
    assert ask(port(rpc_server), "/nothing").status == 404
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("who", ["nobody", "unknown", "auditor", "two", "in another header"])
def test_who_asks(rpc_server: Server, manager: Client, account: str, who: str) -> None:
    """Only a checker's token, in its own header and once, is answered; a good key does not help without."""
    secret = make(manager, account).secret
    _, token = new_token(manager, nouns.SERVICE_ROLE_CHECKER)
    _, auditor = new_token(manager, nouns.SERVICE_ROLE_AUDITOR)
    shown = {
        "nobody": [],
        "unknown": [("x-formgate-token", "fgt_none")],
        "auditor": [("x-formgate-token", auditor)],
        "two": [("x-formgate-token", token), ("x-formgate-token", token)],
        "in another header": [("x_formgate_token", token)],
    }[who]
    key = ("authorization", f"Bearer {secret}")
    assert ask(port(rpc_server), "/check?only=authenticate", [key, ("x-formgate-token", token)]).status == 200
    assert ask(port(rpc_server), "/check?only=authenticate", [key, *shown]).status == 500
    assert ask(port(rpc_server), f"/denial?{base64.urlsafe_b64encode(b'[429,[],{}]').decode()}", shown).status == 500


@pytest.mark.parametrize(
    "query",
    ["", "?", "?permission", "?permission=", "?&&", "?only=authenticate&only=authenticate", "?only=authenticate&x=1",
     "?denied=403", "?only=authenticate&denied=200", "?only=authenticate&policy=none", "?method=request", "?a=%ff"],
)  # fmt: skip
def test_routes_that_say_nothing(rpc_server: Server, manager: Client, account: str, query: str) -> None:
    """A requirement that is missing, broken, misspelt or not to be met is no yes, whoever asks."""
    headers = [("authorization", f"Bearer {make(manager, account).secret}"), ("x-formgate-token", rpc_server.token)]
    assert ask(port(rpc_server), f"/check{query}", headers).status == 500


def test_a_method_that_says_nothing(rpc_server: Server, manager: Client) -> None:
    """By method alone, keys of a policy that ignores methods are denied, by HTTP and Envoy; the log says so once."""
    account = new_account(manager, policy=SECOND_POLICY)
    secret = make(manager, account, grants=[nouns.Grant(resource="*", level=nouns.LEVEL_READ)]).secret
    shown = [("authorization", f"Bearer {secret}"), ("x-formgate-token", rpc_server.token)]
    shown.append(("x-forwarded-method", "DELETE"))
    for route, status in (("method=request", 403), ("method=DELETE", 403), ("only=authenticate", 200)):
        assert ask(port(rpc_server), f"/check?{route}", shown).status == status, route
    for _ in range(2):
        extensions = {"method": "request", "resource": "sites/only-here"}
        assert envoy_asks(rpc_server, secret, "DELETE", extensions).denied_response.status.code == 403
    assert envoy_asks(rpc_server, secret, "DELETE", {"only": "authenticate"}).HasField("ok_response")
    lines = [line for line in rpc_server.log.splitlines() if "requires a method only" in line]
    assert len(lines) == 3, lines  # one a route
    assert all(SECOND_POLICY in line for line in lines)


@pytest.mark.parametrize("packed", ["", "%%%", "W10=", "AAAA", "null", '[200,[],""]', '[100,[],""]', "[429]", "[]"])
def test_denials_that_are_none(rpc_server: Server, packed: str) -> None:
    """What is handed back as a denial is one, or an error: never a yes."""
    text = base64.urlsafe_b64encode(packed.encode()).decode() if packed.startswith(("[", "n")) else packed
    assert ask(port(rpc_server), f"/denial?{text}", [("x-formgate-token", rpc_server.token)]).status == 500


def test_headers_of_a_denial_end_where_they_end(rpc_server: Server) -> None:
    """A denial's header can not become two, nor another answer."""
    forged = json.dumps([429, [["x-a", "b\r\nx-evil: 1"], ["content-length", "99"], ["x-c", "d"]], "no"])
    packed = base64.urlsafe_b64encode(forged.encode()).decode()
    answer = ask(port(rpc_server), f"/denial?{packed}", [("x-formgate-token", rpc_server.token)])
    assert (answer.status, answer.body, answer.headers["x-c"]) == (429, b"no", "d")
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize("name", ["x-a: 1, x-b", "x a", "x-a:", "", "x(a)", "é", "x-a\r\nx-evil", "x-a\t"])
def test_headers_of_a_denial_have_names(rpc_server: Server, name: str) -> None:
    """A denial with a header whose name is none is no denial of ours."""
    packed = base64.urlsafe_b64encode(json.dumps([429, [[name, "b"]], "no"]).encode()).decode()
    answer = ask(port(rpc_server), f"/denial?{packed}", [("x-formgate-token", rpc_server.token)])
    assert (answer.status, json.loads(answer.body)["error"]["reason"]) == (500, "GATEWAY_MISCONFIGURED")


@asynccontextmanager
async def listener(answer: Answer) -> AsyncIterator[tuple[AuthHttpServer, tuple[str, int]]]:
    """A listener in this process that answers so, and where it is."""
    server = AuthHttpServer(answer)
    where = "127.0.0.1", await server.start("127.0.0.1:0")
    yield server, where
    at_once = asyncio.Event()
    at_once.set()
    await server.drain(0, at_once)


async def test_a_header_without_a_name_is_left_out() -> None:
    """Whatever is to be answered, a header that could be read as another one is not sent."""

    async def answer(*_: object) -> HttpDenial:
        return HttpDenial(403, (("x-a: 1, x-b", "2"), ("x c", "3"), ("x-d", "4\r\nx-e: 5"), ("x-f", "6")), b"no")

    async with listener(answer) as (_, where):
        reader, writer = await asyncio.open_connection(*where)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert got == b"HTTP/1.1 403 Forbidden\r\nx-f: 6\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"


@pytest.mark.parametrize("connection", [b"keep-alive", b"close"])
async def test_an_answer_that_nobody_reads(monkeypatch: pytest.MonkeyPatch, connection: bytes) -> None:
    """Who asks and does not read is cut off in time, whether or not the connection was to stay."""
    monkeypatch.setattr(auth_http, "_UNREAD_SECONDS", 0.2)

    async def answer(*_: object) -> HttpDenial:
        return HttpDenial(403, (), bytes(16 * 2**20))

    async with listener(answer) as (server, where):
        with socket.create_connection(where, 5) as reader:
            reader.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: " + connection + b"\r\n\r\n")
            await asyncio.wait_for(_until(lambda: bool(server._open)), 5)
            await asyncio.wait_for(_until(lambda: not server._open), 5)


async def _until(done: Callable[[], bool]) -> None:
    while not done():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)


def test_what_was_asked_tells_no_secret() -> None:
    """However a request gets into a log, its key and the gateway's token do not."""
    asked = auth_http._Asked("/?key=fg_secret", {"x-formgate-token": "fgt_secret"}, keep_alive=True)
    assert "secret" not in f"{asked!r}{asked}"


def test_envoy_need_not_show_a_header(rpc_server: Server, manager: Client, account: str) -> None:
    """Names of ours that have no value are taken out of the request, whether or not Envoy shows that it has them."""
    secret = make(manager, account).secret
    taken = envoy_asks(rpc_server, secret, "GET", {"only": "authenticate"}).ok_response
    assert {"x-formgate-created-by", "x-formgate-token", "authorization"} == set(taken.headers_to_remove)
    shown = {"x-formgate-other": "evil", "x_formgate_key_id": "evil", "x-formgate-key-id": "evil"}
    taken = envoy_asks(rpc_server, secret, "GET", {"only": "authenticate"}, shown).ok_response
    assert {"x-formgate-other", "x_formgate_key_id"} < set(taken.headers_to_remove)
    assert "x-formgate-key-id" not in taken.headers_to_remove  # it is overwritten
    set_headers = {option.header.key for option in taken.headers}
    assert set_headers == {"x-formgate-key-id", "x-formgate-account-id", "x-formgate-environment"}


def test_calls_are_counted_and_told(rpc_server: Server, manager: Client, account: str) -> None:
    """What is asked over HTTP is counted and told as a call of gRPC is: by code, with reason, key, token and peer."""
    made = make(manager, account)
    manager(RevokeKeyRequest(key_id=made.key.key_id))
    token_id, token = new_token(manager, nouns.SERVICE_ROLE_CHECKER)
    shown = [("authorization", f"Bearer {made.secret}"), ("x-formgate-token", token)]
    before = calls(rpc_server)
    assert ask(port(rpc_server), "/check?only=authenticate", shown).status == 401
    assert ask(port(rpc_server), "/check?only=nothing", shown).status == 500
    assert ask(port(rpc_server), "/check?only=authenticate", [("x-formgate-token", "fgt_none")]).status == 500
    after = calls(rpc_server)
    ended = {code: after[code] - before.get(code, 0) for code in after if after[code] != before.get(code, 0)}
    assert ended == {"OK": 1, "INVALID_ARGUMENT": 1, "UNAUTHENTICATED": 1}
    told = [json.loads(line) for line in rpc_server.log.splitlines() if "/formgate.gateways.Http/Check" in line]
    (denied,) = [line for line in told if line.get("key_id") == made.key.key_id]
    assert (denied["event"], denied["code"], denied["reason"]) == ("call", "OK", "KEY_REVOKED")
    assert (denied["account_id"], denied["token_id"], denied["role"]) == (account, token_id, "CHECKER")
    assert denied["peer"].startswith("ipv4:127.0.0.1:")
    assert denied["milliseconds"] > 0
    (failed,) = [line for line in told if line.get("token_id") == token_id and line["code"] == "INVALID_ARGUMENT"]
    assert "key_id" not in failed
    assert made.secret not in rpc_server.log
    assert token not in rpc_server.log


def calls(server: Server) -> dict[str, float]:
    """Return how many checks of gateways have ended, by code."""
    text = ask(int(server.http.rpartition(":")[2]), "/metrics").body.decode()
    found = re.findall(r'^formgate_rpc_calls_total\{code="(\w+)",method="Check"\} (\S+)$', text, re.MULTILINE)
    return {code: float(count) for code, count in found}


def test_of_workers(tmp_path: Path) -> None:
    """Workers share the listener as they share gRPC's port, and answer what is under way when they are asked to end."""
    with SupervisedServer(tmp_path, "--auth-http", "127.0.0.1:0") as server:
        assert port(server) > 0
        for _ in range(3):
            answer = ask(port(server), "/check?only=authenticate", [("x-formgate-token", server.token)])
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        server.stop()
    with pytest.raises(OSError, match="refused"):
        ask(port(server), "/check")
