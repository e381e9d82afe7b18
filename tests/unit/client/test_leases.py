"""The holder of leases, over a service that a test plays: when it asks, what it gives back, and when it stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from formgate import clock as clock_module
from formgate import lease as lease_module
from formgate.asking import Check
from formgate.counters import Counters
from formgate.errors import BrokenAnswerError
from formgate.fallback import Fallback
from formgate.lease import Leases
from formgate.leased import LeasedRules, Shape
from formgate.rules.reason import Reason
from formgate.v1 import authorization_pb2 as pb
from formgate.v1.resources_pb2 import ENVIRONMENT_LIVE, LEVEL_READ, Grant
from formgate.verdict import CheckedKey, Source, Verdict

KEY = "fg_live_key"
SHAPE: Shape = (("forms.view",), ("forms/f1",), "", None, "", "", "")
CHECK = Check(KEY, None, ("forms.view",), ("forms/f1",))
YES = Verdict(True, Reason.OK, "", 200, key=CheckedKey("k1", "acme"), epoch=3)  # noqa: FBT003

Done = Callable[[pb.LeaseKeyResponse | None], None]


class Service:
    """A LeaseService that answers when the test does."""

    def __init__(self) -> None:
        self.asked: list[tuple[pb.LeaseKeyRequest, Done]] = []
        self.settled: list[tuple[str, int]] = []
        self.watched: list[str] = []
        self.most = 10_000
        self.closed = False

    def acquire(self, request: pb.LeaseKeyRequest, done: Done) -> None:
        """See ``LeaseService``."""
        self.asked.append((request, done))

    def settle(self, settlement: pb.LeaseSettlement) -> None:
        """See ``LeaseService``."""
        assert (settlement.account_id, settlement.key_id) == ("acme", "k1")
        self.settled.append((settlement.lease_id, settlement.unused))

    def watch(self, account_id: str) -> bool:
        """See ``LeaseService``."""
        if len(self.watched) >= self.most:
            return False
        self.watched.append(account_id)
        return True

    def forget(self, account_id: str) -> None:
        """See ``LeaseService``."""
        self.watched.remove(account_id)

    def close(self) -> None:
        """See ``LeaseService``."""
        self.closed = True


class World:
    """A holder, its clock and its service."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, noted: Callable[[Check, Verdict, float], None] | None = None
    ) -> None:
        self.now = 100.0
        monkeypatch.setattr(lease_module, "monotonic", lambda: self.now)
        self.service = Service()
        self.counters = Counters()
        ids = iter(range(1_000))
        self.leases = Leases(lambda _: self.service, self.counters, lambda: f"l{next(ids)}", noted)

    def heat(self, times: int = 2) -> None:
        """Have the service decide some checks."""
        for _ in range(times):
            self.leases.asked(CHECK, YES)

    def grant(self, units: int = 10, epoch: int = 3, seconds: float = 1.0, **changes: object) -> None:
        """Answer the request for a lease that is under way."""
        request, done = self.service.asked[-1]
        lease = pb.Lease(
            lease_id=request.lease_id,
            units=units,
            duration=Duration(nanos=round(seconds * 1e9)) if seconds < 1 else Duration(seconds=round(seconds)),
            epoch=epoch,
            rules_id=b"r1",
        )
        if request.rules_id != b"r1":
            lease.rules.CopyFrom(rules())
        for name, value in changes.items():
            if value is None:
                lease.ClearField(name)  # type: ignore[arg-type]
            else:
                setattr(lease, name, value)
        done(pb.LeaseKeyResponse(lease=lease))

    def decide(self, cost: int = 1, shape: Shape = SHAPE) -> Verdict | None:
        """Decide here."""
        return self.leases.decide(KEY, None, shape, cost)


def rules() -> pb.LeaseRules:
    """Make rules."""
    return pb.LeaseRules(
        key=pb.CheckedKey(key_id="k1", account_id="acme", environment=ENVIRONMENT_LIVE),
        policy="default",
        grants=[Grant(resource="*", permissions=["forms.view"])],
        permissions={"forms.view": LEVEL_READ, "forms.edit": LEVEL_READ},
    )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A holder without leases."""
    return World(monkeypatch)


def test_one_request_at_a_time_and_never_more_than_its_units(world: World) -> None:
    """However many ask; with its units used up the service is asked, and the next lease is larger."""
    world.heat(1)
    assert not world.service.asked
    world.heat(5)
    assert [request.want_units for request, _ in world.service.asked] == [16]
    assert world.service.watched == ["acme"]
    world.grant(units=10)
    admitted = [verdict for _ in range(20) if (verdict := world.decide()) is not None]
    assert len(admitted) == 10
    assert all(verdict.allowed and verdict.source is Source.LEASE for verdict in admitted)
    assert [request.want_units for request, _ in world.service.asked] == [16, 64]
    assert world.service.asked[1][0].rules_id == b"r1"
    assert world.service.settled == []


def test_a_cost_that_does_not_fit_is_asked_and_what_is_left_goes_back(world: World) -> None:
    """At its end, once, by whoever notices first."""
    world.heat()
    world.grant(units=10)
    assert world.decide(7) is not None
    assert world.decide(4) is None
    assert world.decide(2) is not None
    world.now += 1.0
    assert world.decide() is None
    world.leases.tidy()
    assert world.service.settled == [("l0", 1)]
    assert world.counters.snapshot()["leased"] == 9


def test_it_lasts_from_when_it_was_asked_for(world: World) -> None:
    """An answer that takes long shortens it: the service counts from before."""
    world.heat()
    world.now += 0.9
    world.grant()
    assert world.decide() is not None
    world.now += 0.1
    assert world.decide() is None


def test_the_next_lease_is_asked_for_before_the_end(world: World) -> None:
    """So that no check waits for it; the old one's units go back."""
    world.heat()
    world.grant()
    world.now += 0.8
    assert world.decide() is not None
    assert len(world.service.asked) == 2
    world.grant()
    assert world.service.settled == [("l0", 9)]
    world.now += 0.3
    assert world.decide() is not None


@pytest.mark.parametrize("epoch", [4, 0])
def test_a_newer_epoch_ends_it(world: World, epoch: int) -> None:
    """So does one that is not known; an older one does not, nor another account's."""
    world.heat()
    world.grant()
    world.leases.told("acme", 3)
    world.leases.told("other", 9)
    assert world.decide() is not None
    world.leases.told("acme", epoch)
    assert world.decide() is None
    assert world.service.settled == [("l0", 9)]


def test_one_that_comes_after_its_end_is_not_used(world: World) -> None:
    """Told of a change while the lease was on its way: it was granted by the state before."""
    world.heat()
    world.leases.told("acme", 4)
    world.grant(epoch=3)
    assert world.decide() is None
    assert world.service.settled == [("l0", 10)]


def test_a_verdict_of_a_newer_epoch_ends_it(world: World) -> None:
    """The service has said so, if only in passing."""
    world.heat()
    world.grant()
    world.leases.asked(CHECK, replace(YES, epoch=4))
    assert world.service.settled == [("l0", 10)]


def test_a_lost_answer_is_given_back_whole(world: World) -> None:
    """It may have been granted. And for a while nothing is asked."""
    world.heat()
    world.service.asked[0][1](None)
    assert world.service.settled == [("l0", 10**9)]
    world.heat()
    assert len(world.service.asked) == 1
    world.now += 1.1
    world.heat()
    assert len(world.service.asked) == 2


def test_a_refusal_is_heeded(world: World) -> None:
    """For as long as it says."""
    world.heat()
    refusal = pb.LeaseRefusal(reason=pb.LEASE_REFUSAL_REASON_OFF, retry_after=Duration(seconds=30))
    world.service.asked[0][1](pb.LeaseKeyResponse(refusal=refusal))
    world.now += 29
    world.heat()
    assert len(world.service.asked) == 1
    world.now += 2
    world.heat()
    assert len(world.service.asked) == 2


@pytest.mark.parametrize(
    "changes",
    [{"units": 0}, {"epoch": 0}, {"lease_id": ""}, {"duration": None}, {"rules": None}, {"rules_id": b"other"}],
)
def test_a_lease_that_makes_no_sense_decides_nothing(world: World, changes: dict[str, object]) -> None:
    """Empty and contradictory answers included: it goes back."""
    world.heat()
    if changes == {"rules_id": b"other"}:
        changes = {**changes, "rules": None}
    world.grant(**changes)  # type: ignore[arg-type]
    assert world.decide() is None
    assert world.service.settled == [("l0", 10**9)]
    world.now += 2
    world.heat()
    world.service.asked[-1][1](pb.LeaseKeyResponse())
    assert world.decide() is None


@pytest.mark.parametrize("where", ["lease", "limits", "duration", "rules", "key", "grants", "ceiling"])
def test_a_lease_of_a_later_contract_decides_nothing(world: World, where: str) -> None:
    """A field that is not known here may be what restricts: the service is asked."""
    world.heat()
    request, done = world.service.asked[-1]
    lease = pb.Lease(lease_id=request.lease_id, units=10, duration=Duration(seconds=1), epoch=3, rules_id=b"r1")
    lease.rules.CopyFrom(rules())
    lease.rules.ceiling.add(resource="*", level=LEVEL_READ)
    lease.limits.add(name="rate")
    parts: dict[str, Message] = {
        "lease": lease,
        "limits": lease.limits[0],
        "duration": lease.duration,
        "rules": lease.rules,
        "key": lease.rules.key,
        "grants": lease.rules.grants[0],
        "ceiling": lease.rules.ceiling[0],
    }
    parts[where].MergeFromString(bytes([0x9A, 0x06, 1, 120]))  # field 99: "x"
    done(pb.LeaseKeyResponse(lease=lease))
    assert world.decide() is None
    assert world.service.settled == [("l0", 10**9)]


def test_rules_of_a_later_contract_are_none() -> None:
    """Whoever reads them."""
    message = rules()
    assert LeasedRules(b"r1", message).reason(SHAPE) is Reason.OK
    message.MergeFromString(bytes([0x9A, 0x06, 1, 120]))
    with pytest.raises(BrokenAnswerError):
        LeasedRules(b"r1", message)


def test_what_is_allowed_here_is_noted_once_for_each_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the fail mode knows of it: what was asked, what was said, and from when that is. No denial is."""
    noted: list[tuple[Check, Verdict, float]] = []
    world = World(monkeypatch, lambda *each: noted.append(each))
    world.heat()
    world.grant()
    assert world.decide(11) is None
    for _ in range(3):
        assert world.decide(shape=(["forms.view"], ["forms/f2"], "", None, "", "", "")) is not None
        assert world.decide(shape=(("forms.edit",), ("forms/f1",), "", None, "", "", "")) is None
    assert noted == [(CHECK._replace(resources=("forms/f2",)), noted[0][1], 100.0)]
    assert noted[0][1].source is Source.LEASE
    world.now += 0.8
    world.leases.decide(KEY, None, (["forms.view"], ["forms/f2"], "", None, "", "", ""), 1)
    world.grant()
    assert world.decide(shape=(["forms.view"], ["forms/f2"], "", None, "", "", "")) is not None
    assert [began for _, _, began in noted] == [100.0, 100.8]


def test_without_threads_or_files_nothing_is_leased_and_no_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service has decided; what could not be made is tried again after a while."""
    world = World(monkeypatch)
    tried: list[float] = []

    def none(_: Leases) -> Service:
        tried.append(world.now)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(world.leases, "_make_service", none)
    world.heat(5)
    world.now += 9
    world.heat()
    assert tried == [100.0]
    monkeypatch.setattr(world.leases, "_make_service", lambda _: world.service)
    world.now += 2
    world.heat()
    world.grant()
    assert world.decide() is not None


def test_a_lease_that_can_not_be_asked_for_fails_no_check(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been asked for: it goes back, and another is asked for later."""

    def acquire(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(world.service, "acquire", acquire)
    world.heat(5)
    assert world.service.settled == [("l0", 10**9)]
    monkeypatch.undo()
    monkeypatch.setattr(lease_module, "monotonic", lambda: 102.0)
    world.heat()
    assert len(world.service.asked) == 1


def test_at_exit_what_nobody_closed_goes_back(world: World) -> None:
    """Of every client: it is charged already."""
    world.heat()
    world.grant()
    assert world.decide() is not None
    lease_module._close_all()
    assert world.service.settled == [("l0", 9)]
    assert world.service.closed
    assert world.leases not in lease_module._open


def test_a_denial_is_the_service_s_until_its_words_are_known(world: World) -> None:
    """And kept no longer than the lease; one that the rules do not deny is never kept."""
    world.heat()
    world.grant()
    shape: Shape = (("forms.edit",), ("forms/f1",), "", None, "", "", "")
    check = CHECK._replace(permissions=("forms.edit",))
    assert world.decide(shape=shape) is None
    denied = replace(YES, allowed=False, reason=Reason.PERMISSION_DENIED, message="no", http_status=403)
    world.leases.asked(check, replace(denied, epoch=2))
    assert world.decide(shape=shape) is None
    world.leases.asked(CHECK, replace(denied, reason=Reason.RATE_LIMITED))
    world.leases.asked(check, denied)
    assert world.decide(shape=shape) == replace(denied, source=Source.LEASE)
    assert world.decide() is not None
    world.now += 2
    assert world.decide(shape=shape) is None


def test_closed_or_forked_it_decides_nothing(world: World) -> None:
    """Closing gives back; a child has nothing to give back."""
    world.heat()
    world.grant()
    world.leases.after_fork()
    assert world.decide() is None
    assert world.service.settled == []
    world.heat()
    world.grant()
    world.leases.close()
    assert world.decide() is None
    assert world.service.settled == [("l1", 10)]
    assert world.service.closed
    world.heat()
    assert len(world.service.asked) == 2


def test_keys_that_nobody_asks_for_are_forgotten(world: World) -> None:
    """With their account, where it was the last one."""
    world.heat()
    world.grant()
    world.now += 1
    world.leases.tidy()
    world.now += 11
    world.leases.tidy()
    assert world.service.watched == []
    assert repr(world.leases) == "Leases(0 keys)"


def test_no_lease_decides_after_its_end_whoever_renews_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that had read a lease and then stood still meets that lease's end, though the key has another by now."""
    world.heat()
    world.grant()
    monkeypatch.setattr(world.leases, "_finished", lambda *_: None)  # the other thread has not got to it yet

    def late() -> float:
        monkeypatch.setattr(lease_module, "monotonic", lambda: world.now)
        world.now += 0.8
        assert world.decide() is not None  # which asks for the next one
        world.grant()
        world.now += 0.3
        return world.now

    monkeypatch.setattr(lease_module, "monotonic", late)
    assert world.decide() is None
    assert len(world.service.asked) == 2
    assert world.decide() is not None


def test_an_account_whose_leases_are_refused_is_not_watched_for_ever(world: World) -> None:
    """Nor is an epoch kept of one of which no key is held."""
    world.heat()
    refusal = pb.LeaseRefusal(reason=pb.LEASE_REFUSAL_REASON_OFF, retry_after=Duration(seconds=1))
    world.service.asked[0][1](pb.LeaseKeyResponse(refusal=refusal))
    world.leases.told("acme", 3)
    world.now += 11
    world.leases.tidy()
    world.leases.told("acme", 4)
    assert world.service.watched == []
    assert world.leases._epochs == {}


def test_what_can_not_be_watched_is_not_leased(world: World) -> None:
    """Nobody would tell when to stop. It is tried again, not with each check."""
    world.service.most = 0
    world.heat(5)
    assert world.service.asked == []
    world.service.most = 1
    world.heat()
    assert world.service.asked == []
    world.now += 1
    world.heat()
    assert len(world.service.asked) == 1


def test_a_key_has_few_headers(world: World) -> None:
    """However many spaces a caller's user puts before it, or how many keys: what is kept is bounded."""
    for number in range(1, 100):
        world.leases.asked(Check(authorization="Bearer" + " " * number + KEY), YES)
        world.leases.asked(Check(authorization="Bearer" + " " * 1_000 + f"other{number}"), YES)
    assert len(world.leases._by_authorization) == 4


def test_time_goes_on_while_the_machine_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are counted by the clock that says so, where there is one; else by the one that never jumps back."""
    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 7, raising=False)
    monkeypatch.setattr(time, "clock_gettime", lambda which: {7: 1_234.5}[which], raising=False)
    assert clock_module.clock()() == 1_234.5
    monkeypatch.setattr(time, "CLOCK_BOOTTIME", None)
    assert clock_module.clock() is time.monotonic

    def none(_: int) -> float:
        raise OSError

    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 7)
    monkeypatch.setattr(time, "clock_gettime", none)
    assert clock_module.clock() is time.monotonic


def test_the_clock_is_that_of_all_that_ends() -> None:
    """Leases, and what the fallback knows."""
    assert lease_module.monotonic is clock_module.monotonic  # type: ignore[attr-defined]
    assert Fallback.__init__.__defaults__ is not None
    assert clock_module.monotonic in Fallback.__init__.__defaults__
