"""`formgate usage`: what was consumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from formgate_server.cli import options
from formgate_server.cli.errors import CommandError, ExitCode
from formgate_server.cli.options import LARGEST, AccountId, FromText, Json, ToText
from formgate_server.cli.remote import Server, remote
from formgate_server.cli.serve import Data, settings

if TYPE_CHECKING:
    from formgate_server.cli.spent import Span

app = typer.Typer(no_args_is_help=True, help="Record what was consumed, and show the sums of it.")


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


@app.command()
@remote
def show(
    server: Server,
    *,
    account_id: AccountId,
    key_id: Annotated[str, typer.Option("--key", metavar="KEY_ID", help="Only this key's.")] = "",
    start_time: FromText = "",
    end_time: ToText = "",
    daily: Annotated[
        bool, typer.Option("--daily/--hourly", help="By days of the account's time zone, or by hours of UTC.")
    ] = True,
    group_by: Annotated[
        str,
        typer.Option(
            "--by", metavar="key|operation|tag:NAME", help="Also by this; a tag must be one that the policy sums by."
        ),
    ] = "",
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets.")] = False,
    json: Json = False,
) -> None:
    """Show what was consumed, a day or an hour a bar. Without --from: the last 30 days, or 24 hours."""
    from formgate.v1.accounts_pb2 import GRANULARITY_DAY, GRANULARITY_HOUR, GetUsageRequest
    from formgate_server.cli import output, spent

    if csv and json:
        raise CommandError("--csv can not go with --json", ExitCode.USAGE)
    span = _span(server, account_id, start_time, end_time, daily, group_by)
    request = GetUsageRequest(
        account_id=account_id,
        key_id=key_id,
        granularity=GRANULARITY_DAY if daily else GRANULARITY_HOUR,
        group_by=group_by,
    )
    request.start_time.FromMicroseconds(span.start)
    request.end_time.FromMicroseconds(span.end)
    response = server.call(server.accounts.GetUsage, request)
    if csv:
        spent.print_csv(response, span)
    elif json or response.buckets:
        output.show(response, json, lambda answer: spent.render(answer, span))
    else:
        output.stderr().print("there is none", style="dim")


@app.command()
def prune(
    *,
    data: Data = None,
    usage_days: Annotated[
        int | None,
        typer.Option("--usage-days", metavar="N", help="Keep records of so many days, at least 35.", show_default="35"),
    ] = None,
    usage_months: Annotated[
        int | None,
        typer.Option("--usage-months", metavar="N", help="Keep sums of so many months.", show_default="25"),
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, max=100_000, help="How many to delete in a transaction.")
    ] = 1_000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing; say how much would go.")] = False,
    json: Json = False,
) -> None:
    """Delete usage that has been kept long enough. Servers do so by themselves, every hour.

    It works on the database itself: in the data folder only while no server runs there, on PostgreSQL at any time.
    """
    given = settings(data=data, usage_days=usage_days, usage_months=usage_months)
    from formgate_server.cli import pruning

    pruning.run(given, batch, dry_run=dry_run, json=json)


def _span(server: Server, account_id: str, start: str, end: str, daily: bool, group_by: str) -> Span:
    """Return what is asked for. What is said as an age goes back to the beginning of that day or hour."""
    from formgate_server.cli.spent import Span
    from formgate_server.cli.syntax import is_age

    zone = _zone(server, account_id) if daily else None
    text = start or ("29d" if daily else "23h")
    begins = options.moment("--from", text, zone or "UTC")
    ends = options.moment("--to", end or "0s", zone or "UTC")
    span = Span(begins.ToMicroseconds(), ends.ToMicroseconds(), zone, group_by)
    return span._replace(start=next(span.starts(), span.start)) if is_age(text) else span


def _zone(server: Server, account_id: str) -> str:
    """Return the time zone of an account's days: its own, else its plan's; UTC where this machine does not know it."""
    from formgate.v1.accounts_pb2 import GetAccountRequest, ListPoliciesRequest
    from formgate_server.core.calendar import zone_names

    account = server.call(server.accounts.GetAccount, GetAccountRequest(account_id=account_id)).account
    zone = account.time_zone
    if not zone:
        policies = server.call(server.accounts.ListPolicies, ListPoliciesRequest()).policies
        plans = [plan for policy in policies if policy.name == account.policy for plan in policy.plans]
        zone = next((plan.time_zone for plan in plans if plan.name == account.plan), "")
    return zone if zone in zone_names() else "UTC"


def _new_id() -> str:
    import uuid

    return str(uuid.uuid4())
