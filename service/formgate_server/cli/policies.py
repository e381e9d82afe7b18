"""`formgate policy`: read policy files, on this machine and without a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from formgate_server.cli.errors import CommandError, ExitCode
from formgate_server.cli.options import Json, Quiet

if TYPE_CHECKING:
    from formgate_server.core.policy import Policies

app = typer.Typer(no_args_is_help=True, help="Read and check policy files on this machine; no server is asked.")

PolicyDir = Annotated[
    Path | None,
    typer.Option(
        "--policy-dir", envvar="FORMGATE_POLICY_DIR", metavar="DIR", help="A folder with policies of your own, *.toml."
    ),
]


@app.command("list")
def list_policies(*, policy_dir: PolicyDir = None, quiet: Quiet = False, json: Json = False) -> None:
    """List the bundled policies and your own."""
    from formgate_server.cli import output, promises
    from formgate_server.rpc import convert

    policies = _load(policy_dir)
    messages = [convert.policy(policy) for policy in policies.by_name.values()]
    output.show_listing([messages], json=json, quiet=quiet, identify=lambda each: each.name, people=promises.listing)


@app.command()
def show(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The policy's name.")],
    policy_dir: PolicyDir = None,
    json: Json = False,
) -> None:
    """Show what a policy promises."""
    from formgate_server.cli import output, promises
    from formgate_server.rpc import convert

    policies = _load(policy_dir)
    policy = policies.by_name.get(name)
    if policy is None:
        known = ", ".join(policies.by_name)
        raise CommandError(
            f"there is no policy {name}", ExitCode.USAGE, hint=f"there are {known}; --policy-dir adds yours"
        )
    output.show(convert.policy(policy), json, lambda _: promises.render(policy))


@app.command()
def check(
    *,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="A policy file, or a folder to check together with the bundled ones."),
    ],
) -> None:
    """Tell whether policy files are valid. Ends with 1 where one is not."""
    from rich.text import Text

    from formgate_server.cli import output
    from formgate_server.cli.text import safe
    from formgate_server.policies.policy import PolicyError, load, read

    valid = True
    for path in paths:
        try:
            names = list(load(path).by_name) if path.is_dir() else [read(path).name]
        except PolicyError as error:
            valid = False
            output.show_people(Text(safe(f"✗ {error}"), style="red"))
        else:
            output.show_people(Text(safe(f"✓ {path}: {', '.join(names)}"), style="green"))
    if not valid:
        raise typer.Exit(ExitCode.REFUSED)


def _load(policy_dir: Path | None) -> Policies:
    from formgate_server.policies.policy import PolicyError, load

    try:
        return load(policy_dir)
    except PolicyError as error:
        raise CommandError(str(error), ExitCode.REFUSED) from None
