"""The report: what was measured, beside what was wanted, for people and for programs."""

from __future__ import annotations

import json
import platform
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.figures import medians
from bench.scenarios import Scenario

_WIDTH = 100
_PACKAGES = ("formgate-server", "grpcio", "protobuf", "uvloop", "sqlalchemy")


@dataclass(frozen=True, slots=True)
class Target:
    """Something wanted: ``measured`` at most ``wanted``."""

    name: str
    measured: float
    wanted: float
    form: str
    """How both are written."""

    @property
    def met(self) -> bool:
        """Whether it is so."""
        return self.measured <= self.wanted


@dataclass(frozen=True, slots=True)
class Report:
    """One run of the bench."""

    h2load: str
    scenarios: Sequence[Scenario]
    targets: Sequence[Target]
    notes: Sequence[str]

    @property
    def met(self) -> bool:
        """Whether every target is met."""
        return all(target.met for target in self.targets)

    def for_people(self) -> str:
        """Return tables."""
        rounds = len(self.scenarios[0].rounds)
        lines = textwrap.wrap(", ".join(f"{name} {value}" for name, value in self._conditions().items()), _WIDTH)
        lines += [f"Medians of {rounds} rounds; CPU is the server's, user and system, for one check.", ""]
        lines += [f"{'':44}{'CPU µs':>9}{'checks/s':>11}{'p50 ms':>9}{'p99 ms':>9}"]
        for scenario in self.scenarios:
            one = medians(scenario.rounds)
            lines += [
                f"{scenario.name:44}{one.cpu_us:>9.1f}{one.per_second:>11,.0f}{one.p50_ms:>9.2f}{one.p99_ms:>9.2f}"
            ]
        lines += ["", f"{'target':44}{'measured':>12}{'wanted':>12}"]
        for target in self.targets:
            measured, wanted = target.form.format(target.measured), f"≤ {target.form.format(target.wanted)}"
            lines += [f"{target.name:44}{measured:>12}{wanted:>12}  {'met' if target.met else 'MISSED'}"]
        return "\n".join([*lines, "", *self.notes])

    def for_programs(self) -> str:
        """Return JSON, with every round's figures."""
        return json.dumps(
            {
                "conditions": self._conditions(),
                "scenarios": [
                    {
                        "name": scenario.name,
                        "median": asdict(medians(scenario.rounds)),
                        "rounds": [asdict(one) for one in scenario.rounds],
                        "others_share_of_the_core": scenario.others,
                    }
                    for scenario in self.scenarios
                ],
                "targets": [
                    {"name": one.name, "measured": one.measured, "wanted": one.wanted, "met": one.met}
                    for one in self.targets
                ],
                "notes": list(self.notes),
            },
            indent=2,
        )

    def _conditions(self) -> dict[str, str]:
        return {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "cpu": _cpu(),
            "Python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
            "load": self.h2load,
        }


def _cpu() -> str:
    """Return the kind of processor, where the system tells it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
