"""Counters as the scripts take them, and as they tell them (scripts/prelude.lua)."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from formgate_server.core.calendar import FOREVER, Bounds, bounds
from formgate_server.core.limits import (
    LONGEST_PERIOD,
    SUB_WINDOWS,
    Counter,
    Span,
    Standing,
    State,
    Window,
    block,
    leaves_at,
    outlives_its_store,
    standing,
)
from formgate_server.core.model import Calendar, Holder, Lifetime, Limit, Period, Rolling
from formgate_server.core.ports import Clock
from formgate_server.core.quick import made

PREFIX = "fg"
"""With which all keys begin."""
MOST = 2**52
"""Where counts end in Redis: its numbers are exact to twice that. Larger amounts are taken for this one."""

_EMPTY = (0,) * SUB_WINDOWS

Words = list[str | bytes | int]


class Status(IntEnum):
    """How the scripts answer. Numbered as in scripts/prelude.lua."""

    CHARGED = 0
    DENIED = 1
    KNOWN = 2
    MOVED = 3
    MISSING = 4
    CLOCK = 5
    LOAD = 6
    MARK = 7
    FAILED = 8


class RedisTime:
    """The time in Redis, as far as it is known here: only calendar periods are looked up by it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead = 0

    def now(self) -> int:
        """Return about what Redis would say."""
        return self._clock.now() + self._ahead

    def told(self, now: int) -> None:
        """Take what Redis has said, where it mattered."""
        self._ahead = now - self._clock.now()


class Plan:
    """The counters of a charge: how the scripts take them, and how their replies are read."""

    __slots__ = (
        "_as_given",
        "_asked",
        "_end",
        "_packed",
        "_places",
        "_read",
        "_remembered",
        "_reply",
        "_start",
        "_uncounted",
        "_word",
        "account_id",
        "account_key",
        "counted",
        "counters",
        "durable",
        "keys",
    )

    def __init__(self, account_id: str, counters: tuple[Counter, ...], account_key: str) -> None:
        self.account_id = account_id
        self.account_key = account_key
        self.counters = counters
        """As they were given: while they are, no others have their identity."""
        self.counted = tuple(_within_most(each) for each in counters if each.limit.amount is not None)
        """Those that are counted: an unlimited one is not."""
        self.keys = tuple(counter_key(account_key, each) for each in self.counted)
        self.durable = tuple(outlives_its_store(each.limit) and max(block(each.limit) // 2, 1) for each in self.counted)
        """Of each that outlives Redis, how many units must be left under its mark for it not to be raised; else 0."""
        self._as_given = [each.limit for each in counters if each.limit.amount is not None]
        self._read = [
            (isinstance(each.limit.per, Rolling), as_given, each.limit.amount or 0, enough)
            for each, as_given, enough in zip(self.counted, self._as_given, self.durable, strict=True)
        ]
        self._places = [index for index, each in enumerate(counters) if each.limit.amount is not None]
        self._uncounted = [Standing(each.limit, 0, None) for each in counters]
        self._reply = _reply_form(tuple(rolls for rolls, *_ in self._read))
        """What a packed reply is made of."""
        self._packed = b""
        self._asked: tuple[str, int, int, int] | None = None
        self._word = b""
        """The word of the last check that was asked for: most are as the one before."""
        self._remembered = ""
        self._start, self._end = 0, 0
        """When what is packed holds."""

    def packed(self, now: int) -> bytes:
        """Return the counters, packed for a script that runs now."""
        if not self._start <= now < self._end:
            start, end = 0, FOREVER
            for counter in self.counted:
                if isinstance(counter.limit.per, Calendar):
                    within = bounds(counter.limit.per.period, counter.zone, now)
                    start, end = max(start, within.start), min(end, within.end)
            self._packed, self._asked = packed(self.counted, now), None
            self._start, self._end = start, end  # last: all of it, or nothing
        return self._packed

    def word(self, now: int, what: str, cost: int, kept: int, epoch: int) -> bytes:
        """Return a check of the counters as charge.lua takes it, remembered for ``kept`` milliseconds (0: not)."""
        counters = self.packed(now)
        asked = what, cost, kept, epoch
        if asked != self._asked:
            self._word = struct.pack("<c2d", what.encode(), cost, kept) + b"%d\0" % epoch + counters
            self._asked = asked
        return self._word

    @property
    def remembered(self) -> str:
        """What is kept with an admission, for its refund."""
        if not self._remembered:
            self._remembered = "\n".join(map(_remembered_word, self.counted))
        return self._remembered

    def told(self, reply: Sequence[Any]) -> tuple[tuple[Standing, ...], list[int]]:
        """Tell where all counters stand, and which of the counted ones should have their marks raised."""
        if type(reply) is bytes:
            reply = self._reply.unpack(reply)
        standings: list[Standing] = []
        short: list[int] = []
        at = 1
        for index, (rolls, as_given, amount, enough) in enumerate(self._read):
            reset = None
            if rolls:
                head, newest, used, room, ring = reply[at : at + 5]
                at += 5
                if newest:
                    reset = leaves_at(as_given, head)
                elif used:
                    reset = standing(self.counted[index], Window(head, 0, used, tuple(ring))).reset_time
            else:
                end, used, room = reply[at : at + 3]
                at += 3
                if used:
                    reset = end or None
            left = amount - used
            standings.append(made(Standing, (as_given, left if left > 0 else 0, reset)))  # noqa: FURB136 - hot
            if room < enough and room < left:
                short.append(index)
        if len(standings) == len(self.counters):
            return tuple(standings), short
        told = list(self._uncounted)
        for place, one in zip(self._places, standings, strict=True):
            told[place] = one
        return tuple(told), short

    def states(self, reply: Sequence[Any]) -> list[State]:
        """Return the counted counters' states, up to now."""
        states: list[State] = []
        at = 1
        for counter in self.counted:
            if isinstance(counter.limit.per, Rolling):
                head, newest, used, _, ring = reply[at : at + 5]
                at += 5
                states.append(Window(head, newest, used, tuple(ring) if ring else _EMPTY))
            else:
                end, used, _ = reply[at : at + 3]
                at += 3
                states.append(Span(end or FOREVER, used))
        return states

    def limit(self, counted: Limit) -> Limit:
        """Return a limit of ``counted`` as it was given."""
        return self._as_given[[each.limit for each in self.counted].index(counted)]


@lru_cache(maxsize=1_024)
def _reply_form(rolling: tuple[bool, ...]) -> struct.Struct:
    """Return how charge.lua packs a reply: a status, then five numbers for each window, three for each span."""
    return struct.Struct("<b" + "".join("5q" if each else "3q" for each in rolling))


def account_key(prefix: str, account_id: str) -> str:
    """Return the key of an account, with which those of all that is its begin."""
    return f"{prefix}:{{{account_id}}}"


@lru_cache(maxsize=1_024)
def account_word(checks: int, keys: int, words: int) -> bytes:
    """Return how many checks, keys and words of an account go in a call, as charge.lua takes it."""
    return struct.pack("<3d", checks, keys, words)


def counter_key(of_account: str, counter: Counter) -> str:
    """Return a counter's key."""
    return f"{of_account}:c:{counter.id}"


def _within_most(counter: Counter) -> Counter:
    amount = counter.limit.amount
    if amount is None or amount <= MOST:
        return counter
    return counter._replace(limit=replace(counter.limit, amount=MOST))


def packed(counters: Sequence[Counter], now: int) -> bytes:
    """Return counters as the scripts take them in one word; their calendar periods are those of ``now``."""
    return b"".join(_packed_one(each, now) for each in counters)


def _packed_one(counter: Counter, now: int) -> bytes:
    amount = counter.limit.amount or 0
    match counter.limit.per:
        case Rolling(window):
            return struct.pack("<c2d", b"2" if outlives_its_store(counter.limit) else b"1", amount, window)
        case Calendar(period):
            found: Bounds = bounds(period, counter.zone, now)
            return struct.pack("<c5d", b"3", amount, LONGEST_PERIOD[period], *found)
        case Lifetime():
            return struct.pack("<c2d", b"4", amount, 0)


def state_of(counter: Counter, told: Sequence[Any]) -> State:
    """Return a state as reserve.lua tells it."""
    if isinstance(counter.limit.per, Rolling):
        head, newest, used, ring = told
        return Window(head, newest, used, tuple(ring))
    end, used = told
    return Span(end or FOREVER, used)


def state_words(state: State | None) -> Words:
    """Return a state as load.lua takes it: used, head or end, newest; then slots of the ring, and their units."""
    if state is None:
        return [0, -1, 0]
    if isinstance(state, Span):
        return [min(state.used, MOST), 0 if state.end == FOREVER else state.end, 0]
    ring = [min(units, MOST) for units in state.ring]
    newest = min(state.newest, MOST)
    words: Words = [min(newest + sum(ring), MOST), state.head, newest]
    for slot, units in enumerate(ring):
        if units:
            words += [slot, units]
    return words


def _remembered_word(counter: Counter) -> str:
    """Return what a refund must know of a counter that was charged, in one line."""
    per = counter.limit.per
    kind, length = "lifetime", 0
    if isinstance(per, Rolling):
        kind, length = "rolling", per.window
    elif isinstance(per, Calendar):
        kind, length = "calendar", int(per.period)
    return json.dumps([counter.id, counter.limit.amount, counter.zone, kind, length])


class Admission(NamedTuple):
    """What is remembered of an admission: when, what it cost, and what it charged at which moment."""

    time: str
    cost: str
    charged: tuple[tuple[Counter, str], ...]


def admission_of(value: str) -> Admission:
    """Return what charge.lua has kept of an admission."""
    time, cost, moments, *words = value.split("\n")
    return Admission(time, cost, tuple(zip(map(_charged_counter, words), moments.split(), strict=True)))


def _charged_counter(word: str) -> Counter:
    id_, amount, zone, kind, length = json.loads(word)
    per: Rolling | Calendar | Lifetime = Lifetime()
    if kind == "rolling":
        per = Rolling(length)
    elif kind == "calendar":
        per = Calendar(Period(length))
    return Counter(id_, Limit("", Holder.ACCOUNT, amount, per), zone)
