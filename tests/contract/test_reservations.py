from __future__ import annotations

import asyncio

from formgate_server.core.calendar import FOREVER
from formgate_server.core.limits import Span, Window
from formgate_server.core.ports import Reserved
from tests.support.stores import Stores

WINDOW = Reserved(Window(29_000_000, 61, 1_831, tuple(range(60))), 12)
SPAN = Reserved(Span(1_790_000_000_000_000, 7), 10)


async def test_a_mark_comes_back_as_it_was(stores: Stores) -> None:
    """Windows and spans, also such as have been charged beyond any amount."""
    beyond = Reserved(Span(FOREVER, 2**63 + 5), 2**62)
    marks = {"acme/k1/rate/600000000us": WINDOW, "acme/daily/day": SPAN, "acme/credits/lifetime": beyond}
    await stores.reservations.save(marks)
    assert await stores.reservations.load(set(marks)) == marks


async def test_what_was_never_marked_is_left_out(stores: Stores) -> None:
    """Only the marks that there are."""
    await stores.reservations.save({"a": SPAN})
    assert await stores.reservations.load(["a", "b"]) == {"a": SPAN}
    assert await stores.reservations.load(["b"]) == {}
    assert await stores.reservations.load([]) == {}


async def test_a_later_mark_replaces_an_earlier(stores: Stores) -> None:
    """Each its own counter's, whatever it was, and no other."""
    await stores.reservations.save({"a": SPAN, "b": SPAN})
    await stores.reservations.save({"a": WINDOW})
    await stores.reservations.save({})
    assert await stores.reservations.load(["a", "b"]) == {"a": WINDOW, "b": SPAN}


async def test_many_at_once(stores: Stores) -> None:
    """As many as a server has counters, in one call."""
    marks = {f"counter/{number}": Reserved(Span(number, number), number) for number in range(3_000)}
    await asyncio.gather(stores.reservations.save(marks), stores.reservations.save({"another": WINDOW}))
    assert await stores.reservations.load(list(marks)) == marks


async def test_marks_only_advance(stores: Stores) -> None:
    """Of several processes' marks the one with the highest serial stays, in whatever order they come; each is told."""
    first, second, third = (SPAN._replace(serial=serial, ahead=serial) for serial in (5, 7, 7))
    assert set(await stores.reservations.advance({"a": second, "b": first})) == {"a", "b"}
    assert set(await stores.reservations.advance({"a": first, "b": second})) == {"b"}
    assert set(await stores.reservations.advance({"a": third})) == set()
    assert set(await stores.reservations.advance({})) == set()
    assert await stores.reservations.load(["a", "b"]) == {"a": second, "b": second}


async def test_a_mark_of_an_earlier_period_replaces_none_of_a_later(stores: Stores) -> None:
    """Whatever its serial; unless it is insisted on, as where the clock has gone back. No end is after any other."""
    earlier, later, endless = (
        SPAN._replace(serial=serial, expire_time=end) for serial, end in ((9, 10), (5, 20), (12, None))
    )
    assert set(await stores.reservations.advance({"a": later, "b": later})) == {"a", "b"}
    assert set(await stores.reservations.advance({"a": earlier})) == set()
    assert await stores.reservations.load(["a"]) == {"a": later}
    assert set(await stores.reservations.advance({"a": earlier}, insist=True)) == {"a"}
    assert set(await stores.reservations.advance({"b": endless})) == {"b"}
    assert set(await stores.reservations.advance({"b": earlier._replace(serial=13)})) == {"b"}


async def test_of_many_at_once_the_highest_stays(stores: Stores) -> None:
    """Whoever was told that its mark was written wrote a higher one than was there."""
    marks = [SPAN._replace(serial=serial) for serial in (3, 9, 1, 7, 5)]
    told = await asyncio.gather(*(stores.reservations.advance({"a": mark}) for mark in marks))
    assert "a" in told[1]
    assert await stores.reservations.load(["a"]) == {"a": marks[1]}


async def test_marks_that_are_over_are_forgotten(stores: Stores) -> None:
    """Those with an end before the moment, so many at a time; others stay, and so do those without an end."""
    marks = {f"c{end}": SPAN._replace(expire_time=end) for end in (10, 20, 30, 40)} | {"for ever": SPAN}
    await stores.reservations.save(marks)
    assert await stores.reservations.forget(30, 1) == 1
    assert await stores.reservations.forget(30, 10) == 1
    assert await stores.reservations.forget(30, 10) == 0
    assert await stores.reservations.load(list(marks)) == {each: marks[each] for each in ("c30", "c40", "for ever")}
