"""The whole life of a key, members, limits, usage and the audit trail: what each method does and tells."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from formgate.v1 import accounts_pb2 as pb
from formgate.v1 import resources_pb2 as nouns
from formgate.v1.authorization_pb2 import OUTCOME_ACCEPTED, CheckKeyRequest, Reason, RecordUsageRequest, UsageRecord
from formgate.v1.keys_pb2 import (
    CopyKeyRequest,
    CreateKeyRequest,
    DeleteKeyRequest,
    DisableKeyRequest,
    GetKeyRequest,
    ListKeysRequest,
    RevealKeyRequest,
    RevokeKeyRequest,
    RotateKeyRequest,
)
from tests.support.client import Client, Refusal, new_account, new_token
from tests.support.server import Server, eventually

HOUR = 3_600
DAY = 24 * HOUR
RECOVERABLE = "jodoo"


@pytest.fixture(scope="module")
def rpc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the bundled policies; no test may depend on what others leave in it."""
    with Server(tmp_path_factory.mktemp("life")) as server:
        yield server


@pytest.fixture(scope="module")
def manager(rpc_server: Server) -> Iterator[Client]:
    """The manager whose token the server made itself."""
    client = Client(rpc_server.address, rpc_server.token)
    yield client
    client.close()


@pytest.fixture
def account(manager: Client) -> str:
    """The id of an account of the default policy that no other test knows."""
    return new_account(manager)


def told(manager: Client, secret: str, **asked: Any) -> str:
    """Check a key and return the name of the reason."""
    answer = manager(CheckKeyRequest(key=secret, **asked))
    return Reason.Name(answer.reason).removeprefix("REASON_")


def stamp(seconds: float) -> Timestamp:
    """Return an instant."""
    made = Timestamp()
    made.FromMicroseconds(round(seconds * 1_000_000))
    return made


def member(manager: Client, account: str, member_id: str = "ann", **fields: Any) -> nouns.Member:
    """Set a member."""
    made: nouns.Member = manager(pb.SetMemberRequest(account_id=account, member_id=member_id, **fields)).member
    return made


# Copying.


def test_a_copy_is_like_its_original(manager: Client, account: str) -> None:
    """All but id, secret, name, state and times is copied; the copy has counters of its own."""
    limit = nouns.Limit(name="rate", holder=nouns.HOLDER_KEY, amount=1, window=Duration(seconds=HOUR))
    original = manager(
        CreateKeyRequest(
            account_id=account,
            display_name="original",
            environment=nouns.ENVIRONMENT_TEST,
            created_by="ann",
            grants=[nouns.Grant(resource="forms/f1", level=nouns.LEVEL_READ)],
            api_groups=["a"],
            ip_rules=["10.0.0.0/8"],
            limits=[limit],
            ttl=Duration(seconds=DAY),
            metadata={"team": "it"},
            request_id="r1",
        )
    )
    asked: dict[str, Any] = {"api_group": "a", "source_ip": "10.0.0.1"}
    assert told(manager, original.secret, **asked) == "OK"
    assert told(manager, original.secret, **asked) == "RATE_LIMITED"
    manager(DisableKeyRequest(key_id=original.key.key_id))
    made = manager(CopyKeyRequest(key_id=original.key.key_id, display_name="copy"))
    expected = nouns.Key()
    expected.CopyFrom(original.key)
    for name in ("key_id", "hint", "create_time", "display_name"):
        assert getattr(made.key, name) != getattr(expected, name)
    expected.key_id, expected.hint, expected.display_name = made.key.key_id, made.key.hint, "copy"
    expected.create_time.CopyFrom(made.key.create_time)
    assert made.key == expected == manager(GetKeyRequest(key_id=made.key.key_id)).key
    assert made.secret.startswith("fg_test_")
    assert made.secret != original.secret
    assert told(manager, made.secret, **asked) == "OK"


def test_what_has_ended_is_not_copied(manager: Client, account: str) -> None:
    """Neither a revoked key nor an expired one, which would make a key that never works."""
    revoked = manager(CreateKeyRequest(account_id=account))
    manager(RevokeKeyRequest(key_id=revoked.key.key_id))
    expired = manager(CreateKeyRequest(account_id=account, ttl=Duration(nanos=1_000)))
    for key in (revoked.key, expired.key):
        refusal = manager.refusal(CopyKeyRequest(key_id=key.key_id))
        assert (refusal.code, refusal.reason) == (StatusCode.FAILED_PRECONDITION, "KEY_ENDED")


# Revealing.


def test_reveal(manager: Client) -> None:
    """A recoverable key's secret is told again; each time is in the audit trail, and the secret is not."""
    account = new_account(manager, policy=RECOVERABLE)
    made = manager(CreateKeyRequest(account_id=account))
    for _ in range(2):
        assert manager(RevealKeyRequest(key_id=made.key.key_id)).secret == made.secret
    events = manager.all(pb.ListAuditEventsRequest(account_id=account))
    assert [event.action for event in events] == ["RevealKey", "RevealKey", "CreateKey", "CreateAccount"]
    assert made.secret not in str(events)
    manager(DisableKeyRequest(key_id=made.key.key_id))
    assert manager(RevealKeyRequest(key_id=made.key.key_id)).secret == made.secret


def test_what_can_not_be_revealed(manager: Client, account: str) -> None:
    """A key whose policy does not keep secrets has none to tell."""
    made = manager(CreateKeyRequest(account_id=account))
    refusal = manager.refusal(RevealKeyRequest(key_id=made.key.key_id))
    assert (refusal.code, refusal.reason) == (StatusCode.FAILED_PRECONDITION, "NOT_RECOVERABLE")


def test_a_sealed_secret_is_not_in_the_data(manager: Client, rpc_server: Server) -> None:
    """Nowhere in the data folder or the log is a recoverable secret, or its random part, to be read."""
    account = new_account(manager, policy=RECOVERABLE)
    made = manager(CreateKeyRequest(account_id=account))
    manager(RevealKeyRequest(key_id=made.key.key_id))
    random = made.secret.removeprefix("jd_")[:43].encode()
    files = [path for path in rpc_server.folder.rglob("*") if path.is_file()]
    assert any(path.name == "formgate.db" for path in files)
    assert [path.name for path in files if random in path.read_bytes()] == []


# Deleting.


def test_a_deleted_key_is_gone(manager: Client, account: str) -> None:
    """Checks say KEY_NOT_FOUND at once, nothing finds it, and its late usage still counts."""
    made = manager(CreateKeyRequest(account_id=account, request_id="r1", created_by="ann"))
    key_id = made.key.key_id
    assert told(manager, made.secret) == "OK"
    epoch = manager(pb.GetAccountRequest(account_id=account)).account.epoch
    done = manager(DeleteKeyRequest(key_id=key_id))
    assert done.effective_time.ToMicroseconds() <= time.time() * 1_000_000
    assert told(manager, made.secret) == "KEY_NOT_FOUND"
    assert manager(pb.GetAccountRequest(account_id=account)).account.epoch > epoch
    for request in (
        GetKeyRequest(key_id=key_id),
        DeleteKeyRequest(key_id=key_id),
        RevokeKeyRequest(key_id=key_id),
        CopyKeyRequest(key_id=key_id),
        RotateKeyRequest(key_id=key_id),
        RevealKeyRequest(key_id=key_id),
        pb.GetLimitsRequest(key_id=key_id),
    ):
        refusal = manager.refusal(request)
        assert (refusal.code, refusal.reason) == (StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
    assert not manager(ListKeysRequest(account_id=account)).keys
    late = UsageRecord(record_id="late", key_id=key_id, units=7, charge_units=7)
    assert manager(RecordUsageRequest(records=[late])).results[0].outcome == OUTCOME_ACCEPTED
    again = manager.outcome(CreateKeyRequest(account_id=account, request_id="r1"))
    assert not isinstance(again, Refusal) or again.code is StatusCode.ALREADY_EXISTS
    manager(pb.SetMemberRequest(account_id=account, member_id="ann"))
    manager(pb.RemoveMemberRequest(account_id=account, member_id="ann", key_disposition=pb.KEY_DISPOSITION_REVOKE))
    assert told(manager, made.secret) == "KEY_NOT_FOUND"


# Rotating.


def test_rotate(manager: Client, account: str) -> None:
    """The same key with a new secret; the old one is nobody's at once where no overlap is said."""
    made = manager(CreateKeyRequest(account_id=account, display_name="k"))
    rotated = manager(RotateKeyRequest(key_id=made.key.key_id))
    assert made.key.create_time.ToMicroseconds() < rotated.effective_time.ToMicroseconds() <= time.time() * 1_000_000
    expected = nouns.Key()
    expected.CopyFrom(made.key)
    expected.hint, expected.etag = rotated.key.hint, rotated.key.etag
    assert rotated.key == expected == manager(GetKeyRequest(key_id=made.key.key_id)).key
    assert rotated.key.hint == f"fg_live_...{rotated.secret[-4:]}"
    assert rotated.key.etag != made.key.etag
    assert [told(manager, made.secret), told(manager, rotated.secret)] == ["KEY_NOT_FOUND", "OK"]


def test_the_overlap_ends(manager: Client, account: str) -> None:
    """The old secret works during the overlap and never after it, though nothing else changes."""
    made = manager(CreateKeyRequest(account_id=account))
    began = time.time()
    rotated = manager(RotateKeyRequest(key_id=made.key.key_id, overlap=Duration(nanos=400_000_000)))
    returned = time.time()

    def ended() -> bool:
        asked = time.time()
        reason = told(manager, made.secret)
        answered = time.time()
        assert reason == "OK" or answered >= began + 0.4, "it ended too early"
        assert reason == "KEY_NOT_FOUND" or asked < returned + 0.4, "it worked too long"
        return reason == "KEY_NOT_FOUND"

    eventually(ended, 10, "the end of the overlap")
    assert told(manager, rotated.secret) == "OK"


def test_rotate_twice_and_revoke(manager: Client, account: str) -> None:
    """Three secrets at once are one key; revoking it during the overlaps ends them all."""
    made = manager(CreateKeyRequest(account_id=account))
    overlap = Duration(seconds=HOUR)
    secrets = [made.secret] + [
        manager(RotateKeyRequest(key_id=made.key.key_id, overlap=overlap)).secret for _ in range(2)
    ]
    assert len(set(secrets)) == 3
    assert {manager(CheckKeyRequest(key=secret)).key.key_id for secret in secrets} == {made.key.key_id}
    manager(RevokeKeyRequest(key_id=made.key.key_id))
    assert [told(manager, secret) for secret in secrets] == ["KEY_REVOKED"] * 3
    assert manager.refusal(RotateKeyRequest(key_id=made.key.key_id)).reason == "KEY_REVOKED"


def test_rotating_again_without_overlap_ends_all_older_secrets(manager: Client, account: str) -> None:
    """One that has leaked is dead once RotateKey without an overlap has returned, whatever was promised it before."""
    made = manager(CreateKeyRequest(account_id=account))
    second = manager(RotateKeyRequest(key_id=made.key.key_id, overlap=Duration(seconds=30 * DAY))).secret
    assert [told(manager, made.secret), told(manager, second)] == ["OK", "OK"]
    newest = manager(RotateKeyRequest(key_id=made.key.key_id)).secret
    told_now = [told(manager, secret) for secret in (made.secret, second, newest)]
    assert told_now == ["KEY_NOT_FOUND", "KEY_NOT_FOUND", "OK"]


def test_counters_go_along(manager: Client, account: str) -> None:
    """A rotation refills nothing: both secrets charge the key's one counter."""
    limit = nouns.Limit(name="credits", holder=nouns.HOLDER_KEY, amount=3, lifetime=True)
    made = manager(CreateKeyRequest(account_id=account, limits=[limit]))
    assert told(manager, made.secret) == "OK"
    new = manager(RotateKeyRequest(key_id=made.key.key_id, overlap=Duration(seconds=HOUR))).secret
    assert [told(manager, secret) for secret in (new, made.secret, new)] == ["OK", "OK", "CREDITS_EXHAUSTED"]
    (status,) = manager(pb.GetLimitsRequest(key_id=made.key.key_id)).limits
    assert status.remaining == 0


def test_rotated_concurrently(manager: Client, account: str) -> None:
    """Of many rotations at once each is told a secret, and in the end one works: that which the key's hint shows."""
    made = manager(CreateKeyRequest(account_id=account))
    with ThreadPoolExecutor(8) as pool:
        rotated = list(pool.map(manager, [RotateKeyRequest(key_id=made.key.key_id)] * 12))
    working = [each.secret for each in rotated if told(manager, each.secret) == "OK"]
    key = manager(GetKeyRequest(key_id=made.key.key_id)).key
    assert [f"fg_live_...{secret[-4:]}" for secret in working] == [key.hint]


@pytest.mark.parametrize(
    "overlap", [Duration(seconds=-1), Duration(seconds=30 * DAY, nanos=1_000), Duration(seconds=1, nanos=-1)]
)
def test_overlaps_that_are_refused(manager: Client, account: str, overlap: Duration) -> None:
    """An overlap is 0 to 30 days."""
    made = manager(CreateKeyRequest(account_id=account))
    refusal = manager.refusal(RotateKeyRequest(key_id=made.key.key_id, overlap=overlap))
    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ("overlap",))
    longest = Duration(seconds=30 * DAY)
    assert manager(RotateKeyRequest(key_id=made.key.key_id, overlap=longest)).secret


# Members.


def test_members(manager: Client, account: str) -> None:
    """Set, set again, list by page, remove; each change raises the epoch."""
    made = [member(manager, account, f"m{at}", role=nouns.ROLE_ADMIN, permissions=["a.b"]) for at in range(5)]
    assert made[0].role == nouns.ROLE_ADMIN
    assert manager.all(pb.ListMembersRequest(account_id=account, page_size=2)) == made
    epoch = manager(pb.GetAccountRequest(account_id=account)).account.epoch
    again = member(manager, account, "m0", level=nouns.LEVEL_READ)
    assert (again.role, list(again.permissions), again.level) == (nouns.ROLE_MEMBER, [], nouns.LEVEL_READ)
    assert again.create_time == made[0].create_time
    assert manager(pb.GetAccountRequest(account_id=account)).account.epoch == epoch + 1
    removal = pb.RemoveMemberRequest(account_id=account, member_id="m0", key_disposition=pb.KEY_DISPOSITION_KEEP)
    manager(removal)
    assert manager.refusal(removal).reason == "MEMBER_NOT_FOUND"
    assert manager.all(pb.ListMembersRequest(account_id=account)) == made[1:]


@pytest.mark.parametrize(
    ("disposition", "reason"),
    [
        (pb.KEY_DISPOSITION_KEEP, "PERMISSION_DENIED"),
        (pb.KEY_DISPOSITION_DISABLE, "KEY_DISABLED"),
        (pb.KEY_DISPOSITION_REVOKE, "KEY_REVOKED"),
    ],
)
def test_remove_member(manager: Client, account: str, disposition: Any, reason: str) -> None:
    """What becomes of its keys is as asked, at the very next check; those of others stay."""
    for each in ("ann", "bob"):
        member(manager, account, each, permissions=["a.b"])
    anns, bobs = (manager(CreateKeyRequest(account_id=account, created_by=each)).secret for each in ("ann", "bob"))
    assert told(manager, anns, permissions=["a.b"]) == "OK"
    manager(pb.RemoveMemberRequest(account_id=account, member_id="ann", key_disposition=disposition))
    assert told(manager, anns, permissions=["a.b"]) == reason
    assert told(manager, bobs, permissions=["a.b"]) == "OK"


def test_a_disposition_is_needed(manager: Client, account: str) -> None:
    """What becomes of the keys must be said, and be one of the three."""
    member(manager, account)
    for disposition in (0, 9):
        request = pb.RemoveMemberRequest(account_id=account, member_id="ann", key_disposition=disposition)  # type: ignore[arg-type]
        refusal = manager.refusal(request)
        assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ("key_disposition",))


def test_changes_bind_every_later_check(manager: Client, account: str) -> None:
    """Under load, once SetMember has returned no check that starts later decides by the old rights."""
    member(manager, account)
    secret = manager(CreateKeyRequest(account_id=account, created_by="ann")).secret
    with ThreadPoolExecutor(4) as pool:
        noise = [pool.submit(told, manager, secret, permissions=["a.b"]) for _ in range(100)]
        for turn in range(20):
            member(manager, account, permissions=["a.b"] if turn % 2 else [])
            assert told(manager, secret, permissions=["a.b"]) == ("OK" if turn % 2 else "PERMISSION_DENIED")
    assert {each.result() for each in noise} <= {"OK", "PERMISSION_DENIED"}


# Policies, limits, usage.


def test_list_policies(manager: Client) -> None:
    """All that the server knows, by name, by pages."""
    listed = manager.all(pb.ListPoliciesRequest(page_size=2))
    names = [policy.name for policy in listed]
    assert names == sorted(names)
    assert {"default", RECOVERABLE} <= set(names)
    assert len(manager(pb.ListPoliciesRequest(page_size=2)).policies) == 2
    assert manager.refusal(pb.ListPoliciesRequest(page_token="x")).fields == ("page_token",)


def test_get_limits(manager: Client) -> None:
    """Where each counter stands, of the account or of a key; looking charges nothing."""
    daily = nouns.Limit(name="daily", holder=nouns.HOLDER_ACCOUNT, amount=10, calendar=nouns.CALENDAR_DAY)
    credits_ = nouns.Limit(name="credits", holder=nouns.HOLDER_KEY, lifetime=True)
    account = new_account(manager, limits=[daily])
    made = manager(CreateKeyRequest(account_id=account, limits=[credits_]))
    manager(CheckKeyRequest(key=made.secret, cost=4))
    for _ in range(2):
        (status,) = manager(pb.GetLimitsRequest(account_id=account)).limits
        assert (status.name, status.holder, status.amount, status.remaining) == ("daily", nouns.HOLDER_ACCOUNT, 10, 6)
        assert status.HasField("reset_time")
        of_key = manager(pb.GetLimitsRequest(key_id=made.key.key_id)).limits
        assert [(each.name, each.unlimited) for each in of_key] == [("daily", False), ("credits", True)]
    other = new_account(manager)
    assert manager.refusal(pb.GetLimitsRequest(account_id=other, key_id=made.key.key_id)).fields == ("key_id",)
    assert manager.refusal(pb.GetLimitsRequest()).fields == ("account_id",)


def test_get_usage(manager: Client) -> None:
    """Sums by hour of UTC and by day of the account's zone, together, by key and by operation."""
    account = new_account(manager, time_zone="Asia/Kathmandu")
    keys = [manager(CreateKeyRequest(account_id=account)).key.key_id for _ in range(2)]
    midnight = (int(time.time()) + 5 * HOUR + 45 * 60) // DAY * DAY - 5 * HOUR - 45 * 60 - DAY  # yesterday's, there
    hour = midnight + 45 * 60  # the first hour of UTC that begins on that day
    uses = [(hour - 1, 1), (hour, 2), (hour + 3_599, 4), (hour + HOUR, 8), (hour + DAY - HOUR, 16)]
    records = [
        UsageRecord(record_id=f"{key}-{at}", key_id=key, units=units, operation=f"o{at % 2}", occur_time=stamp(when))
        for key in keys
        for at, (when, units) in enumerate(uses)
    ]
    manager(RecordUsageRequest(records=records))
    asked: dict[str, Any] = {"account_id": account, "start_time": stamp(hour - HOUR), "end_time": stamp(hour + DAY)}

    def buckets(**more: Any) -> list[tuple[int, str, int, int]]:
        answer = manager(pb.GetUsageRequest(**asked, **more))
        return [(each.start_time.seconds, each.group, each.units, each.records) for each in answer.buckets]

    by_hour = [(hour - HOUR, "", 2, 2), (hour, "", 12, 4), (hour + HOUR, "", 16, 2), (hour + DAY - HOUR, "", 32, 2)]
    assert buckets() == buckets(granularity=pb.GRANULARITY_HOUR) == by_hour
    days = buckets(granularity=pb.GRANULARITY_DAY)
    assert days == [(midnight - DAY, "", 2, 2), (midnight, "", 60, 8)]
    by_key = buckets(granularity=pb.GRANULARITY_DAY, group_by="key")
    assert by_key == sorted((start, key, units // 2, n // 2) for start, _, units, n in days for key in keys)
    assert buckets(granularity=pb.GRANULARITY_DAY, key_id=keys[0]) == [
        (start, group, units // 2, n // 2) for start, group, units, n in days
    ]
    assert [(each[1], each[2]) for each in buckets(granularity=pb.GRANULARITY_DAY, group_by="operation")] == [
        ("o0", 2),
        ("o0", 40),
        ("o1", 20),
    ]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "start_time"),
        ({"start_time": stamp(10), "end_time": stamp(10)}, "end_time"),
        ({"start_time": stamp(0)}, "end_time"),
        ({"start_time": stamp(0), "end_time": stamp(9), "group_by": "tag:x"}, "group_by"),
        ({"start_time": stamp(0), "end_time": stamp(9), "granularity": 7}, "granularity"),
        ({"start_time": Timestamp(nanos=-1)}, "start_time"),
    ],
)
def test_what_usage_can_not_be_asked(manager: Client, account: str, fields: dict[str, Any], field: str) -> None:
    """What is missing, or none, is named."""
    refusal = manager.refusal(pb.GetUsageRequest(account_id=account, **fields))
    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, (field,))


# The audit trail.


def test_the_audit_trail(manager: Client, account: str) -> None:
    """Every change of a key's life is a row, newest first: who, from where, before and after, and no secret."""
    actor = (("formgate-actor", "ann"), ("formgate-actor-ip", "192.0.2.1"))
    made = manager(CreateKeyRequest(account_id=account), *actor)
    key_id = made.key.key_id
    rotated = manager(RotateKeyRequest(key_id=key_id), *actor)
    copied = manager(CopyKeyRequest(key_id=key_id), *actor)
    manager(pb.SetMemberRequest(account_id=account, member_id="ann"), *actor)
    manager(DeleteKeyRequest(key_id=key_id), *actor)
    events = manager.all(pb.ListAuditEventsRequest(account_id=account, page_size=2))
    assert [event.action for event in events] == [
        "DeleteKey",
        "SetMember",
        "CopyKey",
        "RotateKey",
        "CreateKey",
        "CreateAccount",
    ]
    assert [event.sequence for event in events] == [6, 5, 4, 3, 2, 1]
    assert {(event.actor, event.actor_ip) for event in events[:-1]} == {("ann", "192.0.2.1")}
    assert {event.token_id for event in events} == {events[0].token_id} != {""}
    assert [bool(event.before) for event in events] == [True, False, False, True, False, False]
    assert json.loads(events[3].before)["hint"] == made.key.hint
    assert json.loads(events[3].after)["hint"] == rotated.key.hint
    assert events[0].after == ""
    for secret in (made.secret, rotated.secret, copied.secret):
        assert secret not in str(events)
    of_key = manager.all(pb.ListAuditEventsRequest(account_id=account, key_id=key_id))
    assert [event.action for event in of_key] == ["DeleteKey", "RotateKey", "CreateKey"]


def test_the_audit_trail_of_a_time(manager: Client, account: str) -> None:
    """From an instant, inclusive, to another, exclusive."""
    for _ in range(3):
        manager(CreateKeyRequest(account_id=account))
    events = manager.all(pb.ListAuditEventsRequest(account_id=account))
    some = pb.ListAuditEventsRequest(
        account_id=account, start_time=events[2].create_time, end_time=events[0].create_time
    )
    assert [event.sequence for event in manager.all(some)] == [3, 2]


def test_who_may_read_and_change(manager: Client, account: str, rpc_server: Server) -> None:
    """An auditor reads all of it and changes nothing, telling secrets included; another account's is NOT_FOUND."""
    made = manager(CreateKeyRequest(account_id=new_account(manager, policy=RECOVERABLE)))
    auditor = Client(rpc_server.address, new_token(manager, nouns.SERVICE_ROLE_AUDITOR)[1])
    for request in (
        pb.ListMembersRequest(account_id=account),
        pb.ListPoliciesRequest(),
        pb.GetLimitsRequest(account_id=account),
        pb.GetUsageRequest(account_id=account, start_time=stamp(time.time() - HOUR)),
        pb.ListAuditEventsRequest(account_id=account),
    ):
        auditor(request)
    for change in (
        RevealKeyRequest(key_id=made.key.key_id),
        CopyKeyRequest(key_id=made.key.key_id),
        RotateKeyRequest(key_id=made.key.key_id),
        DeleteKeyRequest(key_id=made.key.key_id),
        pb.SetMemberRequest(account_id=account, member_id="ann"),
        pb.RemoveMemberRequest(account_id=account, member_id="ann"),
    ):
        assert auditor.refusal(change).code is StatusCode.PERMISSION_DENIED
    auditor.close()
    bound = Client(rpc_server.address, new_token(manager, nouns.SERVICE_ROLE_MANAGER, account_id=account)[1])
    for foreign in (
        RevealKeyRequest(key_id=made.key.key_id),
        RotateKeyRequest(key_id=made.key.key_id),
        pb.GetLimitsRequest(key_id=made.key.key_id),
        pb.ListAuditEventsRequest(account_id=made.key.account_id),
        pb.SetMemberRequest(account_id=made.key.account_id, member_id="ann"),
        pb.GetUsageRequest(account_id=made.key.account_id, start_time=stamp(0)),
    ):
        assert bound.refusal(foreign).code is StatusCode.NOT_FOUND
    bound.close()
