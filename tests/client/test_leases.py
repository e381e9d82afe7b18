"""Leases of the client, against a real server: what is decided in this process, and what never is."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from formgate import Check, Client
from formgate.counters import Counters
from formgate.errors import InvalidRequestError
from formgate.fallback import Emergency
from formgate.lease import Leases
from formgate.leased import LeasedRules, Shape
from formgate.leasing import Leasing
from formgate.options import connection
from formgate.v1 import authorization_pb2 as pb
from formgate.v1.accounts_pb2 import GetLimitsRequest, SetMemberRequest, UpdateAccountRequest
from formgate.v1.keys_pb2 import CreateKeyRequest, RevokeKeyRequest
from formgate.v1.resources_pb2 import (
    ACCOUNT_STATE_SUSPENDED,
    HOLDER_KEY,
    LEVEL_MANAGE,
    LEVEL_READ,
    Account,
    Environment,
    Grant,
    Limit,
)
from formgate.verdict import Reason, Source, Verdict
from formgate_server.core.watching import MOST_WATCHED
from tests.support.callers import KINDS, PERMISSION, RESOURCE, Caller, new_key
from tests.support.client import SECOND_POLICY, new_account
from tests.support.client import Client as Manager
from tests.support.proxy import Proxy
from tests.support.server import Server, clean_environment, eventually

pytest_plugins = ("tests.support.rpc",)

TIMEOUT = 5.0
WANTED: dict[str, Any] = {"permissions": (PERMISSION,), "resources": (RESOURCE,)}


@pytest.fixture(params=KINDS)
def caller(request: pytest.FixtureRequest, rpc_server: Server) -> Iterator[Caller]:
    """A client of either kind."""
    with Caller(request.param, rpc_server.address, rpc_server.token, timeout=TIMEOUT, leases=True) as caller:
        yield caller


def leased(caller: Caller | Client, secret: str, **wanted: Any) -> Verdict:
    """Check until this process decides, and return its verdict."""
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        verdict = caller.check(secret, **(wanted or WANTED))
        if verdict.source is Source.LEASE:
            return verdict
        time.sleep(0.005)
    raise AssertionError("no lease")


def test_a_key_that_is_asked_for_often_is_decided_here(caller: Caller, manager: Manager, account: str) -> None:
    """The verdict tells what the service's does, and who decided."""
    key = new_key(manager, account)
    first = caller.check(key.secret, **WANTED)
    assert first.source is Source.SERVICE
    verdict = leased(caller, key.secret)
    assert verdict
    assert (verdict.reason, verdict.key, verdict.epoch) == (Reason.OK, first.key, first.epoch)
    assert key.secret not in repr(caller.client._common.leases)


@pytest.mark.parametrize(
    "field", ["strict", "explain", "request_id", "cost", "tags", "policy", "resources", "source_ip"]
)
def test_what_the_service_is_to_say_it_is_asked(caller: Caller, manager: Manager, account: str, field: str) -> None:
    """By the caller's wish, because it remembers, or because it may be a bad call."""
    key = new_key(manager, account)
    values: dict[str, Any] = {
        "strict": True,
        "explain": True,
        "request_id": "r1",
        "cost": 0,
        "tags": {"a": "b"},
        "policy": SECOND_POLICY,
        "resources": "a//b",
        "source_ip": "nowhere",
    }
    leased(caller, key.secret)
    if field in {"resources", "source_ip"}:
        with pytest.raises(InvalidRequestError):
            caller.check(key.secret, **{**WANTED, field: values[field]})
    else:
        assert caller.check(key.secret, **{**WANTED, field: values[field]}).source is Source.SERVICE


def test_the_header_decides_as_the_key_does(caller: Caller, manager: Manager, account: str) -> None:
    """Whichever of the two a caller has."""
    key = new_key(manager, account)
    until = time.monotonic() + TIMEOUT
    while caller.check(authorization=f"Bearer {key.secret}", **WANTED).source is not Source.LEASE:
        assert time.monotonic() < until
    assert caller.check(f"Bearer {key.secret}").reason is Reason.MALFORMED_KEY
    assert caller.check(authorization=key.secret).reason is Reason.MALFORMED_AUTHORIZATION


def test_a_denial_is_told_in_the_service_s_words(caller: Caller, manager: Manager, account: str) -> None:
    """Denied here is what the rules deny and the service has worded; nothing else about it differs."""
    key = new_key(manager, account)
    leased(caller, key.secret)
    told = caller.check(key.secret, permissions=("forms.delete",), resources=(RESOURCE,))
    again = caller.check(key.secret, permissions=("forms.delete",), resources=(RESOURCE,))
    assert not told
    assert told.reason is Reason.PERMISSION_DENIED
    assert again.http_denial == told.http_denial
    assert (told.source, again.source) == (Source.SERVICE, Source.LEASE)
    assert replace(again, source=Source.SERVICE) == told


def test_a_change_ends_a_lease_at_once(caller: Caller, manager: Manager, account: str) -> None:
    """Told by push, long before the lease's end; and `effective_time` covers leases that may not have been told."""
    took = []
    for _ in range(3):
        key = new_key(manager, account)
        leased(caller, key.secret)
        began = time.time()
        changed = manager(RevokeKeyRequest(key_id=key.key_id)).effective_time.ToMicroseconds() / 1e6
        assert changed <= time.time() + 1
        until = time.monotonic() + TIMEOUT
        while (verdict := caller.check(key.secret, **WANTED)).allowed:
            assert verdict.source is Source.LEASE
            assert time.monotonic() < until
        took.append(time.time() - began)
        assert verdict.reason is Reason.KEY_REVOKED
    assert median(took) < 0.5, took


def test_without_the_stream_a_lease_ends_by_itself(rpc_server: Server, manager: Manager, account: str) -> None:
    """Cut off from all that is told, a client decides by the old state until `effective_time` at most."""
    key = new_key(manager, account)
    with (
        Proxy(int(rpc_server.address.rpartition(":")[2])) as proxy,
        Client(f"127.0.0.1:{proxy.port}", rpc_server.token, timeout=0.2) as client,
    ):
        leased(client, key.secret)
        proxy.stall()
        answer = manager(RevokeKeyRequest(key_id=key.key_id))
        effective = answer.effective_time.ToMicroseconds() / 1e6
        assert effective > time.time() - 0.2
        decided = [(time.time(), client.check(key.secret, **WANTED))]
        while time.time() < effective + 0.3:
            decided.append((time.time(), client.check(key.secret, **WANTED)))
        assert not [verdict for at, verdict in decided if at > effective and verdict.allowed]
        assert any(verdict.source is Source.LEASE and verdict.allowed for _, verdict in decided)


def test_no_lease_where_the_platform_promises_an_end_at_once(rpc_server: Server, manager: Manager) -> None:
    """`longest_lease = "0"`: every check is asked, and a change is in effect when it has returned."""
    account = new_account(manager, policy="formbricks")
    key = manager(CreateKeyRequest(account_id=account, grants=[Grant(resource="*", level=LEVEL_MANAGE)]))
    with Client(rpc_server.address, rpc_server.token, timeout=TIMEOUT) as client:
        for _ in range(20):
            assert client.check(key.secret, http_method="GET", resources="projects/p1").source is Source.SERVICE
        changed = manager(RevokeKeyRequest(key_id=key.key.key_id))
        assert changed.effective_time.ToMicroseconds() / 1e6 <= time.time()
    answer = manager(pb.LeaseKeyRequest(key=key.secret, want_units=1))
    assert answer.refusal.reason == pb.LEASE_REFUSAL_REASON_OFF


def _is_denied(caller: Caller, secret: str) -> bool:
    return not caller.check(secret, **WANTED).allowed


def test_a_suspended_account_s_keys_are_denied(caller: Caller, manager: Manager, account: str) -> None:
    """A change of the account reaches the leases of all its keys."""
    keys = [new_key(manager, account) for _ in range(3)]
    for key in keys:
        leased(caller, key.secret)
    suspended = Account(account_id=account, state=ACCOUNT_STATE_SUSPENDED)
    manager(UpdateAccountRequest(account=suspended, update_mask={"paths": ["state"]}))  # type: ignore[arg-type]
    for key in keys:
        eventually(partial(_is_denied, caller, key.secret), 1, "the denial")
        assert caller.check(key.secret, **WANTED).reason is Reason.ACCOUNT_SUSPENDED


def _used(manager: Manager, account: str, key_id: str) -> int:
    (limit,) = manager(GetLimitsRequest(account_id=account, key_id=key_id)).limits
    return int(limit.amount - limit.remaining)


def test_what_is_left_goes_back(caller: Caller, manager: Manager, account: str) -> None:
    """After the close exactly what was admitted is charged."""
    limit = Limit(name="rate", holder=HOLDER_KEY, amount=100_000, window=Duration(seconds=3_600))
    key = new_key(manager, account, limit)
    admitted = sum(caller.check(key.secret, **WANTED).allowed for _ in range(300))
    before = _used(manager, account, key.key_id)
    assert before > 0
    caller.close()
    used = _used(manager, account, key.key_id)
    assert used <= before
    assert used == admitted == 300


EXITING = """
import asyncio, sys
from formgate import AsyncClient, Client
kind, *given, secret = sys.argv[1:]
client = (Client if kind == "threads" else AsyncClient)(*given, timeout=5)
wanted = {"permissions": ("forms.view",), "resources": ("forms/f1",)}
async def ask():
    for _ in range(300):
        assert await client.check(secret, **wanted)
if kind == "threads":
    for _ in range(300):
        assert client.check(secret, **wanted)
else:
    asyncio.run(ask())
assert any(held.lease is not None for held in client._common.leases._by_key.values())
"""


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_goes_back_at_an_exit_without_a_close(
    kind: str, rpc_server: Server, manager: Manager, account: str
) -> None:
    """An interpreter that ends costs no more than what was admitted."""
    limit = Limit(name="rate", holder=HOLDER_KEY, amount=100_000, window=Duration(seconds=3_600))
    key = new_key(manager, account, limit)
    command = [sys.executable, "-c", EXITING, kind, rpc_server.address, rpc_server.token, key.secret]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
    assert ended.returncode == 0, ended.stderr
    assert _used(manager, account, key.key_id) == 300


@pytest.mark.parametrize("kind", KINDS)
def test_last_known_knows_what_leases_decide(
    kind: str, rpc_server: Server, manager: Manager, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The busiest keys' verdicts hardly ever come from the service itself; in an outage they are known all the same."""
    key = new_key(manager, account)
    wanted = {**WANTED, "http_method": "GET"}
    with (
        Proxy(int(rpc_server.address.rpartition(":")[2])) as proxy,
        Caller(
            kind,
            f"127.0.0.1:{proxy.port}",
            rpc_server.token,
            timeout=TIMEOUT,
            leases=True,
            fail={"read": "last known"},
            emergency=Emergency(remembered_seconds=2, checks_per_key=1_000),
        ) as caller,
    ):
        leased(caller, key.secret, **wanted)
        # From now on only what leases tell is remembered, and what was before grows too old.
        monkeypatch.setattr(caller.client._common.fallback, "answered", lambda *_: None)
        until = time.monotonic() + 2.2
        while time.monotonic() < until:
            assert caller.check(key.secret, **wanted)
            time.sleep(0.005)
        leased(caller, key.secret, **wanted)
        proxy.refuse()
        until = time.monotonic() + TIMEOUT
        while (verdict := caller.check(key.secret, timeout=0.2, **wanted)).source is not Source.FALLBACK:
            assert time.monotonic() < until
        assert verdict
        assert verdict.reason is Reason.OK
        assert not caller.check(key.secret, timeout=0.2, **{**wanted, "resources": ("forms/f9",)})


def test_many_holders_admit_what_the_limit_says(rpc_server: Server, manager: Manager, account: str) -> None:
    """Ten clients, three of them never settle, and nobody admits the 401st; all that was used is charged."""
    limit = Limit(name="rate", holder=HOLDER_KEY, amount=400, window=Duration(seconds=3_600))
    key = new_key(manager, account, limit)
    clients = [Client(rpc_server.address, rpc_server.token, timeout=TIMEOUT) for _ in range(6)]
    admitted = [0] * len(clients)

    def ask(index: int) -> None:
        for _ in range(200):
            admitted[index] += clients[index].check(key.secret, **WANTED).allowed

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) <= 400
    for client in clients[3:]:
        client.close()
    for client in clients[:3]:  # they end as a process does that is killed
        assert client._common.leases is not None
        client._common.leases.after_fork()
        client.close()
    assert sum(admitted) <= _used(manager, account, key.key_id) <= 400
    assert sum(admitted) >= 300


CHILD = """
import os, sys, time
from formgate import Client
from formgate.verdict import Source
address, token, secret = sys.argv[1:]
client = Client(address, token, timeout=5)
until = time.monotonic() + 10
while client.check(secret).source is not Source.LEASE:
    assert time.monotonic() < until
child = os.fork()
if not child:
    code = 1
    try:
        code = 0 if client.check(secret).source is Source.SERVICE else 2
        client.close()
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
client.close()
"""


def test_a_forked_child_holds_no_lease(rpc_server: Server, manager: Manager, account: str) -> None:
    """Else parent and child would each admit all of it."""
    key = new_key(manager, account)
    command = [sys.executable, "-c", CHILD, rpc_server.address, rpc_server.token, key.secret]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
    assert ended.returncode == 0, ended.stderr


def test_check_all_uses_leases(caller: Caller, manager: Manager, account: str) -> None:
    """Those that this process decides are not sent."""
    key = new_key(manager, account)
    leased(caller, key.secret)
    verdicts = caller.check_all([Check(key.secret, **WANTED), Check(key.secret, strict=True, **WANTED)])
    assert [verdict.source for verdict in verdicts] == [Source.LEASE, Source.SERVICE]


# ---------------------------------------------------------------------------------------- the same verdict and reason

PERMISSIONS = ("forms.view", "forms.edit", "forms.delete", "sites.view", "nothing", "Bad.Name")
PATTERNS = ("forms.view", "forms.edit", "forms.*", "sites.view", "*")
RESOURCES = ("*", "forms/f1", "forms/f1/submissions/9", "forms/f10", "folders/x", "organization", "folders/x/forms/f1")
ADDRESSES = ("", "10.1.2.3", "10.2.2.2", "::1", "::ffff:10.1.2.3", "192.168.0.1")


def _key(manager: Manager, rng: random.Random, accounts: tuple[str, ...]) -> Any:
    account = rng.choice(accounts)
    grants = [
        Grant(
            resource=rng.choice(RESOURCES),
            permissions=rng.sample(PATTERNS, rng.randint(0, 2)),
            level=LEVEL_READ,
        )
        for _ in range(rng.randint(0, 3))
    ]
    return manager(
        CreateKeyRequest(
            account_id=account,
            created_by="ann" if rng.random() < 0.5 else "",
            grants=grants,
            api_groups=rng.sample(("a", "b"), rng.randint(0, 1)),
            ip_rules=rng.sample(("10.1.*.*", "10.2.2.2", "::1"), rng.choice((0, 0, 1, 2))),
        )
    )


def _shape(rng: random.Random) -> Shape:
    return (
        tuple(rng.sample(PERMISSIONS, rng.choice((0, 1, 1, 2)))),
        tuple(rng.sample(RESOURCES, rng.choice((0, 1, 1, 2)))),
        rng.choice(("", "a", "b")),
        rng.choice((None, "live", "test")),
        rng.choice(("", "GET", "POST", "DELETE", "BREW")),
        rng.choice(ADDRESSES),
        rng.choice(("", "", "default", SECOND_POLICY)),
    )


def _request(secret: str, shape: Shape) -> pb.CheckKeyRequest:
    permissions, resources, api_group, environment, http_method, source_ip, policy = shape
    return pb.CheckKeyRequest(
        key=secret,
        permissions=permissions,
        resources=resources,
        api_group=api_group,
        environment=Environment.Value(f"ENVIRONMENT_{str(environment or 'unspecified').upper()}"),
        http_method=http_method,
        source_ip=source_ip,
        policy=policy,
    )


def _lease(manager: Manager, secret: str) -> pb.Lease:
    """Lease a key from the first address that it may be used from."""
    answers = (manager(pb.LeaseKeyRequest(key=secret, want_units=1, source_ip=address)) for address in ADDRESSES)
    lease: pb.Lease = next(answer.lease for answer in answers if answer.WhichOneof("result") == "lease")
    return lease


def test_the_same_verdict_and_reason_as_the_service(manager: Manager) -> None:
    """Of any key and request, whatever is decided here is what the service says at that moment."""
    rng = random.Random(20_776)
    accounts = (new_account(manager), new_account(manager, policy=SECOND_POLICY))
    for each in accounts:
        manager(SetMemberRequest(account_id=each, member_id="ann", permissions=["forms.view"], level=LEVEL_READ))
    decided = asked = 0
    seen = set()
    for _ in range(40):
        key = _key(manager, rng, accounts)
        lease = _lease(manager, key.secret)
        rules = LeasedRules(lease.rules_id, lease.rules)
        shapes = [_shape(rng) for _ in range(60)]
        batch = manager(pb.BatchCheckKeysRequest(requests=[_request(key.secret, shape) for shape in shapes]))
        for shape, result in zip(shapes, batch.results, strict=True):
            reason = rules.reason(shape)
            asked += 1
            if reason is not None:
                decided += 1
                assert reason == result.response.reason, (key.key, shape)
                seen.add(reason)
    assert decided > asked // 3, f"{decided} of {asked} were decided here"
    assert seen == {
        Reason.OK,
        Reason.ENVIRONMENT_MISMATCH,
        Reason.IP_NOT_ALLOWED,
        Reason.API_GROUP_NOT_ALLOWED,
        Reason.PERMISSION_DENIED,
        Reason.RESOURCE_NOT_ALLOWED,
    }


def test_no_more_is_watched_than_the_service_takes() -> None:
    """One more would end the stream, and so the push for all; when another is forgotten there is room."""
    leases = Leases(lambda _: pytest.fail("made twice"), Counters(), lambda: "id")
    leasing = Leasing(leases, connection("127.0.0.1:1", "t"))
    try:
        assert all(leasing.watch(f"a{number}") for number in range(MOST_WATCHED))
        assert leasing.watch("a0")
        assert not leasing.watch("one more")
        assert not leasing.watch("")
        leasing.forget("a0")
        assert leasing.watch("one more")
    finally:
        leasing.close()


def test_a_client_that_is_forgotten_leaves_nothing_behind(rpc_server: Server, manager: Manager, account: str) -> None:
    """Nobody has closed it: its threads and the connection of its leases end all the same."""
    before = set(threading.enumerate())
    client = Client(rpc_server.address, rpc_server.token, timeout=TIMEOUT)
    leased(client, new_key(manager, account).secret)

    def left() -> list[str]:
        gc.collect()
        return [each.name for each in threading.enumerate() if each not in before and each.name.startswith("formgate-")]

    assert len(left()) == 2
    del client
    eventually(lambda: not left(), TIMEOUT, "the threads' end")
