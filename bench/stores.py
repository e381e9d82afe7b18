"""What a check costs over PostgreSQL and Redis, beside the bare wire, and beside what people would write instead."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench import peer, scenarios
from bench.deployed import Crowd, Deployed, Stores, deploy, say, stores
from bench.echo import echo
from bench.figures import least, least_ratio, percentile, ratio
from bench.h2load import H2load
from bench.population import KEYS_AN_ACCOUNT
from bench.process import Cores
from bench.report import Report, Target
from bench.scenarios import BATCH, MANY, TWICE, Scenario
from bench.world import Served
from bench.worst import LIMIT, Worst


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each scenario in each round."""
    many: Crowd
    window_seconds: int
    """Of the limit that is looked at in its worst window."""
    first_checks: int


FULL = Size(rounds=24, seconds=0.6, many=Crowd(1_000_000, 20_000, 2), window_seconds=60, first_checks=1_000)
QUICK = Size(rounds=3, seconds=0.5, many=Crowd(20_000, 2_000, 2), window_seconds=5, first_checks=200)

_FEW = Crowd(1_000, 1_000)

_REFERENCE_FLOOR = 139
"""Microseconds of CPU that the floor took on the machine for which targets in microseconds were set.

Elsewhere they are what they were to the floor there: who takes twice as long for an echo does so for a check.
"""
_BATCHED_CHECK, _REDIS_CHECK, _RECORD = 25, 12, 50
"""Those targets, in microseconds of CPU: 40,000 checks/s of a core, and 20,000 records/s."""


@dataclass(slots=True)
class _Lines:
    """The scenarios, by name; those that are compared are neighbours."""

    floor: Scenario
    few: Scenario
    many: Scenario
    floor_many: Scenario
    few_many: Scenario
    floor_one: Scenario
    one_worker: Scenario
    floor_two: Scenario
    two_workers: Scenario
    batch: Scenario
    batch_many: Scenario
    usage: Scenario
    peer: Scenario
    cached_peer: Scenario

    def all(self) -> list[Scenario]:
        """Return them in the report's order."""
        return [getattr(self, name) for name in self.__slots__]


class _Parts(NamedTuple):
    stores: Stores
    few: Served
    many: Served
    two: Served
    million: Deployed
    lines: _Lines


def measure(size: Size, generator: H2load, cores: Cores) -> Report:
    """Run every scenario in turn, round after round; the stores and the load share a core."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="formgate-bench-")))
        parts, limited = _start(stack, size, generator, cores, folder)
        worst = {name: Worst(allows, size.window_seconds) for name, allows in limited.items()}
        for one in worst.values():
            one.start()
        for number in range(size.rounds):
            for scenario in parts.lines.all():
                say(f"round {number + 1} of {size.rounds}: {scenario.name}")
                scenario.run(size.seconds)
        notes = [
            *(served.verify() for served in (parts.few, parts.many, parts.two)),
            *_first_checks(parts, cores, size.first_checks),
            *_in_passing(parts),
            _in_the_worst(worst, size.window_seconds),
        ]
        lines = parts.lines
        return Report(
            "Over PostgreSQL and Redis",
            generator.version,
            lines.all(),
            list(_targets(lines, size)),
            notes,
            parts.stores.versions,
        )


def _start(
    stack: ExitStack, size: Size, generator: H2load, cores: Cores, folder: Path
) -> tuple[_Parts, dict[str, Callable[[], bool]]]:
    """Start all that is measured; also return what charges the limited key of each."""
    say("starting PostgreSQL and Redis")
    both = stack.enter_context(stores(folder))
    few = stack.enter_context(deploy(both, folder / "few", 0, _FEW).served(cores.server))
    two = stack.enter_context(deploy(both, folder / "two", 1, _FEW).served(*cores, workers=2))
    say(f"putting in {size.many.keys:,} keys, and using {size.many.known // size.many.hot:,} of them")
    million = deploy(both, folder / "many", 2, size.many)
    many = stack.enter_context(million.served(cores.server))
    size_of_answer = few.answer_bytes()
    bare = stack.enter_context(echo(size_of_answer, cores.server, logs=folder / "echo-logs"))
    bare_two = stack.enter_context(echo(size_of_answer, *cores, logs=folder / "echo-two-logs", workers=2))
    say("starting the peers")
    table = peer.make_table(both, _FEW.keys, LIMIT, size.window_seconds)
    fresh, cached = (
        stack.enter_context(peer.serving(both, table, cores.server, folder, cache_seconds=seconds))
        for seconds in (0, 10)
    )
    lines = _Lines(
        floor=scenarios.floor(generator, bare, few),
        floor_many=scenarios.floor(generator, bare, few, MANY),
        floor_one=scenarios.floor(generator, bare, few, TWICE),
        floor_two=_of_two_workers(scenarios.floor(generator, bare_two, few, TWICE)),
        few=scenarios.check_key(generator, few),
        many=_named(scenarios.check_key(generator, many), f"CheckKey, {size.many.keys:,} keys"),
        batch=scenarios.batch_check_keys(generator, few),
        batch_many=_named(
            scenarios.batch_check_keys(generator, many), f"BatchCheckKeys of {BATCH}, of {BATCH} accounts"
        ),
        few_many=scenarios.check_key(generator, few, MANY),
        one_worker=scenarios.check_key(generator, few, TWICE),
        two_workers=_of_two_workers(scenarios.check_key(generator, two, TWICE)),
        usage=scenarios.record_usage(few),
        peer=peer.scenario(generator, fresh, "peer: FastAPI, asyncpg, redis-py"),
        cached_peer=peer.scenario(generator, cached, "peer, keys cached for 10 s"),
    )
    for one in lines.all():
        if one.process not in {bare, bare_two}:
            one.beside = both.redis_seconds
    secret = few.client.limited("bench000000", LIMIT, size.window_seconds)
    limited = {"ours": lambda: few.client.allows(secret), "the peer": fresh.allows}
    return _Parts(both, few, many, two, million, lines), limited


def _targets(lines: _Lines, size: Size) -> Iterator[Target]:
    """Yield what is wanted: ratios are taken within a round, then their median; what is not a ratio, of the best."""
    for name, check, floor in (
        ("", lines.few, lines.floor),
        (f", {MANY.connections} connections", lines.few_many, lines.floor_many),
    ):
        yield Target(f"CheckKey to the floor{name}", ratio(check.rounds, floor.rounds), 1.35, "{:.2f}")
    echo_us = least(lines.floor.rounds).cpu_us
    for name, batch in _batches(lines):
        wanted = _BATCHED_CHECK / _REFERENCE_FLOOR
        yield Target(f"a check of {BATCH} {name}, to the floor", least(batch.rounds).cpu_us / echo_us, wanted, "{:.3f}")
    for name, batch in _batches(lines):
        wanted = _REDIS_CHECK / _REFERENCE_FLOOR
        yield Target(f"Redis' CPU for it, {name}, to the floor", min(batch.beside_us) / echo_us, wanted, "{:.3f}")
    record = least(lines.usage.rounds).cpu_us / echo_us
    yield Target(f"a record, {lines.usage.name}, to the floor", record, _RECORD / _REFERENCE_FLOOR, "{:.3f}")
    many = ratio(lines.many.rounds, lines.few.rounds)
    yield Target(f"{size.many.keys:,} keys to {_FEW.keys:,}", many, 1.10, "{:.2f}")
    two = _of_two(lines.one_worker, lines.two_workers)
    yield Target("two workers to one, by CPU time", two, 1.8, "{:.2f}", at_least=True)


def _batches(lines: _Lines) -> tuple[tuple[str, Scenario], ...]:
    return ("of few accounts", lines.batch), ("of as many", lines.batch_many)


def _of_two(one: Scenario, two: Scenario) -> float:
    """Return how many times the checks of one process two answer, each with a core, by what a check costs them."""
    return 2 * ratio(one.rounds, two.rounds)


def _first_checks(parts: _Parts, cores: Cores, count: int) -> Iterator[str]:
    """Tell what the first check of a key takes, one at a time, in a process that was just started."""
    with parts.million.serve(cores.server) as (process, client):
        client.firsts(parts.million.hot[-10:])  # connections are made, plans are prepared
        for name, secrets in (("that others have checked", parts.million.hot), ("that nobody has", parts.million.cold)):
            idle = process.busy()
            took = client.firsts(secrets[:count])
            cpu_us = (process.busy() - idle).own / len(took) * 1e6
            middle, last = (percentile(took, percent) / 1e3 for percent in (50, 99))
            yield (
                f"the first check of a key {name}, one at a time: {cpu_us:,.0f} µs of CPU,"
                f" p50 {middle:.1f} ms, p99 {last:.1f} ms ({len(took):,} keys)"
            )


def _in_passing(parts: _Parts) -> Iterator[str]:
    lines = parts.lines
    best = least_ratio(lines.few.rounds, lines.floor.rounds), least_ratio(lines.many.rounds, lines.few.rounds)
    yield f"best rounds to best rounds: CheckKey to the floor {best[0]:.2f}, many keys {best[1]:.2f}"
    answered = least(lines.two_workers.rounds).per_second / least(lines.one_worker.rounds).per_second
    yield (
        f"two workers answered {answered:.2f} times the checks of one, in their best rounds:"
        " the load and the stores have one of their two cores;"
        f" by CPU time two floors have {_of_two(lines.floor_one, lines.floor_two):.2f} times those of one"
    )
    floor = least(lines.floor.rounds).cpu_us
    rates = " and ".join(f"{1e6 / least(one.rounds).cpu_us:,.0f}" for _, one in _batches(lines))
    redis = " and ".join(f"{min(one.beside_us):.1f}" for _, one in _batches(lines))
    yield (
        f"in figures of this machine, whose floor takes {floor:.0f} µs: {rates} checks/s a core in batches"
        f" ({1e6 / _BATCHED_CHECK:,.0f} are wanted where it takes {_REFERENCE_FLOOR}), {redis} µs of Redis' CPU"
        f" ({_REDIS_CHECK}), {1e6 / least(lines.usage.rounds).cpu_us:,.0f} records/s a core ({1e6 / _RECORD:,.0f})"
    )
    script = parts.stores.script()
    yield f"Redis ran {script.calls:,} scripts, {script.us / script.calls:.1f} µs of the clock each"
    yield (
        f"{parts.million.crowd.keys:,} keys in {parts.million.crowd.keys // KEYS_AN_ACCOUNT:,} accounts were put in"
        f" within {parts.million.loaded_seconds:.0f} s; {len(parts.many.secrets):,} of them were in use"
    )
    times = [ratio(one.rounds, lines.few.rounds) for one in (lines.peer, lines.cached_peer)]
    yield f"the peer takes {times[0]:.2f} times the CPU of CheckKey; with its keys cached {times[1]:.2f}"
    others = max(one.others for one in lines.all() if len(one.process.cores) == 1)
    yield f"other processes took up to {others:.0%} of the server's core"


def _in_the_worst(worst: dict[str, Worst], seconds: int) -> str:
    counts = ", ".join(f"{name} {one.count()}" for name, one in worst.items())
    return f"of {LIMIT} a window of {seconds} s, the worst {seconds} s let through: {counts}"


def _of_two_workers(scenario: Scenario) -> Scenario:
    return _named(scenario, f"{scenario.name}, 2 workers")


def _named(scenario: Scenario, name: str) -> Scenario:
    scenario.name = name
    return scenario
