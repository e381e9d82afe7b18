"""What a middleware adds to a request whose check costs nothing: as much as it adds to one that a lease decides."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

from bench.figures import Figures, above, figures
from bench.process import Process
from bench.report import Report, Target
from bench.scenarios import Scenario
from formgate.middleware import Open, Rule, asgi, wsgi
from formgate.verdict import CheckedKey, Holder, LimitStatus, Reason, Source, Verdict

_WANTED = 30
_MANY = 50
"""Routes, each with rules for three methods."""
_CHUNK = 1_000
_SECRET = "fg_live_" + 49 * "x"


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    chunks: int
    """Of 1,000 requests each, of each scenario in each round."""


FULL = Size(rounds=7, chunks=40)
QUICK = Size(rounds=3, chunks=5)

_RULES = [
    Open("GET", "/health"),
    *(
        Rule(method, f"/{name}/{{id}}/parts/{{part}}", permissions=["parts.read"], resources=[f"{name}/{{id}}"])
        for name in [*(f"things{number}" for number in range(_MANY - 1)), "forms"]
        for method in ("GET", "PUT", "DELETE")
    ),
]
_PATH = "/forms/f1/parts/7"


def _verdict() -> Verdict:
    """Make an answer as a lease gives it, with a limit per minute and one per day."""
    reset = datetime.now(UTC) + timedelta(seconds=30)
    limits = (
        LimitStatus("rate", Holder.KEY, 60, 12, reset, window=timedelta(minutes=1)),
        LimitStatus("daily", Holder.ACCOUNT, 10_000, 5_000, reset),
    )
    key = CheckedKey("key_1", "acme")
    return Verdict(
        allowed=True, reason=Reason.OK, message="", http_status=200, key=key, limits=limits, source=Source.LEASE
    )


class _Leased:
    """A client that has decided already."""

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict

    def check(self, *_: Any, **__: Any) -> Verdict:  # noqa: ANN401 - whatever is asked
        return self._verdict


class _Awaited(_Leased):
    async def check(self, *_: Any, **__: Any) -> Verdict:  # type: ignore[override] # noqa: ANN401 - the same
        return self._verdict


def measure(size: Size) -> Report:
    """Run every scenario in turn, round after round."""
    verdict = _verdict()
    lines: list[tuple[Scenario, Callable[[], None]]] = [
        (_line("an ASGI application of nothing"), _asgi(_asgi_app)),
        (
            _line("the same behind the middleware"),
            _asgi(asgi.FormgateMiddleware(_asgi_app, _Awaited(verdict), _RULES)),
        ),
        (_line("a WSGI application of nothing"), _wsgi(_wsgi_app)),
        (_line("the same behind the middleware "), _wsgi(wsgi.FormgateMiddleware(_wsgi_app, _Leased(verdict), _RULES))),
    ]
    for number in range(size.rounds):
        print(f"bench: round {number + 1} of {size.rounds}: middlewares …", file=sys.stderr, flush=True)
        for scenario, call in lines:
            scenario.rounds.append(_round(call, size.chunks))
    (bare_asgi, by_asgi, bare_wsgi, by_wsgi) = (scenario.rounds for scenario, _ in lines)
    targets = [
        Target("ASGI: added to a leased request", above(by_asgi, bare_asgi), _WANTED, "{:.1f} µs"),
        Target("WSGI: added to a leased request", above(by_wsgi, bare_wsgi), _WANTED, "{:.1f} µs"),
    ]
    notes = [f"{len(_RULES)} rules; an answer tells of two limits; CPU is this process'"]
    return Report("The middlewares, in one process", "calls in a loop", [line for line, _ in lines], targets, notes)


def _line(name: str) -> Scenario:
    return Scenario(name, cast(Process, None), cast(Any, None), guess=0)  # its rounds are run here


def _round(call: Callable[[], None], chunks: int) -> Figures:
    call()
    latencies = []
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(chunks):
        before = time.perf_counter()
        for _ in range(_CHUNK):
            call()
        latencies.append(round((time.perf_counter() - before) / _CHUNK * 1e6))
    return figures(
        checks=chunks * _CHUNK,
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu,
        latencies_us=latencies,
    )


async def _asgi_app(_scope: Any, _receive: Any, send: Any) -> None:  # noqa: ANN401 - as ASGI has it
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"ok"})


def _asgi(app: Callable[..., Coroutine[Any, Any, None]] | asgi.FormgateMiddleware) -> Callable[[], None]:
    async def send(message: Any) -> None:  # noqa: ANN401 - as ASGI has it
        if message["type"] == "http.response.start":
            assert message["status"] == 200

    headers = [
        *((f"x-{number}".encode(), b"value") for number in range(8)),
        (b"authorization", f"Bearer {_SECRET}".encode()),
    ]

    def call() -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": _PATH,
            "raw_path": _PATH.encode(),
            "headers": headers,
            "client": ("203.0.113.7", 4711),
        }
        try:
            app(scope, cast(Any, None), send).send(None)
        except StopIteration:
            return
        raise AssertionError("it waits for something")

    return call


def _wsgi_app(_environ: Any, start_response: Any) -> Iterable[bytes]:  # noqa: ANN401 - as WSGI has it
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"ok"]


def _wsgi(app: Callable[[Any, Any], Iterable[bytes]]) -> Callable[[], None]:
    def start_response(status: str, _headers: Any) -> Any:  # noqa: ANN401 - as WSGI has it
        assert status == "200 OK"

    def call() -> None:
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": _PATH,
            "REMOTE_ADDR": "203.0.113.7",
            "HTTP_AUTHORIZATION": f"Bearer {_SECRET}",
        }
        assert app(environ, start_response) == [b"ok"]

    return call
