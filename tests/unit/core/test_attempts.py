"""How many unknown keys may be asked for: of each address, and of all."""

from __future__ import annotations

import sys
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formgate_server.core import attempts
from formgate_server.core.attempts import Attempts

HERE, THERE = "192.0.2.1", "192.0.2.2"


class Seconds:
    """A monotonic clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> int:
        """Return nanoseconds."""
        return round(self.now * 1e9)


def spend(counted: Attempts, source_ip: str, number: int = 1) -> None:
    """Show so many keys that there are not."""
    for _ in range(number):
        counted.spend_look_up(source_ip)
        counted.spend_attempt(source_ip)


def test_an_address_has_its_attempts_and_then_waits() -> None:
    """At once as many as a minute has; then it is told when one more is there, and no later."""
    clock = Seconds()
    counted = Attempts(clock, per_address=30, in_all=200)
    spend(counted, HERE, 29)
    assert counted.retry_after(HERE) is None
    spend(counted, HERE)
    after = counted.retry_after(HERE)
    assert after == 2_000_000
    assert counted.retry_after(THERE) is None
    clock.now += 1.999_999
    assert counted.retry_after(HERE) == 1
    clock.now += 0.000_001
    assert counted.retry_after(HERE) is None


def test_a_minute_later_all_is_as_before() -> None:
    """Nothing is held against an address for longer, and nothing is saved up for it either."""
    clock = Seconds()
    counted = Attempts(clock, per_address=30, in_all=200)
    for pause in (60, 600):
        spend(counted, HERE, 30)
        assert counted.retry_after(HERE) is not None
        clock.now += pause
        spend(counted, HERE, 29)
        assert counted.retry_after(HERE) is None
        clock.now += 60


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "64:ff9b::192.0.2.1", True),
        ("64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::1", "0.0.0.0", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("::", "0.0.0.0", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:  # noqa: FBT001 - a column of a table
    """An IPv4 address however it is written; of IPv6 the /64, because who has one address of it has all."""
    counted = Attempts(Seconds(), per_address=1, in_all=200)
    spend(counted, one)
    assert counted.retry_after(one) is not None
    assert (counted.retry_after(other) is not None) == same


def test_without_an_address_nobody_is_told_off() -> None:
    """They share half of what all have, and then are undecided; who has an address goes on."""
    counted = Attempts(clock := Seconds(), per_address=30, in_all=200)
    spent = 0
    while not counted.exhausted(""):
        spend(counted, "")
        spent += 1
    assert spent == 200 - counted.at_once // 2
    assert counted.retry_after("") is None
    assert not counted.exhausted(HERE)
    assert len(counted) == 0
    clock.now += 1
    assert not counted.exhausted("")


def test_addresses_may_go_uncounted() -> None:
    """Where there is no budget for them; that of all holds."""
    counted = Attempts(Seconds(), per_address=None, in_all=10)
    spend(counted, HERE, 10_000)
    assert counted.retry_after(HERE) is None
    assert len(counted) == 0
    assert counted.exhausted(HERE)


@given(
    in_all=st.integers(1, 300),
    pauses=st.lists(st.floats(0, 0.2) | st.just(0.0), min_size=1, max_size=400),
    addressed=st.booleans(),
)
def test_no_interval_has_more_than_it_may(in_all: int, pauses: list[float], addressed: bool) -> None:  # noqa: FBT001 - drawn
    """In any t seconds at most in_all * (t + 2) are spent, also when as many as may be under way end at once."""
    counted = Attempts(clock := Seconds(), per_address=None, in_all=in_all)
    address = HERE if addressed else ""
    spent: list[float] = []
    for pause in pauses:
        clock.now += pause
        let_through = sum(not counted.exhausted(address) for _ in range(counted.at_once))
        for _ in range(let_through):
            counted.spend_look_up(address)
            spent.append(clock.now)
    for first, begin in enumerate(spent):
        for last in range(first, len(spent), 7):
            assert last - first + 1 <= in_all * (spent[last] - begin + 2) + 1e-3


def test_it_refills_at_its_rate() -> None:
    """Whoever asks all the time gets as many as are promised: it is no tighter than it says."""
    counted = Attempts(clock := Seconds(), per_address=None, in_all=200)
    spend(counted, HERE, 400)
    clock.now += 2  # some were overdrawn
    spent = []
    for _ in range(10_000):
        clock.now += 0.001
        if not counted.exhausted(HERE):
            spend(counted, HERE)
            spent.append(clock.now)
    assert 10 * 200 <= len(spent) <= 12 * 200
    assert max(later - earlier for earlier, later in pairwise(spent)) < 0.0061


def test_a_hundred_thousand_addresses_fill_no_memory() -> None:
    """The table has a bound, and weighs some megabytes; who was there last is still in it, and none stays for ever."""
    counted = Attempts(clock := Seconds(), per_address=1, in_all=200)
    tracemalloc.start()
    for number in range(100_000):
        counted.spend_attempt(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1")
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(counted) == attempts._MOST_ADDRESSES
    assert grown < 6_000_000, f"{grown} bytes on Python {sys.version}"
    assert counted.retry_after("2001:db8:1:869f::1") is not None
    assert counted.retry_after("2001:db8:0:0::1") is None  # it has left
    clock.now += 61
    for number in range(attempts._MOST_ADDRESSES):
        counted.spend_attempt(HERE)
        assert len(counted) <= attempts._MOST_ADDRESSES - number or len(counted) == 1
    assert len(counted) == 1


def test_who_is_there_again_leaves_last() -> None:
    """A flood of other addresses does not make one be forgotten that goes on all the time."""
    counted = Attempts(Seconds(), per_address=1, in_all=200)
    others = iter(range(1 << 24))
    for _ in range(2):
        spend(counted, HERE)
        for _ in range(attempts._MOST_ADDRESSES * 3 // 4):
            number = next(others)
            spend(counted, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert counted.retry_after(HERE) is not None
