"""Which limits a key is charged by, and what a key and its account come to."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest

from formgate.rules.grants import Catalogue, Grant, Level
from formgate.rules.reason import Reason
from formgate.rules.standing import Wanted, denial
from formgate_server.core.compile_key import compile_key, counters
from formgate_server.core.limits import Counter
from formgate_server.core.model import (
    Account,
    AccountState,
    Calendar,
    Environment,
    Holder,
    Key,
    KeyState,
    Lifetime,
    Limit,
    Period,
    Rolling,
)
from formgate_server.core.policy import Plan, Policy

MINUTE = 60_000_000
NOW = 1_795_000_000_000_000

ACCOUNT = Account(
    account_id="acme",
    display_name="Acme",
    policy="p",
    plan="free",
    state=AccountState.ACTIVE,
    time_zone="",
    limits=(),
    epoch=7,
    version=1,
    create_time=NOW,
)
KEY = Key(
    key_id="k1",
    account_id="acme",
    display_name="A key",
    environment=Environment.LIVE,
    state=KeyState.ENABLED,
    hint="p_...abcd",
    created_by="",
    create_time=NOW,
    expire_time=None,
)


def rate(amount: int | None, holder: Holder = Holder.KEY, window: int = MINUTE) -> Limit:
    """Make a limit named ``rate``."""
    return Limit("rate", holder, amount, Rolling(window))


def daily(amount: int | None, holder: Holder = Holder.ACCOUNT) -> Limit:
    """Make a limit named ``daily``."""
    return Limit("daily", holder, amount, Calendar(Period.DAY))


def plan(*limits: Limit) -> Plan:
    """Make a plan with these limits."""
    return Plan("free", "America/New_York", limits)


def policy(*limits: Limit) -> Policy:
    """Make a policy whose only plan has these limits."""
    return Policy(
        name="p",
        description="",
        prefixes={Environment.LIVE: "p_"},
        plans={"free": plan(*limits)},
        catalogue=Catalogue({"forms.view": Level.READ, "forms.edit": Level.WRITE}),
        levels={Level.READ: "Read"},
        methods={},
        api_groups=None,
        denials={},
    )


def limits_of(charged: Iterable[Counter]) -> list[Limit]:
    """Return what is charged."""
    return [counter.limit for counter in charged]


def test_a_key_is_charged_by_its_plan_s_limits() -> None:
    """Those that the key holds and those that its account holds."""
    assert limits_of(counters(ACCOUNT, plan(rate(60), daily(1_000)), KEY)) == [rate(60), daily(1_000)]
    assert counters(ACCOUNT, plan(), KEY) == ()


@pytest.mark.parametrize("holder", Holder)
def test_the_nearest_limit_of_a_name_and_holder_applies(holder: Holder) -> None:
    """The account's replaces the plan's, the key's replaces both: larger, smaller, unlimited, or of another period."""
    booked = plan(rate(60, holder), daily(1_000))
    account = replace(ACCOUNT, limits=(rate(50, holder),))
    assert limits_of(counters(account, booked, KEY)) == [rate(50, holder), daily(1_000)]
    for own in (rate(70, holder), rate(None, holder), rate(1, holder, 24 * 60 * MINUTE)):
        assert limits_of(counters(account, booked, replace(KEY, limits=(own,)))) == [own, daily(1_000)]


def test_a_key_s_own_limit_does_not_free_it_of_its_account_s() -> None:
    """Limits of one name and two holders both apply."""
    key = replace(KEY, limits=(daily(10, Holder.KEY),))
    assert limits_of(counters(ACCOUNT, plan(daily(1_000)), key)) == [daily(1_000), daily(10, Holder.KEY)]


def test_an_account_holds_what_no_key_does() -> None:
    """Without a key, only the account's own counters are told."""
    account = replace(ACCOUNT, limits=(Limit("credits", Holder.ACCOUNT, 5, Lifetime()),))
    charged = counters(account, plan(rate(60), daily(1_000)), None)
    assert limits_of(charged) == [daily(1_000), Limit("credits", Holder.ACCOUNT, 5, Lifetime())]


def test_keys_share_their_account_s_counters_and_not_their_own() -> None:
    """The same counter for every key of an account where the account holds the limit, else one for each key."""
    booked = plan(rate(60), daily(1_000))
    mine, ours = counters(ACCOUNT, booked, KEY)
    other, theirs = counters(ACCOUNT, booked, replace(KEY, key_id="k2"))
    assert ours == theirs == counters(ACCOUNT, booked, None)[0]
    assert mine.id != other.id


def test_a_counter_stays_under_another_amount() -> None:
    """An amount that changes, by a plan or for a key, forgets nothing that was used."""
    for holder in Holder:
        ids = {counters(ACCOUNT, plan(rate(amount, holder)), KEY)[0].id for amount in (0, 60, 2**63 - 1, None)}
        ids.add(counters(ACCOUNT, plan(), replace(KEY, limits=(rate(5, holder),)))[0].id)
        ids.add(counters(replace(ACCOUNT, limits=(rate(6, holder),)), plan(), KEY)[0].id)
        assert len(ids) == 1


def test_every_other_limit_has_another_counter() -> None:
    """Of another name, holder, kind or length of period, key or account: never the same counter."""
    pers: list[Rolling | Calendar | Lifetime] = [Rolling(MINUTE), Rolling(MINUTE + 1), Lifetime()]
    pers += map(Calendar, Period)
    names = ("rate", "daily", "day", "k1", "lifetime")
    ids = [
        counter.id
        for account_id, key_id in itertools.product(("acme", "k1", "acme.k1"), ("k1", "k2", "rate"))
        for name, holder in itertools.product(names, Holder)
        for per in pers
        for counter in counters(
            replace(ACCOUNT, account_id=account_id),
            plan(Limit(name, holder, 1, per)),
            replace(KEY, key_id=key_id, account_id=account_id),
        )
    ]
    of_accounts = 3 * len(names) * len(pers)  # the same for each of the three keys
    of_keys = 3 * of_accounts
    assert len(set(ids)) == of_accounts + of_keys


def test_periods_are_in_the_account_s_zone_else_the_plan_s() -> None:
    """A daily quota ends at the account's midnight where it has a time zone of its own."""
    booked = plan(daily(1_000))
    assert counters(ACCOUNT, booked, KEY)[0].zone == "America/New_York"
    assert counters(replace(ACCOUNT, time_zone="Europe/Vienna"), booked, KEY)[0].zone == "Europe/Vienna"


@pytest.mark.parametrize(
    ("key_state", "account_state", "reason"),
    [
        (KeyState.ENABLED, AccountState.ACTIVE, None),
        (KeyState.DISABLED, AccountState.ACTIVE, Reason.KEY_DISABLED),
        (KeyState.REVOKED, AccountState.ACTIVE, Reason.KEY_REVOKED),
        (KeyState.ENABLED, AccountState.SUSPENDED, Reason.ACCOUNT_SUSPENDED),
        (KeyState.DISABLED, AccountState.SUSPENDED, Reason.KEY_DISABLED),
        (KeyState.REVOKED, AccountState.SUSPENDED, Reason.KEY_REVOKED),
    ],
)
def test_what_became_of_a_key_is_told_before_its_account(
    key_state: KeyState, account_state: AccountState, reason: Reason | None
) -> None:
    """Every state of a key and of its account has its reason, the key's first."""
    record = compile_key(replace(KEY, state=key_state), replace(ACCOUNT, state=account_state), policy())
    assert denial(record.standing, Wanted(), NOW) == reason


def test_an_expired_key_of_a_suspended_account_is_expired() -> None:
    """KEY_EXPIRED comes before ACCOUNT_SUSPENDED."""
    record = compile_key(replace(KEY, expire_time=NOW), replace(ACCOUNT, state=AccountState.SUSPENDED), policy())
    assert denial(record.standing, Wanted(), NOW - 1) is Reason.ACCOUNT_SUSPENDED
    assert denial(record.standing, Wanted(), NOW) is Reason.KEY_EXPIRED


def test_a_compiled_key_decides_by_all_that_it_has() -> None:
    """Environment, address rules, API groups and grants of the key; the epoch of its account; its limits."""
    key = replace(
        KEY,
        environment=Environment.TEST,
        ip_rules=("10.0.0.0/8",),
        api_groups=("form",),
        grants=(Grant("forms/f1", level=Level.READ),),
    )
    promised = policy(rate(60))
    record = compile_key(key, ACCOUNT, promised)
    assert (record.key, record.policy, record.epoch) == (key, promised, 7)
    assert record.counters == counters(ACCOUNT, promised.plans["free"], key)
    wanted = Wanted(("forms.view",), Level.UNSPECIFIED, ("forms/f1",), "form", Environment.TEST, "10.0.0.1")
    assert denial(record.standing, wanted, NOW) is None
    assert denial(record.standing, wanted._replace(environment=Environment.LIVE), NOW) is Reason.ENVIRONMENT_MISMATCH
    assert denial(record.standing, wanted._replace(source_ip="11.0.0.1"), NOW) is Reason.IP_NOT_ALLOWED
    assert denial(record.standing, wanted._replace(api_group="data"), NOW) is Reason.API_GROUP_NOT_ALLOWED
    assert denial(record.standing, wanted._replace(permissions=("forms.edit",)), NOW) is Reason.PERMISSION_DENIED
    assert denial(record.standing, wanted._replace(resources=("forms/f2",)), NOW) is Reason.RESOURCE_NOT_ALLOWED
