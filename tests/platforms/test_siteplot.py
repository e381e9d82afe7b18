"""Be SitePlot: each line of its table."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import KEY_DISPOSITION_KEEP, GetUsageRequest, RemoveMemberRequest
from formgate.v1.authorization_pb2 import CheckKeyRequest, RecordUsageRequest, UsageRecord
from formgate.v1.keys_pb2 import (
    CopyKeyRequest,
    CreateKeyRequest,
    DeleteKeyRequest,
    DisableKeyRequest,
    EnableKeyRequest,
    RevokeKeyRequest,
    RotateKeyRequest,
)
from formgate_server.core.secrets import new_secret
from tests.platforms.asking import UNAUTHORIZED, Asker, answers, grant, http
from tests.support.client import Client, new_account, new_token
from tests.support.server import Server

PERMISSIONS = ["forms.view", "submissions.view", "pages.view", "redirects.view"]
NO_HEADER = (
    b'{"error": "Missing authorization header", "message": '
    b'"Please provide an API key in the Authorization header as \\"Bearer YOUR_API_KEY\\""}'
)
ANOTHER_FORM = (
    b'{"error": "Invalid authorization format", "message": '
    b'"Authorization header must be in the format \\"Bearer YOUR_API_KEY\\""}'
)
INVALID = b'{"error": "Invalid API key", "message": "The provided API key is invalid or has been revoked"}'
INACTIVE = b'{"error": "API key inactive", "message": "The provided API key has been deactivated"}'


@pytest.fixture
def account(ask: Asker) -> str:
    """A SitePlot organization that no other test knows; root is its global administrator and may read everything."""
    account = new_account(ask, policy="siteplot")
    ask.member(account, "root", role=nouns.ROLE_GLOBAL_ADMIN, level=nouns.LEVEL_READ)
    return account


@pytest.mark.parametrize("role", [nouns.ROLE_UNSPECIFIED, nouns.ROLE_MEMBER, nouns.ROLE_ADMIN, None])
def test_who_may_not_create_a_key(ask: Asker, account: str, role: nouns.Role | None) -> None:
    """Only users with Global Administrator privileges may create a key: no member, administrator or stranger."""
    if role is not None:
        ask.member(account, "ann", role=role, level=nouns.LEVEL_READ, permissions=["*"])
    refusal = ask.refusal(CreateKeyRequest(account_id=account, created_by="ann"))
    assert (refusal.code, refusal.reason) == (StatusCode.FAILED_PRECONDITION, "CREATOR_NOT_ALLOWED")


def test_who_may_create_a_key(ask: Asker, account: str) -> None:
    """A Global Administrator may, until it is none any more; a key without a creator is none."""
    key, _ = ask.key(account, created_by="root")
    assert key.created_by == "root"
    refusal = ask.refusal(CreateKeyRequest(account_id=account))
    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ("created_by",))
    ask.member(account, "root", role=nouns.ROLE_ADMIN, level=nouns.LEVEL_READ)
    for request in (CreateKeyRequest(account_id=account, created_by="root"), CopyKeyRequest(key_id=key.key_id)):
        assert ask.refusal(request).reason == "CREATOR_NOT_ALLOWED"


def test_how_it_travels(ask: Asker, account: str) -> None:
    """A key travels as ``Authorization: Bearer sk_live_…`` or, in tests, ``sk_test_…``."""
    live = ask.secret(account, created_by="root")
    test = ask.secret(account, created_by="root", environment=nouns.ENVIRONMENT_TEST)
    assert re.fullmatch(r"sk_live_[0-9A-Za-z]{49}", live)
    assert re.fullmatch(r"sk_test_[0-9A-Za-z]{49}", test)
    assert [ask.told(live), ask.told(test)] == ["OK", "OK"]


def test_shown_once(ask: Asker, account: str) -> None:
    """A secret is shown once."""
    ask.shown_once(account, created_by="root")


def test_the_creators_permissions(ask: Asker, account: str) -> None:
    """A key's permissions are those of the user who created it, at every check anew."""
    secret = ask.secret(account, created_by="root")
    for permissions in (["forms.view"], ["pages.view", "redirects.view"], [], PERMISSIONS):
        ask.member(account, "root", role=nouns.ROLE_GLOBAL_ADMIN, permissions=permissions)
        assert [each for each in PERMISSIONS if ask.check(secret, permissions=[each]).allowed] == [
            each for each in PERMISSIONS if each in permissions
        ]


def test_read_only(ask: Asker, account: str) -> None:
    """Today read-only: forms, form submissions, pages, redirects; whatever the creator may do besides."""
    ask.member(account, "root", role=nouns.ROLE_GLOBAL_ADMIN, level=nouns.LEVEL_READ, permissions=["*"])
    secret = ask.secret(account, created_by="root")
    assert list(ask.policy("siteplot").permissions) == PERMISSIONS
    assert [level.level for level in ask.policy("siteplot").levels] == [nouns.LEVEL_READ]
    assert ask.told(secret, permissions=PERMISSIONS, resources=["sites/s1"]) == "OK"
    assert answers(ask, secret, "GET HEAD POST PUT PATCH DELETE OPTIONS get") == {
        **dict.fromkeys(("GET", "HEAD"), True),
        **dict.fromkeys(("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get"), False),
    }
    for permission in ("forms.edit", "forms.delete", "team.view"):
        assert ask.told(secret, permissions=[permission]) == "PERMISSION_DENIED"
    for level in (nouns.LEVEL_WRITE, nouns.LEVEL_MANAGE):
        request = CreateKeyRequest(account_id=account, created_by="root", grants=[grant("*", level)])
        assert ask.refusal(request).code is StatusCode.INVALID_ARGUMENT


def test_a_key_never_exceeds_its_creator(ask: Asker, account: str) -> None:
    """Whatever a key was granted, it may do only what its creator may, also when that loses rights later."""
    wide = ask.secret(account, created_by="root", grants=[grant("*", nouns.LEVEL_READ, *PERMISSIONS)])
    narrow = ask.secret(account, created_by="root", grants=[grant("sites/s1", nouns.LEVEL_UNSPECIFIED, "forms.view")])
    asked: dict[str, Any] = {"permissions": ["forms.view"], "resources": ["sites/s1/forms/f1"]}

    def told() -> list[str]:
        return [ask.told(wide, **asked), ask.told(narrow, **asked), ask.told(wide, permissions=["pages.view"])]

    assert told() == ["OK", "OK", "OK"]
    assert ask.told(narrow, permissions=["forms.view"], resources=["sites/s2"]) == "RESOURCE_NOT_ALLOWED"
    ask.member(account, "root", role=nouns.ROLE_GLOBAL_ADMIN, permissions=["pages.view"])
    assert told() == ["PERMISSION_DENIED", "PERMISSION_DENIED", "OK"]
    assert ask.told(wide, http_method="GET") == "PERMISSION_DENIED"
    ask.member(account, "root", role=nouns.ROLE_MEMBER, permissions=["forms.view"])
    assert told() == ["OK", "OK", "PERMISSION_DENIED"]
    ask.member(account, "root")
    assert told() == ["PERMISSION_DENIED"] * 3
    assert ask.told(wide, resources=["sites/s1"]) == "RESOURCE_NOT_ALLOWED"
    ask.member(account, "root", level=nouns.LEVEL_READ)
    assert told() == ["OK", "OK", "OK"]
    ask(RemoveMemberRequest(account_id=account, member_id="root", key_disposition=KEY_DISPOSITION_KEEP))
    assert told() == ["PERMISSION_DENIED"] * 3


def test_no_authorization_header(ask: Asker, platforms: Server) -> None:
    """No Authorization header: its own words, where the call or the caller's token says which platform this is."""
    assert http(ask(CheckKeyRequest(authorization="", policy="siteplot"))) == (401, UNAUTHORIZED, NO_HEADER)
    token = new_token(ask, nouns.SERVICE_ROLE_CHECKER, policy="siteplot")[1]
    bound = Client(platforms.address, token)
    assert http(bound(CheckKeyRequest(authorization=""))) == (401, UNAUTHORIZED, NO_HEADER)
    assert http(bound(CheckKeyRequest(authorization="Basic dTpw"))) == (401, UNAUTHORIZED, ANOTHER_FORM)
    assert http(bound(CheckKeyRequest(authorization="Bearer x"))) == (401, UNAUTHORIZED, INVALID)
    bound.close()


@pytest.mark.parametrize(
    "header", ["Basic dTpw", "Bearer", "Bearer ", "Bearer a b", "sk_live_abc", "Token sk_live_abc", "Bearer: sk_live_a"]
)
def test_a_header_of_another_form(ask: Asker, header: str) -> None:
    """A header of another form: its own words."""
    assert http(ask(CheckKeyRequest(authorization=header, policy="siteplot"))) == (401, UNAUTHORIZED, ANOTHER_FORM)


@pytest.mark.parametrize("named", ["siteplot", ""])
def test_an_unknown_key(ask: Asker, named: str) -> None:
    """An unknown key, well formed or not: its own words, by its prefix alone too."""
    unknown = new_secret("sk_live_")
    for secret in (unknown, new_secret("sk_test_"), unknown[:-1], unknown + "x", "sk_live_", "sk_live_é"):
        answer = ask(CheckKeyRequest(authorization=f"Bearer {secret}", policy=named))
        assert http(answer) == (401, UNAUTHORIZED, INVALID), secret


def test_a_revoked_key(ask: Asker, account: str) -> None:
    """A revoked key reads as an unknown one; revocation invalidates the key immediately."""
    key, secret = ask.key(account, created_by="root")
    assert ask.told(secret) == "OK"
    ask(RevokeKeyRequest(key_id=key.key_id))
    assert http(ask.check(secret)) == (401, UNAUTHORIZED, INVALID)
    assert ask.told(secret) == "KEY_REVOKED", "the calling service is told exactly"


def test_a_deleted_key(ask: Asker, account: str) -> None:
    """A deleted key reads as an unknown one."""
    key, secret = ask.key(account, created_by="root")
    ask(DeleteKeyRequest(key_id=key.key_id))
    assert http(ask.check(secret)) == (401, UNAUTHORIZED, INVALID)


def test_a_deactivated_key(ask: Asker, account: str) -> None:
    """A deactivated key: its own words, until it is active again."""
    key, secret = ask.key(account, created_by="root")
    ask(DisableKeyRequest(key_id=key.key_id))
    assert http(ask.check(secret)) == (401, UNAUTHORIZED, INACTIVE)
    ask(EnableKeyRequest(key_id=key.key_id))
    assert ask.told(secret) == "OK"


def test_other_denials(ask: Asker, account: str) -> None:
    """What the platform's pages do not word is worded in their form."""
    secret = ask.secret(account, created_by="root")
    assert http(ask.check(secret, http_method="POST")) == (
        403,
        {"content-type": "application/json"},
        b'{"error": "Permission denied", "message": "The API key lacks a permission that this needs."}',
    )


def test_rotate_regularly(ask: Asker, account: str) -> None:
    """Its advice: rotate regularly; without a moment in which no key works."""
    key, old = ask.key(account, created_by="root")
    rotated = ask(RotateKeyRequest(key_id=key.key_id, overlap=Duration(seconds=3_600)))
    assert [ask.check(secret).key.key_id for secret in (old, rotated.secret)] == [key.key_id] * 2


def test_separate_keys_by_application_and_environment(ask: Asker, account: str) -> None:
    """Its advice: separate keys by application and environment; one does not do for another."""
    website = ask.secret(account, created_by="root", display_name="website", api_groups=["website"])
    staging = ask.secret(account, created_by="root", display_name="staging", environment=nouns.ENVIRONMENT_TEST)
    assert ask.told(website, environment=nouns.ENVIRONMENT_LIVE, api_group="website") == "OK"
    assert ask.told(website, environment=nouns.ENVIRONMENT_TEST, api_group="website") == "ENVIRONMENT_MISMATCH"
    assert ask.told(website, api_group="newsletter") == "API_GROUP_NOT_ALLOWED"
    assert ask.told(staging, environment=nouns.ENVIRONMENT_TEST) == "OK"
    assert ask.told(staging, environment=nouns.ENVIRONMENT_LIVE) == "ENVIRONMENT_MISMATCH"


def test_monitor_usage(ask: Asker, account: str) -> None:
    """Its advice: monitor usage, of each key."""
    keys = [ask.key(account, created_by="root")[0] for _ in range(2)]
    records = [UsageRecord(record_id=f"r{at}", key_id=key.key_id, units=at + 1) for at, key in enumerate(keys)]
    ask(RecordUsageRequest(records=records))
    start = Timestamp()
    start.FromDatetime(datetime.now(UTC) - timedelta(hours=2))
    told = ask(GetUsageRequest(account_id=account, start_time=start, group_by="key")).buckets
    assert {bucket.group: bucket.units for bucket in told} == {keys[0].key_id: 1, keys[1].key_id: 2}
