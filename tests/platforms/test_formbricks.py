"""Be Formbricks: each line of its table."""

from __future__ import annotations

import re

import pytest
from grpc import StatusCode

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.keys_pb2 import CreateKeyRequest, DeleteKeyRequest, GetKeyRequest
from tests.platforms.asking import UNAUTHORIZED, Asker, answers, grant, http
from tests.support.client import new_account

EVERY_METHOD = "GET HEAD POST PUT PATCH DELETE OPTIONS PROPFIND"
LEVELS = {
    nouns.LEVEL_READ: {"GET", "HEAD"},
    nouns.LEVEL_WRITE: {"GET", "HEAD", "POST", "PUT", "PATCH"},
    nouns.LEVEL_MANAGE: set(EVERY_METHOD.split()),
}


@pytest.fixture
def account(ask: Asker) -> str:
    """A Formbricks organization that no other test knows."""
    return new_account(ask, policy="formbricks")


def environment(project: str, name: str) -> str:
    """Return the resource of a (project, environment) pair."""
    return f"projects/{project}/environments/{name}"


def test_a_descriptive_label(ask: Asker, account: str) -> None:
    """A key has a descriptive label."""
    key, secret = ask.key(account, display_name="Zapier: surveys to CRM")
    assert key.display_name == ask.check(secret).key.display_name == "Zapier: surveys to CRM"
    assert ask.update(key, display_name="Zapier").display_name == "Zapier"
    assert re.fullmatch(r"fbk_[0-9A-Za-z]{49}", secret)


@pytest.mark.parametrize(("level", "methods"), LEVELS.items())
def test_levels(ask: Asker, account: str, level: nouns.Level, methods: set[str]) -> None:
    """Level read: GET (and HEAD). write: GET, POST, PUT, PATCH. manage: every request type, DELETE too."""
    here = environment("p1", "production")
    secret = ask.secret(account, grants=[grant(here, level)])
    told = answers(ask, secret, EVERY_METHOD, resources=[f"{here}/surveys/s1"])
    assert {method for method, allowed in told.items() if allowed} == methods
    names = {each.level: each.display_name for each in ask.policy("formbricks").levels}
    assert names == {nouns.LEVEL_READ: "read", nouns.LEVEL_WRITE: "write", nouns.LEVEL_MANAGE: "manage"}


def test_project_access(ask: Asker, account: str) -> None:
    """Any number of (project, environment) pairs, each with a level; one does not reach into another."""
    pairs = {
        ("p1", "production"): nouns.LEVEL_READ,
        ("p1", "development"): nouns.LEVEL_MANAGE,
        ("p2", "production"): nouns.LEVEL_WRITE,
    }
    secret = ask.secret(account, grants=[grant(environment(*pair), level) for pair, level in pairs.items()])
    for pair, level in pairs.items():
        told = answers(ask, secret, EVERY_METHOD, resources=[environment(*pair)])
        assert {method for method, allowed in told.items() if allowed} == LEVELS[level]
    for pair in (("p2", "development"), ("p3", "production"), ("p10", "production")):
        assert not any(answers(ask, secret, EVERY_METHOD, resources=[environment(*pair)]).values())
    assert ask.told(secret, http_method="GET", resources=["projects/p1"]) == "RESOURCE_NOT_ALLOWED"
    assert ask.told(secret, http_method="GET") == "RESOURCE_NOT_ALLOWED"


def test_many_pairs(ask: Asker, account: str) -> None:
    """Any number: 1,000 pairs in one key, and each decides by itself."""
    grants = [grant(environment(f"p{at}", "production"), at % 3 + 1) for at in range(1_000)]
    secret = ask.secret(account, grants=grants)
    for at in (0, 1, 2, 997, 998, 999):
        told = answers(ask, secret, "GET POST DELETE", resources=[environment(f"p{at}", "production")])
        assert list(told.values()) == [True, at % 3 > 0, at % 3 > 1]


@pytest.mark.parametrize("held", [[], ["organization.read"], ["organization.write"], None])
def test_organization_access(ask: Asker, account: str, held: list[str] | None) -> None:
    """Organization access: read and/or write, each on its own."""
    both = ["organization.read", "organization.write"]
    held = both if held is None else held
    grants = [grant("organization", nouns.LEVEL_UNSPECIFIED, *held)] if held else []
    secret = ask.secret(account, grants=[*grants, grant("*", nouns.LEVEL_MANAGE)])
    told = [each for each in both if ask.check(secret, permissions=[each], resources=["organization"]).allowed]
    assert told == held


def test_all_projects_do_not_include_the_organization(ask: Asker, account: str) -> None:
    """Access to all projects does not include the organization, nor the other way about."""
    projects = ask.secret(account, grants=[grant("*", nouns.LEVEL_MANAGE, "*")])
    organization = ask.secret(account, grants=[grant("organization", nouns.LEVEL_MANAGE, "*")])
    assert ask.told(projects, http_method="DELETE", resources=[environment("p1", "production")]) == "OK"
    assert ask.told(organization, http_method="GET", resources=[environment("p1", "production")]) != "OK"
    for permission in ("organization.read", "organization.write"):
        assert ask.told(organization, permissions=[permission], resources=["organization"]) == "OK"
        assert ask.told(projects, permissions=[permission], resources=["organization"]) == "RESOURCE_NOT_ALLOWED"
    assert ask.told(projects, http_method="GET", resources=["organization"]) == "RESOURCE_NOT_ALLOWED"
    level = ask.secret(account, grants=[grant("*", nouns.LEVEL_MANAGE)])
    assert ask.told(level, permissions=["organization.read"]) == "PERMISSION_DENIED"


def test_no_other_permission(ask: Asker, account: str) -> None:
    """Its catalogue has these two permissions; levels say the rest."""
    assert list(ask.policy("formbricks").permissions) == ["organization.read", "organization.write"]
    request = CreateKeyRequest(account_id=account, grants=[grant("*", nouns.LEVEL_UNSPECIFIED, "surveys.read")])
    assert ask.refusal(request).code is StatusCode.INVALID_ARGUMENT


def test_without_grants(ask: Asker, account: str) -> None:
    """A key without any access only authenticates."""
    secret = ask.secret(account)
    assert ask.told(secret) == "OK"
    assert ask.told(secret, http_method="GET", resources=[environment("p1", "production")]) == "PERMISSION_DENIED"


def test_shown_once(ask: Asker, account: str) -> None:
    """A secret is shown once."""
    ask.shown_once(account)


def test_deletion(ask: Asker, account: str) -> None:
    """Deletion: the key stops working immediately."""
    key, secret = ask.key(account, grants=[grant("*", nouns.LEVEL_MANAGE)])
    assert ask.told(secret) == "OK"
    ask(DeleteKeyRequest(key_id=key.key_id))
    assert http(ask.check(secret)) == (
        401,
        UNAUTHORIZED,
        b'{"error": {"reason": "KEY_NOT_FOUND", "message": "The API key is unknown."}}',
    )
    assert ask.refusal(GetKeyRequest(key_id=key.key_id)).code is StatusCode.NOT_FOUND
