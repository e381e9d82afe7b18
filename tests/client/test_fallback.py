from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from formgate.asking import Check
from formgate.counters import Counters
from formgate.errors import BrokenAnswerError, DeadlineError, UnavailableError
from formgate.fallback import Emergency, Fallback, level_of
from formgate.rules.grants import Level
from formgate.verdict import CheckedKey, Reason, Source, Verdict

AWAY = UnavailableError("away")
READ = Check("k", permissions=("forms.view",), level="read")


class Clock:
    """Seconds, as the test says."""

    now = 1_000.0

    def __call__(self) -> float:
        """Return them."""
        return self.now


class World:
    """A fallback, its counters and its clock."""

    def __init__(self, fail: Any, emergency: Emergency | None = None) -> None:
        self.clock = Clock()
        self.counters = Counters()
        self.fallback = Fallback(fail, emergency or Emergency(), self.counters, clock=self.clock)

    def ask(self, check: Check = READ, **changes: Any) -> Verdict:
        """Return the verdict in silence."""
        return self.fallback.decide(check._replace(**changes), AWAY)

    def tell(self, check: Check = READ, reason: Reason = Reason.OK, **key: Any) -> None:
        """Let the service have decided so."""
        checked = CheckedKey("key_1", "account_1", **key)
        self.fallback.answered(check, Verdict(reason is Reason.OK, reason, "m", 200, key=checked))


def test_closed_by_default_of_each_level_that_is_not_named() -> None:
    """Only what is said to be open is open."""
    world = World({"read": "open"})
    assert world.ask(level=Level.READ)
    for level in (Level.WRITE, Level.MANAGE, "write", "MANAGE"):
        assert not world.ask(level=level)


@pytest.mark.parametrize(
    ("check", "level"),
    [
        (Check("k", http_method="GET"), Level.READ),
        (Check("k", http_method="HEAD"), Level.READ),
        (Check("k", http_method="POST"), Level.WRITE),
        (Check("k", http_method="DELETE"), Level.MANAGE),
        (Check("k", http_method="get"), Level.MANAGE),
        (Check("k", http_method="BREW"), Level.MANAGE),
        (Check("k"), Level.MANAGE),
        (Check("k", http_method="GET", level="write"), Level.WRITE),
    ],
    ids=str,
)
def test_how_much_a_check_would_do(check: Check, level: Level) -> None:
    """As it says, else by its HTTP method; nobody knows: the most, which is the last to be opened."""
    assert level_of(check) is level


@pytest.mark.parametrize("fail", ["shut", "", {"read": "ajar"}, {"owner": "open"}, {"unspecified": "open"}], ids=str)
def test_a_mode_or_level_that_there_is_not_is_refused(fail: Any) -> None:
    """A typing error must not open anything, nor be found during the outage."""
    with pytest.raises(ValueError, match="is no"):
        World(fail)


@pytest.mark.parametrize("mode", ["open", "last known"])
@pytest.mark.parametrize(
    "check",
    [
        Check(""),
        Check(authorization=""),
        Check(authorization="Bearer"),
        Check(authorization="Bearer "),
        Check(authorization="Basic eDp5"),
        Check(authorization="Bearer a b"),
    ],
    ids=str,
)
def test_no_key_is_let_in_by_no_mode(mode: str, check: Check) -> None:
    """A request without a credential is denied, whatever is open."""
    assert not World(mode).ask(check)


@pytest.mark.parametrize("mode", ["open", "last known"])
def test_nonsense_is_not_silence(mode: str) -> None:
    """A broken answer denies, and so does a service that defends itself against a flood of unknown keys."""
    world = World(mode)
    world.tell()
    assert world.ask()
    assert not world.fallback.decide(READ, BrokenAnswerError("nonsense"))
    assert not world.fallback.decide(READ, UnavailableError("too many", reason="TOO_MANY_UNKNOWN_KEYS"))
    assert world.fallback.decide(READ, DeadlineError("slow"))


def test_an_open_verdict_says_that_nobody_decided() -> None:
    """Allowed, without a reason, degraded, from the fallback, with the error; and counted."""
    world = World("open")
    verdict = world.ask()
    assert verdict == Verdict(
        allowed=True, reason=None, message="", http_status=200, degraded=True, source=Source.FALLBACK, error=AWAY
    )
    assert world.counters.snapshot() == dict.fromkeys(world.counters.snapshot(), 0) | {
        "unanswered": 1,
        "fallback_open": 1,
    }


def test_a_key_has_its_emergency_budget() -> None:
    """Ten a second, ten at once; another key has its own; in both spellings it is one key."""
    world = World("open", Emergency(checks_per_key=10))
    assert sum(bool(world.ask()) for _ in range(15)) == 10
    assert not world.ask(Check(authorization="Bearer k", level="read"))
    assert world.ask(key="other")
    world.clock.now += 0.5
    assert sum(bool(world.ask()) for _ in range(15)) == 5
    assert world.counters.snapshot()["emergency_exceeded"] == 16


def test_all_keys_share_an_emergency_budget() -> None:
    """However many keys ask: so many a second in all. Forgetting keys gives nothing back."""
    world = World("open", Emergency(checks=100, remembered=10))
    assert sum(bool(world.ask(key=f"k{number}")) for number in range(500)) == 100
    world.clock.now += 1
    assert sum(bool(world.ask(key=f"k{number}")) for number in range(500)) == 100


def test_nothing_at_all_may_be_let_in() -> None:
    """A budget of 0 is closed."""
    assert not World("open", Emergency(checks_per_key=0)).ask()
    assert not World("open", Emergency(checks=0)).ask()


def test_an_emergency_ends() -> None:
    """Ten minutes after the first silence everything is closed, until the service answers anything."""
    world = World("open", Emergency(seconds=600))
    assert world.ask()
    world.clock.now += 599
    assert world.ask()
    world.clock.now += 1
    assert not world.ask()
    world.tell(Check("whoever"))
    assert world.ask()


def test_what_was_denied_last_stays_denied() -> None:
    """The last verdict counts, not the best; with its reason and words."""
    world = World("last known")
    world.tell()
    world.tell(reason=Reason.PERMISSION_DENIED)
    verdict = world.ask()
    assert (verdict.allowed, verdict.reason, verdict.source) == (False, Reason.PERMISSION_DENIED, Source.FALLBACK)
    world.tell()
    assert world.ask()


@pytest.mark.parametrize(
    "reason",
    [Reason.KEY_NOT_FOUND, Reason.KEY_REVOKED, Reason.KEY_DISABLED, Reason.KEY_EXPIRED, Reason.ACCOUNT_SUSPENDED],
)
def test_a_key_that_is_dead_is_dead_for_everything(reason: Reason) -> None:
    """A revocation seen with one request denies all the others that were allowed before."""
    world = World("last known")
    world.tell()
    world.tell(READ._replace(permissions=("forms.edit",)), reason)
    assert world.ask().reason is reason
    assert not world.ask(permissions=("forms.other",))


@pytest.mark.parametrize(
    "changes",
    [
        {"permissions": ("forms.edit",)},
        {"resources": ("forms/f2",)},
        {"api_group": "g"},
        {"environment": "live"},
        {"http_method": "GET"},
        {"source_ip": "203.0.113.9"},
        {"policy": "other"},
        {"key": "l"},
    ],
    ids=str,
)
def test_another_request_is_not_known(changes: dict[str, Any]) -> None:
    """Only the very request that the service decided is known; cost, tags and id do not matter."""
    world = World("last known")
    world.tell()
    assert not world.ask(**changes)
    assert world.ask(cost=3, request_id="r", tags={"a": "b"})


def test_what_is_known_grows_old() -> None:
    """Ten minutes after the service gave it, a verdict is known no more; nor once its key has expired."""
    world = World("last known", Emergency(remembered_seconds=600, seconds=10_000))
    world.tell()
    world.clock.now += 599
    assert world.ask()
    world.clock.now += 1
    assert not world.ask()
    world.tell(expire_time=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
    assert world.ask()
    world.tell(expire_time=dt.datetime.now(dt.UTC))
    assert not world.ask()


def test_what_is_known_is_bounded() -> None:
    """The keys, and the requests of each, that were asked for the longest ago are forgotten: all of a key, or none."""
    world = World("last known", Emergency(remembered=3, checks_per_key=1_000))
    for number in range(4):
        world.tell(READ._replace(key=f"k{number}"))
    assert [bool(world.ask(key=f"k{number}")) for number in range(4)] == [False, True, True, True]
    for number in range(65):
        world.tell(READ._replace(key="k3", resources=(f"forms/f{number}",)))
    assert not world.ask(key="k3", resources=("forms/f0",))
    assert world.ask(key="k3", resources=("forms/f1",))


def test_keys_that_there_are_not_push_out_none() -> None:
    """However many are tried, nothing of them is kept; of one that is known it is."""
    world = World("last known", Emergency(remembered=3))
    nobody = Verdict(False, Reason.KEY_NOT_FOUND, "m", 401)  # noqa: FBT003
    world.tell()
    for number in range(10):
        world.fallback.answered(READ._replace(key=f"junk{number}"), nobody)
    assert world.ask()
    assert not world.ask(key="junk9")
    world.fallback.answered(READ, nobody)
    assert world.ask().reason is Reason.KEY_NOT_FOUND


def test_a_lease_is_no_younger_than_it_is() -> None:
    """What is allowed by a lease is known, unless the service has said otherwise since the lease was asked for."""
    world = World("last known", Emergency(remembered_seconds=600))
    yes = Verdict(True, Reason.OK, "", 200, key=CheckedKey("key_1", "account_1"), source=Source.LEASE)  # noqa: FBT003
    began = world.clock.now
    world.fallback.leased(READ, yes, began)
    assert world.ask()
    world.clock.now += 1
    world.tell(reason=Reason.KEY_REVOKED)
    world.fallback.leased(READ, yes, began)
    assert world.ask().reason is Reason.KEY_REVOKED
    world.fallback.leased(READ, yes, world.clock.now + 0.5)
    assert world.ask()


def test_a_lease_ends_an_emergency_only_if_it_began_after_it() -> None:
    """One of before says nothing of a service that is away since; one that was got meanwhile says that it is back."""
    world = World("open", Emergency(seconds=300, checks_per_key=1_000))
    yes = Verdict(True, Reason.OK, "", 200, key=CheckedKey("key_1", "account_1"), source=Source.LEASE)  # noqa: FBT003
    assert world.ask()
    world.clock.now += 300
    world.fallback.leased(READ, yes, began=world.clock.now - 300)
    assert not world.ask()
    world.fallback.leased(READ, yes, began=world.clock.now - 1)
    assert world.ask()


def test_an_outage_is_logged_when_it_begins_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """Once each, without a secret; and a service that answers every other check does not fill the log."""
    world = World({"read": "open"})
    secret = READ._replace(key="pf_the_secret")
    for _ in range(5):
        world.ask(secret)
    assert caplog.messages == [
        "the service decides no checks (UnavailableError); until it does the fail mode does: open"
    ]
    world.clock.now += 3
    world.tell()
    world.tell()
    assert caplog.messages[1:] == ["the service answers again, after 3.0 s"]
    for _ in range(5):
        world.ask()
        world.tell()
    assert len(caplog.messages) == 2
    world.clock.now += 10
    world.ask()
    world.tell()
    assert len(caplog.messages) == 4
    assert {record.name for record in caplog.records} == {"formgate"}


def test_no_key_is_kept_in_clear() -> None:
    """What is remembered, and an error that a verdict carries, hold no secret."""
    world = World("last known")
    secret = "pf_the_secret"
    try:
        raise UnavailableError("away")  # noqa: TRY301 - with frames on it
    except UnavailableError as error:
        caught = error
    world.tell(READ._replace(key=secret))
    verdict = world.fallback.decide(READ._replace(key=secret), caught)
    assert verdict
    assert verdict.error is not None
    assert verdict.error.__traceback__ is None
    assert secret not in repr(list(world.fallback._known._keys.items()))


def test_a_hook_that_fails_changes_nothing() -> None:
    """on_fallback is told of each verdict; what it raises is logged, and the verdict stands."""
    told = []

    def hook(check: Check, verdict: Verdict) -> None:
        told.append((check, verdict))
        raise RuntimeError

    fallback = Fallback("closed", Emergency(), Counters(), hook)
    verdict = fallback.decide(READ, AWAY)
    assert told == [(READ, verdict)]
    assert not verdict
