"""Panels of lines over time, as SVG: a legend with the last value of each, and a shade where something was away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

_COLOURS = (
    "#1f77b4",
    "#e4572e",
    "#2ca02c",
    "#9467bd",
    "#d49a00",
    "#17becf",
    "#8c564b",
    "#e377c2",
    "#6b7280",
    "#84a300",
)
_WIDTH, _HEIGHT, _ACROSS = 420, 200, 2
_LEFT, _RIGHT, _TOP = 52, 12, 30
_PLOT = 120
_LEGEND_LINE = 13
_MOST_SHOWN = 9
_TICKS = 4


class Series(NamedTuple):
    """A line: (seconds since the beginning, value) in order."""

    name: str
    points: Sequence[tuple[float, float]]


class Panel(NamedTuple):
    """What one panel shows; ``unit`` as Grafana calls it."""

    title: str
    unit: str
    series: Sequence[Series]


class Sheet(NamedTuple):
    """Panels side by side, over the same ``seconds``; ``shade`` is the span of an outage."""

    panels: Sequence[Panel]
    seconds: float
    shade: tuple[float, float]

    def svg(self) -> str:
        """Return the picture."""
        parts, y = list[str](), 0
        for first in range(0, len(self.panels), _ACROSS):
            line = self.panels[first : first + _ACROSS]
            for at, panel in enumerate(line):
                parts.append(f'<g transform="translate({at * _WIDTH},{y})">{"".join(self._panel(panel))}</g>')
            y += max(map(_height, line))
        width = min(len(self.panels), _ACROSS) * _WIDTH
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}"'
            ' font-family="sans-serif" font-size="10">'
            f'<rect width="{width}" height="{y}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
        )

    def _panel(self, panel: Panel) -> Iterator[str]:
        highest = _rounded(max((value for each in panel.series for _, value in each.points), default=0) or 1)
        wide = _WIDTH - _LEFT - _RIGHT
        across, up = wide / self.seconds, _PLOT / highest
        bottom = _TOP + _PLOT
        yield f'<text x="{_LEFT}" y="18" font-size="12" font-weight="bold" fill="#222">{escape(panel.title)}</text>'
        begins, ends = self.shade
        x, shaded = _LEFT + begins * across, (ends - begins) * across
        yield f'<rect x="{x:.0f}" y="{_TOP}" width="{shaded:.0f}" height="{_PLOT}" fill="#f6d5cf" opacity=".6"/>'
        for tick in range(_TICKS + 1):
            value = highest * tick / _TICKS
            y, told = bottom - value * up, _told(value, panel.unit)
            yield f'<path d="M{_LEFT} {y:.0f}h{wide}" stroke="#ddd"/>'
            yield f'<text x="{_LEFT - 4}" y="{y + 3:.0f}" text-anchor="end" fill="#555">{told}</text>'
        for second in range(0, int(self.seconds) + 1, 30):
            x = _LEFT + second * across
            yield f'<text x="{x:.0f}" y="{bottom + 12}" text-anchor="middle" fill="#555">{second} s</text>'
        shown = sorted(panel.series, key=lambda each: -max(value for _, value in each.points))[:_MOST_SHOWN]
        for colour, series in zip(_COLOURS, shown, strict=False):
            points = " ".join(f"{_LEFT + at * across:.0f},{bottom - value * up:.0f}" for at, value in series.points)
            yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        for number, (colour, series) in enumerate(zip(_COLOURS, shown, strict=False)):
            y = bottom + 26 + number * _LEGEND_LINE
            most, last = max(value for _, value in series.points), series.points[-1][1]
            told = f"{escape(series.name)}: last {_told(last, panel.unit)}, most {_told(most, panel.unit)}"
            yield f'<rect x="{_LEFT}" y="{y - 6}" width="8" height="3" fill="{colour}"/>'
            yield f'<text x="{_LEFT + 12}" y="{y}" fill="#333">{told}</text>'
        rest = len(panel.series) - len(shown)
        note = f"and {rest} more" if rest else "" if panel.series else "nothing in this run"
        y = bottom + 26 + len(shown) * _LEGEND_LINE
        yield f'<text x="{_LEFT + 12}" y="{y}" fill="#777">{note}</text>'


def _height(panel: Panel) -> int:
    return _HEIGHT + min(len(panel.series), _MOST_SHOWN) * _LEGEND_LINE


def _rounded(value: float) -> float:
    """Return a round number that is no less."""
    power = 1.0
    while power < value:
        power *= 10
    while power / 10 >= value:
        power /= 10
    return next(power * part for part in (0.2, 0.4, 0.6, 0.8, 1.0) if power * part >= value * 0.999)


def _told(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return f"{value * 1_000:.3g} ms" if 0 < value < 1 else f"{value:.4g} s"
    if unit == "bytes":
        return f"{value / 2**20:.3g} MiB"
    return f"{value:.3g}" + ("/s" if unit == "ops" else "")
