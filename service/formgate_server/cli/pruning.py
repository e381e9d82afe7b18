"""Deletes old usage, and tells how far it is."""

from __future__ import annotations

import json as encoder
from typing import TYPE_CHECKING

from rich.progress import Progress, SpinnerColumn, TextColumn

from formgate_server.cli import output, people
from formgate_server.cli.errors import CommandError, ExitCode
from formgate_server.server import prune_usage
from formgate_server.truth import StartError

if TYPE_CHECKING:
    from formgate_server.settings import Settings


def run(settings: Settings, batch: int, *, dry_run: bool, json: bool) -> None:
    """Delete or, in a dry run, count; print how much. On a terminal, how far it is stands on stderr meanwhile."""
    console = output.stderr()
    columns = SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f}")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("deleting", total=None)

        def tell(name: str, deleted: int) -> None:
            progress.update(task, description=f"deleting {name}", completed=deleted)

        try:
            counts = prune_usage(settings, batch, None if dry_run else tell)
        except StartError as error:
            raise CommandError(str(error), ExitCode.REFUSED) from None
    if json:
        print(encoder.dumps({"dry_run": dry_run, **counts}, indent=2))  # noqa: T201
    else:
        output.show_people(people.card({name: f"{count:,}" for name, count in counts.items()}))
        if dry_run:
            output.stderr().print("nothing was deleted: this was a dry run", style="dim")
