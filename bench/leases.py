"""What a check costs that a client decides by itself, under a lease, and how soon a change ends it."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.process import Cores
from bench.report import Target
from bench.world import served
from formgate import Client
from formgate.v1.keys_pb2 import CreateKeyRequest, CreateKeyResponse, DisableKeyRequest
from formgate.v1.resources_pb2 import CALENDAR_DAY, HOLDER_KEY, Grant, Limit
from formgate.verdict import Source
from tests.support.client import Client as Manager
from tests.support.client import new_account

_PERMISSIONS, _RESOURCES = ("forms.view",), ("forms/f1",)
_CHECKS = 20_000
"""Within a lease: it is renewed between the runs."""
_AMOUNT = 10**12
_PATIENCE_SECONDS = 10.0


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    changes: int


FULL = Size(rounds=15, changes=50)
QUICK = Size(rounds=5, changes=10)


class LeasesReport(NamedTuple):
    """One run."""

    targets: list[Target]
    notes: list[str]

    @property
    def met(self) -> bool:
        """Whether every target is met."""
        return all(target.met for target in self.targets)

    def for_people(self) -> str:
        """Return lines."""
        return "\n".join(
            ["Leases, on SQLite: checks decided in the caller's own process", ""]
            + [target.line for target in self.targets]
            + ["", *self.notes]
        )

    def for_programs(self) -> dict[str, Any]:
        """Return the same as JSON has it."""
        return {"targets": [_told(target) for target in self.targets], "notes": self.notes}


def _told(target: Target) -> dict[str, Any]:
    return {"name": target.name, "measured": target.measured, "wanted": target.wanted, "met": target.met}


def measure(size: Size, cores: Cores) -> LeasesReport:
    """Measure."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="formgate-bench-")))
        world = stack.enter_context(served(folder / "leases", cores.server, 10))
        token = world.headers["authorization"].removeprefix("Bearer ")
        client = stack.enter_context(Client(world.process.address, token, timeout=_PATIENCE_SECONDS))
        manager = Manager(world.process.address, token)
        stack.callback(manager.close)
        limit = Limit(name="daily", holder=HOLDER_KEY, amount=_AMOUNT, calendar=CALENDAR_DAY)
        runs = {
            name: [_run(client, key.secret) for _ in range(size.rounds)]
            for name, key in (("no limit", _key(manager)), ("a daily limit", _key(manager, limit)))
        }
        told = sorted(_change(client, manager) for _ in range(size.changes))
    targets = []
    for name, each in runs.items():
        per_second, p99 = median(run.per_second for run in each), median(run.p99_us for run in each)
        targets.append(Target(f"leased checks/s on a core, {name}", per_second, 500_000, "{:,.0f}", at_least=True))
        targets.append(Target(f"leased check, {name}, p99", p99, 10, "{:.1f} µs"))
    p99 = told[int(len(told) * 0.99)] * 1e3
    targets.append(Target("a change is seen after its return, p99", p99, 50, "{:.1f} ms"))
    notes = [
        f"by the thread's CPU; medians of {size.rounds} rounds of {_CHECKS:,} checks",
        f"{size.changes} changes, half of them seen within {median(told) * 1e3:.1f} ms",
    ]
    return LeasesReport(targets, notes)


class _Run(NamedTuple):
    per_second: float
    p99_us: float


def _key(manager: Manager, *limits: Limit) -> CreateKeyResponse:
    account = new_account(manager)
    grants = [Grant(resource="*", permissions=_PERMISSIONS)]
    made: CreateKeyResponse = manager(CreateKeyRequest(account_id=account, grants=grants, limits=limits))
    return made


def _leased(client: Client, secret: str) -> None:
    """Check until a lease is there that lasts for the run."""
    until = time.monotonic() + _PATIENCE_SECONDS
    enough = 0
    while enough < _CHECKS:
        assert time.monotonic() < until, "no lease"
        is_leased = client.check(secret, permissions=_PERMISSIONS, resources=_RESOURCES).source is Source.LEASE
        enough = enough + 1 if is_leased else 0


def _run(client: Client, secret: str) -> _Run:
    _leased(client, secret)
    check, clock = client.check, time.perf_counter_ns
    began = time.thread_time()
    for _ in range(_CHECKS):
        check(secret, permissions=_PERMISSIONS, resources=_RESOURCES)
    per_second = _CHECKS / (time.thread_time() - began)
    took = []
    for _ in range(_CHECKS):
        before = clock()
        verdict = check(secret, permissions=_PERMISSIONS, resources=_RESOURCES)
        if verdict.source is Source.LEASE:
            took.append(clock() - before)
    took.sort()
    return _Run(per_second, took[len(took) * 99 // 100] / 1e3)


def _change(client: Client, manager: Manager) -> float:
    """Return how many seconds after its return a change was seen."""
    key = _key(manager)
    until = time.monotonic() + _PATIENCE_SECONDS
    while client.check(key.secret).source is not Source.LEASE:
        assert time.monotonic() < until, "no lease"
    manager(DisableKeyRequest(key_id=key.key.key_id))
    returned = time.perf_counter()
    while client.check(key.secret):
        time.sleep(0.0001)  # who is to be told needs the interpreter, too
    return time.perf_counter() - returned
