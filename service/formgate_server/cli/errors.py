"""How the command fails: what it says, and what it ends with."""

from __future__ import annotations

import enum
from collections.abc import Sequence


class ExitCode(enum.IntEnum):
    """What the command ends with. A script that goes on only after 0 fails closed."""

    DONE = 0
    """Done; `check`: allowed."""
    REFUSED = 1
    """Refused by the server; `check`: denied, and nothing but that."""
    USAGE = 2
    """Called in a wrong way; nothing was sent."""
    UNDECIDED = 3
    """No server, or it could not decide."""
    INTERRUPTED = 130
    """Ended by ctrl-C."""
    NOBODY_READS = 141
    """What would have read the output has ended, as with every command in a pipe."""


class CommandError(Exception):
    """Why the command did not do what was asked, for its user to read.

    ``details`` are further lines, such as one a field; ``hint`` says what to do. All may hold texts of the server: they
    are made safe when shown.
    """

    def __init__(self, message: str, code: ExitCode, *, details: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = tuple(details)
        self.hint = hint


def wrong_usage(where: str, problem: str) -> CommandError:
    """Return the error for what stands at ``where``, such as ``--limit``."""
    return CommandError(f"{where}: {problem}", ExitCode.USAGE)


def show(error: CommandError) -> None:
    """Print it to stderr."""
    from rich.text import Text

    from formgate_server.cli.output import stderr
    from formgate_server.cli.text import safe

    console = stderr()
    console.print(Text.assemble(("error: ", "bold red"), safe(error.message)), soft_wrap=True)
    for detail in error.details:
        console.print(Text(f"  {safe(detail)}"), soft_wrap=True)
    if error.hint:
        console.print(Text.assemble(("hint: ", "cyan"), safe(error.hint)), soft_wrap=True)
