"""What is computed from what was measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import median


@dataclass(frozen=True, slots=True)
class Figures:
    """What one round of load came to; a batch of 256 checks is one call."""

    cpu_us: float
    """Microseconds of the server's CPU time, user and system, for one check."""
    per_second: float
    """Checks answered per second."""
    p50_ms: float
    """Milliseconds within which half of the calls were answered."""
    p99_ms: float
    """… and 99 of 100."""


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the least of ``values`` that at least ``percent`` of them do not exceed. Raises ValueError without any."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def figures(*, checks: int, seconds: float, cpu_seconds: float, latencies_us: Sequence[int]) -> Figures:
    """Return a round's figures. ``seconds`` from the first request to the last answer."""
    return Figures(
        cpu_us=cpu_seconds / checks * 1e6,
        per_second=checks / seconds,
        p50_ms=percentile(latencies_us, 50) / 1e3,
        p99_ms=percentile(latencies_us, 99) / 1e3,
    )


def medians(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure."""
    return Figures(**{field.name: median(getattr(one, field.name) for one in rounds) for field in fields(Figures)})


def above(rounds: Sequence[Figures], base: Sequence[Figures]) -> float:
    """Return by how many microseconds of CPU ``rounds`` cost more than ``base``.

    The median of the rounds' own differences: a machine that slows down half-way slows both sides of each.
    """
    return median(one.cpu_us - other.cpu_us for one, other in zip(rounds, base, strict=True))


def ratio(rounds: Sequence[Figures], base: Sequence[Figures]) -> float:
    """Return how many times the CPU of ``base`` is taken by ``rounds``, round by round as in ``above``."""
    return median(one.cpu_us / other.cpu_us for one, other in zip(rounds, base, strict=True))


def least(rounds: Sequence[Figures]) -> Figures:
    """Return the best of each figure: what it takes where nobody else is at work, if the rounds are many and short."""
    return Figures(
        cpu_us=min(one.cpu_us for one in rounds),
        per_second=max(one.per_second for one in rounds),
        p50_ms=min(one.p50_ms for one in rounds),
        p99_ms=min(one.p99_ms for one in rounds),
    )


def least_ratio(rounds: Sequence[Figures], base: Sequence[Figures]) -> float:
    """Return how many times the CPU of ``base`` is taken by ``rounds``, each in its best round."""
    return least(rounds).cpu_us / least(base).cpu_us
