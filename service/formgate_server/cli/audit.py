"""`formgate audit`: who changed what, and whether the trail of it is as it was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from formgate_server.cli import options
from formgate_server.cli.errors import CommandError, ExitCode
from formgate_server.cli.options import AccountId, FromText, Json, Most, ToText
from formgate_server.cli.remote import Server, remote

if TYPE_CHECKING:
    from formgate.v1.accounts_pb2 import AuditEvent, ListAuditEventsRequest

app = typer.Typer(no_args_is_help=True, help="List, export and verify the audit trail: who changed what, and when.")

OfKey = Annotated[str, typer.Option("--key", metavar="KEY_ID", help="Only what was done to this key.")]


@app.command("list")
@remote
def list_events(
    server: Server,
    *,
    account_id: AccountId,
    key_id: OfKey = "",
    start_time: FromText = "",
    end_time: ToText = "",
    most: Most = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print numbers only, one a line.")] = False,
    json: Json = False,
) -> None:
    """List what was changed, newest first: who, when, and what it was before and after."""
    from formgate_server.cli import history, output

    pages = _pages(server, _request(account_id, key_id, start_time, end_time), most)
    output.show_listing(
        pages, json=json, quiet=quiet, identify=lambda event: str(event.sequence), people=history.listing
    )


@app.command()
@remote
def export(
    server: Server, *, account_id: AccountId, key_id: OfKey = "", start_time: FromText = "", end_time: ToText = ""
) -> None:
    """Print all events as JSON, one a line, newest first. Kept elsewhere, they show what is cut off here one day."""
    from formgate_server.cli import history

    request = _request(account_id, key_id, start_time, end_time)
    whole = not (key_id or start_time or end_time)
    history.export(_pages(server, request, None), whole=whole)


@app.command()
def verify(
    *,
    account_id: Annotated[
        str | None, typer.Argument(metavar="ACCOUNT_ID", help="Only this account's.", show_default="all")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="The server's data folder.", show_default="formgate-data"),
    ] = None,
    pepper_file: Annotated[
        Path | None,
        typer.Option(
            "--pepper-file", metavar="FILE", help="The server's peppers.", show_default="the one in the data folder"
        ),
    ] = None,
    retired: Annotated[
        list[Path],
        typer.Option(
            "--retired-pepper-file",
            default_factory=list,
            show_default=False,
            metavar="FILE",
            help="Peppers that the server has no more, to check what they signed. Repeatable.",
        ),
    ],
    json: Json = False,
) -> None:
    """Tell whether the audit trail is as it was written.

    Ends with 0 where every row is sound, with 1 where one is altered or missing, else with 3: some can not be checked.

    It reads the database, that of FORMGATE_DATABASE_URL or in the data folder, and the pepper, and writes nothing; the
    server may run meanwhile.
    """
    import asyncio

    from formgate_server.cli import findings
    from formgate_server.cli.serve import settings
    from formgate_server.maintenance import verify_audit
    from formgate_server.truth import StartError

    given = settings(data=data, pepper_file=pepper_file)
    try:
        found = asyncio.run(verify_audit(given, account_id, retired))
    except StartError as error:
        raise CommandError(str(error), ExitCode.UNDECIDED, hint="nothing is verified") from None
    if account_id is not None and not found:
        place = given.data if given.database_url is None else "the database"
        raise CommandError(f"{place} has no account {account_id}", ExitCode.UNDECIDED, hint="nothing is verified")
    findings.show(found, json=json)
    if any(each.tampered for each in found.values()):
        raise typer.Exit(ExitCode.REFUSED)
    if not all(each.intact for each in found.values()):
        raise typer.Exit(ExitCode.UNDECIDED)


def _request(account_id: str, key_id: str, start: str, end: str) -> ListAuditEventsRequest:
    from formgate.v1.accounts_pb2 import ListAuditEventsRequest

    return ListAuditEventsRequest(
        account_id=account_id,
        key_id=key_id,
        start_time=options.moment("--from", start) if start else None,
        end_time=options.moment("--to", end) if end else None,
    )


def _pages(server: Server, request: ListAuditEventsRequest, most: int | None) -> Iterator[Sequence[AuditEvent]]:
    return (page.audit_events for page in server.pages(server.accounts.ListAuditEvents, request, most))
