"""How a verdict looks to people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from formgate.v1 import authorization_pb2 as pb
from formgate_server.cli import bars, people
from formgate_server.cli.syntax import format_wait
from formgate_server.cli.text import safe

_OUTCOMES = {
    pb.STEP_OUTCOME_PASSED: ("✓", "green"),
    pb.STEP_OUTCOME_DENIED: ("✗", "bold red"),
    pb.STEP_OUTCOME_SKIPPED: ("–", "dim"),  # noqa: RUF001 - a dash, for what was not looked at
}


def render(response: pb.CheckKeyResponse) -> RenderableType:
    """Return the verdict first, then how it came about, then what is left."""
    return Group(*_parts(response))


def _parts(response: pb.CheckKeyResponse) -> Iterator[RenderableType]:
    yield _headline(response)
    yield people.card(_facts(response))
    if response.explanation:
        yield ""
        yield _steps(response.explanation)
    if response.limits:
        yield ""
        yield bars.limits(response.limits)


def _headline(response: pb.CheckKeyResponse) -> Text:
    word, style = ("ALLOWED", "bold green") if response.allowed else ("DENIED", "bold red")
    known = pb.Reason.DESCRIPTOR.values_by_number.get(response.reason)
    reason = known.name.removeprefix("REASON_") if known else str(response.reason)
    return Text.assemble((word, style), "" if response.allowed else f"  {reason}")


def _facts(response: pb.CheckKeyResponse) -> dict[str, str | Text]:
    key = response.key
    retry = "in " + format_wait(response.retry_after) if response.HasField("retry_after") else ""
    return {
        "message": "" if response.allowed else safe(response.message),
        "HTTP status": str(response.http_status),
        "retry": retry,
        "key": safe(" ".join(filter(None, (key.key_id, key.display_name and f"({key.display_name})")))),
        "account": safe(key.account_id),
        "environment": people.environment(key.environment),
        "created by": safe(key.created_by),
        "expires": people.time(key.expire_time),
        "metadata": Text("\n".join(people.metadata(key.metadata))),
        "degraded": Text("a store is away: decided by what was known", "yellow") if response.degraded else "",
    }


def _steps(steps: Iterable[pb.ExplanationStep]) -> Table:
    table = people.table("", "STEP", "DETAIL")
    for step in steps:
        mark, style = _OUTCOMES.get(step.outcome, ("?", "yellow"))
        shown = "dim" if step.outcome == pb.STEP_OUTCOME_SKIPPED else ""
        table.add_row(Text(mark, style), Text(safe(step.step), shown), Text(safe(step.detail), shown))
    return table
