"""The metrics of several workers, as their supervisor shows them."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from formgate_server.metrics import new_registry

_READS = 10


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
    shown = new_registry()
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
