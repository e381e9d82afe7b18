"""A process that may not have heard of all changes asks the database on every check."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from formgate_server.core.fields import LARGEST
from formgate_server.core.freshness import Freshness
from formgate_server.core.verdict import KeyRecord
from formgate_server.storage.degraded import FreshKeys

ASKED = list[tuple[str, int, bool]]


class Keys:
    """A finder and the cache below it, which write down who is asked, and for which epoch."""

    def __init__(self, *, cached: bool) -> None:
        self.cached = cached
        self.asked: ASKED = []

    def known(self, digests: Sequence[bytes]) -> KeyRecord | None:
        """See ``KeyCache``; any record does."""
        return object() if self.cached else None  # type: ignore[return-value]


class Cache(Keys):
    """The KeyCache port."""

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:
        """See ``KeyStore``."""
        self.asked.append(("database", at_least, True))
        return None


class Finder:
    """The KeyFinder port."""

    def __init__(self, cache: Cache) -> None:
        self.asked = cache.asked
        self.known = cache.known

    async def find(
        self, digests: Sequence[bytes], *, at_least: int = 0, source_ip: str = "", newest: bool = False
    ) -> KeyRecord | None:
        """See ``KeyFinder``."""
        self.asked.append((source_ip, at_least, newest))
        return None


@pytest.mark.parametrize(
    ("age", "database_up", "cached", "asked"),
    [
        (29, True, True, ("192.0.2.1", 7, False)),
        (31, True, True, ("database", LARGEST, True)),
        (31, True, False, ("192.0.2.1", 7, True)),  # it will be read anyway, and counts as an attempt
        (31, False, True, ("192.0.2.1", 7, False)),  # by the epochs in Redis, as long as the grace lasts
    ],
)
async def test_who_is_asked(*, age: int, database_up: bool, cached: bool, asked: tuple[str, int, bool]) -> None:
    """By the age of the last poll that published all, and by whether the database can be asked."""
    seconds = [0.0]
    freshness = Freshness(lambda: seconds[0], max_staleness=30, database_grace=600)
    if not database_up:
        freshness.lost()
    seconds[0] = age
    cache = Cache(cached=cached)
    keys = FreshKeys(Finder(cache), cache, freshness)
    at_hand = keys.known([b"digest"]) is not None
    assert at_hand is (cached and asked[0] != "database")
    await keys.find([b"digest"], at_least=7, source_ip="192.0.2.1")
    assert cache.asked == [asked]
