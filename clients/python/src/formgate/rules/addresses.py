"""Whence a key may be used: single addresses, CIDR blocks, and ``*`` for any octet of an IPv4 address.

An IPv4-mapped IPv6 address is its IPv4 address. Whatever two parsers could read differently is refused: host bits in a
block, zone ids, leading zeros, octal, hexadecimal.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

_V4_BITS, _V6_BITS = 32, 128
_MAPPED = 0xFFFF  # what an IPv4-mapped address has above its IPv4 address: RFC 4291, 2.5.5.2
_LONGEST = len("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128")
_OCTET = re.compile(r"\*|0|[1-9][0-9]{0,2}", re.ASCII)


def parse_address(text: str) -> tuple[int, int]:
    """Read an address: (32 or 128 bits, the number it is). Raises ValueError where it is none."""
    try:
        if ":" not in text:
            return _V4_BITS, int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big")
        number = int.from_bytes(socket.inet_pton(socket.AF_INET6, text), "big")
    except (OSError, ValueError):
        message = "is not an IPv4 or IPv6 address"
        raise ValueError(message) from None
    if number >> _V4_BITS == _MAPPED:
        return _V4_BITS, number & 0xFFFF_FFFF
    return _V6_BITS, number


def parse_rule(text: str) -> tuple[int, int, int]:
    """Read a rule: (32 or 128 bits, mask, the number that an address has under the mask).

    Raises ValueError saying why it is none.
    """
    if len(text) > _LONGEST:
        message = "is too long for an address"
        raise ValueError(message)
    if "*" in text:
        return _parse_wildcard(text)
    address, slash, length = text.partition("/")
    bits, number = parse_address(address)
    prefix = bits
    if slash:
        written = _V4_BITS if ":" not in address else _V6_BITS
        if not re.fullmatch(r"0|[1-9][0-9]{0,2}", length, re.ASCII) or int(length) > written:
            message = f"has a prefix length that is not 0 to {written}"
            raise ValueError(message)
        prefix = int(length) - (written - bits)
        if prefix < 0:
            message = "is a block of more than the IPv4-mapped addresses; give the IPv4 block"
            raise ValueError(message)
    mask = ((1 << prefix) - 1) << (bits - prefix)
    if number & ~mask:
        base = (ipaddress.IPv4Address if bits == _V4_BITS else ipaddress.IPv6Address)(number & mask)
        message = f"has host bits set; the block is {base}/{prefix}"
        raise ValueError(message)
    return bits, mask, number


def _parse_wildcard(text: str) -> tuple[int, int, int]:
    octets = text.split(".")
    if len(octets) != 4 or not all(_OCTET.fullmatch(octet) for octet in octets):  # noqa: PLR2004 - an IPv4 address
        message = "is not an IPv4 address with `*` for whole octets, such as 10.1.*.*"
        raise ValueError(message)
    mask = number = 0
    for octet in octets:
        known = octet != "*"
        mask = mask << 8 | (0xFF if known else 0)
        number = number << 8 | (int(octet) if known else 0)
        if known and int(octet) > 0xFF:  # noqa: PLR2004 - an octet
            message = "has an octet above 255"
            raise ValueError(message)
    return _V4_BITS, mask, number


class AddressRules:
    """Rules compiled: the cost of a question does not grow with their number.

    What is one range of addresses (a single one, a block, `10.1.*.*`) is found by bisection. For what is not, as
    `10.*.*.1`, the address is looked up once for each different mask: there are eleven.
    """

    __slots__ = ("_v4", "_v6")

    def __init__(self, rules: Iterable[str]) -> None:
        """Compile ``rules``. Raises ValueError for one that is none."""
        parsed = [parse_rule(rule) for rule in rules]
        self._v4 = _compiled(_V4_BITS, [(mask, number) for bits, mask, number in parsed if bits == _V4_BITS])
        self._v6 = _compiled(_V6_BITS, [(mask, number) for bits, mask, number in parsed if bits == _V6_BITS])

    def allow(self, address: str) -> bool:
        """Tell whether ``address`` is under any of the rules; one that can not be read is not."""
        try:
            bits, number = parse_address(address)
        except ValueError:
            return False
        starts, ends, masks = self._v4 if bits == _V4_BITS else self._v6
        at = bisect_right(starts, number)
        if at and number <= ends[at - 1]:
            return True
        for mask, numbers in masks:  # noqa: SIM110 - any() takes three times as long
            if number & mask in numbers:
                return True
        return False


class _Compiled(NamedTuple):
    starts: tuple[int, ...]
    """Where ranges that do not overlap begin, rising."""
    ends: tuple[int, ...]
    """The last address of each."""
    masks: tuple[tuple[int, frozenset[int]], ...]


def _compiled(bits: int, rules: Iterable[tuple[int, int]]) -> _Compiled:
    ranges: list[tuple[int, int]] = []
    masks: dict[int, set[int]] = {}
    for mask, number in sorted(rules, key=lambda rule: rule[1]):
        free = (1 << bits) - 1 ^ mask
        if free & (free + 1):  # the free bits are not the last ones
            masks.setdefault(mask, set()).add(number)
        elif ranges and number <= ranges[-1][1]:
            ranges[-1] = ranges[-1][0], max(ranges[-1][1], number | free)
        else:
            ranges.append((number, number | free))
    return _Compiled(
        tuple(start for start, _ in ranges),
        tuple(end for _, end in ranges),
        tuple((mask, frozenset(numbers)) for mask, numbers in masks.items()),
    )
