"""Counting in memory: what is written to the metrics is what was counted, however often it is written."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from formgate_server.metrics import tally
from formgate_server.metrics.tally import BUCKETS, Lasting, SummedHistogram, Tally, Timing, watched, write


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    """A registry of the test's own; what it counts is forgotten after it."""
    monkeypatch.setattr(tally, "_all", [])
    return CollectorRegistry()


def test_a_tally_is_written_once(registry: CollectorRegistry) -> None:
    """Only what was counted since the last time is added."""
    tallied = Tally(Counter("c", "c", registry=registry))
    for total in (3, 3, 8):
        tallied.count = total
        write()
        assert registry.get_sample_value("c_total") == total


def test_a_timing_is_a_histogram(registry: CollectorRegistry) -> None:
    """As prometheus_client's own: a bucket holds what is no more than its bound; what is longer is in the last one."""
    observed = [0.0, BUCKETS[0], BUCKETS[0] * 1.01, 0.003, BUCKETS[-1], 7.0]
    ours = Timing(SummedHistogram("ours", "o", registry=registry, buckets=BUCKETS))
    theirs = SummedHistogram("theirs", "t", registry=registry, buckets=BUCKETS)
    for seconds in observed:
        ours.observe(seconds)
        theirs.observe(seconds)
        write()
        write()
    bounds = [*map(str, BUCKETS), "+Inf"]
    for bound in bounds:
        there = registry.get_sample_value("theirs_bucket", {"le": bound})
        assert registry.get_sample_value("ours_bucket", {"le": bound}) == there
    assert registry.get_sample_value("ours_count") == len(observed)
    assert registry.get_sample_value("ours_sum") == pytest.approx(sum(observed))


def test_what_lasts_is_counted_in_seconds(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is so, and up to when it ends; said twice, it is counted once."""
    now = 100.0

    class Time:
        @staticmethod
        def monotonic() -> float:
            return now

    monkeypatch.setattr(tally, "time", Time)
    lasting = Lasting(Gauge("g", "g", registry=registry), Counter("s", "s", registry=registry))

    def told() -> tuple[Any, Any]:
        write()
        return registry.get_sample_value("g"), registry.get_sample_value("s_total")

    lasting.set(False)
    now = 110.0
    assert told() == (0, 0)
    lasting.set(True)
    now = 113.0
    assert told() == (1, 3)
    lasting.set(True)
    now = 115.0
    lasting.set(False)
    now = 120.0
    assert told() == (0, 5)


def test_gauges_are_read_while_they_are_watched(registry: CollectorRegistry) -> None:
    """By the last who says what they show; one that can not be read just now keeps its value."""
    gauge = Gauge("g", "g", registry=registry)

    def changing() -> float:
        raise RuntimeError

    with watched({gauge: lambda: 1.0}):
        write()
        with watched({gauge: lambda: 2.0}):
            write()
            assert registry.get_sample_value("g") == 2
        gauge.set(7)
        write()
        assert registry.get_sample_value("g") == 7, "who has ended says nothing any more"
        with watched({gauge: changing}):
            write()
        assert registry.get_sample_value("g") == 7
