"""What is needed may come from a generator: it is read once, and what is read counts everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from formgate import Check
from formgate.asking import several, to_request
from formgate.counters import Counters
from formgate.errors import InvalidRequestError, UnavailableError
from formgate.fallback import Emergency, Fallback
from formgate.testing import FakeFormgate, Grant, Reason
from formgate.verdict import CheckedKey, Source, Verdict
from tests.support.callers import KINDS, PERMISSION, RESOURCE, Caller, new_key
from tests.support.client import Client as Manager
from tests.support.server import Server, eventually

pytest_plugins = ("tests.support.rpc",)

OTHER = "forms.delete"
Given = Callable[[Iterable[str]], Any]
GIVEN: list[Given] = [lambda texts: (text for text in texts), iter, set, list]


@pytest.fixture(params=KINDS)
def caller(request: pytest.FixtureRequest, rpc_server: Server) -> Iterator[Caller]:
    """A client of either kind, with leases."""
    with Caller(request.param, rpc_server.address, rpc_server.token, timeout=5.0, leases=True) as caller:
        yield caller


def asked(given: Given, permission: str, resource: str = RESOURCE) -> dict[str, Any]:
    """Return what a check asks for, given so."""
    return {"permissions": given([permission]), "resources": given([resource])}


@pytest.mark.parametrize("given", GIVEN, ids=["generator", "iterator", "set", "list"])
def test_a_check_asks_for_all_that_is_given(caller: Caller, manager: Manager, account: str, given: Given) -> None:
    """By the service, under a lease, and of a lease that is used up: what the key may not do is denied."""
    secret = new_key(manager, account).secret

    def leases() -> bool:
        return caller.check(secret, permissions=[PERMISSION], resources=[RESOURCE]).source is Source.LEASE

    def look() -> None:
        for _ in range(2):
            assert caller.check(secret, **asked(given, OTHER)).reason is Reason.PERMISSION_DENIED
            assert caller.check(secret, **asked(given, PERMISSION, "sites/s1")).reason is Reason.RESOURCE_NOT_ALLOWED
            checks = [Check(secret, **asked(given, OTHER)), Check(secret, **asked(given, PERMISSION))]
            assert [bool(verdict) for verdict in caller.check_all(checks)] == [False, True]
            assert caller.check(secret, strict=True, **asked(given, OTHER)).reason is Reason.PERMISSION_DENIED

    look()
    eventually(leases, 5.0, "a lease")
    look()
    eventually(leases, 5.0, "a lease")
    for held in caller.client._common.leases._by_key.values():
        if held.lease is not None:
            held.lease.unlimited, held.lease.units = False, 0  # used up
    assert caller.check(secret, **asked(given, OTHER)).reason is Reason.PERMISSION_DENIED


def test_a_check_may_be_asked_twice(caller: Caller, manager: Manager, account: str) -> None:
    """A Check that was made of generators says the same each time."""
    check = Check(new_key(manager, account).secret, permissions=GIVEN[0]([OTHER]))
    assert [bool(verdict) for _ in range(3) for verdict in caller.check_all([check])] == [False] * 3
    again = check._replace(permissions=GIVEN[0]([PERMISSION, OTHER]))
    assert type(again) is Check
    assert (again.permissions, tuple(to_request(again).permissions)) == ((PERMISSION, OTHER),) * 2


@pytest.mark.parametrize("wrong", [None, 5, b"forms.view", {"forms.view": 1}], ids=repr)
@pytest.mark.parametrize("field", ["permissions", "resources"])
def test_what_is_no_list_of_texts_is_a_bad_call(
    caller: Caller, manager: Manager, account: str, field: str, wrong: Any
) -> None:
    """Missing or mistaken, it never means that nothing is needed; nor in a batch, nor under a lease."""
    secret = new_key(manager, account).secret
    eventually(
        lambda: caller.check(secret, permissions=PERMISSION, resources=RESOURCE).source is Source.LEASE, 5.0, "a lease"
    )
    with pytest.raises(InvalidRequestError):
        caller.check(secret, **{field: wrong})
    (verdict,) = caller.check_all([Check(secret, **{field: wrong})])
    assert not verdict
    assert isinstance(verdict.error, InvalidRequestError)
    with pytest.raises(InvalidRequestError):
        FakeFormgate().client.check(secret, **{field: wrong})


def test_last_known_knows_what_was_asked() -> None:
    """One permission that was allowed, from a generator, says nothing of another."""
    fallback = Fallback("last known", Emergency(), Counters())
    check = Check("k", permissions=GIVEN[0]([PERMISSION]))
    to_request(check)
    key = CheckedKey("key_1", "account_1")
    fallback.answered(check, Verdict(allowed=True, reason=Reason.OK, message="", http_status=200, key=key))
    for permission, known in ((OTHER, False), (PERMISSION, True)):
        again = Check("k", permissions=GIVEN[0]([permission]))
        to_request(again)
        assert bool(fallback.decide(again, UnavailableError("away"))) is known


@pytest.mark.parametrize("given", GIVEN, ids=["generator", "iterator", "set", "list"])
def test_the_fake_reads_it_as_the_clients_do(given: Given) -> None:
    """So a caller's test is denied where the caller would be."""
    fake = FakeFormgate()
    secret = fake.add_key(grants=[Grant(RESOURCE, (PERMISSION,))]).secret
    assert fake.client.check(secret, **asked(given, PERMISSION))
    assert fake.client.check(secret, **asked(given, OTHER)).reason is Reason.PERMISSION_DENIED
    checks = [Check(secret, **asked(given, OTHER)), Check(secret, **asked(given, PERMISSION))]
    assert [bool(verdict) for verdict in fake.client.check_all(checks)] == [False, True]
    assert [check.permissions for check in fake.checks[-2:]] == [(OTHER,), (PERMISSION,)]


def test_nothing_that_is_read_once_comes_through() -> None:
    """Whoever goes round Check is refused where the request is written."""
    with pytest.raises(TypeError):
        several(each for each in [OTHER])
