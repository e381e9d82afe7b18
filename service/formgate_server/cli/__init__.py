"""The command `formgate`. It changes things by RPC only, never behind the server's back.

Where things are: the commands, a module a noun; ``remote`` for those that speak to a server, ``options`` that they
share, ``syntax`` of what people write, ``people``, ``verdict`` and ``promises`` for what they see, ``output`` for where
it goes, ``refusal`` for what a server's error means.

A command imports what it needs when it runs: `formgate --help` and shell completion wait for neither gRPC nor SQL.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from formgate_server.cli import (
    accounts,
    audit,
    check,
    doctor,
    errors,
    keys,
    limits,
    members,
    policies,
    serve,
    tokens,
    usage,
)
from formgate_server.cli.errors import CommandError, ExitCode

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Ends with 0: done, or allowed. 1: refused, or denied. 2: called wrongly. 3: no server, or no decision.",
)
app.command()(serve.serve)
app.command()(serve.migrate)
app.add_typer(tokens.app, name="token")
app.add_typer(accounts.app, name="account")
app.add_typer(members.app, name="member")
app.add_typer(keys.app, name="key")
app.command()(check.check)
app.command()(limits.limits)
app.add_typer(usage.app, name="usage")
app.add_typer(audit.app, name="audit")
app.add_typer(policies.app, name="policy")
app.command()(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"formgate {version('formgate-server')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def formgate(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Decide who holds an API key, what it may do, and how much of it is left."""


def main() -> None:
    """Run the command, and end the process with what `docs/command.md` says."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (None: the process'); returns its exit code."""
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that can not show a letter still shows the rest
    try:
        code: int | None = app(arguments, prog_name="formgate", standalone_mode=False)
        sys.stdout.flush()
    except CommandError as error:
        errors.show(error)
        return error.code
    except typer.TyperException as error:
        return _wrong_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except (BrokenPipeError, SystemExit) as ended:
        if not isinstance(ended, BrokenPipeError) and not isinstance(ended.__context__, BrokenPipeError):
            raise
        _print_no_more()
        return ExitCode.NOBODY_READS
    except Exception as error:
        if os.environ.get("FORMGATE_TRACEBACK"):
            raise
        errors.show(_explained(error))
        return ExitCode.UNDECIDED
    return code or ExitCode.DONE


def _open_closed() -> None:
    """Put nothing in the place of streams that whoever called has closed: Python has None there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process


def _print_no_more() -> None:
    """Let what is left go: Python flushes stdout once more when it ends, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _explained(error: Exception) -> CommandError:
    """Return what to tell of what no command has expected."""
    if isinstance(error, OSError) and error.errno in _FULL:
        _print_no_more()
        message = f"what it prints can not be written: {error.strerror}"
        hint = "what was to be changed may have changed all the same: look before you repeat it"
    else:
        message = f"formgate has a fault: {type(error).__name__}: {error}"
        hint = "please report it, with what FORMGATE_TRACEBACK=1 shows"
    return CommandError(message, ExitCode.UNDECIDED, hint=hint)


def _wrong_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return ExitCode.USAGE  # the help has been printed
    message = " ".join(error.format_message().replace("Value error, ", "").split())  # some has lines of its own
    hint = f"`{context.command_path} --help` lists what there is" if context else ""
    errors.show(CommandError(message, ExitCode.USAGE, hint=hint))
    return ExitCode.USAGE
