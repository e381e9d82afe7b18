"""`formgate usage`: what was consumed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from formgate_server.cli import options
from formgate_server.cli.errors import CommandError, ExitCode
from formgate_server.cli.options import LARGEST, Json
from formgate_server.cli.remote import Server, remote

app = typer.Typer(no_args_is_help=True, help="Record what was consumed.")


@app.command("record")
@remote
def record_usage(
    server: Server,
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="Records to send, a JSON object of the contract's UsageRecord a line; `-`: stdin.",
            show_default=False,
        ),
    ] = None,
    key_id: Annotated[str, typer.Option("--key-id", metavar="KEY_ID", help="The key that consumed.")] = "",
    units: Annotated[
        int | None, typer.Option("--units", min=0, max=LARGEST, help="How much.", show_default=False)
    ] = None,
    record_id: Annotated[
        str,
        typer.Option(
            "--record-id", metavar="ID", help="Its id: sent again, it is not counted again.", show_default="a new one"
        ),
    ] = "",
    operation: Annotated[str, typer.Option("--operation", help="What was done, such as submissions.create.")] = "",
    resource: Annotated[str, typer.Option("--resource", metavar="PATH", help="With what, such as forms/f1.")] = "",
    status_code: Annotated[
        int, typer.Option("--status-code", min=0, max=599, help="The HTTP status answered.", show_default=False)
    ] = 0,
    latency: Annotated[
        str, typer.Option("--latency", metavar="DURATION", help="How long it took, such as 250ms.")
    ] = "",
    occur_time: Annotated[str, typer.Option("--occur-time", metavar="TIME", help="When.", show_default="now")] = "",
    charge_units: Annotated[
        int | None,
        typer.Option(
            "--charge-units",
            min=0,
            max=LARGEST,
            help="Also charge so many to the limits, for a call checked with cost 0.",
            show_default=False,
        ),
    ] = None,
    refund_request_id: Annotated[
        str, typer.Option("--refund-request-id", metavar="ID", help="Give back what the check of this id was charged.")
    ] = "",
    tags: Annotated[
        list[str],
        typer.Option(
            "--tag", default_factory=list, show_default=False, metavar="NAME=VALUE", help="A note. Repeatable."
        ),
    ],
    json: Json = False,
) -> None:
    """Record usage: one record by options, or many by --file.

    Sending records again is safe: each counts once. Ends with 1 where any was rejected or in conflict.
    """
    from formgate.v1.authorization_pb2 import UsageRecord
    from formgate_server.cli import recording

    if file is not None:
        if key_id or units is not None:
            raise CommandError("--file says it all: give no --key-id or --units with it", ExitCode.USAGE)
        raise typer.Exit(recording.send_file(server, file, json=json))
    if not key_id or units is None:
        raise CommandError("give --key-id and --units, or --file", ExitCode.USAGE)
    record = UsageRecord(
        record_id=record_id or _new_id(),
        key_id=key_id,
        units=units,
        operation=operation,
        resource=resource,
        status_code=status_code,
        latency=options.duration("--latency", latency),
        occur_time=options.time("--occur-time", occur_time),
        charge_units=charge_units,
        refund_request_id=refund_request_id,
        tags=options.pairs("--tag", tags),
    )
    raise typer.Exit(recording.send_one(server, record, json=json))


def _new_id() -> str:
    import uuid

    return str(uuid.uuid4())
