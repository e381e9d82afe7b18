"""Who may call what, and who sees what: every method x every role x every bond."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from formgate.v1 import accounts_pb2, authorization_pb2, keys_pb2, resources_pb2
from tests.support.client import SECOND_POLICY, Client, Refusal, database, methods, new_account, new_token, request_type
from tests.support.server import Server, eventually

pytest_plugins = ("tests.support.rpc",)

METHODS = {method.name: method for method in methods()}

CHECKER = resources_pb2.SERVICE_ROLE_CHECKER
MANAGER = resources_pb2.SERVICE_ROLE_MANAGER
AUDITOR = resources_pb2.SERVICE_ROLE_AUDITOR
ROLES = {"checker": CHECKER, "manager": MANAGER, "auditor": AUDITOR}

STRANGERS = {
    "none": ("", "MISSING_SERVICE_TOKEN"),
    "garbage": ("garbage", "INVALID_SERVICE_TOKEN"),
    "expired": (None, "SERVICE_TOKEN_EXPIRED"),
    "revoked": (None, "INVALID_SERVICE_TOKEN"),
}

# Bonds of a caller, seen from the thing that it asks for: whose account and policy it is bound to.
BONDS = ("unbound", "own account", "other account", "own policy", "other policy")
OTHER = ("other account", "other policy")


@dataclass(frozen=True)
class Target:
    """What is asked for: an account of policy ``second``, one of its keys, and a token bound to both."""

    account_id: str
    key_id: str
    secret: str
    token_id: str


def _check(target: Target) -> authorization_pb2.CheckKeyRequest:
    return authorization_pb2.CheckKeyRequest(key=target.secret)


def _record(target: Target, bond: str) -> authorization_pb2.UsageRecord:
    record_id = f"{target.key_id}-{bond.replace(' ', '-')}"
    return authorization_pb2.UsageRecord(record_id=record_id, key_id=target.key_id, units=1)


def _settlement(target: Target) -> authorization_pb2.LeaseSettlement:
    return authorization_pb2.LeaseSettlement(account_id=target.account_id, key_id=target.key_id, lease_id="l1")


# A good request of every method; the bond is the caller's.
REQUESTS: dict[str, Callable[[Target, str], Message]] = {
    "CheckKey": lambda t, _: _check(t),
    "BatchCheckKeys": lambda t, _: authorization_pb2.BatchCheckKeysRequest(requests=[_check(t)]),
    "RecordUsage": lambda t, bond: authorization_pb2.RecordUsageRequest(records=[_record(t, bond)]),
    "LeaseKey": lambda t, _: authorization_pb2.LeaseKeyRequest(key=t.secret, want_units=1),
    "SettleLeases": lambda t, _: authorization_pb2.SettleLeasesRequest(settlements=[_settlement(t)]),
    "WatchEpochs": lambda t, _: authorization_pb2.WatchEpochsRequest(watch=[t.account_id]),
    "CreateKey": lambda t, _: keys_pb2.CreateKeyRequest(account_id=t.account_id),
    "GetKey": lambda t, _: keys_pb2.GetKeyRequest(key_id=t.key_id),
    "ListKeys": lambda t, _: keys_pb2.ListKeysRequest(account_id=t.account_id),
    "UpdateKey": lambda t, _: keys_pb2.UpdateKeyRequest(
        key=resources_pb2.Key(key_id=t.key_id, display_name="new"), update_mask=FieldMask(paths=["display_name"])
    ),
    "RevokeKey": lambda t, _: keys_pb2.RevokeKeyRequest(key_id=t.key_id),
    "DisableKey": lambda t, _: keys_pb2.DisableKeyRequest(key_id=t.key_id),
    "EnableKey": lambda t, _: keys_pb2.EnableKeyRequest(key_id=t.key_id),
    "CreateAccount": lambda _t, _: accounts_pb2.CreateAccountRequest(policy=SECOND_POLICY),
    "GetAccount": lambda t, _: accounts_pb2.GetAccountRequest(account_id=t.account_id),
    "ListAccounts": lambda _t, _: accounts_pb2.ListAccountsRequest(page_size=1_000),
    "UpdateAccount": lambda t, _: accounts_pb2.UpdateAccountRequest(
        account=resources_pb2.Account(account_id=t.account_id, display_name="new"),
        update_mask=FieldMask(paths=["display_name"]),
    ),
    "CreateServiceToken": lambda t, bond: accounts_pb2.CreateServiceTokenRequest(
        role=CHECKER, account_id=t.account_id, policy=SECOND_POLICY if "policy" in bond else ""
    ),
    "ListServiceTokens": lambda _t, _: accounts_pb2.ListServiceTokensRequest(page_size=1_000),
    "RevokeServiceToken": lambda t, _: accounts_pb2.RevokeServiceTokenRequest(token_id=t.token_id),
    "CopyKey": lambda t, _: keys_pb2.CopyKeyRequest(key_id=t.key_id),
    "DeleteKey": lambda t, _: keys_pb2.DeleteKeyRequest(key_id=t.key_id),
    "RevealKey": lambda t, _: keys_pb2.RevealKeyRequest(key_id=t.key_id),
    "RotateKey": lambda t, _: keys_pb2.RotateKeyRequest(key_id=t.key_id),
    "SetMember": lambda t, _: accounts_pb2.SetMemberRequest(account_id=t.account_id, member_id="m1"),
    "RemoveMember": lambda t, _: accounts_pb2.RemoveMemberRequest(
        account_id=t.account_id, member_id="m2", key_disposition=accounts_pb2.KEY_DISPOSITION_KEEP
    ),
    "ListMembers": lambda t, _: accounts_pb2.ListMembersRequest(account_id=t.account_id),
    "ListPolicies": lambda _t, _: accounts_pb2.ListPoliciesRequest(),
    "GetLimits": lambda t, _: accounts_pb2.GetLimitsRequest(account_id=t.account_id),
    "GetUsage": lambda t, _: accounts_pb2.GetUsageRequest(
        account_id=t.account_id, start_time=Timestamp(seconds=int(time.time()) - 3_600)
    ),
    "ListAuditEvents": lambda t, _: accounts_pb2.ListAuditEventsRequest(account_id=t.account_id),
}
# Lists of everything that the caller may know of; the others are of one account.
OPEN_LISTS = ("ListAccounts", "ListServiceTokens", "ListPolicies")


def _allowed(method: MethodDescriptor) -> set[str]:
    """Return the roles that the contract lets call a method."""
    if method.containing_service.name == "AuthorizationService":
        return {"checker", "manager"}
    return {"manager", "auditor"} if method.name.startswith(("Get", "List")) else {"manager"}


def _expected(name: str, bond: str) -> str:
    """Return how a call ends that the caller's role allows."""
    if name == "CreateAccount":
        return "PERMISSION_DENIED TOKEN_BOUND" if bond in (*OTHER, "own account") else "OK"
    if bond not in OTHER or name in OPEN_LISTS:
        if name == "RevealKey":
            return "FAILED_PRECONDITION NOT_RECOVERABLE"
        return "NOT_FOUND MEMBER_NOT_FOUND" if name == "RemoveMember" else "OK"
    if name == "CreateServiceToken":
        return "PERMISSION_DENIED TOKEN_BOUND"
    if name in ("CheckKey", "BatchCheckKeys"):
        return "REASON_KEY_NOT_FOUND"
    if name == "LeaseKey":
        return "REASON_KEY_NOT_FOUND"
    if name == "SettleLeases":
        return "OK"  # there is no such lease, which is told of any
    if name == "RecordUsage":
        return "OUTCOME_REJECTED"
    kind = "SERVICE_TOKEN" if name == "RevokeServiceToken" else "ACCOUNT"
    if METHODS[name].containing_service.name == "KeyService" and name not in ("CreateKey", "ListKeys"):
        kind = "KEY"
    return f"NOT_FOUND {kind}_NOT_FOUND"


def _ended(client: Client, request: Message) -> str:
    """Return how a call ends, in words as in ``_expected``."""
    answer = client.outcome(request)
    if isinstance(answer, Refusal):
        return f"{answer.code.name} {answer.reason}"
    verdict = answer.results[0].response if isinstance(answer, authorization_pb2.BatchCheckKeysResponse) else answer
    if isinstance(answer, authorization_pb2.LeaseKeyResponse) and answer.WhichOneof("result") == "denial":
        verdict = answer.denial
    if isinstance(verdict, authorization_pb2.CheckKeyResponse) and not verdict.allowed:
        assert not verdict.HasField("key"), "a denial told of a key that the caller may not know"
        return authorization_pb2.Reason.Name(verdict.reason)
    if isinstance(answer, authorization_pb2.RecordUsageResponse):
        outcome = answer.results[0].outcome
        if outcome != authorization_pb2.OUTCOME_ACCEPTED:
            return authorization_pb2.Outcome.Name(outcome)
    return "OK"


class Callers:
    """A caller of each kind, and the accounts of which they know."""

    def __init__(self, server: Server, manager: Client) -> None:
        self._server = server
        self.manager = manager
        self.own = new_account(manager, policy=SECOND_POLICY)
        self.other = new_account(manager)
        bonds: dict[str, dict[str, object]] = {
            "unbound": {},
            "own account": {"account_id": self.own},
            "other account": {"account_id": self.other},
            "own policy": {"policy": SECOND_POLICY},
            "other policy": {"policy": "default"},
        }
        self.clients = {
            (role, bond): self._client(new_token(manager, number, **fields)[1])
            for role, number in ROLES.items()
            for bond, fields in bonds.items()
        }
        self.strangers = {name: self._client(secret or "") for name, (secret, _) in STRANGERS.items()}
        self.strangers["expired"] = self._client(new_token(manager, MANAGER, ttl=Duration(nanos=1_000))[1])
        token_id, secret = new_token(manager, MANAGER)
        self.strangers["revoked"] = self._client(secret)
        manager(accounts_pb2.RevokeServiceTokenRequest(token_id=token_id))

    def _client(self, secret: str) -> Client:
        return Client(self._server.address, secret)

    def target(self) -> Target:
        """Make a key of the own account and a token to be revoked."""
        made = self.manager(keys_pb2.CreateKeyRequest(account_id=self.own))
        token_id, _ = new_token(self.manager, CHECKER, account_id=self.own, policy=SECOND_POLICY)
        return Target(self.own, made.key.key_id, made.secret, token_id)

    def changes(self) -> list[tuple[int, ...]]:
        """Return what rises with every change of anything."""
        tables = ("accounts", "keys", "secrets", "key_requests", "service_tokens", "audit_events", "usage_records")
        with closing(database(self._server)) as opened:
            return [opened.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables]

    def close(self) -> None:
        """Close the connections."""
        for client in (*self.clients.values(), *self.strangers.values()):
            client.close()


@pytest.fixture(scope="session")
def callers(rpc_server: Server, manager: Client) -> Iterator[Callers]:
    """A caller of each kind."""
    callers = Callers(rpc_server, manager)
    yield callers
    callers.close()


def test_every_method_is_in_the_table() -> None:
    """A method that is added to the contract must be added to this table."""
    assert set(REQUESTS) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_are_told_nothing(callers: Callers, stranger: str, name: str) -> None:
    """Without a valid token every method is UNAUTHENTICATED, whatever the request, and nothing changes."""
    target = callers.target()
    before = callers.changes()
    client = callers.strangers[stranger]
    for request in (REQUESTS[name](target, ""), request_type(METHODS[name])()):
        refusal = client.refusal(request)
        assert refusal.code is StatusCode.UNAUTHENTICATED
        assert refusal.reason == STRANGERS[stranger][1]
    assert callers.changes() == before


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("role", ROLES)
def test_what_each_caller_may_do(callers: Callers, role: str, name: str) -> None:
    """A role that may not call is denied first, and another's things are not there for a bound caller."""
    for bond in BONDS:
        target = callers.target()
        before = callers.changes()
        request = REQUESTS[name](target, bond)
        ended = _ended(callers.clients[role, bond], request)
        allowed = role in _allowed(METHODS[name])
        expected = _expected(name, bond) if allowed else "PERMISSION_DENIED ROLE_NOT_ALLOWED"
        assert (bond, ended) == (bond, expected)
        if ended != "OK":
            assert callers.changes() == before, f"refused, and yet something changed: {bond}"
        if name == "ListAccounts" and ended == "OK":
            accounts = callers.clients[role, bond].all(request)
            seen = {each.account_id for each in accounts}
            assert seen >= {callers.own} if bond not in OTHER else callers.own not in seen
            assert seen == {callers.own} if bond == "own account" else True
            assert all(each.policy == SECOND_POLICY for each in accounts) if bond == "own policy" else True
        if name == "ListServiceTokens" and ended == "OK":
            tokens = callers.clients[role, bond].all(request)
            assert (target.token_id in {each.token_id for each in tokens}) == (bond not in OTHER)
            assert {each.account_id for each in tokens} == {callers.own} if bond == "own account" else True
            assert {each.policy for each in tokens} == {SECOND_POLICY} if bond == "own policy" else True


@pytest.mark.parametrize(
    ("bond", "fields"),
    [
        ("own account", {}),
        ("own account", {"policy": SECOND_POLICY}),
        ("own account", {"account_id": "OTHER"}),
        ("own policy", {}),
        ("own policy", {"policy": "default"}),
        ("own policy", {"account_id": "OWN"}),
    ],
)
def test_a_bound_manager_makes_no_broader_token(callers: Callers, bond: str, fields: dict[str, str]) -> None:
    """Whoever is bound can not free itself, nor make a token bound to something else."""
    accounts = {"OWN": callers.own, "OTHER": callers.other}
    request = accounts_pb2.CreateServiceTokenRequest(role=CHECKER, policy=fields.get("policy", ""))
    request.account_id = accounts.get(fields.get("account_id", ""), "")
    refusal = callers.clients["manager", bond].refusal(request)
    assert (refusal.code, refusal.reason) == (StatusCode.PERMISSION_DENIED, "TOKEN_BOUND")


def test_a_manager_of_a_policy_makes_no_token_for_an_account_of_another(callers: Callers) -> None:
    """The bonds of a new token must be things that its maker sees."""
    request = accounts_pb2.CreateServiceTokenRequest(role=CHECKER, account_id=callers.other, policy=SECOND_POLICY)
    refusal = callers.clients["manager", "own policy"].refusal(request)
    assert (refusal.code, refusal.reason) == (StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND")


def test_a_check_for_another_policy_than_the_callers_finds_nothing(callers: Callers) -> None:
    """The request's policy narrows the caller's, and never widens it."""
    target = callers.target()
    for bond, policy in (("own policy", "default"), ("other policy", SECOND_POLICY), ("unbound", "default")):
        request = authorization_pb2.CheckKeyRequest(key=target.secret, policy=policy)
        answer = callers.clients["checker", bond](request)
        assert answer.reason == authorization_pb2.REASON_KEY_NOT_FOUND


def test_a_revoked_token_ends_within_its_second(rpc_server: Server, manager: Client) -> None:
    """A token that was just used, and so is cached, is refused soon after it is revoked."""
    token_id, secret = new_token(manager, AUDITOR)
    client = Client(rpc_server.address, secret)
    client(accounts_pb2.ListAccountsRequest())
    manager(accounts_pb2.RevokeServiceTokenRequest(token_id=token_id))
    eventually(lambda: isinstance(client.outcome(accounts_pb2.ListAccountsRequest()), Refusal), 3, "the token's end")
    assert client.refusal(accounts_pb2.ListAccountsRequest()).code is StatusCode.UNAUTHENTICATED
    client.close()


def test_health_is_open(rpc_server: Server) -> None:
    """Whoever watches over the server needs no token: of every service, and as a stream too."""
    services = ["", *sorted({method.containing_service.full_name for method in METHODS.values()})]
    with rpc_server.channel() as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in services:
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=5)
        assert next(iter(watch)).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def _reflected(client: Client, **request: object) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    sent = iter([reflection_pb2.ServerReflectionRequest(**request)])  # type: ignore[arg-type]
    return next(iter(stub.ServerReflectionInfo(sent, metadata=client.metadata, timeout=5)))


@pytest.mark.parametrize("stranger", STRANGERS)
def test_reflection_needs_a_token(callers: Callers, stranger: str) -> None:
    """What this server can do is told to nobody without a token."""
    with pytest.raises(grpc.RpcError) as error:
        _reflected(callers.strangers[stranger], list_services="")
    assert error.value.code() is StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("role", ROLES)
def test_reflection_tells_every_caller_the_contract(callers: Callers, role: str) -> None:
    """With a token of any role, bound ones too, tools find the services and their messages."""
    for bond in BONDS:
        client = callers.clients[role, bond]
        services = {each.name for each in _reflected(client, list_services="").list_services_response.service}
        assert services >= {method.containing_service.full_name for method in METHODS.values()}
        assert _reflected(client, file_containing_symbol="formgate.v1.CheckKeyRequest").file_descriptor_response
