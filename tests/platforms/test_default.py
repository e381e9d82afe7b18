"""Be nobody in particular: what the default policy promises."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import GetAccountRequest, GetLimitsRequest, ListPoliciesRequest
from formgate.v1.keys_pb2 import CreateKeyRequest
from tests.platforms.asking import Asker, answers, grant
from tests.support.client import new_account

NAMES = ["default", "formbricks", "jodoo", "jotform", "proforms", "siteplot"]


@pytest.fixture
def account(ask: Asker) -> str:
    """An account whose policy is not said."""
    return new_account(ask)


def test_it_is_the_default(ask: Asker, account: str) -> None:
    """An account that names no policy has the default one; the five others are there too."""
    assert ask(GetAccountRequest(account_id=account)).account.policy == "default"
    assert [policy.name for policy in ask.all(ListPoliciesRequest(page_size=4))] == NAMES


def test_prefixes(ask: Asker, account: str) -> None:
    """Secrets begin with ``fg_live_`` or ``fg_test_``."""
    assert re.fullmatch(r"fg_live_[0-9A-Za-z]{49}", ask.secret(account))
    assert re.fullmatch(r"fg_test_[0-9A-Za-z]{49}", ask.secret(account, environment=nouns.ENVIRONMENT_TEST))


@pytest.mark.parametrize(
    ("level", "methods"),
    [
        (nouns.LEVEL_READ, ["GET", "HEAD"]),
        (nouns.LEVEL_WRITE, ["GET", "HEAD", "POST", "PUT", "PATCH"]),
        (nouns.LEVEL_MANAGE, ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
    ],
)
def test_three_levels(ask: Asker, account: str, level: nouns.Level, methods: list[str]) -> None:
    """Three levels, by HTTP method as Formbricks has them."""
    secret = ask.secret(account, grants=[grant("*", level)])
    told = answers(ask, secret, "GET HEAD POST PUT PATCH DELETE")
    assert [method for method, allowed in told.items() if allowed] == methods


def test_any_permission(ask: Asker, account: str) -> None:
    """Any ``noun.verb`` is a permission; what is no such thing is none."""
    secret = ask.secret(account, grants=[grant("*", nouns.LEVEL_UNSPECIFIED, "widgets.spin", "reports.*")])
    assert ask.told(secret, permissions=["widgets.spin", "reports.print"]) == "OK"
    assert ask.told(secret, permissions=["widgets.stop"]) == "PERMISSION_DENIED"
    everything = ask.secret(account, grants=[grant("*", nouns.LEVEL_UNSPECIFIED, "*")])
    assert ask.told(everything, permissions=["widgets.spin"]) == "OK"
    assert ask.told(everything, permissions=["Widgets spin"]) == "PERMISSION_DENIED"


def test_no_limits(ask: Asker, account: str) -> None:
    """It has no limits of its own."""
    key, secret = ask.key(account)
    assert not ask.check(secret, cost=10**15).limits
    assert not ask(GetLimitsRequest(key_id=key.key_id)).limits


def test_no_cap_on_keys(ask: Asker, account: str) -> None:
    """It has no cap on keys."""
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(ask, [CreateKeyRequest(account_id=account)] * 501))
    assert len({made.key.key_id for made in keys}) == 501


def test_no_grants_and_no_creator(ask: Asker, account: str) -> None:
    """No grants and no creator: the key only authenticates."""
    for secret in (ask.secret(account), ask.secret(account, created_by="nobody-known")):
        assert ask.told(secret) == "OK"
        assert ask.told(secret, resources=["forms/f1"]) == "RESOURCE_NOT_ALLOWED"
        assert ask.told(secret, http_method="GET") == "PERMISSION_DENIED"
        assert ask.told(secret, permissions=["forms.view"]) == "PERMISSION_DENIED"


def test_a_creator(ask: Asker, account: str) -> None:
    """No grants and a creator: the key may what the creator may, at every check anew."""
    secret = ask.secret(account, created_by="ann")
    ask.member(account, "ann", permissions=["forms.view"], level=nouns.LEVEL_WRITE)
    assert ask.told(secret, permissions=["forms.view"]) == "OK"
    assert ask.told(secret, http_method="PUT", resources=["forms/f1"]) == "OK"
    ask.member(account, "ann", level=nouns.LEVEL_READ)
    assert ask.told(secret, http_method="PUT", resources=["forms/f1"]) == "PERMISSION_DENIED"


def test_a_key_with_grants_is_not_capped(ask: Asker, account: str) -> None:
    """A key with grants has those, whatever its creator may."""
    ask.member(account, "ann")
    secret = ask.secret(account, created_by="ann", grants=[grant("*", nouns.LEVEL_MANAGE)])
    assert ask.told(secret, http_method="DELETE") == "OK"


def test_not_recoverable(ask: Asker, account: str) -> None:
    """A secret is shown once."""
    ask.shown_once(account)
