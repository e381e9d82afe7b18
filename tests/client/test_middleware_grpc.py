from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from formgate.middleware.grpc import (
    FormgateAioInterceptor,
    FormgateInterceptor,
    Method,
    OpenMethod,
    current_verdict,
)
from formgate.testing import FakeFormgate, FakeKey, FakeLimit, Grant
from formgate.v1.keys_pb2 import GetKeyRequest as Site  # a message with one id in it
from formgate.v1.keys_pb2 import UpdateKeyRequest as Update  # and one that has it in another
from formgate.v1.resources_pb2 import Key


def _nested(message: Any) -> list[str]:
    return [f"sites/{message.key.key_id}"]


RULES = [
    OpenMethod("/sites.Health/*"),
    Method("/sites.Sites/One", permissions=["sites.read"], resources=["sites/{key_id}"]),
    Method("/sites.Sites/Watch", permissions=["sites.read"], resources=["sites/{key_id}"]),
    Method("/sites.Sites/Put", permissions=["sites.read"], resources=["sites/{key_id}"]),
    Method("/sites.Sites/Read", permissions=["sites.read"], resources=["sites/{key_id}"]),
    Method("/sites.Sites/Talk", permissions=["sites.read"], resources=["sites/{key_id}"]),
    Method("/sites.Sites/Nested", permissions=["sites.read"], resources=_nested),
    Method("/sites.Sites/Anybody", only_authenticate=True),
    Method("/sites.Sites/Wrong", permissions=["sites.read"], resources=["sites/{no_such_field}"]),
]
GONE_ON: list[str] = []
"""What handlers have seen."""


def _key_id() -> str:
    checked = current_verdict().key
    assert checked is not None
    GONE_ON.append(checked.key_id)
    return checked.key_id


def _site(payload: bytes) -> Site:
    return Site.FromString(payload)


def _update(payload: bytes) -> Update:
    return Update.FromString(payload)


def _written(message: Any) -> bytes:
    written: bytes = message.SerializeToString()
    return written


def _service(behaviours: dict[str, Any]) -> list[grpc.GenericRpcHandler]:
    kinds = {
        "Watch": grpc.unary_stream_rpc_method_handler,
        "Put": grpc.stream_unary_rpc_method_handler,
        "Read": grpc.stream_unary_rpc_method_handler,
        "Talk": grpc.stream_stream_rpc_method_handler,
    }
    handlers = {
        name: kinds.get(name, grpc.unary_unary_rpc_method_handler)(
            behaviour, _update if name == "Nested" else _site, _written
        )
        for name, behaviour in behaviours.items()
    }
    health = {"Check": grpc.unary_unary_rpc_method_handler(behaviours["Open"], _site, _written)}
    return [
        grpc.method_handlers_generic_handler("sites.Sites", handlers),
        grpc.method_handlers_generic_handler("sites.Health", health),
    ]


class Blocking:
    """The handlers of a server of threads."""

    def _one(self, request: Any, context: Any) -> Site:
        return Site(key_id=_key_id())

    def _open(self, request: Any, context: Any) -> Site:
        return request  # type: ignore[no-any-return]

    def _watch(self, request: Any, context: Any) -> Iterator[Site]:
        for _ in range(2):
            yield Site(key_id=_key_id())

    def _put(self, requests: Iterator[Site], context: Any) -> Site:
        GONE_ON.extend(request.key_id for request in requests)
        return Site(key_id=_key_id())

    def _talk(self, requests: Iterator[Site], context: Any) -> Iterator[Site]:
        for request in requests:
            GONE_ON.append(request.key_id)
            yield Site(key_id=_key_id())


class Awaiting:
    """The same for asyncio; ``read`` takes its stream from the context."""

    async def _one(self, request: Any, context: Any) -> Site:
        return Site(key_id=_key_id())

    async def _open(self, request: Any, context: Any) -> Site:
        return request  # type: ignore[no-any-return]

    async def _watch(self, request: Any, context: Any) -> AsyncIterator[Site]:
        for _ in range(2):
            yield Site(key_id=_key_id())

    async def _put(self, requests: AsyncIterator[Site], context: Any) -> Site:
        GONE_ON.extend([request.key_id async for request in requests])
        return Site(key_id=_key_id())

    async def _read(self, requests: AsyncIterator[Site], context: Any) -> Site:
        while (request := await context.read()) is not grpc.aio.EOF:
            GONE_ON.append(request.key_id)
        return Site(key_id=_key_id())

    async def _talk(self, requests: AsyncIterator[Site], context: Any) -> None:
        async for request in requests:
            GONE_ON.append(request.key_id)
            await context.write(Site(key_id=_key_id()))


def _behaviours(of: Any) -> dict[str, Any]:
    one = dict.fromkeys(("One", "Nested", "Anybody", "Wrong", "Forgotten"), of._one)
    put = {"Put": of._put, "Read": getattr(of, "_read", of._put)}
    return {**one, **put, "Watch": of._watch, "Talk": of._talk, "Open": of._open}


class Serving:
    """A server of either kind on a free port, until it is stopped."""

    def __init__(self, kind: str, fake: FakeFormgate, **options: Any) -> None:
        self.fake = fake
        if kind == "threads":
            server = grpc.server(
                futures.ThreadPoolExecutor(2),
                handlers=_service(_behaviours(Blocking())),
                interceptors=[FormgateInterceptor(fake.client, RULES, **options)],
            )
            self.port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            self.stop: Callable[[], Any] = lambda: server.stop(None).wait()
        else:
            self.stop = self._asyncio(options)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")

    def _asyncio(self, options: dict[str, Any]) -> Callable[[], None]:
        ready, ended = threading.Event(), asyncio.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            server = grpc.aio.server(
                handlers=_service(_behaviours(Awaiting())),
                interceptors=[FormgateAioInterceptor(self.fake.async_client, RULES, **options)],
            )
            self.port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            loops.append(asyncio.get_running_loop())
            ready.set()
            await ended.wait()
            await server.stop(None)

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        assert ready.wait(10)

        def stop() -> None:
            loops[0].call_soon_threadsafe(ended.set)
            thread.join()

        return stop

    def call(self, method: str, *sent: Any, key: FakeKey | None = None, **metadata: str) -> Any:
        """Call a method; returns the answer, a list of them of a stream."""
        pairs = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        if key is not None:
            pairs.append(("authorization", key.authorization))
        path = method if method.startswith("/") else f"/sites.Sites/{method}"
        kinds: dict[str, Any] = {
            "Watch": self.channel.unary_stream,
            "Put": self.channel.stream_unary,
            "Read": self.channel.stream_unary,
            "Talk": self.channel.stream_stream,
        }
        make = kinds.get(method, self.channel.unary_unary)
        asked = make(path, _written, _site)
        request: Any = iter(sent) if method in {"Put", "Read", "Talk"} else sent[0]
        answer = asked(request, metadata=pairs, timeout=10)
        return list(answer) if method in {"Watch", "Talk"} else answer

    def refused(self, method: str, *sent: Any, key: FakeKey | None = None, **metadata: str) -> Refused:
        """Call a method that must be refused."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(method, *sent, key=key, **metadata)
        return Refused(caught.value)


class Refused:
    """How a call was refused, its details decoded."""

    def __init__(self, error: Any) -> None:
        self.code: grpc.StatusCode = error.code()
        self.message: str = error.details()
        packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
        status = status_pb2.Status.FromString(packed)
        assert (status.code, status.message) == (self.code.value[0], self.message)
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        self.reason, self.domain = info.reason, info.domain
        self.retry: float | None = None
        if len(status.details) > 1:
            assert status.details[1].Unpack(retry)
            self.retry = retry.retry_delay.ToTimedelta().total_seconds()


@pytest.fixture(scope="module", params=["threads", "asyncio"])
def serving(request: pytest.FixtureRequest) -> Iterator[Serving]:
    """A server of each kind."""
    served = Serving(request.param, FakeFormgate())
    yield served
    served.channel.close()
    served.stop()


@pytest.fixture
def fake(serving: Serving) -> FakeFormgate:
    """The server's Formgate, of which nothing is known yet that a test asked."""
    serving.fake.recover()
    serving.fake.checks.clear()
    GONE_ON.clear()
    return serving.fake


@pytest.fixture
def key(fake: FakeFormgate) -> FakeKey:
    """A key that may read site s1."""
    return fake.add_key(grants=[Grant("sites/s1", ("sites.read",))])


S1, S2 = Site(key_id="s1"), Site(key_id="s2")


@pytest.mark.parametrize(
    ("method", "sent", "answers"),
    [
        ("One", [S1], 1),
        ("Anybody", [S2], 1),
        ("Nested", [Update(key=Key(key_id="s1"))], 1),
        ("Watch", [S1], 2),
        ("Put", [S1, S1], 1),
        ("Read", [S1, S1], 1),
        ("Talk", [S1, S1], 2),
    ],
)
def test_what_a_rule_allows_goes_through(
    serving: Serving, fake: FakeFormgate, key: FakeKey, method: str, sent: list[Any], answers: int
) -> None:
    """Of each kind of method: the handler runs, has all that was sent, and knows the verdict; one check was asked."""
    answer = serving.call(method, *sent, key=key)
    told = answer if isinstance(answer, list) else [answer]
    assert [each.key_id for each in told] == [key.key_id] * answers
    assert GONE_ON.count("s1") == (2 if method in {"Put", "Read", "Talk"} else 0)
    (check,) = fake.checks
    assert (check.authorization, check.source_ip, check.http_method) == (key.authorization, "127.0.0.1", "")
    assert tuple(check.resources) == (() if method == "Anybody" else ("sites/s1",))


@pytest.mark.parametrize("method", ["One", "Nested", "Watch", "Put", "Read", "Talk"])
def test_a_denial_ends_the_call_before_its_handler(
    serving: Serving, fake: FakeFormgate, key: FakeKey, method: str
) -> None:
    """Of each kind of method: the code, the policy's message and what a program needs; no handler has run."""
    sent = [Update(key=Key(key_id="s2"))] if method == "Nested" else [S2]
    refused = serving.refused(method, *sent, key=key)
    assert (refused.code, refused.domain) == (grpc.StatusCode.PERMISSION_DENIED, "formgate")
    assert refused.message == "The API key may not use this resource."
    assert refused.reason == "PERMISSION_DENIED"
    assert refused.retry is None
    fake.revoke(key)
    assert serving.refused(method, *sent, key=key).code is grpc.StatusCode.UNAUTHENTICATED
    assert serving.refused(method, *sent).code is grpc.StatusCode.UNAUTHENTICATED
    assert GONE_ON == []


@pytest.mark.parametrize("method", ["Put", "Talk"])
def test_who_shows_no_key_holds_no_thread(method: str) -> None:
    """A stream without a credential is refused before its first message, which may never come."""
    fake = FakeFormgate()
    served = Serving("threads", fake)
    never = threading.Event()

    def silent() -> Iterator[Site]:
        never.wait()
        yield from ()

    try:
        call = served.channel.stream_stream(f"/sites.Sites/{method}", _written, _site)
        calls = [call(silent(), timeout=10) for _ in range(3)]  # the server has two threads
        assert [each.code() for each in calls] == [grpc.StatusCode.UNAUTHENTICATED] * 3
        assert [(check.resources, check.source_ip) for check in fake.checks] == [((), "127.0.0.1")] * 3
    finally:
        never.set()
        served.channel.close()
        served.stop()


def test_a_limit_says_when_to_come_back(serving: Serving, fake: FakeFormgate) -> None:
    """RESOURCE_EXHAUSTED, which limit it was, and RetryInfo."""
    limited = fake.add_key(
        grants=[Grant("sites/s1", ("sites.read",))], limits=[FakeLimit("rate", 1, timedelta(minutes=1))]
    )
    serving.call("One", S1, key=limited)
    refused = serving.refused("One", S1, key=limited)
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert refused.retry is not None
    assert 0 < refused.retry <= 60


def test_what_no_rule_names_is_denied(serving: Serving, fake: FakeFormgate, key: FakeKey) -> None:
    """A forgotten method is not there for anybody; one that is open is for everybody, and nobody is asked."""
    refused = serving.refused("Forgotten", S1, key=key)
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NO_RULE")
    assert serving.call("/sites.Health/Check", S2) == S2
    assert fake.checks == []
    assert GONE_ON == []


@pytest.mark.parametrize("site_id", ["", "..", "s1/../s2", "s1 ", "*", "é", "x" * 65])
def test_an_id_that_can_not_exist_is_refused(serving: Serving, fake: FakeFormgate, key: FakeKey, site_id: str) -> None:
    """It is the caller's mistake, not the service's, and nobody is asked."""
    refused = serving.refused("One", Site(key_id=site_id), key=key)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_RESOURCE")
    assert fake.checks == []


@pytest.mark.parametrize("method", ["Put", "Read", "Talk"])
def test_a_stream_stays_with_its_resource(serving: Serving, fake: FakeFormgate, key: FakeKey, method: str) -> None:
    """A stream that was let in for one resource ends before its handler has seen a message about another."""
    refused = serving.refused(method, S1, S2, S1, key=key)
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "RESOURCE_CHANGED")
    assert "s2" not in GONE_ON
    assert serving.refused(method, key=key).reason == "EMPTY_STREAM"


def test_whatever_goes_wrong_is_unavailable(
    serving: Serving, fake: FakeFormgate, key: FakeKey, caplog: pytest.LogCaptureFixture
) -> None:
    """The service is down, the client raises, the rule names a field that is not there: UNAVAILABLE, and when again."""
    refusals = [serving.refused("Wrong", S1, key=key)]
    fake.down()
    refusals.append(serving.refused("One", S1, key=key))
    fake.down(RuntimeError(key.secret))  # type: ignore[arg-type]
    refusals.append(serving.refused("One", S1, key=key))
    for refused in refusals:
        assert (refused.code, refused.reason, refused.retry) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", 1.0)
    assert GONE_ON == []
    assert key.secret not in caplog.text
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_settings(kind: str) -> None:
    """Trusted proxies, a key's own metadata, the domain and the exact reason, each where it is asked for."""
    fake = FakeFormgate()
    key = fake.add_key(grants=[Grant("sites/s1", ("sites.read",))])
    options = {"domain": "sites.example", "exact_reasons": True, "key_header": "X-Api-Key"}
    served = Serving(kind, fake, trusted_proxies=["127.0.0.1"], **options)
    try:
        served.call("One", S1, x_api_key=key.secret, x_forwarded_for="203.0.113.9, 198.51.100.7")
        assert fake.checks[0].source_ip == "198.51.100.7"
        fake.disable(key)
        refused = served.refused("One", S1, x_api_key=key.secret)
        assert (refused.reason, refused.domain) == ("KEY_DISABLED", "sites.example")
    finally:
        served.channel.close()
        served.stop()


@pytest.mark.parametrize(
    "rules",
    [
        [OpenMethod("sites.Sites/One")],
        [OpenMethod("/sites.Sites")],
        [OpenMethod("/a/b/c")],
        [OpenMethod("/sites.Sites/One"), Method("/sites.Sites/One", only_authenticate=True)],
    ],
)
def test_rules_that_can_not_be_meant_are_refused(rules: list[Any]) -> None:
    """A mistyped name, or two rules for one method: the server does not start."""
    with pytest.raises(ValueError, match="method"):
        FormgateInterceptor(FakeFormgate().client, rules)
    nothing: list[dict[str, Any]] = [{}, {"by_method": True}, {"permissions": []}]
    for wanted in nothing:
        with pytest.raises(ValueError, match="only_authenticate"):
            Method("/sites.Sites/One", resources=["sites/s1"], **wanted)
