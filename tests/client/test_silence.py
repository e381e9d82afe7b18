from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from formgate import Check
from formgate.errors import DeadlineError, UnavailableError
from formgate.v1 import authorization_pb2 as pb
from formgate.v1.keys_pb2 import RevokeKeyRequest
from formgate.v1.resources_pb2 import HOLDER_KEY, Limit
from formgate.verdict import Reason, Source, Verdict
from tests.support.callers import KINDS, YES, Caller, Scripted, new_key, scripted
from tests.support.client import Client as Manager
from tests.support.proxy import Proxy
from tests.support.server import Server, eventually

pytest_plugins = ("tests.support.rpc",)

CREDITS = 1_000


def credits_limit() -> Limit:
    """Return a limit that only falls: what is charged can be counted exactly."""
    return Limit(name="credits", holder=HOLDER_KEY, amount=CREDITS, lifetime=True)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which client it is."""
    value: str = request.param
    return value


@pytest.fixture
def proxy(rpc_server: Server) -> Iterator[Proxy]:
    """What stands between the client and the real server."""
    with Proxy(int(rpc_server.address.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def server() -> Iterator[Scripted]:
    """A server that says what it is told to."""
    with scripted() as server:
        yield server


def charged(manager: Manager, secret: str) -> int:
    """Return how many units a key was charged, asked beside the proxy."""
    (limit,) = (each for each in manager(pb.CheckKeyRequest(key=secret, cost=0)).limits if each.name == "credits")
    return CREDITS - int(limit.remaining)


@pytest.mark.parametrize("number", [1, 20], ids=["alone", "in a batch"])
def test_an_answer_that_is_lost_is_asked_for_again_and_charged_once(
    kind: str, number: int, proxy: Proxy, rpc_server: Server, manager: Manager, account: str
) -> None:
    """The service has charged, the answer never came, the client asks again: allowed, and charged once."""
    key = new_key(manager, account, credits_limit())
    checks = [key.check(cost=2)] * number
    outcomes: list[Verdict] = []
    with Caller(kind, f"127.0.0.1:{proxy.port}", rpc_server.token, timeout=10) as caller:
        assert caller.check("nonsense").reason is Reason.MALFORMED_KEY  # connected
        proxy.swallow_answers()
        asking = threading.Thread(target=lambda: outcomes.extend(caller.check_all(checks)))
        asking.start()
        eventually(lambda: charged(manager, key.secret) == 2 * len(checks), 10, "charged, and not told")
        proxy.pass_on()
        proxy.cut()
        asking.join(10)
        assert len(outcomes) == len(checks)
        assert all(outcomes)
        assert all(verdict.source is Source.SERVICE for verdict in outcomes)
        assert caller.counters["retries"] >= len(checks)
    assert charged(manager, key.secret) == 2 * len(checks)


def test_connections_that_break_all_the_time_charge_no_check_twice(
    kind: str, proxy: Proxy, rpc_server: Server, manager: Manager, account: str
) -> None:
    """While connections are reset over and over, what was allowed was charged once each; what was not, at most once."""
    key = new_key(manager, account, credits_limit())
    stop = threading.Event()

    def cutting() -> None:
        while not stop.wait(0.05):
            proxy.truncate_answers(200)

    cutter = threading.Thread(target=cutting)
    cutter.start()
    try:
        with Caller(kind, f"127.0.0.1:{proxy.port}", rpc_server.token, timeout=2, attempts=8) as caller:
            outcomes = [verdict for _ in range(10) for verdict in caller.at_once([key.check()] * 8, timeout=2)]
    finally:
        stop.set()
        cutter.join()
    allowed = sum(1 for verdict in outcomes if isinstance(verdict, Verdict) and verdict.allowed)
    assert allowed <= charged(manager, key.secret) <= len(outcomes)
    assert allowed


def test_a_callers_own_id_is_kept(kind: str, rpc_server: Server, manager: Manager, account: str) -> None:
    """The same id again: allowed, and not charged again."""
    key = new_key(manager, account, credits_limit())
    with Caller(kind, rpc_server.address, rpc_server.token, timeout=5) as caller:
        assert all(caller.check(key.secret, request_id="order-7") for _ in range(3))
        assert all(caller.check(key.secret) for _ in range(2))
    assert charged(manager, key.secret) == 3


@pytest.mark.parametrize("port", ["stalled", "closed"])
def test_silence_ends_with_the_deadline(kind: str, port: str, proxy: Proxy, rpc_server: Server) -> None:
    """After 250 ms by default, retries included, the check is denied with 503 and says why; it raises nothing."""
    if port == "stalled":
        proxy.stall()
    else:
        proxy.refuse()
    took = []
    for _ in range(3):
        with Caller(kind, f"127.0.0.1:{proxy.port}", rpc_server.token) as caller:
            began = time.monotonic()
            verdict = caller.check("k")
            took.append(time.monotonic() - began)
        assert not verdict
        assert (verdict.reason, verdict.http_status, verdict.source) == (None, 503, Source.FALLBACK)
        assert verdict.degraded
        assert isinstance(verdict.error, DeadlineError if port == "stalled" else UnavailableError)
    assert median(took) < 0.75
    if port == "stalled":
        assert min(took) >= 0.25


def test_a_service_that_is_back_is_found(kind: str, proxy: Proxy, rpc_server: Server, manager: Manager) -> None:
    """After an outage checks are answered again within seconds, by the same client."""
    with Caller(kind, f"127.0.0.1:{proxy.port}", rpc_server.token) as caller:
        assert caller.check("x", timeout=5).source is Source.SERVICE
        proxy.refuse()
        assert caller.check("x").source is Source.FALLBACK
        proxy.pass_on()
        eventually(lambda: caller.check("x").source is Source.SERVICE, 10, "found again")


def test_the_budget_ends_retries(kind: str, server: Scripted) -> None:
    """A service that fails every call is not asked four times as often: after a few retries there are none."""
    server.check = lambda _request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "no")
    with Caller(kind, server.address, timeout=5) as caller:
        for _ in range(50):
            assert not caller.check("k")
        retried = caller.counters["retries"]
        assert 3 <= retried <= 6
        assert len(server.calls) == 50 + retried
        server.check = lambda _request, _context: YES.SerializeToString()
        for _ in range(80):  # each gives a tenth back
            assert caller.check("k")
        server.check = lambda _request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "no")
        assert not caller.check("k")
        assert caller.counters["retries"] > retried


def test_nothing_but_silence_is_asked_again(kind: str, server: Scripted) -> None:
    """A fault of the service, or a bad call, is sent once."""
    with Caller(kind, server.address, timeout=5) as caller:
        for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED):
            server.check = lambda _request, context, code=code: context.abort(code, "no")
            caller.check_all([Check("k")])
        assert len(server.calls) == 3


def test_the_service_says_when_to_come_again(kind: str, server: Scripted) -> None:
    """Told to wait for a second, a client that has a quarter of one asks no more, and tells its caller."""
    info = Packed()
    info.Pack(RetryInfo(retry_delay=Duration(seconds=1)))
    status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="a store is down", details=[info])

    def away(_request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(grpc.StatusCode.UNAVAILABLE, status.message)
        return b""

    server.check = away
    with Caller(kind, server.address, timeout=0.5) as caller:
        verdict = caller.check("k")
    assert len(server.calls) == 1
    assert isinstance(verdict.error, UnavailableError)
    assert verdict.error.retry_after == 1


def test_all_addresses_in_turn(kind: str) -> None:
    """Of two services each gets its share; when one goes away, the other answers all, and nobody notices."""
    with scripted() as first, scripted() as second:
        first.check = second.check = lambda _request, _context: YES.SerializeToString()
        with Caller(kind, [first.address, second.address], timeout=5) as caller:
            # Each is connected in its own time.
            eventually(lambda: caller.check("k") and first.calls and second.calls, 10, "both are asked")
            first.calls.clear()
            second.calls.clear()
            assert all(caller.check("k") for _ in range(20))
            assert (len(first.calls), len(second.calls)) == (10, 10)
            first.check = lambda _request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "going")
            assert all(caller.check("k") for _ in range(4))
            assert caller.counters["retries"] >= 1


def test_last_known_by_a_real_outage(
    kind: str, proxy: Proxy, rpc_server: Server, manager: Manager, account: str
) -> None:
    """What the service last allowed goes on, what it last denied does not, and what it never saw does not."""
    yes, revoked, unseen = (new_key(manager, account) for _ in range(3))
    told: list[tuple[Check, Verdict]] = []
    with Caller(
        kind,
        f"127.0.0.1:{proxy.port}",
        rpc_server.token,
        timeout=5,
        fail={"read": "last known", "write": "closed"},
        on_fallback=lambda check, verdict: told.append((check, verdict)),
    ) as caller:
        for key in (yes, revoked):
            assert caller.check(*key.check()[:1], permissions="forms.view", resources="forms/f1", http_method="GET")
        manager(RevokeKeyRequest(key_id=revoked.key_id))
        assert not caller.check(revoked.secret)
        proxy.refuse()

        def ask(secret: str, method: str) -> Verdict:
            return caller.check(secret, permissions="forms.view", resources="forms/f1", http_method=method, timeout=0.2)

        known = ask(yes.secret, "GET")
        assert known
        assert (known.source, known.reason, known.degraded) == (Source.FALLBACK, Reason.OK, True)
        assert known.key is not None
        assert known.key.key_id == yes.key_id
        assert not ask(yes.secret, "POST")
        assert ask(revoked.secret, "GET").reason is Reason.KEY_REVOKED
        assert ask(unseen.secret, "GET").reason is None
        counters = caller.counters
    assert (counters["unanswered"], counters["fallback_last_known"], counters["fallback_closed"]) == (4, 1, 3)
    assert [verdict.allowed for _, verdict in told] == [True, False, False, False]
