"""What goes, and when: never a record that could still be resent."""

from __future__ import annotations

from formgate_server.core.ports import News
from formgate_server.core.prune import DAY, LONGEST_MONTH, MARGIN, Keep, Prune
from formgate_server.core.record_usage import OLDEST
from formgate_server.storage.memory.counters import MemoryReservations
from formgate_server.storage.memory.epochs import MemoryEpochs
from formgate_server.storage.memory.registry import MemoryRegistry
from formgate_server.storage.memory.usage import MemoryUsageLedger
from tests.support.clock import SettableClock
from tests.support.stores import AUDIT_KEYS, entry


class Database(MemoryEpochs):
    """The Epochs port of a database with a clock of its own."""

    def __init__(self, registry: MemoryRegistry, clock: SettableClock) -> None:
        super().__init__(registry)
        self._clock = clock

    async def since(self, moment: int | None) -> News:
        """See ``Epochs``."""
        return (await super().since(moment))._replace(until=self._clock.now())


class World:
    """A ledger with something in it for each day of the last 1,000."""

    def __init__(self, keep: Keep = Keep()) -> None:  # noqa: B008 - it is frozen
        registry = MemoryRegistry(AUDIT_KEYS)
        self.clock, self.database_clock = SettableClock(), SettableClock()
        self.ledger = MemoryUsageLedger(registry)
        self.prune = Prune(
            self.ledger,
            Database(registry, self.database_clock),
            MemoryReservations(),
            self.clock,
            keep,
            batch=7,
            pause_seconds=0,
        )

    async def fill(self) -> None:
        """Record."""
        now = self.clock.now()
        await self.ledger.record([entry(f"r{age}", time=now - age * DAY) for age in range(1_000)])

    def ages(self) -> tuple[int, int]:
        """Return how many days old the oldest record and the oldest sum are."""
        now = self.clock.now()
        oldest = min(each.occur_time for each in self.ledger.records.values())
        return (now - oldest) // DAY, (now - min(of.hour for of in self.ledger.hours)) // DAY


async def test_records_go_after_35_days_and_a_margin_and_sums_after_25_months() -> None:
    """In batches, all of them; what came of it is told, and again there is nothing to do."""
    world = World()
    await world.fill()
    told: list[tuple[str, int]] = []
    counted = await world.prune.count()
    deleted = await world.prune(lambda name, gone: told.append((name, gone)))
    assert world.ages() == (36, 775)
    assert deleted == {"records": 963, "sums": 224, "changes": 0, "reservations": 0}
    assert counted == {"records": 963, "sums": 224}
    assert told[:2] == [("records", 7), ("records", 14)]
    assert not any((await world.prune()).values())


async def test_nothing_goes_that_could_be_resent() -> None:
    """However little is to be kept: a resent record whose row is gone would count twice."""
    world = World(Keep(records=DAY, sums=DAY))
    cutoffs = await world.prune.cutoffs()
    assert cutoffs.records == world.clock.now() - OLDEST - MARGIN
    assert cutoffs.sums < cutoffs.records


async def test_more_can_be_kept() -> None:
    """As the settings say."""
    world = World(Keep(records=100 * DAY, sums=60 * LONGEST_MONTH))
    cutoffs = await world.prune.cutoffs()
    assert world.clock.now() - cutoffs.records == 101 * DAY
    assert world.clock.now() - cutoffs.sums == 60 * LONGEST_MONTH


async def test_a_clock_that_is_ahead_makes_nothing_old() -> None:
    """What goes is old by a server's own clock and by the database's: one that is wrong deletes nothing too early."""
    world = World()
    await world.fill()
    world.clock.time += 100 * DAY
    await world.prune()
    world.clock.time -= 200 * DAY
    world.database_clock.time += 100 * DAY
    await world.prune()
    world.clock.time += 100 * DAY
    assert world.ages() == (36, 775)


async def test_who_finds_somebody_else_at_it_leaves_it_to_them() -> None:
    """Nothing is deleted, neither usage nor what comes after it."""
    world = World()
    await world.fill()

    async def busy(before: int, most: int) -> None:
        return None

    world.ledger.forget_records = busy  # type: ignore[method-assign]
    assert await world.prune() == {"records": 0, "sums": 0, "changes": 0, "reservations": 0}
    assert world.ages() == (999, 999)
