from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi import WebSocket as FastapiWebSocket
from flask import Flask

from formgate.fallback import level_of
from formgate.middleware import ByRoute, Open, Rule, asgi, current_verdict, wsgi
from formgate.middleware.guard import Asker
from formgate.rules.grants import Level
from formgate.testing import FakeFormgate, FakeKey, FakeLimit, Grant, Reason
from tests.support.calling import AsgiCall, Call, WsgiCall

ALL = [Open("GET", "/health"), ByRoute("*", "/{rest:path}")]


@pytest.fixture
def fake() -> FakeFormgate:
    """A Formgate."""
    return FakeFormgate()


@pytest.fixture
def key(fake: FakeFormgate) -> FakeKey:
    """A key that may read form f1."""
    return fake.add_key(grants=[Grant("forms/f1", ("forms.read",))], limits=[FakeLimit("rate", 100)])


def fastapi(fake: FakeFormgate, ran: list[str]) -> Call:
    """Make an application whose routes ask, but for one that forgot to."""
    app = FastAPI(openapi_url=None)
    reads = asgi.requires("forms.read", resources=["forms/{form_id}"])

    @app.get("/forms/{form_id}", dependencies=[Depends(reads)])
    def read(form_id: str) -> dict[str, str]:
        ran.append(form_id)
        return {"key": key_id()}

    @app.get("/forgot")
    async def forgot() -> dict[str, str]:
        return {"secret": "of somebody"}

    app.add_middleware(asgi.FormgateMiddleware, client=fake.async_client, rules=ALL)
    return AsgiCall(app)


def flask(fake: FakeFormgate, ran: list[str]) -> Call:
    """The same."""
    app = Flask(__name__)

    @app.get("/forms/<form_id>")
    @wsgi.requires("forms.read", resources=["forms/{form_id}"])
    def read(form_id: str) -> dict[str, str]:
        ran.append(form_id)
        return {"key": key_id()}

    @app.get("/forgot")
    def forgot() -> dict[str, str]:
        return {"secret": "of somebody"}

    app.wsgi_app = wsgi.FormgateMiddleware(app.wsgi_app, fake.client, ALL)  # type: ignore[method-assign]
    return WsgiCall(app)


def key_id() -> str:
    """Return the key of the verdict."""
    checked = current_verdict().key
    assert checked is not None
    return checked.key_id


@pytest.mark.parametrize("make", [fastapi, flask])
def test_a_route_that_asks(make: Any, fake: FakeFormgate, key: FakeKey) -> None:
    """It runs for a key that may, with where limits stand in its answer; for others its denial is the policy's."""
    ran: list[str] = []
    call = make(fake, ran)
    allowed = call("/forms/f1", headers=key.headers)
    assert (allowed.status, key.key_id in allowed.body.decode()) == (200, True)
    assert allowed.header("ratelimit") == '"rate";r=99'
    denied = call("/forms/f2", headers=key.headers)
    words = fake.client.check(key.secret, permissions=["forms.read"], resources=["forms/f2"]).http_denial
    assert words is not None
    assert (denied.status, denied.body) == (words.status, words.body)
    assert denied.headers[: len(words.headers)] == words.headers
    assert call("/forms/f2", "HEAD", key.headers).body == b""
    assert call("/forms/f1").status == 401
    fake.down()
    assert call("/forms/f1", headers=key.headers).status == 503
    assert ran == ["f1"]


@pytest.mark.parametrize("make", [fastapi, flask])
def test_a_route_that_forgot_to_ask_is_not_heard(
    make: Any, fake: FakeFormgate, key: FakeKey, caplog: pytest.LogCaptureFixture
) -> None:
    """Its answer does not leave the process, and an operator is told; nor does that of a route that is not there."""
    call = make(fake, [])
    for target in ("/forgot", "/nowhere"):
        answered = call(target, headers=key.headers)
        assert (answered.status, b"somebody" in answered.body) == (403, False)
    (told,) = (record for record in caplog.records if record.name.startswith("formgate"))  # for all of them
    assert ("requires" in told.message, told.levelname) == (True, "WARNING")
    assert not fake.checks


def test_a_route_that_has_not_asked_is_told_of_once_a_minute(
    fake: FakeFormgate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for what is not there must not fill the log."""
    now = [5.0]
    monkeypatch.setattr("formgate.middleware.guard.monotonic", lambda: now[0])
    call = flask(fake, [])
    for seconds, lines in ((5.0, 1), (64.0, 1), (65.0, 2), (66.0, 2)):
        now[0] = seconds
        call("/nowhere")
        assert len(caplog.records) == lines


def test_a_generator_is_heard_only_if_it_has_asked(fake: FakeFormgate, key: FakeKey) -> None:
    """A WSGI application that begins to answer when its first part is asked for is held to the same."""
    closed = []

    def app(environ: Any, start_response: Any) -> Any:
        try:
            start_response("200 OK", [])
            yield b"secret of somebody"
        finally:
            closed.append(True)

    answered = WsgiCall(wsgi.FormgateMiddleware(app, fake.client, ALL))("/x", headers=key.headers)
    assert (answered.status, b"somebody" in answered.body, closed) == (403, False, [True])


class Body:
    """A WSGI application's body that knows whether it was closed."""

    def __init__(self, parts: Any) -> None:
        self.closed = 0
        self._parts = parts

    def __iter__(self) -> Any:
        return self._parts

    def close(self) -> None:
        """Count it."""
        self.closed += 1


def asking(parts: Any) -> Any:
    """Make a WSGI application that asks, and then makes its body of what ``parts`` yields."""

    @wsgi.requires(only_authenticate=True)
    def app(environ: Any, start_response: Any) -> Any:
        body = Body(parts(start_response))
        environ["made"].append(body)
        return body

    return app


def test_a_body_that_fails_at_once_is_closed(fake: FakeFormgate, key: FakeKey) -> None:
    """Whatever the application holds for it is given back, and the error goes on to the server."""

    def parts(start_response: Any) -> Any:
        yield from map(open, ["/no/such/file"])

    made: list[Body] = []
    call = WsgiCall(wsgi.FormgateMiddleware(asking(parts), fake.client, ALL), made=made)
    with pytest.raises(FileNotFoundError):
        call("/x", headers=key.headers)
    assert [body.closed for body in made] == [1]


def test_what_is_written_later_is_not_lost(fake: FakeFormgate, key: FakeKey) -> None:
    """``write`` of WSGI goes to the server as soon as the answer has begun, and stays in order."""

    def parts(start_response: Any) -> Any:
        write = start_response("200 OK", [])
        write(b"1")
        yield b"2"
        write(b"3")
        yield b"4"

    sent: list[bytes] = []
    guarded = wsgi.FormgateMiddleware(asking(parts), fake.client, ALL)

    def server(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        for part in guarded(environ, lambda *_: sent.append):
            sent.append(part)  # noqa: PERF402 - in between, `write` does the same
        return []

    WsgiCall(server, made=[])("/x", headers=key.headers)
    assert b"".join(sent) == b"1234"


def test_an_error_in_the_middle_of_a_body_is_the_servers(fake: FakeFormgate, key: FakeKey) -> None:
    """An answer that has begun can not be another one: the server raises the error and ends the connection."""

    def parts(start_response: Any) -> Any:
        start_response("200 OK", [])
        yield b"half"
        error = OSError("the disk is gone")
        start_response("500 Internal Server Error", [], (OSError, error, None))
        yield b"another"

    def strict(status: str, headers: Any, exc_info: Any = None) -> Any:
        if exc_info is not None:
            raise exc_info[1]

    guarded = wsgi.FormgateMiddleware(asking(parts), fake.client, ALL)
    with pytest.raises(OSError, match="disk"):
        WsgiCall(lambda environ, _: b"".join(guarded(environ, strict)), made=[])("/x", headers=key.headers)


def test_without_the_middleware_nothing_is_asked_and_nothing_runs() -> None:
    """A dependency or a decorator alone fails: it never takes nobody's answer for a yes."""

    class Request:
        scope: dict[str, Any]

    request = Request()
    request.scope = {}
    with pytest.raises(RuntimeError, match="not there"):
        asyncio.run(asgi.requires("forms.read")(request))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="not there"):
        wsgi.requires("forms.read")(lambda: "ran")()


class Socket:
    """A WebSocket's handshake, and what the application says to it."""

    def __init__(self, app: Any, target: str, key: FakeKey | None, *, extensions: bool) -> None:
        headers = [(b"authorization", key.authorization.encode())] if key else []
        scope = {
            "type": "websocket",
            "path": target,
            "raw_path": target.encode(),
            "headers": headers,
            "client": ("192.0.2.1", 1),
            "query_string": b"",
            "extensions": {"websocket.http.response": {}} if extensions else {},
        }
        self.sent: list[Any] = []
        asyncio.run(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.fixture
def sockets(fake: FakeFormgate) -> Any:
    """An application of WebSockets, one of which asks for itself."""
    app = FastAPI(openapi_url=None)

    @app.websocket("/live/{form_id}")
    async def live(socket: FastapiWebSocket, form_id: str) -> None:
        await socket.accept()

    @app.websocket("/asks/{form_id}")
    async def asks(
        socket: FastapiWebSocket,
        form_id: str,
        _: object = Depends(asgi.requires("forms.read", resources=["forms/{form_id}"])),
    ) -> None:
        await socket.accept()

    rules = [
        Rule("WEBSOCKET", "/live/{form_id}", permissions=["forms.read"], resources=["forms/{form_id}"]),
        ByRoute("WEBSOCKET", "/asks/{form_id}"),
        Open("GET", "/feed"),
    ]
    return asgi.FormgateMiddleware(app, fake.async_client, rules)


@pytest.mark.parametrize("path", ["/live", "/asks"])
def test_a_websocket_is_let_in_by_its_rule(sockets: Any, key: FakeKey, path: str) -> None:
    """A key that may is accepted, with where its limits stand; the handshake was asked for as the GET that it is."""
    (accept,) = Socket(sockets, f"{path}/f1", key, extensions=True).sent
    assert accept["type"] == "websocket.accept"
    assert (b"ratelimit", b'"rate";r=99') in accept["headers"]


@pytest.mark.parametrize("path", ["/live", "/asks"])
def test_a_websocket_is_no_plain_read(sockets: Any, fake: FakeFormgate, key: FakeKey, path: str) -> None:
    """A client that lets reads in while the service is away does not open a socket: it may be for anything."""
    Socket(sockets, f"{path}/f1", key, extensions=True)
    (check,) = fake.checks
    assert (check.http_method, level_of(check)) == ("GET", Level.MANAGE)


def test_a_websocket_may_be_a_plain_read_by_its_rule(fake: FakeFormgate, key: FakeKey) -> None:
    """Who writes the table knows what a socket is for."""
    rule = Rule("WEBSOCKET", "/live", permissions=["forms.read"], level="read")
    Socket(asgi.FormgateMiddleware(FastAPI(openapi_url=None), fake.async_client, [rule]), "/live", key, extensions=True)
    assert [level_of(check) for check in fake.checks] == [Level.READ]


@pytest.mark.parametrize("path", ["/live", "/asks"])
def test_a_websocket_is_denied_as_http_where_the_server_can(
    sockets: Any, fake: FakeFormgate, key: FakeKey, path: str
) -> None:
    """Status, fields and body are the policy's; a server that can not say them gets a close before it has accepted."""
    start, body = Socket(sockets, f"{path}/f2", key, extensions=True).sent
    words = fake.client.check(key.secret, permissions=["forms.read"], resources=["forms/f2"]).http_denial
    assert words is not None
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 403)
    assert (body["type"], body["body"]) == ("websocket.http.response.body", words.body)
    (close,) = Socket(sockets, f"{path}/f2", key, extensions=False).sent
    assert close == {"type": "websocket.close", "code": 1008}


def test_no_method_says_what_a_websocket_needs(
    fake: FakeFormgate, key: FakeKey, caplog: pytest.LogCaptureFixture
) -> None:
    """A rule by method for any method, and a route that asks by method, deny a handshake; nobody is asked."""
    app = FastAPI(openapi_url=None)

    @app.websocket("/asks/{form_id}")
    async def asks(socket: FastapiWebSocket, form_id: str, _: object = Depends(asgi.requires(by_method=True))) -> None:
        await socket.accept()

    for rule in (Rule("*", "/asks/{form_id}", by_method=True), ByRoute("*", "/asks/{form_id}")):
        guarded = asgi.FormgateMiddleware(app, fake.async_client, [rule])
        start, _ = Socket(guarded, "/asks/f1", key, extensions=True).sent
        assert start["status"] == 403
    assert not fake.checks
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_an_asker_shows_no_secret() -> None:
    """What a request tells of its client may be logged by whoever debugs: its key is not in it."""
    shown = repr(Asker("GET", "Bearer pf_secret", "pf_secret", "", "192.0.2.1"))
    assert shown == "Asker(GET, peer='192.0.2.1')"


def test_a_route_that_says_nothing_is_refused() -> None:
    """``requires`` without anything does not mean that any key will do."""
    for requires in (asgi.requires, wsgi.requires):
        with pytest.raises(ValueError, match="only_authenticate"):
            requires(resources=["forms/f1"])


def test_a_websocket_needs_a_rule_of_its_own(sockets: Any, key: FakeKey) -> None:
    """What is open to GET is not open to a handshake."""
    start, _ = Socket(sockets, "/feed", key, extensions=True).sent
    assert start["status"] == 403


def test_an_unknown_protocol_is_not_let_through(sockets: Any) -> None:
    """A scope of another type raises; lifespan is passed on."""
    with pytest.raises(RuntimeError, match="not let through"):
        asyncio.run(sockets({"type": "webtransport", "path": "/live/f1"}, None, None))


def test_a_route_may_not_ask_until_it_gets_a_yes(fake: FakeFormgate, key: FakeKey) -> None:
    """One denial is a no, even if the route catches it and asks for something else."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        class Request:
            pass

        request: Any = Request()
        request.scope = scope
        with pytest.raises(asgi.DeniedError):
            await asgi.requires("forms.delete")(request)
        await asgi.requires("forms.read", resources=["forms/f1"])(request)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    answered = AsgiCall(asgi.FormgateMiddleware(app, fake.async_client, ALL))("/x", headers=key.headers)
    assert (answered.status, answered.body == b"in") == (403, False)
    assert Reason.PERMISSION_DENIED.name in answered.body.decode()
