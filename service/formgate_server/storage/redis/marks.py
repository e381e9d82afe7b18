"""The marks of counters in Redis: raised before they are reached, and read when Redis has lost a counter.

The order of a raise is what makes it sound (docs/adr/0010): reserve.lua draws the mark up, the database takes it,
raise.lua lets the counter run up to it. Whoever is killed in between has cost a little room, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from formgate_server.core.errors import UnavailableError
from formgate_server.core.limits import Counter, State, block, restored
from formgate_server.core.model import Calendar, Lifetime, Rolling
from formgate_server.core.ports import Reservations, Reserved
from formgate_server.storage.mark_writer import MarkWriter
from formgate_server.storage.redis.client import RedisClient
from formgate_server.storage.redis.errors import StoreUnavailable
from formgate_server.storage.redis.lua import LOAD, RAISE, RESERVE
from formgate_server.storage.redis.plan import MOST, RedisTime, Status, packed, state_of, state_words

_HOUR = 60 * 60 * 1_000_000
_DAY = 24 * _HOUR
_MARKS_A_WRITE = 1_000
_ROUNDS = 20
"""How often marks are drawn up anew because others were written meanwhile."""


class Mark:
    """A counter whose mark is being raised, and by how many charges it is waited for."""

    __slots__ = ("account_id", "counter", "high", "key", "lower", "waiting")

    def __init__(self, account_id: str, key: str, counter: Counter) -> None:
        self.account_id = account_id
        self.key = key
        self.counter = counter
        self.lower = False  # it may be too high: write it anew, whatever fits under it
        self.high = False  # it was made to measure for a charge that is waiting
        self.waiting = 0


class Missing(NamedTuple):
    """A counter that Redis does not know, and the incarnation and time that it told."""

    account_id: str
    key: str
    counter: Counter
    incarnation: str
    time: int


class _Drawn(NamedTuple):
    """A mark that is drawn up: ``base`` and ``serial`` are Redis' own."""

    mark: Mark
    reserved: Reserved
    base: int
    serial: int
    period: int


class RedisMarks:
    """Raises and reads marks, together with those of the other processes."""

    def __init__(  # noqa: PLR0913 - each of them an operator's choice
        self,
        client: RedisClient,
        reservations: Reservations,
        time: RedisTime,
        *,
        replication_ids: bool,
        on_degraded: Callable[[bool], None],
        retry_seconds: float,
        patience_seconds: float,
    ) -> None:
        self._client = client
        self._reservations = reservations
        self._time = time
        self.compared = "1" if replication_ids else "0"
        """The scripts' word for whether replication ids are compared."""
        self._marks: dict[str, Mark] = {}
        self._writer = MarkWriter(
            self._write, on_degraded, retry_seconds=retry_seconds, patience_seconds=patience_seconds
        )
        self._patience_seconds = patience_seconds
        self._to_load: dict[str, Missing] = {}
        self._loaded: asyncio.Future[None] | None = None
        self._loader: asyncio.Task[None] | None = None
        self._late: set[asyncio.Task[None]] = set()

    @property
    def degraded(self) -> bool:
        """Whether charges go on beyond their marks."""
        return self._writer.degraded

    async def stop(self) -> None:
        """Raise no more."""
        await self._writer.stop()
        loading = [*self._late, *([] if self._loader is None else [self._loader])]
        for each in loading:
            each.cancel()
        await asyncio.gather(*loading, return_exceptions=True)

    # Raising.

    def want(self, account_id: str, key: str, counter: Counter, units: int = 0, *, lower: bool = False) -> Mark:
        """Have a counter's mark raised so that ``units`` fit under it; ``lower``: or written anew, it may be high."""
        mark = self._marks.get(key)
        if mark is None:
            mark = self._marks[key] = Mark(account_id, key, counter)
        mark.counter = counter
        mark.lower = mark.lower or lower
        self._writer.want(mark, units)
        return mark

    async def wait(self) -> None:
        """Wait until the marks wanted now are raised, or the database takes none."""
        if not self.degraded:
            await self._writer.written.wait()

    def hold(self, mark: Mark) -> None:
        """Keep a mark as high as it is made, for a charge that waits for it."""
        mark.waiting += 1

    def release(self, marks: Iterable[Mark]) -> None:
        """Lower what was made to measure for charges that have ended."""
        for mark in marks:
            mark.waiting -= 1
            if mark.high and not mark.waiting:
                mark.high = False
                self.want(mark.account_id, mark.key, mark.counter, lower=True)
            self._drop(mark)

    def _drop(self, mark: Mark) -> None:
        if not mark.waiting and not mark.high and mark not in self._writer.wanted and self._marks.get(mark.key) is mark:
            del self._marks[mark.key]

    async def _write(self, wanted: dict[Mark, int]) -> None:
        marks = list(wanted)
        for first in range(0, len(marks), _MARKS_A_WRITE):
            await self._raise({mark: wanted[mark] for mark in marks[first : first + _MARKS_A_WRITE]})
        for mark in marks:
            self._drop(mark)

    async def _raise(self, wanted: Mapping[Mark, int]) -> None:
        # What was made to measure for charges under way is lowered when they have ended.
        lower = {mark for mark in wanted if mark.lower and not mark.high}
        for mark in wanted:
            mark.lower = False
        try:
            await self._raise_until_written(wanted, lower)
        except BaseException:
            for mark in lower:
                mark.lower = True
            raise

    async def _raise_until_written(self, wanted: Mapping[Mark, int], lower: set[Mark]) -> None:
        floors: dict[Mark, int] = {}
        left = list(wanted)
        for attempt in range(_ROUNDS):
            tried = [self._draw_up(mark, wanted[mark], mark in lower, floors.get(mark, 0)) for mark in left]
            drawn = [each for each in await asyncio.gather(*tried) if each is not None]
            if not drawn:
                return
            # A mark that was drawn up in a period which is over by now is drawn up anew. One that then still seems to
            # be of an earlier one is not: Redis' clock has gone back.
            rows = {each.mark.counter.id: each.reserved for each in drawn}
            written = await self._reservations.advance(rows, insist=attempt > 0)
            taken = [each for each in drawn if each.mark.counter.id in written]
            await asyncio.gather(*map(self._let_run, taken))
            left = [each.mark for each in drawn if each.mark.counter.id not in written]
            if not left:
                return
            there = await self._reservations.load([mark.counter.id for mark in left])
            floors = {mark: there[mark.counter.id].serial for mark in left if mark.counter.id in there}

    async def _draw_up(self, mark: Mark, units: int, lower: bool, floor: int) -> _Drawn | None:  # noqa: FBT001
        """Return a mark that is drawn up; None: it is high enough, or not to be had: whoever waits for it will see."""
        counter = mark.counter
        head = [self.compared, units, block(counter.limit), "1" if lower else "0", *divmod(floor, MOST)]
        for _ in range(2):
            words = [*head, packed([counter], self._time.now())]
            try:
                reply = await self._client.run_soon(RESERVE, mark.account_id, (mark.key,), words, repeatable=True)
            except StoreUnavailable:
                return None
            if reply[0] == Status.CHARGED:
                base, serial, ahead, period, *told = reply[1:]
                state = state_of(counter, told)
                reserved = Reserved(state, ahead, base * MOST + serial, _expire_time(counter, period))
                return _Drawn(mark, reserved, base, serial, period)
            if reply[0] != Status.CLOCK:
                return None
            self._time.told(reply[1])
        return None

    async def _let_run(self, drawn: _Drawn) -> None:
        mark = drawn.mark
        words = (self.compared, drawn.base, drawn.serial, drawn.period)
        try:
            raised = await self._client.run_soon(RAISE, mark.account_id, (mark.key,), words, repeatable=True)
        except StoreUnavailable:
            raised = 0
        if not raised:
            # What was written may be of a period that is over, or of a Redis that lost its memory: write it anew.
            mark.lower = True
            self._writer.want(mark, 0)
        elif drawn.reserved.ahead > block(mark.counter.limit):
            if mark.waiting:
                mark.high = True
            else:
                mark.lower = True
                self._writer.want(mark, 0)

    # Reading.

    async def load(self, missing: Sequence[Missing]) -> None:
        """Seed counters with what the database has of them, read after this call began. Raises UnavailableError.

        Nobody waits longer than for two reads, each for as long as the patience lasts.
        """
        if self._loaded is None:
            self._loaded = asyncio.get_running_loop().create_future()
        self._to_load |= {each.key: each for each in missing}
        loaded = self._loaded
        if self._loader is None:
            self._loader = asyncio.create_task(self._load_all())
        await asyncio.shield(loaded)

    async def _load_all(self) -> None:
        """Load until nothing is missing: whatever is missed during a read goes together into the next."""
        loaded = None
        try:
            while self._loaded is not None:
                loaded, self._loaded = self._loaded, None
                missing, self._to_load = list(self._to_load.values()), {}
                try:
                    await self._load_soon(missing)
                except Exception as error:  # noqa: BLE001 - whoever waits for it is told
                    loaded.set_exception(error)
                    loaded.exception()  # seen: nobody may be waiting any more
                else:
                    loaded.set_result(None)
        finally:
            self._loader = None
            for each in (loaded, self._loaded):
                if each is not None and not each.done():
                    each.set_exception(UnavailableError("The counters are being closed."))
                    each.exception()

    async def _load_soon(self, missing: Sequence[Missing]) -> None:
        """Load, but wait no longer than the patience lasts: a database that stands still does not hold the next read.

        What comes later still seeds: an incarnation under which it may not is another by then.
        """
        load = asyncio.create_task(self._load(missing))
        self._late.add(load)
        load.add_done_callback(self._late.discard)
        await asyncio.wait({load}, timeout=self._patience_seconds)
        if not load.done():
            load.add_done_callback(lambda late: late.cancelled() or late.exception())  # seen
            raise UnavailableError("The database does not answer in time.")
        load.result()

    async def _load(self, missing: Sequence[Missing]) -> None:
        rows = await self._reservations.load({each.counter.id for each in missing})
        seeds = [self._seed(each, rows.get(each.counter.id)) for each in missing]
        await asyncio.gather(*seeds)

    async def _seed(self, missing: Missing, row: Reserved | None) -> None:
        state = _restored(missing.counter, row, missing.time)
        serial = 0 if row is None else row.serial
        kept = _kept_milliseconds(missing.counter)
        words = [self.compared, missing.incarnation, *divmod(serial, MOST), kept, *state_words(state)]
        try:
            await self._client.run_soon(LOAD, missing.account_id, (missing.key,), words, repeatable=True)
        except StoreUnavailable:
            return  # whoever waits for it finds out by itself


def _restored(counter: Counter, row: Reserved | None, now: int) -> State | None:
    if row is None or (row.expire_time is not None and row.expire_time <= now):
        return None
    return restored(counter, row.state, row.ahead, now)


def _expire_time(counter: Counter, period: int) -> int | None:
    """Return when nothing of a mark counts any more: what is charged under it at the end of its period included."""
    match counter.limit.per:
        case Rolling(window):
            return (period + 1) * max(window, _DAY) + 2 * window + _HOUR
        case Calendar():
            return period + _HOUR
        case Lifetime():
            return None


def _kept_milliseconds(counter: Counter) -> int:
    """Return for how long a seeded counter is kept while nothing is charged to it: long enough for what is restored."""
    match counter.limit.per:
        case Rolling(window):
            return (2 * window + max(window, _DAY) + _DAY) // 1_000
        case Calendar():
            return 33 * _DAY // 1_000
        case Lifetime():
            return 0
