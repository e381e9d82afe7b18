"""`formgate check`: one verdict, and how it came about."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from formgate_server.cli import options
from formgate_server.cli.errors import CommandError, ExitCode
from formgate_server.cli.options import LARGEST, EnvironmentName, Json
from formgate_server.cli.remote import Server, remote

if TYPE_CHECKING:
    from formgate.v1.authorization_pb2 import CheckKeyRequest, CheckKeyResponse


@remote
def check(
    server: Server,
    *,
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="The key; seen in the process list. Better `-`, to read it from stdin, or FORMGATE_KEY; with none of "
            "them it is asked for.",
            show_default=False,
        ),
    ] = None,
    permissions: Annotated[
        list[str],
        typer.Option(
            "--permission",
            default_factory=list,
            show_default=False,
            metavar="NAME",
            help="A permission wanted, such as forms.view. Repeatable: all are needed.",
        ),
    ],
    resources: Annotated[
        list[str],
        typer.Option(
            "--resource",
            default_factory=list,
            show_default=False,
            metavar="PATH",
            help="What is asked for, such as forms/f1. Repeatable: other paths of the same thing.",
        ),
    ],
    http_method: Annotated[
        str, typer.Option("--method", help="The HTTP method, for the level that the policy maps it to.")
    ] = "",
    source_ip: Annotated[str, typer.Option("--ip", metavar="ADDRESS", help="Whence the request came.")] = "",
    api_group: Annotated[str, typer.Option("--api-group", metavar="NAME", help="The API group of the call.")] = "",
    environment: Annotated[
        EnvironmentName | None,
        typer.Option("--environment", case_sensitive=False, help="What the key must be made for."),
    ] = None,
    policy: Annotated[str, typer.Option("--policy", metavar="NAME", help="Only this policy's keys count.")] = "",
    cost: Annotated[
        int | None, typer.Option("--cost", min=0, max=LARGEST, help="Units to charge.", show_default="1")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look without charging, as --cost 0.")] = False,
    request_id: Annotated[
        str, typer.Option("--request-id", metavar="ID", help="Repeated within 60 s, it is not charged again.")
    ] = "",
    tags: Annotated[
        list[str],
        typer.Option(
            "--tag", default_factory=list, show_default=False, metavar="NAME=VALUE", help="A note. Repeatable."
        ),
    ],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing: the exit code says it.")] = False,
    json: Json = False,
) -> None:
    """Check a key: the verdict, each step of it, and what is left of its limits.

    Ends with 0 when it is allowed, with 1 when it is denied, with anything else when it was not decided.
    """
    from formgate.v1.authorization_pb2 import CheckKeyRequest
    from formgate.v1.resources_pb2 import Environment

    if dry_run and cost:
        raise CommandError(f"--dry-run charges nothing, --cost {cost} would", ExitCode.USAGE)
    request = CheckKeyRequest(
        key=_key(key),
        permissions=permissions,
        resources=resources,
        api_group=api_group,
        environment=Environment.Value(f"ENVIRONMENT_{(environment or 'unspecified').upper()}"),
        http_method=http_method,
        source_ip=source_ip,
        cost=0 if dry_run else cost,
        request_id=request_id,
        policy=policy,
        tags=options.pairs("--tag", tags),
        explain=not quiet,
    )
    response = _decide(server, request)
    if not quiet:
        from formgate_server.cli import output, verdict

        output.show(response, json, verdict.render)
    if not response.allowed:
        raise typer.Exit(ExitCode.REFUSED)


def _decide(server: Server, request: CheckKeyRequest) -> CheckKeyResponse:
    """Ask for the verdict. A server that refuses to tell one has denied nothing: 1 stays for what was denied."""
    try:
        return server.call(server.authorization.CheckKey, request)
    except CommandError as error:
        error.code = ExitCode.UNDECIDED
        raise


def _key(argument: str | None) -> str:
    """Return the key from where it was said to be."""
    if argument == "-":
        return _from_stdin()
    if argument is not None:
        return argument
    if key := os.environ.get("FORMGATE_KEY", ""):
        return key
    if sys.stdin.isatty():
        answer: str = typer.prompt("Key", hide_input=True, err=True)
        return answer.strip()
    raise CommandError("no key", ExitCode.USAGE, hint="pipe it in and say `-`, or set FORMGATE_KEY")


def _from_stdin() -> str:
    try:
        return sys.stdin.buffer.readline().decode().strip()
    except UnicodeDecodeError:
        raise CommandError("what stdin gives is not text", ExitCode.USAGE) from None
