"""RecordUsage: durable when acknowledged, counted once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from formgate.v1 import authorization_pb2 as pb
from formgate.v1 import resources_pb2 as nouns
from formgate.v1.authorization_pb2 import CheckKeyRequest, RecordUsageRequest, UsageRecord
from formgate.v1.keys_pb2 import CreateKeyRequest, RevokeKeyRequest
from tests.support.client import Client, database
from tests.support.server import Server

pytest_plugins = ("tests.support.rpc",)

DAY = 86_400
LIMITS = [
    nouns.Limit(name="rate", amount=10, window=Duration(seconds=3_600)),
    nouns.Limit(name="daily", amount=10, calendar=nouns.CALENDAR_DAY),
]


def at(seconds: float) -> Timestamp:
    """Return a time so many seconds from now."""
    stamp = Timestamp()
    stamp.FromMicroseconds(int((time.time() + seconds) * 1_000_000))
    return stamp


def record(manager: Client, *records: UsageRecord) -> list[tuple[str, str]]:
    """Record usage; returns each outcome with its message, having seen that the ids come back in order."""
    results = manager(RecordUsageRequest(records=records)).results
    assert [each.record_id for each in results] == [each.record_id for each in records]
    return [(pb.Outcome.Name(each.outcome).removeprefix("OUTCOME_"), each.message) for each in results]


def outcomes(manager: Client, *records: UsageRecord) -> list[str]:
    """Record usage; returns the outcomes."""
    return [outcome for outcome, _ in record(manager, *records)]


def remaining(manager: Client, secret: str) -> list[int]:
    """Return what is left of each limit."""
    return [each.remaining for each in manager(CheckKeyRequest(key=secret, cost=0)).limits]


def stored(server: Server, account: str) -> tuple[int, int, int, int]:
    """Return the raw rows and their units, and the same by the hourly sums."""
    with closing(database(server)) as opened:
        raw = opened.execute("SELECT count(*), sum(units) FROM usage_records WHERE account_id = ?", (account,))
        rows = raw.fetchone()
        sums = opened.execute("SELECT sum(records), sum(units) FROM usage_hours WHERE account_id = ?", (account,))
        return (*(each or 0 for each in rows), *(each or 0 for each in sums.fetchone()))  # type: ignore[return-value]


@pytest.fixture
def key(manager: Client, account: str) -> tuple[str, str]:
    """A key's id and secret."""
    made = manager(CreateKeyRequest(account_id=account, limits=LIMITS))
    return made.key.key_id, made.secret


def full(key_id: str, /, **changes: Any) -> UsageRecord:
    """Make a record with every field set."""
    fields: dict[str, Any] = {
        "record_id": "r1",
        "key_id": key_id,
        "units": 3,
        "operation": "submissions.create",
        "resource": "forms/f1",
        "status_code": 201,
        "latency": Duration(nanos=2_000_000),
        "occur_time": Timestamp(seconds=int(time.time()) // DAY * DAY),
        "tags": {"plan": "free"},
        "charge_units": 0,
        "refund_request_id": "nothing",
    }
    return UsageRecord(**fields | changes)


def test_a_record_is_counted_once(rpc_server: Server, manager: Client, account: str, key: tuple[str, str]) -> None:
    """Sent again it is a DUPLICATE, with any other content a CONFLICT, and neither counts."""
    first = full(key[0])
    assert outcomes(manager, first) == ["ACCEPTED"]
    assert outcomes(manager, first, first) == ["DUPLICATE", "DUPLICATE"]
    others: list[dict[str, Any]] = [
        {"units": 4},
        {"operation": ""},
        {"resource": "forms/f2"},
        {"status_code": 0},
        {"latency": None},
        {"occur_time": at(0)},
        {"tags": {}},
        {"charge_units": None},
        {"refund_request_id": ""},
    ]
    for other in others:
        assert outcomes(manager, full(key[0], **other)) == ["CONFLICT"], other
    assert stored(rpc_server, account) == (1, 3, 1, 3)


def test_each_record_has_its_own_outcome(
    rpc_server: Server, manager: Client, account: str, key: tuple[str, str]
) -> None:
    """In order, and one that is wrong or repeated takes nothing from the others."""
    told = record(
        manager,
        full(key[0], record_id="a"),
        full(key[0], record_id="b", units=-1),
        full("nobody", record_id="c"),
        full(key[0], record_id="a"),
        full(key[0], record_id="a", units=9),
        full(key[0], record_id="d", latency=Duration(seconds=1, nanos=-1)),
        full(key[0], record_id="e"),
        full(key[0], record_id=""),
    )
    expected = ["ACCEPTED", "REJECTED", "REJECTED", "DUPLICATE", "CONFLICT", "REJECTED", "ACCEPTED", "REJECTED"]
    assert [outcome for outcome, _ in told] == expected
    named = [message.partition(":")[0] for outcome, message in told if outcome == "REJECTED"]
    assert named == ["units", "key_id", "latency", "record_id"]
    assert all(bool(message) == (outcome != "ACCEPTED") for outcome, message in told)
    assert stored(rpc_server, account) == (2, 6, 2, 6)


def test_repeated_concurrently_it_is_counted_once(
    rpc_server: Server, manager: Client, account: str, key: tuple[str, str]
) -> None:
    """Of the same record sent by many at once one is ACCEPTED."""
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: outcomes(manager, full(key[0]), full(key[0], record_id="r2")), range(16)))
    flat = [outcome for each in told for outcome in each]
    assert (flat.count("ACCEPTED"), flat.count("DUPLICATE")) == (2, 30)
    assert stored(rpc_server, account) == (2, 6, 2, 6)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"record_id": ""}, "record_id"),
        ({"record_id": "a b"}, "record_id"),
        ({"record_id": "a{b}"}, "record_id"),
        ({"record_id": "."}, "record_id"),
        ({"record_id": "x" * 65}, "record_id"),
        ({"key_id": ""}, "key_id"),
        ({"key_id": ".."}, "key_id"),
        ({"units": -1}, "units"),
        ({"operation": "x" * 129}, "operation"),
        ({"operation": "a\nb"}, "operation"),
        ({"resource": "forms/../x"}, "resource"),
        ({"resource": "forms//x"}, "resource"),
        ({"status_code": 99}, "status_code"),
        ({"status_code": 600}, "status_code"),
        ({"status_code": -1}, "status_code"),
        ({"latency": Duration(seconds=-1)}, "latency"),
        ({"latency": Duration(nanos=-1)}, "latency"),
        ({"latency": Duration(nanos=2**31 - 1)}, "latency"),
        ({"latency": Duration(seconds=2**63 - 1)}, "latency"),
        ({"occur_time": Timestamp(seconds=2**63 - 1)}, "occur_time"),
        ({"occur_time": Timestamp(nanos=-1)}, "occur_time"),
        ({"occur_time": Timestamp()}, "occur_time"),
        ({"tags": {"a" * 65: "b"}}, "tags"),
        ({"tags": {"a": "b" * 257}}, "tags"),
        ({"tags": {"a": "b\0"}}, "tags"),
        ({"tags": {"": "b"}}, "tags"),
        ({"tags": {str(at): "" for at in range(17)}}, "tags"),
        ({"charge_units": -1}, "charge_units"),
        ({"refund_request_id": "a b"}, "refund_request_id"),
    ],
)
def test_what_is_rejected(
    rpc_server: Server, manager: Client, account: str, key: tuple[str, str], changes: dict[str, Any], field: str
) -> None:
    """A record that can never be accepted is REJECTED, naming the field; nothing is counted or charged."""
    ((outcome, message),) = record(manager, full(key[0], **{"charge_units": 1} | changes))
    assert (outcome, message.partition(":")[0]) == ("REJECTED", field)
    assert stored(rpc_server, account) == (0, 0, 0, 0)
    assert remaining(manager, key[1]) == [10, 10]


def test_how_late_and_early(rpc_server: Server, manager: Client, account: str, key: tuple[str, str]) -> None:
    """35 days ago and 5 minutes ahead are the ends; a late record lands in the hour in which it happened."""
    late = at(-35 * DAY + 60)
    good = [full(key[0], record_id="a", occur_time=late), full(key[0], record_id="b", occur_time=at(290))]
    bad = [full(key[0], record_id="c", occur_time=at(-35 * DAY - 60)), full(key[0], record_id="d", occur_time=at(360))]
    assert outcomes(manager, *good, *bad) == ["ACCEPTED", "ACCEPTED", "REJECTED", "REJECTED"]
    with closing(database(rpc_server)) as opened:
        hours = [hour for (hour,) in opened.execute("SELECT hour FROM usage_hours WHERE account_id = ?", (account,))]
    assert late.ToMicroseconds() // 3_600_000_000 * 3_600_000_000 in hours


def test_a_revoked_keys_late_usage_is_accepted(manager: Client, key: tuple[str, str]) -> None:
    """What was consumed before counts."""
    manager(RevokeKeyRequest(key_id=key[0]))
    assert outcomes(manager, full(key[0], charge_units=1)) == ["ACCEPTED"]


def test_charge_units_overdraw(manager: Client, key: tuple[str, str]) -> None:
    """They are charged though the limit is used up, once."""
    for _ in range(2):
        outcomes(manager, full(key[0], charge_units=7))
    assert remaining(manager, key[1]) == [3, 3]
    outcomes(manager, full(key[0], record_id="r2", charge_units=5))
    assert remaining(manager, key[1]) == [0, 0]
    assert not manager(CheckKeyRequest(key=key[1])).allowed


def test_a_refund(manager: Client, key: tuple[str, str]) -> None:
    """What that request's check was charged is given back, once; an unknown request gives back nothing."""
    manager(CheckKeyRequest(key=key[1], cost=4, request_id="q1"))
    manager(CheckKeyRequest(key=key[1], cost=3, request_id="q2"))
    assert remaining(manager, key[1]) == [3, 3]
    assert outcomes(manager, full(key[0], refund_request_id="q1")) == ["ACCEPTED"]
    assert remaining(manager, key[1]) == [7, 7]
    assert outcomes(manager, full(key[0], record_id="r2", refund_request_id="q1")) == ["ACCEPTED"]
    assert outcomes(manager, full(key[0], record_id="r3", refund_request_id="q3")) == ["ACCEPTED"]
    assert remaining(manager, key[1]) == [7, 7]


def test_how_many_at_once(rpc_server: Server, manager: Client, account: str, key: tuple[str, str]) -> None:
    """1 to 1,000 records; the whole call is refused otherwise."""
    records = [full(key[0], record_id=f"r{number}") for number in range(1_001)]
    for wrong in ([], records):
        refusal = manager.refusal(RecordUsageRequest(records=wrong))
        assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ("records",))
    assert stored(rpc_server, account) == (0, 0, 0, 0)
    assert set(outcomes(manager, *records[:1_000])) == {"ACCEPTED"}
    assert stored(rpc_server, account) == (1_000, 3_000, 1_000, 3_000)
