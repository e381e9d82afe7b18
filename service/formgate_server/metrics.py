"""What is counted, for /metrics. Never by key, account or anything else that a caller can choose."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Info, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from formgate.rules.reason import Reason
from formgate_server.core.model import UsageOutcome

VERSION = version("formgate-server")
_READS = 10


def _new_registry() -> CollectorRegistry:
    new = CollectorRegistry()
    PlatformCollector(registry=new)
    Info("formgate_build", "This server.", registry=new).info({"version": VERSION})
    return new


registry = _new_registry()
"""Of this process. A worker's is shown by its supervisor: a Gauge must say by ``multiprocess_mode`` how it adds up."""
ProcessCollector(registry=registry)
GCCollector(registry=registry)

_checks = Counter("formgate_checks", "Checks decided, by reason.", ["reason"], registry=registry)
checks = {
    reason: _checks.labels(reason.name) for reason in Reason
}  # all from the start, and found without hashing labels
_degraded = Gauge(
    "formgate_degraded", "Whether a store is away, by which.", ["store"], registry=registry, multiprocess_mode="livesum"
)
degraded = {store: _degraded.labels(store) for store in ("counters", "database", "marks")}
_usage_records = Counter("formgate_usage_records", "Usage records, by outcome.", ["outcome"], registry=registry)
usage_records = {outcome: _usage_records.labels(outcome.name) for outcome in UsageOutcome}
_unknown_keys = Counter(
    "formgate_unknown_keys",
    "Keys that were not known here and not found, or not looked for.",
    ["outcome"],
    registry=registry,
)
unknown_keys = {outcome: _unknown_keys.labels(outcome) for outcome in ("not_found", "refused_address", "refused")}
certificate_end = Gauge(
    "formgate_tls_certificate_end_timestamp_seconds",
    "When it ends: the server's certificate, and the last of the authorities of clients'.",
    ["certificate"],
    registry=registry,
    multiprocess_mode="livemin",
)
_files_refused = Gauge(
    "formgate_files_refused",
    "Whether what files hold now can not be used, so that what they held before stays.",
    ["files"],
    registry=registry,
    multiprocess_mode="livemax",
)
files_refused = {each: _files_refused.labels(each) for each in ("certificates", "identities")}


class WorkerFacts(NamedTuple):
    """What a supervisor knows of a worker. ``pid`` None: it is about to be started."""

    number: int
    pid: int | None
    ready: bool
    restarts: int
    garbage: Sequence[dict[str, int]]
    """What ``gc.get_stats`` said there lately: a dict a generation."""


def of_workers(
    folder: Path, facts: Callable[[], Sequence[WorkerFacts]], started: Callable[[], bool]
) -> CollectorRegistry:
    """Return what workers have counted, together, in the files of ``folder``, and how each of them is.

    Before they have ``started`` nothing is read: their files are being made.
    """
    shown = _new_registry()
    shown.register(_Workers(folder, facts, started))
    return shown


class _Workers(Collector):
    def __init__(self, folder: Path, facts: Callable[[], Sequence[WorkerFacts]], started: Callable[[], bool]) -> None:
        self._counted = MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]
        self._facts = facts
        self._started = started

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        if self._started():
            yield from self._read()
        facts = self._facts()
        ready = GaugeMetricFamily("formgate_worker_ready", "Whether it takes calls.", labels=["worker"])
        restarts = CounterMetricFamily(
            "formgate_worker_restarts", "How often another was started in its place.", labels=["worker"]
        )
        for worker in facts:
            ready.add_metric([str(worker.number)], worker.ready)
            restarts.add_metric([str(worker.number)], worker.restarts)
        yield ready
        yield restarts
        yield from _processes(facts)
        yield from _garbage(facts)

    def _read(self) -> Sequence[Metric]:
        for _ in range(_READS):
            with suppress(struct.error):  # a worker that starts is just making its file
                return list(self._counted.collect())  # type: ignore[no-untyped-call]
            time.sleep(0.01)
        return ()


def _processes(facts: Sequence[WorkerFacts]) -> Iterable[Metric]:
    """Return what a process' own collector says, of each worker and the supervisor (worker 0)."""
    families: dict[str, Metric] = {}
    for number, pid in ((0, os.getpid()), *((worker.number, worker.pid) for worker in facts)):
        if pid is None:
            continue
        for family in ProcessCollector(registry=None, pid=lambda pid=pid: pid).collect():  # type: ignore[misc]
            mine = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                mine.add_sample(sample.name, {"worker": str(number)}, sample.value)
    return families.values()


def _garbage(facts: Sequence[WorkerFacts]) -> Iterable[Metric]:
    """Return what the garbage collector's own collector says, of each worker."""
    named = {
        "collected": ("python_gc_objects_collected", "Objects collected during gc"),
        "uncollectable": ("python_gc_objects_uncollectable", "Uncollectable objects found during GC"),
        "collections": ("python_gc_collections", "Number of times this generation was collected"),
    }
    for field, (name, text) in named.items():
        family = CounterMetricFamily(name, text, labels=["worker", "generation"])
        for worker in facts:
            for generation, figures in enumerate(worker.garbage):
                family.add_metric([str(worker.number), str(generation)], figures[field])
        yield family
