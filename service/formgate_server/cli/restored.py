"""Raises every account's epoch after a restore, and tells how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import Progress, SpinnerColumn, TextColumn

from formgate_server.cli import output
from formgate_server.server import renew_epochs

if TYPE_CHECKING:
    from formgate_server.settings import Settings

_FOLLOWED_AT_ONCE = 20_000
"""So many changes within a minute are followed by servers that run, without delay to anything."""


def renew(settings: Settings) -> None:
    """Raise them and say of how many accounts; on a terminal, how far it is stands on stderr meanwhile.

    Raises StartError where the database can not be had.
    """
    console = output.stderr()
    columns = SpinnerColumn(), TextColumn("accounts {task.completed:,.0f}")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("accounts", total=None)
        renewed = renew_epochs(settings, lambda so_far: progress.update(task, completed=so_far))
    print(f"{renewed:,} accounts have new epochs: servers read anew all that they know of them")  # noqa: T201
    if renewed > _FOLLOWED_AT_ONCE:
        console.print("start the servers in a minute: they would read all of these again and again until then")
