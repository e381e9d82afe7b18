"""``make bench``: what a check costs. ``make bench ARGS=--quick`` for a smoke run; docs/performance.md says more."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench import clients, gateway, h2load, leases, middlewares, process, scenarios, stores
from bench.echo import echo
from bench.figures import above, medians, ratio
from bench.h2load import H2load
from bench.memory import cached_key_bytes
from bench.process import Cores
from bench.report import Report, Target
from bench.world import Served, served

_FEW_KEYS = 1_000


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each scenario in each round."""
    keys: int
    """The many keys that are compared with 1,000."""


_FULL = Size(rounds=5, seconds=3.0, keys=100_000)
_QUICK = Size(rounds=3, seconds=0.5, keys=5_000)


def main() -> None:
    """Measure, report, and tell by the exit code, where asked to, whether the targets are met."""
    options = _options()
    generator = h2load.find()
    cores = process.two_cores()
    parts: dict[str, Callable[[], Report | leases.LeasesReport]] = {
        "embedded": lambda: measure(_QUICK if options.quick else _FULL, generator, cores),
        "client": lambda: clients.measure(clients.QUICK if options.quick else clients.FULL, cores),
        "middlewares": lambda: middlewares.measure(middlewares.QUICK if options.quick else middlewares.FULL),
        "leases": lambda: leases.measure(leases.QUICK if options.quick else leases.FULL, cores),
        "envoy": lambda: gateway.measure(gateway.QUICK if options.quick else gateway.FULL, generator, cores),
        "stores": lambda: stores.measure(stores.QUICK if options.quick else stores.FULL, generator, cores),
    }
    reports = {name: part() for name, part in parts.items() if options.part in {name, "all"}}
    if options.json:
        print(json.dumps({name: report.for_programs() for name, report in reports.items()}, indent=2))
    else:
        print("\n\n\n".join(report.for_people() for report in reports.values()))
    if options.strict and not all(report.met for report in reports.values()):
        sys.exit(1)


def measure(size: Size, generator: H2load, cores: Cores) -> Report:
    """Run every scenario in turn, round after round, so that a change of the machine's pace meets all of them."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="formgate-bench-")))
        _say(f"starting servers with {_FEW_KEYS:,} and {size.keys:,} keys")
        few = stack.enter_context(served(folder / "few", cores.server, _FEW_KEYS))
        many = stack.enter_context(served(folder / "many", cores.server, size.keys))
        bare = stack.enter_context(echo(few.answer_bytes(), cores.server, logs=folder / "echo-logs"))
        floor = scenarios.floor(generator, bare, few)
        check = scenarios.check_key(generator, few)
        check_many = scenarios.check_key(generator, many)
        batch = scenarios.batch_check_keys(generator, few)
        all_of_them = [
            floor,
            check,
            check_many,
            batch,
            scenarios.record_usage(few, informative=True),
            scenarios.floor(generator, bare, few, scenarios.ALONE),
            scenarios.check_key(generator, few, scenarios.ALONE),
        ]
        for number in range(size.rounds):
            for scenario in all_of_them:
                _say(f"round {number + 1} of {size.rounds}: {scenario.name}")
                scenario.run(size.seconds)
        _say("weighing cached keys")
        weight = cached_key_bytes(folder / "many" / "data" / "formgate.db")
        notes = [few.verify(), many.verify(), _resident(few, many)]
    targets = [
        Target("CheckKey above the floor", above(check.rounds, floor.rounds), 50, "{:.1f} µs"),
        Target(f"{size.keys:,} keys to {_FEW_KEYS:,}", ratio(check_many.rounds, check.rounds), 1.10, "{:.2f}"),
        Target("a check in a batch", medians(batch.rounds).cpu_us, 15, "{:.1f} µs"),
        Target("a cached key", weight, 2_048, "{:,.0f} B"),
    ]
    notes.append(f"the first check of a key takes {many.first_us:,.0f} µs of CPU")
    others = max(scenario.others for scenario in all_of_them)
    notes.append(f"other processes took up to {others:.0%} of the server's core")
    return Report("On SQLite, the embedded default", generator.version, all_of_them, targets, notes)


def _resident(few: Served, many: Served) -> str:
    """Tell what the server's memory grows by with a key: in its cache, and its counters."""
    grown = (many.process.resident() - few.process.resident()) / (len(many.secrets) - len(few.secrets))
    total = many.process.resident() / 2**20
    return f"the server of {len(many.secrets):,} keys has {total:,.0f} MiB, {grown:,.0f} B a key with its counters"


def _say(what: str) -> None:
    """Tell how far it is, apart from the result."""
    print(f"bench: {what} …", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure what a check costs.")
    parser.add_argument(
        "--part",
        choices=("embedded", "client", "middlewares", "leases", "envoy", "stores", "all"),
        default="all",
        help="what is measured",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of a minute or two, with fewer keys")
    parser.add_argument("--json", action="store_true", help="print JSON, every round's figures in it")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a target is missed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
