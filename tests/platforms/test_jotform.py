"""Be Jotform: each line of its table, and what its users ask for and do not get there."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import StatusCode

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import GetLimitsRequest, UpdateAccountRequest
from formgate.v1.keys_pb2 import CreateKeyRequest, GetKeyRequest
from tests.platforms.asking import Asker, answers, grant, http, reason
from tests.support.client import new_account

EVERY_METHOD = "GET HEAD POST PUT PATCH DELETE OPTIONS PROPFIND"
PLANS = {"starter": 1_000, "bronze": 10_000, "silver": 50_000, "gold": 100_000, "enterprise": None}
READ_ACCESS = [grant("*", nouns.LEVEL_READ)]
FULL_ACCESS = [grant("*", nouns.LEVEL_MANAGE)]
EASTERN = ZoneInfo("America/New_York")


@pytest.fixture
def account(ask: Asker) -> str:
    """A Jotform account that no other test knows, where it is about noon."""
    return new_account(ask, policy="jotform")


def book(ask: Asker, account: str, plan: str) -> None:
    """Change an account's plan."""
    changed = nouns.Account(account_id=account, plan=plan)
    ask(UpdateAccountRequest(account=changed, update_mask=FieldMask(paths=["plan"])))


def test_a_key_has_a_label(ask: Asker, account: str) -> None:
    """A key has a label; secrets begin with ``jf_``."""
    key, secret = ask.key(account, display_name="Reporting, nightly")
    assert key.display_name == ask(GetKeyRequest(key_id=key.key_id)).key.display_name == "Reporting, nightly"
    assert ask.check(secret).key.display_name == "Reporting, nightly"
    assert secret.startswith("jf_")
    assert ask.update(key, display_name="Reporting").display_name == "Reporting"


def test_an_access_level_that_can_be_changed_later(ask: Asker, account: str) -> None:
    """A key has an access level that can be changed later, both ways, from the next check on."""
    key, secret = ask.key(account, grants=READ_ACCESS)
    assert ask.told(secret, http_method="POST") == "PERMISSION_DENIED"
    ask.update(key, grants=FULL_ACCESS)
    assert ask.told(secret, http_method="POST") == "OK"
    ask.update(key, grants=READ_ACCESS)
    assert ask.told(secret, http_method="POST") == "PERMISSION_DENIED"


def test_read_access(ask: Asker, account: str) -> None:
    """Read Access: view only."""
    secret = ask.secret(account, grants=READ_ACCESS)
    assert answers(ask, secret, EVERY_METHOD, resources=["forms/f1"]) == {
        method: method in ("GET", "HEAD") for method in EVERY_METHOD.split()
    }


def test_full_access(ask: Asker, account: str) -> None:
    """Full Access: view, add, edit, delete; every method."""
    secret = ask.secret(account, grants=FULL_ACCESS)
    assert all(answers(ask, secret, EVERY_METHOD, resources=["forms/f1"]).values())


def test_the_access_levels(ask: Asker, account: str) -> None:
    """There are two access levels, called Read Access and Full Access; LEVEL_WRITE is not offered."""
    told = {level.level: level.display_name for level in ask.policy("jotform").levels}
    assert told == {nouns.LEVEL_READ: "Read Access", nouns.LEVEL_MANAGE: "Full Access"}
    refusal = ask.refusal(CreateKeyRequest(account_id=account, grants=[grant("*", nouns.LEVEL_WRITE)]))
    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, ("grants[0].level",))


@pytest.mark.parametrize(("plan", "amount"), PLANS.items())
def test_the_daily_limit_by_plan(ask: Asker, plan: str, amount: int | None) -> None:
    """Daily API calls: Starter 1,000, Bronze 10,000, Silver 50,000, Gold 100,000, Enterprise unlimited."""
    secret = ask.secret(new_account(ask, policy="jotform", plan=plan))
    admitted = ask.check(secret, cost=amount or 10**12)
    assert reason(admitted) == "OK"
    (limit,) = admitted.limits
    assert (limit.name, limit.holder, limit.unlimited) == ("daily", nouns.HOLDER_ACCOUNT, amount is None)
    if amount is None:
        assert ask.told(secret) == "OK"
        return
    assert (limit.amount, limit.remaining) == (amount, 0)
    denied = ask.check(secret)
    assert reason(denied) == "QUOTA_EXCEEDED"
    status, headers, body = http(denied)
    assert status == 429
    assert headers["content-type"] == "application/json"
    assert 0 < int(headers["retry-after"]) <= 25 * 3_600
    assert body == b'{"error": {"reason": "QUOTA_EXCEEDED", "message": "The quota of this period is used up."}}'


def test_the_first_thousand_calls(ask: Asker, account: str) -> None:
    """A new account is on Starter: its 1,000th call of a day is admitted, its 1,001st is not."""
    secret = ask.secret(account)
    assert ask.told(secret, cost=998) == "OK"
    assert [ask.told(secret) for _ in range(4)] == ["OK", "OK", "QUOTA_EXCEEDED", "QUOTA_EXCEEDED"]


def test_the_limit_is_the_accounts(ask: Asker, account: str) -> None:
    """The limit is the account's: all its keys share it, and a key can not have a larger one of its own."""
    key, secret = ask.key(account)
    own = nouns.Limit(name="daily", amount=10**6, calendar=nouns.CALENDAR_DAY)
    other = ask.secret(account, limits=[own])
    assert ask.told(secret, cost=600) == "OK"
    assert ask.told(other, cost=401) == "QUOTA_EXCEEDED"
    assert ask.told(other, cost=400) == "OK"
    assert ask.told(secret) == "QUOTA_EXCEEDED"
    of_key = ask(GetLimitsRequest(key_id=key.key_id)).limits
    assert [(limit.name, limit.remaining) for limit in of_key] == [("daily", 0)]
    assert ask.told(ask.secret(new_account(ask, policy="jotform"))) == "OK"


def test_another_plan(ask: Asker, account: str) -> None:
    """Booking another plan counts at once, and what was used today stays used."""
    secret = ask.secret(account)
    assert ask.told(secret, cost=1_000) == "OK"
    assert ask.told(secret) == "QUOTA_EXCEEDED"
    book(ask, account, "bronze")
    assert ask.check(secret, cost=4_000).limits[0].remaining == 5_000
    book(ask, account, "starter")
    assert ask.told(secret) == "QUOTA_EXCEEDED"
    book(ask, account, "enterprise")
    assert ask.told(secret, cost=10**9) == "OK"


def next_midnight() -> datetime:
    """Return the next midnight, US Eastern time."""
    tomorrow = datetime.now(EASTERN).date() + timedelta(days=1)
    return datetime.combine(tomorrow, time(), EASTERN).astimezone(UTC)


def test_the_reset(ask: Asker) -> None:
    """The limit resets daily at midnight, US Eastern time."""
    account = new_account(ask, policy="jotform", time_zone="")
    secret = ask.secret(account)
    before = next_midnight()
    (limit,) = ask.check(secret).limits
    assert limit.reset_time.ToDatetime(UTC) in (before, next_midnight())
    assert {plan.time_zone for plan in ask.policy("jotform").plans} == {"America/New_York"}
    assert [plan.name for plan in ask.policy("jotform").plans] == list(PLANS)


def test_a_key_for_certain_forms(ask: Asker, account: str) -> None:
    """What its users ask for and it has not: a key limited to certain forms, each with a level of its own."""
    secret = ask.secret(account, grants=[grant("forms/f1", nouns.LEVEL_READ), grant("forms/f2", nouns.LEVEL_MANAGE)])
    assert ask.told(secret, http_method="GET", resources=["forms/f1"]) == "OK"
    assert ask.told(secret, http_method="GET", resources=["forms/f1/submissions/9"]) == "OK"
    assert ask.told(secret, http_method="DELETE", resources=["forms/f2/submissions/9"]) == "OK"
    assert ask.told(secret, http_method="POST", resources=["forms/f1"]) == "RESOURCE_NOT_ALLOWED"
    for other in ("forms/f10", "forms", "forms/f3", "folders/f1"):
        assert ask.told(secret, http_method="GET", resources=[other]) == "RESOURCE_NOT_ALLOWED"
    assert ask.told(secret, http_method="GET") == "RESOURCE_NOT_ALLOWED"


def test_a_key_for_one_folder(ask: Asker, account: str) -> None:
    """What its users ask for and it has not: "FR, Finance, IT team", one key for each folder."""
    folders = ("fr", "finance", "it")
    secrets = {each: ask.secret(account, grants=[grant(f"folders/{each}", nouns.LEVEL_MANAGE)]) for each in folders}
    for owner, secret in secrets.items():
        for folder in folders:
            asked = ["forms/f1", f"folders/{folder}/forms/f1"]
            expected = "OK" if folder == owner else "RESOURCE_NOT_ALLOWED"
            assert ask.told(secret, http_method="POST", resources=asked) == expected
        assert ask.told(secret, http_method="GET", resources=["forms/f1"]) == "RESOURCE_NOT_ALLOWED"


def test_access_only_from_ones_own_app(ask: Asker, account: str) -> None:
    """What its users ask for and it has not: access only from one's own app, by its addresses or by its name."""
    by_address = ask.secret(account, ip_rules=["203.0.113.7", "198.51.100.0/24", "2001:db8::/32"])
    for address in ("203.0.113.7", "198.51.100.9", "::ffff:203.0.113.7", "2001:db8::9"):
        assert ask.told(by_address, source_ip=address) == "OK"
    for address in ("203.0.113.8", "198.51.101.1", "2001:db9::1", ""):
        assert ask.told(by_address, source_ip=address) == "IP_NOT_ALLOWED"
    by_name = ask.secret(account, api_groups=["my-app"])
    assert ask.told(by_name, api_group="my-app") == "OK"
    assert ask.told(by_name, api_group="another") == "API_GROUP_NOT_ALLOWED"
    assert ask.told(by_name) == "API_GROUP_NOT_ALLOWED"
