"""Where a request comes from: the peer's address, or what proxies say that are trusted; a header alone is nothing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from formgate.rules.addresses import AddressRules, parse_address

UNIX = "unix"
"""A trusted "proxy": whoever connects by a Unix socket, which has no address."""

_MOST_HOPS = 32


class TrustedProxies:
    """Single addresses, blocks, ``10.1.*.*`` as in a key's address rules, and ``unix``. Empty: none, the default."""

    __slots__ = ("_rules", "_unix")

    def __init__(self, rules: Iterable[str] = ()) -> None:
        """Raises ValueError for a rule that is none."""
        given = [rules] if isinstance(rules, str) else list(rules)
        self._unix = UNIX in given
        addresses = [rule for rule in given if rule != UNIX]
        self._rules = AddressRules(addresses) if addresses else None

    def client(self, peer: str, forwarded_for: str) -> str:
        """Return the client's address; empty: not known, so that keys with address rules are denied.

        ``forwarded_for`` is the value of X-Forwarded-For, all of them joined by commas. Each proxy adds to its end whom
        it saw: read from there, whatever stands before the first address that is not trusted may be made up. So may one
        that is behind more trusted ones than anybody has.
        """
        address = readable(peer)
        if not forwarded_for or not self._trusts(address, peer):
            return address
        hops = forwarded_for.rsplit(",", _MOST_HOPS)
        for last in reversed(hops[-_MOST_HOPS:]):
            address = readable(_without_port(last.strip(" \t")))
            if not address or not self._trusts(address, address):
                return address
        return address if len(hops) <= _MOST_HOPS else ""

    def _trusts(self, address: str, peer: str) -> bool:
        if not peer:
            return self._unix
        return bool(address) and self._rules is not None and self._rules.allow(address)


_LONGEST = 64
"""Characters: an address has 45 at most."""


def readable(text: str) -> str:
    """Return an address if ``text`` is one that the service can read, else nothing."""
    return _readable(text) if len(text) <= _LONGEST else ""  # what is kept is bounded, too


@lru_cache(maxsize=4_096)
def _readable(text: str) -> str:
    try:
        parse_address(text)
    except ValueError:
        return ""
    return text


def _without_port(text: str) -> str:
    """Take off the port that some proxies write: ``192.0.2.1:4711``, ``[2001:db8::1]:4711``."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    host, colon, port = text.partition(":")
    return host if colon and port.isdecimal() and port.isascii() and "." in host else text
