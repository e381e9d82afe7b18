"""Be Jodoo: each line of its table."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import StatusCode

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import ListAuditEventsRequest
from formgate.v1.authorization_pb2 import CheckKeyRequest
from formgate.v1.keys_pb2 import (
    CopyKeyRequest,
    CreateKeyRequest,
    DeleteKeyRequest,
    DisableKeyRequest,
    EnableKeyRequest,
    GetKeyRequest,
    ListKeysRequest,
    RevealKeyRequest,
    RevokeKeyRequest,
    RotateKeyRequest,
    UpdateKeyRequest,
)
from tests.platforms.asking import UNAUTHORIZED, Asker, grant, http, reason
from tests.support.client import Refusal, new_account

GROUPS = ["contact", "app", "form", "data", "file", "workflow", "crm"]


@pytest.fixture
def account(ask: Asker) -> str:
    """A Jodoo workspace that no other test knows."""
    return new_account(ask, policy="jodoo")


def apps(*names: str) -> list[nouns.Grant]:
    """Put apps in scope."""
    return [grant(f"apps/{name}", nouns.LEVEL_MANAGE) for name in names]


def test_how_it_travels(ask: Asker, account: str) -> None:
    """A key travels with each request; as a header, or as it is."""
    key, secret = ask.key(account)
    assert re.fullmatch(r"jd_[0-9A-Za-z]{49}", secret)
    for credential in ({"authorization": f"Bearer {secret}"}, {"key": secret}):
        answer = ask(CheckKeyRequest(**credential))  # type: ignore[arg-type]
        assert (reason(answer), answer.key.key_id) == ("OK", key.key_id)


def test_at_most_500_keys(ask: Asker, account: str) -> None:
    """At most 500 keys an account, however many are asked for at once; those that ended are not counted."""
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(ask.outcome, [CreateKeyRequest(account_id=account)] * 510))
    refused = [each for each in outcomes if isinstance(each, Refusal)]
    keys = [each.key for each in outcomes if not isinstance(each, Refusal)]
    assert len(keys) == 500
    assert {(each.code, each.reason) for each in refused} == {(StatusCode.FAILED_PRECONDITION, "TOO_MANY_KEYS")}
    assert ask.refusal(CopyKeyRequest(key_id=keys[0].key_id)).reason == "TOO_MANY_KEYS"
    ask(DisableKeyRequest(key_id=keys[0].key_id))
    assert ask.refusal(CreateKeyRequest(account_id=account)).reason == "TOO_MANY_KEYS", "a disabled key is one"
    ask(DeleteKeyRequest(key_id=keys[0].key_id))
    ask(RevokeKeyRequest(key_id=keys[1].key_id))
    for _ in range(2):
        ask(CreateKeyRequest(account_id=account))
    assert ask.refusal(CreateKeyRequest(account_id=account)).reason == "TOO_MANY_KEYS"
    assert ask.told(ask.secret(new_account(ask, policy="jodoo"))) == "OK"


def test_the_value_can_not_be_edited(ask: Asker, account: str) -> None:
    """The generated value can't be edited: no field of an update is it, and no update changes it."""
    key, secret = ask.key(account)
    for field in ("secret", "value", "hint", "key_id"):
        changed = nouns.Key(key_id=key.key_id, hint="jd_...mine")
        refusal = ask.refusal(UpdateKeyRequest(key=changed, update_mask=FieldMask(paths=[field])))
        assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ("update_mask",))
    ask.update(key, display_name="x", grants=apps("a1"))
    assert ask(RevealKeyRequest(key_id=key.key_id)).secret == secret
    assert ask.told(secret) == "OK"


def test_the_value_is_hidden_and_can_be_displayed(ask: Asker, account: str) -> None:
    """The value is hidden by default and can be displayed and copied later, by whom is in the audit trail."""
    key, secret = ask.key(account)
    for answer in ask.readings(key):
        assert secret.encode() not in answer.SerializeToString()
    actor = ("formgate-actor", "ann")
    assert ask(RevealKeyRequest(key_id=key.key_id), actor).secret == secret
    assert ask(RevealKeyRequest(key_id=key.key_id), actor).secret == secret
    trail = ask.all(ListAuditEventsRequest(account_id=account, key_id=key.key_id))
    assert [(event.action, event.actor) for event in trail[:2]] == [("RevealKey", "ann")] * 2
    assert secret not in str(trail)
    assert ask.policy("jodoo").recoverable


def test_what_is_displayed_after_a_rotation(ask: Asker, account: str) -> None:
    """The value displayed is the newest."""
    key, _ = ask.key(account)
    newest = ask(RotateKeyRequest(key_id=key.key_id)).secret
    assert ask(RevealKeyRequest(key_id=key.key_id)).secret == newest


def test_rename(ask: Asker, account: str) -> None:
    """A key can be renamed."""
    key, secret = ask.key(account, display_name="old")
    assert ask.update(key, display_name="new").display_name == "new"
    assert ask.check(secret).key.display_name == "new"


def test_all_apps(ask: Asker, account: str) -> None:
    """Scope, apps: all, where none is listed."""
    secret = ask.secret(account)
    for app in ("apps/a1", "apps/a2/forms/f1"):
        assert ask.told(secret, resources=[app]) == "OK"
    assert ask.told(secret, resources=["apps/a1"], http_method="DELETE") == "OK"


def test_a_list_of_apps(ask: Asker, account: str) -> None:
    """Scope, apps: a list of them; the others are not in scope, whatever the method."""
    key, secret = ask.key(account, grants=apps("a1", "a2"))
    for method in ("", "GET", "POST", "DELETE", "BREW"):
        assert ask.told(secret, resources=["apps/a1"], http_method=method) == "OK"
        assert ask.told(secret, resources=["apps/a2/forms/f1"], http_method=method) == "OK"
        for other in ("apps/a3", "apps/a10", "apps"):
            assert ask.told(secret, resources=[other], http_method=method) == "RESOURCE_NOT_ALLOWED"
    ask.update(key, grants=apps("a3"))
    assert ask.told(secret, resources=["apps/a3"]) == "OK"
    assert ask.told(secret, resources=["apps/a1"]) == "RESOURCE_NOT_ALLOWED"
    ask.update(key, grants=[])
    assert ask.told(secret, resources=["apps/a1"]) == "OK"


def test_all_apis(ask: Asker, account: str) -> None:
    """Scope, APIs: all, where none is listed."""
    secret = ask.secret(account)
    for group in ("", *GROUPS):
        assert ask.told(secret, api_group=group) == "OK"


@pytest.mark.parametrize("group", GROUPS)
def test_one_api(ask: Asker, account: str, group: str) -> None:
    """Scope, APIs: one out of Contact, App, Form, Data, File, Workflow, CRM, and none of the others."""
    secret = ask.secret(account, api_groups=[group])
    assert [each for each in GROUPS if ask.check(secret, api_group=each).allowed] == [group]
    assert ask.told(secret) == "API_GROUP_NOT_ALLOWED"


def test_a_list_of_apis(ask: Asker, account: str) -> None:
    """Scope, APIs: a list out of these seven; there is no eighth."""
    secret = ask.secret(account, api_groups=["form", "data"])
    assert [each for each in GROUPS if ask.check(secret, api_group=each).allowed] == ["form", "data"]
    assert list(ask.policy("jodoo").api_groups) == sorted(GROUPS)
    refusal = ask.refusal(CreateKeyRequest(account_id=account, api_groups=["form", "billing"]))
    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ("api_groups[1]",))


def test_no_ip_whitelist(ask: Asker, account: str) -> None:
    """IP whitelist: none set, any IP."""
    secret = ask.secret(account)
    for address in ("", "203.0.113.7", "2001:db8::1", "::ffff:10.0.0.1"):
        assert ask.told(secret, source_ip=address) == "OK"


def test_an_ip_whitelist(ask: Asker, account: str) -> None:
    """IP whitelist: only a single address, or a range with ``*``; an IPv4-mapped address is its IPv4 address."""
    secret = ask.secret(account, ip_rules=["203.0.113.7", "10.1.*.*", "192.0.2.*", "172.*.1.9"])
    for address in ("203.0.113.7", "::ffff:203.0.113.7", "::FFFF:cb00:7107", "10.1.0.0", "10.1.255.255", "172.30.1.9"):
        assert ask.told(secret, source_ip=address) == "OK"
    for address in ("203.0.113.8", "10.2.0.0", "192.0.3.1", "172.30.1.8", "2001:db8::1", "::203.0.113.7", ""):
        assert ask.told(secret, source_ip=address) == "IP_NOT_ALLOWED"
    assert http(ask.check(secret, source_ip="10.2.0.0")) == (
        403,
        {"content-type": "application/json"},
        b'{"error": {"reason": "IP_NOT_ALLOWED", "message": "The API key may not be used from this address."}}',
    )


def test_at_most_50_entries(ask: Asker, account: str) -> None:
    """At most 50 entries a key, when it is made and later."""
    rules = [f"10.0.{at}.*" for at in range(51)]
    key, secret = ask.key(account, ip_rules=rules[:50])
    assert ask.told(secret, source_ip="10.0.49.1") == "OK"
    assert ask.told(secret, source_ip="10.0.50.1") == "IP_NOT_ALLOWED"
    made = ask.refusal(CreateKeyRequest(account_id=account, ip_rules=rules))
    assert (made.code, made.fields) == (StatusCode.INVALID_ARGUMENT, ("ip_rules",))
    changed = nouns.Key(key_id=key.key_id, ip_rules=rules)
    later = ask.refusal(UpdateKeyRequest(key=changed, update_mask=FieldMask(paths=["ip_rules"])))
    assert (later.code, later.fields) == (StatusCode.INVALID_ARGUMENT, ("key.ip_rules",))


@pytest.mark.parametrize(
    "rule",
    [
        "2001:db8::1",
        "2001:db8::/32",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
        "10.0.0.0/8",
        "10.0.0.1/8",
        "010.0.0.1",
        "10.0.0.08",
        "0x0a.0.0.1",
        "167772161",
        "10.1",
        "10.1*.0.0",
        "10.*",
        "*",
        "10.0.0.256",
        "256.*.*.*",
        "01.*.*.*",
        " 10.0.0.1",
        "10.0.0.1\n",
        "",
        "localhost",
    ],
)
def test_entries_that_are_refused(ask: Asker, account: str, rule: str) -> None:
    """IPv6 is not supported by the platform, nor are blocks; what could be read in two ways is none anywhere."""
    refusal = ask.refusal(CreateKeyRequest(account_id=account, ip_rules=["10.0.0.1", rule]))
    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ("ip_rules[1]",))


def test_enable_and_disable(ask: Asker, account: str) -> None:
    """A key can be disabled and enabled, both ways, from the next check on."""
    key, secret = ask.key(account)
    for _ in range(2):
        ask(DisableKeyRequest(key_id=key.key_id))
        assert http(ask.check(secret)) == (
            401,
            UNAUTHORIZED,
            b'{"error": {"reason": "KEY_DISABLED", "message": "The API key has been disabled."}}',
        )
        ask(EnableKeyRequest(key_id=key.key_id))
        assert ask.told(secret) == "OK"


def test_copy_a_key(ask: Asker, account: str) -> None:
    """Copying a key copies its scope and IP whitelist; the value is new, and both work on their own."""
    scope: dict[str, Any] = {"grants": apps("a1"), "api_groups": ["form"], "ip_rules": ["10.1.*.*"]}
    key, secret = ask.key(account, display_name="original", **scope)
    made = ask(CopyKeyRequest(key_id=key.key_id))
    assert (made.key.display_name, made.key.key_id != key.key_id) == ("original", True)
    for field, value in scope.items():
        assert list(getattr(made.key, field)) == value
    assert made.secret != secret
    asked: dict[str, Any] = {"resources": ["apps/a1"], "api_group": "form", "source_ip": "10.1.2.3"}
    assert ask.check(made.secret, **asked).key.key_id == made.key.key_id
    assert ask.told(made.secret, **(asked | {"source_ip": "10.2.2.3"})) == "IP_NOT_ALLOWED"
    assert ask.told(made.secret, **(asked | {"api_group": "data"})) == "API_GROUP_NOT_ALLOWED"
    assert ask.told(made.secret, **(asked | {"resources": ["apps/a2"]})) == "RESOURCE_NOT_ALLOWED"
    assert ask(RevealKeyRequest(key_id=made.key.key_id)).secret == made.secret
    ask(DisableKeyRequest(key_id=key.key_id))
    assert ask.told(made.secret, **asked) == "OK"
    assert ask(CopyKeyRequest(key_id=key.key_id, display_name="copy")).key.display_name == "copy"


def test_delete_only_once_it_is_disabled(ask: Asker, account: str) -> None:
    """A key can be deleted only once it is disabled; then nobody finds it."""
    key, secret = ask.key(account)
    refusal = ask.refusal(DeleteKeyRequest(key_id=key.key_id))
    assert (refusal.code, refusal.reason) == (StatusCode.FAILED_PRECONDITION, "KEY_ENABLED")
    assert ask.told(secret) == "OK"
    ask(DisableKeyRequest(key_id=key.key_id))
    ask(DeleteKeyRequest(key_id=key.key_id))
    assert ask.told(secret) == "KEY_NOT_FOUND"
    assert ask.refusal(GetKeyRequest(key_id=key.key_id)).code is StatusCode.NOT_FOUND
    assert ask.refusal(RevealKeyRequest(key_id=key.key_id)).code is StatusCode.NOT_FOUND
    assert not ask(ListKeysRequest(account_id=account)).keys
