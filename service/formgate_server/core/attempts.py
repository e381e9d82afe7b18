"""How many keys may be asked for that nobody has: of each source address, and of all together.

An allowance refills all the time, at its rate, up to its burst. So what an address, or everybody, has used up is one
number: the instant from which on nothing is used up (the generic cell rate algorithm, ITU-T I.371).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from formgate.rules.addresses import parse_address

_SECOND = 1_000_000_000  # all times here are nanoseconds
_MINUTE = 60 * _SECOND
_MICROSECOND = 1_000
_MOST_ADDRESSES = 20_000
_MOST_AT_ONCE = 32
_V6_HOST_BITS = 64  # who has one address of a /64 has all of them
_V4_BITS = 32
_NAT64 = 0x64_FF9B << 64  # above an IPv4 address under 64:ff9b::/96: RFC 6052, 2.1


class _Allowance(NamedTuple):
    """One more every ``interval`` nanoseconds, and ``burst`` at once: at least 1."""

    interval: int
    burst: int

    def wait(self, empty_at: int, now: int) -> int:
        """Return the nanoseconds until one more may be spent; 0 or less: now."""
        return empty_at - now - (self.burst - 1) * self.interval

    def spend(self, empty_at: int, now: int) -> int:
        """Return from when on nothing is used up, with one more spent. It may be overdrawn: that is paid back first."""
        return max(empty_at, now) + self.interval


class Attempts:
    """Counts keys that were looked for and not found. It costs a look-up to know one, so this is asked before.

    **Of each address** ``per_address`` a minute, as many at once. An IPv6 address counts for its /64; one that embeds
    an IPv4 address, as that. None: addresses are not counted. The table of addresses is bounded: who was there least
    recently leaves.

    **Of all** ``in_all`` a second. In no t seconds more than ``in_all`` * (t + 2) are spent, if never more than
    ``at_once`` look-ups are under way that ``exhausted`` let through. Those without an address may use half of it:
    nobody can be told off for them, and they shall not be in the way of who has one.
    """

    def __init__(self, monotonic_ns: Callable[[], int], *, per_address: int | None, in_all: int) -> None:
        self.at_once = min(_MOST_AT_ONCE, in_all)
        """How many keys that are not known may be looked for at the same time."""
        self._now = monotonic_ns
        self._of_each = None if per_address is None else _Allowance(-(-_MINUTE // per_address), per_address)
        burst = 2 * in_all - self.at_once  # those under way may all be spent after the last was let through
        self._of_all = _Allowance(-(-_SECOND // in_all), burst)
        self._of_nobody = _Allowance(2 * self._of_all.interval, -(-burst // 2))
        self._addresses: OrderedDict[int, int] = OrderedDict()  # a dict takes ever longer to tell its first
        self._all = self._nobody = monotonic_ns()

    def __len__(self) -> int:
        """Return how many addresses are remembered."""
        return len(self._addresses)

    def retry_after(self, source_ip: str) -> int | None:
        """Return when the address may try once more, in microseconds from now; None: it may now."""
        if self._of_each is None or not source_ip:
            return None
        empty_at = self._addresses.get(_block(source_ip))
        if empty_at is None:
            return None
        wait = self._of_each.wait(empty_at, self._now())
        return -(-wait // _MICROSECOND) if wait > 0 else None

    def exhausted(self, source_ip: str) -> bool:
        """Tell whether there is nothing left of what all have together."""
        now = self._now()
        if self._of_all.wait(self._all, now) > 0:
            return True
        return not source_ip and self._of_nobody.wait(self._nobody, now) > 0

    def spend_look_up(self, source_ip: str) -> None:
        """Count a look-up that found no key, or broke off."""
        now = self._now()
        self._all = self._of_all.spend(self._all, now)
        if not source_ip:
            self._nobody = self._of_nobody.spend(self._nobody, now)

    def spend_attempt(self, source_ip: str) -> None:
        """Count a key that there is not against the address that showed it."""
        if self._of_each is None or not source_ip:
            return
        now = self._now()
        block = _block(source_ip)
        self._addresses[block] = self._of_each.spend(self._addresses.pop(block, now), now)
        self._forget(now)

    def _forget(self, now: int) -> None:
        """Let go of the two that were there least recently, if they have nothing used up or are too many."""
        for _ in range(2):  # one comes, two may leave
            oldest = next(iter(self._addresses))
            if self._addresses[oldest] > now and len(self._addresses) <= _MOST_ADDRESSES:
                return
            del self._addresses[oldest]


def _block(source_ip: str) -> int:
    """Return a number for all the addresses that are most likely one party's."""
    bits, number = parse_address(source_ip)
    if bits == _V4_BITS:
        return number
    if number >> _V4_BITS == _NAT64:
        return number & 0xFFFF_FFFF
    return 1 << _V6_HOST_BITS | number >> _V6_HOST_BITS
