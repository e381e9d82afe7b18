"""The report: what was measured, beside what was wanted, for people and for programs."""

from __future__ import annotations

import platform
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.figures import least, medians
from bench.scenarios import Scenario

_WIDTH = 100
_NAME = 50
_PACKAGES = ("formgate-server", "grpcio", "protobuf", "uvloop", "sqlalchemy")


@dataclass(frozen=True, slots=True)
class Target:
    """Something wanted: ``measured`` at most ``wanted``, or at least."""

    name: str
    measured: float
    wanted: float
    form: str
    """How both are written."""
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is so."""
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted

    @property
    def line(self) -> str:
        """What the report says of it."""
        sign = "≥" if self.at_least else "≤"
        measured, wanted = self.form.format(self.measured), f"{sign} {self.form.format(self.wanted)}"
        return f"{self.name:{_NAME}}{measured:>12}{wanted:>14}  {'met' if self.met else 'MISSED'}"


@dataclass(frozen=True, slots=True)
class Report:
    """One run of a part of the bench."""

    title: str
    h2load: str
    scenarios: Sequence[Scenario]
    targets: Sequence[Target]
    notes: Sequence[str]
    stores: Mapping[str, str] = field(default_factory=dict)
    """Their versions, by name."""

    @property
    def met(self) -> bool:
        """Whether every target is met."""
        return all(target.met for target in self.targets)

    def for_people(self) -> str:
        """Return tables."""
        rounds = len(self.scenarios[0].rounds)
        beside = any(scenario.beside_us for scenario in self.scenarios)
        lines = textwrap.wrap(", ".join(f"{name} {value}" for name, value in self._conditions().items()), _WIDTH)
        lines += [f"{self.title}: medians of {rounds} rounds; CPU is the server's, user and system, for one check;"]
        lines += ["least: of any round.", ""]
        lines += [f"{'':{_NAME}}{'CPU µs':>8}{'least':>8}{'checks/s':>10}{'p50 ms':>9}{'p99 ms':>9}"]
        lines[-1] += f"{'Redis µs':>10}" if beside else ""
        lines += [_line(scenario) for scenario in self.scenarios]
        lines += ["", f"{'target':{_NAME}}{'measured':>12}{'wanted':>14}"]
        return "\n".join([*lines, *(target.line for target in self.targets), "", *self.notes])

    def for_programs(self) -> dict[str, object]:
        """Return what JSON can hold, with every round's figures."""
        return {
            "conditions": self._conditions(),
            "scenarios": [
                {
                    "name": scenario.name,
                    "median": asdict(medians(scenario.rounds)),
                    "least": asdict(least(scenario.rounds)),
                    "rounds": [asdict(one) for one in scenario.rounds],
                    "redis_us": scenario.beside_us,
                    "others_share_of_the_core": scenario.others,
                }
                for scenario in self.scenarios
            ],
            "targets": [
                {"name": one.name, "measured": one.measured, "wanted": one.wanted, "met": one.met}
                for one in self.targets
            ],
            "notes": list(self.notes),
        }

    def _conditions(self) -> dict[str, str]:
        return {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "cpu": _cpu(),
            "Python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
            "load": self.h2load,
            **self.stores,
        }


def _line(scenario: Scenario) -> str:
    one, best = medians(scenario.rounds), least(scenario.rounds).cpu_us
    line = f"{scenario.name:{_NAME}}{one.cpu_us:>8.1f}{best:>8.1f}{one.per_second:>10,.0f}"
    line += f"{one.p50_ms:>9.2f}{one.p99_ms:>9.2f}"
    return line + (f"{min(scenario.beside_us):>10.1f}" if scenario.beside_us else "")


def _cpu() -> str:
    """Return the kind of processor, where the system tells it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
