"""`make model`: explore the protocol of revocation, docs/model/epochs.pml, and the mistakes that it must find.

The repaired protocol must hold in each scenario; each naive variant must fail, and so must `reach`, which shows that
checks do decide by the newest epoch after the faults. Ends with 1 when any does otherwise, or can not be explored to
its end; with 2 where spin or a C compiler is not to be had. docs/model/README.md explains the scenarios.

    make model                              all of them
    make model ARGS=--quick                 those that take seconds
    make model ARGS='flush seed-by-set'     these
    make model ARGS='--trail seed-by-set'   and, step by step, the shortest way into each failure
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from scripts import spin

MODEL = Path(__file__).resolve().parent.parent / "docs/model/epochs.pml"
_SECONDS = 1_800
_MEGABYTES = 6_000
_ROW = "{:25} {:5} {:5} {:>12} {:>8} {:>7}  {}"


class Scenario(NamedTuple):
    """Faults that may happen to a variant of the protocol, as the model's own macros, and whether it must hold."""

    name: str
    holds: bool
    defines: tuple[str, ...]
    quick: bool = True


def _holds(name: str, defines: str, *, quick: bool = True) -> Scenario:
    """The repaired protocol: a publication into a missing epoch leaves a new incarnation (PUB=2) unless it is said."""
    return Scenario(name, holds=True, defines=_with_publication(defines), quick=quick)


def _fails(name: str, defines: str, *, quick: bool = True) -> Scenario:
    return Scenario(name, holds=False, defines=_with_publication(defines), quick=quick)


def _with_publication(defines: str) -> tuple[str, ...]:
    words = tuple(defines.split())
    return words if any(word.startswith("PUB=") for word in words) else ("PUB=2", *words)


_ALL_FAULTS = "TAG=1 FAILOVER=1 FLUSH=1 CRASH=1 CUTC=1 CUTD=1 W1=1"

SCENARIOS = (
    _holds("undisturbed", ""),
    _holds("flush", "FLUSH=1 W1=1"),
    _holds("crash", "CRASH=1 W1=1"),
    _holds("cut-off", "CUTC=1 CUTD=1 W1=1", quick=False),
    _holds("epoch-vanishes", "EXPIRE=1 W1=1"),
    _holds("publisher-seeds", "PUB=3 FLUSH=1 W1=1", quick=False),
    _holds("later", "CUTP=1 DEADLINE=1 BOUND=1 W1=1", quick=False),
    _holds("later-cut-off", "CUTP=1 CUTC=1 DEADLINE=1 BOUND=1 W1=1", quick=False),
    _holds("failover", "TAG=1 FAILOVER=1 W1=1", quick=False),
    _holds("failover-two-writers", "TAG=1 FAILOVER=1", quick=False),
    _holds("failover-wait", "FAILOVER=1 WAIT=1 W1=1", quick=False),
    _holds("failover-exempt", "FAILOVER=1 EXEMPT=1 W1=1", quick=False),
    _holds("failover-publisher-seeds", "PUB=3 TAG=1 FAILOVER=1 FLUSH=1 W1=1", quick=False),
    _holds("all-faults", _ALL_FAULTS, quick=False),
    # The naive variants; where one fault is enough to catch them, with one.
    _fails("unpublished", "N_NOPUB"),
    _fails("publish-by-set", "N_NOMAX"),
    _fails("two-statements", "N_NONATOMIC"),
    _fails("denial-unconfirmed", "N_DENY"),
    _fails("missing-assumed", "N_ASSUME FLUSH=1"),
    _fails("seed-by-set", "N_SEEDSET FLUSH=1 W1=1 MAXF=1"),
    _fails("seed-if-missing", "N_NOINC FLUSH=1 W1=1 MAXF=1"),
    _fails("publish-sets-missing", "PUB=0 FLUSH=1"),
    _fails("publish-skips-missing", "PUB=1 FLUSH=1"),
    _fails("database-away-assumed", "N_DBDOWN FLUSH=1 CUTD=1"),
    _fails("read-joined", "N_JOIN CUTC=1 W1=1 MAXF=1"),
    _fails("later-unbounded", "CUTP=1 DEADLINE=1 W1=1 MAXF=1"),
    _fails("failover-untagged", "FAILOVER=1 W1=1 MAXF=1"),
    _fails("restart-wait", "FAILOVER=1 WAIT=1 RDB=1 W1=1 MAXF=1", quick=False),
    # No empty truth.
    _fails("reach", f"N_REACH {_ALL_FAULTS}"),
)


def main() -> int:
    """Run what is asked for and print a table."""
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    parser = argparse.ArgumentParser(prog="make model", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=f"one of: {', '.join(by_name)}; none: all")
    parser.add_argument("--quick", action="store_true", help="only those that take seconds")
    parser.add_argument("--trail", action="store_true", help="print the shortest counterexample, step by step")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="the longest that one may take")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in by_name]:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(by_name)}")
    chosen = [by_name[name] for name in asked.names] or [each for each in SCENARIOS if each.quick or not asked.quick]
    try:
        tool = spin.find()
    except spin.SpinError as error:
        print(f"make model: {error}", file=sys.stderr)
        return 2
    print(_ROW.format("scenario", "must", "did", "states", "seconds", "MB", "").rstrip())
    wrong = []
    for scenario in chosen:
        bounds = spin.Bounds(asked.seconds, _MEGABYTES, scenario.quick)
        found, trail = spin.explore(tool, MODEL, scenario.defines, bounds, shortest=asked.trail)
        did = {True: "fail", False: "hold", None: "?"}[found.failed]
        must = "hold" if scenario.holds else "fail"
        if did != must:
            wrong.append(scenario.name)
        told = found.told + (" <-- not as it must" if did != must else "")
        numbers = (f"{found.states:,}", f"{found.seconds:.1f}", f"{found.megabytes:,.0f}")
        print(_ROW.format(scenario.name, must, did, *numbers, told).rstrip(), flush=True)
        if asked.trail and trail:
            print(trail)
    print(f"{len(chosen) - len(wrong)} of {len(chosen)} as they must" + (f"; not: {', '.join(wrong)}" if wrong else ""))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
