"""Where the command prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Any, Protocol, TypeVar, cast

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


def show_people(*parts: RenderableType) -> None:
    """Print what people read, one part below the other."""
    console = stdout()
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    # rich fills lines up with blanks, which a file need not keep.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().split("\n")[:-1]))
    sys.stdout.flush()  # what stderr says about it comes behind, also where both go to one file


def as_json(message: Message, *, indent: int | None = 2) -> str:
    """Write a message as protobuf JSON in ASCII: all its fields, by their names in the proto and in its order."""
    fields = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return json.dumps(_in_order(fields, message.DESCRIPTOR), indent=indent)


def _in_order(value: Any, kind: Any) -> Any:  # noqa: ANN401 - JSON of any shape; the runtime's descriptor
    """Put the JSON of a message of ``kind`` (None: none) in the proto's order, whether or not its fields are set."""
    if isinstance(value, list):
        return [_in_order(each, kind) for each in value]
    if not isinstance(value, dict) or kind is None or kind.GetOptions().map_entry:
        return value
    present = (field for field in kind.fields if field.name in value)
    return {field.name: _in_order(value[field.name], field.message_type) for field in present}


def show(message: M, wanted: bool, people: Callable[[M], RenderableType]) -> None:
    """Print an answer: as JSON where that is ``wanted``, else as ``people`` renders it."""
    if wanted:
        print(as_json(message))  # noqa: T201
    else:
        show_people(people(message))


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
    none = True
    for page in pages:
        if quiet:
            show_ids(map(identify, page))
        elif page:
            show_people(people(page, stdout().width))
        none = none and not page
    if none and not quiet:
        stderr().print("there are none", style="dim")


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


ONCE = "Hand it to its owner now: it is not shown again."
ONCE_MAYBE = "Hand it to its owner now: it is shown again only where the policy lets `formgate key reveal` do so."


def show_new(answer: WithSecret, about: RenderableType, *, json: bool, secret_only: bool, then: str = ONCE) -> None:
    """Print a thing and its secret, which is alone on its line, and what there is to do with it."""
    if json:
        print(as_json(cast(Message, answer)))  # noqa: T201
        return
    if secret_only:
        print(safe(answer.secret))  # noqa: T201
        return
    secret = Text(safe(answer.secret), style="bold green", no_wrap=True, overflow="ignore")
    show_people(about, "", secret, "", Text(then, style="dim"))
