"""The order in which a key's own checks are made."""

from dataclasses import replace

import pytest

from formgate.rules.addresses import AddressRules
from formgate.rules.grants import Catalogue, Grant, Grants, Level
from formgate.rules.reason import Reason
from formgate.rules.standing import Standing, Wanted, denial

LIVE, TEST = 1, 2
NOW = 1_795_000_000_000_000

CATALOGUE = Catalogue({"forms.view": Level.READ, "forms.edit": Level.WRITE})
KEY = Standing(
    state=Reason.OK,
    expire_time=NOW + 1,
    environment=LIVE,
    addresses=AddressRules(["10.0.0.0/8"]),
    api_groups=frozenset({"form"}),
    grants=Grants([Grant("forms/f1", ("forms.view",))], CATALOGUE),
)
WANTED = Wanted(
    permissions=("forms.view",),
    resources=("forms/f1",),
    api_group="form",
    environment=LIVE,
    source_ip="10.1.2.3",
)


def test_the_first_reason_that_applies_wins() -> None:
    """With everything wrong the first reason is told; mended one by one, the others follow in the contract's order."""
    key = replace(KEY, state=Reason.ACCOUNT_SUSPENDED, expire_time=NOW)
    wanted = Wanted(("forms.edit",), Level.UNSPECIFIED, ("forms/f2",), "data", TEST, "192.0.2.1")
    told = [denial(key, wanted, NOW)]
    key = replace(key, expire_time=None)
    told.append(denial(key, wanted, NOW))
    key = replace(key, state=Reason.OK)
    told.append(denial(key, wanted, NOW))
    for mended in (
        {"environment": LIVE},
        {"source_ip": "10.0.0.1"},
        {"api_group": "form"},
        {"permissions": ("forms.view",)},
        {"resources": ("forms/f1",)},
    ):
        wanted = wanted._replace(**mended)
        told.append(denial(key, wanted, NOW))
    assert told == [
        Reason.KEY_EXPIRED,
        Reason.ACCOUNT_SUSPENDED,
        Reason.ENVIRONMENT_MISMATCH,
        Reason.IP_NOT_ALLOWED,
        Reason.API_GROUP_NOT_ALLOWED,
        Reason.PERMISSION_DENIED,
        Reason.RESOURCE_NOT_ALLOWED,
        None,
    ]
    reasons = [reason for reason in told if reason is not None]
    assert reasons == sorted(reasons)


@pytest.mark.parametrize("state", [Reason.KEY_NOT_FOUND, Reason.KEY_REVOKED, Reason.KEY_DISABLED])
def test_what_became_of_the_key_is_told_before_all_else(state: Reason) -> None:
    """A deleted, revoked or disabled key is that, expired or not, whatever is asked."""
    key = replace(KEY, state=state, expire_time=NOW - 1)
    assert denial(key, Wanted(environment=TEST, source_ip="x", api_group="x"), NOW) is state
    assert denial(replace(KEY, state=state), WANTED, NOW) is state


def test_a_key_expires_at_its_expire_time() -> None:
    """Up to the microsecond before it is good; from then on it is not; without one it always is."""
    assert denial(KEY, WANTED, NOW) is None
    assert denial(KEY, WANTED, NOW + 1) is Reason.KEY_EXPIRED
    assert denial(replace(KEY, expire_time=None), WANTED, 2**63 - 1) is None


def test_an_environment_is_matched_where_one_is_asked_for() -> None:
    """None asked for, any will do."""
    assert denial(KEY, WANTED._replace(environment=0), NOW) is None
    assert denial(KEY, WANTED._replace(environment=TEST), NOW) is Reason.ENVIRONMENT_MISMATCH


@pytest.mark.parametrize("source_ip", ["", "nonsense", "11.0.0.1"])
def test_with_address_rules_an_address_must_be_shown(source_ip: str) -> None:
    """Rules and no address, or one that can not be read, is a denial; without rules none is asked for."""
    assert denial(KEY, WANTED._replace(source_ip=source_ip), NOW) is Reason.IP_NOT_ALLOWED
    assert denial(replace(KEY, addresses=None), WANTED._replace(source_ip=source_ip), NOW) is None


@pytest.mark.parametrize("api_group", ["", "data", "Form"])
def test_a_key_limited_to_api_groups_needs_one_of_them(api_group: str) -> None:
    """Restricted and none given is a denial; unrestricted, any or none will do."""
    assert denial(KEY, WANTED._replace(api_group=api_group), NOW) is Reason.API_GROUP_NOT_ALLOWED
    assert denial(replace(KEY, api_groups=frozenset()), WANTED._replace(api_group=api_group), NOW) is None


def test_an_unknown_method_or_permission_is_denied() -> None:
    """To one who holds everything, too."""
    key = replace(KEY, grants=Grants([Grant("*", ("*",), Level.MANAGE)], CATALOGUE))
    assert denial(key, WANTED._replace(permissions=(), level=None), NOW) is Reason.PERMISSION_DENIED
    assert denial(key, WANTED._replace(permissions=("forms.fly",)), NOW) is Reason.PERMISSION_DENIED
    assert denial(key, WANTED._replace(permissions=(), level=Level.MANAGE), NOW) is None


def test_a_check_without_wishes_only_authenticates() -> None:
    """A key without grants answers who it is."""
    key = replace(KEY, addresses=None, api_groups=frozenset(), grants=Grants([], CATALOGUE))
    assert denial(key, Wanted(), NOW) is None
