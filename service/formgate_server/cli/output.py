"""Where the command prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Protocol, TypeVar, cast

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, RenderableType
from rich.text import Text

from formgate_server.cli.text import safe

M = TypeVar("M", bound=Message)

# A file or a program has no width: nothing is folded for it, unless COLUMNS says so.
_UNFOLDED = 10_000


def stdout() -> Console:
    """Return the console of what was asked for."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Return the console of all that is said about it."""
    return _console(sys.stderr)


def _console(file: IO[str]) -> Console:
    width = None if file.isatty() or "COLUMNS" in os.environ else _UNFOLDED
    # No name of anybody's is markup, or an emoji's code, or a number to be coloured.
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


def as_json(message: Message, *, indent: int | None = 2) -> str:
    """Write a message as protobuf JSON with the proto's field names: fields that are not set, too; ASCII only."""
    fields = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return json.dumps(fields, indent=indent)


def show(message: M, wanted: bool, people: Callable[[M], RenderableType]) -> None:
    """Print an answer: as JSON where that is ``wanted``, else as ``people`` renders it."""
    if wanted:
        print(as_json(message))  # noqa: T201
    else:
        stdout().print(people(message))


def show_listing(
    pages: Iterable[Sequence[M]],
    *,
    json: bool,
    quiet: bool,
    identify: Callable[[M], str],
    people: Callable[[Sequence[M], int], RenderableType],
) -> None:
    """Print a listing as its pages come: as a JSON array, as ids, or as tables that fit the width, one a page."""
    if json:
        print_array(message for page in pages for message in page)
        return
    console = stdout()
    for page in pages:
        if quiet:
            show_ids(map(identify, page))
        elif page:
            console.print(people(page, console.width))


def show_ids(ids: Iterable[str]) -> None:
    """Print ids, one a line."""
    for each in ids:
        print(safe(each))  # noqa: T201


def print_array(messages: Iterable[Message]) -> None:
    """Print a JSON array as its elements come, each on a line. One that was cut off is no valid JSON."""
    separator = "["
    for message in messages:
        sys.stdout.write(f"{separator}\n{as_json(message, indent=None)}")
        separator = ","
    sys.stdout.write("[]\n" if separator == "[" else "\n]\n")


class WithSecret(Protocol):
    """The answer to making something that has a secret."""

    secret: str


def show_new(answer: WithSecret, about: RenderableType, *, json: bool, secret_only: bool) -> None:
    """Print a new thing and its secret, which is alone on its line."""
    if json:
        print(as_json(cast(Message, answer)))  # noqa: T201
        return
    if secret_only:
        print(safe(answer.secret))  # noqa: T201
        return
    console = stdout()
    console.print(about)
    console.print()
    console.print(Text(safe(answer.secret), style="bold green"), soft_wrap=True)
    console.print()
    console.print(Text("Hand it to its owner now: it is not shown again.", style="dim"))
