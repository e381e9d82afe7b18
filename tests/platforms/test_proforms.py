"""Be Proforms: each line of its table."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import StatusCode

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import KEY_DISPOSITION_KEEP, RemoveMemberRequest, UpdateAccountRequest
from formgate.v1.authorization_pb2 import CheckKeyRequest
from formgate.v1.keys_pb2 import CreateKeyRequest, RevokeKeyRequest, RotateKeyRequest, UpdateKeyRequest
from tests.platforms.asking import UNAUTHORIZED, Asker, grant, http, reason
from tests.support.client import new_account
from tests.support.server import eventually

VERBS = {
    "forms": ["view", "create", "edit", "delete", "publish"],
    "submissions": ["view", "export", "delete"],
    "sites": ["view", "create", "edit", "delete"],
    "team": ["view", "invite", "manage"],
    "settings": ["org", "email"],
}
PERMISSIONS = [f"{noun}.{verb}" for noun, verbs in VERBS.items() for verb in verbs]
DAY = 86_400
NO_HEADER = (
    b'{"success": false, "error": {"code": "MISSING_AUTHORIZATION", "message": '
    b'"An API key is needed: send it as \\"Authorization: Bearer YOUR_API_KEY\\"."}}'
)
OVER_IT = b'{"success": false, "error": {"code": "RATE_LIMITED", "message": "Rate limit exceeded. Try again later."}}'


@pytest.fixture
def account(ask: Asker) -> str:
    """A Proforms account that no other test knows; ann, a member, may do everything."""
    account = new_account(ask, policy="proforms")
    ask.member(account, "ann", permissions=["*"])
    return account


def rate(amount: int | None, seconds: int = 60) -> nouns.Limit:
    """Make a rate limit."""
    return nouns.Limit(name="rate", holder=nouns.HOLDER_KEY, amount=amount, window=Duration(seconds=seconds))


def test_how_it_travels(ask: Asker, account: str) -> None:
    """A key travels as ``Authorization: Bearer pf_…``; there are LIVE keys only."""
    key, secret = ask.key(account, created_by="ann")
    assert re.fullmatch(r"pf_[0-9A-Za-z]{49}", secret)
    answer = ask(CheckKeyRequest(authorization=f"Bearer {secret}"))
    assert (reason(answer), answer.key.key_id) == ("OK", key.key_id)
    test = CreateKeyRequest(account_id=account, created_by="ann", environment=nouns.ENVIRONMENT_TEST)
    assert ask.refusal(test).reason == "ENVIRONMENT_NOT_OFFERED"


def test_another_way_of_travelling(ask: Asker) -> None:
    """No header, and another form of it, are denied with 401 in Proforms' words."""
    assert http(ask(CheckKeyRequest(authorization="", policy="proforms"))) == (401, UNAUTHORIZED, NO_HEADER)
    other = ask(CheckKeyRequest(authorization="Basic cGY6", policy="proforms"))
    assert reason(other) == "MALFORMED_AUTHORIZATION"
    assert other.http_denial.body.startswith(b'{"success": false, "error": {"code": "MALFORMED_AUTHORIZATION", ')


def test_shown_once(ask: Asker, account: str) -> None:
    """A secret is shown once, at creation, and never again."""
    ask.shown_once(account, created_by="ann")


def test_a_lost_key_is_replaced(ask: Asker, account: str) -> None:
    """A lost key is replaced: it keeps its id and gets another secret."""
    key, lost = ask.key(account, created_by="ann")
    replaced = ask(RotateKeyRequest(key_id=key.key_id))
    assert replaced.key.key_id == key.key_id
    assert ask.told(lost) == "KEY_NOT_FOUND"
    assert ask.check(replaced.secret).key.key_id == key.key_id


def test_there_are_17_permissions(ask: Asker, account: str) -> None:
    """These 17 permissions and no others; one that is none is refused in a key and held by nobody."""
    assert len(PERMISSIONS) == 17
    assert list(ask.policy("proforms").permissions) == PERMISSIONS
    assert not ask.policy("proforms").open_catalogue
    grants = [grant("*", nouns.LEVEL_UNSPECIFIED, "forms.view", "forms.frame")]
    refusal = ask.refusal(CreateKeyRequest(account_id=account, created_by="ann", grants=grants))
    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ("grants[0].permissions[1]",))
    secret = ask.secret(account, created_by="ann", limits=[rate(1_000)])
    assert ask.told(secret, permissions=["forms.frame"]) == "PERMISSION_DENIED"
    assert ask.told(secret, permissions=PERMISSIONS) == "OK"


@pytest.mark.parametrize("permission", PERMISSIONS)
def test_each_permission(ask: Asker, account: str, permission: str) -> None:
    """A key with one permission has that one and none of the other 16."""
    secret = ask.secret(account, created_by="ann", grants=[grant("*", nouns.LEVEL_UNSPECIFIED, permission)])
    held = [each for each in PERMISSIONS if ask.check(secret, permissions=[each], cost=0).allowed]
    assert held == [permission]


def test_a_key_without_permissions_inherits_its_creators(ask: Asker, account: str) -> None:
    """No permission set on the key: it inherits the full permissions of the user who created it."""
    ask.member(account, "bob", permissions=["forms.*", "team.view"])
    secret = ask.secret(account, created_by="bob", limits=[rate(1_000)])
    held = {each for each in PERMISSIONS if ask.check(secret, permissions=[each], resources=["forms/f1"]).allowed}
    assert held == {"forms.view", "forms.create", "forms.edit", "forms.delete", "forms.publish", "team.view"}
    everything = ask.secret(account, created_by="ann", limits=[rate(1_000)])
    assert ask.told(everything, permissions=PERMISSIONS) == "OK"


def test_it_inherits_live(ask: Asker, account: str) -> None:
    """What the creator gains or loses, the key gains or loses at the very next check; removed, it has nothing."""
    ask.member(account, "bob")
    secret = ask.secret(account, created_by="bob")
    asked: dict[str, Any] = {"permissions": ["forms.view"], "resources": ["forms/f1"]}
    for permissions, expected in (
        ([], "PERMISSION_DENIED"),
        (["forms.view"], "OK"),
        (["forms.edit"], "PERMISSION_DENIED"),
        (["forms.*"], "OK"),
    ):
        ask.member(account, "bob", permissions=permissions)
        assert ask.told(secret, **asked) == expected
    ask(RemoveMemberRequest(account_id=account, member_id="bob", key_disposition=KEY_DISPOSITION_KEEP))
    assert ask.told(secret, **asked) == "PERMISSION_DENIED"
    assert ask.told(secret) == "OK"
    ask.member(account, "bob", permissions=["forms.view"])
    assert ask.told(secret, **asked) == "OK"


def test_a_creator_without_any_right(ask: Asker, account: str) -> None:
    """A key that inherits nothing covers nothing: it only authenticates."""
    ask.member(account, "bob")
    secret = ask.secret(account, created_by="bob")
    assert ask.told(secret) == "OK"
    assert ask.told(secret, resources=["forms/f1"]) == "RESOURCE_NOT_ALLOWED"


def test_a_creator_is_named(ask: Asker, account: str) -> None:
    """What inherits must say from whom."""
    refusal = ask.refusal(CreateKeyRequest(account_id=account))
    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ("created_by",))


def test_the_default_rate_limit(ask: Asker, account: str) -> None:
    """60 requests a minute of each key, where nothing else is configured; the 61st is denied."""
    secret = ask.secret(account, created_by="ann")
    admitted = [ask.check(secret) for _ in range(60)]
    assert all(answer.allowed for answer in admitted)
    (limit,) = admitted[-1].limits
    assert (limit.name, limit.holder, limit.amount, limit.remaining) == ("rate", nouns.HOLDER_KEY, 60, 0)
    assert ask.told(secret) == "RATE_LIMITED"
    assert ask.told(ask.secret(account, created_by="ann")) == "OK", "a limit of each key"


@pytest.mark.parametrize("amount", [1, 60, 61, 999, 1_000])
def test_a_configured_rate_limit(ask: Asker, account: str, amount: int) -> None:
    """The rate limit is configurable, 1,000 requests a minute included, and later too."""
    key, secret = ask.key(account, created_by="ann", limits=[rate(amount)])
    assert ask.told(secret, cost=amount) == "OK"
    assert ask.told(secret) == "RATE_LIMITED"
    if amount < 1_000:
        ask.update(key, limits=[rate(amount + 1)])
        assert [ask.told(secret), ask.told(secret)] == ["OK", "RATE_LIMITED"]


@pytest.mark.parametrize("limit", [rate(1_001), rate(None), rate(60, seconds=1), rate(1_000, seconds=59)])
def test_at_most_1000_a_minute(ask: Asker, account: str, limit: nouns.Limit) -> None:
    """More than 1,000 requests a minute can not be configured: of a key, later, or of the account."""
    refused = ask.refusal(CreateKeyRequest(account_id=account, created_by="ann", limits=[limit]))
    assert (refused.code, refused.fields[0][:9]) == (StatusCode.INVALID_ARGUMENT, "limits[0]")
    key, _ = ask.key(account, created_by="ann")
    mask = FieldMask(paths=["limits"])
    changed = nouns.Key(key_id=key.key_id, limits=[limit])
    assert ask.refusal(UpdateKeyRequest(key=changed, update_mask=mask)).fields[0][:13] == "key.limits[0]"
    of_account = nouns.Account(account_id=account, limits=[limit])
    refused = ask.refusal(UpdateAccountRequest(account=of_account, update_mask=mask))
    assert refused.fields[0][:17] == "account.limits[0]"


def test_over_the_rate_limit(ask: Asker, account: str) -> None:
    """Over it: HTTP 429 and the body of the platform, byte for byte."""
    secret = ask.secret(account, created_by="ann", limits=[rate(1)])
    assert ask.told(secret) == "OK"
    answer = ask.check(secret)
    status, headers, body = http(answer)
    assert (status, body) == (429, OVER_IT)
    wait = -(-answer.retry_after.ToMicroseconds() // 1_000_000)
    assert headers == {"content-type": "application/json", "retry-after": str(wait)}
    assert 1 <= wait <= 61
    assert answer.message == "Rate limit exceeded. Try again later."


def test_an_expiry_after_days(ask: Asker, account: str) -> None:
    """An expiry is optional, after a number of days."""
    key, secret = ask.key(account, created_by="ann", ttl=Duration(seconds=30 * DAY))
    assert key.expire_time.ToMicroseconds() - key.create_time.ToMicroseconds() == 30 * DAY * 1_000_000
    assert ask.check(secret).key.expire_time == key.expire_time
    assert not ask.key(account, created_by="ann")[0].HasField("expire_time")


def test_an_expired_key(ask: Asker, account: str) -> None:
    """An expired key gets HTTP 401."""
    secret = ask.secret(account, created_by="ann", ttl=Duration(nanos=200_000_000), limits=[rate(1_000)])
    eventually(lambda: not ask.check(secret, cost=0).allowed, 10, "an expired key's denial")
    answer = ask.check(secret)
    assert reason(answer) == "KEY_EXPIRED"
    assert http(answer) == (
        401,
        UNAUTHORIZED,
        b'{"success": false, "error": {"code": "KEY_EXPIRED", "message": "The API key has expired."}}',
    )


def test_revocation_at_any_time(ask: Asker, account: str) -> None:
    """A key can be revoked at any time, from the next check on."""
    key, secret = ask.key(account, created_by="ann")
    assert ask.told(secret) == "OK"
    ask(RevokeKeyRequest(key_id=key.key_id))
    assert http(ask.check(secret)) == (
        401,
        UNAUTHORIZED,
        b'{"success": false, "error": {"code": "KEY_REVOKED", "message": "The API key has been revoked."}}',
    )
