"""How the audit trail looks: to people as a log with what changed, to programs as JSON, a line an event."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from formgate.v1.accounts_pb2 import AuditEvent
from formgate_server.cli import output, people
from formgate_server.cli.errors import CommandError
from formgate_server.cli.text import safe

_MOST_LINES = 12
_LONGEST = 160

# What every change changes, and what the lines above say.
_UNTOLD = frozenset({
    "account_id", "key_id", "member_id", "token_id", "create_time", "update_time", "epoch", "version",
})  # fmt: skip
_NOTHING: tuple[object, ...] = (None, "", [], {})


def listing(found: Sequence[AuditEvent], _width: int) -> Group:
    """Return a page of the trail."""
    return Group(*(part for event in found for part in _parts(event)))


def _parts(event: AuditEvent) -> Iterator[Text | Padding]:
    number, target = f"#{event.sequence}  ", f"  {safe(event.target)}"
    yield Text.assemble((number, "dim"), people.time(event.create_time), "  ", (safe(event.action), "bold"), target)
    yield _indented(Text(f"by {_who(event)}", style="dim"))
    if event.note:
        yield _indented(Text(f"note: {safe(event.note)}", style="italic"))
    lines = list(changes(event))
    for line in lines[:_MOST_LINES]:
        yield _indented(line)
    if len(lines) > _MOST_LINES:
        yield _indented(Text(f"… and {len(lines) - _MOST_LINES} more; --json tells all", style="dim"))


def _indented(text: Text) -> Padding:
    text.overflow = "fold"
    return Padding(text, (0, 0, 0, 4), expand=False)


def _who(event: AuditEvent) -> str:
    through = f"token {safe(event.token_id)}" if event.token_id else "the server itself"
    if not event.actor:
        return through
    whence = f" from {safe(event.actor_ip)}" if event.actor_ip else ""
    return f"{safe(event.actor)}{whence}, through {through}"


def changes(event: AuditEvent) -> Iterator[Text]:
    """Return what changed, a line each: ``- `` what is gone, ``+ `` what is new, or from what to what."""
    try:
        before, after = _read(event.before), _read(event.after)
    except ValueError:  # the trail was tampered with, or is a newer server's
        yield Text(safe(f"{event.before} → {event.after}"))
        return
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if name not in _UNTOLD and old != new:
            yield from _change(name, old, new, made=not before, ended=not after)


def _read(text: str) -> Mapping[str, Any]:
    value = json.loads(text or "{}")
    if not isinstance(value, dict):
        raise ValueError(text)  # noqa: TRY004 - what is not JSON raises the same
    return value


def _change(name: str, old: object, new: object, *, made: bool, ended: bool) -> Iterator[Text]:
    if isinstance(old, list | dict) or isinstance(new, list | dict):
        gone, come = _elements(old), _elements(new)
        yield from (_line("- ", name, each, "red") for each in gone if each not in come)
        yield from (_line("+ ", name, each, "green") for each in come if each not in gone)
    elif made or ended:
        if (old if ended else new) not in _NOTHING:
            yield _line("- ", name, old, "red") if ended else _line("+ ", name, new, "green")
    else:
        yield Text.assemble(f"{safe(name)}: ", (_told(name, old), "red"), " → ", (_told(name, new), "green"))


def _elements(value: object) -> list[object]:
    if isinstance(value, dict):
        return [f"{name}={each}" for name, each in value.items()]
    return list(value) if isinstance(value, list) else []


def _line(sign: str, name: str, value: object, style: str) -> Text:
    return Text(f"{sign}{safe(name)}: {_told(name, value)}", style=style)


def _told(name: str, value: object) -> str:
    if value in _NOTHING:
        return "nothing"
    if isinstance(value, int) and name.endswith("_time"):
        told = Timestamp()
        try:
            told.FromMicroseconds(value)
            return people.time(told)
        except (ValueError, OverflowError):
            return str(value)
    text = safe(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def export(pages: Iterable[Sequence[AuditEvent]], *, whole: bool) -> None:
    """Print a line an event, as the pages come. ``whole``: the first event's number tells how many there are.

    Raises CommandError saying how far it came.
    """
    written = 0
    # On the same screen the events would run into the bar.
    with _progress(hidden=sys.stdout.isatty()) as progress:
        task = progress.add_task("exporting", total=None)
        try:
            for page in pages:
                if whole and not written and page:
                    progress.update(task, total=page[0].sequence)
                sys.stdout.writelines(f"{output.as_json(event, indent=None)}\n" for event in page)
                written += len(page)
                progress.update(task, completed=written)
        except CommandError as error:
            error.details = (*error.details, f"{written:,} events are written, and there are more")
            raise


def _progress(*, hidden: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=output.stderr(),
        transient=True,
        disable=hidden or not sys.stderr.isatty(),
        redirect_stdout=False,  # what is asked for goes where it was sent
        redirect_stderr=False,
    )
