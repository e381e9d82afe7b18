"""KeyService: what each method does and tells, and that it is all written at once."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import GetAccountRequest, ListAuditEventsRequest
from formgate.v1.authorization_pb2 import CheckKeyRequest
from formgate.v1.keys_pb2 import (
    CreateKeyRequest,
    DisableKeyRequest,
    EnableKeyRequest,
    GetKeyRequest,
    ListKeysRequest,
    RevokeKeyRequest,
    UpdateKeyRequest,
)
from tests.support.client import SECOND_POLICY, Client, Refusal, database, new_account
from tests.support.server import Server

pytest_plugins = ("tests.support.rpc",)

FAR = Timestamp(seconds=4_102_444_800)
LIMIT = nouns.Limit(name="rate", holder=nouns.HOLDER_KEY, amount=5, window=Duration(seconds=60))
CHANGES = {"revoke": RevokeKeyRequest, "disable": DisableKeyRequest, "enable": EnableKeyRequest}
UPDATES: dict[str, dict[str, Any]] = {
    "display_name": {"display_name": "another"},
    "grants": {"grants": [nouns.Grant(resource="forms/f1", permissions=["forms.*"], level=nouns.LEVEL_READ)]},
    "api_groups": {"api_groups": ["a", "b"]},
    "ip_rules": {"ip_rules": ["10.0.0.0/8", "2001:db8::/32", "192.0.2.*"]},
    "limits": {"limits": [LIMIT, nouns.Limit(name="credits", holder=nouns.HOLDER_KEY, lifetime=True)]},
    "expire_time": {"expire_time": FAR},
    "metadata": {"metadata": {"a": "b"}},
}


def now() -> float:
    """Return the time as the server has it: it is the same machine."""
    return time.time()


def seconds(stamp: Timestamp) -> float:
    """Return a timestamp as ``now`` does."""
    return stamp.ToMicroseconds() / 1_000_000


def audit(server: Server, account_id: str) -> list[dict[str, Any]]:
    """Return an account's audit trail as it is on disk."""
    columns = ("sequence", "action", "target", "token_id", "actor", "actor_ip", "before", "after", "note")
    query = f"SELECT {', '.join(columns)} FROM audit_events WHERE account_id = ? ORDER BY sequence"
    with closing(database(server)) as opened:
        rows = [dict(zip(columns, row, strict=True)) for row in opened.execute(query, (account_id,))]
    for row in rows:
        row["before"], row["after"] = (json.loads(row[name] or "null") for name in ("before", "after"))
    return rows


def test_a_new_key_is_as_asked(manager: Client, account: str) -> None:
    """Every field comes back as it was given; the secret is told once, and its hint shows but its ends."""
    fields: dict[str, Any] = {"environment": nouns.ENVIRONMENT_TEST, "created_by": "ann"}
    for each in UPDATES.values():
        fields |= each
    began = now()
    made = manager(CreateKeyRequest(account_id=account, **fields))
    key = made.key
    assert began <= seconds(key.create_time) <= now()
    output = ("key_id", "hint", "create_time", "etag")
    expected = nouns.Key(account_id=account, state=nouns.KEY_STATE_ENABLED, **fields)
    for name in output:
        assert getattr(key, name), name
        key.ClearField(name)
    assert key == expected
    assert re.fullmatch(r"fg_test_[0-9A-Za-z]{49}", made.secret)


def test_a_new_keys_defaults(manager: Client, account: str) -> None:
    """LIVE, enabled, never expiring, without grants, rules and limits; and found again as it was told."""
    made = manager(CreateKeyRequest(account_id=account))
    key = made.key
    assert re.fullmatch(r"fg_live_[0-9A-Za-z]{49}", made.secret)
    assert key.hint == f"fg_live_...{made.secret[-4:]}"
    given = {field.name for field, _ in key.ListFields()}
    assert given == {"key_id", "account_id", "environment", "state", "hint", "create_time", "etag"}
    assert (key.environment, key.state) == (nouns.ENVIRONMENT_LIVE, nouns.KEY_STATE_ENABLED)
    assert manager(GetKeyRequest(key_id=key.key_id)).key == key
    assert list(manager(ListKeysRequest(account_id=account)).keys) == [key]


def test_creating_a_key_raises_no_epoch(manager: Client, account: str) -> None:
    """No verdict changes by a new key, so no cache needs to forget."""
    before = manager(GetAccountRequest(account_id=account)).account.epoch
    manager(CreateKeyRequest(account_id=account))
    assert manager(GetAccountRequest(account_id=account)).account.epoch == before


def test_ttl(manager: Client, account: str) -> None:
    """A time to live counts from the creation."""
    key = manager(CreateKeyRequest(account_id=account, ttl=Duration(seconds=90, nanos=5_000))).key
    assert key.expire_time.ToMicroseconds() - key.create_time.ToMicroseconds() == 90_000_005


def test_an_environment_that_the_policy_has_not(manager: Client) -> None:
    """It is wrong in this state, not in every: another account's policy has it."""
    account = new_account(manager, policy=SECOND_POLICY)
    refusal = manager.refusal(CreateKeyRequest(account_id=account, environment=nouns.ENVIRONMENT_TEST))
    assert (refusal.code, refusal.reason) == (StatusCode.FAILED_PRECONDITION, "ENVIRONMENT_NOT_OFFERED")


def test_a_repeated_request_id_makes_no_second_key(manager: Client, account: str) -> None:
    """It is ALREADY_EXISTS and names the key; the id is the account's own."""
    made = manager(CreateKeyRequest(account_id=account, request_id="r1", display_name="first"))
    refusal = manager.refusal(CreateKeyRequest(account_id=account, request_id="r1", display_name="second"))
    assert (refusal.code, refusal.reason) == (StatusCode.ALREADY_EXISTS, "REQUEST_REPEATED")
    assert dict(refusal.metadata) == {"key_id": made.key.key_id}
    assert made.key.key_id in refusal.message
    assert list(manager(ListKeysRequest(account_id=account)).keys) == [made.key]
    other = manager(CreateKeyRequest(account_id=new_account(manager), request_id="r1"))
    assert other.key.key_id != made.key.key_id


def test_a_request_id_repeated_concurrently_makes_one_key(manager: Client, account: str) -> None:
    """However many calls are under way with it, one makes the key and the others name it."""
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(manager.outcome, [CreateKeyRequest(account_id=account, request_id="r1")] * 24))
    refused = [each for each in outcomes if isinstance(each, Refusal)]
    (made,) = (each for each in outcomes if not isinstance(each, Refusal))
    assert {each.code for each in refused} == {StatusCode.ALREADY_EXISTS}
    assert {dict(each.metadata)["key_id"] for each in refused} == {made.key.key_id}
    assert len(manager(ListKeysRequest(account_id=account)).keys) == 1


@pytest.mark.parametrize("field", UPDATES)
def test_an_update_changes_what_its_mask_names(manager: Client, account: str, field: str) -> None:
    """That field and the etag change, whatever else the request holds; an empty value takes it away."""
    all_fields: dict[str, Any] = {}
    for each in UPDATES.values():
        all_fields |= each
    before = manager(CreateKeyRequest(account_id=account)).key
    began = now()
    asked = nouns.Key(key_id=before.key_id, created_by="eve", state=nouns.KEY_STATE_REVOKED, **all_fields)
    done = manager(UpdateKeyRequest(key=asked, update_mask=FieldMask(paths=[field])))
    assert began <= seconds(done.effective_time) <= now()
    expected = nouns.Key()
    expected.CopyFrom(before)
    expected.etag = done.key.etag
    expected.MergeFrom(nouns.Key(**UPDATES[field]))
    assert done.key == manager(GetKeyRequest(key_id=before.key_id)).key == expected
    assert done.key.etag != before.etag
    emptied = manager(UpdateKeyRequest(key=nouns.Key(key_id=before.key_id), update_mask=FieldMask(paths=[field]))).key
    expected.CopyFrom(before)
    expected.etag = emptied.etag
    assert emptied == expected


def test_an_update_of_all_fields(manager: Client, account: str) -> None:
    """A mask may name them all, and one twice."""
    before = manager(CreateKeyRequest(account_id=account)).key
    fields: dict[str, Any] = {}
    for each in UPDATES.values():
        fields |= each
    mask = FieldMask(paths=[*UPDATES, "grants"])
    after = manager(UpdateKeyRequest(key=nouns.Key(key_id=before.key_id, **fields), update_mask=mask)).key
    for name, value in fields.items():
        assert getattr(after, name) == value


def test_etags(manager: Client, account: str) -> None:
    """A change by an older etag is ABORTED and changes nothing; by the present one, or none, it goes through."""
    key = manager(CreateKeyRequest(account_id=account)).key
    mask = FieldMask(paths=["display_name"])

    def update(name: str, etag: str) -> Any:
        changed = nouns.Key(key_id=key.key_id, display_name=name, etag=etag)
        return manager.outcome(UpdateKeyRequest(key=changed, update_mask=mask))

    first = update("first", key.etag)
    for wrong in (key.etag, "garbage", "v0", first.key.etag + " "):
        refusal = update("second", wrong)
        assert (refusal.code, refusal.reason) == (StatusCode.ABORTED, "ETAG_MISMATCH")
    assert manager(GetKeyRequest(key_id=key.key_id)).key == first.key
    assert update("third", "").key.display_name == "third"


def test_concurrent_updates_by_one_etag(manager: Client, account: str) -> None:
    """Of many who read the same, one changes it."""
    key = manager(CreateKeyRequest(account_id=account)).key
    requests = [
        UpdateKeyRequest(
            key=nouns.Key(key_id=key.key_id, display_name=str(at), etag=key.etag),
            update_mask=FieldMask(paths=["display_name"]),
        )
        for at in range(16)
    ]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(manager.outcome, requests))
    refused = [each for each in outcomes if isinstance(each, Refusal)]
    assert {each.code for each in refused} == {StatusCode.ABORTED}
    assert len(refused) == 15


@pytest.mark.parametrize(
    ("first", "then", "state"),
    [
        ("", "disable", "DISABLED"),
        ("", "enable", "ENABLED"),
        ("", "revoke", "REVOKED"),
        ("disable", "enable", "ENABLED"),
        ("disable", "disable", "DISABLED"),
        ("disable", "revoke", "REVOKED"),
        ("revoke", "revoke", "REVOKED"),
        ("revoke", "enable", None),
        ("revoke", "disable", None),
    ],
)
def test_states(manager: Client, account: str, first: str, then: str, state: str | None) -> None:
    """ENABLED and DISABLED go both ways, REVOKED is final; repeating is OK and changes nothing."""
    before = manager(CreateKeyRequest(account_id=account)).key
    if first:
        before = manager(CHANGES[first](key_id=before.key_id)).key
    began = now()
    outcome = manager.outcome(CHANGES[then](key_id=before.key_id))
    after = manager(GetKeyRequest(key_id=before.key_id)).key
    if state is None:
        assert (outcome.code, outcome.reason) == (StatusCode.FAILED_PRECONDITION, "KEY_REVOKED")
        assert after == before
        return
    assert outcome.key == after
    assert began <= seconds(outcome.effective_time) <= now()
    assert nouns.KeyState.Name(after.state) == f"KEY_STATE_{state}"
    assert after.HasField("revoke_time") == (state == "REVOKED")
    if before.state == after.state:
        assert after == before
    else:
        assert after.etag != before.etag


def test_a_revoked_key_is_changed_no_more(manager: Client, account: str) -> None:
    """It stays as it was when it ended."""
    key = manager(CreateKeyRequest(account_id=account)).key
    revoked = manager(RevokeKeyRequest(key_id=key.key_id)).key
    changed = nouns.Key(key_id=key.key_id, display_name="x")
    refusal = manager.refusal(UpdateKeyRequest(key=changed, update_mask=FieldMask(paths=["display_name"])))
    assert (refusal.code, refusal.reason) == (StatusCode.FAILED_PRECONDITION, "KEY_REVOKED")
    assert manager(GetKeyRequest(key_id=key.key_id)).key == revoked


@pytest.fixture(scope="module")
def many(manager: Client) -> tuple[str, list[nouns.Key]]:
    """An account with keys of every kind, as they were made."""
    account = new_account(manager)
    keys = []
    for at in range(12):
        environment = nouns.ENVIRONMENT_LIVE if at % 2 else nouns.ENVIRONMENT_TEST
        key = manager(CreateKeyRequest(account_id=account, environment=environment, created_by=f"m{at % 3}")).key
        if at % 4:
            key = manager((DisableKeyRequest, RevokeKeyRequest, EnableKeyRequest)[at % 4 - 1](key_id=key.key_id)).key
        keys.append(key)
    return account, keys


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, lambda _: True),
        ({"state": nouns.KEY_STATE_DISABLED}, lambda key: key.state == nouns.KEY_STATE_DISABLED),
        ({"state": nouns.KEY_STATE_REVOKED}, lambda key: key.state == nouns.KEY_STATE_REVOKED),
        ({"environment": nouns.ENVIRONMENT_TEST}, lambda key: key.environment == nouns.ENVIRONMENT_TEST),
        ({"created_by": "m1"}, lambda key: key.created_by == "m1"),
        (
            {"created_by": "m1", "environment": nouns.ENVIRONMENT_LIVE},
            lambda key: key.created_by == "m1" and key.environment == nouns.ENVIRONMENT_LIVE,
        ),
        ({"created_by": "nobody"}, lambda _: False),
    ],
)
@pytest.mark.parametrize("page_size", [0, 1, 5, 12, 2**31 - 1])
def test_listings(
    manager: Client,
    many: tuple[str, list[nouns.Key]],
    asked: dict[str, Any],
    wanted: Callable[[nouns.Key], bool],
    page_size: int,
) -> None:
    """Oldest first, those that are asked for and no others, each once, however long a page is."""
    account, keys = many
    request = ListKeysRequest(account_id=account, page_size=page_size, **asked)
    expected = [key for key in keys if wanted(key)]
    assert manager.all(request) == expected
    page = manager(request)
    assert len(page.keys) == min(page_size or 100, len(expected))
    assert bool(page.next_page_token) == (len(page.keys) < len(expected))


def test_listings_of_the_largest_keys(manager: Client) -> None:
    """A client as gRPC makes it, which takes 4 MiB, reads all of them, and what the audit trail says of them."""
    account = new_account(manager)
    grants = [nouns.Grant(resource=f"a{at:03}/{'b' * 62}/{'c' * 62}", level=nouns.LEVEL_READ) for at in range(1_000)]
    ip_rules = [f"2001:db8:aaaa:bbbb:cccc:dddd:eeee:{at:x}" for at in range(1_000)]
    keys = [
        manager(CreateKeyRequest(account_id=account, grants=grants, ip_rules=ip_rules, display_name="é" * 200)).key
        for _ in range(30)
    ]
    assert sum(key.ByteSize() for key in keys) > 4 * 1024 * 1024
    assert manager.all(ListKeysRequest(account_id=account)) == keys
    assert manager.all(ListKeysRequest(account_id=account, page_size=1_000)) == keys
    events = manager.all(ListAuditEventsRequest(account_id=account))
    assert [event.target for event in events[:-1]] == [f"keys/{key.key_id}" for key in reversed(keys)]


def test_a_page_token_belongs_to_its_listing(manager: Client, many: tuple[str, list[nouns.Key]]) -> None:
    """That of another account, filter or kind of listing is refused, and so is garbage; another page size is not."""
    account, keys = many
    token = manager(ListKeysRequest(account_id=account, page_size=1)).next_page_token
    following = manager(ListKeysRequest(account_id=account, page_size=2, page_token=token))
    assert list(following.keys) == keys[1:3]
    other = new_account(manager)
    for wrong in (
        ListKeysRequest(account_id=other, page_token=token),
        ListKeysRequest(account_id=account, created_by="m1", page_token=token),
        ListKeysRequest(account_id=account, state=nouns.KEY_STATE_ENABLED, page_token=token),
        *(
            ListKeysRequest(account_id=account, page_token=bad)
            for bad in ("x", token[:-4], token * 2, "é", "e30=", "MQ==")
        ),
    ):
        refusal = manager.refusal(wrong)
        assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ("page_token",))


def test_the_audit_trail(rpc_server: Server, manager: Client, account: str) -> None:
    """Each change has one row in its transaction: what, by whom, before and after; a repeat or a refusal has none."""
    acting = (("formgate-actor", "ann@example.org"), ("formgate-actor-ip", "192.0.2.1"))
    made = manager(CreateKeyRequest(account_id=account, display_name="one"), *acting)
    key_id = made.key.key_id
    changed = nouns.Key(key_id=key_id, display_name="two", grants=UPDATES["grants"]["grants"])
    manager(UpdateKeyRequest(key=changed, update_mask=FieldMask(paths=["display_name", "grants"])), acting[0])
    for _ in range(2):
        manager(DisableKeyRequest(key_id=key_id, reason_note="a leak?"))
    manager(EnableKeyRequest(key_id=key_id))
    for _ in range(2):
        manager(RevokeKeyRequest(key_id=key_id, reason_note="Ä leak"))
    manager.refusal(EnableKeyRequest(key_id=key_id))
    rows = audit(rpc_server, account)
    assert [row["sequence"] for row in rows] == list(range(1, 7))
    actions = ["CreateAccount", "CreateKey", "UpdateKey", "DisableKey", "EnableKey", "RevokeKey"]
    assert [row["action"] for row in rows] == actions
    assert {row["target"] for row in rows[1:]} == {f"keys/{key_id}"}
    assert len({row["token_id"] for row in rows}) == 1
    assert (rows[1]["actor"], rows[1]["actor_ip"]) == ("ann@example.org", "192.0.2.1")
    assert (rows[2]["actor"], rows[2]["actor_ip"]) == ("ann@example.org", "")
    assert [row["note"] for row in rows] == ["", "", "", "a leak?", "", "Ä leak"]
    assert rows[1]["before"] is None
    assert rows[1]["after"]["display_name"] == "one"
    for earlier, later in pairwise(rows[1:]):
        assert later["before"] == earlier["after"]
    assert rows[2]["after"]["display_name"] == "two"
    assert rows[2]["after"]["grants"][0]["resource"] == "forms/f1"
    assert [row["after"]["state"] for row in rows[1:]] == ["ENABLED", "ENABLED", "DISABLED", "ENABLED", "REVOKED"]
    assert made.secret not in json.dumps(rows)


def test_a_change_is_told_before_it_is_seen_elsewhere(manager: Client, account: str) -> None:
    """Reads after a change see it: a key is revoked in GetKey, in listings and in checks alike."""
    made = manager(CreateKeyRequest(account_id=account))
    manager(RevokeKeyRequest(key_id=made.key.key_id))
    revoked = nouns.KEY_STATE_REVOKED
    assert manager(GetKeyRequest(key_id=made.key.key_id)).key.state == revoked
    assert [each.state for each in manager(ListKeysRequest(account_id=account)).keys] == [revoked]
    assert not manager(CheckKeyRequest(key=made.secret)).allowed
