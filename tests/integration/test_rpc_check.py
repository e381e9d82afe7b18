"""CheckKey and BatchCheckKeys: every reason that can be reached, and what a verdict tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from zlib import crc32

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import StatusCode

from formgate.v1 import authorization_pb2 as pb
from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import GetAccountRequest, UpdateAccountRequest
from formgate.v1.authorization_pb2 import BatchCheckKeysRequest, CheckKeyRequest
from formgate.v1.keys_pb2 import (
    CreateKeyRequest,
    DisableKeyRequest,
    EnableKeyRequest,
    GetKeyRequest,
    RevokeKeyRequest,
    UpdateKeyRequest,
)
from tests.support.client import SECOND_POLICY, Client, Refusal, new_account
from tests.support.server import eventually

pytest_plugins = ("tests.support.rpc",)

HOUR = Duration(seconds=3_600)


def limit(name: str = "rate", amount: int | None = 1, **fields: Any) -> nouns.Limit:
    """Make a limit; a rolling hour where it is not said."""
    return nouns.Limit(name=name, amount=amount, **(fields or {"window": HOUR}))


def key(manager: Client, account: str, **fields: Any) -> tuple[str, str]:
    """Make a key; returns its id and its secret."""
    made = manager(CreateKeyRequest(account_id=account, **fields))
    return made.key.key_id, made.secret


def reason(answer: Any) -> str:
    """Return the name of a verdict's reason, having seen that its parts agree."""
    name = pb.Reason.Name(answer.reason).removeprefix("REASON_")
    assert answer.allowed == (name == "OK")
    assert answer.allowed != answer.HasField("http_denial")
    assert answer.allowed == (answer.http_status == 200)
    assert not answer.degraded
    if not answer.allowed:
        assert answer.http_denial.status == answer.http_status
        told = json.loads(answer.http_denial.body)["error"]
        assert told == {"reason": name, "message": answer.message}
    return name


def unknown_key() -> str:
    """Return a key with a right checksum that nobody made."""
    return _with_checksum("fg_live_" + "0" * 43)


def _with_checksum(body: str) -> str:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    number, text = crc32(body.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        text = digits[digit] + text
    return body + text


@pytest.mark.parametrize(
    ("credential", "expected"),
    [
        ({"authorization": ""}, "MISSING_AUTHORIZATION"),
        ({"authorization": " \t "}, "MISSING_AUTHORIZATION"),
        ({"authorization": "Bearer"}, "MALFORMED_AUTHORIZATION"),
        ({"authorization": "Bearer "}, "MALFORMED_AUTHORIZATION"),
        ({"authorization": "Bearer a b"}, "MALFORMED_AUTHORIZATION"),
        ({"authorization": "Bearer a\u00a0b"}, "MALFORMED_AUTHORIZATION"),
        ({"authorization": "Basic dTpw"}, "MALFORMED_AUTHORIZATION"),
        ({"authorization": "Bearer a, Bearer b"}, "MALFORMED_AUTHORIZATION"),
        ({"authorization": "Bearer abc"}, "MALFORMED_KEY"),
        ({"key": ""}, "MALFORMED_KEY"),
        ({"key": "abc"}, "MALFORMED_KEY"),
        ({"key": unknown_key()[:-1]}, "MALFORMED_KEY"),
        ({"key": unknown_key()[:-1] + "!"}, "MALFORMED_KEY"),
        ({"key": unknown_key() + "\n"}, "MALFORMED_KEY"),
        ({"key": _with_checksum("nobodys_" + "0" * 43)}, "MALFORMED_KEY"),
        ({"key": "k" * 1_000_000}, "MALFORMED_KEY"),
        ({"key": "ключ" * 20}, "MALFORMED_KEY"),
        ({"authorization": "Bearer " + "k" * 1_000_000}, "MALFORMED_KEY"),
        ({"key": unknown_key()}, "KEY_NOT_FOUND"),
        ({"authorization": f"Bearer {unknown_key()}"}, "KEY_NOT_FOUND"),
        ({"authorization": f"bEARER   {unknown_key()} "}, "KEY_NOT_FOUND"),
    ],
)
def test_without_a_known_key(manager: Client, credential: dict[str, str], expected: str) -> None:
    """A credential that names no key is denied with 401 and the way to authenticate, and no limit is touched."""
    answer = manager(CheckKeyRequest(**credential))  # type: ignore[arg-type]
    assert reason(answer) == expected
    assert answer.http_status == 401
    assert ("www-authenticate", "Bearer") in [(each.name, each.value) for each in answer.http_denial.headers]
    assert not answer.HasField("key")
    assert not answer.limits
    assert answer.epoch == 0


@pytest.mark.parametrize(
    ("fields", "asked", "expected", "status"),
    [
        ({}, {}, "OK", 200),
        ({}, {"environment": nouns.ENVIRONMENT_LIVE}, "OK", 200),
        ({"environment": nouns.ENVIRONMENT_TEST}, {"environment": nouns.ENVIRONMENT_TEST}, "OK", 200),
        ({}, {"environment": nouns.ENVIRONMENT_TEST}, "ENVIRONMENT_MISMATCH", 403),
        ({"ip_rules": ["10.1.0.0/16"]}, {"source_ip": "10.1.2.3"}, "OK", 200),
        ({"ip_rules": ["10.1.*.*"]}, {"source_ip": "::ffff:10.1.2.3"}, "OK", 200),
        ({"ip_rules": ["10.1.0.0/16"]}, {"source_ip": "10.2.2.3"}, "IP_NOT_ALLOWED", 403),
        ({"ip_rules": ["10.1.0.0/16"]}, {}, "IP_NOT_ALLOWED", 403),
        ({"api_groups": ["forms"]}, {"api_group": "forms"}, "OK", 200),
        ({"api_groups": ["forms"]}, {"api_group": "users"}, "API_GROUP_NOT_ALLOWED", 403),
        ({"api_groups": ["forms"]}, {}, "API_GROUP_NOT_ALLOWED", 403),
        ({}, {"permissions": ["forms.read"]}, "PERMISSION_DENIED", 403),
        ({}, {"permissions": ["no such permission"]}, "PERMISSION_DENIED", 403),
        ({}, {"http_method": "GET"}, "PERMISSION_DENIED", 403),
        ({}, {"resources": ["forms/f1"]}, "RESOURCE_NOT_ALLOWED", 403),
    ],
)
def test_the_standing(
    manager: Client, account: str, fields: dict[str, Any], asked: dict[str, Any], expected: str, status: int
) -> None:
    """A known key is denied for what it may not, with the reason that applies and 403."""
    key_id, secret = key(manager, account, **fields)
    answer = manager(CheckKeyRequest(key=secret, **asked))
    assert (reason(answer), answer.http_status, answer.key.key_id) == (expected, status, key_id)


GRANTS = [
    nouns.Grant(resource="forms/f1", level=nouns.LEVEL_WRITE),
    nouns.Grant(resource="folders/finance", permissions=["forms.read", "reports.*"]),
    nouns.Grant(resource="apps/a1", permissions=["*"]),
]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"http_method": "GET", "resources": ["forms/f1"]}, "OK"),
        ({"http_method": "POST", "resources": ["forms/f1/submissions/9"]}, "OK"),
        ({"http_method": "DELETE", "resources": ["apps/a1"]}, "OK"),
        ({"http_method": "DELETE", "resources": ["forms/f1"]}, "RESOURCE_NOT_ALLOWED"),
        ({"http_method": "GET", "resources": ["forms/f10"]}, "RESOURCE_NOT_ALLOWED"),
        ({"http_method": "GET"}, "RESOURCE_NOT_ALLOWED"),
        ({"http_method": "BREW", "resources": ["forms/f1"]}, "PERMISSION_DENIED"),
        ({"http_method": "get", "resources": ["forms/f1"]}, "PERMISSION_DENIED"),
        ({"permissions": ["reports.write"], "resources": ["forms/f1", "folders/finance/forms/f1"]}, "OK"),
        ({"permissions": ["reports.write"], "resources": ["forms/f1"]}, "RESOURCE_NOT_ALLOWED"),
        ({"permissions": ["forms.read", "reports.x"], "resources": ["folders/finance"]}, "OK"),
        ({"permissions": ["forms.read"], "http_method": "BREW", "resources": ["folders/finance"]}, "OK"),
        ({"resources": ["forms/f1"]}, "OK"),
        ({"resources": ["organization"]}, "RESOURCE_NOT_ALLOWED"),
        ({}, "OK"),
    ],
)
def test_how_grants_answer(manager: Client, account: str, asked: dict[str, Any], expected: str) -> None:
    """A right must be held by a grant that covers one of the resources, by whole segments."""
    _, secret = key(manager, account, grants=GRANTS)
    assert reason(manager(CheckKeyRequest(key=secret, **asked))) == expected


def test_organization_is_granted_by_its_name_only(manager: Client, account: str) -> None:
    """``*`` covers all but ``organization``."""
    _, everything = key(manager, account, grants=[nouns.Grant(resource="*", permissions=["*"])])
    _, organization = key(manager, account, grants=[nouns.Grant(resource="organization", level=nouns.LEVEL_MANAGE)])
    asked = {"http_method": "DELETE", "resources": ["organization"]}
    assert reason(manager(CheckKeyRequest(key=everything, **asked))) == "RESOURCE_NOT_ALLOWED"  # type: ignore[arg-type]
    assert reason(manager(CheckKeyRequest(key=organization, **asked))) == "OK"  # type: ignore[arg-type]
    assert reason(manager(CheckKeyRequest(key=everything, http_method="DELETE", resources=["sites/s1"]))) == "OK"


@pytest.mark.parametrize(
    ("limits", "expected", "returns"),
    [
        ([limit()], "RATE_LIMITED", True),
        ([limit(calendar=nouns.CALENDAR_DAY)], "QUOTA_EXCEEDED", True),
        ([limit(calendar=nouns.CALENDAR_MONTH)], "QUOTA_EXCEEDED", True),
        ([limit("a", lifetime=True)], "CREDITS_EXHAUSTED", False),
        ([limit("a", lifetime=True), limit("b")], "RATE_LIMITED", False),
        ([limit("a", calendar=nouns.CALENDAR_DAY), limit("b")], "RATE_LIMITED", True),
    ],
)
def test_limits(manager: Client, account: str, limits: list[nouns.Limit], expected: str, *, returns: bool) -> None:
    """A used up limit is 429, with ``retry_after`` unless it never fits again, in the header too."""
    _, secret = key(manager, account, limits=limits)
    first = manager(CheckKeyRequest(key=secret))
    assert reason(first) == "OK"
    assert [each.remaining for each in first.limits] == [0] * len(limits)
    answer = manager(CheckKeyRequest(key=secret))
    assert (reason(answer), answer.http_status) == (expected, 429)
    assert answer.HasField("retry_after") == returns
    headers = {each.name: each.value for each in answer.http_denial.headers}
    if returns:
        assert answer.retry_after.ToTimedelta().total_seconds() > 0
        assert int(headers["retry-after"]) == -(-answer.retry_after.ToMicroseconds() // 1_000_000)
    else:
        assert "retry-after" not in headers
    for status in answer.limits:
        assert (status.amount, status.remaining, status.unlimited) == (1, 0, False)
        assert status.HasField("reset_time") == (status.name != "a" or returns)
    windows = {each.name: each.window for each in limits if each.HasField("window")}
    assert {each.name: each.window for each in answer.limits if each.HasField("window")} == windows


def test_a_denial_charges_nothing(manager: Client, account: str) -> None:
    """Whatever denies, another limit included, leaves every counter as it was."""
    _, secret = key(manager, account, limits=[limit("a", 5), limit("b", 2, lifetime=True)])
    for _ in range(3):
        assert reason(manager(CheckKeyRequest(key=secret, permissions=["forms.read"]))) == "PERMISSION_DENIED"
        assert reason(manager(CheckKeyRequest(key=secret, cost=3))) == "CREDITS_EXHAUSTED"
    looked = manager(CheckKeyRequest(key=secret, cost=0))
    assert {each.name: each.remaining for each in looked.limits} == {"a": 5, "b": 2}


def test_cost(manager: Client, account: str) -> None:
    """A cost is charged whole or not at all, absent it is 1; 0 looks, and is denied when nothing remains."""
    _, secret = key(manager, account, limits=[limit(amount=10)])
    for cost, expected, left in ((0, "OK", 10), (None, "OK", 9), (7, "OK", 2), (3, "RATE_LIMITED", 2), (2, "OK", 0)):
        answer = manager(CheckKeyRequest(key=secret, cost=cost))
        assert (reason(answer), answer.limits[0].remaining) == (expected, left)
    answer = manager(CheckKeyRequest(key=secret, cost=0))
    assert reason(answer) == "RATE_LIMITED"
    assert answer.HasField("retry_after")
    never = manager(CheckKeyRequest(key=secret, cost=11))
    assert reason(never) == "RATE_LIMITED"
    assert not never.HasField("retry_after")


@pytest.mark.parametrize("amount", [0, 1, 2**63 - 1, None])
def test_amounts_at_the_edges(manager: Client, account: str, amount: int | None) -> None:
    """0 admits nothing, 2**63 - 1 is an amount like others, and an absent one is unlimited."""
    per: list[Mapping[str, Any]] = [
        {"window": HOUR},
        {"calendar": nouns.CALENDAR_MONTH},
        {"lifetime": True},
        {"window": Duration(seconds=366 * 86_400)},
        {"window": Duration(nanos=1_000_000)},
    ]
    _, secret = key(manager, account, limits=[limit(f"l{at}", amount, **each) for at, each in enumerate(per)])
    answer = manager(CheckKeyRequest(key=secret, cost=2**63 - 1))
    assert answer.allowed == (amount in (None, 2**63 - 1))
    assert [each.unlimited for each in answer.limits] == [amount is None] * len(per)
    assert [each.remaining for each in answer.limits] == [amount if amount and amount < 2 else 0] * len(per)
    looked = manager(CheckKeyRequest(key=secret, cost=0))
    assert looked.allowed == (amount in (1, None))


def test_retry_after_is_when_it_fits(manager: Client, account: str) -> None:
    """Asked again when ``retry_after`` is over, the same cost fits."""
    _, secret = key(manager, account, limits=[limit(amount=2, window=Duration(nanos=300_000_000))])
    assert manager(CheckKeyRequest(key=secret, cost=2)).allowed
    denied = manager(CheckKeyRequest(key=secret))
    told = denied.retry_after.ToTimedelta().total_seconds()
    assert 0 < told <= 0.3 * 61 / 60
    eventually(lambda: manager(CheckKeyRequest(key=secret)).allowed, told + 2, "a charge that fits again")


def test_accounts_limits_are_shared_and_a_keys_replaces_its_own(manager: Client) -> None:
    """An account's counter is one for all its keys; a key's limit takes the place of a per-key limit of its name."""
    shared = limit("daily", 3, holder=nouns.HOLDER_ACCOUNT, calendar=nouns.CALENDAR_DAY)
    account = new_account(manager, limits=[shared, limit("rate", 1, holder=nouns.HOLDER_KEY, window=HOUR)])
    _, usual = key(manager, account)
    _, special = key(manager, account, limits=[limit("rate", 2)])
    ended = [reason(manager(CheckKeyRequest(key=secret))) for secret in (usual, usual, special, special, special)]
    assert ended == ["OK", "RATE_LIMITED", "OK", "OK", "RATE_LIMITED"]
    _, third = key(manager, account)
    assert reason(manager(CheckKeyRequest(key=third))) == "QUOTA_EXCEEDED"


def test_a_request_id_repeated_is_charged_once(manager: Client, account: str) -> None:
    """An admission repeated is admitted and not charged; its scope is the key; all else is decided anew."""
    key_id, secret = key(manager, account, limits=[limit(amount=2)])
    _, other = key(manager, account, limits=[limit(amount=1)])
    for _ in range(3):
        answer = manager(CheckKeyRequest(key=secret, request_id="r1"))
        assert (reason(answer), answer.limits[0].remaining) == ("OK", 1)
    assert manager(CheckKeyRequest(key=other, request_id="r1")).limits[0].remaining == 0
    assert manager(CheckKeyRequest(key=secret, request_id="r2")).limits[0].remaining == 0
    assert reason(manager(CheckKeyRequest(key=secret, request_id="r1"))) == "OK"
    assert reason(manager(CheckKeyRequest(key=secret, request_id="r3"))) == "RATE_LIMITED"
    assert reason(manager(CheckKeyRequest(key=secret, request_id="r1", permissions=["a.b"]))) == "PERMISSION_DENIED"
    manager(RevokeKeyRequest(key_id=key_id))
    assert reason(manager(CheckKeyRequest(key=secret, request_id="r1"))) == "KEY_REVOKED"


def test_a_request_id_repeated_concurrently_is_charged_once(manager: Client, account: str) -> None:
    """However many repeats are under way at once, one is charged."""
    _, secret = key(manager, account, limits=[limit("a", 100), limit("b", 100, calendar=nouns.CALENDAR_DAY)])
    with ThreadPoolExecutor(16) as pool:
        asked = [CheckKeyRequest(key=secret, request_id=f"r{at % 4}") for at in range(64)]
        answers = list(pool.map(manager, asked))
    assert {reason(answer) for answer in answers} == {"OK"}
    looked = manager(CheckKeyRequest(key=secret, cost=0))
    assert [each.remaining for each in looked.limits] == [96, 96]


def test_concurrent_checks_never_exceed_a_limit(manager: Client, account: str) -> None:
    """Of many at once exactly the amount is admitted."""
    _, secret = key(manager, account, limits=[limit(amount=20), limit("daily", 30, calendar=nouns.CALENDAR_DAY)])
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(manager, [CheckKeyRequest(key=secret)] * 60))
    assert sum(answer.allowed for answer in answers) == 20


def test_the_order_of_reasons(manager: Client, account: str) -> None:
    """A key that is wrong in every way is denied for the first reason; mended one by one it comes to the next."""
    key_id, secret = key(
        manager, account, ip_rules=["10.0.0.1"], api_groups=["a"], limits=[limit(amount=0)], ttl=Duration(seconds=3_600)
    )
    suspended = nouns.Account(account_id=account, state=nouns.ACCOUNT_STATE_SUSPENDED)
    active = nouns.Account(account_id=account, state=nouns.ACCOUNT_STATE_ACTIVE)
    manager(UpdateAccountRequest(account=suspended, update_mask=FieldMask(paths=["state"])))
    manager(DisableKeyRequest(key_id=key_id))
    asked: dict[str, Any] = {"environment": nouns.ENVIRONMENT_TEST, "permissions": ["forms.read"], "resources": ["x"]}

    def told() -> str:
        return reason(manager(CheckKeyRequest(key=secret, **asked)))

    assert told() == "KEY_DISABLED"
    manager(EnableKeyRequest(key_id=key_id))
    assert told() == "ACCOUNT_SUSPENDED"
    manager(UpdateAccountRequest(account=active, update_mask=FieldMask(paths=["state"])))
    assert told() == "ENVIRONMENT_MISMATCH"
    del asked["environment"]
    assert told() == "IP_NOT_ALLOWED"
    asked["source_ip"] = "10.0.0.1"
    assert told() == "API_GROUP_NOT_ALLOWED"
    asked["api_group"] = "a"
    assert told() == "PERMISSION_DENIED"
    grant = nouns.Grant(resource="y", permissions=["forms.read"])
    manager(UpdateKeyRequest(key=nouns.Key(key_id=key_id, grants=[grant]), update_mask=FieldMask(paths=["grants"])))
    assert told() == "RESOURCE_NOT_ALLOWED"
    asked["resources"] = ["y/z"]
    assert told() == "RATE_LIMITED"
    manager(RevokeKeyRequest(key_id=key_id))
    assert told() == "KEY_REVOKED"


def test_expiry(manager: Client, account: str) -> None:
    """From ``expire_time`` on it is KEY_EXPIRED, which comes before the account's suspension."""
    _, secret = key(manager, account, ttl=Duration(nanos=200_000_000))
    assert manager(CheckKeyRequest(key=secret)).key.HasField("expire_time")
    eventually(lambda: reason(manager(CheckKeyRequest(key=secret))) == "KEY_EXPIRED", 3, "its expiry")
    suspended = nouns.Account(account_id=account, state=nouns.ACCOUNT_STATE_SUSPENDED)
    manager(UpdateAccountRequest(account=suspended, update_mask=FieldMask(paths=["state"])))
    assert reason(manager(CheckKeyRequest(key=secret))) == "KEY_EXPIRED"


def test_every_change_binds_the_very_next_check(manager: Client, account: str) -> None:
    """No check that starts after a change has returned decides by the state before."""
    key_id, secret = key(manager, account)
    for _ in range(20):
        manager(DisableKeyRequest(key_id=key_id))
        assert reason(manager(CheckKeyRequest(key=secret))) == "KEY_DISABLED"
        manager(EnableKeyRequest(key_id=key_id))
        assert reason(manager(CheckKeyRequest(key=secret))) == "OK"
    rules = nouns.Key(key_id=key_id, ip_rules=["10.0.0.1"])
    manager(UpdateKeyRequest(key=rules, update_mask=FieldMask(paths=["ip_rules"])))
    assert reason(manager(CheckKeyRequest(key=secret))) == "IP_NOT_ALLOWED"
    manager(RevokeKeyRequest(key_id=key_id))
    assert reason(manager(CheckKeyRequest(key=secret))) == "KEY_REVOKED"


def test_a_changed_account_limit_binds_the_next_check(manager: Client, account: str) -> None:
    """UpdateAccount's limits are those of the next check; what was charged stays charged under a new amount."""
    _, secret = key(manager, account)
    for amount, expected in ((2, "OK"), (2, "OK"), (2, "RATE_LIMITED"), (3, "OK"), (3, "RATE_LIMITED")):
        limits = [limit("rate", amount, holder=nouns.HOLDER_ACCOUNT, window=HOUR)]
        changed = nouns.Account(account_id=account, limits=limits)
        manager(UpdateAccountRequest(account=changed, update_mask=FieldMask(paths=["limits"])))
        assert reason(manager(CheckKeyRequest(key=secret))) == expected
    none = nouns.Account(account_id=account)
    manager(UpdateAccountRequest(account=none, update_mask=FieldMask(paths=["limits"])))
    answer = manager(CheckKeyRequest(key=secret))
    assert (reason(answer), len(answer.limits)) == ("OK", 0)


def test_what_a_verdict_tells_of_the_key(manager: Client, account: str) -> None:
    """The caller gets what it needs to serve the request, and the epoch by which it was decided."""
    notes = {"team": "a", "Größe": "ü"}
    made = manager(
        CreateKeyRequest(
            account_id=account,
            display_name="Ä key",
            created_by="ann",
            metadata=notes,
            ttl=HOUR,
            environment=nouns.ENVIRONMENT_TEST,
        )
    )
    answer = manager(CheckKeyRequest(authorization=f"Bearer {made.secret}"))
    assert answer.key == pb.CheckedKey(
        key_id=made.key.key_id,
        account_id=account,
        display_name="Ä key",
        environment=nouns.ENVIRONMENT_TEST,
        created_by="ann",
        metadata=notes,
        expire_time=made.key.expire_time,
    )
    assert answer.epoch == manager(GetAccountRequest(account_id=account)).account.epoch
    assert answer.message == ""
    assert not answer.explanation


def test_policies_word_denials(manager: Client) -> None:
    """The request's policy words a keyless denial, else the key's; of a known key it is its account's."""
    unknown = _with_checksum("second_live_" + "0" * 43)
    assert manager(CheckKeyRequest(key=unknown)).message == "Second knows no such key."
    assert manager(CheckKeyRequest(key=unknown, policy="default")).message == "The API key is unknown."
    account = new_account(manager, policy=SECOND_POLICY)
    _, secret = key(manager, account)
    assert secret.startswith("second_live_")
    assert reason(manager(CheckKeyRequest(key=secret, policy=SECOND_POLICY))) == "OK"
    other = manager(CheckKeyRequest(key=secret, policy="default"))
    assert (reason(other), other.message) == ("KEY_NOT_FOUND", "The API key is unknown.")
    assert not other.HasField("key")


STEPS = ["credential", "key", "state", "expiry", "account", "environment", "address", "api_group", "grants", "limits"]


@pytest.mark.parametrize(
    ("asked", "denied"),
    [
        ({}, None),
        ({"key": "nonsense"}, "credential"),
        ({"key": unknown_key()}, "key"),
        ({"environment": nouns.ENVIRONMENT_TEST}, "environment"),
        ({"source_ip": "192.0.2.1"}, "address"),
        ({"permissions": ["forms.read"]}, "grants"),
        ({"cost": 2}, "limits"),
    ],
)
def test_explain(manager: Client, account: str, asked: dict[str, Any], denied: str | None) -> None:
    """Each step in order: those before the denial passed, those after it were skipped, and no secret is told."""
    key_id, secret = key(manager, account, ip_rules=["10.0.0.1"], limits=[limit()])
    request = CheckKeyRequest(**{"key": secret, "source_ip": "10.0.0.1", "cost": 0, "explain": True, **asked})
    answer = manager(request)
    assert [step.step for step in answer.explanation] == STEPS
    at = len(STEPS) if denied is None else STEPS.index(denied)
    expected = [pb.STEP_OUTCOME_PASSED] * at + [pb.STEP_OUTCOME_DENIED] + [pb.STEP_OUTCOME_SKIPPED] * 9
    assert [step.outcome for step in answer.explanation] == expected[: len(STEPS)]
    assert secret not in str(answer)
    assert (key_id in answer.explanation[1].detail) == (denied not in ("credential", "key"))
    assert reason(manager(CheckKeyRequest(key=secret, source_ip="10.0.0.1"))) == "OK", "a dry run charged"


def test_a_batch_answers_in_order(manager: Client, account: str) -> None:
    """Each request has its verdict at its place; one that is wrong has its error there and disturbs no other."""
    _, first = key(manager, account, limits=[limit(amount=2)])
    _, second = key(manager, account)
    requests = [
        CheckKeyRequest(key=first),
        CheckKeyRequest(),
        CheckKeyRequest(key=second),
        CheckKeyRequest(key=first, cost=-1),
        CheckKeyRequest(key=unknown_key()),
        CheckKeyRequest(key=first),
        CheckKeyRequest(key=first),
        CheckKeyRequest(key=second, resources=["a/../b"]),
    ]
    results = manager(BatchCheckKeysRequest(requests=requests)).results
    told = [
        reason(each.response) if each.HasField("response") else Refusal.of_status(each.error).fields[0]
        for each in results
    ]
    assert told == ["OK", "credential", "OK", "cost", "KEY_NOT_FOUND", "OK", "RATE_LIMITED", "resources[0]"]
    for each in results:
        if each.HasField("error"):
            alone = manager.refusal(requests[list(results).index(each)])
            assert Refusal.of_status(each.error) == alone


def test_the_largest_batch(manager: Client, account: str) -> None:
    """1,000 requests are answered, each charged; 1,001 and none are refused and charge nothing."""
    _, secret = key(manager, account, limits=[limit(amount=1_500)])
    requests = [CheckKeyRequest(key=secret)] * 1_001
    assert manager.refusal(BatchCheckKeysRequest(requests=requests)).fields == ("requests",)
    assert manager.refusal(BatchCheckKeysRequest()).code is StatusCode.INVALID_ARGUMENT
    results = manager(BatchCheckKeysRequest(requests=requests[:1_000])).results
    assert [each.response.limits[0].remaining for each in results] == list(range(1_499, 499, -1))


def test_the_last_use_is_seen(manager: Client, account: str) -> None:
    """When and whence an allowed check came stands in the key soon, though each check does not write it."""
    key_id, secret = key(manager, account)
    assert not manager(GetKeyRequest(key_id=key_id)).key.HasField("last_used_time")
    manager(CheckKeyRequest(key=secret, source_ip="192.0.2.7"))
    manager(CheckKeyRequest(key=secret, source_ip="192.0.2.8", permissions=["forms.read"]))  # denied
    used = eventually(
        lambda: (found := manager(GetKeyRequest(key_id=key_id)).key).HasField("last_used_time") and found, 20, "its use"
    )
    assert used.last_used_ip == "192.0.2.7"
    assert used.create_time.ToMicroseconds() < used.last_used_time.ToMicroseconds()
    assert used.etag == "v1", "a use is no change"
