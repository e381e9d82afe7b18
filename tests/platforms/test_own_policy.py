"""Be a sixth platform, which nobody has heard of: one file in FORMGATE_POLICY_DIR, and no code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import GetUsageRequest
from formgate.v1.authorization_pb2 import CheckKeyRequest, RecordUsageRequest, UsageRecord
from formgate.v1.keys_pb2 import CreateKeyRequest, DeleteKeyRequest, RevealKeyRequest
from tests.platforms.asking import Asker, answers, grant, http, reason
from tests.support.client import new_account
from tests.support.server import Server

POLICY = r"""
name = "questy"
description = "Keys by quest; what they cost is paid in coins."
prefixes = { LIVE = "quest_", TEST = "quest-test_" }
levels = { READ = "Squire", WRITE = "Knight" }
methods = { LOOK = "READ", "*" = "WRITE" }
api_groups = ["maps"]
usage_tags = ["realm"]

[permissions]
"quests.see" = "READ"
"quests.set.prize" = "WRITE"
"dragons.wake" = "NONE"

[keys]
most = 2
creators = ["ADMIN"]
created_by = "required"
ungranted = "READ"
capped = true
recoverable = true
delete_only_disabled = true
ip_rules = { most = 1, wildcards = false }

[plans.peasant]
time_zone = "Asia/Kathmandu"
limits = [
  { name = "coins", holder = "ACCOUNT", amount = 3, lifetime = true },
  { name = "pace", holder = "KEY", amount = 5, window = "250ms", most = 6 },
]

[plans.noble]
time_zone = "Asia/Kathmandu"

[denial]
headers = [["content-type", "text/plain; charset=utf-8"], ["x-quest", "{reason};{retry_after}"], ["x-why", "{reason}"]]
body = "{title}: {message} ({reason}, {retry_after})"

[denials.CREDITS_EXHAUSTED]
status = 402
title = 'No "coins" \ left'
message = "Öd {reason} {message}"
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    """A manager of a server that has the policy in its folder, which it is told by the environment."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "policies").mkdir()
    (folder / "policies" / "questy.toml").write_text(POLICY, encoding="utf-8")
    with Server(folder, environment={"FORMGATE_POLICY_DIR": str(folder / "policies")}) as server:
        asker = Asker(server.address, server.token)
        yield asker
        asker.close()


@pytest.fixture
def account(ask: Asker) -> str:
    """An account of the sixth platform; arthur may make keys, and everything else."""
    account = new_account(ask, policy="questy", plan="noble")
    ask.member(account, "arthur", role=nouns.ROLE_ADMIN, level=nouns.LEVEL_WRITE, permissions=["*"])
    return account


def test_it_is_one_of_seven(ask: Asker) -> None:
    """It is told like the bundled ones, with its own words."""
    policy = ask.policy("questy")
    assert {level.level: level.display_name for level in policy.levels} == {
        nouns.LEVEL_READ: "Squire",
        nouns.LEVEL_WRITE: "Knight",
    }
    assert [plan.name for plan in policy.plans] == ["peasant", "noble"]
    assert list(policy.permissions) == ["quests.see", "quests.set.prize", "dragons.wake"]
    assert ask.policy("default").name == "default"


def test_its_keys(ask: Asker, account: str) -> None:
    """Its prefixes, creators, cap on keys, kinds of addresses, and deletion."""
    key, secret = ask.key(account, created_by="arthur", environment=nouns.ENVIRONMENT_TEST)
    assert re.fullmatch(r"quest-test_[0-9A-Za-z]{49}", secret)
    assert ask(RevealKeyRequest(key_id=key.key_id)).secret == secret
    assert ask.refusal(DeleteKeyRequest(key_id=key.key_id)).reason == "KEY_ENABLED"
    refused = [
        CreateKeyRequest(account_id=account, created_by="lancelot"),
        CreateKeyRequest(account_id=account, created_by="arthur", ip_rules=["10.*.*.*"]),
        CreateKeyRequest(account_id=account, created_by="arthur", ip_rules=["10.0.0.0/8", "10.0.0.1"]),
        CreateKeyRequest(account_id=account, created_by="arthur", api_groups=["forms"]),
    ]
    assert [ask.refusal(request).code for request in refused] == [
        StatusCode.FAILED_PRECONDITION,
        *[StatusCode.INVALID_ARGUMENT] * 3,
    ]
    assert ask.secret(account, created_by="arthur", ip_rules=["2001:db8::/32"]).startswith("quest_")
    third = CreateKeyRequest(account_id=account, created_by="arthur")
    assert ask.refusal(third).reason == "TOO_MANY_KEYS"


def test_its_rights(ask: Asker, account: str) -> None:
    """Its methods and levels, what a key without grants gets, and the creator as ceiling."""
    squire = ask.secret(account, created_by="arthur")
    knight = ask.secret(account, created_by="arthur", grants=[grant("quests/q1", nouns.LEVEL_WRITE, "dragons.wake")])
    assert answers(ask, squire, "LOOK GET") == {"LOOK": True, "GET": False}
    assert answers(ask, knight, "LOOK GET", resources=["quests/q1"]) == {"LOOK": True, "GET": True}
    assert ask.told(squire, permissions=["quests.see"]) == "OK"
    assert ask.told(squire, permissions=["quests.set.prize"]) == "PERMISSION_DENIED"
    assert ask.told(knight, permissions=["quests.set.prize", "dragons.wake"], resources=["quests/q1"]) == "OK"
    ask.member(account, "arthur", role=nouns.ROLE_ADMIN, level=nouns.LEVEL_READ)
    assert answers(ask, knight, "LOOK GET", resources=["quests/q1"]) == {"LOOK": True, "GET": False}
    assert ask.told(knight, permissions=["dragons.wake"], resources=["quests/q1"]) == "PERMISSION_DENIED"


def test_its_limits_and_words(ask: Asker) -> None:
    """Its limits, and its denials byte for byte: status, headers, and what is put into the body escaped, once."""
    account = new_account(ask, policy="questy")
    ask.member(account, "arthur", role=nouns.ROLE_ADMIN, level=nouns.LEVEL_READ)
    own = nouns.Limit(name="pace", amount=6, window=Duration(nanos=250_000_000))
    secret = ask.secret(account, created_by="arthur", limits=[own])
    too_much = nouns.Limit(name="pace", amount=7, window=Duration(nanos=250_000_000))
    refusal = ask.refusal(CreateKeyRequest(account_id=account, created_by="arthur", limits=[too_much]))
    assert refusal.fields == ("limits[0].amount",)
    assert ask.told(secret, cost=3) == "OK"
    denied = ask.check(secret)
    assert reason(denied) == "CREDITS_EXHAUSTED"
    assert http(denied) == (
        402,
        {"content-type": "text/plain; charset=utf-8", "x-why": "CREDITS_EXHAUSTED"},
        rb"No \"coins\" \\ left: \u00d6d {reason} {message} (CREDITS_EXHAUSTED, )",
    )


def test_its_words_by_its_prefix(ask: Asker) -> None:
    """A key that nobody made is worded by the policy with its prefix."""
    answer = ask(CheckKeyRequest(authorization="Bearer quest-test_mistyped"))
    assert http(answer)[2] == b"Malformed key: This is not an API key. (MALFORMED_KEY, )"


def test_its_usage_by_tag(ask: Asker, account: str) -> None:
    """Usage is summed by the tag that it names, and by no other."""
    key, _ = ask.key(account, created_by="arthur")
    records = [UsageRecord(record_id=f"r{at}", key_id=key.key_id, units=at, tags={"realm": "x"}) for at in (1, 2)]
    ask(RecordUsageRequest(records=records))
    asked = GetUsageRequest(account_id=account, group_by="tag:realm")
    asked.start_time.GetCurrentTime()
    asked.start_time.seconds -= 7_200
    assert sum(bucket.units for bucket in ask(asked).buckets if bucket.group == "x") == 3
    asked.group_by = "tag:other"
    assert ask.refusal(asked).fields == ("group_by",)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("broken.toml", 'name = "broken"\nprefixes = {', "broken.toml:2: the file: is not TOML"),
        ("broken.toml", POLICY.replace("most = 2", "most = 0"), "broken.toml:16: keys.most: "),
        ("again.toml", POLICY.replace('"quest_"', '"q_"').replace('"quest-test_"', '"qt_"'), "again.toml:2: name: "),
        ("again.toml", POLICY.replace('"questy"', '"questo"'), "again.toml:4: prefixes.LIVE: quest_ is also"),
        ("bundled.toml", POLICY.replace('"quest-test_"', '"jd_"'), "bundled.toml:4: prefixes.TEST: jd_ is also"),
    ],
)
def test_what_stops_the_start(tmp_path: Path, name: str, text: str, told: str) -> None:
    """A policy that is not valid, or has the name or prefix of another, stops the start with file, line and field."""
    folder = tmp_path / "policies"
    folder.mkdir()
    if name == "again.toml":
        (folder / "a.toml").write_text(POLICY, encoding="utf-8")
    (folder / name).write_text(text, encoding="utf-8")
    server = Server(tmp_path, environment={"FORMGATE_POLICY_DIR": str(folder)})
    server.spawn()
    assert server.wait() != 0
    assert told in server.log
    assert "Traceback" not in server.log
