from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest
from google.protobuf.duration_pb2 import Duration

from formgate import Check
from formgate.errors import (
    ClosedError,
    ForbiddenError,
    FormgateError,
    InvalidRequestError,
    UnauthenticatedError,
)
from formgate.fallback import Mode
from formgate.v1.keys_pb2 import RevokeKeyRequest
from formgate.v1.resources_pb2 import HOLDER_KEY, SERVICE_ROLE_AUDITOR, Limit
from formgate.verdict import Environment, Reason, Source, StepOutcome
from tests.support.callers import KINDS, PERMISSION, RESOURCE, Caller, new_key
from tests.support.client import Client as Manager
from tests.support.client import new_token
from tests.support.server import Server

pytest_plugins = ("tests.support.rpc",)

TIMEOUT = 5.0


@pytest.fixture(params=KINDS)
def caller(request: pytest.FixtureRequest, rpc_server: Server) -> Iterator[Caller]:
    """A client of either kind."""
    with Caller(request.param, rpc_server.address, rpc_server.token, timeout=TIMEOUT) as caller:
        yield caller


def test_a_yes_tells_all_that_the_service_said(caller: Caller, manager: Manager, account: str) -> None:
    """Key, limits and epoch come over, typed; the verdict is true."""
    limit = Limit(name="rate", holder=HOLDER_KEY, amount=5, window=Duration(seconds=60))
    key = new_key(manager, account, limit)
    verdict = caller.check(key.secret, permissions=[PERMISSION], resources=[RESOURCE], environment="live")
    assert verdict
    assert (verdict.reason, verdict.http_status, verdict.source) == (Reason.OK, 200, Source.SERVICE)
    assert verdict.key is not None
    assert (verdict.key.key_id, verdict.key.account_id) == (key.key_id, account)
    assert verdict.key.environment is Environment.LIVE
    rate = next(each for each in verdict.limits if each.name == "rate")
    assert (rate.amount, rate.remaining, rate.unlimited) == (5, 4, False)
    assert rate.window == dt.timedelta(seconds=60)
    assert rate.reset_time is not None
    assert rate.reset_time > dt.datetime.now(dt.UTC)
    assert verdict.epoch > 0
    assert verdict.http_denial is None


def test_a_no_is_a_value_that_is_false(caller: Caller, manager: Manager, account: str) -> None:
    """A denial raises nothing; it has its exact reason, the policy's HTTP answer, and when to come again."""
    limit = Limit(name="rate", holder=HOLDER_KEY, amount=1, window=Duration(seconds=60))
    key = new_key(manager, account, limit)
    assert caller.check(key.secret, permissions=PERMISSION, resources=RESOURCE)
    verdict = caller.check(key.secret, permissions=PERMISSION, resources=RESOURCE)
    assert not verdict
    assert verdict.reason is Reason.RATE_LIMITED
    assert verdict.http_denial is not None
    assert (verdict.http_denial.status, verdict.http_status) == (429, 429)
    assert verdict.http_denial.body
    assert verdict.retry_after is not None
    assert dt.timedelta() < verdict.retry_after <= dt.timedelta(seconds=62)


def test_a_revoked_key_is_denied_at_once(caller: Caller, manager: Manager, account: str) -> None:
    """The client keeps nothing of an earlier yes."""
    key = new_key(manager, account)
    assert caller.check(key.secret)
    manager(RevokeKeyRequest(key_id=key.key_id))
    assert caller.check(key.secret).reason is Reason.KEY_REVOKED


def test_the_header_as_it_came(caller: Caller, manager: Manager, account: str) -> None:
    """The raw Authorization value is passed on; an empty one is a denial, not an error."""
    key = new_key(manager, account)
    assert caller.check(authorization=f"bearer {key.secret}")
    assert caller.check(authorization="").reason is Reason.MISSING_AUTHORIZATION
    assert caller.check(authorization="Basic eDp5").reason is Reason.MALFORMED_AUTHORIZATION


def test_explained_on_request(caller: Caller, manager: Manager, account: str) -> None:
    """Each step and how it ended."""
    verdict = caller.check(new_key(manager, account).secret, permissions="forms.edit", explain=True, cost=0)
    assert ("grants", StepOutcome.DENIED) in [(step.step, step.outcome) for step in verdict.explanation]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"key": "a", "authorization": "b"},
        {"key": "k", "environment": "staging"},
        {"key": "k", "level": "reed"},
        {"key": "k", "level": 9},
        {"key": "k", "cost": -1},
        {"key": "k", "cost": 2**63},
        {"key": "\ud800"},
        {"key": 5},
        {"key": "k", "resources": ["/"]},
        {"key": "k", "tags": {"n": "v" * 300}},
    ],
    ids=str,
)
def test_a_wrong_call_is_an_error_that_names_the_field(caller: Caller, wrong: dict[str, object]) -> None:
    """InvalidRequestError, whether the client or the service finds it; nothing was decided."""
    with pytest.raises(InvalidRequestError) as caught:
        caller.check(**wrong)
    assert caught.value.fields
    assert all(caught.value.fields[0])


def test_many_at_once_in_order(caller: Caller, manager: Manager, account: str) -> None:
    """check_all: a verdict each; one that is wrong is denied and says why, and takes nothing from the others."""
    key = new_key(manager, account)
    verdicts = caller.check_all([key.check(), Check("nonsense"), Check(), key.check(cost=-1), key.check()])
    assert [bool(verdict) for verdict in verdicts] == [True, False, False, False, True]
    assert verdicts[1].reason is Reason.MALFORMED_KEY
    for wrong in verdicts[2:4]:
        assert wrong.reason is None
        assert isinstance(wrong.error, InvalidRequestError)
    assert caller.check_all([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_level_takes_nothing_from_the_others(kind: str) -> None:
    """It is found before anything is asked, also while the service is away."""
    with Caller(kind, "127.0.0.1:1", timeout=0.1, fail="open") as caller:
        verdicts = caller.check_all([Check("k"), Check("k", level="reed")])
    assert [verdict.allowed for verdict in verdicts] == [True, False]
    assert isinstance(verdicts[1].error, InvalidRequestError)
    assert verdicts[1].error.fields[0].field == "level"


def test_more_than_a_call_takes(caller: Caller, manager: Manager, account: str) -> None:
    """2,001 checks go in calls of at most 1,000."""
    key = new_key(manager, account)
    assert all(caller.check_all([key.check(cost=0)] * 2_001, timeout=20))
    assert caller.counters["batches"] + caller.counters["calls"] >= 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fail", ["closed", "open"])
def test_a_client_whose_token_is_not_known(kind: str, fail: Mode, rpc_server: Server) -> None:
    """UnauthenticatedError, even where silence opens: it is no silence."""
    with Caller(kind, rpc_server.address, "fgt_wrong", timeout=TIMEOUT, fail=fail) as caller:
        with pytest.raises(UnauthenticatedError) as caught:
            caller.check("k")
        assert caught.value.reason == "INVALID_SERVICE_TOKEN"
        (verdict,) = caller.check_all([Check("k")])
        assert not verdict
        assert isinstance(verdict.error, UnauthenticatedError)


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_may_not(kind: str, rpc_server: Server, manager: Manager) -> None:
    """ForbiddenError for a token of another role."""
    _, token = new_token(manager, SERVICE_ROLE_AUDITOR)
    with Caller(kind, rpc_server.address, token, timeout=TIMEOUT) as caller, pytest.raises(ForbiddenError):
        caller.check("k")


@pytest.mark.parametrize("kind", KINDS)
def test_closed_is_closed(kind: str, rpc_server: Server) -> None:
    """After close() a check raises ClosedError, whatever the fail mode; closing twice is no error."""
    caller = Caller(kind, rpc_server.address, rpc_server.token, timeout=TIMEOUT, fail="open")
    assert not caller.check("nonsense")
    with caller:
        caller.client.close() if kind == "threads" else caller._done(caller.client.close())
        with pytest.raises(ClosedError):
            caller.check("nonsense")


def test_nothing_shows_a_secret(caller: Caller, rpc_server: Server, manager: Manager, account: str) -> None:
    """Neither keys nor tokens are in what is printed of clients, checks, verdicts and errors."""
    secret = new_key(manager, account).secret
    shown = [repr(caller.client), repr(caller.client._common.connection), repr(Check(secret)), str(Check(secret))]
    shown.append(repr(caller.check(secret)))
    for wrong in ({"key": secret, "cost": -1}, {"key": secret + "\ud800"}, {"key": secret, "authorization": secret}):
        with pytest.raises(FormgateError) as caught:
            caller.check(**wrong)
        shown += [repr(caught.value), str(caught.value), repr(caught.value.__cause__), repr(vars(caught.value))]
    assert not [each for each in shown if secret in each or rpc_server.token in each]
