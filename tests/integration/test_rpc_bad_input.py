"""What a clumsy or hostile caller sends: the status that the contract says, naming the field, and nothing changed."""

from __future__ import annotations

import base64
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import (
    CreateAccountRequest,
    CreateServiceTokenRequest,
    GetAccountRequest,
    ListAccountsRequest,
    ListServiceTokensRequest,
    RevokeServiceTokenRequest,
    UpdateAccountRequest,
)
from formgate.v1.authorization_pb2 import BatchCheckKeysRequest, CheckKeyRequest, RecordUsageRequest
from formgate.v1.keys_pb2 import (
    CreateKeyRequest,
    DisableKeyRequest,
    EnableKeyRequest,
    GetKeyRequest,
    ListKeysRequest,
    RevokeKeyRequest,
    UpdateKeyRequest,
)
from tests.support.client import Client, Refusal, database, methods, path
from tests.support.server import Server

pytest_plugins = ("tests.support.rpc",)

# Stand for what the test makes.
ACCOUNT, KEY = "ACCOUNT", "KEY"

BAD_IDS = [
    *(".", "..", "a b", "a{b}", "{a}", "a/b", "a\n", "a\0", "é", "٣", "a" * 65, "a" * 100_000, "*", "a:b"),
    "\u202ea",
    "fg_live_" + "a" * 57,
]
BAD_TEXTS = ["a\nb", "a\rb", "\0", "\x1b[31m", "\x7f", "\x9b", "\u202e", "\u2028", "\u2029", "\u200f", "a" * 1_000]
BAD_PATHS = ["", "/", "a/", "/a", "a//b", "a/../b", "..", "a/.", "a/*", "*/a", "a/*/b", "**", "a b", "é", "a" * 65]
BAD_PATHS += ["a/" * 512 + "a", "a\n", "projects/{p}"]
BAD_DURATIONS = {
    "negative": Duration(seconds=-1),
    "negative nanos": Duration(nanos=-1),
    "sub-microsecond": Duration(nanos=999),
    "mixed signs": Duration(seconds=1, nanos=-1),
    "mixed signs, other way": Duration(seconds=-1, nanos=1),
    "too many nanos": Duration(nanos=1_000_000_000),
    "over 10,000 years": Duration(seconds=315_576_000_001),
    "largest": Duration(seconds=2**63 - 1, nanos=2**31 - 1),
    "smallest": Duration(seconds=-(2**63), nanos=-(2**31)),
    "0": Duration(),
}
BAD_TIMES = {
    "past": Timestamp(seconds=1),
    "zero": Timestamp(),
    "before 1970": Timestamp(seconds=-1),
    "before year 1": Timestamp(seconds=-62_135_596_801),
    "after 9999": Timestamp(seconds=253_402_300_800),
    "largest": Timestamp(seconds=2**63 - 1),
    "smallest": Timestamp(seconds=-(2**63)),
    "negative nanos": Timestamp(seconds=4_102_444_800, nanos=-1),
    "too many nanos": Timestamp(seconds=4_102_444_800, nanos=1_000_000_000),
}
WINDOWS = {name: value for name, value in BAD_DURATIONS.items() if name != "sub-microsecond"} | {
    "under a millisecond": Duration(nanos=999_999),
    "a part of a microsecond": Duration(seconds=1, nanos=1),
    "over 366 days": Duration(seconds=366 * 86_400, nanos=1_000),
    "10,000 years": Duration(seconds=315_576_000_000),
}
HOUR = Duration(seconds=3_600)


def limit(**fields: Any) -> nouns.Limit:
    """Make a limit; a good one where nothing else is said."""
    values: dict[str, Any] = {"name": "rate", "amount": 1}
    per = {"window", "calendar", "lifetime"} & fields.keys()
    return nouns.Limit(**values | ({} if per else {"window": HOUR}) | fields)


BAD_LIMITS: dict[str, tuple[list[nouns.Limit], str]] = {
    "no name": ([limit(name="")], "[0].name"),
    "bad name": ([limit(), limit(name="a b")], "[1].name"),
    "a name twice": ([limit(), limit(calendar=nouns.CALENDAR_DAY)], "[1].name"),
    "negative amount": ([limit(amount=-1)], "[0].amount"),
    "smallest amount": ([limit(amount=-(2**63))], "[0].amount"),
    "no per": ([nouns.Limit(name="a")], "[0]"),
    "no calendar": ([limit(calendar=nouns.CALENDAR_UNSPECIFIED)], "[0].calendar"),
    "unknown calendar": ([limit(calendar=99)], "[0].calendar"),
    "unknown holder": ([limit(holder=99)], "[0].holder"),
    "not for life": ([limit(lifetime=False)], "[0].lifetime"),
    "too many": ([limit(name=f"l{at}") for at in range(17)], ""),
} | {f"window {name}": ([limit(window=window)], "[0].window") for name, window in WINDOWS.items()}

BAD_GRANTS: dict[str, tuple[list[nouns.Grant], str]] = {
    "nothing": ([nouns.Grant(resource="a")], "[0]"),
    "empty": ([nouns.Grant()], "[0].resource"),
    "unknown level": ([nouns.Grant(resource="a", level=99)], "[0].level"),  # type: ignore[arg-type]
    "negative level": ([nouns.Grant(resource="a", level=-1)], "[0].level"),  # type: ignore[arg-type]
    "bad permission": ([nouns.Grant(resource="a", permissions=["forms.read", "Forms Read"])], "[0].permissions[1]"),
    "empty permission": ([nouns.Grant(resource="a", permissions=[""])], "[0].permissions[0]"),
    "star in the middle": ([nouns.Grant(resource="a", permissions=["forms.*.read"])], "[0].permissions[0]"),
    "huge permission": ([nouns.Grant(resource="a", permissions=["a" * 1_000_000])], "[0].permissions[0]"),
    "many permissions": ([nouns.Grant(resource="a", permissions=["a.b"] * 101)], "[0].permissions"),
    "10,000": ([nouns.Grant(resource="a", permissions=["a.b"])] * 10_000, ""),
    "129 KiB in all": ([nouns.Grant(resource="/".join(["a" * 63] * 4), level=nouns.LEVEL_READ)] * 520, ""),
    "1,001": ([nouns.Grant(resource="a", permissions=["a.b"])] * 1_001, ""),
} | {f"path {at}": ([nouns.Grant(resource=bad, permissions=["*"])], "[0].resource") for at, bad in enumerate(BAD_PATHS)}

BAD_RULES = [
    "",
    "x",
    "10.0.0.1/33",
    "10.0.0.1/8",
    "10.0.0",
    "010.0.0.1",
    "0x7f.1",
    "::/129",
    "fe80::1%eth0",
    "10.*",
    "*",
]
BAD_RULES += ["256.1.1.1", "10.1.*.*/16", "٣.0.0.1", "10.0.0.1\n", "::1/", "1" * 100_000]
BAD_METADATA: list[dict[str, str]] = [{"a": "b" * 1_024}, {"": "b"}, {"a": "b\n"}, {"a\0": "b"}, {"é": "é" * 512}]
BAD_METADATA += [{str(at): "" for at in range(2_000)}]


def _key_fields() -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield what neither CreateKey nor UpdateKey takes: a name, the fields, and which is told."""
    for at, text in enumerate(BAD_TEXTS):
        yield f"display_name {at}", {"display_name": text}, "display_name"
    for name, (grants, field) in BAD_GRANTS.items():
        yield f"grants {name}", {"grants": grants}, f"grants{field}"
    for at, rule in enumerate(BAD_RULES):
        yield f"ip_rules {at}", {"ip_rules": ["10.0.0.1", rule]}, "ip_rules[1]"
    yield "ip_rules many", {"ip_rules": ["10.0.0.1"] * 1_001}, "ip_rules"
    for at, group in enumerate(("", *BAD_IDS)):
        yield f"api_groups {at}", {"api_groups": ["a", group]}, "api_groups[1]"
    yield "api_groups many", {"api_groups": ["a"] * 101}, "api_groups"
    for name, (limits, field) in BAD_LIMITS.items():
        yield f"limits {name}", {"limits": limits}, f"limits{field}"
    yield "limits of the account", {"limits": [limit(holder=nouns.HOLDER_ACCOUNT)]}, "limits[0].holder"
    for at, notes in enumerate(BAD_METADATA):
        yield f"metadata {at}", {"metadata": notes}, "metadata"
    for name, stamp in BAD_TIMES.items():
        yield f"expire_time {name}", {"expire_time": stamp}, "expire_time"


def _cases() -> Iterator[tuple[str, Message, str]]:
    """Yield a name, a request, and the field that is told."""
    yield "CreateKey without an account", CreateKeyRequest(), "account_id"
    for at, bad in enumerate(BAD_IDS):
        for request in (GetKeyRequest, RevokeKeyRequest, DisableKeyRequest, EnableKeyRequest):
            yield f"{request.__name__} {at}", request(key_id=bad), "key_id"
        yield f"GetAccount {at}", GetAccountRequest(account_id=bad), "account_id"
        yield f"ListKeys {at}", ListKeysRequest(account_id=bad), "account_id"
        yield f"ListKeys created_by {at}", ListKeysRequest(account_id=ACCOUNT, created_by=bad), "created_by"
        yield f"CreateAccount {at}", CreateAccountRequest(account_id=bad), "account_id"
        yield f"RevokeServiceToken {at}", RevokeServiceTokenRequest(token_id=bad), "token_id"
        yield f"CreateKey account {at}", CreateKeyRequest(account_id=bad), "account_id"
        yield f"CreateKey request_id {at}", CreateKeyRequest(account_id=ACCOUNT, request_id=bad), "request_id"
        yield f"CreateKey created_by {at}", CreateKeyRequest(account_id=ACCOUNT, created_by=bad), "created_by"
        yield (
            f"UpdateKey {at}",
            UpdateKeyRequest(key=nouns.Key(key_id=bad), update_mask=_mask("metadata")),
            "key.key_id",
        )
        for field in ("request_id", "api_group", "policy"):
            yield f"CheckKey {field} {at}", CheckKeyRequest(key="x", **{field: bad}), field  # type: ignore[arg-type]
        token = CreateServiceTokenRequest(role=nouns.SERVICE_ROLE_CHECKER, account_id=bad)
        yield f"CreateServiceToken {at}", token, "account_id"
    for request in (GetKeyRequest, RevokeKeyRequest, DisableKeyRequest, EnableKeyRequest):
        yield f"{request.__name__} of none", request(), "key_id"
    yield "GetAccount of none", GetAccountRequest(), "account_id"
    yield "ListKeys of none", ListKeysRequest(), "account_id"
    yield "RevokeServiceToken of none", RevokeServiceTokenRequest(), "token_id"
    yield from _bad_keys()
    yield from _bad_accounts()
    yield from _bad_tokens()
    yield from _bad_listings()
    yield from _bad_checks()


def _mask(*paths: str) -> FieldMask:
    return FieldMask(paths=paths)


def _bad_keys() -> Iterator[tuple[str, Message, str]]:
    for name, fields, field in _key_fields():
        yield f"CreateKey {name}", CreateKeyRequest(account_id=ACCOUNT, **fields), field
        updated = next(iter(fields))
        update = UpdateKeyRequest(key=nouns.Key(key_id=KEY, **fields), update_mask=_mask(updated))
        yield f"UpdateKey {name}", update, f"key.{field}"
    for name, ttl in BAD_DURATIONS.items():
        yield f"CreateKey ttl {name}", CreateKeyRequest(account_id=ACCOUNT, ttl=ttl), "ttl"
    far = Duration(seconds=315_576_000_000)
    yield "CreateKey ttl beyond 9999", CreateKeyRequest(account_id=ACCOUNT, ttl=far), "ttl"
    both = CreateKeyRequest(account_id=ACCOUNT, ttl=HOUR, expire_time=Timestamp(seconds=4_102_444_800))
    yield "CreateKey ttl and expire_time", both, "ttl"
    for number in (99, -1, 2**31 - 1, -(2**31)):
        environment: Any = number
        yield (
            f"CreateKey environment {number}",
            CreateKeyRequest(account_id=ACCOUNT, environment=environment),
            "environment",
        )
    yield "UpdateKey of nothing", UpdateKeyRequest(), "update_mask"
    yield "UpdateKey without a key", UpdateKeyRequest(update_mask=_mask("grants")), "key.key_id"
    yield "UpdateKey without a mask", UpdateKeyRequest(key=nouns.Key(key_id=KEY, display_name="x")), "update_mask"
    for bad in ("", "*", "nonsense", "key.grants", "grants.resource", "state", "key_id", "etag", "created_by", "a\0"):
        update = UpdateKeyRequest(key=nouns.Key(key_id=KEY), update_mask=_mask("grants", bad))
        yield f"UpdateKey mask {bad!r}", update, "update_mask"
    many = UpdateKeyRequest(key=nouns.Key(key_id=KEY), update_mask=_mask(*map(str, range(100_000))))
    yield "UpdateKey a huge mask", many, "update_mask"
    for at, note in enumerate(BAD_TEXTS):
        yield f"RevokeKey note {at}", RevokeKeyRequest(key_id=KEY, reason_note=note), "reason_note"


def _bad_accounts() -> Iterator[tuple[str, Message, str]]:
    for at, text in enumerate(BAD_TEXTS):
        yield f"CreateAccount name {at}", CreateAccountRequest(display_name=text), "display_name"
        named = nouns.Account(account_id=ACCOUNT, display_name=text)
        update = UpdateAccountRequest(account=named, update_mask=_mask("display_name"))
        yield f"UpdateAccount name {at}", update, "account.display_name"
    for name, (limits, field) in BAD_LIMITS.items():
        yield f"CreateAccount limits {name}", CreateAccountRequest(limits=limits), f"limits{field}"
        limited = nouns.Account(account_id=ACCOUNT, limits=limits)
        update = UpdateAccountRequest(account=limited, update_mask=_mask("limits"))
        yield f"UpdateAccount limits {name}", update, f"account.limits{field}"
    for zone in ("Mars/Base", "../../etc/passwd", "/etc/localtime", "utc ", "\0", "Europe/Vienna\n", "a" * 100_000):
        yield f"CreateAccount zone {zone[:20]!r}", CreateAccountRequest(time_zone=zone), "time_zone"
        zoned = nouns.Account(account_id=ACCOUNT, time_zone=zone)
        update = UpdateAccountRequest(account=zoned, update_mask=_mask("time_zone"))
        yield f"UpdateAccount zone {zone[:20]!r}", update, "account.time_zone"
    for bad in ("nonsense", "a b", "\0", "../default"):
        yield f"CreateAccount policy {bad!r}", CreateAccountRequest(policy=bad), "policy"
        yield f"CreateAccount plan {bad!r}", CreateAccountRequest(plan=bad), "plan"
        planned = nouns.Account(account_id=ACCOUNT, plan=bad)
        update = UpdateAccountRequest(account=planned, update_mask=_mask("plan"))
        yield f"UpdateAccount plan {bad!r}", update, "account.plan"
    for number in (0, 99, -1):
        state: Any = number
        stated = nouns.Account(account_id=ACCOUNT, state=state)
        yield (
            f"UpdateAccount {state}",
            UpdateAccountRequest(account=stated, update_mask=_mask("state")),
            "account.state",
        )
    for bad in ("", "*", "policy", "epoch", "account_id", "etag", "account.plan"):
        update = UpdateAccountRequest(account=nouns.Account(account_id=ACCOUNT), update_mask=_mask(bad))
        yield f"UpdateAccount mask {bad!r}", update, "update_mask"
    yield "UpdateAccount of nothing", UpdateAccountRequest(), "update_mask"
    yield "UpdateAccount without an account", UpdateAccountRequest(update_mask=_mask("plan")), "account.account_id"


def _bad_tokens() -> Iterator[tuple[str, Message, str]]:
    checker = nouns.SERVICE_ROLE_CHECKER
    for number in (0, 99, -1):
        role: Any = number
        yield f"CreateServiceToken role {role}", CreateServiceTokenRequest(role=role), "role"
    for at, text in enumerate(BAD_TEXTS):
        yield (
            f"CreateServiceToken name {at}",
            CreateServiceTokenRequest(role=checker, display_name=text),
            "display_name",
        )
    for name, ttl in (BAD_DURATIONS | {"too long": Duration(seconds=3_660 * 86_400, nanos=1_000)}).items():
        yield f"CreateServiceToken ttl {name}", CreateServiceTokenRequest(role=checker, ttl=ttl), "ttl"
    yield "CreateServiceToken policy", CreateServiceTokenRequest(role=checker, policy="nonsense"), "policy"


def _bad_listings() -> Iterator[tuple[str, Message, str]]:
    tokens = ["x", "\0", "é", "====", "a" * 1_000_000, _page_token([]), _page_token([1, 2, 3]), _page_token({})]
    tokens += [base64.b64encode(b"[" * 100_000).decode(), base64.b64encode(b"\xff\xfe").decode()]
    for name, request in (("ListKeys", ListKeysRequest), ("ListAccounts", ListAccountsRequest)):
        fields = {"account_id": ACCOUNT} if request is ListKeysRequest else {}
        for size in (-1, -(2**31)):
            yield f"{name} page_size {size}", request(page_size=size, **fields), "page_size"  # type: ignore[arg-type]
        for at, token in enumerate(tokens):
            yield f"{name} page_token {at}", request(page_token=token, **fields), "page_token"  # type: ignore[arg-type]
    yield "ListServiceTokens page_size", ListServiceTokensRequest(page_size=-1), "page_size"
    for number in (99, -1):
        wrong: Any = number
        yield f"ListKeys state {number}", ListKeysRequest(account_id=ACCOUNT, state=wrong), "state"
        yield f"ListKeys environment {number}", ListKeysRequest(account_id=ACCOUNT, environment=wrong), "environment"


def _page_token(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def _bad_checks() -> Iterator[tuple[str, Message, str]]:
    for name, fields, field in BAD_CHECKS:
        yield f"CheckKey {name}", CheckKeyRequest(**{"key": "x", **fields}), field
    yield "CheckKey without a credential", CheckKeyRequest(), "credential"
    yield "BatchCheckKeys of none", BatchCheckKeysRequest(), "requests"
    yield "RecordUsage of none", RecordUsageRequest(), "records"
    yield "BatchCheckKeys of 1,001", BatchCheckKeysRequest(requests=[CheckKeyRequest(key="x")] * 1_001), "requests"


BAD_CHECKS: list[tuple[str, dict[str, Any], str]] = [
    ("cost -1", {"cost": -1}, "cost"),
    ("smallest cost", {"cost": -(2**63)}, "cost"),
    ("environment 99", {"environment": 99}, "environment"),
    ("environment -1", {"environment": -1}, "environment"),
    ("unknown policy", {"policy": "nonsense"}, "policy"),
    ("many permissions", {"permissions": ["a.b"] * 101}, "permissions"),
    ("long permission", {"permissions": ["a.b", "a" * 257]}, "permissions[1]"),
    ("forging permission", {"permissions": ["a.b\n"]}, "permissions[0]"),
    ("many resources", {"resources": ["a"] * 101}, "resources"),
    ("many tags", {"tags": {str(at): "" for at in range(17)}}, "tags"),
    ("long tag", {"tags": {"a": "b" * 257}}, "tags"),
    ("long tag name", {"tags": {"a" * 65: "b"}}, "tags"),
    ("forging tag", {"tags": {"a": "\x1b[2J"}}, "tags"),
    ("long method", {"http_method": "G" * 65}, "http_method"),
    ("forging method", {"http_method": "GET\r\n"}, "http_method"),
    *((f"resource {at}", {"resources": ["a", bad]}, "resources[1]") for at, bad in enumerate(BAD_PATHS)),
    *(
        (f"address {at}", {"source_ip": bad}, "source_ip")
        for at, bad in enumerate([*BAD_RULES[1:], "10.0.0.0/8", "10.0.0.1:80", "[::1]", "localhost", "\0", " 10.0.0.1"])
    ),
]

CASES = {name: (request, field) for name, request, field in _cases()}


def _aimed(request: Message, account: str, key: str) -> Message:
    """Return a request with the ids of real things."""
    aimed = type(request)()
    aimed.CopyFrom(request)
    for message in (aimed, *(value for field, value in aimed.ListFields() if field.name in ("key", "account"))):
        if isinstance(message, Message):
            for name, placeholder, value in (("account_id", ACCOUNT, account), ("key_id", KEY, key)):
                if getattr(message, name, None) == placeholder:
                    setattr(message, name, value)
    return aimed


@pytest.fixture(scope="module")
def target(manager: Client) -> tuple[str, str, str]:
    """The ids of an account and of its key, and the key's secret."""
    account = manager(CreateAccountRequest()).account.account_id
    made = manager(CreateKeyRequest(account_id=account))
    return account, made.key.key_id, made.secret


def changes(server: Server) -> list[Any]:
    """Return what differs after any change."""
    tables = ("accounts", "keys", "secrets", "key_requests", "service_tokens", "audit_events", "usage_records")
    with closing(database(server)) as opened:
        counts = [opened.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables]
        versions = [opened.execute(f"SELECT sum(version) FROM {table}").fetchone() for table in ("accounts", "keys")]
        return counts + versions


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused(rpc_server: Server, manager: Client, target: tuple[str, str, str], name: str) -> None:
    """INVALID_ARGUMENT naming the field, without repeating what was sent, and nothing has changed."""
    request, field = CASES[name]
    before = changes(rpc_server)
    refusal = manager.refusal(_aimed(request, target[0], target[1]))
    assert (refusal.code, refusal.fields, refusal.reason) == (StatusCode.INVALID_ARGUMENT, (field,), "INVALID_FIELD")
    assert len(refusal.message) < 300
    assert refusal.message.isprintable()
    assert changes(rpc_server) == before


@pytest.mark.parametrize(("name", "fields", "field"), BAD_CHECKS, ids=[case[0] for case in BAD_CHECKS])
def test_one_bad_check_among_good_ones(
    manager: Client, target: tuple[str, str, str], name: str, fields: dict[str, Any], field: str
) -> None:
    """It is its own error, as a call of its own would have said, and the others are decided."""
    good, bad = CheckKeyRequest(key=target[2]), CheckKeyRequest(**{"key": target[2], **fields})
    results = manager(BatchCheckKeysRequest(requests=[good, bad, good])).results
    assert [each.WhichOneof("result") for each in results] == ["response", "error", "response"]
    assert results[0].response.allowed
    assert results[2].response.allowed
    assert Refusal.of_status(results[1].error) == manager.refusal(bad)
    assert Refusal.of_status(results[1].error).fields == (field,)


@pytest.mark.parametrize("method", list(methods()), ids=lambda method: method.name)
@pytest.mark.parametrize(
    "payload",
    [b"\xff", b"\x0a\x01\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05ab", b"\x0b" * 200, b"\x0a\x02\xed\xa0"],
    ids=["truncated tag", "no UTF-8", "longer than it is", "cut off", "groups", "half a surrogate"],
)
def test_broken_bytes(rpc_server: Server, manager: Client, method: Any, payload: bytes) -> None:
    """What is no message of the method is INVALID_ARGUMENT, and is not even looked at for a stranger."""
    before = changes(rpc_server)
    texts = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE)
    number = next(field.number for field in method.input_type.fields if field.type in texts)
    payload = payload.replace(b"\x0a", bytes([number << 3 | 2]), 1)
    refusal = manager.raw(path(method), payload)
    assert isinstance(refusal, Refusal)
    assert refusal.code is StatusCode.INVALID_ARGUMENT
    assert (refusal.fields, refusal.domain) != ((), "")
    stranger = manager.raw(path(method), payload, metadata=())
    assert isinstance(stranger, Refusal)
    assert stranger.code is StatusCode.UNAUTHENTICATED
    assert changes(rpc_server) == before


@pytest.mark.parametrize("payload", [b"\xff", b"\x0a\x01\xff"])
def test_broken_health_and_reflection_requests(rpc_server: Server, manager: Client, payload: bytes) -> None:
    """They are INVALID_ARGUMENT as well, and leave no traceback in the log: anyone may send them."""
    check = manager.raw("/grpc.health.v1.Health/Check", payload, metadata=())
    channel: Any = manager.channel
    streams: list[Any] = [
        channel.unary_stream("/grpc.health.v1.Health/Watch")(payload, timeout=5),
        channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(
            iter([payload]), metadata=manager.metadata, timeout=5
        ),
    ]
    assert isinstance(check, Refusal)
    assert check.code is StatusCode.INVALID_ARGUMENT
    for stream in streams:
        assert stream.code() is StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in rpc_server.log


def test_unknown_fields_are_ignored(manager: Client, target: tuple[str, str, str]) -> None:
    """A newer client may say more than this server knows."""
    payload = GetKeyRequest(key_id=target[1]).SerializeToString() + b"\x9a\x7d\x03abc"
    assert isinstance(manager.raw("/formgate.v1.KeyService/GetKey", payload), bytes)


@pytest.mark.parametrize("size", [1_000_000, 5_000_000])
def test_large_messages(manager: Client, target: tuple[str, str, str], size: int) -> None:
    """A message of some megabytes is read and refused by its field."""
    assert manager.refusal(CreateKeyRequest(account_id=target[0], display_name="x" * size)).fields == ("display_name",)
    assert not manager(CheckKeyRequest(key="x" * size)).allowed
    assert not manager(CheckKeyRequest(authorization="Bearer " + "x" * size)).allowed


@pytest.mark.parametrize(
    ("method", "entry", "field"),
    [
        ("KeyService/CreateKey", b"\x2a\0", "grants"),
        ("KeyService/CreateKey", b"\x42\0", "limits"),
        ("AccountService/CreateAccount", b"\x32\0", "limits"),
        ("AuthorizationService/BatchCheckKeys", b"\x0a\0", "requests"),
        ("AuthorizationService/RecordUsage", b"\x0a\0", "records"),
    ],
)
def test_a_million_entries(
    manager: Client, target: tuple[str, str, str], method: str, entry: bytes, field: str
) -> None:
    """They are refused in time: the server has others to serve."""
    payload = CreateAccountRequest(account_id=target[0]).SerializeToString() if "Create" in method else b""
    refusal = manager.raw(f"/formgate.v1.{method}", payload + entry * 1_000_000)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, (field,))


def test_too_large_messages(manager: Client) -> None:
    """Beyond 8 MiB gRPC itself refuses to read, and the connection goes on."""
    with pytest.raises(Exception, match="larger than max") as error:
        manager(GetKeyRequest(key_id="x" * 9_000_000))
    assert Refusal.of(error.value).code is StatusCode.RESOURCE_EXHAUSTED  # type: ignore[arg-type]
    assert manager(ListAccountsRequest(page_size=1)).accounts


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ((("formgate-actor", "x" * 129),), "formgate-actor"),
        ((("formgate-actor-ip", "nonsense"),), "formgate-actor-ip"),
        ((("formgate-actor-ip", "10.0.0.0/8"),), "formgate-actor-ip"),
        ((("formgate-actor-ip", "10.0.0.1"), ("formgate-actor-ip", "10.0.0.2")), "formgate-actor-ip"),
    ],
)
def test_bad_actors(
    rpc_server: Server, manager: Client, target: tuple[str, str, str], metadata: tuple[tuple[str, str], ...], field: str
) -> None:
    """Who acts must be something that the audit trail can hold."""
    before = changes(rpc_server)
    refusal = manager.refusal(DisableKeyRequest(key_id=target[1]), *metadata)
    assert (refusal.code, refusal.fields) == (StatusCode.INVALID_ARGUMENT, (field,))
    assert changes(rpc_server) == before


def test_other_metadata_does_no_harm(manager: Client, target: tuple[str, str, str]) -> None:
    """Metadata of no meaning here is ignored, binary too; huge one is refused by gRPC, and the connection goes on."""
    request = GetKeyRequest(key_id=target[1])
    assert manager(request, ("x-request-id", "a" * 1_000), ("x-bin", bytes(range(256))), ("formgate-actor-bin", b"\0"))
    refused = manager.raw("/formgate.v1.KeyService/GetKey", b"", (*manager.metadata, ("x-huge", "a" * 1_000_000)))
    assert isinstance(refused, Refusal)
    assert refused.code is StatusCode.RESOURCE_EXHAUSTED
    assert manager(request)


@pytest.mark.parametrize("others", [["Bearer garbage"], ["garbage", ""], ["same"]])
def test_two_authorizations_are_none(manager: Client, others: list[str]) -> None:
    """Which of them counts would be anybody's guess: a proxy may have looked at the other."""
    token = manager.metadata[0][1]
    values = [str(token) if each == "same" else each for each in others]
    request = ListAccountsRequest()
    before = Refusal(StatusCode.UNAUTHENTICATED, "")
    for order in ([token, *values], [*values, token]):
        refused = manager.raw(
            "/formgate.v1.AccountService/ListAccounts",
            request.SerializeToString(),
            tuple(("authorization", each) for each in order),
        )
        assert isinstance(refused, Refusal)
        assert refused.code is before.code


def _literal(name: bytes, value: bytes) -> bytes:
    """Return a header field as HPACK has it, literally (RFC 7541, 6.2.2)."""

    def text(each: bytes) -> bytes:
        if len(each) < 127:
            return bytes([len(each)]) + each
        length = len(each) - 127
        assert length < 128**2
        return bytes([127, *([length % 128 | 128, length // 128] if length > 127 else [length])]) + each

    return b"\0" + text(name) + text(value)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


@pytest.mark.parametrize(
    "value",
    [
        b"a\r\nforged: 1",
        b"a\nb",
        b"\0",
        b"\x1b[2J",
        b"\xff\xfe",
        b"\xc3\xa9\xe2\x80\xae",
        b"fg_live_" + b"a" * 49 + b"\xff",
    ],
)
@pytest.mark.parametrize("name", [b"formgate-actor", b"formgate-actor-ip", b"authorization", b"x-other"])
def test_metadata_that_no_client_library_sends(
    rpc_server: Server, manager: Client, target: tuple[str, str, str], name: bytes, value: bytes
) -> None:
    """Control characters and broken text, put on the wire by hand, change nothing and forge no line of the log."""
    before = changes(rpc_server)
    lines = len(rpc_server.log.splitlines())
    request = DisableKeyRequest(key_id=target[1] + "-none").SerializeToString()
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/formgate.v1.KeyService/DisableKey"),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"authorization", f"Bearer {manager.token}".encode()),
        (name, value),
    ]
    host, _, port = rpc_server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(4, 0, 0, b"")
            + _frame(1, 4, 1, b"".join(_literal(*field) for field in fields))
            + _frame(0, 1, 1, struct.pack(">BI", 0, len(request)) + request)
        )
        received = b""
        # Until its own last header frame of the stream, a reset of it, or the end of the connection.
        while not _ended(received):
            more = connection.recv(65_536)
            if not more:
                break
            received += more
    assert manager(GetKeyRequest(key_id=target[1])).key.state == nouns.KEY_STATE_ENABLED
    assert changes(rpc_server) == before
    added = rpc_server.log.splitlines()[lines:]
    assert all(json.loads(line)["logger"].startswith("formgate.") for line in added)
    assert b"fg_live_" + b"a" * 49 not in rpc_server.log.encode()
    assert manager.token not in rpc_server.log


def _ended(received: bytes) -> bool:
    """Tell whether the frames received end the stream 1, or the connection."""
    while len(received) >= 9:
        length = int.from_bytes(received[:3], "big")
        kind, flags = received[3], received[4]
        if (kind in (0, 1) and flags & 1) or kind in (3, 7):
            return True
        received = received[9 + length :]
    return False


def test_a_page_token_made_by_hand(manager: Client, target: tuple[str, str, str]) -> None:
    """Whatever stands in a token that looks like one of the listing's, it is no fault of ours."""
    account = target[0]
    manager(CreateKeyRequest(account_id=account))
    mark, *_ = json.loads(
        base64.urlsafe_b64decode(manager(ListKeysRequest(account_id=account, page_size=1)).next_page_token)
    )
    for cursor in ([0, ""], [-(2**63) + 1, "a\0"], [True, "a"], [2**63 - 1, "x" * 100_000], [0, "\ud800"]):
        outcome = manager.outcome(ListKeysRequest(account_id=account, page_token=_page_token([mark, *cursor])))
        assert not isinstance(outcome, Refusal) or outcome.code is StatusCode.INVALID_ARGUMENT
