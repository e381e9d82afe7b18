"""The fake and a real server decide alike: each case runs through both, and through both kinds of client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import pytest

from formgate import AsyncClient, Check, Client
from formgate.errors import ClosedError, InvalidRequestError, UnavailableError
from formgate.testing import FakeAsyncClient, FakeClient, FakeFormgate, FakeLimit, Grant, Level, Reason
from formgate.v1 import accounts_pb2, keys_pb2, resources_pb2
from formgate.verdict import Environment, Holder, Source, Verdict
from tests.support.client import Client as Manager
from tests.support.client import new_account
from tests.support.server import Server

pytest_plugins = ("tests.support.rpc",)


@dataclass
class Made:
    """A key, as a case needs it."""

    secret: str
    key_id: str


class World(Protocol):
    """Where a case runs."""

    check: Callable[..., Verdict]

    def key(self, **fields: Any) -> Made:
        """Make a key of one account."""
        ...

    def change(self, what: str, key: Made) -> None:
        """Revoke, disable or enable a key, or suspend its account."""
        ...


class Faked:
    """The fake."""

    def __init__(self, check: str) -> None:
        self.fake = FakeFormgate()
        self._keys: dict[str, Any] = {}
        asynchronous = self.fake.async_client
        self.check: Callable[..., Verdict] = (
            self.fake.client.check if check == "Client" else lambda *a, **k: asyncio.run(asynchronous.check(*a, **k))
        )

    def key(self, **fields: Any) -> Made:  # noqa: D102 - World says it
        made = self.fake.add_key(**fields)
        self._keys[made.key_id] = made
        return Made(made.secret, made.key_id)

    def change(self, what: str, key: Made) -> None:  # noqa: D102 - World says it
        if what == "suspend":
            self.fake.suspend("acme")
        else:
            getattr(self.fake, what)(self._keys[key.key_id])


class Real:
    """A real server."""

    def __init__(self, manager: Manager, check: Callable[..., Verdict]) -> None:
        self._manager = manager
        self._account = new_account(manager)
        self.check = check

    def key(self, **fields: Any) -> Made:  # noqa: D102 - World says it
        grants = [
            resources_pb2.Grant(resource=each.resource, permissions=each.permissions, level=int(each.level))  # type: ignore[arg-type]
            for each in fields.pop("grants", ())
        ]
        limits = [_limit(each) for each in fields.pop("limits", ())]
        if "environment" in fields:
            fields["environment"] = int(fields["environment"])
        request = keys_pb2.CreateKeyRequest(account_id=self._account, grants=grants, limits=limits, **fields)
        made = self._manager(request)
        return Made(made.secret, made.key.key_id)

    def change(self, what: str, key: Made) -> None:  # noqa: D102 - World says it
        if what == "suspend":
            account = resources_pb2.Account(account_id=self._account, state=resources_pb2.ACCOUNT_STATE_SUSPENDED)
            self._manager(accounts_pb2.UpdateAccountRequest(account=account, update_mask={"paths": ["state"]}))  # type: ignore[arg-type]
            return
        requests: dict[str, Any] = {
            "revoke": keys_pb2.RevokeKeyRequest,
            "disable": keys_pb2.DisableKeyRequest,
            "enable": keys_pb2.EnableKeyRequest,
        }
        self._manager(requests[what](key_id=key.key_id))


def _limit(limit: FakeLimit) -> resources_pb2.Limit:
    made = resources_pb2.Limit(name=limit.name, holder=int(limit.holder), amount=limit.amount)  # type: ignore[arg-type]
    if limit.window is not None:
        made.window.FromTimedelta(limit.window)
    elif limit.calendar is not None:
        made.calendar = resources_pb2.CALENDAR_DAY if limit.calendar == "day" else resources_pb2.CALENDAR_MONTH
    else:
        made.lifetime = True
    return made


@pytest.fixture(scope="module")
def checks(rpc_server: Server) -> Iterator[dict[str, Callable[..., Verdict]]]:
    """One real client of each kind for all cases, that of asyncio in a loop of its own."""
    address, token = rpc_server.address, rpc_server.token
    with Client(address, token, timeout=5, leases=False) as client, asyncio.Runner() as runner:
        asynchronous = AsyncClient(address, token, timeout=5, leases=False)
        yield {
            "Client": client.check,
            "AsyncClient": lambda *args, **asked: runner.run(asynchronous.check(*args, **asked)),
        }
        runner.run(asynchronous.close())


@pytest.fixture(params=["fake Client", "fake AsyncClient", "real Client", "real AsyncClient"])
def world(request: pytest.FixtureRequest) -> World:
    """Each of the four."""
    kind, _, check = request.param.partition(" ")
    if kind == "fake":
        return Faked(check)
    return Real(request.getfixturevalue("manager"), request.getfixturevalue("checks")[check])


READS = [Grant("forms/f1", ("forms.read",)), Grant("sites", level=Level.WRITE)]
LATER = datetime(2099, 1, 1, tzinfo=UTC)

CASES: list[tuple[dict[str, Any], dict[str, Any], Reason]] = [
    ({"grants": READS}, {}, Reason.OK),
    ({"grants": READS}, {"permissions": ["forms.read"], "resources": ["forms/f1/submissions/9"]}, Reason.OK),
    ({"grants": READS}, {"permissions": "forms.read", "resources": "forms/f1"}, Reason.OK),
    ({"grants": READS}, {"permissions": ["forms.read"], "resources": ["forms/f10"]}, Reason.RESOURCE_NOT_ALLOWED),
    ({"grants": READS}, {"permissions": ["forms.read"]}, Reason.RESOURCE_NOT_ALLOWED),
    ({"grants": READS}, {"permissions": ["forms.edit"], "resources": ["forms/f1"]}, Reason.PERMISSION_DENIED),
    ({"grants": READS}, {"permissions": ["no permission"], "resources": ["forms/f1"]}, Reason.PERMISSION_DENIED),
    ({"grants": READS}, {"http_method": "POST", "resources": ["sites/s1"]}, Reason.OK),
    ({"grants": READS}, {"http_method": "DELETE", "resources": ["sites/s1"]}, Reason.PERMISSION_DENIED),
    ({"grants": READS}, {"http_method": "BREW", "resources": ["sites/s1"]}, Reason.PERMISSION_DENIED),
    ({"grants": READS}, {"http_method": "GET", "resources": ["apps/a1"]}, Reason.RESOURCE_NOT_ALLOWED),
    ({"grants": READS}, {"resources": ["apps/a1"]}, Reason.RESOURCE_NOT_ALLOWED),
    ({"grants": [Grant("*", ("*",))]}, {"http_method": "DELETE", "resources": ["apps/a1"]}, Reason.OK),
    ({"grants": [Grant("*", ("*",))]}, {"resources": ["organization"]}, Reason.RESOURCE_NOT_ALLOWED),
    ({}, {"permissions": ["forms.read"], "resources": ["forms/f1"]}, Reason.PERMISSION_DENIED),
    ({"environment": Environment.TEST}, {"environment": "TEST"}, Reason.OK),
    ({"environment": Environment.TEST}, {"environment": Environment.LIVE}, Reason.ENVIRONMENT_MISMATCH),
    ({"ip_rules": ["10.0.0.0/8"]}, {"source_ip": "10.1.2.3"}, Reason.OK),
    ({"ip_rules": ["10.0.0.0/8"]}, {"source_ip": "11.1.2.3"}, Reason.IP_NOT_ALLOWED),
    ({"ip_rules": ["10.0.0.0/8"]}, {}, Reason.IP_NOT_ALLOWED),
    ({"api_groups": ["v2"]}, {"api_group": "v2"}, Reason.OK),
    ({"api_groups": ["v2"]}, {}, Reason.API_GROUP_NOT_ALLOWED),
    ({"expire_time": LATER, "display_name": "Mine", "metadata": {"team": "a"}, "created_by": "m1"}, {}, Reason.OK),
]


def test_what_a_key_may_do(world: World) -> None:
    """Reason, status, message, key and HTTP answer, to the byte; no limit is reached, so none is told."""
    for fields, asked, expected in CASES:
        made = world.key(**fields)
        verdict = world.check(made.secret, **asked)
        assert verdict.reason is expected, (fields, asked)
        assert verdict.allowed is (expected is Reason.OK)
        assert verdict.source is Source.SERVICE
        assert not verdict.degraded
        assert (verdict.limits, verdict.retry_after, verdict.explanation, verdict.error) == ((), None, (), None)
        assert verdict.epoch >= 1
        _is_worded(verdict)
        assert verdict.key is not None
        assert verdict.key.key_id == made.key_id
        assert verdict.key.environment is fields.get("environment", Environment.LIVE)
        assert verdict.key.display_name == fields.get("display_name", "")
        assert verdict.key.expire_time == fields.get("expire_time")
        assert verdict.key.metadata == fields.get("metadata")
        assert verdict.key.created_by == fields.get("created_by", "")


WORDS = {
    Reason.MISSING_AUTHORIZATION: 'An API key is needed: send it as \\"Authorization: Bearer YOUR_API_KEY\\".',
    Reason.KEY_NOT_FOUND: "The API key is unknown.",
    Reason.RESOURCE_NOT_ALLOWED: "The API key may not use this resource.",
    Reason.RATE_LIMITED: "Too many requests. Try again later.",
}


def _is_worded(verdict: Verdict) -> None:
    """Assert that a denial has its words, and what is allowed has none."""
    if verdict.allowed:
        assert (verdict.http_status, verdict.message, verdict.http_denial) == (200, "", None)
        return
    assert verdict.reason is not None
    denial = verdict.http_denial
    assert denial is not None
    assert denial.status == verdict.http_status
    message = verdict.message.replace('"', '\\"')
    assert WORDS.get(verdict.reason, message) == message
    told = f'{{"error": {{"reason": "{verdict.reason.name}", "message": "{message}"}}}}'
    assert denial.body.decode() == told
    extra = {401: (("www-authenticate", "Bearer"),), 403: ()}
    if denial.status == 429:
        after = verdict.retry_after
        extra[429] = () if after is None else (("retry-after", str(-(-after // timedelta(seconds=1)))),)
    assert denial.headers == (("content-type", "application/json"), *extra[denial.status])


def test_credentials(world: World) -> None:
    """The raw header is taken apart, a mistyped key is told from an unknown one, and none of them names a key."""
    good = world.key(grants=READS).secret
    typo = good[:-1] + ("0" if good[-1] != "0" else "1")
    unknown = FakeFormgate().add_key().secret
    for authorization, expected in [
        ("", Reason.MISSING_AUTHORIZATION),
        (" ", Reason.MISSING_AUTHORIZATION),
        (f"Bearer {good}", Reason.OK),
        (f"bearer   {good} ", Reason.OK),
        (good, Reason.MALFORMED_AUTHORIZATION),
        ("Bearer", Reason.MALFORMED_AUTHORIZATION),
        (f"Basic {good}", Reason.MALFORMED_AUTHORIZATION),
        (f"Bearer {good} {good}", Reason.MALFORMED_AUTHORIZATION),
        (f"Bearer {typo}", Reason.MALFORMED_KEY),
        (f"Bearer {unknown}", Reason.KEY_NOT_FOUND),
    ]:
        verdict = world.check(authorization=authorization)
        assert verdict.reason is expected, authorization
        _is_worded(verdict)
        assert (verdict.key is not None) is verdict.allowed
    for key, expected in [("", Reason.MALFORMED_KEY), ("x", Reason.MALFORMED_KEY), (unknown, Reason.KEY_NOT_FOUND)]:
        assert world.check(key).reason is expected


def test_changes_count_at_once(world: World) -> None:
    """Disabled, enabled, suspended, revoked: the next check says so, and the epoch has risen."""
    key = world.key(grants=READS)
    epoch = world.check(key.secret).epoch
    for change, expected in [
        ("disable", Reason.KEY_DISABLED),
        ("enable", Reason.OK),
        ("suspend", Reason.ACCOUNT_SUSPENDED),
        ("revoke", Reason.KEY_REVOKED),
    ]:
        world.change(change, key)
        verdict = world.check(key.secret)
        assert verdict.reason is expected
        assert verdict.epoch > epoch
        _is_worded(verdict)
        epoch = verdict.epoch


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (FakeLimit("rate", 3, HOUR), Reason.RATE_LIMITED),
        (FakeLimit("month", 3, calendar="month"), Reason.QUOTA_EXCEEDED),
        (FakeLimit("credits", 3), Reason.CREDITS_EXHAUSTED),
    ],
)
def test_limits(world: World, limit: FakeLimit, expected: Reason) -> None:
    """Charged whole or not at all; with cost 0 nothing is charged, and a limit with nothing left denies."""
    key = world.key(grants=READS, limits=[limit, FakeLimit("free", None, HOUR)])
    left: list[int] = []
    for cost, reason in [(0, Reason.OK), (2, Reason.OK), (2, expected), (1, Reason.OK), (0, expected), (1, expected)]:
        verdict = world.check(key.secret, cost=cost)
        assert verdict.reason is reason, (cost, left)
        _is_worded(verdict)
        status, free = verdict.limits
        left.append(status.remaining)
        assert (status.name, status.amount, status.holder) == (limit.name, 3, Holder.KEY)
        assert (status.unlimited, status.window) == (False, limit.window)
        assert (free.unlimited, free.amount, free.remaining) == (True, None, 0)
        assert (verdict.retry_after is not None) is (reason not in {Reason.OK, Reason.CREDITS_EXHAUSTED})
        assert (status.reset_time is not None) is (status.remaining < 3 and limit.name != "credits")
        if limit.window is not None and verdict.retry_after is not None:
            assert timedelta(minutes=59) < verdict.retry_after <= timedelta(minutes=61)
    assert left == [3, 1, 1, 0, 0, 0]
    never = world.check(key.secret, cost=4)
    assert (never.reason, never.retry_after) == (expected, None)


def test_a_denial_charges_nothing(world: World) -> None:
    """Not for a permission, and not by one limit where another denies, whose reason comes first."""
    limits = [FakeLimit("credits", 1), FakeLimit("rate", 2, HOUR)]
    key = world.key(grants=READS, limits=limits)
    assert world.check(key.secret, permissions=["forms.delete"]).reason is Reason.PERMISSION_DENIED
    assert world.check(key.secret, cost=2).reason is Reason.CREDITS_EXHAUSTED
    assert world.check(key.secret, cost=3).reason is Reason.RATE_LIMITED
    assert [each.remaining for each in world.check(key.secret).limits] == [0, 1]


def test_a_repeated_request_id_is_not_charged_again(world: World) -> None:
    """Also when nothing is left; another id is charged."""
    key = world.key(grants=READS, limits=[FakeLimit("rate", 1, HOUR)])
    first = [world.check(key.secret, request_id="r1") for _ in range(2)]
    assert [(each.reason, each.limits[0].remaining) for each in first] == [(Reason.OK, 0)] * 2
    assert world.check(key.secret, request_id="r2").reason is Reason.RATE_LIMITED


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"resources": ["forms/../f1"]}, "resources[0]"),
        ({"resources": ["forms/f1", "/x"]}, "resources[1]"),
        ({"resources": [""]}, "resources[0]"),
        ({"source_ip": "localhost"}, "source_ip"),
        ({"cost": -1}, "cost"),
        ({"policy": "nobodys"}, "policy"),
    ],
)
def test_bad_calls_are_errors(world: World, asked: dict[str, Any], field: str) -> None:
    """What is wrong in any state is raised, with its field: no verdict is made of it."""
    key = world.key(grants=READS)
    with pytest.raises(InvalidRequestError) as caught:
        world.check(key.secret, **asked)
    assert [violation.field for violation in caught.value.fields] == [field]


def test_without_a_credential_there_is_no_question(world: World) -> None:
    """Neither a key nor a header, or both, is the caller's mistake; an empty header is a question."""
    for given in ({}, {"key": "x", "authorization": ""}):
        with pytest.raises(InvalidRequestError):
            world.check(**given)


# ------------------------------------------------------------------------------------------------- of the fake only


def test_it_is_a_client_of_either_kind() -> None:
    """What wants a Client or AsyncClient takes it, and finds every argument that the real one has."""
    fake = FakeFormgate()
    assert isinstance(fake.client, Client)
    assert isinstance(fake.async_client, AsyncClient)
    everything: dict[str, Any] = {
        name: [] if name in {"permissions", "resources"} else None if name in {"tags", "environment", "level"} else ""
        for name in Check._fields
        if name not in {"key", "authorization", "cost", "explain", "strict"}
    }
    assert fake.client.check("x", cost=1, explain=False, strict=True, timeout=1, **everything).reason is not None
    with pytest.raises(TypeError):
        fake.client.check("x", no_such_argument=1)


def test_it_overrides_all_that_would_connect() -> None:
    """Each public method of the real clients is the fake's own: none reaches for a connection that was never made."""
    for real, fake in ((Client, FakeClient), (AsyncClient, FakeAsyncClient)):
        own = {name for name in vars(real) if not name.startswith("_")}
        assert own <= set(vars(fake)), fake


async def test_many_checks_at_once() -> None:
    """Each has its verdict, in order; one that can not be asked is denied and says why."""
    fake = FakeFormgate()
    key = fake.add_key()
    checks = [Check(key.secret), Check("x"), Check(key.secret, cost=-1)]
    for verdicts in (fake.client.check_all(checks), await fake.async_client.check_all(checks)):
        assert [verdict.reason for verdict in verdicts] == [Reason.OK, Reason.MALFORMED_KEY, None]
        assert isinstance(verdicts[2].error, InvalidRequestError)


def test_it_can_be_made_to_deny_and_to_be_down() -> None:
    """For a caller's own tests of what it does then; it remembers what was asked, and shows no secret."""
    fake = FakeFormgate()
    key = fake.add_key()
    fake.deny(Reason.KEY_EXPIRED, retry_after=timedelta(seconds=1.5))
    assert fake.client.check(key.secret).reason is Reason.KEY_EXPIRED
    fake.down()
    silent = fake.client.check(key.secret)
    assert (silent.allowed, silent.reason, silent.source) == (False, None, Source.FALLBACK)
    assert isinstance(silent.error, UnavailableError)
    fake.down(UnavailableError("gone"))
    with pytest.raises(UnavailableError, match="gone"):
        fake.client.check(key.secret)
    fake.recover()
    assert fake.client.check(key.secret).allowed
    assert len(fake.checks) == 4
    assert key.secret not in repr((fake.checks, key, fake))
    with pytest.raises(ValueError, match="no denial"):
        fake.deny(Reason.OK)


def test_its_time_is_the_tests() -> None:
    """A window, a day, a key's life and a request id's memory pass when the test says so."""
    now = datetime(2026, 3, 31, 12, tzinfo=UTC)
    fake = FakeFormgate(clock=now.timestamp)
    limits = [FakeLimit("rate", 1, timedelta(minutes=1)), FakeLimit("daily", 2, calendar="day")]
    key = fake.add_key(limits=limits, expire_time=now + timedelta(days=2))
    reasons = []
    for seconds in (0, 59, 1, 60, 12 * 60 * 60, 36 * 60 * 60):
        fake.advance(seconds)
        reasons.append(fake.client.check(key.secret).reason)
    assert reasons == [
        *(Reason.OK, Reason.RATE_LIMITED, Reason.OK, Reason.QUOTA_EXCEEDED),
        *(Reason.OK, Reason.KEY_EXPIRED),
    ]


def test_an_accounts_limit_is_shared() -> None:
    """All its keys charge one counter; another limit of that name is a mistake."""
    fake = FakeFormgate()
    limit = FakeLimit("pool", 2, holder=Holder.ACCOUNT)
    keys = [fake.add_key(limits=[limit]) for _ in range(3)]
    assert [fake.client.check(key.secret).allowed for key in keys] == [True, True, False]
    with pytest.raises(ValueError, match="another limit"):
        fake.add_key(limits=[FakeLimit("pool", 3, holder=Holder.ACCOUNT)])


def test_it_remembers_what_was_recorded() -> None:
    """For a caller's tests of what it records; nothing is charged by it."""
    fake = FakeFormgate()
    for client in (fake.client, fake.async_client):
        assert client.record("key_1", 3, operation="forms.read") != client.record("key_1")
        assert client.recorded[0] == {"key_id": "key_1", "units": 3, "operation": "forms.read"}


def test_a_closed_client_decides_nothing() -> None:
    """As the real ones."""
    fake = FakeFormgate()
    with fake.client as client:
        pass
    with pytest.raises(ClosedError):
        client.check("x")
