"""The rim without a wire: enums, errors, methods, and what a call goes through."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2

from formgate.rules.grants import Level
from formgate.rules.reason import Reason
from formgate.v1 import authorization_pb2, keys_pb2, resources_pb2
from formgate_server.core import errors, model, verdict
from formgate_server.core.lease_key import Refused
from formgate_server.core.model import Caller, ServiceRole
from formgate_server.core.secrets import new_secret
from formgate_server.rpc import convert
from formgate_server.rpc.accounts import AccountServicer
from formgate_server.rpc.authorization import AuthorizationServicer
from formgate_server.rpc.dispatch import Call, Dispatch, RpcError
from formgate_server.rpc.errors import internal, to_status
from formgate_server.rpc.keys import KeyServicer
from formgate_server.rpc.methods import SERVICES, Method, methods

ENUMS = [
    (Reason, authorization_pb2.Reason, "REASON_"),
    (Level, resources_pb2.Level, "LEVEL_"),
    (model.Environment, resources_pb2.Environment, "ENVIRONMENT_"),
    (model.KeyState, resources_pb2.KeyState, "KEY_STATE_"),
    (model.AccountState, resources_pb2.AccountState, "ACCOUNT_STATE_"),
    (model.Holder, resources_pb2.Holder, "HOLDER_"),
    (model.Period, resources_pb2.Calendar, "CALENDAR_"),
    (model.ServiceRole, resources_pb2.ServiceRole, "SERVICE_ROLE_"),
    (model.UsageOutcome, authorization_pb2.Outcome, "OUTCOME_"),
    (verdict.StepOutcome, authorization_pb2.StepOutcome, "STEP_OUTCOME_"),
]


@pytest.mark.parametrize(("ours", "wire", "prefix"), ENUMS, ids=[case[2] for case in ENUMS])
def test_enums_are_the_wires(ours: Any, wire: Any, prefix: str) -> None:
    """Every value has the name and number that it has on the wire, and 0 stands for nothing but "not said"."""
    told = {prefix + member.name: member.value for member in ours} | {f"{prefix}UNSPECIFIED": 0}
    assert told == dict(wire.items())


def _error(kind: type[errors.FormgateError]) -> errors.FormgateError:
    if kind is errors.InvalidArgumentError:
        return errors.InvalidArgumentError("grants[3]", "is wrong")
    return kind("it is so", metadata={"key_id": "k"})


KINDS = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.FormgateError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_its_status(kind: type[errors.FormgateError]) -> None:
    """A new kind of error must have a code of its own; INTERNAL is for faults of ours only."""
    error = _error(kind)
    status = to_status(error)
    told_as = errors.UnavailableError if issubclass(kind, errors.UnavailableError) else kind
    name = told_as.__name__.removesuffix("Error")
    expected = "".join(f"_{letter}" if letter.isupper() else letter for letter in name).strip("_").upper()
    assert code_pb2.Code.Name(status.code) == ("INTERNAL" if kind is errors.FormgateError else expected)
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert (info.domain, info.reason, dict(info.metadata)) == ("formgate", error.reason, error.metadata)


def test_a_status_tells_no_detail() -> None:
    """What a store has said is for the log."""
    error = errors.UnavailableError("away", detail="SQLite: database or disk is full")
    assert b"SQLite" not in to_status(error).SerializeToString()


def test_a_status_tells_no_secret() -> None:
    """A caller may put a key in the place of an id, which errors name."""
    secret = new_secret("fg_live_")
    for error in (
        errors.NotFoundError(f"key {secret} does not exist", metadata={"key_id": secret}),
        errors.AbortedError(f"x{secret}x", metadata={"etag": f"{secret}{secret}"}),
    ):
        assert secret[-49:].encode() not in to_status(error).SerializeToString()


def test_every_servicer_method_is_one_of_the_contract() -> None:
    """A misspelt one would answer UNIMPLEMENTED for ever."""
    named = {method.name for service in SERVICES for method in service.methods}
    for servicer in (AuthorizationServicer, KeyServicer, AccountServicer):
        for name, _ in inspect.getmembers(servicer, inspect.iscoroutinefunction):
            if not name.startswith("_"):
                assert "".join(map(str.capitalize, name.split("_"))) in named


def test_every_method_of_the_contract_is_served() -> None:
    """Each has its path, its request and roles; none is open to everybody."""
    bare: Any = object()
    served = {method.path: method for method in methods(bare, bare, bare)}
    assert len(served) == sum(len(service.methods) for service in SERVICES)
    for service in SERVICES:
        for method in service.methods:
            one = served[f"/{service.full_name}/{method.name}"]
            assert one.request.DESCRIPTOR is method.input_type
            assert ServiceRole.MANAGER in one.roles
            assert len(one.roles) < len(ServiceRole)


async def _known(_authorization: str) -> Caller:
    return Caller("tok_1", ServiceRole.MANAGER)


def _dispatched(handle: Any) -> tuple[Dispatch, Method]:
    authenticate: Any = _known
    method = Method("/x/GetKey", keys_pb2.GetKeyRequest, frozenset({ServiceRole.MANAGER}), handle)
    return Dispatch(authenticate), method


@pytest.mark.parametrize("error", [RuntimeError("SELECT secret"), KeyError("x"), RecursionError(), ZeroDivisionError()])
async def test_a_fault_of_ours_tells_nothing(error: Exception) -> None:
    """What it was stands in the log; the caller gets INTERNAL and no internals."""

    async def handle(_request: Message, _caller: Caller) -> Message:
        raise error

    dispatch, method = _dispatched(handle)
    with pytest.raises(RpcError) as raised:
        await dispatch(method, Call({}), b"")
    assert raised.value.status == internal()
    assert raised.value.status.code == code_pb2.INTERNAL


async def test_who_acts_reaches_the_method() -> None:
    """The member for whom a service says it acts is in the caller, for the audit trail."""
    seen = []

    async def handle(_request: Message, caller: Caller) -> Message:
        seen.append(caller)
        return keys_pb2.GetKeyResponse()

    dispatch, method = _dispatched(handle)
    await dispatch(method, Call({"formgate-actor": "ann", "formgate-actor-ip": "::1"}), b"")
    await dispatch(method, Call({"formgate-actor": b"ann"}), b"")
    assert [(caller.actor, caller.actor_ip) for caller in seen] == [("ann", "::1"), ("", "")]


@pytest.mark.parametrize("actor", ["a\r\nforged", "a\x1b[2J", "\u202ea", "a" * 129])
async def test_an_actor_forges_nothing(actor: str) -> None:
    """What no wire should let through is refused here once more."""

    async def handle(_request: Message, _caller: Caller) -> Message:
        raise AssertionError("reached")

    dispatch, method = _dispatched(handle)
    with pytest.raises(RpcError) as raised:
        await dispatch(method, Call({"formgate-actor": actor}), b"")
    assert raised.value.status.code == code_pb2.INVALID_ARGUMENT


async def test_a_lease_that_is_denied_is_told_as_a_denial() -> None:
    """The log's line has the verdict, whose reason and key it names; a lease or a refusal has none."""
    bare: Any = object()
    denied = verdict.Verdict(Reason.KEY_REVOKED, "", 401)
    answers: list[Any] = [denied, Refused(0, off=True)]

    async def lease_key(_query: object, _caller: Caller) -> Any:
        return answers.pop(0)

    leases: Any = lease_key
    servicer = AuthorizationServicer(bare, bare, leases, bare, bare)
    asked = authorization_pb2.LeaseKeyRequest(key="k", want_units=1)
    written, outcome = await servicer.lease_key(asked, await _known(""))
    assert authorization_pb2.LeaseKeyResponse.FromString(written).denial.reason == authorization_pb2.REASON_KEY_REVOKED
    assert outcome is denied
    written, outcome = await servicer.lease_key(asked, await _known(""))
    assert authorization_pb2.LeaseKeyResponse.FromString(written).HasField("refusal")
    assert outcome is None


@pytest.mark.parametrize("micros", [0, 1, 999_999, 1_000_000, -1, -62_135_596_800_000_000, 253_402_300_799_999_999])
def test_instants_go_both_ways(micros: int) -> None:
    """An instant is the same after the wire, to the microsecond, from the year 1 to 9999."""
    assert convert.instant(resources_pb2.Key(expire_time=convert.timestamp(micros)), "expire_time") == micros
    assert convert.timestamp(None) is None
    assert convert.instant(resources_pb2.Key(), "expire_time") is None


@pytest.mark.parametrize("micros", [0, 1, 1_000_000, 366 * 86_400 * 1_000_000])
def test_durations_go_both_ways(micros: int) -> None:
    """A duration is the same after the wire, to the microsecond."""
    request = keys_pb2.CreateKeyRequest(ttl=convert.to_duration(micros))
    assert convert.duration(request, "ttl") == micros
    assert convert.to_duration(None) is None


@pytest.mark.parametrize(
    "per",
    [model.Rolling(1_500_001), model.Calendar(model.Period.DAY), model.Calendar(model.Period.MONTH), model.Lifetime()],
)
@pytest.mark.parametrize("amount", [None, 0, 2**63 - 1])
def test_limits_go_both_ways(per: Any, amount: int | None) -> None:
    """A limit is the same after the wire; an amount of 0 is not an absent one."""
    limit = model.Limit("rate", model.Holder.KEY, amount, per)
    assert convert.limits([convert.limit(limit)], model.Holder.ACCOUNT) == (limit,)


class _Uncounted(list[Any]):
    """Ten million entries, none of which may be looked at."""

    def __len__(self) -> int:
        return 10_000_000

    def __iter__(self) -> NoReturn:
        raise AssertionError("looked at")


@pytest.mark.parametrize("read", [convert.grants, lambda messages: convert.limits(messages, model.Holder.KEY)])
def test_entries_are_counted_before_they_are_read(read: Callable[[list[Any]], object]) -> None:
    """A message may hold millions: reading them all to refuse them would keep everybody else waiting."""
    with pytest.raises(errors.InvalidArgumentError, match="10000000 entries"):
        read(_Uncounted())
