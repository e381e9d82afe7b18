"""Amounts drawn as bars."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from formgate.v1.resources_pb2 import LimitStatus
from formgate_server.cli import people
from formgate_server.cli.text import safe

LENGTH = 20
_LOW = 0.2
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def limits(found: Iterable[LimitStatus]) -> Table:
    """Return where limits stand, with what remains of each as a bar."""
    table = people.table("LIMIT", "COUNTED BY", "LEFT", "", "WHOLE AGAIN")
    for limit in found:
        table.add_row(
            safe(limit.name),
            people.holder(limit.holder),
            "unlimited" if limit.unlimited else f"{limit.remaining} of {limit.amount}",
            "" if limit.unlimited else remainder(limit.remaining, limit.amount),
            people.time(limit.reset_time) or ("now" if _is_whole(limit) else "never"),
        )
    return table


def _is_whole(limit: LimitStatus) -> bool:
    return not limit.unlimited and limit.remaining >= limit.amount


def remainder(remaining: int, amount: int) -> Text:
    """Return a bar of what remains: empty only when nothing does, full only when all does."""
    share = remaining / amount if amount else 0.0
    filled = min(max(round(share * LENGTH), 1 if remaining else 0), LENGTH if remaining >= amount else LENGTH - 1)
    style = "green" if share > _LOW else "yellow" if remaining else "red"
    return Text.assemble(("█" * filled, style), ("░" * (LENGTH - filled), "dim"))


def column(amount: int, largest: int, length: int) -> Text:
    """Return a bar of ``amount`` where ``largest`` is ``length`` letters long; empty only for nothing."""
    eighths = amount * length * 8 // largest if largest else 0
    whole, rest = divmod(max(eighths, 1) if amount > 0 else 0, 8)
    return Text("█" * whole + (_EIGHTHS[rest] if rest else ""), style="cyan", no_wrap=True)
