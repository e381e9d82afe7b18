"""`formgate limits`: where limits stand."""

from __future__ import annotations

from typing import Annotated

import typer

from formgate_server.cli.errors import CommandError, ExitCode
from formgate_server.cli.options import Json
from formgate_server.cli.remote import Server, remote


@remote
def limits(
    server: Server,
    *,
    account_id: Annotated[
        str, typer.Argument(metavar="ACCOUNT_ID", help="The account's id, for the limits that it holds.")
    ] = "",
    key_id: Annotated[
        str, typer.Option("--key", metavar="KEY_ID", help="A key's id, for all the limits that it is charged by.")
    ] = "",
    json: Json = False,
) -> None:
    """Show what is left of an account's limits, or of those of one of its keys. It charges nothing."""
    from formgate.v1.accounts_pb2 import GetLimitsRequest
    from formgate_server.cli import bars, output

    if not (account_id or key_id):
        raise CommandError("give an ACCOUNT_ID or --key", ExitCode.USAGE)
    response = server.call(server.accounts.GetLimits, GetLimitsRequest(account_id=account_id, key_id=key_id))
    if json or response.limits:
        output.show(response, json, lambda answer: bars.limits(answer.limits))
    else:
        output.stderr().print("there are none", style="dim")
